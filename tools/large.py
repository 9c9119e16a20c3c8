"""More than 2^31 logits that are all in memory: Dice + BCE and its gradient, against float64 in chunks.

python tools/large.py       11 GB, some minutes; its output is in docs/integration.md
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import torch
from torch import Tensor

import segfuse

SIDE = 46400
COUNT = SIDE * SIDE
CHUNK = 2**22


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(t.detach().view(-1).split(CHUNK) for t in tensors), strict=True)


def main() -> None:
    assert COUNT > 2**31
    torch.manual_seed(0)
    logits = torch.empty(1, 1, SIDE, SIDE, dtype=torch.bfloat16)
    target = torch.empty(1, 1, SIDE, SIDE, dtype=torch.uint8)
    for z, t in chunks(logits, target):
        z.normal_(-1, 3)
        t.copy_(torch.rand(z.shape) < torch.sigmoid(z.float() + 1))
    logits.requires_grad_()
    start = time.perf_counter()
    loss = segfuse.DiceBCELoss("binary", smooth=1.0)(logits, target)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    hits = predicted = positives = cross = 0.0
    for z, t in chunks(logits, target):
        x, y = z.double(), t.double()
        p = x.sigmoid()
        hits += (p * y).sum().item()
        predicted += p.sum().item()
        positives += y.sum().item()
        cross += torch.nn.functional.softplus(torch.where(y == 1, -x, x)).sum().item()
    top, bottom = 2 * hits + 1, predicted + positives + 1
    expected = 1 - top / bottom + cross / COUNT
    # The gradient is rounded once, to the 8 bits of bfloat16.
    assert logits.grad is not None
    worst = 0.0
    for z, t, g in chunks(logits, target, logits.grad):
        y, p = t.double(), z.double().sigmoid()
        exact = (top - 2 * y * bottom) / bottom**2 * p * (1 - p) + (p - y) / COUNT
        worst = max(worst, ((g.double() - exact).abs() / exact.abs()).max().item())
    value = loss.item()
    print(f"{COUNT} bfloat16 logits: {seconds:.0f} s forward and backward, peak memory {peak / 1e9:.1f} GB")
    print(f"loss {value:.9f}, in float64 {expected:.9f}: {abs(value - expected) / expected:.1e} of it apart")
    print(f"gradient: no element is further than {worst:.2e} of itself from float64; bfloat16 rounds by {2**-8:.2e}")
    assert abs(value - expected) <= 1e-6 * expected
    assert worst <= 1.02 * 2**-8


if __name__ == "__main__":
    main()
