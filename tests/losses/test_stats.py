"""Statistics for losses of one's own, pointwise losses in PyTorch, exact counts, and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

import segfuse
from cases import (
    CLASSES,
    MODES,
    TOLERANCE,
    Case,
    check_case,
    check_close,
    make_logits,
    make_target,
    make_weight,
    shape_of,
)
from environment import DEVICE, SHIM
from segfuse import metrics
from segfuse._core import native

on_cpu = pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="of the plain CPU route")


def inputs(mode: str, dtype: torch.dtype = torch.float32, soft: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    shape = shape_of(mode, 13, 11)
    target = make_target(mode, shape, torch.float32 if soft else torch.int64, soft=soft)
    return make_logits(shape, dtype).requires_grad_(), target, make_weight(mode, shape)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_region_stats(mode: str, dtype: torch.dtype, soft: bool) -> None:
    logits, target, weight = inputs(mode, dtype, soft)
    data: dict[str, Any] = {"mode": mode}
    if not soft:
        target[torch.rand(target.shape) < 0.1] = 255
        data["ignore_index"] = 255
    stats = segfuse.region_stats(logits, target, weight=weight, **data)
    exact_logits = logits.detach().double().requires_grad_()
    exact = segfuse.reference.region_stats(
        exact_logits, target.double() if soft else target, weight=weight.double(), **data
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = [torch.rand(s.shape, dtype=wide) for s in stats]
    loss_tolerance, gradient_tolerance = TOLERANCE[dtype]
    for name, ours, theirs in zip(stats._fields, stats, exact, strict=True):
        assert ours.dtype == wide
        assert ours.shape == (3, 1 if mode == "binary" else CLASSES)
        check_close(ours.detach(), theirs.detach(), loss_tolerance, name)
    (gradient,) = torch.autograd.grad(list(stats), logits, upstream)
    (expected,) = torch.autograd.grad(list(exact), exact_logits, [u.double() for u in upstream])
    assert gradient.dtype == dtype
    check_close(gradient, expected, gradient_tolerance, "gradient")


@pytest.mark.parametrize("mode", MODES)
def test_region_loss_with_a_head(mode: str) -> None:
    """A Dice loss written on the statistics is the Dice loss."""
    logits, target, weight = inputs(mode)

    def head(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return ((fp + fn) / (2 * tp + fp + fn + 1e-5)).mean()

    own = segfuse.region_loss(logits, target, head, mode=mode, weight=weight)
    fused = segfuse.dice_loss(logits, target, mode=mode, weight=weight)
    torch.testing.assert_close(own, fused)
    (own_gradient,) = torch.autograd.grad(own * 3, logits)
    (fused_gradient,) = torch.autograd.grad(fused * 3, logits)
    torch.testing.assert_close(own_gradient, fused_gradient)


@on_cpu
@pytest.mark.parametrize("mode", MODES)
def test_region_stats_are_two_passes(mode: str) -> None:
    logits, target, _ = inputs(mode)
    with native.trace() as events:
        segfuse.region_loss(logits, target, lambda tp, fp, fn, tn: (fp / (tp + 1)).sum(), mode=mode).backward()
    assert [event.kernel for event in events] == ["statistics", "gradient"]


@on_cpu
def test_region_stats_elsewhere() -> None:
    """Empty batches, second derivatives, vmap, func.grad, fake tensors, compiled: values of the plain call."""
    logits, target, weight = inputs("multiclass", torch.float64)

    def loss(x: Tensor) -> Tensor:
        tp, fp, fn, tn = segfuse.region_stats(x, target, mode="multiclass", weight=weight)
        return (tp * tn - fp * fn).sum() + (fp**2).mean()

    assert torch.autograd.gradcheck(loss, logits)
    small = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4))
    assert torch.autograd.gradgradcheck(
        lambda x: segfuse.region_stats(x, labels, mode="multiclass").fp.square().sum(), small
    )
    (expected,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(torch.func.grad(loss)(logits.detach()), expected)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), loss(logits))
    torch.testing.assert_close(torch.autograd.grad(compiled(logits), logits)[0], expected)
    stacked = torch.stack([logits.detach(), logits.detach() * 2])
    torch.testing.assert_close(torch.vmap(loss)(stacked), torch.stack([loss(x) for x in stacked]))
    on_meta = segfuse.region_stats(logits.to("meta"), target.to("meta"), mode="multiclass")
    assert on_meta.tp.shape == (3, CLASSES)
    assert on_meta.tp.is_meta
    nothing = segfuse.region_stats(torch.zeros(0, 4, 5, 5), torch.zeros(0, 5, 5, dtype=torch.uint8), mode="multiclass")
    assert nothing.tn.shape == (0, 4)
    no_pixels = segfuse.region_stats(torch.zeros(2, 4, 0), torch.zeros(2, 0, dtype=torch.uint8), mode="multiclass")
    assert all(torch.equal(s, torch.zeros(2, 4)) for s in no_pixels)


def test_no_true_negatives_are_none() -> None:
    """Where every pixel is positive, tn is 0, not what rounding leaves of a difference."""
    stats = segfuse.region_stats(torch.randn(4, 1, 301), torch.ones(4, 1, 301, dtype=torch.bool), mode="binary")
    assert (stats.tn >= 0).all()
    assert (stats.tn < 1e-4).all()


# ----------------------------------------------------------------------------------------------------------- counts


def counted(said: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> list[int]:
    pairs = ((1, 1), (1, 0), (0, 1), (0, 0))
    return [int(((said == a) & (truth == b) & valid).sum()) for a, b in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_hard_counts(mode: str, dtype: torch.dtype) -> None:
    logits, target, _ = inputs(mode, dtype)
    target[torch.rand(target.shape) < 0.1] = 255
    mask = torch.rand(target.shape) < 0.8
    options: dict[str, Any] = {} if mode == "multiclass" else {"threshold": 0.7}
    stats = segfuse.region_stats(logits, target, mode=mode, weight=mask, ignore_index=255, hard=True, **options)
    x, t = logits.detach().double().cpu().numpy(), target.cpu().numpy()
    valid = (mask.cpu().numpy()) & (t != 255)
    for n in range(3):
        for c in range(1 if mode == "binary" else CLASSES):
            if mode == "multiclass":
                said, truth, ok = x[n].argmax(0) == c, t[n] == c, valid[n]
            else:
                said, truth, ok = 1 / (1 + np.exp(-x[n, c])) > 0.7, t[n, c] == 1, valid[n, c]
            assert [int(s[n, c]) for s in stats] == counted(said, truth, ok)
    assert all(s.dtype == torch.int64 and not s.requires_grad for s in stats)


def test_hard_ties_and_thresholds() -> None:
    """p = threshold is negative; of equal classes the lowest index is said."""
    stats = segfuse.region_stats(torch.zeros(1, 1, 3), torch.ones(1, 1, 3, dtype=torch.long), mode="binary", hard=True)
    assert stats.fn.item() == 3
    p, both = torch.tensor([[0.25, 0.250001]]), torch.ones(1, 2, dtype=torch.bool)
    stats = segfuse.region_stats(p, both, mode="binary", hard=True, threshold=0.25, from_logits=False)
    assert (stats.fn.item(), stats.tp.item()) == (1, 1)
    stats = segfuse.region_stats(torch.zeros(1, 3, 2), torch.tensor([[0, 2]]), mode="multiclass", hard=True)
    assert stats.tp.tolist() == [[1, 0, 0]]
    assert stats.fp.tolist() == [[1, 0, 0]]
    assert stats.fn.tolist() == [[0, 0, 1]]


def test_hard_errors() -> None:
    x = torch.zeros(1, 3, 4)
    with pytest.raises(IndexError, match=r"label 7 is outside \[0, 3\); 2 such"):
        segfuse.region_stats(x, torch.tensor([[0, 7, 1, 7]]), mode="multiclass", hard=True)
    with pytest.raises(TypeError, match="wants labels"):
        segfuse.region_stats(x, torch.zeros(1, 3, 4), mode="multiclass", hard=True)
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\); got 1"):
        segfuse.region_stats(x, torch.zeros(1, 3, 4, dtype=torch.long), mode="multilabel", hard=True, threshold=1.0)
    with pytest.raises(TypeError, match="hard must be"):
        segfuse.region_stats(x, torch.zeros(1, 4, dtype=torch.long), mode="multiclass", hard=1)
    with pytest.raises(ValueError, match="mode must be one of"):
        segfuse.region_stats(x, torch.zeros(1, 4, dtype=torch.long), mode="soft")


# ----------------------------------------------------------------------------------------------------- own pointwise


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_pointwise_loss(mode: str, reduction: Any) -> None:
    """A squared error written in PyTorch is the squared error."""
    logits, target, weight = inputs(mode, torch.float64)
    target[torch.rand(target.shape) < 0.2] = 255

    def fn(z: Tensor, t: Tensor) -> Tensor:
        return ((z.softmax(1) if mode == "multiclass" else z.sigmoid()) - t) ** 2

    data: dict[str, Any] = {"mode": mode, "weight": weight, "ignore_index": 255, "reduction": reduction}
    own = segfuse.pointwise_loss(logits, target, fn, **data)
    fused = segfuse.mse_loss(logits, target, **data)
    torch.testing.assert_close(own, fused.to(own))
    upstream = torch.rand(own.shape, dtype=own.dtype)
    (gradient,) = torch.autograd.grad(own, logits, upstream)
    (expected,) = torch.autograd.grad(fused, logits, upstream.to(fused.dtype))
    torch.testing.assert_close(gradient, expected)


def test_pointwise_loss_ignores_what_fn_says_of_ignored_pixels() -> None:
    x = torch.tensor([[0.5, float("nan"), 2.0]], requires_grad=True)
    target = torch.tensor([[1, 255, 0]])
    loss = segfuse.pointwise_loss(x, target, lambda z, t: (z - t) / z * z, mode="binary", ignore_index=255)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx((0.5 - 1 + 2.0) / 2)
    assert gradient.tolist() == [[0.5, 0.0, 0.5]]
    with pytest.raises(
        ValueError, match=r"fn must give one value per element \(1, 1, 3\) or per pixel; got shape \(3,\)"
    ):
        segfuse.pointwise_loss(x, target, lambda z, t: z.flatten(), mode="binary", ignore_index=255)


# ---------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("mode", MODES)
def test_metrics_are_those_of_scikit_learn(mode: str) -> None:
    stream = metrics.SegmentationMetrics(mode, ignore_index=255)
    truth, said = [], []
    for _ in range(3):
        logits, target, _ = inputs(mode)
        target[torch.rand(target.shape) < 0.1] = 255
        stream.update(logits, target)
        keep = target != 255
        predicted = logits.argmax(1) if mode == "multiclass" else (logits > 0).long()
        if mode == "multilabel":
            keep = keep.all(1)  # scikit-learn knows no ignored label
            stream.reset() if not truth else None
            target = torch.where(keep.unsqueeze(1), target, 255)
            stream = stream if truth else metrics.SegmentationMetrics(mode, ignore_index=255)
            truth.append(target.movedim(1, -1)[keep].cpu())
            said.append(predicted.movedim(1, -1)[keep].cpu())
        else:
            truth.append(target[keep].cpu())
            said.append(predicted[keep].cpu())
    y, s = torch.cat(truth).numpy(), torch.cat(said).numpy()
    if mode == "multilabel":
        stream = metrics.SegmentationMetrics(mode)
        stream.update(torch.cat(said).t()[None].float() - 0.5, torch.cat(truth).t()[None])
    own = {name: value.tolist() for name, value in stream.compute(average=None).items()}
    macro = {name: value.item() for name, value in stream.compute().items()}
    average: Any = None
    labels = [1] if mode == "binary" else None
    options = {"average": average, "labels": labels, "zero_division": 0}
    theirs = {
        "iou": sklearn.metrics.jaccard_score(y, s, **options),
        "dice": sklearn.metrics.f1_score(y, s, **options),
        "recall": sklearn.metrics.recall_score(y, s, **options),
        "precision": sklearn.metrics.precision_score(y, s, **options),
    }
    for name, values in theirs.items():
        np.testing.assert_allclose(own[name], values, rtol=1e-12, err_msg=name)
        assert macro[name] == pytest.approx(np.mean(values), rel=1e-12)
    if mode == "binary":
        assert macro["specificity"] == pytest.approx(sklearn.metrics.recall_score(y, s, pos_label=0), rel=1e-12)
        assert macro["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, s), rel=1e-12)
        assert macro["error_rate"] == pytest.approx(sklearn.metrics.zero_one_loss(y, s), rel=1e-12)
    if mode == "multiclass":
        micro = stream.compute("micro")
        assert micro["dice"].item() == pytest.approx(sklearn.metrics.accuracy_score(y, s), rel=1e-12)


def test_metrics_of_nothing() -> None:
    counts = [torch.tensor([0, 4]), torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([5, 8])]
    assert metrics.iou(*counts).tolist() == [0.0, 4 / 7]
    assert metrics.iou(*counts, zero_division=float("nan")).isnan().tolist() == [True, False]
    assert metrics.f1 is metrics.dice
    stream = metrics.SegmentationMetrics("multiclass")
    with pytest.raises(RuntimeError, match="call update first"):
        stream.compute()
    stream.update(torch.eye(3)[None], torch.tensor([[0, 1, 1]]))
    assert stream.compute(zero_division=float("nan"))["recall"].item() == pytest.approx(0.75)
    with pytest.raises(ValueError, match="logits have 4 classes, earlier ones had 3"):
        stream.update(torch.zeros(1, 4, 2), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="average must be one of"):
        stream.compute("weighted")


@pytest.mark.parametrize("mode", MODES)
def test_few_negatives_among_many_pixels(mode: str) -> None:
    """The weight of the negatives keeps its digits where it is one part in 1e5, weights being anything."""
    shape = shape_of(mode, 320, 320)
    grid = (3, 320, 320) if mode == "multiclass" else shape
    target = torch.zeros(grid, dtype=torch.long) if mode == "multiclass" else torch.ones(grid, dtype=torch.long)
    target[..., 7, 9] = 1 - target[..., 7, 9]
    logits, weight = make_logits(shape), torch.rand(grid) + 0.1
    stats = segfuse.region_stats(logits, target, mode=mode, weight=weight)
    exact = segfuse.reference.region_stats(logits.double(), target, mode=mode, weight=weight.double())
    negatives = exact[1] + exact[3]
    assert ((stats.tn - exact[3]).abs() <= 1e-6 * negatives).all()
    check_case(Case("sensitivity_specificity_loss", mode, {"sensitivity_weight": 0.2}), logits, target, weight)
