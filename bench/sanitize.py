"""Small calls of every family of kernels, forward and backward, for compute-sanitizer to watch; each is checked too.

compute-sanitizer --tool memcheck python bench/sanitize.py
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

import segfuse
from cases import SCHEMES
from segfuse import _native

TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-9, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FLOATS = tuple(TOLERANCE)
LAYOUTS = ("contiguous", "channels_last", "slice")
LABELS = (torch.uint8, torch.int64, torch.int32, torch.int16)
# Exact-size kernels, the one for any number of classes, and more classes than one warp's lanes hold.
CLASS_COUNTS = (2, 3, 4, 8, 17, 19, 33, 70, 150)


class Call(NamedTuple):
    """A loss on tensors of the CPU; `layout` is given to the logits where they are used."""

    family: str
    loss: segfuse.Loss
    logits: Tensor
    target: Tensor
    weight: Tensor | None
    layout: str


def strided(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "slice":  # odd strides, and an address that is not aligned
        wide = x.new_zeros((*x.shape[:-1], x.shape[-1] + 3))
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    return x


def calls() -> Iterator[Call]:
    """Odd sizes, so that every tail runs; types and layouts drawn, so that they mix."""
    spaces = ((37, 29), (64, 64), (5, 7, 9))
    draw = random.Random(0)

    def logits(*shape: int) -> Tensor:
        return (2 * torch.randn(shape)).to(draw.choice(FLOATS))

    def call(family: str, loss: segfuse.Loss, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Call:
        return Call(family, loss, x, target, weight, draw.choice(LAYOUTS))

    rows = (
        segfuse.DiceBCELoss("multilabel"),
        segfuse.DiceLoss("multilabel", soft_label=True),
        segfuse.BCEWithLogitsLoss("multilabel", ignore_index=255),
        segfuse.BCEWithLogitsLoss("multilabel", reduction="none"),
        segfuse.FocalLoss("multilabel", gamma=1.5, reduction="sample"),
        segfuse.TverskyLoss("multilabel", squared=True, pool_batch=True),
    )
    for space in spaces:
        for channels in (1, 3):
            for loss in rows:
                x = logits(2, channels, *space)
                yield call("rows", loss, x, (torch.rand(x.shape) < 0.3).to(draw.choice(LABELS)))
                yield call("rows, soft", loss, x, torch.rand(x.shape), torch.rand(x.shape))
    for classes in CLASS_COUNTS:
        for loss in (
            segfuse.DiceCELoss(ignore_index=255),
            segfuse.CrossEntropyLoss(label_smoothing=0.1, reduction="none", ignore_index=255),
            segfuse.FocalLoss("multiclass", ignore_index=255),
        ):
            x = logits(2, classes, *draw.choice(spaces))
            labels = torch.randint(0, classes, (2, *x.shape[2:]))
            labels[torch.rand(labels.shape) < 0.1] = 255
            yield call(f"label map, {classes}", loss, x, labels.to(draw.choice(LABELS)))
    for classes in (2, 5, 19, 40):
        x = logits(2, classes, 37, 29)
        soft = torch.rand(x.shape).softmax(1)
        yield call(f"soft labels, {classes}", segfuse.DiceCELoss(), x, soft, torch.rand(2, 37, 29))


def run(call: Call, device: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a call on a device, wide and on the CPU."""
    x = strided(call.logits.to(device), call.layout).detach().requires_grad_()  # .to() would not keep the layout
    weight = None if call.weight is None else call.weight.to(device)
    value = call.loss(x, call.target.to(device), weight)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach().double().cpu(), gradient.double().cpu()


def check(call: Call, device: str, context: Callable[[], Any]) -> str | None:
    """What is wrong with a call on the device, held against the CPU."""
    with context():
        found = run(call, device)
    for actual, expected in zip(found, run(call, "cpu"), strict=True):
        error = float((actual - expected).abs().max())
        if not error <= TOLERANCE[call.logits.dtype] * float(expected.abs().max()):
            return f"off by {error:.3g} of {float(expected.abs().max()):.3g}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stride", type=int, default=1, help="every n-th call only")
    options = parser.parse_args()
    os.environ.setdefault("SEGFUSE_STRICT", "1")  # plain PyTorch under our name must not pass
    torch.manual_seed(0)
    contexts: dict[str, Callable[[], Any]] = {"auto": nullcontext}
    if options.device == "cuda" and hasattr(_native, "scheme"):
        for scheme in SCHEMES:
            contexts[scheme] = lambda scheme=scheme: _native.scheme(scheme)
    done = wrong = 0
    for call in list(calls())[:: options.stride]:
        for scheme, context in contexts.items():
            try:
                problem = check(call, options.device, context)
            except ValueError:  # a scheme that cannot do this call
                if scheme == "auto":
                    raise
                continue
            done += 1
            if problem:
                wrong += 1
                kind = f"{call.logits.dtype}, {tuple(call.logits.shape)}, {call.layout}, {call.target.dtype}"
                print(f"{call.family}, {scheme}: {call.loss}: {kind}: {problem}")
    print(f"{done} calls on {options.device}, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
