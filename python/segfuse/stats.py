"""The sums behind the region losses, to write your own losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.checks import check_inputs
from segfuse._core.functions import cached, described
from segfuse._core.options import MODES, DataOptions, Mode, check_bool, check_choice, check_number
from segfuse._core.routes import region_counts
from segfuse._core.routes import region_stats as fused_stats
from segfuse.reference._data import prepare, reduce_pixels
from segfuse.region import SensitivitySpecificityLoss

if TYPE_CHECKING:
    from segfuse._core.plan import Plan

__all__ = [
    "RegionStats",
    "pointwise_loss",
    "region_loss",
    "region_stats",
]


class RegionStats(NamedTuple):
    """Sums of weights, or counts, of true and false positives and negatives, each (N, C).

    >>> segfuse.RegionStats(*torch.tensor([3, 1, 2, 4])).fp
    tensor(1)
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


@torch.compiler.assume_constant_result
def _plan(mode: str, from_logits: bool, ignore_index: int | None) -> Plan:
    check_choice("mode", mode, MODES)
    plan: Plan = cached(SensitivitySpecificityLoss, mode=mode, from_logits=from_logits, ignore_index=ignore_index).plan
    return plan


@described
def region_stats(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    weight: Tensor | None = None,
    from_logits: bool = True,
    ignore_index: int | None = None,
    hard: bool = False,
    threshold: float = 0.5,
) -> RegionStats:
    """True and false positives and negatives of each sample and class, in one pass; the gradient takes one more.

    tp = Σ w t p, fp = Σ w (1 - t) p, fn = Σ w t (1 - p), tn = Σ w (1 - t) (1 - p) over the valid pixels, with labels t,
    probabilities p and weights w. They are float32 (float64 for float64 logits) and differentiable.

    Args:
        hard: True gives exact int64 counts of hard predictions, without a gradient. p becomes 1 where p > threshold,
            else 0; in ``"multiclass"`` 1 for the class of the largest p (if equal, the lowest index). The target must
            be labels: integers, bools, or a label map of floats. ``weight`` is a mask: pixels where it is not 0 count.
            The labels are checked; on a GPU this waits.
        threshold: for hard, in (0, 1). Not used in "multiclass".

    Returns:
        (tp, fp, fn, tn), each (N, C); C = 1 in "binary".

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.region_stats(logits, target, mode="binary", hard=True)
    RegionStats(tp=tensor([[1]]), fp=tensor([[1]]), fn=tensor([[0]]), tn=tensor([[1]]))
    """
    plan = _plan(mode, from_logits, ignore_index)
    if not check_bool("hard", hard):
        return RegionStats(*fused_stats(plan, logits, target, weight).unbind(-1))
    level = check_number("threshold", threshold)
    if not 0 < level < 1:
        raise ValueError(f"threshold must lie in (0, 1); got {threshold!r}")
    return RegionStats(*region_counts(plan, logits, target, weight, level).unbind(-1))


@described
def region_loss(
    logits: Tensor,
    target: Tensor,
    head: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    mode: Mode,
    weight: Tensor | None = None,
    from_logits: bool = True,
    ignore_index: int | None = None,
) -> Tensor:
    """Your own region loss: ``head(tp, fp, fn, tn)`` of the results of :func:`region_stats`, in PyTorch.

    The statistics and the gradient in the logits are fused and take one pass each. The head works on (N, C) numbers.
    Avoid 0/0 in the head: it occurs in rows without a label, or where nothing is predicted.

    Args:
        head: a function of four tensors (N, C), with C = 1 in "binary"; gives the loss.

    Returns:
        The result of the head.

    >>> def kappa(tp, fp, fn, tn):
    ...     return 1 - (2 * (tp * tn - fn * fp) / ((tp + fp) * (fp + tn) + (tp + fn) * (fn + tn) + 1e-5)).mean()
    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.region_loss(logits, target, kappa, mode="binary")
    tensor(0.6353)
    """
    stats = region_stats(logits, target, mode=mode, weight=weight, from_logits=from_logits, ignore_index=ignore_index)
    return head(*stats)


@described
def pointwise_loss(
    logits: Tensor,
    target: Tensor,
    fn: Callable[[Tensor, Tensor], Tensor],
    *,
    mode: Mode,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    """Your own pointwise loss. It is not fused: it runs in plain PyTorch.

    Args:
        fn: a function fn(z, t) of two tensors (N, C, M): the logits in float32 (float64 for float64 logits) and the
            labels as numbers (one-hot in ``"multiclass"``). It gives the loss of each element (N, C, M), or of each
            pixel (N, 1, M). At ignored pixels it gets zeros, and its result there is not used.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.pointwise_loss(logits, target, lambda z, t: (z - t) ** 2, mode="binary")
    tensor(0.7500)
    """
    check_inputs(_plan(mode, data.get("from_logits", True), data.get("ignore_index")), logits, target, weight)
    d = prepare(logits, target, mode=mode, weight=weight, **cast(Any, data))
    values = fn(d.z, d.t)
    if values.shape not in (d.z.shape, (d.z.shape[0], 1, d.z.shape[2])):
        raise ValueError(
            f"fn must give one value per element {tuple(d.z.shape)} or per pixel; got shape {tuple(values.shape)}"
        )
    return reduce_pixels(d, torch.where((d.w != 0).expand_as(values), values, 0.0))
