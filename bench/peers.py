"""What segfuse is measured against: the same losses in plain PyTorch, as people write them and as two libraries do.

A formula keeps the conventions of the code that it stands for. Where MONAI or nnU-Net can be imported, their own class
runs instead; `Peer.label` says which of the two it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
SMOOTH = 1e-5


@dataclass(frozen=True)
class Peer:
    """A loss to compare with. segfuse with `options` is the same function, up to the constant `offset`."""

    name: str
    label: str
    loss: Loss
    options: dict[str, Any] = field(default_factory=dict)
    offset: float = 0.0


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


# ------------------------------------------------------------------------------------------------- as people write them


def _dice(p: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        p, t = p * mask, t * mask
    axes = _space(p)
    overlap = (p * t).sum(axes)
    return (1 - (2 * overlap + SMOOTH) / (p.sum(axes) + t.sum(axes) + SMOOTH)).mean()


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else (values * mask).sum() / mask.sum()


def _binary(t: Tensor, ignore: int | None) -> tuple[Tensor, Tensor | None]:
    mask = None if ignore is None else t != ignore
    t = t.float()
    return (t if mask is None else t * mask), mask


def eager_bce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    t, mask = _binary(t, ignore)
    if mask is None:
        return functional.binary_cross_entropy_with_logits(x, t)
    return _mean(functional.binary_cross_entropy_with_logits(x, t, reduction="none"), mask)


def eager_dice(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    t, mask = _binary(t, ignore)
    return _dice(x.sigmoid(), t, mask)


def eager_dice_bce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return eager_dice(x, t, ignore) + eager_bce(x, t, ignore)


def eager_focal(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    """torchvision's sigmoid_focal_loss, with gamma = 2 and without alpha."""
    t, mask = _binary(t, ignore)
    p = x.sigmoid()
    ce = functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    return _mean(ce * (1 - p_t) ** 2, mask)


def eager_ce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return functional.cross_entropy(x, t.long(), ignore_index=-100 if ignore is None else ignore)


def eager_dice_ce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    labels = t.long()
    mask = None if ignore is None else (labels != ignore).unsqueeze(1)
    if ignore is not None:
        labels = labels.where(labels != ignore, 0)
    one_hot = functional.one_hot(labels, x.shape[1]).movedim(-1, 1).to(x.dtype)
    return _dice(x.softmax(1), one_hot, mask) + eager_ce(x, t, ignore)


EAGER: dict[str, Callable[..., Tensor]] = {
    "bce": eager_bce,
    "dice": eager_dice,
    "dice_bce": eager_dice_bce,
    "focal": eager_focal,
    "ce": eager_ce,
    "dice_ce": eager_dice_ce,
}

# -------------------------------------------------------------------------------------------------------- as MONAI does


def _monai_overlap(p: Tensor, t: Tensor) -> Tensor:
    axes = _space(p)
    tp = torch.sum(p * t, dim=axes)
    fp = (torch.sum(p, dim=axes) - tp) * 0.5
    fn = (torch.sum(t, dim=axes) - tp) * 0.5
    return torch.mean(1 - (2 * tp + SMOOTH) / (2 * (tp + fp + fn) + SMOOTH))


def monai_dice(x: Tensor, t: Tensor) -> Tensor:
    return _monai_overlap(torch.sigmoid(x), t)


def monai_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    label = t if t.is_floating_point() else t.to(x.dtype)
    return _monai_overlap(torch.sigmoid(x), t) + functional.binary_cross_entropy_with_logits(x, label)


def monai_dice_ce(x: Tensor, t: Tensor) -> Tensor:
    p = torch.softmax(x, 1)
    one_hot = torch.zeros(x.shape, dtype=torch.float, device=x.device).scatter_(1, t.unsqueeze(1).long(), 1)
    return _monai_overlap(p, one_hot) + functional.cross_entropy(x, t.long())


def monai_focal(x: Tensor, t: Tensor) -> Tensor:
    x, t = x.float(), t.float()
    bce = x - x * t - functional.logsigmoid(x)
    return ((functional.logsigmoid(-x * (t * 2 - 1)) * 2.0).exp() * bce).mean()


# ------------------------------------------------------------------------------------------------------ as nnU-Net does


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
    """Without the background, as its trainer asks for."""
    mask = None if ignore is None else (t != ignore).unsqueeze(1)
    with torch.no_grad():
        labels = t.unsqueeze(1).long()
        if mask is not None:
            labels = torch.where(mask, labels, 0)
        one_hot = torch.zeros(x.shape, dtype=torch.float32, device=x.device).scatter_(1, labels, 1)[:, 1:]
    ce = functional.cross_entropy(x, t.long(), ignore_index=-100 if ignore is None else ignore)
    return ce + _nnunet_dice(torch.softmax(x, 1)[:, 1:], one_hot, mask)


# ------------------------------------------------------------------------------------------------------------ the peers


def _monai_package(loss: str) -> Peer:
    monai = importlib.import_module("monai")
    losses = importlib.import_module("monai.losses")
    name, options = {
        "dice": ("DiceLoss", {"sigmoid": True}),
        "dice_bce": ("DiceCELoss", {"sigmoid": True}),
        "focal": ("FocalLoss", {}),
        "dice_ce": ("DiceCELoss", {"softmax": True, "to_onehot_y": True}),
    }[loss]
    module = getattr(losses, name)(**options)
    call = (lambda x, t: module(x, t.unsqueeze(1))) if loss == "dice_ce" else module
    return Peer("monai", f"{name} of monai {monai.__version__}", call)


def _nnunet_package(loss: str, ignore: int | None) -> Loss:
    compound = importlib.import_module("nnunetv2.training.loss.compound_losses")
    dice = importlib.import_module("nnunetv2.training.loss.dice").MemoryEfficientSoftDiceLoss
    options = {"batch_dice": False, "smooth": SMOOTH, "ddp": False}
    if loss == "dice_bce":
        module = compound.DC_and_BCE_loss({}, {**options, "do_bg": True}, dice_class=dice)
        return lambda x, t: module(x, t)
    module = compound.DC_and_CE_loss({**options, "do_bg": False}, {}, ignore_label=ignore, dice_class=dice)
    return lambda x, t: module(x, t.unsqueeze(1))


def _monai(loss: str, packages: bool) -> Peer:
    try:
        if packages:
            return _monai_package(loss)
    except Exception:  # a package that is there and does not import is as good as absent
        pass
    formula = {"dice": monai_dice, "dice_bce": monai_dice_bce, "focal": monai_focal, "dice_ce": monai_dice_ce}[loss]
    name = {"dice": "DiceLoss", "focal": "FocalLoss"}.get(loss, "DiceCELoss")
    return Peer("monai", f"formula of MONAI {name}", formula)


def _nnunet(loss: str, classes: int, ignore: int | None, packages: bool) -> Peer:
    options: dict[str, Any] = {"smooth": SMOOTH, "eps": 1e-8}
    name = "DC_and_BCE_loss"
    if loss == "dice_ce":
        options["classes"] = list(range(1, classes))
        name = "DC_and_CE_loss"
    try:
        if packages:
            return Peer("nnunet", f"{name} of nnunetv2", _nnunet_package(loss, ignore), options, -1.0)
    except Exception:
        pass
    formula = nnunet_dice_bce if loss == "dice_bce" else lambda x, t: nnunet_dice_ce(x, t, ignore)
    return Peer("nnunet", f"formula of nnU-Net {name}", formula, options, -1.0)


def _compiled(loss: Loss) -> Loss:
    """torch.compile, which alone takes seconds to import, at the first call."""
    made: list[Loss] = []

    def run(x: Tensor, t: Tensor) -> Tensor:
        if not made:
            made.append(torch.compile(loss, dynamic=False))
        return made[0](x, t)

    return run


def peers_of(loss: str, classes: int, ignore: int | None = None, packages: bool = True) -> list[Peer]:
    """The peers that have this loss (with ignored pixels: that can leave them out), the slowest to start last."""
    formula = EAGER[loss]

    def eager(x: Tensor, t: Tensor) -> Tensor:
        return formula(x, t, ignore)

    found = [Peer("eager", "plain PyTorch", eager)]
    if ignore is None and loss in ("dice", "dice_bce", "focal", "dice_ce"):
        found.append(_monai(loss, packages))
    if loss == "dice_ce" or (loss == "dice_bce" and ignore is None):
        found.append(_nnunet(loss, classes, ignore, packages))
    found.append(Peer("compile", "torch.compile of plain PyTorch", _compiled(eager)))
    return found
