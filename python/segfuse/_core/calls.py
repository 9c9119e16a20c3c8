"""Arguments and results of native calls, as named tuples. csrc/binding.h reads the same fields in the same order."""

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
    """A plan and the data of one call, for csrc/binding.h. An address of 0 means: there is none."""

    plan: _C.Plan
    logits: NativeTensor
    target: NativeTensor | None  # None for the head alone: it reads only sizes
    weight: NativeTensor | None
    soft: bool
    class_values: int
    coefficients: int
    classes: int  # 0: the lists of the plan, on the host
    executor: int  # a number of threads, or a stream


class Buffers(NamedTuple):
    """The memory of a step, for csrc/binding.h."""

    loss: Memory = NOTHING
    terms: Memory = NOTHING
    slopes: Memory = NOTHING
    output: NativeTensor | None = None  # the gradient, or the loss without reduction
    sums: Memory = NOTHING
    partial: Memory = NOTHING
    workspace: Memory = NOTHING
    vector: Memory = NOTHING


class MemorySizes(NamedTuple):
    """How many doubles the steps of a device need in `Buffers` (csrc/problem.h)."""

    sums: int
    partial: int
    workspace: int
    head_workspace: int
    vector: int


class Constants(NamedTuple):
    """Numbers of a call beside its tensors: rows of class weights, and one coefficient per term; or None."""

    class_values: Tensor | None = None
    coefficients: Tensor | None = None


class Results(NamedTuple):
    """Results of a forward: the loss, its terms (float64), and slopes and status for the gradient pass."""

    loss: Tensor
    terms: Tensor
    slopes: Tensor
