"""A loss as data.

Traced graphs and pickles hold a `Spec` as JSON text. `KernelSpec` and its terms become structs of csrc/problem.h, field
by field (csrc/spec_fields.h).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from segfuse._core.options import Absent, Mode, Reduction, RowShape, Shard

Shape: TypeAlias = Literal[RowShape, "power"]  # only the focal Tversky loss has the power
Statistics: TypeAlias = Literal["product", "squared", "soft_label", "squared_error"]
Balance: TypeAlias = Literal["none", "positive", "negative", "alpha", "balanced", "class_weight"]
ClassFactor: TypeAlias = Literal["none", "simple", "square"]


@dataclass(frozen=True)
class PointwiseTerm:
    """A pointwise loss for the kernels. PointwiseTerm of csrc/problem.h says what the fields mean."""

    kind: str
    parameters: tuple[float, ...] = ()
    balance: Balance = "none"
    balance_value: float = 1.0
    class_values: int = -1
    weight_in_denominator: bool = False
    has_smoothing: bool = False
    every_class: bool = False
    coefficient: float = 1.0
    family: Literal["pointwise"] = "pointwise"


@dataclass(frozen=True)
class RegionTerm:
    """A region loss for the kernels. RegionTerm of csrc/problem.h says what the fields mean."""

    kind: str
    shape: Shape
    statistics: Statistics
    absent: Absent
    pool_batch: bool
    pool_classes: bool
    smooth_numerator: float
    smooth_denominator: float
    eps: float
    class_values: int
    classes: tuple[int, ...]
    alpha: float = 0.5
    beta: float = 0.5
    shape_parameter: float = 0.0
    generalized: bool = False
    factor: ClassFactor = "none"
    adaptive: bool = False
    omega: float = 0.0
    threshold: float = 0.0
    epsilon: float = 0.0
    coefficient: float = 1.0
    family: Literal["region"] = "region"


KernelTerm: TypeAlias = "PointwiseTerm | RegionTerm"


@dataclass(frozen=True)
class KernelSpec:
    """A loss for the ``Plan`` of a native module."""

    mode: Mode
    from_logits: bool
    ignore_index: int | None
    reduction: Reduction
    terms: tuple[KernelTerm, ...]


@dataclass(frozen=True)
class Term:
    """A term: the name and the options of its function in `segfuse.reference`.

    An option that is a tensor (class weights) is ``{"class_values": i}``: row i of the class values of each call.
    """

    name: str
    options: dict[str, Any]
    coefficient: float = 1.0


# The version of what the operators take and give (slopes, terms). A compiled graph on disk depends on their sizes, and
# torch finds it again by the spec. So raise this number when sizes change.
LAYOUT = 4


@dataclass(frozen=True)
class Spec:
    """The terms and the options that they share."""

    mode: Mode
    from_logits: bool
    ignore_index: int | None
    reduction: Reduction
    process_group: str | None
    shard: Shard
    terms: tuple[Term, ...]
    averaged: bool = True
    """Whether gradients are averaged over the ranks later, by DDP or FSDP. Then each is made larger by their number."""
    layout: int = LAYOUT

    def to_json(self) -> str:
        """The spec as text."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Spec:
        """The spec from its text."""
        return Spec.of_fields(json.loads(text))

    @staticmethod
    def of_fields(content: dict[str, Any]) -> Spec:
        """The spec from its fields, with the terms as dicts. A missing or unknown field is a TypeError."""
        return Spec(**{**content, "terms": tuple(Term(**term) for term in content["terms"])})


def is_class_values(option: object) -> bool:
    """Whether an option stands for a row of the class values."""
    return isinstance(option, dict) and option.keys() == {"class_values"}


def class_values_row(option: Any) -> int:
    """The row of the class values that an option stands for, or -1."""
    return int(option["class_values"]) if is_class_values(option) else -1


def balanced_by(kind: Balance, value: object) -> dict[str, Any]:
    """The fields that balance the two parts of a pointwise term, by a number or by a row of the class values."""
    return {
        "balance": kind,
        "balance_value": value if isinstance(value, float) else 1.0,
        "class_values": class_values_row(value),
    }
