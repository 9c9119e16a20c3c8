"""The losses in plain PyTorch: as people write them (EAGER), and as MONAI and nnU-Net write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1e-5
TVERSKY = {"alpha": 0.3, "beta": 0.7}


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _activated(x: Tensor, t: Tensor, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Probabilities, and a target of 0 and 1 of the same shape. Both are 0 at ignored pixels."""
    valid = None if ignore is None else t != ignore
    if x.shape[1] == 1:
        p, t = x.sigmoid(), t.float()
    else:
        labels = t.long() if valid is None else t.long().where(valid, 0)
        p, t = x.softmax(1), functional.one_hot(labels, x.shape[1]).movedim(-1, 1).to(x.dtype)
        valid = None if valid is None else valid.unsqueeze(1)
    return (p, t) if valid is None else (p * valid, t * valid)


def _mean(values: Tensor, t: Tensor, ignore: int | None) -> Tensor:
    return values.mean() if ignore is None else (values * (t != ignore)).sum() / (t != ignore).sum()


def eager_bce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    if ignore is None:
        return functional.binary_cross_entropy_with_logits(x, t.float())
    return _mean(functional.binary_cross_entropy_with_logits(x, t.float(), reduction="none"), t, ignore)


def eager_ce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return functional.cross_entropy(x, t.long(), ignore_index=-100 if ignore is None else ignore)


def eager_dice(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    p, t = _activated(x, t, ignore)
    axes = _space(p)
    return (1 - (2 * (p * t).sum(axes) + SMOOTH) / (p.sum(axes) + t.sum(axes) + SMOOTH)).mean()


def eager_focal(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    """torchvision's sigmoid_focal_loss with gamma = 2 and no alpha. With several classes it uses the softmax."""
    if x.shape[1] > 1:
        ce = functional.cross_entropy(x, t.long(), reduction="none", ignore_index=-100 if ignore is None else ignore)
        return _mean(ce * (1 - torch.exp(-ce)) ** 2, t, ignore)
    label, p = t.float(), x.sigmoid()
    ce = functional.binary_cross_entropy_with_logits(x, label, reduction="none")
    p_t = p * label + (1 - p) * (1 - label)
    return _mean(ce * (1 - p_t) ** 2, t, ignore)


def eager_tversky(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    p, t = _activated(x, t, ignore)
    axes = _space(p)
    tp, fp, fn = (p * t).sum(axes), (p * (1 - t)).sum(axes), ((1 - p) * t).sum(axes)
    return (1 - (tp + SMOOTH) / (tp + TVERSKY["alpha"] * fp + TVERSKY["beta"] * fn + SMOOTH)).mean()


EAGER: dict[str, Callable[..., Tensor]] = {
    "bce": eager_bce,
    "dice": eager_dice,
    "dice_bce": lambda x, t, ignore=None: eager_dice(x, t, ignore) + eager_bce(x, t, ignore),
    "focal": eager_focal,
    "tversky": eager_tversky,
    "ce": eager_ce,
    "dice_ce": lambda x, t, ignore=None: eager_dice(x, t, ignore) + eager_ce(x, t, ignore),
}

# As MONAI and nnU-Net write them, for machines without these libraries:


def _one_hot(x: Tensor, labels: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=torch.float, device=x.device).scatter_(1, labels.unsqueeze(1).long(), 1)


def monai_dice(x: Tensor, t: Tensor) -> Tensor:
    p, t = (torch.sigmoid(x), t) if x.shape[1] == 1 else (torch.softmax(x, 1), _one_hot(x, t))
    axes = _space(p)
    tp = torch.sum(p * t, dim=axes)
    fp = (torch.sum(p, dim=axes) - tp) * 0.5
    fn = (torch.sum(t, dim=axes) - tp) * 0.5
    return torch.mean(1 - (2 * tp + SMOOTH) / (2 * (tp + fp + fn) + SMOOTH))


def monai_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    label = t if t.is_floating_point() else t.to(x.dtype)
    return monai_dice(x, t) + functional.binary_cross_entropy_with_logits(x, label)


def monai_dice_ce(x: Tensor, t: Tensor) -> Tensor:
    return monai_dice(x, t) + eager_ce(x, t)


def _nnunet_dice(p: Tensor, one_hot: Tensor, mask: Tensor | None) -> Tensor:
    axes = _space(p)
    labelled, scored = (one_hot, p) if mask is None else (one_hot * mask, p * mask)
    sum_gt = labelled.sum(axes, dtype=torch.float32)
    overlap = (p * labelled).sum(axes, dtype=torch.float32)
    sum_pred = scored.sum(axes, dtype=torch.float32)
    return -((2 * overlap + SMOOTH) / (sum_gt + sum_pred + SMOOTH).clamp_min(1e-8)).mean()


def nnunet_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    t = t.float()
    return functional.binary_cross_entropy_with_logits(x, t) + _nnunet_dice(torch.sigmoid(x), t, None)


def nnunet_dice_ce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    """Without the background, as in its trainer."""
    mask = None if ignore is None else (t != ignore).unsqueeze(1)
    with torch.no_grad():
        one_hot = _one_hot(x, t if mask is None else t.where(mask[:, 0], 0))[:, 1:]
    return eager_ce(x, t, ignore) + _nnunet_dice(torch.softmax(x, 1)[:, 1:], one_hot, mask)
