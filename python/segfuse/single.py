"""A single loss: the common base of pointwise and region losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from segfuse._core.native import number_dtype
from segfuse._core.options import (
    MODES,
    REGION_DEFAULTS,
    Mode,
    RegionOptions,
    check_choice,
    check_data,
    check_region,
    refuse_unknown,
)
from segfuse._core.plan import LOWER
from segfuse._core.spec import KernelTerm, RegionTerm, class_values_row
from segfuse._core.terms import Term, numbers_of
from segfuse.algebra import Loss


class SingleLoss(Loss):
    """A single loss. A subclass has a ``name``, checks its options, and turns them into a term of the kernels."""

    name: ClassVar[str] = ""
    _symbols = "z is the logit, p its probability, q = 1 - p, t the label, w the weight."

    def __init__(self, mode: str, options: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__()
        refuse_unknown(self, data)
        data = check_data(data)
        self.mode = mode
        self.data = data
        self.options = {k: v for k, v in options.items() if not isinstance(v, Tensor)}
        self.class_options = [k for k, v in options.items() if isinstance(v, Tensor)]
        for name in self.class_options:
            self.register_buffer(name, options[name])
        self._fixed: dict[str, list[float]] = {}
        if data.get("reduction") == "sample" and options.get("pool_batch"):
            raise ValueError('reduction="sample" and pool_batch=True cannot be combined: a row holds the whole batch')
        self._build([Term(self)])

    def __init_subclass__(cls) -> None:
        """Registers the loss under its name."""
        super().__init_subclass__()
        if "name" in cls.__dict__:
            LOWER[cls.name] = cls.lower
        elif "lower" in cls.__dict__:
            raise TypeError(f"{cls.__name__} has a lower() of its own, so it must also have a name of its own")

    def _with_fixed(self, **class_values: list[float]) -> Self:
        """Sets tables that follow from options of a compound. They are no state; conversions do not round them."""
        self._fixed = class_values
        self._make_fixed_tables()
        return self

    def _make_fixed_tables(self) -> None:
        for name, numbers in self._fixed.items():
            device = getattr(self, name).device
            table = torch.tensor(numbers, dtype=number_dtype(device), device=device)
            self.register_buffer(name, table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        try:
            super()._apply(fn, recurse)
        except TypeError:  # perhaps the new device has no float64
            wide = [name for name in self.class_options if getattr(self, name).dtype == torch.float64]
            if not wide:
                raise
            for name in wide:
                self.register_buffer(name, getattr(self, name).float(), persistent=name not in self._fixed)
            super()._apply(fn, recurse)
        self._make_fixed_tables()
        return self

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> KernelTerm:
        """The term of the kernels, from the options."""
        raise NotImplementedError

    @classmethod
    def _own_signature(cls) -> Mapping[str, inspect.Parameter]:
        """The signature of the class that gave the loss its name; a subclass may take its options in another way."""
        return inspect.signature(next(base for base in cls.__mro__ if "name" in base.__dict__)).parameters

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        shown = {**self.options, **{name: numbers_of(getattr(self, name)) for name in self.class_options}, **self.data}
        signature = self._own_signature()
        given = [f"{name}={value!r}" for name, value in shown.items() if signature[name].default != value]
        return ", ".join([repr(self.mode), *given] if "mode" in signature else given)

    # A single loss is its own only term. So it must not hold itself as a submodule, and a copy must not copy it twice.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_terms"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_terms"] = [Term(self)]


class RegionLoss(SingleLoss):
    """Base of region losses: checks their common options and turns them into a term of the kernels."""

    name = "region_loss"
    _symbols = (
        "I = Σ w t p, FP = Σ w (1 - t) p and FN = Σ w t (1 - p), with probabilities p, labels t and weights w, over "
        "the valid pixels of a row. A row is one class of one sample, unless you pool."
    )
    _takes: ClassVar[type] = RegionOptions

    def __init__(self, mode: Mode, own: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        check_choice("mode", mode, MODES)
        data = {k: v for k, v in options.items() if k not in REGION_DEFAULTS}
        region = {k: v for k, v in options.items() if k in REGION_DEFAULTS}
        for option in region:
            if option not in self._hidden_defaults:
                raise ValueError(f"{option} cannot be given to {type(self).__name__}: its definition fixes it")
        checked = {k: v for k, v in check_region(region).items() if k in self._hidden_defaults}
        if mode == "binary" and checked["classes"] is not None:
            raise ValueError('classes cannot be used with mode="binary": there is only one class')
        super().__init__(mode, {**own, **checked}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        o: dict[str, Any] = {**REGION_DEFAULTS, **options}
        numerator, denominator = o["smooth"]
        return RegionTerm(
            kind="tversky",
            shape=o["shape"],
            statistics="squared" if o["squared"] else "soft_label" if o["soft_label"] else "product",
            absent=o["absent"],
            pool_batch=o["pool_batch"],
            pool_classes=o["pool_classes"],
            smooth_numerator=numerator,
            smooth_denominator=denominator,
            eps=o["eps"],
            alpha=o.get("alpha", 0.5),
            beta=o.get("beta", 0.5),
            class_values=class_values_row(o["class_weight"]),
            classes=tuple(o["classes"] or ()),
        )
