"""Makes the calls again that engines.py has recorded, and compares each result with the recorded numbers.

    python bench/engines.py --record calls.pickle
    compute-sanitizer --tool memcheck --kernel-name kernel_substring=segfuse python bench/replay.py calls.pickle

It does not import torch. It loads the module alone, and each buffer is one allocation of the driver. So a sanitizer
watches no kernels of torch, and sees every access beyond a buffer. --module takes a module of the CUDA sources for the
CPU (tools/build_shim.py); its memory is that of the host.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


class Reference(NamedTuple):
    """An address: a buffer and an offset in bytes."""

    buffer: int
    offset: int


class PlanNumber(NamedTuple):
    """The n-th plan of a file."""

    number: int


class Gpu:
    """Memory of the first GPU, by the driver. New memory is not written, so that initcheck sees reads of it."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.held: list[int] = []
        device, context, name = ctypes.c_int(), ctypes.c_void_p(), ctypes.create_string_buffer(100)
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # the CUDA runtime of the module uses it
        self.call("cuCtxSetCurrent", context)
        self.name = name.value.decode()

    def call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.driver, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"{function}: {(text.value or b'').decode()} ({status})")

    def allocate(self, size: int, content: bytes | None) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self.held.append(address.value)
        if content is not None:
            self.call("cuMemcpyHtoD_v2", address, content, ctypes.c_size_t(size))
        return address.value

    def read(self, address: int, size: int) -> np.ndarray:
        """Reads bytes. It waits for the kernels before it."""
        found = np.empty(size, np.uint8)
        target = ctypes.c_void_p(found.ctypes.data)
        self.call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return found

    def free(self) -> None:
        self.call("cuCtxSynchronize")
        for address in self.held:
            self.call("cuMemFree_v2", ctypes.c_uint64(address))
        self.held.clear()


class Host:
    """Memory of the CPU, aligned as by the driver. New memory is NaN in every type."""

    name = "the CPU"
    ALIGNMENT = 256

    def __init__(self) -> None:
        self.held: list[np.ndarray] = []

    def allocate(self, size: int, content: bytes | None) -> int:
        whole = np.full(size + self.ALIGNMENT, 255, np.uint8)
        start = -whole.ctypes.data % self.ALIGNMENT
        if content is not None:
            whole[start : start + size] = np.frombuffer(content, np.uint8)
        self.held.append(whole)
        return int(whole.ctypes.data) + start

    def read(self, address: int, size: int) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(address, size), np.uint8)

    def free(self) -> None:
        self.held.clear()


Memory = Gpu | Host


def load(path: Path) -> ModuleType:
    """A native module, by its path."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a module of this Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(name: str) -> Path:
    """A native module of segfuse, without importing segfuse, which imports torch."""
    spec = importlib.util.find_spec("segfuse")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in Path(folder).glob(f"{name}.*.so")]
    if not found:
        raise FileNotFoundError(f"segfuse is not installed here, or without {name}")
    return found[0]


def numbers(memory: Memory, address: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A tensor in device memory, as numpy floats."""
    wanted = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    size = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + wanted.itemsize
    values = np.ndarray(shape, wanted, memory.read(address, size).tobytes(), 0, strides)
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else values


def events(path: Path) -> Iterator[tuple[Any, ...]]:
    """The events of a file. The file may end in the middle of an event."""
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                return


class Replay:
    """Replays events: it has a module, a memory, and the state of the current sequence."""

    def __init__(self, module: ModuleType, memory: Memory) -> None:
        self.module, self.memory = module, memory
        self.plans: dict[PlanNumber, Any] = {}
        self.addresses: dict[int, int] = {}
        self.outcome: tuple[str, Any] = ("", None)
        self.sequence, self.calls, self.wrong = "", 0, 0

    def complain(self, text: str) -> None:
        self.wrong += 1
        print(f"{self.sequence}: {text}")

    def decoded(self, value: Any) -> Any:
        if isinstance(value, Reference):
            return self.addresses[value.buffer] + value.offset
        if isinstance(value, PlanNumber):
            return self.plans[value]
        return tuple(map(self.decoded, value)) if isinstance(value, tuple) else value

    def call(self, name: str, arguments: Any) -> None:
        self.calls += 1
        try:
            self.outcome = "returned", getattr(self.module, name)(*self.decoded(arguments))
        except ValueError as error:  # a scheme cannot do this call; any other error ends the replay
            self.outcome = "raised", type(error).__name__

    def expect(self, what: str, place: Any, dtype: str, strides: Any, expected: np.ndarray, allowed: float) -> None:
        found = numbers(self.memory, self.decoded(place), dtype, expected.shape, strides)
        error = float(np.abs(found - expected).max())
        if not error <= allowed:
            self.complain(f"{what} off by {error:.3g} of {np.abs(expected).max():.3g}")

    def event(self, kind: str, *rest: Any) -> None:
        if kind == "plan":
            self.plans[rest[0]] = self.module.Plan(rest[1])
        elif kind == "buffer":
            self.addresses[rest[0]] = self.memory.allocate(*rest[1:])
        elif kind == "call":
            self.call(*rest)
        elif kind == "expect":
            self.expect(*rest)
        elif self.outcome != (kind, rest[0]):
            self.complain(f"{self.outcome[0]} {self.outcome[1]}, recorded was: {kind} {rest[0]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--module", type=Path, help="the CUDA sources built for the CPU; default: segfuse._cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no new sequence after this time")
    options = parser.parse_args()
    start = time.monotonic()
    memory = Host() if options.module else Gpu()
    replay = Replay(load(options.module or installed("_cuda")), memory)
    print(f"replaying on {memory.name}")
    done = left = 0
    for kind, *rest in events(options.file):
        if kind == "sequence":
            memory.free()
            replay.addresses.clear()
            replay.sequence = rest[0]
            late = time.monotonic() - start > options.seconds
            done, left = done + (not late), left + late
        if kind == "plan" or (kind != "sequence" and not left):
            replay.event(kind, *rest)
    memory.free()
    print(
        f"{done} sequences of {replay.calls} calls, {replay.wrong} wrong" + f", {left} left out: no time" * bool(left)
    )
    return int(replay.wrong > 0 or not done)


if __name__ == "__main__":
    # The pickled objects belong to the module `replay`, not to `__main__`.
    sys.modules["replay"] = sys.modules["__main__"]
    sys.exit(main())
