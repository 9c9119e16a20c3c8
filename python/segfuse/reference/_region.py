"""Region losses. Each gives the formula of its score to `_region`, which sums, pools, shapes and reduces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from segfuse.reference._data import Data, prepare, reduce, require, require_one_of, vector

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segfuse.reference._data import DataOptions

    class RegionOptions(DataOptions, total=False):
        smooth: float | tuple[float, float]
        eps: float
        pool_batch: bool
        pool_classes: bool
        squared: bool
        soft_label: bool
        absent: str
        class_weight: Sequence[float] | Tensor | None
        classes: Sequence[int] | Tensor | None
        adaptive: tuple[float, float, float] | None

    class ShapeOptions(RegionOptions, total=False):
        shape: str


__all__ = [
    "adaptive_log_loss",
    "background_tversky_loss",
    "dice_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "jaccard_loss",
    "region_stats",
    "sensitivity_specificity_loss",
    "tversky_loss",
]


class _Sums(NamedTuple):
    """The sums of a row, in the order in which `_statistics` stacks them."""

    hits: Tensor  # I
    fp: Tensor
    fn: Tensor
    tn: Tensor
    errors: Tensor  # FP + FN, summed without cancellation
    positives: Tensor  # Σ w t
    negatives: Tensor  # Σ w (1 - t)


# (share, hits, errors) of each score. A score is (hits + nr) / (hits + errors + dr); the shares add to 1.
_Scores: TypeAlias = Callable[[_Sums], list[tuple[float, Tensor, Tensor]]]


def _statistics(d: Data, squared: bool, soft_label: bool, squared_error: bool) -> Tensor:
    """The sums of every row, (7, N, C)."""
    p, q, t = d.p, d.q, d.t
    hits, fp, fn, tn = t * p, (1 - t) * p, t * q, (1 - t) * q
    errors = fp + fn
    gap = torch.where(t == 1, -q, p - t)  # p - t
    if squared:  # P - I and T - I; their sum is gap², without cancellation
        fp, fn, errors = p * gap, -t * gap, gap * gap
    elif squared_error:
        fp, fn = (1 - t) * gap * gap, t * gap * gap
        errors = gap * gap
        agreed = torch.where(gap < 0, (1 - t) + p, q + t)  # 1 - |gap|; then 1 - gap² = agreed (2 - agreed)
        hits, tn = t * agreed * (2 - agreed), (1 - t) * agreed * (2 - agreed)
    elif soft_label:
        soft = (t != 0) & (t != 1)  # for hard labels the sums above are the same
        hits = torch.where(soft, torch.minimum(p, t), hits)
        fp, fn = torch.where(soft, (gap.abs() + gap) / 2, fp), torch.where(soft, (gap.abs() - gap) / 2, fn)
        errors = fp + fn
    return (torch.stack((hits, fp, fn, tn, errors, t.expand_as(p), (1 - t).expand_as(p))) * d.w).sum(-1)


def _score(hits: Tensor, errors: Tensor, nr: float, dr: float, eps: float) -> tuple[Tensor, Tensor]:
    """A score, and 1 - score computed without cancellation. 0/0 scores 1."""
    den = hits + errors + dr
    floored = den.clamp_min(eps)
    undefined = (floored == 0) & (hits + nr == 0)
    safe = torch.where(undefined, 1.0, floored)
    score = torch.where(undefined, 1.0, (hits + nr) / safe)
    return score, torch.where(undefined, 0.0, (errors + (dr - nr) + (floored - den)) / safe)


def _shaped(loss: Tensor, score: Tensor, shape: str | Callable[[Tensor], Tensor]) -> Tensor:
    if callable(shape):
        return shape(loss)
    require_one_of("shape", shape, ("linear", "log", "log_cosh"))
    if shape == "log":  # of the loss while the score is near 1, else of the score
        near = loss < 0.5
        far_log = torch.where(near, 1.0, score).clamp_min(1e-12).log()
        return -torch.where(near, torch.log1p(-torch.where(near, loss, 0.0)), far_log)
    return torch.log1p(2 * torch.sinh(loss / 2) ** 2) if shape == "log_cosh" else loss


def _adapted(loss: Tensor, omega: float, gamma: float, epsilon: float) -> Tensor:
    """omega ln(1 + L / epsilon) where L < gamma, else L - C."""
    below = loss < gamma
    constant = gamma - omega * math.log1p(gamma / epsilon)
    return torch.where(below, omega * torch.log1p(torch.where(below, loss, 0.0) / epsilon), loss - constant)


def _class_factor(positives: Tensor, power: float) -> Tensor:
    """1 / T^power of each class, (N, C). Where T is 0 it is the largest of the other classes, or 0 if there is none."""
    found = positives != 0
    own = torch.where(found, torch.where(found, positives, 1.0) ** -power, 0.0)
    return torch.where(found | (power == 0), torch.where(found, own, 1.0), own.amax(1, keepdim=True)).detach()


def _region(
    logits: Tensor,
    target: Tensor,
    scores: _Scores,
    *,
    mode: str,
    shape: str | Callable[[Tensor], Tensor] = "linear",
    smooth: float | tuple[float, float] = 1e-5,
    eps: float = 0.0,
    pool_batch: bool = False,
    pool_classes: bool = False,
    squared: bool = False,
    soft_label: bool = False,
    squared_error: bool = False,
    absent: str = "score",
    class_weight: Sequence[float] | Tensor | None = None,
    classes: Sequence[int] | Tensor | None = None,
    adaptive: tuple[float, float, float] | None = None,
    generalized: float | None = None,
    **options: Unpack[DataOptions],
) -> Tensor:
    """`generalized`: a row pools all classes, each with the weight class_weight / T^generalized inside the ratio."""
    nr, dr = (smooth, smooth) if isinstance(smooth, int | float) else smooth
    require(min(nr, dr, eps) >= 0, f"smooth and eps must be >= 0, got {smooth} and {eps}")
    require_one_of("absent", absent, ("score", "zero", "skip"))
    require(not (squared and soft_label), "squared and soft_label exclude each other")
    require(class_weight is None or not pool_classes, "class_weight has no meaning with pool_classes")
    data = prepare(logits, target, mode=mode, **options)
    require(not (pool_batch and data.reduction == "sample"), "reduction='sample' has no meaning with pool_batch")
    count = data.p.shape[1]
    scored = list(range(count)) if classes is None else [int(k) for k in classes]
    proper = bool(scored) and len(set(scored)) == len(scored) and 0 <= min(scored) <= max(scored) < count
    require(proper, f"classes must be unique indices in [0, {count}), got {scored}")

    sums = _statistics(data, squared, soft_label, squared_error)[:, :, scored]
    sums = sums.sum(1, keepdim=True) if pool_batch else sums
    own = torch.ones_like(sums[0])
    if class_weight is not None:
        own = own * vector("class_weight", class_weight, count, data.p)[scored, 0]
    if generalized is not None:
        sums = sums * (_class_factor(_Sums(*sums.unbind()).positives, generalized) * own)
        own = torch.ones_like(own[:, :1])
    pools = pool_classes or generalized is not None
    sums = sums.sum(2, keepdim=True) if pools else sums
    row = own[:, : sums.shape[2]]
    named = _Sums(*sums.unbind())

    loss, score = torch.zeros_like(row), torch.zeros_like(row)
    for share, hits, errors in scores(named):
        own_score, own_loss = _score(hits, errors, nr, dr, eps)
        score, loss = score + share * own_score, loss + share * own_loss
    loss = _shaped(loss, score, shape)
    if adaptive is not None:
        loss = _adapted(loss, *adaptive)
    if absent != "score":
        missing = named.positives == 0
        loss = torch.where(missing, 0.0, loss)
        row = torch.where(missing & (absent == "skip"), 0.0, row)
    values = torch.where((row != 0) & (data.w != 0).any(), row * loss, 0.0)
    if data.reduction == "none":
        kept = [size for size, pooled in zip(values.shape, (pool_batch, pools), strict=True) if not pooled]
        return values.reshape(kept)
    return reduce(values, row, data.reduction)


def region_stats(
    logits: Tensor, target: Tensor, *, mode: str, **data: Unpack[DataOptions]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tp = sum(w t p), fp = sum(w (1-t) p), fn = sum(w t (1-p)), tn = sum(w (1-t) (1-p)), each (N, C)."""
    require(data.get("reduction", "mean") == "mean", "region_stats has no reduction")
    d = prepare(logits, target, mode=mode, **data)
    t, u = d.t, 1 - d.t
    tp, fp, fn, tn = ((d.w * x).sum(-1) for x in (t * d.p, u * d.p, t * d.q, u * d.q))
    return tp, fp, fn, tn


def dice_loss(logits: Tensor, target: Tensor, *, mode: str, **options: Unpack[ShapeOptions]) -> Tensor:
    """1 - (2 I + nr) / max(2 I + FP + FN + dr, eps) per row.

    I = sum(w t p), FP = sum(w (1-t) p), FN = sum(w t (1-p)); squared: P = sum(w p^2), T = sum(w t^2), FP = P - I,
    FN = T - I; soft_label: I = sum(w min(p, t)), FP = sum(w max(p-t, 0)), FN = sum(w max(t-p, 0)).
    """
    return _region(logits, target, lambda s: [(1.0, 2 * s.hits, s.errors)], mode=mode, **options)


def jaccard_loss(logits: Tensor, target: Tensor, *, mode: str, **options: Unpack[ShapeOptions]) -> Tensor:
    """1 - (I + nr) / max(I + FP + FN + dr, eps) per row; the sums are those of `dice_loss`."""
    return _region(logits, target, lambda s: [(1.0, s.hits, s.errors)], mode=mode, **options)


def _tversky(alpha: float, beta: float) -> _Scores:
    require(min(alpha, beta) >= 0, f"alpha and beta must be >= 0, got {alpha} and {beta}")
    both = min(alpha, beta)  # FP and FN of squared sums may cancel; their sum, `errors`, does not
    return lambda s: [(1.0, s.hits, both * s.errors + (alpha - both) * s.fp + (beta - both) * s.fn)]


def tversky_loss(
    logits: Tensor, target: Tensor, *, mode: str, alpha: float = 0.5, beta: float = 0.5, **options: Unpack[ShapeOptions]
) -> Tensor:
    """1 - TI with TI = (I + nr) / max(I + alpha FP + beta FN + dr, eps) per row; the sums are those of `dice_loss`."""
    return _region(logits, target, _tversky(alpha, beta), mode=mode, **options)


def _power(gamma: float) -> Callable[[Tensor], Tensor]:
    require(gamma >= 0, f"gamma must be >= 0, got {gamma}")

    def power(loss: Tensor) -> Tensor:
        zero = loss <= 0  # NaN is not <= 0, so it stays NaN
        return torch.where(zero, 0.0**gamma, torch.where(zero, 1.0, loss) ** gamma)

    return power


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 0.75,
    **options: Unpack[RegionOptions],
) -> Tensor:
    """u^gamma with u = max(0, 1 - TI) per row, TI as in `tversky_loss`. At u = 0 the gradient is 0."""
    return _region(logits, target, _tversky(alpha, beta), mode=mode, shape=_power(gamma), **options)


def background_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    **options: Unpack[RegionOptions],
) -> Tensor:
    """`focal_tversky_loss` of the background of each row: 1 - p and 1 - t take the place of p and t."""
    require(min(alpha, beta) >= 0, f"alpha and beta must be >= 0, got {alpha} and {beta}")

    def scores(s: _Sums) -> list[tuple[float, Tensor, Tensor]]:
        return [(1.0, s.tn, alpha * s.fn + beta * s.fp)]

    return _region(logits, target, scores, mode=mode, shape=_power(gamma), **options)


def sensitivity_specificity_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    sensitivity_weight: float = 0.5,
    squared_error: bool = False,
    **options: Unpack[ShapeOptions],
) -> Tensor:
    """1 - (a sens + (1 - a) spec), sens = (I + nr) / (I + FN + dr), spec = (TN + nr) / (TN + FP + dr).

    squared_error: FN = sum(w t (t - p)^2) and FP = sum(w (1 - t) (t - p)^2), with the same I + FN and TN + FP.
    """
    a = sensitivity_weight
    require(0 <= a <= 1, f"sensitivity_weight must be in [0, 1], got {a}")

    def scores(s: _Sums) -> list[tuple[float, Tensor, Tensor]]:
        return [(a, s.hits, s.fn), (1 - a, s.tn, s.fp)]

    return _region(logits, target, scores, mode=mode, squared_error=squared_error, **options)


def generalized_dice_loss(
    logits: Tensor, target: Tensor, *, mode: str, weight_type: str = "square", **options: Unpack[RegionOptions]
) -> Tensor:
    """1 - (2 sum_c v_c I_c + nr) / max(sum_c v_c (P_c + T_c) + dr, eps) per sample, v_c = class_weight[c] / T_c^2.

    weight_type "simple" is 1 / T_c, "uniform" is 1. A class with T_c = 0 takes the largest of the sample, or 0.
    """
    powers = {"square": 2.0, "simple": 1.0, "uniform": 0.0}
    require_one_of("weight_type", weight_type, tuple(powers))
    scores: _Scores = lambda s: [(1.0, 2 * s.hits, s.errors)]  # noqa: E731
    return _region(logits, target, scores, mode=mode, generalized=powers[weight_type], **options)


def adaptive_log_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    base: str,
    base_options: Mapping[str, Any] | None = None,
    omega: float = 10.0,
    gamma: float = 0.1,
    epsilon: float = 0.5,
    **options: Unpack[RegionOptions],
) -> Tensor:
    """omega ln(1 + L / epsilon) where L < gamma, else L - C, C = gamma - omega ln(1 + gamma / epsilon).

    L is the loss of a row of the region loss named `base`, with its options.
    """
    function: Callable[..., Tensor] = globals()[base]
    adaptive = (omega, gamma, epsilon)
    return function(logits, target, mode=mode, adaptive=adaptive, **(base_options or {}), **options)
