"""Region losses: a function of the sums over a row. By default there is one row per sample and class.

With labels t, probabilities p and weights w, over the valid pixels of a row:
    I = Σ w t p,   FP = Σ w (1 - t) p,   FN = Σ w t (1 - p).

If the ratio of a row is 0/0, its score is 1. If no pixel of the call is valid, the loss is 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.functions import cached, function_of
from segfuse._core.options import (
    GeneralizedDiceOptions,
    Mode,
    RegionOptions,
    ShapedOptions,
    check_bool,
    check_choice,
    check_number,
)
from segfuse._core.spec import RegionTerm
from segfuse.adaptive import AdaptiveLogLoss, adaptive_log_loss
from segfuse.single import RegionLoss
from segfuse.tversky import (
    BackgroundTverskyLoss,
    FocalTverskyLoss,
    TverskyLoss,
    background_tversky_loss,
    focal_tversky_loss,
    tversky_loss,
)

__all__ = [
    "AdaptiveLogLoss",
    "BackgroundTverskyLoss",
    "DiceLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "JaccardLoss",
    "SensitivitySpecificityLoss",
    "TverskyLoss",
    "adaptive_log_loss",
    "background_tversky_loss",
    "dice_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "jaccard_loss",
    "sensitivity_specificity_loss",
    "tversky_loss",
]


class DiceLoss(RegionLoss):
    """Dice loss (Milletari et al. 2016). A row has 1 - (2 I + nr) / (2 I + FP + FN + dr), with smooth = (nr, dr).

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.DiceLoss("multiclass", smooth=1.0)(logits, target)
    tensor(0.3750)
    >>> segfuse.dice_loss(logits, target, mode="multiclass", smooth=1.0)
    tensor(0.3750)
    """

    name = "dice_loss"

    def __init__(self, mode: Mode, **options: Unpack[RegionOptions]) -> None:
        super().__init__(mode, {}, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(RegionLoss.lower(options, mode), kind="dice")


@function_of(DiceLoss)
def dice_loss(
    logits: Tensor, target: Tensor, *, mode: Mode, weight: Tensor | None = None, **options: Unpack[RegionOptions]
) -> Tensor:
    return cached(DiceLoss, mode=mode, **options)(logits, target, weight)


class JaccardLoss(RegionLoss):
    """Jaccard (soft IoU) loss. A row has 1 - (I + nr) / (I + FP + FN + dr), with smooth = (nr, dr).

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.JaccardLoss("multiclass", pool_batch=True)(logits, target)
    tensor(0.7500)
    >>> segfuse.jaccard_loss(logits, target, mode="multiclass", pool_batch=True)
    tensor(0.7500)
    """

    name = "jaccard_loss"

    def __init__(self, mode: Mode, **options: Unpack[RegionOptions]) -> None:
        super().__init__(mode, {}, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(RegionLoss.lower(options, mode), kind="jaccard")


@function_of(JaccardLoss)
def jaccard_loss(
    logits: Tensor, target: Tensor, *, mode: Mode, weight: Tensor | None = None, **options: Unpack[RegionOptions]
) -> Tensor:
    return cached(JaccardLoss, mode=mode, **options)(logits, target, weight)


class SensitivitySpecificityLoss(RegionLoss):
    """Sensitivity-specificity loss. A row has 1 - (a sens + (1 - a) spec).

    sens = (I + nr) / (I + FN + dr), spec = (TN + nr) / (TN + FP + dr), smooth = (nr, dr). ``squared_error=True`` is the
    form of Brosch et al. 2015: FN = Σ w t (p - t)² and FP = Σ w (1 - t) (p - t)², with the same I + FN and TN + FP.

    Args:
        sensitivity_weight: a in [0, 1].
        squared_error: True: the form of Brosch et al.

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.SensitivitySpecificityLoss("multiclass", sensitivity_weight=0.05)(logits, target)
    tensor(0.2500)
    >>> segfuse.sensitivity_specificity_loss(logits, target, mode="multiclass", sensitivity_weight=0.05)
    tensor(0.2500)
    """

    name = "sensitivity_specificity_loss"
    _takes = ShapedOptions

    def __init__(
        self,
        mode: Mode,
        *,
        sensitivity_weight: float = 0.5,
        squared_error: bool = False,
        **options: Unpack[ShapedOptions],
    ) -> None:
        own = {
            "sensitivity_weight": check_number("sensitivity_weight", sensitivity_weight, 0, 1),
            "squared_error": check_bool("squared_error", squared_error),
        }
        super().__init__(mode, own, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(
            RegionLoss.lower(options, mode),
            kind="sensitivity_specificity",
            alpha=options["sensitivity_weight"],
            statistics="squared_error" if options["squared_error"] else "product",
        )


@function_of(SensitivitySpecificityLoss)
def sensitivity_specificity_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    sensitivity_weight: float = 0.5,
    squared_error: bool = False,
    weight: Tensor | None = None,
    **options: Unpack[ShapedOptions],
) -> Tensor:
    return cached(
        SensitivitySpecificityLoss,
        mode=mode,
        sensitivity_weight=sensitivity_weight,
        squared_error=squared_error,
        **options,
    )(logits, target, weight)


class GeneralizedDiceLoss(RegionLoss):
    """Generalized Dice loss (Sudre et al. 2017). A sample has 1 - (2 Σ_c v_c I_c + nr) / (Σ_c v_c (P_c + T_c) + dr).

    v_c = class_weight[c] / T_c², with P_c = Σ w p and T_c = Σ w t of class c in the sample (in the batch with
    ``pool_batch``). A class with T_c = 0 takes the largest 1 / T² of the other classes, or 0 if there is none. A row is
    a sample, so ``"none"`` has shape (N,). If soft labels give a class almost nothing (T_c of 1e-6), its weight is so
    large that gradients lose digits.

    Args:
        weight_type: "square" is 1/T², "simple" is 1/T, "uniform" is 1.
        class_weight: one factor of v per class, >= 0.
        reduction: "mean" over samples, or "sum". "sample" and "none" give one value per sample, shape (N,); with
            pool_batch "none" has shape ().

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.GeneralizedDiceLoss("multiclass", weight_type="simple")(logits, target)
    tensor(0.5000)
    >>> segfuse.generalized_dice_loss(logits, target, mode="multiclass", weight_type="simple")
    tensor(0.5000)
    """

    name = "generalized_dice_loss"
    _takes = GeneralizedDiceOptions

    def __init__(
        self,
        mode: Mode,
        *,
        weight_type: Literal["square", "simple", "uniform"] = "square",
        **options: Unpack[GeneralizedDiceOptions],
    ) -> None:
        check_choice("weight_type", weight_type, ("square", "simple", "uniform"))
        super().__init__(mode, {"weight_type": weight_type}, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        weight_type = options["weight_type"]
        return replace(
            RegionLoss.lower(options, mode),
            kind="dice",
            pool_classes=True,
            generalized=True,
            factor="none" if weight_type == "uniform" else weight_type,
        )


@function_of(GeneralizedDiceLoss)
def generalized_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    weight_type: Literal["square", "simple", "uniform"] = "square",
    weight: Tensor | None = None,
    **options: Unpack[GeneralizedDiceOptions],
) -> Tensor:
    return cached(GeneralizedDiceLoss, mode=mode, weight_type=weight_type, **options)(logits, target, weight)
