"""The losses in plain PyTorch: the oracle of the tests, the double backward, and the path for devices without a kernel.

Same names, options and numbers as the fused functions, for every float dtype and any order of derivative. A call is
`_prepare` (checks, canonical shapes, link) and then `_reduce_pixels` or `_region`; a loss adds its formula, no more.

Canonical shapes: logits and target (N, C, M) with C = 1 in binary, weight (N, 1, M) in multiclass and else (N, C, M).
Ignored pixels are *selected* out before the link and zero coefficients before every product (a 0 factor would turn
inf into NaN). Value and gradient keep their digits where p or 1 - p is tiny: neither is made by subtraction from 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypedDict

    from typing_extensions import Unpack

    Index = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    Values = float | Sequence[float] | Tensor

    class DataOptions(TypedDict, total=False):
        weight: Tensor | None
        from_logits: bool
        ignore_index: int | None
        reduction: str

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

    class ShapeOptions(RegionOptions, total=False):
        shape: str


__all__ = [
    "bce_with_logits_loss", "cross_entropy_loss", "dice_loss", "focal_loss", "focal_tversky_loss", "jaccard_loss",
    "tversky_loss",
]  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- checks


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} must be one of {choices}, got {value!r}")


def _vector(name: str, values: Values, count: int, like: Tensor, *, scalar: bool = False) -> Tensor:
    """`values` as a (C, 1) column that lines up with (N, C, M); `scalar` also allows one value for all."""
    column = torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1)
    sizes = (1, count) if scalar else (count,)
    _require(column.numel() in sizes, f"{name} must have {count} values (one per class), got {column.numel()}")
    return column


def _index_error(target: Tensor, bad: Tensor, limit: int) -> IndexError:
    where = tuple(bad.nonzero()[0].tolist())
    value = int(target[where])
    hint = f"; did you mean ignore_index={value}?" if value in (255, -100) else ""
    return IndexError(f"target value {value} at {where} is outside [0, {limit}), {int(bad.sum())} in all{hint}")


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class _Data:
    p: Tensor
    q: Tensor  # 1 - p
    log_p: Tensor
    log_q: Tensor
    t: Tensor
    w: Tensor  # 0 exactly where ignored
    is_map: bool  # the target was a label map, not one-hot or soft labels
    shape: torch.Size  # of the logits as given
    reduction: str


def _graft(value: Tensor, slope: Tensor) -> Tensor:
    """`value` with the derivatives (of every order) of `slope`."""
    return slope + (value - slope).detach()


def _log(p: Tensor) -> Tensor:
    """log p of a probability as torch's BCE: value clamped at -100, derivative 1 / max(p, 1e-12)."""
    slope = torch.where(p > 1e-12, p.clamp_min(1e-12).log(), p / 1e-12)
    return _graft(p.log().clamp_min(-100.0), slope)


def _link(z: Tensor, mode: str, from_logits: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, q = 1 - p, log p, log q."""
    if not from_logits:
        return z, 1 - z, _log(z), _log(1 - z)
    if mode != "multiclass":
        log_p, log_q = functional.logsigmoid(z), functional.logsigmoid(-z)
        # autograd's slope of sigmoid is p (1 - p) by subtraction; that of exp(log p) is p q
        return _graft(z.sigmoid(), log_p.exp()), _graft((-z).sigmoid(), log_q.exp()), log_p, log_q
    log_p = functional.log_softmax(z, 1)
    p = log_p.exp()
    # only the largest p can be near 1: its complement is the sum of the others, theirs is safely 1 - p
    top = torch.zeros_like(p, dtype=torch.bool).scatter(1, z.argmax(1, keepdim=True), True)
    others = torch.where(top, 0.0, p)
    rest = others.sum(1, keepdim=True)
    q = torch.where(top, rest, 1 - others)
    log_q = torch.where(top, rest.clamp_min(torch.finfo(p.dtype).tiny).log(), torch.log1p(-others))
    return p, q, torch.where(top, torch.log1p(-rest), log_p), log_q


def _pixel_weight(weight: Tensor | None, logits: Tensor, mode: str) -> Tensor:
    shape = logits.shape
    grid = (shape[0], 1, *shape[2:]) if mode == "multiclass" else shape
    if weight is None:
        return torch.ones(grid, device=logits.device)
    w = weight
    if w.ndim == logits.ndim - 1 and (mode != "binary" or shape[1:2] == (1,)):  # (N, H, W) logits have no channel axis
        w = w.unsqueeze(1)
    elif mode == "binary" and w.ndim == logits.ndim + 1 and w.shape[1] == 1:
        w = w.squeeze(1)
    try:
        return w.expand(grid)
    except RuntimeError:
        message = f"weight of shape {tuple(weight.shape)} does not broadcast to {tuple(grid)}"
        raise ValueError(f"{message} (logits {tuple(shape)}, mode {mode!r})") from None


def _prepare(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    weight: Tensor | None = None,
    from_logits: bool = True,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> _Data:
    _require_one_of("mode", mode, ("binary", "multilabel", "multiclass"))
    _require_one_of("reduction", reduction, ("mean", "sum", "none", "sample"))
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    for name, x in (("target", target), ("weight", weight)):
        if x is not None:
            if x.is_complex():
                raise TypeError(f"{name} must be real, got {x.dtype}")
            _require(not x.requires_grad, f"{name} must not require grad")
            near = x.device == logits.device or x.ndim == 0
            _require(near, f"{name} is on {x.device}, logits are on {logits.device}")

    shape, binary = logits.shape, mode == "binary"
    _require(logits.ndim >= (1 if binary else 2), f"logits of shape {tuple(shape)} do not fit mode {mode!r}")
    n, c, m = (shape[0], 1, math.prod(shape[1:])) if binary else (shape[0], shape[1], math.prod(shape[2:]))
    _require(c >= (2 if mode == "multiclass" else 1), f"mode {mode!r} got {c} classes (for one class use 'binary')")
    squeezed, column = (n, *shape[2:]), (n, 1, *shape[2:])
    is_map = mode == "multiclass" and target.shape in (squeezed, column)
    fits = is_map or target.shape == shape
    if binary:
        fits = fits or target.shape == (n, 1, *shape[1:]) or (shape[1:2] == (1,) and target.shape == squeezed)
    _require(fits, f"target of shape {tuple(target.shape)} does not fit logits {tuple(shape)} in mode {mode!r}")
    if is_map and target.is_floating_point():
        raise TypeError(f"a label map must be integer or bool, got {target.dtype}; soft labels have the logits' shape")
    if mode == "multiclass" and not is_map:
        _require(ignore_index in (None, -100), f"ignore_index={ignore_index} needs a label map; use weight instead")
        ignore_index = None

    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    values = target if target.is_floating_point() else target.long()
    ignored = torch.zeros_like(values, dtype=torch.bool) if ignore_index is None else values == ignore_index
    bad = torch.zeros_like(ignored)
    if not target.is_floating_point():
        limit = c if is_map else 2
        bad = ~ignored & ((values < 0) | (values >= limit))
        if bad.device.type == "cpu" and bool(bad.any()):
            raise _index_error(values, bad, limit)
    channels, grid = 1 if is_map else c, 1 if mode == "multiclass" else c
    values, ignored = values.reshape(n, channels, m), ignored.reshape(n, channels, m)
    if is_map:
        values = values == torch.arange(c, device=values.device)[:, None]
    w = _pixel_weight(weight, logits, mode).to(logits.device, dtype).reshape(n, grid, m)
    valid = ~ignored[:, :grid] & (w != 0)
    z = torch.where(valid, logits.reshape(n, c, m).to(dtype), 0.0)
    if bad.device.type != "cpu":  # reading `bad` would wait for the device, so a bad label makes everything NaN
        z = z * torch.where(bad.any(), math.nan, 1.0).to(dtype)
    p, q, log_p, log_q = _link(z, mode, from_logits)
    t = torch.where(valid, values.to(dtype), 0.0)
    return _Data(p, q, log_p, log_q, t, torch.where(valid, w, 0.0), is_map, shape, reduction)


# ------------------------------------------------------------------------------------------------------- reducers


def _ratio(num: Tensor, den: Tensor) -> Tensor:
    """num / den, and 0 with gradient 0 where den is 0."""
    empty = den == 0
    return torch.where(empty, 0.0, num / torch.where(empty, 1.0, den))


def _reduce(values: Tensor, weights: Tensor, reduction: str) -> Tensor:
    """`values` hold their weight already; dim 0 is the sample."""
    if reduction == "sum":
        return values.sum()
    if reduction == "sample":
        return _ratio(values.flatten(1).sum(1), weights.flatten(1).sum(1))
    return _ratio(values.sum(), weights.sum()) if reduction == "mean" else values


def _reduce_pixels(data: _Data, loss: Tensor, class_weight: Tensor | float = 1.0) -> Tensor:
    """Of (N, C, M), or of (N, 1, M) where the classes were summed; class_weight enters the denominator alone."""
    values = data.w * loss
    if data.reduction == "none":
        per_class = values.shape[1] == data.p.shape[1]
        return values.reshape(data.shape if per_class else data.shape[:1] + data.shape[2:])
    return _reduce(values, (data.w * class_weight).expand_as(values), data.reduction)


def _region(
    logits: Tensor,
    target: Tensor,
    index: Index,
    *,
    mode: str,
    shape: str | Callable[[Tensor], Tensor] = "linear",
    smooth: float | tuple[float, float] = 1e-5,
    eps: float = 0.0,
    pool_batch: bool = False,
    pool_classes: bool = False,
    squared: bool = False,
    soft_label: bool = False,
    absent: str = "score",
    class_weight: Sequence[float] | Tensor | None = None,
    classes: Sequence[int] | Tensor | None = None,
    **options: Unpack[DataOptions],
) -> Tensor:
    """`index` maps (I, FP, FN, FP + FN) to (hits, errors): score = (hits + nr) / (hits + errors + dr)."""
    nr, dr = (smooth, smooth) if isinstance(smooth, int | float) else smooth
    _require(min(nr, dr, eps) >= 0, f"smooth and eps must be >= 0, got {smooth} and {eps}")
    _require_one_of("absent", absent, ("score", "zero", "skip"))
    if isinstance(shape, str):
        _require_one_of("shape", shape, ("linear", "log", "log_cosh"))
    _require(not (squared and soft_label), "squared and soft_label exclude each other")
    _require(class_weight is None or not pool_classes, "class_weight has no meaning with pool_classes")
    data = _prepare(logits, target, mode=mode, **options)
    _require(not (pool_batch and data.reduction == "sample"), "reduction='sample' has no meaning with pool_batch")
    count = data.p.shape[1]
    scored = list(range(count)) if classes is None else [int(k) for k in classes]
    proper = bool(scored) and len(set(scored)) == len(scored) and 0 <= min(scored) <= max(scored) < count
    _require(proper, f"classes must be unique indices in [0, {count}), got {scored}")

    p, q, t = data.p, data.q, data.t
    hits, fp, fn = t * p, (1 - t) * p, t * q
    errors = fp + fn
    if squared or soft_label:
        gap = torch.where(t == 1, -q, p - t)  # p - t
        if squared:  # P - I, T - I, and their sum without cancellation
            fp, fn, errors = p * gap, -t * gap, gap * gap
        else:
            soft = (t != 0) & (t != 1)  # for hard targets the plain sums are the same
            hits = torch.where(soft, torch.minimum(p, t), hits)
            fp, fn = torch.where(soft, (gap.abs() + gap) / 2, fp), torch.where(soft, (gap.abs() - gap) / 2, fn)
            errors = fp + fn
    sums = (torch.stack((hits, fp, fn, errors, t)) * data.w).sum(-1)[:, :, scored]
    sums = sums.sum(1, keepdim=True) if pool_batch else sums
    sums = sums.sum(2, keepdim=True) if pool_classes else sums
    hits, fp, fn, errors, positives = sums.unbind()

    hits, errors = index(hits, fp, fn, errors)
    den = hits + errors + dr
    floored = den.clamp_min(eps)
    undefined = (floored == 0) & (hits + nr == 0)  # 0/0 scores 1
    floored_safe = torch.where(undefined, 1.0, floored)
    score = torch.where(undefined, 1.0, (hits + nr) / floored_safe)
    loss = torch.where(undefined, 0.0, (errors + (dr - nr) + (floored - den)) / floored_safe)
    if callable(shape):
        loss = shape(loss)
    elif shape == "log":  # from the loss while the score is near 1, from the score else
        near = loss < 0.5
        far_log = torch.where(near, 1.0, score).clamp_min(1e-12).log()
        loss = -torch.where(near, torch.log1p(-torch.where(near, loss, 0.0)), far_log)
    elif shape == "log_cosh":
        loss = torch.log1p(2 * torch.sinh(loss / 2) ** 2)

    row = torch.ones_like(loss)
    if class_weight is not None:
        row = row * _vector("class_weight", class_weight, count, p)[scored, 0]
    if absent != "score":
        missing = positives == 0
        loss = torch.where(missing, 0.0, loss)
        row = torch.where(missing & (absent == "skip"), 0.0, row)
    values = torch.where((row != 0) & (data.w != 0).any(), row * loss, 0.0)
    if data.reduction == "none":
        kept = [size for size, pooled in zip(values.shape, (pool_batch, pool_classes), strict=True) if not pooled]
        return values.reshape(kept)
    return _reduce(values, row, data.reduction)


# --------------------------------------------------------------------------------------------------------- losses


def _nll(coefficient: Tensor, log_p: Tensor, log_q: Tensor, gamma: float = 0.0) -> Tensor:
    """coefficient * (1 - p)^gamma * (-log p), and 0 with gradient 0 where the coefficient is 0."""
    used = coefficient != 0
    loss = coefficient * torch.where(used, -log_p, 0.0)
    return loss if gamma == 0 else loss * torch.exp(gamma * torch.where(used, log_q, 0.0))


def bce_with_logits_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    pos_weight: Values | None = None,
    balanced: bool = False,
    label_smoothing: float = 0.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """b t' (-log p) + c (1 - t') (-log(1 - p)) with t' = t (1 - e) + e/2; binary and multilabel.

    b = pos_weight and c = 1, or with `balanced` b = 1 - sum(w t) / sum(w) of the sample and channel and c = 1 - b.
    """
    _require_one_of("mode", mode, ("binary", "multilabel"))
    _require(0 <= label_smoothing <= 1, f"label_smoothing must be in [0, 1], got {label_smoothing}")
    _require(not balanced or pos_weight is None, "balanced and pos_weight exclude each other")
    d = _prepare(logits, target, mode=mode, **data)
    t = d.t * (1 - label_smoothing) + label_smoothing / 2
    b: Tensor | float = 1.0
    c: Tensor | float = 1.0
    if pos_weight is not None:
        b = _vector("pos_weight", pos_weight, t.shape[1], t, scalar=True)
    if balanced:
        c = _ratio((d.w * d.t).sum(2, keepdim=True), d.w.sum(2, keepdim=True))
        b = 1 - c
    return _reduce_pixels(d, _nll(b * t, d.log_p, d.log_q) + _nll(c * (1 - t), d.log_q, d.log_p))


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str = "multiclass",
    class_weight: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """sum_c v_c t'_c (-log p_c) with v = class_weight and t' = (1 - e) t + e/C, as torch's.

    "mean" divides by sum(w v_y) for label maps and by sum(w) for one-hot and soft labels.
    """
    data.setdefault("ignore_index", -100)
    _require_one_of("mode", mode, ("multiclass",))
    _require(0 <= label_smoothing <= 1, f"label_smoothing must be in [0, 1], got {label_smoothing}")
    d = _prepare(logits, target, mode=mode, **data)
    count = d.t.shape[1]
    v = 1.0 if class_weight is None else _vector("class_weight", class_weight, count, d.t)
    t = d.t * (1 - label_smoothing) + label_smoothing / count
    loss = _nll(v * t, d.log_p, d.log_q).sum(1, keepdim=True)
    return _reduce_pixels(d, loss, (v * d.t).sum(1, keepdim=True) if d.is_map else 1.0)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    alpha: Values | None = None,
    gamma: float = 2.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """a t (1 - p)^g (-log p) + (1 - a) (1 - t) p^g (-log(1 - p)) (no alpha: both factors 1), g = gamma >= 0.

    In multiclass sum_c a_c t_c (1 - p_c)^g (-log p_c). alpha is not in the denominator.
    """
    _require(gamma >= 0, f"gamma must be >= 0, got {gamma}")
    d = _prepare(logits, target, mode=mode, **data)
    a = None if alpha is None else _vector("alpha", alpha, d.t.shape[1], d.t, scalar=mode != "multiclass")
    b = 1.0 if a is None else 1 - a
    loss = _nll(d.t if a is None else a * d.t, d.log_p, d.log_q, gamma)
    if mode == "multiclass":
        return _reduce_pixels(d, loss.sum(1, keepdim=True))
    return _reduce_pixels(d, loss + _nll(b * (1 - d.t), d.log_q, d.log_p, gamma))


def dice_loss(logits: Tensor, target: Tensor, *, mode: str, **options: Unpack[ShapeOptions]) -> Tensor:
    """1 - (2 I + nr) / max(2 I + FP + FN + dr, eps) per row.

    I = sum(w t p), FP = sum(w (1-t) p), FN = sum(w t (1-p)); squared: P = sum(w p^2), T = sum(w t^2), FP = P - I,
    FN = T - I; soft_label: I = sum(w min(p, t)), FP = sum(w max(p-t, 0)), FN = sum(w max(t-p, 0)).
    """
    return _region(logits, target, lambda i, fp, fn, e: (2 * i, e), mode=mode, **options)


def jaccard_loss(logits: Tensor, target: Tensor, *, mode: str, **options: Unpack[ShapeOptions]) -> Tensor:
    """1 - (I + nr) / max(I + FP + FN + dr, eps) per row; the sums are those of `dice_loss`."""
    return _region(logits, target, lambda i, fp, fn, e: (i, e), mode=mode, **options)


def _tversky(alpha: float, beta: float) -> Index:
    _require(min(alpha, beta) >= 0, f"alpha and beta must be >= 0, got {alpha} and {beta}")
    both = min(alpha, beta)  # squared FP and FN cancel, their sum `e` does not
    return lambda i, fp, fn, e: (i, both * e + (alpha - both) * fp + (beta - both) * fn)


def tversky_loss(
    logits: Tensor, target: Tensor, *, mode: str, alpha: float = 0.5, beta: float = 0.5, **options: Unpack[ShapeOptions]
) -> Tensor:
    """1 - TI with TI = (I + nr) / max(I + alpha FP + beta FN + dr, eps) per row; the sums are those of `dice_loss`."""
    return _region(logits, target, _tversky(alpha, beta), mode=mode, **options)


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
    """u^gamma with u = max(0, 1 - TI) per row, TI as in `tversky_loss`; gradient 0 at u = 0."""
    _require(gamma >= 0, f"gamma must be >= 0, got {gamma}")

    def power(loss: Tensor) -> Tensor:
        zero = loss <= 0  # not `loss > 0`: NaN must pass
        return torch.where(zero, 0.0**gamma, torch.where(zero, 1.0, loss) ** gamma)

    return _region(logits, target, _tversky(alpha, beta), mode=mode, shape=power, **options)
