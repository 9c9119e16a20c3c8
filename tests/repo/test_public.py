"""Every public function, compiled against eager: what inductor makes of what is around the kernels, metrics too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import segfuse
from cases import CASES, CLASS_NAME, COMPOUNDS, MODES, TWO_SIDED, make_logits, make_target, make_weight, shape_of

# What is no loss, by name.
OTHERS = {"region_stats", "region_loss", "pointwise_loss", "check_target", "warmup", "build_info"}
FUNCTIONS = sorted(name for name in segfuse.__all__ if name[0].islower() and callable(getattr(segfuse, name)))


def data(mode: str, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    shape = (n, *shape_of(mode, 8, 8)[1:])
    return make_logits(shape), make_target(mode, shape), make_weight(mode, shape)


def check(function: Callable[..., Any], *arguments: Any, backend: str = "inductor") -> None:
    """The same numbers, integers exactly."""
    torch._dynamo.reset()
    expected = tree_leaves(function(*arguments))
    found = tree_leaves(torch.compile(function, fullgraph=True, backend=backend)(*arguments))
    assert len(expected) == len(found) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if one.is_floating_point():
            torch.testing.assert_close(one, other, equal_nan=True)
        else:
            assert torch.equal(one, other)


def test_the_functions_are_all_here() -> None:
    losses = {name for name in FUNCTIONS if name.endswith("_loss")} - OTHERS
    assert losses == CLASS_NAME.keys()
    assert set(FUNCTIONS) == losses | OTHERS


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own
@pytest.mark.parametrize("mode", MODES)
def test_losses(mode: Any) -> None:
    """All functions of a mode in one graph, and their gradients."""
    names = [
        name for name in CLASS_NAME if name != "adaptive_log_loss" and (mode != "multiclass" or name not in TWO_SIDED)
    ]
    if mode != "multiclass":
        names.remove("cross_entropy_loss")
    base = segfuse.DiceLoss(mode)

    def losses(x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
        found = [segfuse.adaptive_log_loss(x, y, base=base, weight=w)]
        for name in names:
            options: dict[str, Any] = {} if name == "cross_entropy_loss" else {"mode": mode}
            if name == "unified_focal_loss" and mode == "multiclass":
                options["num_classes"] = x.shape[1]
            found.append(getattr(segfuse, name)(x, y, weight=w, **options))
        return found

    x, y, w = data(mode)
    check(losses, x, y, w)
    assert {case.loss for case in CASES if case.mode == mode} == {*names, "adaptive_log_loss"}
    assert {*COMPOUNDS} - {*names} <= {*TWO_SIDED}


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 3])
def test_statistics_counts_and_metrics(mode: Any, n: int) -> None:
    x, y, w = data(mode, n)

    def stats(x: Tensor, y: Tensor, w: Tensor) -> Any:
        soft = segfuse.region_stats(x, y, mode=mode, weight=w)
        loss = segfuse.region_loss(x, y, lambda tp, fp, fn, tn: (fp / (tp + fp + 1)).mean(), mode=mode)
        own = segfuse.pointwise_loss(x, y, lambda z, t: (z - t) ** 2, mode=mode, weight=w)
        return *soft, loss, own

    def hard(x: Tensor, y: Tensor, w: Tensor) -> Any:
        counts = segfuse.region_stats(x, y, mode=mode, weight=w, hard=True, ignore_index=0)
        ratios = [metric(*counts) for metric in segfuse.metrics.METRICS.values()]
        return *counts, *ratios, counts.fp - counts.fn, (counts.tp + counts.fp).sum()

    def streamed(x: Tensor, y: Tensor, w: Tensor) -> Any:
        metrics = segfuse.metrics.SegmentationMetrics(mode, ignore_index=0)
        metrics.update(x, y, w)
        metrics.update(x.flip(0), y)
        every = [metrics.compute(average) for average in ("macro", "micro", None)]
        return *metrics.counts(), *(value for found in every for value in found.values())

    for function in (stats, hard, streamed):
        check(function, x, y, w)
    counts = segfuse.region_stats(x, y, mode=mode, hard=True)
    assert all((count >= 0).all() for count in counts)
    assert sum(counts).sum() == x.numel()


@pytest.mark.parametrize("mode", MODES)
def test_counts_under_other_transforms(mode: Any) -> None:
    x, y, w = data(mode, 3)

    def counts(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return torch.stack(segfuse.region_stats(x, y, mode=mode, weight=w, hard=True), -1)

    expected = counts(x, y, w)
    one_by_one = torch.vmap(lambda *t: counts(*(s[None] for s in t))[0])(x, y, w)
    assert torch.equal(one_by_one, expected)
    assert torch.equal(counts(x.requires_grad_(), y, w), expected)
    assert not counts(x, y, w).requires_grad
    program = torch.export.export(_Counts(counts), (x, y, w)).module()
    assert torch.equal(program(x, y, w), expected)
    meta = counts(*(t.to("meta") for t in (x, y, w)))
    assert (meta.shape, meta.dtype, meta.device.type) == (expected.shape, torch.int64, "meta")
    inputs = x.detach(), y, w, 0.5, segfuse.SensitivitySpecificityLoss(mode).plan.spec
    torch.library.opcheck(torch.ops.segfuse.region_counts.default, inputs)


class _Counts(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return self.function(x, y, w)


def test_wrong_labels_are_told_from_compiled_code() -> None:
    x, y, _ = data("multiclass")
    y[1, 2, 3] = 77
    compiled = torch.compile(lambda x, y: segfuse.region_stats(x, y, mode="multiclass", hard=True), backend="aot_eager")
    with pytest.raises(IndexError, match="label 77"):
        compiled(x, y)


def test_thresholds_between_two_logits() -> None:
    """p > threshold strictly, in the digits of the logits."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for threshold in (0.5, 0.3, 0.7, 1e-6, 0.999):
            level = torch.tensor(math.log(threshold / (1 - threshold)), dtype=torch.float64)
            near = torch.nextafter(level.to(dtype), torch.tensor(torch.inf).to(dtype))
            x = torch.stack([level.to(dtype), near, torch.nextafter(level.to(dtype), -near - 99), near * 0])[None]
            said = segfuse.region_stats(x, torch.ones(1, 4).long(), mode="binary", hard=True, threshold=threshold).tp
            assert said.item() == (x.double() > level).sum().item(), (dtype, threshold)
