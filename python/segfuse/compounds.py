"""Compounds with a name of their own. Write any other sum of losses with ``+`` and ``*``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.functions import cached, function_of
from segfuse._core.options import (
    DATA_DEFAULTS,
    MODES,
    TWO_SIDED,
    Coefficient,
    DataOptions,
    Mode,
    PerClass,
    RegionOptions,
    Table,
    TwoSided,
    check_bool,
    check_choice,
    check_int,
    check_number,
    refuse_unknown,
)
from segfuse._core.terms import Term
from segfuse.algebra import CompoundLoss, Loss
from segfuse.pointwise import BCEWithLogitsLoss, CrossEntropyLoss, FocalLoss
from segfuse.region import BackgroundTverskyLoss, DiceLoss, FocalTverskyLoss, TverskyLoss
from segfuse.single import RegionLoss, SingleLoss

__all__ = [
    "ComboLoss",
    "DiceBCELoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "UnifiedFocalLoss",
    "combo_loss",
    "unified_focal_loss",
]


DICE = f"The Dice loss of a row is 1 - (2 I + nr) / (2 I + FP + FN + dr), smooth = (nr, dr). {RegionLoss._symbols}"


def _data(options: Any) -> Any:
    return {k: v for k, v in options.items() if k in DATA_DEFAULTS}


def _scaled(factor: Coefficient, loss: Loss) -> list[Term]:
    return (factor * loss).terms()


def _focal(alpha: list[float], gamma: float, data: Any) -> Loss:
    """A focal loss. Its weights follow from the options of the compound, so they are not in its state_dict."""
    return FocalLoss("multiclass", alpha=alpha, gamma=gamma, **data)._with_fixed(alpha=alpha)


class DiceBCELoss(CompoundLoss):
    """dice_weight · Dice loss + bce_weight · BCE, one fused loss.

    Args:
        dice_weight: coefficient of the Dice loss.
        bce_weight: coefficient of the BCE.
        pos_weight: weight of positives in the BCE, a number or one per channel, >= 0.
        reduction: used for each part: "mean", "sum", or "sample" (the loss of each sample, shape (N,)).

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.DiceBCELoss("binary", bce_weight=0.5)(logits, target)
    tensor(0.6003)
    """

    _takes = RegionOptions
    _symbols = DICE

    def __init__(
        self,
        mode: TwoSided,
        *,
        dice_weight: Coefficient = 1.0,
        bce_weight: Coefficient = 1.0,
        pos_weight: PerClass | None = None,
        **options: Unpack[RegionOptions],
    ) -> None:
        refuse_unknown(self, options)
        bce = BCEWithLogitsLoss(mode, pos_weight=pos_weight, **_data(options))
        super().__init__([*_scaled(dice_weight, DiceLoss(mode, **options)), *_scaled(bce_weight, bce)])


class DiceCELoss(CompoundLoss):
    """dice_weight · Dice loss + ce_weight · cross-entropy, one fused loss; always multiclass.

    Args:
        dice_weight: coefficient of the Dice loss.
        ce_weight: coefficient of the cross-entropy.
        ce_class_weight: C weights of the cross-entropy, >= 0. (class_weight has the weights of the Dice loss.)
        label_smoothing: e in [0, 1], for the cross-entropy; its label becomes t (1 - e) + e/C.
        reduction: used for each part: "mean", "sum", or "sample" (the loss of each sample, shape (N,)).

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.DiceCELoss(ignore_index=255, label_smoothing=0.1)(logits, target)
    tensor(1.7936)
    """

    _takes = RegionOptions
    _symbols = DICE
    _data_defaults: ClassVar[dict[str, Any]] = CrossEntropyLoss._data_defaults

    def __init__(
        self,
        *,
        dice_weight: Coefficient = 1.0,
        ce_weight: Coefficient = 1.0,
        ce_class_weight: Table | None = None,
        label_smoothing: float = 0.0,
        **options: Unpack[RegionOptions],
    ) -> None:
        refuse_unknown(self, options)
        ce = CrossEntropyLoss(class_weight=ce_class_weight, label_smoothing=label_smoothing, **_data(options))
        super().__init__([*_scaled(dice_weight, DiceLoss("multiclass", **options)), *_scaled(ce_weight, ce)])


class DiceFocalLoss(CompoundLoss):
    """dice_weight · Dice loss + focal_weight · focal loss, one fused loss.

    Args:
        dice_weight: coefficient of the Dice loss.
        focal_weight: coefficient of the focal loss.
        alpha: weight of positives in the focal loss; negatives have 1 - alpha. In "multiclass" C values.
        gamma: exponent of the focal loss, >= 0.
        reduction: used for each part: "mean", "sum", or "sample" (the loss of each sample, shape (N,)).

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.DiceFocalLoss("multiclass", gamma=1.0)(logits, target)
    tensor(1.6109)
    """

    _takes = RegionOptions
    _symbols = DICE

    def __init__(
        self,
        mode: Mode,
        *,
        dice_weight: Coefficient = 1.0,
        focal_weight: Coefficient = 1.0,
        alpha: PerClass | None = None,
        gamma: float = 2.0,
        **options: Unpack[RegionOptions],
    ) -> None:
        refuse_unknown(self, options)
        focal = FocalLoss(mode, alpha=alpha, gamma=gamma, **_data(options))
        super().__init__([*_scaled(dice_weight, DiceLoss(mode, **options)), *_scaled(focal_weight, focal)])


class ComboLoss(CompoundLoss):
    """Combo loss (Taghanaki et al. 2019), one fused loss. Its minimum is 0.

    alpha · mean(beta t softplus(-z) + (1 - beta) (1 - t) softplus(z)) + (1 - alpha) · Dice loss. The paper subtracts
    the Dice coefficient where this adds the Dice loss, 1 - coefficient. The gradient is the same.

    Args:
        alpha: share of the cross-entropy, in [0, 1].
        beta: weight of positives in the cross-entropy, in [0, 1]. More than 1/2 works against false negatives.
        smooth: a number >= 0, added to numerator and denominator of the Dice loss; or a pair, one number for each.
        reduction: used for each part: "mean", "sum", or "sample" (the loss of each sample, shape (N,)).

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.ComboLoss("binary", beta=0.7)(logits, target)
    tensor(0.2131)
    >>> segfuse.combo_loss(logits, target, mode="binary", beta=0.7)
    tensor(0.2131)
    """

    _symbols = SingleLoss._symbols

    def __init__(
        self,
        mode: TwoSided,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float | tuple[float, float] = 1.0,
        **data: Unpack[DataOptions],
    ) -> None:
        refuse_unknown(self, data)
        check_choice("mode", mode, TWO_SIDED)
        alpha = check_number("alpha", alpha, 0, 1)
        # At gamma = 0 the focal loss is the cross-entropy with weights alpha and 1 - alpha.
        entropy = FocalLoss(mode, gamma=0.0, alpha=check_number("beta", beta, 0, 1), **data)
        dice = DiceLoss(mode, smooth=smooth, **data)
        super().__init__([*_scaled(alpha, entropy), *_scaled(1 - alpha, dice)])


@function_of(ComboLoss)
def combo_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TwoSided,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float | tuple[float, float] = 1.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(ComboLoss, mode=mode, alpha=alpha, beta=beta, smooth=smooth, **data)(logits, target, weight)


class UnifiedFocalLoss(CompoundLoss):
    """Unified focal loss (Yeung et al. 2022): focal_weight · focal + (1 - focal_weight) · focal Tversky, fused.

    A row of class c has mTI_c = (I + s) / (I + delta FN + (1 - delta) FP + s). The background is class 0 in
    ``"multiclass"``; in ``"binary"`` and ``"multilabel"`` its probability is 1 - p.

    - symmetric: the focal part is the mean over pixels of Σ_c d_c t_c (1 - p_c)^gamma (-log p_c), with d = delta for
      the foreground and 1 - delta for the background. The focal Tversky part is the mean over rows and classes of
      (1 - mTI_c)^(1 - gamma).
    - asymmetric: only the background has the factor (1 - p)^gamma, and only the foreground the exponent 1 - gamma.

    The paper and its authors' code differ. The exponents of the symmetric form are those of the code (the paper has
    1 - gamma and gamma; at 1/2 they agree). Rows are averaged as in the code. focal_weight is on the focal part, as in
    the paper.

    Args:
        num_classes: C. Give it in "multiclass", and only there.
        focal_weight: share of the focal part, in [0, 1] (the paper's lambda).
        delta: weight of false negatives, in [0, 1]; false positives have 1 - delta.
        gamma: in [0, 1). The larger it is, the less easy pixels and rows count.
        asymmetric: True: the asymmetric form. False: the symmetric form.
        smooth: s, >= 0.
        reduction: used for each part: "mean", "sum", or "sample" (the loss of each sample, shape (N,)).

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.UnifiedFocalLoss("multiclass", num_classes=2)(logits, target)
    tensor(0.5477)
    >>> segfuse.unified_focal_loss(logits, target, mode="multiclass", num_classes=2)
    tensor(0.5477)
    """

    _symbols = RegionLoss._symbols

    def __init__(
        self,
        mode: Mode,
        num_classes: int | None = None,
        *,
        focal_weight: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        asymmetric: bool = True,
        smooth: float = 1e-5,
        **data: Unpack[DataOptions],
    ) -> None:
        refuse_unknown(self, data)
        check_choice("mode", mode, MODES)
        asymmetric = check_bool("asymmetric", asymmetric)
        focal_weight = check_number("focal_weight", focal_weight, 0, 1)
        delta, gamma = check_number("delta", delta, 0, 1), check_number("gamma", gamma, 0, 1)
        if gamma == 1:
            raise ValueError("gamma must be < 1; got 1")
        multiclass = mode == "multiclass"
        num_classes = None if num_classes is None else check_int("num_classes", num_classes)
        if multiclass == (num_classes is None) or (num_classes is not None and num_classes < 2):
            wanted = "at least 2" if multiclass else "None: there are two, background and foreground"
            raise ValueError(f'num_classes with mode="{mode}" must be {wanted}; got {num_classes!r}')
        data.setdefault("reduction", "mean")  # as if given: the shares of the rows below depend on it
        options: Any = {"alpha": 1 - delta, "beta": delta, "smooth": smooth, **data}
        # A mean divides by the number of classes, a sum does not.
        total = 1 if data["reduction"] == "sum" else 2 if num_classes is None else num_classes
        focal: Loss
        tversky: Loss
        if not multiclass:
            front = FocalTverskyLoss(mode, gamma=1 - gamma, **options)
            back = BackgroundTverskyLoss(mode, gamma=1.0 if asymmetric else 1 - gamma, **options)
            tversky = (front + back) / total
            if asymmetric:
                focal = delta * FocalLoss(mode, alpha=1.0, gamma=0.0, **data)
                focal = focal + (1 - delta) * FocalLoss(mode, alpha=0.0, gamma=gamma, **data)
            else:
                focal = FocalLoss(mode, alpha=delta, gamma=gamma, **data)
        else:
            assert num_classes is not None
            rest = num_classes - 1
            if asymmetric:
                front = FocalTverskyLoss(mode, gamma=1 - gamma, classes=range(1, num_classes), **options)
                share = 1 if total == 1 else rest / total
                tversky = share * front + TverskyLoss(mode, classes=[0], **options) / total
                focal = _focal([0.0] + rest * [delta], 0.0, data)
                focal = focal + _focal([1 - delta] + rest * [0.0], gamma, data)
            else:
                tversky = FocalTverskyLoss(mode, gamma=1 - gamma, **options)
                focal = _focal([1 - delta] + rest * [delta], gamma, data)
        super().__init__((focal_weight * focal + (1 - focal_weight) * tversky).terms())


@function_of(UnifiedFocalLoss)
def unified_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    num_classes: int | None = None,
    focal_weight: float = 0.5,
    delta: float = 0.6,
    gamma: float = 0.5,
    asymmetric: bool = True,
    smooth: float = 1e-05,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(
        UnifiedFocalLoss,
        mode=mode,
        num_classes=num_classes,
        focal_weight=focal_weight,
        delta=delta,
        gamma=gamma,
        asymmetric=asymmetric,
        smooth=smooth,
        **data,
    )(logits, target, weight)
