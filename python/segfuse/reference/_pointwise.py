"""Pointwise losses. Each has its formula between `prepare` and `reduce_pixels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segfuse.reference._data import Data, Values, prepare, ratio, reduce_pixels, require, require_one_of, vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from segfuse.reference._data import DataOptions

__all__ = [
    "bce_with_logits_loss",
    "broken_loss",
    "cross_entropy_loss",
    "focal_loss",
    "hinge_loss",
    "huber_loss",
    "kl_div_loss",
    "l1_loss",
    "mse_loss",
    "polynomial_loss",
    "sigmoid_free_loss",
]


def _nll(coefficient: Tensor, log_p: Tensor, log_q: Tensor, gamma: float = 0.0) -> Tensor:
    """coefficient * (1 - p)^gamma * (-log p). Where the coefficient is 0 the value and the gradient are 0."""
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

    b = pos_weight and c = 1. With `balanced` b = 1 - sum(w t) / sum(w) of the sample and channel, and c = 1 - b.
    """
    require_one_of("mode", mode, ("binary", "multilabel"))
    require(0 <= label_smoothing <= 1, f"label_smoothing must be in [0, 1], got {label_smoothing}")
    require(not balanced or pos_weight is None, "balanced and pos_weight exclude each other")
    d = prepare(logits, target, mode=mode, **data)
    t = d.t * (1 - label_smoothing) + label_smoothing / 2
    b: Tensor | float = 1.0
    c: Tensor | float = 1.0
    if pos_weight is not None:
        b = vector("pos_weight", pos_weight, t.shape[1], t, scalar=True)
    if balanced:
        c = ratio((d.w * d.t).sum(2, keepdim=True), d.w.sum(2, keepdim=True))
        b = 1 - c
    return reduce_pixels(d, _nll(b * t, d.log_p, d.log_q) + _nll(c * (1 - t), d.log_q, d.log_p))


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str = "multiclass",
    class_weight: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """sum_c v_c t'_c (-log p_c) with v = class_weight and t' = (1 - e) t + e/C, as in torch.

    "mean" divides by sum(w v_y) for label maps and by sum(w) for one-hot and soft labels.
    """
    data.setdefault("ignore_index", -100)
    require_one_of("mode", mode, ("multiclass",))
    require(0 <= label_smoothing <= 1, f"label_smoothing must be in [0, 1], got {label_smoothing}")
    d = prepare(logits, target, mode=mode, **data)
    count = d.t.shape[1]
    v = 1.0 if class_weight is None else vector("class_weight", class_weight, count, d.t)
    t = d.t * (1 - label_smoothing) + label_smoothing / count
    loss = _nll(v * t, d.log_p, d.log_q).sum(1, keepdim=True)
    return reduce_pixels(d, loss, (v * d.t).sum(1, keepdim=True) if d.is_map else 1.0)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    alpha: Values | None = None,
    gamma: float = 2.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """a t (1 - p)^g (-log p) + (1 - a) (1 - t) p^g (-log(1 - p)) with a = alpha, g = gamma >= 0.

    Without alpha the factors a and 1 - a are 1. In multiclass: sum_c a_c t_c (1 - p_c)^g (-log p_c). alpha is not in
    the denominator.
    """
    require(gamma >= 0, f"gamma must be >= 0, got {gamma}")
    d = prepare(logits, target, mode=mode, **data)
    a = None if alpha is None else vector("alpha", alpha, d.t.shape[1], d.t, scalar=mode != "multiclass")
    b = 1.0 if a is None else 1 - a
    loss = _nll(d.t if a is None else a * d.t, d.log_p, d.log_q, gamma)
    if mode == "multiclass":
        return reduce_pixels(d, loss.sum(1, keepdim=True))
    return reduce_pixels(d, loss + _nll(b * (1 - d.t), d.log_q, d.log_p, gamma))


def _masked(coefficient: Tensor, loss: Tensor) -> Tensor:
    """coefficient * loss. Where the coefficient is 0 the value and the gradient are 0."""
    used = coefficient != 0
    return coefficient * torch.where(used, loss, 0.0)


def _gap(d: Data) -> Tensor:
    """p - t. Where t is 1 it is -q, which keeps its digits near p = 1."""
    return torch.where(d.t == 1, -d.q, d.p - d.t)


def polynomial_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    exponents: Sequence[int] = (2, 4),
    asymmetry: float = 1.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """c t sum_k (1 - p)^k + (1 - t) sum_k p^k with c = asymmetry; binary and multilabel."""
    require_one_of("mode", mode, ("binary", "multilabel"))
    d = prepare(logits, target, mode=mode, **data)
    powers = [(d.q**k, d.p**k) for k in exponents]
    positive, negative = (torch.stack(parts).sum(0) for parts in zip(*powers, strict=True))
    return reduce_pixels(d, asymmetry * d.t * positive + (1 - d.t) * negative)


def sigmoid_free_loss(
    logits: Tensor, target: Tensor, *, mode: str, asymmetry: float = 1.0, **data: Unpack[DataOptions]
) -> Tensor:
    """c (1 + s) l(z) + (1 - s) l(-z) with s = 2 t - 1; l(r) = max(-r, 0) / 2 + clamp(1/2 - r, 0, 1/2)^4."""
    require_one_of("mode", mode, ("binary", "multilabel"))
    require(data.get("from_logits", True), "a loss without a sigmoid wants logits")
    d = prepare(logits, target, mode=mode, **data)

    def part(r: Tensor) -> Tensor:
        # In pieces, because at a tie of two clamps autograd gives twice the slope.
        middle = (0.5 - torch.where((r >= 0) & (r < 0.5), r, 0.5)) ** 4
        return torch.where(r < 0, 0.0625 - r / 2, middle + torch.where(r.isnan(), r, 0.0))

    s = 2 * d.t - 1
    return reduce_pixels(d, _masked(asymmetry * (1 + s), part(d.z)) + _masked(1 - s, part(-d.z)))


def broken_loss(
    logits: Tensor, target: Tensor, *, mode: str, asymmetry: float = 1.0, **data: Unpack[DataOptions]
) -> Tensor:
    """c (1 - t) l(p) + t l(1 - p); l(y) = y^4 for y <= 1/2, y - 7/16 above."""
    require_one_of("mode", mode, ("binary", "multilabel"))
    d = prepare(logits, target, mode=mode, **data)

    def part(y: Tensor) -> Tensor:
        return torch.where(y <= 0.5, y**4, y - 7 / 16)

    return reduce_pixels(d, asymmetry * (1 - d.t) * part(d.p) + d.t * part(d.q))


def hinge_loss(logits: Tensor, target: Tensor, *, mode: str, **data: Unpack[DataOptions]) -> Tensor:
    """max(0, 1 - s z) with s = 2 t - 1. At the kink the slope is 0."""
    require_one_of("mode", mode, ("binary", "multilabel"))
    require(data.get("from_logits", True), "the hinge loss wants logits")
    d = prepare(logits, target, mode=mode, **data)
    margin = 1 - _masked(2 * d.t - 1, d.z)
    return reduce_pixels(d, torch.where(margin <= 0, 0.0, margin))


def mse_loss(logits: Tensor, target: Tensor, *, mode: str, **data: Unpack[DataOptions]) -> Tensor:
    """(p - t)^2; in multiclass each class of a pixel is an element."""
    d = prepare(logits, target, mode=mode, **data)
    return reduce_pixels(d, _gap(d) ** 2)


def l1_loss(logits: Tensor, target: Tensor, *, mode: str, **data: Unpack[DataOptions]) -> Tensor:
    """|p - t|; in multiclass each class of a pixel is an element. At p = t the slope is 0."""
    d = prepare(logits, target, mode=mode, **data)
    return reduce_pixels(d, _gap(d).abs())


def huber_loss(logits: Tensor, target: Tensor, *, mode: str, delta: float = 1.0, **data: Unpack[DataOptions]) -> Tensor:
    """e^2 / 2 where |e| = |p - t| <= delta, else delta (|e| - delta / 2); elements as in `mse_loss`."""
    require(delta > 0, f"delta must be > 0, got {delta}")
    d = prepare(logits, target, mode=mode, **data)
    e = _gap(d).abs()
    return reduce_pixels(d, torch.where(e > delta, delta * (e - delta / 2), e**2 / 2))


def kl_div_loss(logits: Tensor, target: Tensor, *, mode: str, **data: Unpack[DataOptions]) -> Tensor:
    """KL(t, p) = t log(t / p) + (1 - t) log((1 - t) / (1 - p)), in multiclass sum_c t_c log(t_c / p_c); 0 log 0 = 0."""
    d = prepare(logits, target, mode=mode, **data)
    t = d.t.clamp(0, 1)  # an interpolated label may be outside by a rounding error
    loss = _nll(t, d.log_p, d.log_q) + torch.special.xlogy(t, t)
    if mode == "multiclass":
        return reduce_pixels(d, loss.sum(1, keepdim=True))
    u = 1 - t
    return reduce_pixels(d, loss + _nll(u, d.log_q, d.log_p) + torch.special.xlogy(u, u))
