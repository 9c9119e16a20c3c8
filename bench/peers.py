"""The losses that segfuse is compared with: in plain PyTorch, as people write them, and from six libraries.

If a library can be imported, its own classes run, with their default options where segfuse has such options.
`Peer.options` makes segfuse the same function. If MONAI or nnU-Net cannot be imported, a formula with their conventions
runs instead; `Peer.label` says which of the two it was. `rows` is the table. A loss of a library that is not in the
table is another function; comments there give the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from types import ModuleType
from typing import Any, NamedTuple

import torch
from formulas import EAGER, SMOOTH, TVERSKY, monai_dice, monai_dice_bce, monai_dice_ce, nnunet_dice_bce, nnunet_dice_ce
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """A loss to compare with, or the reason why there is none. segfuse with `options`, plus `offset`, is the same."""

    name: str
    label: str
    loss: Loss | None
    options: dict[str, Any] = field(default_factory=dict)
    offset: float = 0.0


def _channel(x: Tensor, t: Tensor) -> Tensor:
    """A label map of several classes gets a channel dimension."""
    return t if x.shape[1] == 1 else t.unsqueeze(1)


def _typed(x: Tensor, t: Tensor) -> Tensor:
    return t.to(torch.float32 if x.shape[1] == 1 else torch.int64)


class Library(NamedTuple):
    """A package, the module of its losses, and the target that they take. Their loss is that of segfuse plus `offset`.

    `bare`: do not run the package's own __init__, which imports networks and image readers.
    """

    package: str
    module: str
    target: Callable[[Tensor, Tensor], Tensor] = _typed
    bare: bool = False
    offset: float = 0.0

    def load(self) -> ModuleType:
        if self.bare and self.package not in sys.modules:
            spec = importlib.util.find_spec(self.package)
            if spec is None:
                raise ModuleNotFoundError(f"{self.package} is not installed", name=self.package)
            bare = ModuleType(self.package)
            bare.__spec__ = spec
            bare.__path__ = list(spec.submodule_search_locations or ())
            sys.modules[self.package] = bare
        return importlib.import_module(self.module)


LIBRARIES = {
    "torchvision": Library("torchvision", "torchvision.ops"),
    "monai": Library("monai", "monai.losses", _channel),
    # Its Dice loss is from -1 to 0.
    "nnunet": Library("nnunetv2", "nnunetv2.training.loss.compound_losses", _channel, bare=True, offset=-1.0),
    "smp": Library("segmentation_models_pytorch", "segmentation_models_pytorch.losses", bare=True),
    "kornia": Library("kornia", "kornia.losses", bare=True),
    "toolbelt": Library("pytorch_toolbelt", "pytorch_toolbelt.losses"),
}


class Row(NamedTuple):
    """A loss of a library, made from its module (if two, they are added), and the options for segfuse."""

    library: str
    loss: str
    make: Callable[[Any], Any]
    options: dict[str, Any] | None = None
    formula: Loss | None = None  # used if the library cannot be imported
    factor: int = 1
    flat: bool = False  # only for images, not for volumes
    ignores: bool = False  # can leave out ignored pixels


# smp's Dice divides sums that are half as large, so the same floor must be twice as large here. All of these pool the
# batch.
POOLED = {"smooth": 0.0, "eps": 1e-7, "pool_batch": True, "absent": "zero"}
SMP_DICE = POOLED | {"eps": 2e-7}
KORNIA_DICE = {"smooth": (0.0, 1e-8), "pool_classes": True}
# For each sample the mean over its present classes; then the mean over the samples.
KORNIA_TVERSKY = {"smooth": (0.0, 1e-8), "absent": "skip", "reduction": "sample"}


def rows(classes: int, ignore: int | None) -> tuple[Row, ...]:
    """The losses of the libraries for a number of classes."""
    dice = {"smooth": SMOOTH, "ddp": False, "do_bg": classes == 1}  # nnU-Net's trainer leaves out the background
    nnunet: dict[str, Any] = {"smooth": SMOOTH, "eps": 1e-8}
    if classes == 1:
        # Not here: Kornia's Dice and Tversky take the softmax of the one channel, which is always 1.
        return (
            Row("torchvision", "focal", lambda m: partial(m.sigmoid_focal_loss, alpha=-1, reduction="mean")),
            Row("monai", "dice", lambda m: m.DiceLoss(sigmoid=True), formula=monai_dice),
            Row("monai", "dice_bce", lambda m: m.DiceCELoss(sigmoid=True), formula=monai_dice_bce),
            Row("monai", "focal", lambda m: m.FocalLoss()),
            Row("monai", "tversky", lambda m: m.TverskyLoss(sigmoid=True, **TVERSKY)),
            Row("nnunet", "dice", lambda m: m.MemoryEfficientSoftDiceLoss(torch.sigmoid, **dice), nnunet),
            Row("nnunet", "dice_bce", lambda m: m.DC_and_BCE_loss({}, dice), nnunet, nnunet_dice_bce),
            Row("smp", "dice", lambda m: m.DiceLoss("binary"), SMP_DICE),
            Row("smp", "dice_bce", lambda m: (m.DiceLoss("binary"), m.SoftBCEWithLogitsLoss()), SMP_DICE),
            Row("smp", "bce", lambda m: m.SoftBCEWithLogitsLoss()),
            Row("smp", "focal", lambda m: m.FocalLoss("binary")),
            Row("smp", "tversky", lambda m: m.TverskyLoss("binary", **TVERSKY), POOLED),
            Row("kornia", "focal", lambda m: m.BinaryFocalLossWithLogits(alpha=None, reduction="mean")),
            Row("toolbelt", "dice", lambda m: m.DiceLoss("binary"), POOLED),
            Row("toolbelt", "dice_bce", lambda m: (m.DiceLoss("binary"), m.SoftBCEWithLogitsLoss()), POOLED),
            Row("toolbelt", "bce", lambda m: m.SoftBCEWithLogitsLoss()),
            Row("toolbelt", "focal", lambda m: m.BinaryFocalLoss()),
        )
    one_hot = {"softmax": True, "to_onehot_y": True}
    nnunet["classes"] = list(range(1, classes))
    # The focal losses of MONAI and kornia also divide by the number of classes. Not here: smp's focal loss has a
    # sigmoid for each class against the rest, toolbelt's multiplies the BCE of each class. smp's cross-entropy counts
    # ignored pixels in its mean. Kornia has no cross-entropy, so its Dice is added to torch's.
    return (
        Row("monai", "dice", lambda m: m.DiceLoss(**one_hot), formula=monai_dice),
        Row("monai", "dice_ce", lambda m: m.DiceCELoss(**one_hot), formula=monai_dice_ce),
        Row("monai", "focal", lambda m: m.FocalLoss(use_softmax=True, to_onehot_y=True), factor=classes),
        Row("monai", "tversky", lambda m: m.TverskyLoss(**one_hot, **TVERSKY)),
        Row("nnunet", "dice", lambda m: m.MemoryEfficientSoftDiceLoss(m.softmax_helper_dim1, **dice), nnunet),
        Row(
            "nnunet",
            "dice_ce",
            lambda m: m.DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=m.MemoryEfficientSoftDiceLoss),
            nnunet,
            partial(nnunet_dice_ce, ignore=ignore),
            ignores=True,
        ),
        Row("smp", "dice", lambda m: m.DiceLoss("multiclass"), SMP_DICE),
        Row("smp", "dice_ce", lambda m: (m.DiceLoss("multiclass"), m.SoftCrossEntropyLoss(smooth_factor=0)), SMP_DICE),
        Row("smp", "ce", lambda m: m.SoftCrossEntropyLoss(smooth_factor=0)),
        Row("smp", "tversky", lambda m: m.TverskyLoss("multiclass", **TVERSKY), POOLED),
        Row("kornia", "dice", lambda m: m.DiceLoss(), KORNIA_DICE, flat=True),
        Row("kornia", "dice_ce", lambda m: (m.DiceLoss(), torch.nn.CrossEntropyLoss()), KORNIA_DICE, flat=True),
        Row("kornia", "focal", lambda m: m.FocalLoss(alpha=None, reduction="mean"), factor=classes),
        Row("kornia", "tversky", lambda m: m.TverskyLoss(**TVERSKY), KORNIA_TVERSKY, flat=True),
        Row("toolbelt", "dice", lambda m: m.DiceLoss("multiclass"), POOLED),
        Row("toolbelt", "dice_ce", lambda m: (m.DiceLoss("multiclass"), m.SoftCrossEntropyLoss()), POOLED),
        Row("toolbelt", "ce", lambda m: m.SoftCrossEntropyLoss()),
    )


def _loss(row: Row, library: Library) -> tuple[str, Loss]:
    """Name and loss of a row."""
    made = row.make(library.load())
    parts = made if isinstance(made, tuple) else (made,)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        t = library.target(x, t)
        value = parts[0](x, t)
        for part in parts[1:]:
            value = value + part(x, t)
        return value if row.factor == 1 else value * row.factor

    return " + ".join(getattr(part, "func", type(part)).__name__ for part in parts), loss


def _peer(row: Row, packages: bool) -> Peer:
    """The loss of the library, or a formula in its place, or the reason why there is none."""
    library = LIBRARIES[row.library]
    why = ""
    if packages:
        try:
            name, loss = _loss(row, library)
            label = f"{name} of {library.package} {version(library.package)}"
            return Peer(row.library, label, loss, row.options or {}, library.offset)
        except Exception as error:  # a package that cannot be imported counts as absent
            absent = importlib.util.find_spec(library.package) is None
            why = f"{library.package} " + ("is not installed" if absent else f"does not import: {error}")
    if row.formula is None:
        return Peer(row.library, why, None)
    label = f"formula of {row.library}'s {row.loss}" + f" ({why})" * packages
    return Peer(row.library, label, row.formula, row.options or {}, library.offset)


def versions() -> dict[str, str]:
    """Versions of the installed libraries."""
    packages = [library.package for library in LIBRARIES.values()]
    return {package: version(package) for package in packages if importlib.util.find_spec(package)}


@cache
def _compiled(loss: Loss) -> Loss:
    return torch.compile(loss, dynamic=False)


def peers_of(loss: str, classes: int, space: int, ignore: int | None = None, packages: bool = True) -> list[Peer]:
    """The peers with this loss, which can leave out ignored pixels if `ignore` is given. The slowest to start is last.

    Without `packages`, formulas take the place of the libraries.
    """
    eager = partial(EAGER[loss], ignore=ignore)
    label = "plain PyTorch"
    if loss == "focal" and classes == 1:
        label += ", the formula of torchvision's sigmoid_focal_loss"
    having = [
        row
        for row in rows(classes, ignore)
        if row.loss == loss and (space == 2 or not row.flat) and (ignore is None or row.ignores)
    ]
    return [
        Peer("eager", label, eager),
        *(_peer(row, packages) for row in having if packages or row.formula),
        # Compiled at the first call, because importing torch.compile takes seconds.
        Peer("compile", "torch.compile of plain PyTorch", lambda x, t: _compiled(eager)(x, t)),
    ]
