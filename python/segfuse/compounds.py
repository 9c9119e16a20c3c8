"""Named compounds: the sums that everybody writes. Any other is written with ``+`` and ``*``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segfuse._options import DATA_DEFAULTS, Mode, PerClass
from segfuse.algebra import CompoundLoss, Loss, Term
from segfuse.pointwise import BCEWithLogitsLoss, CrossEntropyLoss, FocalLoss
from segfuse.region import DiceLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from segfuse.region import Options


def _data(options: Any) -> Any:
    return {k: v for k, v in options.items() if k in DATA_DEFAULTS}


def _scaled(factor: float, loss: Loss) -> list[Term]:
    return (factor * loss).terms()


class DiceBCELoss(CompoundLoss):
    """dice_weight · Dice loss + bce_weight · BCE, one fused loss.

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        dice_weight, bce_weight: coefficients, numbers or 0-d tensors (default 1).
        pos_weight: of the BCE.
        options: every option of :mod:`segfuse.region`, for the Dice loss; data options for both.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        pos_weight: PerClass | None = None,
        **options: Unpack[Options],
    ) -> None:
        bce = BCEWithLogitsLoss(mode, pos_weight=pos_weight, **_data(options))
        super().__init__([*_scaled(dice_weight, DiceLoss(mode, **options)), *_scaled(bce_weight, bce)])


class DiceCELoss(CompoundLoss):
    """dice_weight · Dice loss + ce_weight · cross-entropy, one fused loss; always multiclass.

    Args:
        dice_weight, ce_weight: coefficients, numbers or 0-d tensors (default 1).
        ce_class_weight: class weights of the cross-entropy; ``class_weight`` weighs the rows of the Dice loss.
        label_smoothing: of the cross-entropy.
        options: every option of :mod:`segfuse.region`, for the Dice loss; data options for both
            (``ignore_index=-100`` unless given).
    """

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        ce_class_weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        ce = CrossEntropyLoss(class_weight=ce_class_weight, label_smoothing=label_smoothing, **_data(options))
        super().__init__([*_scaled(dice_weight, DiceLoss("multiclass", **options)), *_scaled(ce_weight, ce)])


class DiceFocalLoss(CompoundLoss):
    """dice_weight · Dice loss + focal_weight · focal loss, one fused loss.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        dice_weight, focal_weight: coefficients, numbers or 0-d tensors (default 1).
        alpha, gamma: of the focal loss.
        options: every option of :mod:`segfuse.region`, for the Dice loss; data options for both.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        alpha: PerClass | None = None,
        gamma: float = 2.0,
        **options: Unpack[Options],
    ) -> None:
        focal = FocalLoss(mode, alpha=alpha, gamma=gamma, **_data(options))
        super().__init__([*_scaled(dice_weight, DiceLoss(mode, **options)), *_scaled(focal_weight, focal)])
