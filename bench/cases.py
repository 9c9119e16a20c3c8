"""The table of cases: workloads, losses, element types, layouts. Also their inputs, and the bytes that a scheme moves.

core    every loss on every workload, with float32 logits and the usual target: float32 for one channel, int64 labels
        for several channels
more    only the compounds: uint8 targets with float32 and bfloat16 logits; channels_last if there are several channels
tiny    64 pixels, to measure what a call costs beyond its kernels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from formulas import TVERSKY
from machine import l2_bytes
from torch import Tensor

import segfuse

TINY = {"tiny1": (1, 1, 8, 8), "tiny4": (1, 4, 8, 8)}  # what a call costs
# Large workloads for a GPU; small ones, in lower case, for a few CPU cores.
WORKLOADS: dict[str, dict[str, tuple[int, ...]]] = {
    "cuda": {
        "A": (16, 1, 512, 512),
        "B": (8, 19, 512, 1024),
        "C": (2, 4, 128, 128, 128),
        "D": (32, 1, 1024, 1024),
        **TINY,
    },
    "cpu": {
        "a": (4, 1, 512, 512),
        "b": (2, 19, 256, 512),
        "c": (1, 4, 96, 96, 96),
        **TINY,
    },
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {"float32": torch.float32, "uint8": torch.uint8, "int64": torch.int64}
CLASSES: dict[str, Callable[..., segfuse.Loss]] = {
    "dice_bce": segfuse.DiceBCELoss,
    "dice_ce": segfuse.DiceCELoss,
    "dice": segfuse.DiceLoss,
    "bce": segfuse.BCEWithLogitsLoss,
    "ce": segfuse.CrossEntropyLoss,
    "focal": segfuse.FocalLoss,
    "tversky": segfuse.TverskyLoss,
}
BINARY = ("dice_bce", "dice", "bce", "focal", "tversky")
MULTICLASS = ("dice_ce", "dice", "ce", "focal", "tversky")
IGNORED = 255
SCHEMES = ("two_pass", "gradient_in_forward")


def bytes_per_pixel(scheme: str, classes: int, logit_bytes: int, target_bytes: int) -> int:
    """Bytes per pixel of a forward and a backward.

    "one_pass" is the least: it reads logits and target once and writes the gradient. "kept" has two passes; the first
    one leaves exponentials or probabilities for the second.
    """
    passes = {"two_pass": (3, 2), "kept": (4, 2), "gradient_in_forward": (2, 1), "one_pass": (2, 1)}
    logits, targets = passes[scheme]
    return logits * classes * logit_bytes + targets * target_bytes


@dataclass(frozen=True)
class Case:
    """A loss on a workload, with the types of logits and target, and the memory layout of the logits."""

    workload: str
    shape: tuple[int, ...]
    loss: str
    dtype: str
    target: str
    layout: str = "contiguous"

    @property
    def name(self) -> str:
        layout = "" if self.layout == "contiguous" else f"/{self.layout}"
        return f"{self.workload}/{self.loss}/{self.dtype}/{self.target}{layout}"

    @property
    def tiny(self) -> bool:
        return self.workload in TINY

    @property
    def classes(self) -> int:
        return self.shape[1]

    @property
    def pixels(self) -> int:
        return math.prod(self.shape) // self.classes

    @property
    def core(self) -> bool:
        usual = "float32" if self.classes == 1 else "int64"
        return (self.dtype, self.target, self.layout) == ("float32", usual, "contiguous")

    @property
    def headline(self) -> bool:
        return self.core and self.loss in ("dice_bce", "dice_ce") and not self.tiny

    @property
    def rank(self) -> int:
        """The order of cases, in case the time is short: first the compounds, in the types that most people use."""
        half = (self.dtype, self.target) == ("bfloat16", "uint8")
        return 0 if self.headline or half else 1 if self.core else 2

    def bytes_per_pixel(self, scheme: str) -> int:
        return bytes_per_pixel(scheme, self.classes, DTYPES[self.dtype].itemsize, TARGETS[self.target].itemsize)

    def ours(self, ignore: int | None = None, **options: Any) -> segfuse.Loss:
        """The fused loss. `options` are for its region part."""
        data: dict[str, Any] = {} if ignore is None else {"ignore_index": ignore}
        if self.loss not in ("ce", "dice_ce"):
            data["mode"] = "binary" if self.classes == 1 else "multiclass"
        if self.loss == "tversky":
            options |= TVERSKY
        return CLASSES[self.loss](**options, **data)

    def inputs(self, device: str, seed: int, labels: str = "blobs", ignored: float = 0.0) -> tuple[Tensor, Tensor]:
        """Random logits (a leaf with requires_grad) and a random target, made on the device."""
        generator = torch.Generator(device).manual_seed(seed)
        grid = self.shape if self.classes == 1 else (self.shape[0], *self.shape[2:])
        logits = torch.randn(self.shape, generator=generator, device=device, dtype=DTYPES[self.dtype])
        target = _labels(grid, self.classes, labels, generator).to(TARGETS[self.target])
        if ignored:
            target[torch.rand(grid, generator=generator, device=device) < ignored] = IGNORED
        if self.layout == "channels_last":
            flat = len(self.shape) == 4
            logits = logits.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
        return logits.requires_grad_(), target

    def sets(self, device: str, labels: str = "blobs", ignored: float = 0.0) -> list[tuple[Tensor, Tensor]]:
        """The input sets. On a GPU there are enough that no input is in the cache when its turn comes; on a CPU one."""
        first = self.inputs(device, 0, labels, ignored)
        size = sum(tensor.nbytes for tensor in first)
        count = min(64, max(4, math.ceil(4 * l2_bytes() / max(size, 1)))) if device == "cuda" else 1
        return [first, *(self.inputs(device, seed, labels, ignored) for seed in range(1, count))]


def _labels(grid: tuple[int, ...], classes: int, kind: str, generator: torch.Generator) -> Tensor:
    """Labels: independent per pixel ("iid"), or in regions about 32 pixels wide ("blobs"), like real labels."""
    channel = 2 if classes == 1 else 1
    coarse = tuple(max(1, n // 32) for n in grid[channel:]) if kind == "blobs" else grid[channel:]
    shape = (*grid[:channel], *coarse)
    if classes == 1:
        drawn = (torch.rand(shape, generator=generator, device=generator.device) < 0.3).to(torch.uint8)
    else:
        drawn = torch.randint(0, classes, shape, generator=generator, device=generator.device, dtype=torch.uint8)
    if coarse == grid[channel:]:
        return drawn
    for axis, size in enumerate(grid[channel:], channel):
        index = torch.arange(size, device=drawn.device) * drawn.shape[axis] // size
        drawn = drawn.index_select(axis, index)
    return drawn


def table(device: str, shrink: int = 1) -> Iterator[Case]:
    """All cases, the most important first. `shrink` divides the spatial sizes, to try the bench."""
    cases = []
    for workload, shape in WORKLOADS[device].items():
        tiny = workload in TINY
        small = shape if tiny else (*shape[:2], *(max(1, n // shrink) for n in shape[2:]))
        binary = shape[1] == 1
        losses, usual = (BINARY, "float32") if binary else (MULTICLASS, "int64")
        compound = losses[0]
        cases += [Case(workload, small, loss, "float32", usual) for loss in ((compound,) if tiny else losses)]
        if not tiny:
            types = (("float32", "uint8"), ("bfloat16", "uint8"))
            cases += [Case(workload, small, compound, *pair) for pair in types]
        if not tiny and not binary:
            cases.append(Case(workload, small, compound, "float32", usual, "channels_last"))
    # Multiclass comes before binary because it gains most; then by size.
    yield from sorted(cases, key=lambda c: (c.rank, c.classes == 1, -math.prod(c.shape)))
