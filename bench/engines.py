"""Small calls of every family of kernels, forward and backward. Each is compared with the CPU kernels in float64.

    python bench/engines.py [--device cuda] [--module FILE] [--record FILE] [--stride N]

--record writes the calls of the CUDA engine to a file. replay.py makes them again under compute-sanitizer.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import Recorder
from replay import load
from torch import Tensor

import segfuse
from segfuse._core import engines, native

TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-9, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALLEST = 2.0**-24  # smallest float16: the gradient of a mean is near it and has few digits
FLOATS = tuple(TOLERANCE)
LAYOUTS = ("contiguous", "channels_last", "slice")
LABELS = (torch.uint8, torch.int64, torch.int32, torch.int16)
EXACT_COUNTS = (2, 3, 4, 5, 6, 7, 8, 16, 19, 21)  # csrc/cuda/label_map.cu
TILE_COUNTS = (6, 17, 30)  # one class count for each size of csrc/cuda/tile.cu
# Some counts of both, counts for the kernel with any number of classes, and more classes than the lanes of a warp hold.
CLASS_COUNTS = (2, 4, 17, 19, 33, 70, 150)
# "automatic" means two passes for a call that cannot have its gradient in the forward.
SCHEMES = ("automatic", "gradient_in_forward", "two_pass")


class Call(NamedTuple):
    """A loss on tensors of the CPU. The logits get `layout` when they are used."""

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


def plain() -> Iterator[Call]:
    """Calls that read 16 bytes at a time and have kernels of their own, in every type of these kernels."""
    rows = (segfuse.DiceLoss, segfuse.BCEWithLogitsLoss, segfuse.DiceBCELoss, segfuse.FocalLoss, segfuse.MSELoss)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = (2 * torch.randn(2, 3, 32, 32)).to(dtype)
        target = (torch.rand(x.shape) < 0.3).to(torch.uint8)
        for loss in rows:
            yield Call("rows, plain", loss("multilabel"), x, target, None, "contiguous")
        for classes in EXACT_COUNTS:
            x = (2 * torch.randn(2, classes, 32, 32)).to(dtype)
            family = f"label map, {classes}, plain"
            yield Call(family, segfuse.DiceCELoss(ignore_index=255), x, labels(x, 255), None, "contiguous")
            yield Call(family, segfuse.CrossEntropyLoss(), x, labels(x, None), None, "contiguous")
        for classes, layout in product(TILE_COUNTS, ("contiguous", "channels_last")):
            # Odd planes keep these calls out of label_map: it has some of these counts, but takes only whole vectors.
            size = (31, 33) if layout == "contiguous" else (32, 32)
            x = (2 * torch.randn(2, classes, *size)).to(dtype)
            family = f"label map, {classes}, {layout}"
            for ignore_index in (255, None):
                data: dict[str, Any] = {} if ignore_index is None else {"ignore_index": ignore_index}
                for loss in (segfuse.DiceCELoss(**data), segfuse.DiceFocalLoss("multiclass", **data)):
                    yield Call(family, loss, x, labels(x, ignore_index), None, layout)
            for lone in (segfuse.CrossEntropyLoss(), segfuse.FocalLoss("multiclass")):
                yield Call(family, lone, x, labels(x, None), None, layout)


def probabilities() -> Iterator[Call]:
    """Calls with from_logits=False, in float32 and float64, also with one loss per element."""
    for dtype in (torch.float32, torch.float64):
        for reduction in ("mean", "none"):
            options: dict[str, Any] = {"from_logits": False, "reduction": reduction}
            x = torch.rand(2, 3, 37, 29).clamp(0.01, 0.99).to(dtype)
            bce = segfuse.BCEWithLogitsLoss("multilabel", **options)
            yield Call("rows, probabilities", bce, x, (torch.rand(x.shape) < 0.3).to(torch.uint8), None, "contiguous")
            x = (2 * torch.randn(2, 5, 37, 29)).softmax(1).to(dtype)
            cross_entropy = segfuse.CrossEntropyLoss(**options)
            yield Call("label map, probabilities", cross_entropy, x, labels(x, -100), None, "contiguous")
        x = 2 * torch.randn(2, 3, 37, 29, dtype=torch.float64)
        target = (torch.rand(x.shape) < 0.3).to(torch.uint8)
        yield Call("rows", segfuse.BCEWithLogitsLoss("multilabel", reduction="none"), x, target, None, "contiguous")


def few_pixels() -> Iterator[Call]:
    """Calls with more rows than one block has in the head, and samples read as one; class weights on the host."""
    x = 2 * torch.randn(2100, 1, 3, 5)
    target = (torch.rand(x.shape) < 0.3).to(torch.uint8)
    for reduction in ("mean", "none"):
        yield Call("rows, many", segfuse.DiceLoss("binary", reduction=reduction), x, target, None, "contiguous")
    x = 2 * torch.randn(300, 7)
    weighted = segfuse.CrossEntropyLoss(class_weight=[0.2, 1.5, 0.7, 2.0, 1.1, 0.4, 1.0])
    yield Call("label map, no space", weighted, x, labels(x, -100), None, "contiguous")
    pooled = segfuse.DiceLoss("multiclass", pool_batch=True, classes=[5, 0, 2])
    yield Call("label map, no space", pooled, x, labels(x, None), None, "contiguous")


def labels(x: Tensor, ignored: int | None) -> Tensor:
    """A random class index for each pixel; one in ten is `ignored`."""
    drawn = torch.randint(0, x.shape[1], (x.shape[0], *x.shape[2:]))
    if ignored is not None:
        drawn[torch.rand(drawn.shape) < 0.1] = ignored
    return drawn


def mixed() -> Iterator[Call]:
    """Odd sizes and several chunks (csrc/cuda/policy.cu), for every tail. Types and layouts are random."""
    spaces = ((37, 29), (72, 130), (5, 7, 9))
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
        for loss in rows:
            x = logits(2, draw.choice((1, 3)), *space)
            yield call("rows", loss, x, (torch.rand(x.shape) < 0.3).to(draw.choice(LABELS)))
            yield call("rows, soft", loss, x, torch.rand(x.shape), torch.rand(x.shape))
    for classes in CLASS_COUNTS:
        for loss in (
            segfuse.DiceCELoss(ignore_index=255),
            segfuse.CrossEntropyLoss(label_smoothing=0.1, reduction="none", ignore_index=255),
            segfuse.FocalLoss("multiclass", ignore_index=255),
        ):
            x = logits(2, classes, *(draw.choice(spaces) if classes < 30 else spaces[0]))
            yield call(f"label map, {classes}", loss, x, labels(x, 255).to(draw.choice(LABELS)))
    for classes in (2, 5, 19, 40):
        x = logits(2, classes, 37, 29)
        soft = torch.rand(x.shape).softmax(1)
        yield call(f"soft labels, {classes}", segfuse.DiceCELoss(), x, soft, torch.rand(2, 37, 29))


class Device:
    """Where the calls run: the CPU kernels, those of a GPU, or the CUDA sources built for the CPU."""

    def __init__(self, name: str, module: Path | None, record: Path | None) -> None:
        self.name, self.engine, self.recorder = name, None, None
        kernels: Any = None
        self.missing: set[str] = set()  # kernels that no call has launched yet
        if module:
            kernels = load(module)
            native._traced.append(kernels)
        elif name == "cuda":
            engines.required_engine(torch.device("cuda:0"))
            kernels = native.cuda_module()
        if record and kernels is None:
            raise ValueError("--record needs --device cuda or a --module: the CPU kernels cannot be recorded")
        if record:
            self.recorder = Recorder(kernels, record.open("wb"))
        if kernels is not None:
            self.engine = engines.CudaEngine(self.recorder or kernels)
            self.missing = set(kernels.kernel_names())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Uses this engine inside the ``with`` block. The expected values come from the CPU engine."""
        key = "cuda:0" if self.name == "cuda" else "cpu"
        before = engines.engines[key]
        engines.engines[key] = self.engine or before
        try:
            yield
        finally:
            engines.engines[key] = before

    def run(self, call: Call, scheme: str) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        x = strided(call.logits.to(self.name), call.layout).detach()  # here, because .to() would not keep the layout
        weight = None if call.weight is None else call.weight.to(self.name)
        target = call.target.to(self.name)
        name = f"{call.family}, {scheme}: {call.loss}: {described(call)}"
        with ExitStack() as stack:
            stack.enter_context(self.in_place())
            stack.enter_context(native.scheme(scheme) if scheme != "automatic" else nullcontext())
            stack.enter_context(self.recorder.sequence(name) if self.recorder else nullcontext())
            return outcome(call.loss, x, target, weight)

    def check(self, call: Call, scheme: str) -> Iterator[str]:
        """The errors of a call, as texts."""
        weight = None if call.weight is None else call.weight.double()
        expected = outcome(call.loss, call.logits.double(), call.target, weight)
        found = self.run(call, scheme)
        dtype = call.logits.dtype
        for what, actual, wanted in zip(("loss", "gradient"), found, expected, strict=True):
            error, largest = float((actual.cpu() - wanted).abs().max()), float(wanted.abs().max())
            allowed = TOLERANCE[dtype] * largest + (SMALLEST if dtype == torch.float16 else 0)
            if not error <= allowed:
                yield f"{what} off by {error:.3g} of {largest:.3g}"
            if self.recorder:
                self.recorder.expect(what, actual, wanted, allowed)


def described(call: Call) -> str:
    return f"{call.logits.dtype}, {tuple(call.logits.shape)}, {call.layout}, {call.target.dtype}"


def outcome(loss: segfuse.Loss, x: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a call."""
    x.requires_grad_()
    value = loss(x, target, weight)
    (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value))
    return value.detach(), gradient


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--module", type=Path, help="the CUDA sources built for the CPU (tools/build_shim.py)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the calls of the CUDA engine to this file")
    parser.add_argument("--stride", type=int, default=1, help="run only every n-th call")
    options = parser.parse_args()
    os.environ.setdefault("SEGFUSE_STRICT", "1")  # else plain PyTorch could pass under our name
    torch.manual_seed(0)
    print("\n".join(f"{name}: {value}" for name, value in segfuse.build_info().items()))
    device = Device(options.device, options.module, options.record)
    chosen = [*plain(), *probabilities(), *mixed(), *few_pixels()][:: options.stride]
    random.Random(1).shuffle(chosen)  # every family comes early, in case the time is short
    done = wrong = 0
    for call in chosen:
        for scheme in SCHEMES if device.engine else SCHEMES[:1]:
            with native.trace() as events:
                try:
                    problems = list(device.check(call, scheme))
                except ValueError:
                    if scheme != "gradient_in_forward":
                        raise
                    break
            device.missing -= {event.kernel for event in events}
            done += 1
            wrong += bool(problems)
            for problem in problems:
                print(f"{call.family}, {scheme}: {call.loss}: {described(call)}: {problem}")
    if device.missing:
        print(f"not launched: {', '.join(sorted(device.missing))}")
    print(f"{done} calls on {options.device}, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
