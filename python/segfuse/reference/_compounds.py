"""Compounds with a name in the literature, written from their formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segfuse.reference._data import prepare, reduce, reduce_pixels, require_one_of
from segfuse.reference._pointwise import _nll
from segfuse.reference._region import dice_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segfuse.reference._data import DataOptions

__all__ = [
    "combo_loss",
    "unified_focal_loss",
]


def combo_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float | tuple[float, float] = 1.0,
    **data: Unpack[DataOptions],
) -> Tensor:
    """a mean(b t softplus(-z) + (1 - b) (1 - t) softplus(z)) + (1 - a) Dice loss, a = alpha, b = beta."""
    require_one_of("mode", mode, ("binary", "multilabel"))
    d = prepare(logits, target, mode=mode, **data)
    entropy = _nll(beta * d.t, d.log_p, d.log_q) + _nll((1 - beta) * (1 - d.t), d.log_q, d.log_p)
    return alpha * reduce_pixels(d, entropy) + (1 - alpha) * dice_loss(logits, target, mode=mode, smooth=smooth, **data)


def unified_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    num_classes: int | None = None,
    focal_weight: float = 0.5,
    delta: float = 0.6,
    gamma: float = 0.5,
    asymmetric: bool = True,
    smooth: float = 1e-5,
    **data: Unpack[DataOptions],
) -> Tensor:
    """a focal + (1 - a) focal Tversky with a = focal_weight; :class:`segfuse.UnifiedFocalLoss` has the formulas."""
    d = prepare(logits, target, mode=mode, **data)
    # The classes are one dimension more, background first: the C classes, or the two classes of each channel.
    if mode == "multiclass":
        p, q, log_p, log_q, t = (x.unsqueeze(1) for x in (d.p, d.q, d.log_p, d.log_q, d.t))
    else:
        pairs = ((d.q, d.p), (d.p, d.q), (d.log_q, d.log_p), (d.log_p, d.log_q), (1 - d.t, d.t))
        p, q, log_p, log_q, t = (torch.stack(pair, 2) for pair in pairs)
    w = d.w.unsqueeze(2)
    count = p.shape[2]
    front = (torch.arange(count, device=p.device) > 0).to(p).reshape(-1, 1)
    own = delta * front + (1 - delta) * (1 - front)
    focal = _nll(own * t, log_p, log_q, gamma)
    if asymmetric:
        focal = torch.where(front > 0, _nll(own * t, log_p, log_q), focal)
    pixels = reduce_pixels(d, focal.sum(2))

    hits, fn, fp = ((w * x).sum(-1) for x in (t * p, t * q, (1 - t) * p))
    missed = (delta * fn + (1 - delta) * fp) / (hits + delta * fn + (1 - delta) * fp + smooth)
    shaped = torch.where(missed <= 0, 0.0, torch.where(missed <= 0, 1.0, missed) ** (1 - gamma))
    rows = torch.where(front.squeeze(1) > 0, shaped, missed) if asymmetric else shaped
    rows = torch.where((d.w != 0).any(), rows, 0.0)
    return focal_weight * pixels + (1 - focal_weight) * reduce(rows, torch.ones_like(rows), d.reduction)
