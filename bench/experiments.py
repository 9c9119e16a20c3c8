"""Small experiments. Their results decide how the kernels are written.

window       reads a buffer of a given size again and again: shows where the cache ends
classes      17 to 21 classes: kernels for an exact number of classes against the kernel for any number
plane_stride planes that are a power of two bytes apart, and others: shows whether memory channels collide
scaled_loss  multiplies a loss before its backward: shows the cost of a gradient that the forward wrote
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
from harness import Replay, Setting, Step
from machine import copy_rate, median_seconds

from cases import SCHEMES, WORKLOADS, Case
from segfuse._core import native

Row = dict[str, Any]
MB = 1 << 20


class Lab:
    """A device, its clock and its copy rate. Sizes are those for a GPU, also in a rehearsal on a CPU."""

    def __init__(self, setting: Setting) -> None:
        self.device, self.shrink, self.clock = setting.device, setting.shrink, setting.clock
        self.copy = copy_rate(self.device, None if self.shrink == 1 else MB)

    def shape(self, workload: str) -> tuple[int, ...]:
        n, c, *space = WORKLOADS["cuda"][workload]
        return n, c, *(max(1, side // self.shrink) for side in space)

    def seconds(self, f: Callable[[], object], inner: int = 1) -> float:
        return median_seconds(f, self.clock, rounds=9, repeat=3) / inner

    def graphed(self, f: Callable[[], object], inner: int) -> float:
        """Seconds of one f. A captured graph runs `inner` of them, so that the launch is not measured."""
        if self.device == "cpu":
            return self.seconds(f)
        f()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(inner):
                f()
        return self.seconds(graph.replay, inner)

    def step(self, case: Case, scheme: str = "two_pass", upstream: float = 1.0) -> Row:
        """A forward and backward (on a GPU a graph replay): time, and share of the copy rate by the scheme's bytes."""
        if self.device == "cpu" and scheme != "two_pass":
            raise ValueError(f"there is no {scheme} here")
        context = partial(native.scheme, scheme) if self.device == "cuda" else nullcontext
        step = Step(case.ours(), case.sets(self.device), context, upstream)
        with context():  # a scheme that cannot do the case raises here
            step()
        step.clear()
        f = Replay(step) if self.device == "cuda" else step
        seconds, size = self.seconds(f, f.per_call), case.bytes_per_pixel(scheme) * case.pixels
        return {"us": 1e6 * seconds, "TB/s": size / seconds / 1e12, "of_copy_rate": size / seconds / self.copy}


def window(setting: Setting) -> Iterator[Row]:
    lab = Lab(setting)
    for megabytes in (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 100, 130, 160):
        size = megabytes * MB // lab.shrink
        buffer = torch.zeros(size // 4, device=lab.device)
        seconds = lab.graphed(buffer.sum, 20)
        yield {"MB": megabytes, "us": 1e6 * seconds, "TB/s": size / seconds / 1e12}


def classes(setting: Setting) -> Iterator[Row]:
    lab = Lab(setting)
    n, _, *space = lab.shape("B")
    for dtype, count in product(("float32", "bfloat16"), (17, 18, 19, 20, 21)):
        case = Case("", (n, count, *space), "dice_ce", dtype, "uint8")
        yield {"classes": count, "dtype": dtype, **lab.step(case)}


def plane_stride(setting: Setting) -> Iterator[Row]:
    lab = Lab(setting)
    *outer, width = lab.shape("B")
    for dtype, columns in product(("float32", "bfloat16"), (width, width + 8, width + 64)):
        case = Case("", (*outer, columns), "dice_ce", dtype, "uint8")
        yield {"columns": columns, "dtype": dtype, **lab.step(case)}


def scaled_loss(setting: Setting) -> Iterator[Row]:
    lab = Lab(setting)
    calls = (("D", "bce", "float32"), ("D", "bce", "uint8"), ("B", "ce", "int64"))
    for (workload, loss, target), scheme, upstream in product(calls, SCHEMES, (1.0, 0.5)):
        case = Case("", lab.shape(workload), loss, "float32", target)
        row: Row = {"workload": workload, "loss": loss, "target": target, "scheme": scheme, "upstream": upstream}
        try:
            yield row | lab.step(case, scheme, upstream)
        except ValueError as error:
            yield row | {"skipped": str(error)}


EXPERIMENTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "window": window,
    "classes": classes,
    "plane_stride": plane_stride,
    "scaled_loss": scaled_loss,
}
