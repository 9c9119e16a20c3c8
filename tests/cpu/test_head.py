"""The head (csrc/head.h) from sums that are known, without an engine, in double.

What head.cpp prints is held against segfuse.reference, which is written from the formulas and differentiated by
autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from environment import DEVICE, SHIM
from programs import Programs, numbers
from segfuse import reference

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="programs on the CPU")
close = torch.testing.assert_close
TABLE = (0.6, 1.7)  # of the two classes


class Term(NamedTuple):
    """A term of a plan: the fields of its struct (csrc/problem.h), its reference and the options of that."""

    family: str
    fields: dict[str, Any]
    reference: str
    options: dict[str, Any]
    coefficient: float = 1.0

    @property
    def is_region(self) -> bool:
        return self.family == "region"

    @property
    def class_scale(self) -> Tensor:
        """A factor per class, where it stands inside the sum over the classes of a pixel."""
        weighs = self.fields.get("balance") == "class_weight"
        return torch.tensor(TABLE if weighs else (1.0, 1.0), dtype=torch.float64)[:, None]


SMOOTH = {"smooth_numerator": 0.5, "smooth_denominator": 2.0}
SKEWED = {"alpha": 0.3, "beta": 0.7}


def region(kind: str, reference: str, fields: dict[str, Any], options: dict[str, Any]) -> Term:
    return Term("region", {"kind": kind, **SMOOTH, **fields}, f"{reference}_loss", {"smooth": (0.5, 2.0), **options})


def same(kind: str, reference: str, **both: Any) -> Term:
    """A region loss whose options have the names of the fields."""
    return region(kind, reference, {k: int(v) if isinstance(v, bool) else v for k, v in both.items()}, both)


SQUARED, SOFT = {"statistics": "squared"}, {"statistics": "soft_label"}
WEIGHTED = ({"class_values": 0}, {"class_weight": TABLE})
LISTED = ({"class_count": 1}, {"classes": [1]})
SENSITIVITY = ("sensitivity_specificity", "sensitivity_specificity")
REGIONS = {
    "dice": same("dice", "dice"),
    "dice, floor": same("dice", "dice", eps=9.0),
    "jaccard": same("jaccard", "jaccard"),
    "jaccard, over classes": same("jaccard", "jaccard", pool_classes=True),
    "tversky": same("tversky", "tversky", **SKEWED),
    "tversky, over the batch": same("tversky", "tversky", pool_batch=True, **SKEWED),
    "tversky, over both": same("tversky", "tversky", pool_batch=True, pool_classes=True, **SKEWED),
    "tversky, squared": region("tversky", "tversky", {**SQUARED, **SKEWED}, {"squared": True, **SKEWED}),
    "tversky, soft": region("tversky", "tversky", {**SOFT, **SKEWED}, {"soft_label": True, **SKEWED}),
    "absent zero": same("dice", "dice", absent="zero"),
    "absent skip": same("dice", "dice", absent="skip"),
    "class weight": region("dice", "dice", *WEIGHTED),
    "one class": region("dice", "dice", *LISTED),
    "log": same("tversky", "tversky", shape="log", **SKEWED),
    "log_cosh": same("dice", "dice", shape="log_cosh"),
    "power": region(
        "tversky",
        "focal_tversky",
        {"shape": "power", "shape_parameter": 1.6, **SKEWED},
        {"gamma": 1.6, **SKEWED},
    ),
    "background": region(
        "background_tversky",
        "background_tversky",
        {"shape": "power", "shape_parameter": 0.6, **SKEWED},
        {"gamma": 0.6, **SKEWED},
    ),
    "sensitivity": region(*SENSITIVITY, {"alpha": 0.3}, {"sensitivity_weight": 0.3}),
    "sensitivity, log": region(
        *SENSITIVITY, {"alpha": 0.3, "shape": "log"}, {"sensitivity_weight": 0.3, "shape": "log"}
    ),
    "sensitivity, squared": region(
        *SENSITIVITY,
        {"alpha": 0.3, "statistics": "squared_error"},
        {"sensitivity_weight": 0.3, "squared_error": True},
    ),
    "generalized": region(
        "dice",
        "generalized_dice",
        {"generalized": 1, "factor": "square", "pool_classes": 1, "class_values": 0},
        WEIGHTED[1],
    ),
    "generalized, simple": region(
        "dice",
        "generalized_dice",
        {"generalized": 1, "factor": "simple", "pool_classes": 1, "pool_batch": 1},
        {"weight_type": "simple", "pool_batch": True},
    ),
    "adaptive, below": region(
        "dice",
        "dice",
        {"adaptive": 1, "omega": 3.0, "threshold": 0.9, "epsilon": 0.2},
        {"adaptive": (3.0, 0.9, 0.2)},
    ),
    "adaptive, above": region(
        "dice",
        "dice",
        {"adaptive": 1, "omega": 3.0, "threshold": 0.1, "epsilon": 0.2},
        {"adaptive": (3.0, 0.1, 0.2)},
    ),
}


def pointwise(kind: str, reference: str, fields: dict[str, Any], options: dict[str, Any]) -> Term:
    return Term("pointwise", {"kind": kind, **fields}, f"{reference}_loss", options)


BCE, CE = ("bce_with_logits", "bce_with_logits"), ("cross_entropy", "cross_entropy")
ROW_POINTS = {
    "bce": pointwise(*BCE, {}, {}),
    "bce, one weight": pointwise(*BCE, {"balance": "positive", "balance_value": 2.5}, {"pos_weight": 2.5}),
    "bce, weights": pointwise(*BCE, {"balance": "positive", "class_values": 0}, {"pos_weight": TABLE}),
    "bce, balanced": pointwise(*BCE, {"balance": "balanced"}, {"balanced": True}),
    "focal, alpha": pointwise("focal", "focal", {"balance": "alpha", "balance_value": 0.3}, {"alpha": 0.3}),
}
JOINT_POINTS = {
    "cross-entropy": pointwise(*CE, {}, {}),
    "cross-entropy, weights": pointwise(*CE, {"balance": "class_weight", "class_values": 0}, {"class_weight": TABLE}),
    "mse": pointwise("squared_error", "mse", {"every_class": 1}, {}),
}
MIXED = [
    REGIONS["tversky, over the batch"]._replace(coefficient=0.7),
    REGIONS["sensitivity"]._replace(coefficient=-2.0),
]
PLANS = [
    *((name, multiclass, [term]) for name, term in REGIONS.items() for multiclass in (False, True)),
    *((name, False, [term]) for name, term in ROW_POINTS.items()),
    *((name, True, [term]) for name, term in JOINT_POINTS.items()),
    ("a sum", False, [*MIXED, ROW_POINTS["bce, balanced"], ROW_POINTS["focal, alpha"]._replace(coefficient=20.0)]),
    (
        "a sum",
        True,
        [JOINT_POINTS["cross-entropy, weights"]._replace(coefficient=3.0), *MIXED, REGIONS["tversky, soft"]],
    ),
]


def allowed(terms: list[Term], reduction: str) -> bool:
    pools = any(term.options.get("pool_batch") for term in terms)
    if reduction == "sample":
        return not pools
    return reduction != "none" or (len(terms) == 1 and terms[0].is_region)


HEADS = [
    pytest.param(multiclass, terms, reduction, id=f"{name}-{'multiclass' if multiclass else 'rows'}-{reduction}")
    for name, multiclass, terms in PLANS
    for reduction in ("mean", "sum", "sample", "none")
    if allowed(terms, reduction)
]


def parts(term: Term, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and the negative part of a pointwise loss, before it is balanced."""
    positive, negative = t * -p.log(), (1 - t) * -(1 - p).log()
    kind = term.fields["kind"]
    if kind == "focal":
        return (1 - p) ** 2 * positive, p**2 * negative
    if kind == "squared_error":
        return (p - t) ** 2, 0 * negative
    return positive, negative


def region_sums(p: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """Those of a row, in the order of `Layout` in csrc/problem.h."""
    u, d = 1 - t, p - t
    summed = [t * p, u * p, t * (1 - p), u * (1 - p), t * d**2, u * d**2, -t * d, d.clamp_min(0), (-d).clamp_min(0)]
    return (torch.stack([*summed, torch.minimum(p, t), t * (1 - d**2), u * (1 - d**2)]) * w).sum(-1)


def region_part(slope: Tensor, p: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """What has the six slopes of a row in p (RowSlopes in csrc/pixel.h)."""
    d, u = p - t, 1 - t
    linear = slope[0] * t * p + slope[1] * u * p + (slope[2] * t + slope[3] * u) * d**2
    return (w * (linear + slope[4] * d.clamp_max(0) + slope[5] * d.clamp_min(0))).sum()


class Problem:
    """Two samples of two classes, a few pixels each; no pixel of the first sample has class 1."""

    def __init__(self, multiclass: bool, terms: list[Term]) -> None:
        self.multiclass, self.terms = multiclass, terms
        shape = (2, 2, 7)
        self.p = torch.rand(shape, dtype=torch.float64) * 0.9 + 0.05
        self.weight = torch.rand((2, 7) if multiclass else shape, dtype=torch.float64) + 0.1
        if multiclass:
            self.target = torch.randint(2, (2, 7))
            self.target[0], self.target[1, :2] = 0, torch.tensor([0, 1])
            self.t = torch.stack([1.0 - self.target, 1.0 * self.target], 1).double()
        else:
            # A third each: 0, 1, between.
            self.target = torch.rand(shape, dtype=torch.float64).mul(3).sub(1).clamp(0, 1)
            self.target[0, 1], self.target[1, :, 0] = 0, 1
            self.t = self.target
        self.w = self.weight[:, None].expand(shape) if multiclass else self.weight
        classes_of_domain = [slice(0, 2)] if multiclass else [slice(0, 1), slice(1, 2)]
        self.domains = [(n, classes) for n in range(2) for classes in classes_of_domain]

    @property
    def regions(self) -> list[Term]:
        return [term for term in self.terms if term.is_region]

    @property
    def pointwise(self) -> list[Term]:
        return [term for term in self.terms if not term.is_region]

    def region_sums(self) -> int:
        """How many a row has."""
        if any(term.fields.get("statistics") for term in self.regions):
            return 12
        negatives = ("background_tversky", "sensitivity_specificity")
        return 0 if not self.regions else 4 if any(term.fields["kind"] in negatives for term in self.regions) else 3

    def sums(self) -> list[float]:
        found: list[Tensor] = []
        for n, c in self.domains:
            p, t, w = self.p[n, c], self.t[n, c], self.w[n, c]
            found.append(w[0].sum())
            for term in self.pointwise:
                positive, negative = parts(term, p, t)
                if self.multiclass:
                    scale = term.class_scale
                    denominator = (w * scale * t).sum() if "class_values" in term.fields else w[0].sum()
                    found += [(w * scale * positive).sum(), denominator]
                else:
                    found += [(w * positive).sum(), (w * negative).sum()]
            if any(term.fields.get("balance") == "balanced" for term in self.pointwise):
                found.append((w * t).sum())
            found += [region_sums(*row)[: self.region_sums()] for row in zip(p, t, w, strict=True)]
        return torch.cat([each.reshape(-1) for each in found]).tolist()

    def words(self, reduction: str) -> str:
        words: list[object] = [
            "samples",
            2,
            "classes",
            2,
            "multiclass",
            int(self.multiclass),
            "one_label",
            int(self.multiclass),
        ]
        words += ["reduction", reduction, "values", 2, *TABLE, "scored", 1, 1]
        for term in self.terms:
            words += [term.family, "coefficient", term.coefficient]
            words += [word for item in term.fields.items() for word in item]
        sums = self.sums()
        return " ".join(map(str, [*words, "sums", len(sums), *sums]))

    def with_slopes(self, slopes: Tensor, p: Tensor) -> Tensor:
        """Σ slope * sum. Its gradient in p is the gradient of the loss."""
        total = torch.zeros((), dtype=torch.float64)
        for (n, c), own in zip(self.domains, slopes.reshape(len(self.domains), -1), strict=True):
            domain = p[n, c], self.t[n, c], self.w[n, c]
            for k, term in enumerate(self.pointwise):
                positive, negative = parts(term, *domain[:2])
                of_pixel = own[2 * k] * (term.class_scale if self.multiclass else 1.0) * positive
                if not self.multiclass:
                    of_pixel = of_pixel + own[2 * k + 1] * negative
                total = total + (domain[2] * of_pixel).sum()
            if self.regions:
                of_rows = own[2 * len(self.pointwise) :].reshape(-1, 6)
                total = total + sum(map(region_part, of_rows, *domain))
        return total

    def terms_of_reference(self, p: Tensor, reduction: str) -> list[Tensor]:
        options = {
            "mode": "multiclass" if self.multiclass else "multilabel",
            "from_logits": False,
            "reduction": reduction,
        }
        functions: list[Callable[..., Tensor]] = [getattr(reference, term.reference) for term in self.terms]
        return [
            function(p, self.target, weight=self.weight, **options, **term.options)
            for function, term in zip(functions, self.terms, strict=True)
        ]


def test_every_region_loss_and_shape_is_in_the_table(programs: Programs) -> None:
    kinds, shapes = programs.run("head", "kinds")
    assert {term.fields["kind"] for term in REGIONS.values()} == set(kinds)
    assert {term.fields.get("shape", "linear") for term in REGIONS.values()} == set(shapes)


@pytest.mark.parametrize(("multiclass", "terms", "reduction"), HEADS)
def test_the_head(multiclass: bool, terms: list[Term], reduction: str, programs: Programs) -> None:
    """Sums are made here, in plain PyTorch, and so is the gradient in the probabilities from the slopes.

    head.cpp itself checks that several blocks and several ranks give the same.
    """
    problem = Problem(multiclass, terms)
    loss, found, slopes = (numbers(words) for words in programs.run("head", problem.words(reduction)))
    p = problem.p.requires_grad_()
    each = problem.terms_of_reference(p, reduction)
    expected = sum(term.coefficient * value for term, value in zip(terms, each, strict=True))
    close(found, torch.cat([value.detach().reshape(-1) for value in each]), rtol=1e-12, atol=1e-14)
    close(loss, expected.detach().reshape(-1), rtol=1e-12, atol=1e-14)
    (exact,) = torch.autograd.grad(expected.sum(), p)
    (gradient,) = torch.autograd.grad(problem.with_slopes(slopes, p), p)
    close(gradient, exact, rtol=1e-11, atol=1e-13)
