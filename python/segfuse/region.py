"""Region losses: a function of the sums of a row, by default one row per sample and class.

With labels t, probabilities p and weights w, over the valid pixels of a row:
    I = Σ w t p,   FP = Σ w (1 - t) p,   FN = Σ w t (1 - p).

A row that is 0/0 scores 1. If nothing in the whole call is valid the loss is 0.
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
    """Dice loss (Milletari et al. 2016), of a row: 1 - (2 I + nr) / (2 I + FP + FN + dr), smooth = (nr, dr).

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
    """Jaccard (soft IoU) loss, of a row: 1 - (I + nr) / (I + FP + FN + dr), smooth = (nr, dr).

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
    """Sensitivity and specificity, of a row: 1 - (a sens + (1 - a) spec).

    sens = (I + nr) / (I + FN + dr), spec = (TN + nr) / (TN + FP + dr), smooth = (nr, dr). With ``squared_error=True``
    the form of Brosch et al. 2015: FN = Σ w t (p - t)² and FP = Σ w (1 - t) (p - t)², over the same weights of labels.

    Args:
        sensitivity_weight: a in [0, 1].
        squared_error: the form of Brosch et al.

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
    """Generalized Dice loss (Sudre et al. 2017), of a sample: 1 - (2 Σ_c v_c I_c + nr) / (Σ_c v_c (P_c + T_c) + dr).

    v_c = class_weight[c] / T_c², T_c the labelled weight of class c in the sample (in the batch with ``pool_batch``). A
    class with T_c = 0 takes the largest 1 / T² of the others, 0 if there is none. Rows are samples: ``"none"`` is (N,).
    Soft labels that leave a class almost nothing (T_c of 1e-6) make its weight so large that gradients lose digits.

    Args:
        weight_type: 1/T², 1/T ("simple") or 1 ("uniform").
        class_weight: C factors of v, >= 0.
        reduction: "mean" over samples, "sum", "sample" or "none": one value per sample, shape (N,); () with pool_batch.

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
