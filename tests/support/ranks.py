"""A process of test_distributed.py: runs one function of this file, by name, over gloo. A failure goes to a file."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import segfuse
from cases import CLASSES, make_logits, make_target, make_weight

PART = {"batch": 0, "space": -2}  # the dimension that is split over the ranks


def losses() -> dict[str, Callable[..., Any]]:
    """Losses of every kind, as functions of their data options. The name begins with the mode."""
    s, skewed = segfuse, {"alpha": 0.3, "beta": 0.7}
    weights = {"class_weight": [0.2, 1.5, 0.7, 2.0, 1.1]}
    return {
        "multiclass ce": lambda **d: s.CrossEntropyLoss(class_weight=weights["class_weight"], label_smoothing=0.1, **d),
        "multiclass focal": lambda **d: s.FocalLoss("multiclass", gamma=1.5, **d),
        "multiclass mse": lambda **d: s.MSELoss("multiclass", **d),
        "multiclass dice": lambda **d: s.DiceLoss("multiclass", absent="skip", **weights, **d),
        "multiclass batch dice": lambda **d: s.DiceLoss("multiclass", pool_batch=True, squared=True, **d),
        "multiclass generalized": lambda **d: s.GeneralizedDiceLoss("multiclass", pool_batch=True, **d),
        "multiclass adaptive": lambda **d: s.AdaptiveLogLoss(s.TverskyLoss("multiclass", **skewed, **d)),
        "multiclass compound": lambda **d: (
            0.5 * s.DiceLoss("multiclass", pool_batch=True, classes=[1, 2, 4], **d)
            + 2 * s.CrossEntropyLoss(**d)
            + s.SensitivitySpecificityLoss("multiclass", sensitivity_weight=0.3, **d)
        ),
        "binary bce": lambda **d: s.BCEWithLogitsLoss("binary", pos_weight=2.5, **d),
        "binary balanced": lambda **d: s.BCEWithLogitsLoss("binary", balanced=True, **d),
        "binary compound": lambda **d: (
            s.TverskyLoss("binary", **skewed, pool_batch=True, **d) + 0.7 * s.FocalLoss("binary", alpha=0.3, **d)
        ),
        "multilabel compound": lambda **d: (
            s.JaccardLoss("multilabel", soft_label=True, **d) + 3 * s.HuberLoss("multilabel", delta=0.3, **d)
        ),
    }


def whole(mode: str, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """The data of all ranks together, the same in each."""
    torch.manual_seed(11)
    shape = (samples, 1, 12, 9) if mode == "binary" else (samples, CLASSES, 12, 9)
    target = make_target(mode, shape)
    target[torch.rand(target.shape) < 0.1] = 255
    return make_logits(shape), target, make_weight(mode, shape)


def part(tensor: Tensor, shard: str, rank: int, sizes: list[int]) -> Tensor:
    return tensor.split(sizes, PART[shard])[rank]


class Counted:
    """Counts the collectives inside a block."""

    NAMES = ("all_reduce", "all_gather", "broadcast", "reduce_scatter_tensor", "all_gather_into_tensor", "all_to_all")

    def __enter__(self) -> Counted:
        self.count = 0
        self.kept = {name: getattr(distributed, name) for name in self.NAMES}
        for name, function in self.kept.items():

            def counted(*a: Any, _f: Any = function, **k: Any) -> Any:
                self.count += 1
                return _f(*a, **k)

            setattr(distributed, name, counted)
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.kept.items():
            setattr(distributed, name, function)


def equal_to_one_process(shard: str, sizes: list[int]) -> None:
    """Value and gradient of every loss, for unequal parts and an upstream gradient that is not 1. One collective."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    sizes = sizes[:world]
    group = distributed.group.WORLD
    for name, make in losses().items():
        mode = name.split()[0]
        samples = sum(sizes) if shard == "batch" else 3
        if shard == "space":
            sizes = [12 - (world - 1) * 3, *([3] * (world - 1))]
        logits, target, weight = whole(mode, samples)
        for reduction in ("mean", "sum"):
            x = logits.clone().requires_grad_()
            expected = make(reduction=reduction, ignore_index=255)(x, target, weight)
            (gradient,) = torch.autograd.grad(expected, x, torch.tensor(0.7))
            own = [part(t, shard, rank, sizes).clone() for t in (logits, target, weight)]
            own[0].requires_grad_()
            loss = make(reduction=reduction, ignore_index=255, process_group=group, shard=shard)
            with Counted() as forward:
                value, terms = loss(*own, return_terms=True)
            with Counted() as backward:
                (found,) = torch.autograd.grad(value, own[0], torch.tensor(0.7))
            assert (forward.count, backward.count) == (1, 0), (name, forward.count, backward.count)
            torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0, msg=lambda m, n=name: f"{n}: {m}")
            wanted = world * part(gradient, shard, rank, sizes)
            scale = float(gradient.abs().max()) * world
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}")
            assert all(v.isfinite() for v in terms.values())


def nothing_valid_anywhere() -> None:
    """Loss and gradient are 0 on every rank, also on a rank without samples."""
    rank = distributed.get_rank()
    n = 0 if rank == 0 else 2
    logits = torch.randn(n, 5, 4, 4, requires_grad=True)
    target = torch.full((n, 4, 4), 255)
    loss = segfuse.DiceLoss("multiclass", pool_batch=True, ignore_index=255, process_group=distributed.group.WORLD)
    compound = loss + segfuse.CrossEntropyLoss()
    value = compound(logits, target)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient.any()


def one_rank_is_none() -> None:
    """A group of one rank gives the same bits as no group."""
    alone = [distributed.new_group([r]) for r in range(distributed.get_world_size())][distributed.get_rank()]
    for name, make in losses().items():
        logits, target, weight = whole(name.split()[0], 3)
        for reduction in ("mean", "sum", "sample"):
            if reduction == "sample" and ("batch" in name or "generalized" in name or name.endswith("compound")):
                continue
            for shard in ("batch", "space"):
                x, y = (logits.clone().requires_grad_() for _ in range(2))
                plain = make(reduction=reduction, ignore_index=255)(x, target, weight)
                grouped = make(reduction=reduction, ignore_index=255, process_group=alone, shard=shard)(
                    y, target, weight
                )
                assert torch.equal(plain, grouped), name
                upstream = torch.rand_like(plain)
                gradients = torch.autograd.grad(plain, x, upstream), torch.autograd.grad(grouped, y, upstream)
                assert torch.equal(gradients[0][0], gradients[1][0]), name


def reductions_without_a_whole() -> None:
    """A value per sample: shards of the batch keep their own values, shards of space give values of whole samples."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    group = distributed.group.WORLD
    logits, target, weight = whole("multiclass", 2 * world)
    own = [t[2 * rank : 2 * rank + 2] for t in (logits, target, weight)]
    make = losses()["multiclass dice"]
    whole_loss = make(reduction="sample", ignore_index=255)(logits, target, weight)
    x = own[0].clone().requires_grad_()
    value = make(reduction="sample", ignore_index=255, process_group=group)(x, *own[1:])
    torch.testing.assert_close(value.detach(), whole_loss[2 * rank : 2 * rank + 2], rtol=1e-6, atol=0)
    y = own[0].clone().requires_grad_()
    alone = make(reduction="sample", ignore_index=255)(y, *own[1:])
    upstream = torch.rand(2)
    (found,), (expected,) = torch.autograd.grad(value, x, upstream), torch.autograd.grad(alone, y, upstream)
    torch.testing.assert_close(found, expected)
    sizes = [12 - (world - 1) * 3, *([3] * (world - 1))]
    slab = [part(t, "space", rank, sizes) for t in (logits, target, weight)]
    over_space = make(reduction="sample", ignore_index=255, process_group=group, shard="space")(*slab)
    torch.testing.assert_close(over_space, whole_loss, rtol=1e-6, atol=0)


def samples_on_one_rank_alone() -> None:
    """A value per sample or row: a rank without samples has none, and its backward runs."""
    rank, group = distributed.get_rank(), distributed.group.WORLD
    n = 2 if rank == 0 else 0
    for name, make in losses().items():
        for reduction in ("sample", "none"):
            pools = "batch" in name or "generalized" in name or name in ("multiclass compound", "binary compound")
            if pools or (reduction == "none" and name.endswith("compound")):
                continue
            logits, target, weight = (t[:n] for t in whole(name.split()[0], 2))
            x, y = (logits.clone().requires_grad_() for _ in range(2))
            value, terms = make(reduction=reduction, ignore_index=255, process_group=group)(
                x, target, weight, return_terms=True
            )
            alone = make(reduction=reduction, ignore_index=255)(y, target, weight)
            assert value.shape == alone.shape, name
            assert value.shape[0] == n
            assert all(term.shape == value.shape for term in terms.values())
            torch.testing.assert_close(value, alone)
            upstream = torch.rand_like(value)
            (found,), (expected,) = torch.autograd.grad(value, x, upstream), torch.autograd.grad(alone, y, upstream)
            torch.testing.assert_close(found, expected)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def trained(net: nn.Module, loss: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for image, target in batches:
        optimizer.zero_grad()
        loss(net(image), target).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def ddp_training() -> None:
    """After some steps of DDP on unequal batches, the weights are those of one process with the whole batch."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(6)
    sizes = [world - r for r in range(world)]
    batches = [(torch.randn(sum(sizes), 3, 10, 10), torch.randint(0, CLASSES, (sum(sizes), 10, 10))) for _ in range(6)]
    coefficient = nn.Parameter(torch.tensor(0.7))

    def make(**data: Any) -> Any:
        return coefficient * segfuse.DiceLoss("multiclass", pool_batch=True, **data) + segfuse.CrossEntropyLoss(**data)

    expected = trained(Net(), make(), batches)
    own = [(x.split(sizes)[rank], t.split(sizes)[rank]) for x, t in batches]
    found = trained(nn.parallel.DistributedDataParallel(Net()), make(process_group=distributed.group.WORLD), own)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def dtensors() -> None:
    """Replicated, sharded along the batch (unevenly) and along space: the loss of the whole, its gradient in parts."""
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    except ImportError:  # torch before 2.5
        from torch.distributed._tensor import DTensor, Replicate, Shard, distribute_tensor

    world = distributed.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for name, make in losses().items():
        mode = name.split()[0]
        logits, target, weight = whole(mode, 2 * world - 1)
        x = logits.clone().requires_grad_()
        loss = make(ignore_index=255)
        expected = loss(x, target, weight)
        (gradient,) = torch.autograd.grad(expected, x, torch.tensor(0.7))
        channel = 1 if mode == "multiclass" else 0
        for placement in (Replicate(), Shard(0), Shard(2)):
            moved = Shard(2 - channel) if placement == Shard(2) else placement
            y = distribute_tensor(logits, mesh, [placement]).requires_grad_()
            labels, weights = (distribute_tensor(t, mesh, [moved]) for t in (target, weight))
            value = loss(y, labels, weights)
            assert isinstance(value, DTensor)
            torch.testing.assert_close(value.to_local(), expected.detach(), rtol=1e-6, atol=0)
            (found,) = torch.autograd.grad(value, y, distribute_tensor(torch.tensor(0.7), mesh, [Replicate()]))
            assert found.placements == (placement,)
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found.full_tensor(), gradient, rtol=0, atol=1e-6 * scale)
    # As FSDP2 holds the coefficient of a loss between two steps.
    scale = nn.Parameter(distribute_tensor(torch.full((1,), 0.5), mesh, [Shard(0)]))
    assert repr(scale * segfuse.DiceLoss("binary")) == "<cpu> * DiceLoss('binary')"
    refused = (
        (Shard(1), "along their classes", {}),
        (Shard(0), 'use "mean" or "sum"', {"reduction": "sample"}),
    )
    for placement, message, data in refused:
        y = distribute_tensor(logits, mesh, [placement])
        labels = distribute_tensor(target, mesh, [Replicate()])
        with pytest.raises(ValueError, match=message):
            segfuse.DiceLoss("multilabel", **data)(y, labels)


def compiled() -> None:
    """torch.compile, without a graph break: values and gradients of eager mode."""
    rank = distributed.get_rank()
    group = distributed.group.WORLD
    loss = segfuse.DiceCELoss(pool_batch=True, process_group=group)
    torch.manual_seed(rank)
    x, t = torch.randn(2 + rank, 4, 6, 6, requires_grad=True), torch.randint(0, 4, (2 + rank, 6, 6))
    (expected,) = torch.autograd.grad(loss(x, t) * 3, x)
    step = torch.compile(lambda a: loss(a, t) * 3, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(step(x), x)
    torch.testing.assert_close(found, expected)


def streamed_metrics() -> None:
    """The counts of all ranks are added, in one collective."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    logits, target, _ = whole("multiclass", 2 * world)
    together = segfuse.metrics.SegmentationMetrics("multiclass", ignore_index=255)
    together.update(logits, target)
    own = segfuse.metrics.SegmentationMetrics("multiclass", ignore_index=255)
    own.update(logits[2 * rank : 2 * rank + 2], target[2 * rank : 2 * rank + 2])
    with Counted() as collectives:
        found = own.compute(process_group=distributed.group.WORLD)
    assert collectives.count == 1
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in together.compute().items()}


def tiles_over_ranks() -> None:
    """Each rank passes the tiles of its part of one volume."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    logits, target, weight = whole("multiclass", 2)
    make = losses()["multiclass compound"]
    x = logits.clone().requires_grad_()
    expected = make(ignore_index=255)(x, target, weight)
    (gradient,) = torch.autograd.grad(expected, x)
    sizes = [12 - (world - 1) * 3, *([3] * (world - 1))]
    slab = [part(t, "space", rank, sizes) for t in (logits, target, weight)]
    tiled = segfuse.TiledLoss(make(ignore_index=255, process_group=distributed.group.WORLD, shard="space"))
    tiles = list(zip(*(t.split(4, -1) for t in slab), strict=True))
    for tile in tiles:
        tiled.add(*tile)
    torch.testing.assert_close(tiled.loss(), expected.detach(), rtol=1e-6, atol=0)
    found = torch.cat([tiled.gradient(*tile) for tile in tiles], -1)
    wanted = world * part(gradient, "space", rank, sizes)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def main() -> None:
    body, rank, world, folder, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", timeout=timedelta(seconds=120), rank=int(rank), world_size=int(world)
    )
    try:
        globals()[body](*(eval(a) for a in arguments))
    except BaseException:
        Path(folder, f"failed{rank}").write_text(traceback.format_exc())
        raise
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads of a device mesh sometimes outlive the interpreter ("terminate called")


if __name__ == "__main__":
    main()
