"""What segfuse is measured against: the same losses in plain PyTorch, as people write them and as five libraries do.

Where a library can be imported its own classes run, with their default options where these have a counterpart here, and
`Peer.options` makes segfuse the same function. Of MONAI and nnU-Net a formula that keeps their conventions runs where
they cannot be imported; `Peer.label` says which of the two it was. What a library has and is not the same function is
left out, in `PACKAGES` with its reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
SMOOTH = 1e-5
TVERSKY = {"alpha": 0.3, "beta": 0.7}


@dataclass(frozen=True)
class Peer:
    """A loss to compare with, or why there is none. segfuse with `options` is the same function, up to `offset`."""

    name: str
    label: str
    loss: Loss | None
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


def _activated(x: Tensor, t: Tensor, ignore: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Probabilities, a target of 0 and 1 of the same shape, and what is not ignored."""
    if x.shape[1] == 1:
        return (x.sigmoid(), *_binary(t, ignore))
    labels = t.long()
    mask = None if ignore is None else (labels != ignore).unsqueeze(1)
    if ignore is not None:
        labels = labels.where(labels != ignore, 0)
    return x.softmax(1), functional.one_hot(labels, x.shape[1]).movedim(-1, 1).to(x.dtype), mask


def eager_bce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    t, mask = _binary(t, ignore)
    if mask is None:
        return functional.binary_cross_entropy_with_logits(x, t)
    return _mean(functional.binary_cross_entropy_with_logits(x, t, reduction="none"), mask)


def eager_ce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return functional.cross_entropy(x, t.long(), ignore_index=-100 if ignore is None else ignore)


def eager_dice(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return _dice(*_activated(x, t, ignore))


def eager_dice_bce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return eager_dice(x, t, ignore) + eager_bce(x, t, ignore)


def eager_dice_ce(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    return eager_dice(x, t, ignore) + eager_ce(x, t, ignore)


def eager_focal(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    """torchvision's sigmoid_focal_loss, with gamma = 2 and without alpha; of several classes, of the softmax."""
    if x.shape[1] == 1:
        t, mask = _binary(t, ignore)
        p = x.sigmoid()
        ce = functional.binary_cross_entropy_with_logits(x, t, reduction="none")
        p_t = p * t + (1 - p) * (1 - t)
        return _mean(ce * (1 - p_t) ** 2, mask)
    ce = functional.cross_entropy(x, t.long(), reduction="none", ignore_index=-100 if ignore is None else ignore)
    return _mean(ce * (1 - torch.exp(-ce)) ** 2, None if ignore is None else t != ignore)


def eager_tversky(x: Tensor, t: Tensor, ignore: int | None = None) -> Tensor:
    p, t, mask = _activated(x, t, ignore)
    if mask is not None:
        p, t = p * mask, t * mask
    axes = _space(p)
    tp, fp, fn = (p * t).sum(axes), (p * (1 - t)).sum(axes), ((1 - p) * t).sum(axes)
    return (1 - (tp + SMOOTH) / (tp + TVERSKY["alpha"] * fp + TVERSKY["beta"] * fn + SMOOTH)).mean()


EAGER: dict[str, Callable[..., Tensor]] = {
    "bce": eager_bce,
    "dice": eager_dice,
    "dice_bce": eager_dice_bce,
    "focal": eager_focal,
    "tversky": eager_tversky,
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


def _one_hot(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=torch.float, device=x.device).scatter_(1, t.unsqueeze(1).long(), 1)


def monai_dice(x: Tensor, t: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return _monai_overlap(torch.sigmoid(x), t)
    return _monai_overlap(torch.softmax(x, 1), _one_hot(x, t))


def monai_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    label = t if t.is_floating_point() else t.to(x.dtype)
    return monai_dice(x, t) + functional.binary_cross_entropy_with_logits(x, label)


def monai_dice_ce(x: Tensor, t: Tensor) -> Tensor:
    return monai_dice(x, t) + functional.cross_entropy(x, t.long())


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


# ------------------------------------------------------------------------------------------------------------ packages


def _module(package: str, name: str) -> ModuleType:
    """A module of a package, without the package's own __init__, which imports networks and readers of images."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"{package} is not installed", name=package)
        bare = ModuleType(package)
        bare.__spec__ = spec
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = bare
    return importlib.import_module(name)


def _labels_channel(loss: Loss) -> Loss:
    """For losses that want the labels of several classes as one channel."""
    return lambda x, t: loss(x, t if x.shape[1] == 1 else t.unsqueeze(1))


def monai(loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    """The focal loss of several classes is a mean over them as well: times their number it is ours."""
    if ignore is not None or loss in ("bce", "ce"):
        return None
    losses = importlib.import_module("monai.losses")
    options: dict[str, Any] = {"sigmoid": True} if classes == 1 else {"softmax": True, "to_onehot_y": True}
    factor = 1
    if loss == "focal":
        options = {} if classes == 1 else {"use_softmax": True, "to_onehot_y": True}
        factor = classes
    elif loss == "tversky":
        options |= TVERSKY
    name = {"dice": "DiceLoss", "focal": "FocalLoss", "tversky": "TverskyLoss"}.get(loss, "DiceCELoss")
    call = _labels_channel(getattr(losses, name)(**options))
    return Peer("monai", name, call if factor == 1 else lambda x, t: call(x, t) * factor)


def nnunet(loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    """Dice of -1 to 0; of several classes without the background, as its trainer asks for."""
    if loss not in ("dice", "dice_bce", "dice_ce") or (ignore is not None and loss != "dice_ce"):
        return None
    compound = _module("nnunetv2", "nnunetv2.training.loss.compound_losses")
    dice = compound.MemoryEfficientSoftDiceLoss
    options = {"batch_dice": False, "smooth": SMOOTH, "ddp": False, "do_bg": classes == 1}
    matched: dict[str, Any] = {"smooth": SMOOTH, "eps": 1e-8}
    if classes > 1:
        matched["classes"] = list(range(1, classes))
    if loss == "dice":
        activation = torch.sigmoid if classes == 1 else compound.softmax_helper_dim1
        return Peer("nnunet", dice.__name__, dice(apply_nonlin=activation, **options), matched, -1.0)
    if loss == "dice_bce":
        module = compound.DC_and_BCE_loss({}, options, dice_class=dice)
    else:
        module = compound.DC_and_CE_loss(options, {}, ignore_label=ignore, dice_class=dice)
    return Peer("nnunet", type(module).__name__, _labels_channel(module), matched, -1.0)


def smp(loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    """Dice and Tversky pool the batch, and a class without a labelled pixel counts 0; float and int64 targets only.

    Not the focal loss of several classes, which is a sigmoid of one against the rest; nor ignored pixels, which stay in
    the mean of its cross-entropies.
    """
    if ignore is not None or (loss == "focal" and classes > 1):
        return None
    losses = _module("segmentation_models_pytorch", "segmentation_models_pytorch.losses")
    mode = "binary" if classes == 1 else "multiclass"
    # Its Dice is a ratio of half the sums: the same floor is twice as large here.
    matched = {"smooth": 0.0, "eps": 1e-7 if loss == "tversky" else 2e-7, "pool_batch": True, "absent": "zero"}
    parts = {
        "dice": lambda: losses.DiceLoss(mode),
        "tversky": lambda: losses.TverskyLoss(mode, **TVERSKY),
        "focal": lambda: losses.FocalLoss(mode),
        "bce": losses.SoftBCEWithLogitsLoss,
        "ce": lambda: losses.SoftCrossEntropyLoss(smooth_factor=0.0),
    }
    return _sum_of("smp", loss, parts, matched, torch.float32 if classes == 1 else torch.int64)


def toolbelt(loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    """The older formulas of smp. Its focal loss of several classes multiplies the BCE of each: not the same."""
    if ignore is not None or loss == "tversky" or (loss == "focal" and classes > 1):
        return None
    losses = importlib.import_module("pytorch_toolbelt.losses")
    matched = {"smooth": 0.0, "eps": 1e-7, "pool_batch": True, "absent": "zero"}
    parts = {
        "dice": lambda: losses.DiceLoss("binary" if classes == 1 else "multiclass"),
        "focal": losses.BinaryFocalLoss,
        "bce": losses.SoftBCEWithLogitsLoss,
        "ce": losses.SoftCrossEntropyLoss,
    }
    return _sum_of("toolbelt", loss, parts, matched, torch.float32 if classes == 1 else torch.int64)


def kornia(loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    """Dice pools the classes of a sample, Tversky is a mean over the samples of a mean over their present classes.

    Both take the softmax of a single channel, which is 1: not for binary targets. Both want two dimensions. It has no
    cross-entropy: torch's beside its Dice. The focal loss of several classes is a mean over them as well.
    """
    one = classes == 1
    if ignore is not None or loss in ("bce", "ce", "dice_bce") or (loss != "focal" and (one or space != 2)):
        return None
    losses = _module("kornia", "kornia.losses")
    if loss == "focal":
        if one:
            binary = losses.BinaryFocalLossWithLogits(alpha=None, reduction="mean")
            return Peer("kornia", "BinaryFocalLossWithLogits", binary)
        focal = losses.FocalLoss(alpha=None, reduction="mean")
        return Peer("kornia", "FocalLoss", lambda x, t: focal(x, t.long()) * classes)
    if loss == "tversky":
        tversky = losses.TverskyLoss(**TVERSKY)
        matched = {"smooth": (0.0, 1e-8), "absent": "skip", "reduction": "sample"}
        return Peer("kornia", "TverskyLoss", lambda x, t: tversky(x, t.long()), matched)
    parts = {"dice": losses.DiceLoss, "ce": torch.nn.CrossEntropyLoss}
    return _sum_of("kornia", loss, parts, {"smooth": (0.0, 1e-8), "pool_classes": True}, torch.int64)


def torchvision(loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    if ignore is not None or loss != "focal" or classes > 1:
        return None
    focal = importlib.import_module("torchvision.ops").sigmoid_focal_loss
    return Peer("torchvision", "sigmoid_focal_loss", lambda x, t: focal(x, t.float(), alpha=-1, reduction="mean"))


def _sum_of(
    name: str, loss: str, parts: dict[str, Callable[[], Loss]], matched: dict[str, Any], dtype: torch.dtype
) -> Peer:
    """A loss of a library, or the sum of the two that people add where it has no compound; both take one dtype."""
    made = [parts[part]() for part in loss.split("_")]
    label = " + ".join(type(part).__name__ for part in made)
    options = matched if loss.startswith(("dice", "tversky")) else {}
    if len(made) == 1:
        return Peer(name, label, lambda x, t: made[0](x, t.to(dtype)), options)

    def total(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(dtype)
        return made[0](x, t) + made[1](x, t)

    return Peer(name, label, total, options)


PACKAGES: dict[str, tuple[str, Callable[[str, int, int, int | None], Peer | None]]] = {
    "torchvision": ("torchvision", torchvision),
    "monai": ("monai", monai),
    "nnunet": ("nnunetv2", nnunet),
    "smp": ("segmentation_models_pytorch", smp),
    "kornia": ("kornia", kornia),
    "toolbelt": ("pytorch_toolbelt", toolbelt),
}


# ------------------------------------------------------------------------------------------------------------ the peers


def _formula(name: str, loss: str, classes: int, ignore: int | None) -> Peer | None:
    """What stands in for a library that cannot be imported."""
    if ignore is not None and (name, loss) != ("nnunet", "dice_ce"):
        return None
    if name == "monai":
        formulas = {"dice": monai_dice, "dice_bce": monai_dice_bce, "dice_ce": monai_dice_ce}
        if classes == 1:
            formulas["focal"] = monai_focal
        if loss in formulas:
            return Peer(name, f"formula of MONAI's {loss}", formulas[loss])
    if name == "nnunet" and loss == "dice_bce":
        return Peer(name, "formula of nnU-Net's DC_and_BCE_loss", nnunet_dice_bce, {"eps": 1e-8}, -1.0)
    if name == "nnunet" and loss == "dice_ce":
        options = {"eps": 1e-8, "classes": list(range(1, classes))}
        label = "formula of nnU-Net's DC_and_CE_loss"
        return Peer(name, label, lambda x, t: nnunet_dice_ce(x, t, ignore), options, -1.0)
    return None


def _library(name: str, loss: str, classes: int, space: int, ignore: int | None) -> Peer | None:
    package, make = PACKAGES[name]
    try:
        peer = make(loss, classes, space, ignore)
        return peer and replace(peer, label=f"{peer.label} of {package} {version(package)}")
    except Exception as error:  # a package that is there and does not import is as good as absent
        absent = importlib.util.find_spec(package) is None
        reason = f"{package} is not installed" if absent else f"{package} does not import: {error}"
    formula = _formula(name, loss, classes, ignore)
    return Peer(name, reason, None) if formula is None else replace(formula, label=f"{formula.label} ({reason})")


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    packages = [package for package, _ in PACKAGES.values()]
    return {package: version(package) for package in packages if importlib.util.find_spec(package)}


def _compiled(loss: Loss) -> Loss:
    """torch.compile, which alone takes seconds to import, at the first call."""
    made: list[Loss] = []

    def run(x: Tensor, t: Tensor) -> Tensor:
        if not made:
            made.append(torch.compile(loss, dynamic=False))
        return made[0](x, t)

    return run


def peers_of(loss: str, classes: int, space: int, ignore: int | None = None, packages: bool = True) -> list[Peer]:
    """The peers that have this loss (with ignored pixels: that can leave them out), the slowest to start last.

    Without `packages`, no library but the formulas that stand in for them.
    """
    formula = EAGER[loss]

    def eager(x: Tensor, t: Tensor) -> Tensor:
        return formula(x, t, ignore)

    label = "plain PyTorch"
    if loss == "focal" and classes == 1:
        label += ", the formula of torchvision's sigmoid_focal_loss"
    found = [Peer("eager", label, eager)]
    if packages:
        found += filter(None, (_library(name, loss, classes, space, ignore) for name in PACKAGES))
    else:
        found += filter(None, (_formula(name, loss, classes, ignore) for name in PACKAGES))
    found.append(Peer("compile", "torch.compile of plain PyTorch", _compiled(eager)))
    return found
