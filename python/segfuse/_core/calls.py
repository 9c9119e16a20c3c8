"""What native calls take and give, as named tuples: csrc/binding.h reads the same fields, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from segfuse import _C

NativeTensor: TypeAlias = tuple[int, int, Sequence[int], Sequence[int]]  # address, dtype code, shape, strides
Memory: TypeAlias = tuple[int, int]  # address, number of elements
NOTHING: Memory = (0, 0)


class Call(NamedTuple):
    """A plan on the data of one call, as csrc/binding.h takes it. Addresses: 0 where there is nothing."""

    plan: _C.Plan
    logits: NativeTensor
    target: NativeTensor | None  # None for the head alone, which reads sizes only
    weight: NativeTensor | None
    soft: bool
    class_values: int
    coefficients: int
    classes: int  # 0: the plan's own lists, on the host
    executor: int  # a number of threads, or a stream


class Buffers(NamedTuple):
    """The memory of a step, as csrc/binding.h takes it."""

    loss: Memory = NOTHING
    terms: Memory = NOTHING
    slopes: Memory = NOTHING
    output: NativeTensor | None = None  # the gradient, or the values of an unreduced loss
    sums: Memory = NOTHING
    partial: Memory = NOTHING
    workspace: Memory = NOTHING
    vector: Memory = NOTHING


class MemorySizes(NamedTuple):
    """How many doubles a device's steps want in `Buffers` (csrc/problem.h)."""

    sums: int
    partial: int
    workspace: int
    head_workspace: int
    vector: int


class Constants(NamedTuple):
    """What a call brings beside its tensors: rows of class weights, one coefficient per term; or None."""

    class_values: Tensor | None = None
    coefficients: Tensor | None = None


class Results(NamedTuple):
    """What a forward leaves: the loss, its terms (float64), and the slopes and the status for the gradient pass."""

    loss: Tensor
    terms: Tensor
    slopes: Tensor
