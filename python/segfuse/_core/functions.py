"""Losses as functions: ``dice_loss(logits, target, mode=m)`` is ``DiceLoss(m)(logits, target)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch

from segfuse._core.describe import describe
from segfuse._core.native import functorch_active, is_plain
from segfuse._core.options import DATA_DEFAULTS, DataOptions, named_group
from segfuse.algebra import Loss

Function = TypeVar("Function", bound=Callable[..., object])


@lru_cache(maxsize=256, typed=True)  # typed: 1 is not True
def _made(cls: Any, types: tuple[type, ...], **options: Any) -> Loss:
    # The loss is kept, so it must not depend on the device or the inference mode of the first call.
    with torch.device("cpu"), torch.inference_mode(False):
        loss: Loss = cls(**options)
    return loss


def cached(cls: type[Loss], **options: Any) -> Loss:
    """A loss with these options. It is kept for later calls if they are plain numbers, lists of numbers, and names."""
    options = named_group(options)
    if torch.compiler.is_compiling() or functorch_active() or not is_plain():
        return cls(**options)  # not kept: its class weights may belong to a tracer
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    listed = [number for v in plain.values() if isinstance(v, tuple) for number in v]
    constant = all(isinstance(v, (int, float, str, tuple, type(None))) for v in plain.values())
    if constant and all(isinstance(number, (int, float)) for number in listed):
        return _made(cast(Hashable, cls), tuple(map(type, listed)), **plain)
    return cls(**options)


def described(function: Function) -> Function:
    """Adds the shared options to the signature and documentation of a function that has no class."""
    describe(function, DataOptions, DATA_DEFAULTS, function.__doc__ or "")
    return function


def function_of(cls: type[Loss]) -> Callable[[Function], Function]:
    """Copies the options and the documentation of a loss class to its function."""

    def complete(function: Function) -> Function:
        opening = f"{function.__name__}(logits, target, ...) is {cls.__name__}(...)(logits, target, weight)."
        describe(
            function,
            cls._takes,
            cls._hidden_defaults,
            f"{opening}\n\n{inspect.cleandoc(cls._written_doc)}",
            cls._symbols,
        )
        return function

    return complete
