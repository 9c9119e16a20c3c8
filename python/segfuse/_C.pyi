from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

# (address, dtype code, shape, strides)
Tensor: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]

class Plan:
    def __init__(self, plan: Mapping[str, Any]) -> None: ...

def sum_count(plan: Plan, shape: Sequence[int]) -> int: ...
def workspace_size(plan: Plan, shape: Sequence[int]) -> int: ...
def vector_size(plan: Plan, shape: Sequence[int]) -> int: ...
def forward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    soft: bool,
    tables: int,
    coefficients: int,
    output: Tensor | None,
    loss: int,
    terms: int,
    slopes: int,
    slope_count: int,
    threads: int,
) -> bool: ...
def statistics(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    soft: bool,
    tables: int,
    sums: int,
    sum_count: int,
    threads: int,
) -> None: ...
def head(
    plan: Plan,
    shape: Sequence[int],
    label_map: bool,
    wide: bool,
    tables: int,
    coefficients: int,
    sums: int,
    workspace: int,
    workspace_size: int,
    vector: int,
    vector_size: int,
    loss: int,
    terms: int,
    slopes: int,
    slope_count: int,
    parts: int,
) -> None: ...
def backward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    soft: bool,
    tables: int,
    slopes: int,
    slope_count: int,
    scalar_upstream: int,
    upstream: Tensor | None,
    gradient: Tensor,
    ahead: bool,
    threads: int,
) -> None: ...
def trace_start() -> None: ...
def trace_stop() -> list[tuple[str, str, int, int]]: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def thread_pool() -> str: ...
def force_own_pool(on: bool) -> None: ...
def elementary32(function: int, parameter: float, input: int, output: int, count: int) -> None: ...
def elementary64(function: int, parameter: float, input: int, output: int, count: int) -> None: ...
