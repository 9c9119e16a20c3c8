"""segfuse beside eager PyTorch and `torch.compile` of the same formula, on the CPU, in one process.

    python bench/cpu.py [--rounds 15] [--threads 1 2] [--out bench/results/NAME.json]

Each round times ours, theirs, theirs, ours (ABBA); the ratio is the median over rounds, with a bootstrap 95 % interval.
Beside it: the same loss against itself (A/A; its interval shows what the machine's noise is worth) and the time to copy
the logits. Loss and gradient of both sides are compared before anything is timed. No number here is ever asserted in a
test.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import segfuse

Loss = Callable[[Tensor, Tensor], Tensor]


def dice(p: Tensor, t: Tensor) -> Tensor:
    axes = tuple(range(2, p.dim()))
    overlap = (p * t).sum(axes)
    return (1 - (2 * overlap + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)).mean()


def eager_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    return dice(x.sigmoid(), t) + functional.binary_cross_entropy_with_logits(x, t)


def eager_dice_ce(x: Tensor, t: Tensor) -> Tensor:
    one_hot = functional.one_hot(t, x.shape[1]).movedim(-1, 1).to(x.dtype)
    return dice(x.softmax(1), one_hot) + functional.cross_entropy(x, t)


# name: shape of the logits, our loss, the eager formula
WORKLOADS: dict[str, tuple[tuple[int, ...], Loss, Loss]] = {
    "a: Dice+BCE, binary 4x1x512x512": ((4, 1, 512, 512), segfuse.DiceBCELoss("binary"), eager_dice_bce),
    "b: Dice+CE, 2x19x256x512": ((2, 19, 256, 512), segfuse.DiceCELoss(), eager_dice_ce),
    "c: Dice+CE, 3D 1x4x96x96x96": ((1, 4, 96, 96, 96), segfuse.DiceCELoss(), eager_dice_ce),
}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    logits = torch.randn(shape, requires_grad=True)
    if shape[1] == 1:
        return logits, (torch.rand(shape) < 0.3).float()
    return logits, torch.randint(0, shape[1], (shape[0], *shape[2:]))


def step(loss: Loss, logits: Tensor, target: Tensor) -> Callable[[], None]:
    def run() -> None:
        logits.grad = None
        loss(logits, target).backward()

    return run


def seconds(f: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        f()
    return (time.perf_counter() - start) / repeat


def check_equal(ours: Loss, theirs: Loss, logits: Tensor, target: Tensor) -> None:
    values, gradients = [], []
    for loss in (ours, theirs):
        step(loss, logits, target)()
        values.append(loss(logits, target).detach())
        assert logits.grad is not None
        gradients.append(logits.grad.clone())
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


def compare(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> dict[str, float]:
    """Median of theirs / ours with its interval, and the median times in milliseconds."""
    for f in (ours, theirs):
        seconds(f, 3)
    repeat = max(1, round(0.02 / seconds(ours, 3)))
    first, second = [], []
    for _ in range(rounds):
        a = seconds(ours, repeat)
        b = seconds(theirs, repeat)
        b = (b + seconds(theirs, repeat)) / 2
        a = (a + seconds(ours, repeat)) / 2
        first.append(a)
        second.append(b)
    ratios = np.array(second) / np.array(first)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, rounds)), axis=1)
    return {
        "ratio": float(np.median(ratios)),
        "low": float(np.quantile(medians, 0.025)),
        "high": float(np.quantile(medians, 0.975)),
        "ours_ms": 1e3 * float(np.median(first)),
        "theirs_ms": 1e3 * float(np.median(second)),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    info = segfuse.build_info()
    rows: list[dict[str, object]] = []
    results = {
        "processor": processor(),
        "instruction_set": info["CPU instruction set in use"],
        "torch": torch.__version__,
        "segfuse": segfuse.__version__,
        "rows": rows,
    }
    print(
        f"{results['processor']}, {results['instruction_set']}, torch {results['torch']}; forward + backward, float32"
    )
    print(f"{'workload':34} threads  copy ms   ours ms   against    theirs ms   ratio [95 % interval]")
    for name, (shape, ours, eager) in WORKLOADS.items():
        for threads in dict.fromkeys(options.threads):
            torch.set_num_threads(threads)
            logits, target = inputs(shape)
            torch._dynamo.reset()
            peers = {"A/A": ours, "eager": eager, "compile": torch.compile(eager)}
            copy = 1e3 * min(seconds(logits.detach().clone, 3) for _ in range(10))
            for peer, theirs in peers.items():
                check_equal(ours, theirs, logits, target)
                row = compare(step(ours, logits, target), step(theirs, logits, target), options.rounds)
                rows.append({"workload": name, "threads": threads, "peer": peer, "copy_ms": copy, **row})
                print(
                    f"{name:34} {threads:7} {copy:8.2f} {row['ours_ms']:9.2f}   {peer:9} {row['theirs_ms']:10.2f}"
                    f" {row['ratio']:7.2f} [{row['low']:.2f}, {row['high']:.2f}]",
                    flush=True,
                )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
