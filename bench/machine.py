"""The machine of a measurement: its names, versions, clock and copy rate. Also writes the file of results."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import segfuse


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def driver() -> str | None:
    """The version of the NVIDIA driver, from nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def l2_bytes() -> int:
    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 64 << 20


def describe(device: str) -> dict[str, Any]:
    """What a reader must know about the machine of a result."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    about = segfuse.build_info()
    build = ("CUDA architectures",) if device == "cuda" else ("CPU instruction set in use", "thread pool")
    found |= {name: about[name] for name in ("segfuse", *build)}  # without the paths of its files
    if device == "cuda":
        found |= {
            "driver": driver(),
            "torch CUDA": torch.version.cuda,
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        }
    return found


def slug(name: str) -> str:
    """The name of a device as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def told(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def compact(value: Any) -> str:
    """JSON with one line for each row of a list. Numbers have five digits, because runs differ in the third."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {compact(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(compact, value)) + "]"
    return json.dumps(float(f"{value:.5g}") if isinstance(value, float) else value)


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Writes the results. An interrupt leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".tmp")
    half.write_text(compact(results) + "\n")
    half.replace(path)


class Clock:
    """Seconds per call on a device. On a GPU events measure it; it is the time of the host if that is longer."""

    def __init__(self, device: str) -> None:
        self.device = device

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, f: Callable[[], object], repeat: int = 1) -> float:
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeat):
                f()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / repeat
        begin = time.perf_counter()
        for _ in range(repeat):
            f()
        return (time.perf_counter() - begin) / repeat


def median_seconds(f: Callable[[], object], clock: Clock, rounds: int = 7, repeat: int = 4) -> float:
    clock.seconds(f, 2)
    return float(np.median([clock.seconds(f, repeat) for _ in range(rounds)]))


def copy_rate(device: str, size: int | None = None) -> float:
    """Bytes per second, read and written, when a buffer is copied. On a GPU it has 2 GB, or less if memory is short."""
    if size is None:
        size = 2 << 30 if device == "cuda" else 64 << 20
    if device == "cuda":
        size = min(size, torch.cuda.mem_get_info()[0] // 6)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), Clock(device))


def copy_rate_for(logits: Tensor) -> float:
    """The copy rate to compare with: on a GPU of a large buffer, on a CPU of a clone of the logits.

    A CPU is slower on new memory, and a clone is new memory.
    """
    if logits.is_cuda:
        return copy_rate("cuda")
    return 2 * logits.nbytes / median_seconds(logits.detach().clone, Clock("cpu"))
