"""The native modules: how they are loaded and chosen, and which kernels they ran."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from segfuse import _C
from segfuse._version import __version__

# The codes of csrc/dtype.h, in its order. torch has unsigned types of 16 to 64 bits since 2.3.
DTYPE_CODE: dict[torch.dtype, int] = {
    dtype: code
    for code, dtype in enumerate(
        (
            torch.float32,
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.bool,
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.int32,
            torch.int64,
            torch.uint16,
            torch.uint32,
            torch.uint64,
        )
    )
}


# Other devices (Apple MPS) may have no float64.
FLOAT64_DEVICES = {"cpu", "cuda", "meta"}


def number_dtype(device: torch.device) -> torch.dtype:
    """The widest floating type that a device surely has. Terms, coefficients and class weights have it there."""
    return torch.float64 if device.type in FLOAT64_DEVICES else torch.float32


# Private names of torch. Where one is missing, a safe default takes a slower route.
functorch_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_tracing_state: Callable[[], object] = getattr(torch._C, "_get_tracing_state", lambda: None)
PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether kernels may read the tensors at their addresses, and no mode or tracer must see the call."""
    if _dispatch_modes() != 0 or _tracing_state() is not None:
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in PLAIN or tensor.is_neg() or tensor._is_zerotensor()):
            return False
    return True


@lru_cache(maxsize=1)
def cuda_module() -> ModuleType | None:
    """``segfuse._cuda``, or None if it was not built. The first CUDA tensor loads it."""
    if importlib.util.find_spec("segfuse._cuda") is None:
        return None
    return importlib.import_module("segfuse._cuda")


# `trace` collects the kernels of these modules, and of `segfuse._cuda`.
_traced: list[Any] = [_C]


class TraceEvent(NamedTuple):
    """One pass over the pixels: its kernel, the instruction set, and the bytes that it read and wrote."""

    kernel: str
    instruction_set: str
    bytes_read: int
    bytes_written: int


@contextmanager
def trace() -> Iterator[list[TraceEvent]]:
    """Collect the kernels that run inside the ``with`` block, in every thread. The end of the block fills the list."""
    events: list[TraceEvent] = []
    modules = list(_traced)
    if (cuda := cuda_module()) is not None:
        modules.append(cuda)
    for module in modules:
        module.trace_start()
    try:
        yield events
    finally:
        for module in modules:
            events.extend(TraceEvent(*event) for event in module.trace_stop())


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the CPU kernels of one of ``_C.instruction_sets()`` inside the ``with`` block."""
    before = _C.instruction_set()
    _C.use_instruction_set(name)
    try:
        yield
    finally:
        _C.use_instruction_set(before)


Scheme: TypeAlias = Literal["automatic", "two_pass", "gradient_in_forward"]
chosen_scheme: ContextVar[Scheme] = ContextVar("scheme", default="automatic")


@contextmanager
def scheme(name: Scheme) -> Iterator[None]:
    """Choose how the gradient is computed inside the ``with`` block (csrc/problem.h), for tests and benches.

    On a CPU every scheme but ``two_pass`` means ``automatic``.
    """
    if name not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}; got {name!r}")
    token = chosen_scheme.set(name)
    try:
        yield
    finally:
        chosen_scheme.reset(token)


def build_info() -> dict[str, Any]:
    """Versions, native modules and CPU features, as a dict (``python -m segfuse`` prints it).

    >>> segfuse.build_info()["segfuse"] == segfuse.__version__
    True
    """
    cuda = cuda_module()
    return {
        "segfuse": __version__,
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "native CPU module": _C.__file__,
        "native CUDA module": None if cuda is None else cuda.__file__,
        "CUDA architectures": None if cuda is None else cuda.architectures,
        "CPU instruction sets": _C.instruction_sets(),
        "CPU instruction set in use": _C.instruction_set(),
        "thread pool": _C.thread_pool(),
        "threads": torch.get_num_threads(),
        "CUDA device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
