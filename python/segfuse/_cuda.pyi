from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

# (address, dtype code, shape, strides)
Tensor: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]

architectures: str
few_rows: int

class Plan:
    def __init__(self, plan: Mapping[str, Any]) -> None: ...

def write_words(to: int, source: int, count: int, stream: int) -> None: ...
def write_classes(plan: Plan, to: int, stream: int) -> None: ...
def unusable() -> str: ...
def workspace_size(plan: Plan, shape: Sequence[int]) -> int: ...
def partial_size(plan: Plan, shape: Sequence[int]) -> int: ...
def head_workspace_size(plan: Plan, shape: Sequence[int]) -> int: ...
def vector_size(plan: Plan, shape: Sequence[int]) -> int: ...
def sum_count(plan: Plan, shape: Sequence[int]) -> int: ...
def forward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    soft: bool,
    tables: int,
    coefficients: int,
    classes: int,
    output: Tensor | None,
    loss: int,
    terms: int,
    slopes: int,
    slope_count: int,
    workspace: int,
    workspace_count: int,
    scheme: int,
    stream: int,
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
    partial: int,
    partial_size: int,
    stream: int,
) -> None: ...
def head(
    plan: Plan,
    shape: Sequence[int],
    label_map: bool,
    wide: bool,
    tables: int,
    coefficients: int,
    classes: int,
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
    stream: int,
) -> None: ...
def backward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    soft: bool,
    tables: int,
    classes: int,
    slopes: int,
    slope_count: int,
    scalar_upstream: int,
    upstream: Tensor | None,
    gradient: Tensor,
    ahead: bool,
    stream: int,
) -> None: ...
def warmup() -> None: ...
def kernel_names() -> list[str]: ...
def trace_start() -> None: ...
def trace_stop() -> list[tuple[str, str, int, int]]: ...
