"""Pointwise losses: a sum over pixels of a function of the logit z and the label t, with p = link(z), q = 1 - p.

All of them: logits (N, C, *) or, in ``"binary"``, (N, *); target of the logits' shape, or in ``"multiclass"`` a label
map (N, *). The first dimension is the batch, always: a mask (H, W) in ``"binary"`` is H samples of W pixels.

``weight`` is a per-pixel weight or mask (0 leaves the pixel out, so that nothing there is read). It broadcasts as torch
does, the class axis inserted where it has a dimension less: (N, 1, 1) is one weight per sample, (1, H, W) one per
position. It may be negative: Σ w ℓ is what it says, means divide by Σ w (0 where that is 0), and region losses follow
their formulas. NaN and infinity reach the loss. Float labels lie in [0, 1]. Reductions: ``"mean"`` is
Σ w ℓ / Σ w over valid elements, ``"sum"`` Σ w ℓ, ``"sample"`` (N,) each sample's mean, ``"none"`` w ℓ per element (per
pixel in ``"multiclass"``; MSE, L1 and Huber keep the classes, each an element of the mean), float32 unless the logits
are float64. Data options, of all: ``from_logits=True`` (False: the input is a probability already),
``ignore_index=None``, ``reduction="mean"``. Errors: ValueError and TypeError name the argument. An integer label out of
range that is not ``ignore_index``, a float label or a probability outside [0, 1] (by more than 1e-4, the rounding of
interpolation) is an IndexError on the CPU; on a GPU loss and gradient are NaN, and :func:`segfuse.check_target` says
why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from segfuse._core.functions import function_of
from segfuse._core.options import (
    MODES,
    DataOptions,
    Mode,
    PerClass,
    check_bool,
    check_choice,
    check_ints,
    check_number,
    check_table,
    scalar_or_table,
)
from segfuse._core.spec import Balance, PointwiseTerm, table_of
from segfuse.algebra import SingleLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

__all__ = [
    "BCEWithLogitsLoss",
    "BrokenLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "HingeLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "PolynomialLoss",
    "SigmoidFreeLoss",
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


def _balanced_by(kind: Balance, value: object) -> dict[str, Any]:
    """The fields of a term whose two parts are balanced by a number, or by a row of the tables."""
    return {"balance": kind, "balance_value": value if isinstance(value, float) else 1.0, "table": table_of(value)}


def _check_logits(name: str, data: DataOptions) -> None:
    if not data.get("from_logits", True):
        raise ValueError(f"{name} reads logits: from_logits=False has no meaning")


class BCEWithLogitsLoss(SingleLoss):
    """Binary cross-entropy of logits: ℓ = pos_weight t softplus(-z) + (1 - t) softplus(z).

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        pos_weight: weight of positives, a number or one per channel (default: 1).
        balanced: weight positives by beta = 1 - Σ w t / Σ w over the valid pixels of their sample and channel, and
            negatives by 1 - beta (balanced BCE, Xie & Tu 2015); no gradient flows into beta. Excludes ``pos_weight``.
        label_smoothing: e in [0, 1]; the label becomes t (1 - e) + e/2.
        data: see :mod:`segfuse.pointwise`.
    """

    name = "bce_with_logits_loss"

    def __init__(
        self,
        mode: Mode,
        *,
        pos_weight: PerClass | None = None,
        balanced: bool = False,
        label_smoothing: float = 0.0,
        **data: Unpack[DataOptions],
    ) -> None:
        check_choice("mode", mode, ("binary", "multilabel"))
        if check_bool("balanced", balanced) and pos_weight is not None:
            raise ValueError("balanced=True and pos_weight exclude each other")
        options = {
            "pos_weight": None if pos_weight is None else scalar_or_table("pos_weight", pos_weight),
            "balanced": check_bool("balanced", balanced),
            "label_smoothing": check_number("label_smoothing", label_smoothing, 0, 1),
        }
        super().__init__(mode, options, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        pos_weight = options["pos_weight"]
        balance: Balance = "balanced" if options["balanced"] else "none" if pos_weight is None else "positive"
        parameters = (options["label_smoothing"],)
        return PointwiseTerm("bce_with_logits", parameters, **_balanced_by(balance, pos_weight))


class CrossEntropyLoss(SingleLoss):
    """Softmax cross-entropy, always multiclass, as torch's: ℓ = class_weight[y] (logsumexp(z) - z_y).

    Soft labels (N, C, *): ℓ = -Σ_c class_weight[c] t_c log p_c.

    Args:
        class_weight: C values; for label maps they count in the denominator of the mean too, as in torch.
        label_smoothing: e in [0, 1]; the label becomes t (1 - e) + e/C.
        data: ``from_logits=True``, ``ignore_index=-100``, ``reduction="mean"``.
    """

    name = "cross_entropy_loss"
    data_defaults: ClassVar[dict[str, Any]] = {"ignore_index": -100}

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        **data: Unpack[DataOptions],
    ) -> None:
        options = {
            "class_weight": None if class_weight is None else check_table("class_weight", class_weight),
            "label_smoothing": check_number("label_smoothing", label_smoothing, 0, 1),
        }
        super().__init__("multiclass", options, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        weight, smoothing = options["class_weight"], options["label_smoothing"]
        return PointwiseTerm(
            "cross_entropy",
            (smoothing,),
            **_balanced_by("none" if weight is None else "class_weight", weight),
            weighs_the_mean=weight is not None,
            smooths=smoothing > 0,
        )


class FocalLoss(SingleLoss):
    """Focal loss (Lin et al. 2017): ℓ = -alpha_t (1 - p_t)^gamma log p_t.

    With soft labels ℓ = alpha t q^gamma (-log p) + (1 - alpha) (1 - t) p^gamma (-log q), and in ``"multiclass"``
    Σ_c alpha_c t_c (1 - p_c)^gamma (-log p_c). Gradients are finite for every gamma >= 0.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"`` (softmax).
        alpha: weight of positives, 1 - alpha of negatives: a number >= 0 or one per channel; in ``"multiclass"`` C
            values. It does not count in the denominator of the mean. Default: no weighting.
        gamma: exponent, >= 0 (default 2).
        data: see :mod:`segfuse.pointwise`.
    """

    name = "focal_loss"

    def __init__(
        self, mode: Mode, *, alpha: PerClass | None = None, gamma: float = 2.0, **data: Unpack[DataOptions]
    ) -> None:
        check_choice("mode", mode, MODES)
        weights = None if alpha is None else scalar_or_table("alpha", alpha)
        if mode == "multiclass" and weights is not None and (isinstance(weights, float) or weights.dim() == 0):
            raise ValueError(f'alpha must have one value per class with mode="multiclass"; got the number {alpha!r}')
        super().__init__(mode, {"alpha": weights, "gamma": check_number("gamma", gamma, 0, 1e6)}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        kind = "focal_square" if options["gamma"] == 2 else "focal"
        weighting: Balance = "class_weight" if mode == "multiclass" else "alpha"
        alpha = options["alpha"]
        return PointwiseTerm(kind, (options["gamma"],), **_balanced_by("none" if alpha is None else weighting, alpha))


class PolynomialLoss(SingleLoss):
    """Polynomial loss (Le Bich Phuong & Nguyen Tien Zung): ℓ = c t Σ_k (1 - p)^k + (1 - t) Σ_k p^k.

    More focal than the cross-entropy: errors below 1/2 weigh little. ``exponents=(2, 4)`` is the authors' ℓ24, ``(6,)``
    their ℓ6.

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        exponents: one to four integers k from 1 to 64.
        asymmetry: c, >= 0, the weight of positives; > 1 where they are rare.
        data: see :mod:`segfuse.pointwise`.
    """

    name = "polynomial_loss"

    def __init__(
        self,
        mode: Mode,
        *,
        exponents: Sequence[int] = (2, 4),
        asymmetry: float = 1.0,
        **data: Unpack[DataOptions],
    ) -> None:
        check_choice("mode", mode, ("binary", "multilabel"))
        found = check_ints("exponents", exponents, 1, 64)
        if len(found) > 4:
            raise ValueError(f"exponents must be one to four integers; got {exponents!r}")
        options = {"exponents": tuple(found), "asymmetry": check_number("asymmetry", asymmetry, 0)}
        super().__init__(mode, options, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm(
            "polynomial", tuple(options["exponents"]), **_balanced_by("positive", options["asymmetry"])
        )


class SigmoidFreeLoss(SingleLoss):
    """Loss on logits without a sigmoid (Le Bich Phuong & Nguyen Tien Zung).

    ℓ = c (1 + s) l(z) + (1 - s) l(-z) with s = 2 t - 1 and l(r) = max(-r, 0) / 2 + clamp(1/2 - r, 0, 1/2)^4: linear on
    the wrong side, flat beyond a margin of 1/2, once differentiable (slope -1/2 at 0). The factor 2 in 1 ± s is the
    authors'.

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        asymmetry: c, >= 0, the weight of positives.
        data: see :mod:`segfuse.pointwise`; ``from_logits=False`` is refused.
    """

    name = "sigmoid_free_loss"

    def __init__(self, mode: Mode, *, asymmetry: float = 1.0, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, ("binary", "multilabel"))
        _check_logits("sigmoid_free_loss", data)
        super().__init__(mode, {"asymmetry": check_number("asymmetry", asymmetry, 0)}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("sigmoid_free", **_balanced_by("positive", options["asymmetry"]))


class BrokenLoss(SingleLoss):
    """A loss whose slope jumps at p = 1/2 (Le Bich Phuong & Nguyen Tien Zung): a study object, not to train with.

    ℓ = c (1 - t) l(p) + t l(1 - p), l(y) = y^4 for y <= 1/2 and y - 7/16 above: slope 1/2 below, 1 above. The jump at
    the threshold is a stochastic trap: noisy gradients hold predictions near 1/2, where decisions are made (see the
    gallery). The paper's constant 3/16 would make the value jump too; 7/16 does not. Here c weighs negatives.

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        asymmetry: c, >= 0, the weight of negatives.
        data: see :mod:`segfuse.pointwise`.
    """

    name = "broken_loss"

    def __init__(self, mode: Mode, *, asymmetry: float = 1.0, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, ("binary", "multilabel"))
        super().__init__(mode, {"asymmetry": check_number("asymmetry", asymmetry, 0)}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("broken", **_balanced_by("negative", options["asymmetry"]))


class HingeLoss(SingleLoss):
    """Hinge loss: ℓ = max(0, 1 - s z) with s = 2 t - 1; derivative 0 at the kink.

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        data: see :mod:`segfuse.pointwise`; ``from_logits=False`` is refused.
    """

    name = "hinge_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, ("binary", "multilabel"))
        _check_logits("hinge_loss", data)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("hinge")


class MSELoss(SingleLoss):
    """Squared error of the probability (Brier score): ℓ = (p - t)², torch's convention (no 1/2).

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"`` (softmax; each class of a pixel is an element).
        data: see :mod:`segfuse.pointwise`.
    """

    name = "mse_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("squared_error", every_class=mode == "multiclass")


class L1Loss(SingleLoss):
    """Absolute error of the probability: ℓ = |p - t|; derivative 0 at p = t.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"`` (softmax; each class of a pixel is an element).
        data: see :mod:`segfuse.pointwise`.
    """

    name = "l1_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("absolute_error", every_class=mode == "multiclass")


class HuberLoss(SingleLoss):
    """Huber loss (1964) of e = p - t: ℓ = e²/2 where |e| <= delta, else delta (|e| - delta/2).

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"`` (softmax; each class of a pixel is an element).
        delta: > 0; |e| is at most 1.
        data: see :mod:`segfuse.pointwise`.
    """

    name = "huber_loss"

    def __init__(self, mode: Mode, *, delta: float = 1.0, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        delta = check_number("delta", delta, 0)
        if delta == 0:
            raise ValueError("delta must be > 0; got 0")
        super().__init__(mode, {"delta": delta}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("huber", (options["delta"],), every_class=mode == "multiclass")


class KLDivLoss(SingleLoss):
    """Kullback-Leibler divergence of soft labels: ℓ = Σ t log(t / p), 0 log 0 = 0; with hard labels the cross-entropy.

    The sum runs over both outcomes in ``"binary"`` and ``"multilabel"``, over the classes in ``"multiclass"``. It is
    the cross-entropy less the label's own entropy, in float32: where p is nearly t its error is 1e-7, not 1e-7 of
    itself.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"`` (softmax).
        data: see :mod:`segfuse.pointwise`.
    """

    name = "kl_div_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("kl_divergence")


bce_with_logits_loss = function_of(BCEWithLogitsLoss, "bce_with_logits_loss")
cross_entropy_loss = function_of(CrossEntropyLoss, "cross_entropy_loss")
focal_loss = function_of(FocalLoss, "focal_loss")
polynomial_loss = function_of(PolynomialLoss, "polynomial_loss")
sigmoid_free_loss = function_of(SigmoidFreeLoss, "sigmoid_free_loss")
broken_loss = function_of(BrokenLoss, "broken_loss")
hinge_loss = function_of(HingeLoss, "hinge_loss")
mse_loss = function_of(MSELoss, "mse_loss")
l1_loss = function_of(L1Loss, "l1_loss")
huber_loss = function_of(HuberLoss, "huber_loss")
kl_div_loss = function_of(KLDivLoss, "kl_div_loss")
