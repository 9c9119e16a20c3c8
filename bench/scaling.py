"""How time grows with pixels, classes and threads, for segfuse and plain PyTorch.

pixels   one square image with a side of 8 to 2048 pixels: powers of two and sides near them
classes  2 to 256 classes with a fixed number of logits. Images are 256 pixels wide (then the distance of planes is a
         power of two if the number of classes is one), or 250
threads  1 to all, on the CPU
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from formulas import EAGER
from harness import Contender, Setting, check_equal, measure
from machine import median_seconds

from cases import WORKLOADS, Case

Row = dict[str, Any]
SIDES = (8, 16, 32, 48, 64, 100, 128, 180, 256, 360, 500, 512, 720, 1000, 1024, 1440, 2000, 2048)
CLASSES = (2, 3, 4, 8, 16, 19, 21, 32, 33, 64, 65, 128, 150, 256)
LOGITS = 1 << 21


def point(setting: Setting, shape: tuple[int, ...], against: bool = True) -> Row:
    """The time of a compound against plain PyTorch (or against itself), and the time of a copy of the logits."""
    binary = shape[1] == 1
    loss, target = ("dice_bce", "float32") if binary else ("dice_ce", "int64")
    case = Case("x".join(map(str, shape)), shape, loss, "float32", target)
    sets = case.sets(setting.device)
    ours = Contender("segfuse", case.ours(), sets)
    theirs = Contender("eager", EAGER[loss], sets) if against else ours
    check_equal(ours, theirs)
    if setting.device == "cuda":
        for contender in {ours, theirs}:
            contender.capture()
    return {
        "shape": shape,
        "classes": case.classes,
        "pixels": case.pixels,
        "threads": torch.get_num_threads() if setting.device == "cpu" else None,
        "bytes": case.bytes_per_pixel("two_pass") * case.pixels,
        "copy_us": 1e6 * median_seconds(sets[0][0].detach().clone, setting.clock),
        "against": theirs.name,
        **measure(ours, theirs, setting, alone=True),
    }


def pixels(setting: Setting) -> Iterator[Row]:
    sides = [max(2, side // setting.shrink) for side in (SIDES[::3] if setting.quick else SIDES)]
    for count in (1, 19):
        for side in sides:
            if count * side * side <= 20 << 20:
                yield point(setting, (1, count, side, side))


def classes(setting: Setting) -> Iterator[Row]:
    logits = LOGITS * (16 if setting.device == "cuda" else 1) // setting.shrink
    for width in (256, 250):
        for count in CLASSES[::3] if setting.quick else CLASSES:
            height = max(1, round(logits / count / width))
            yield {"width": width, **point(setting, (1, count, height, width), against=width == 256)}


def threads(setting: Setting) -> Iterator[Row]:
    before = torch.get_num_threads()
    if setting.device == "cuda":
        return
    counts = sorted({1 << i for i in range(before.bit_length())} | {before})
    try:
        for name in "abc":
            n, c, *space = WORKLOADS["cpu"][name]
            for count in counts:
                torch.set_num_threads(count)
                shape = (n, c, *(max(1, side // setting.shrink) for side in space))
                yield {"workload": name, **point(setting, shape)}
    finally:
        torch.set_num_threads(before)


EXPERIMENTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "pixels": pixels,
    "classes": classes,
    "threads": threads,
}
