"""Losses as functions: ``dice_loss(logits, target, mode=m)`` is ``DiceLoss(m)(logits, target)``."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from segfuse._core.native import functorch_active, is_plain
from segfuse._core.options import named_group
from segfuse.algebra import Loss


class LossFunction(Protocol):
    """A loss as a function."""

    def __call__(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None, **options: Any) -> Tensor: ...


@lru_cache(maxsize=256, typed=True)  # typed: 1 is not True
def _made(cls: Any, types: tuple[type, ...], **options: Any) -> Loss:
    # Whatever the first call is made under.
    with torch.device("cpu"), torch.inference_mode(False):
        loss: Loss = cls(**options)
    return loss


def cached(cls: type[Loss], **options: Any) -> Loss:
    """A loss of these options, made once if they are plain numbers, lists of them, and names."""
    options = named_group(options)
    if torch.compiler.is_compiling() or functorch_active() or not is_plain():
        return cls(**options)  # its tables may be a tracer's
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    listed = [number for v in plain.values() if isinstance(v, tuple) for number in v]
    constant = all(isinstance(v, (int, float, str, tuple, type(None))) for v in plain.values())
    if constant and all(isinstance(number, (int, float)) for number in listed):
        return _made(cast(Hashable, cls), tuple(map(type, listed)), **plain)
    return cls(**options)


def function_of(cls: type[Loss], name: str) -> LossFunction:
    """The function of a loss class: ``dice_loss(logits, target, mode=m)`` is ``DiceLoss(m)(logits, target)``."""

    def function(logits: Tensor, target: Tensor, *, weight: Tensor | None = None, **options: Any) -> Any:
        return cached(cls, **options)(logits, target, weight)

    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD else p
        for p in inspect.signature(cls).parameters.values()
    ]
    positional = [
        inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Tensor") for n in ("logits", "target")
    ]
    extra = inspect.Parameter("weight", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Tensor | None")
    ordered = sorted([*own, extra], key=lambda p: p.kind)
    function.__signature__ = inspect.Signature([*positional, *ordered], return_annotation="Tensor")  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    function.__module__ = cls.__module__
    function.__doc__ = (
        f"{cls.__name__} as a function: ``{name}(logits, target, ..., weight=None)``.\n\n{inspect.getdoc(cls)}"
    )
    return function
