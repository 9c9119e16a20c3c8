"""Pointwise losses: a sum over pixels of a function ℓ of the logit z and the label t, with p = link(z), q = 1 - p.

Weights w may be negative. A sum is Σ w ℓ; a mean is Σ w ℓ / Σ w, and 0 where Σ w is 0. Region losses follow their
formulas. Weights of NaN and infinity reach the loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.functions import cached, function_of
from segfuse._core.options import (
    MODES,
    TWO_SIDED,
    DataOptions,
    Mode,
    PerClass,
    Table,
    TwoSided,
    check_bool,
    check_choice,
    check_number,
    check_table,
    scalar_or_table,
)
from segfuse._core.spec import Balance, PointwiseTerm, balanced_by
from segfuse.distances import HuberLoss, L1Loss, MSELoss, huber_loss, l1_loss, mse_loss
from segfuse.margins import (
    BrokenLoss,
    HingeLoss,
    PolynomialLoss,
    SigmoidFreeLoss,
    broken_loss,
    hinge_loss,
    polynomial_loss,
    sigmoid_free_loss,
)
from segfuse.single import SingleLoss

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


class BCEWithLogitsLoss(SingleLoss):
    """Binary cross-entropy of logits: ℓ = pos_weight t softplus(-z) + (1 - t) softplus(z).

    Args:
        pos_weight: weight of positives, a number or one per channel, >= 0; None is 1.
        balanced: True gives positives the weight beta = 1 - Σ w t / Σ w and negatives 1 - beta (balanced BCE, Xie & Tu
            2015). The sums run over the valid pixels of a sample and channel. No gradient flows into beta. Not with
            ``pos_weight``.
        label_smoothing: e in [0, 1]; the label becomes t (1 - e) + e/2.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.BCEWithLogitsLoss("binary", pos_weight=2.0)(logits, target)
    tensor(0.5137)
    >>> segfuse.bce_with_logits_loss(logits, target, mode="binary", pos_weight=2.0)
    tensor(0.5137)
    """

    name = "bce_with_logits_loss"

    def __init__(
        self,
        mode: TwoSided,
        *,
        pos_weight: PerClass | None = None,
        balanced: bool = False,
        label_smoothing: float = 0.0,
        **data: Unpack[DataOptions],
    ) -> None:
        check_choice("mode", mode, TWO_SIDED)
        if check_bool("balanced", balanced) and pos_weight is not None:
            raise ValueError("balanced=True and pos_weight cannot be combined")
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
        return PointwiseTerm("bce_with_logits", parameters, **balanced_by(balance, pos_weight))


@function_of(BCEWithLogitsLoss)
def bce_with_logits_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TwoSided,
    pos_weight: PerClass | None = None,
    balanced: bool = False,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(
        BCEWithLogitsLoss, mode=mode, pos_weight=pos_weight, balanced=balanced, label_smoothing=label_smoothing, **data
    )(logits, target, weight)


class CrossEntropyLoss(SingleLoss):
    """Softmax cross-entropy, always multiclass, the same as torch's: ℓ = class_weight[y] (logsumexp(z) - z_y).

    For soft labels (N, C, *): ℓ = -Σ_c class_weight[c] t_c log p_c.

    Args:
        class_weight: C values >= 0. With a label map the denominator of the mean has them too, as in torch.
        label_smoothing: e in [0, 1]; the label becomes t (1 - e) + e/C.

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.CrossEntropyLoss(class_weight=[0.5, 2.0])(logits, target)
    tensor(1.1269)
    >>> segfuse.cross_entropy_loss(logits, target, class_weight=[0.5, 2.0])
    tensor(1.1269)
    """

    name = "cross_entropy_loss"
    _data_defaults: ClassVar[dict[str, Any]] = {"ignore_index": -100}

    def __init__(
        self,
        *,
        class_weight: Table | None = None,
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
            **balanced_by("none" if weight is None else "class_weight", weight),
            weight_in_denominator=weight is not None,
            has_smoothing=smoothing > 0,
        )


@function_of(CrossEntropyLoss)
def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Table | None = None,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(CrossEntropyLoss, class_weight=class_weight, label_smoothing=label_smoothing, **data)(
        logits, target, weight
    )


class FocalLoss(SingleLoss):
    """Focal loss (Lin et al. 2017): ℓ = -alpha_t (1 - p_t)^gamma log p_t.

    With soft labels: ℓ = alpha t q^gamma (-log p) + (1 - alpha) (1 - t) p^gamma (-log q). In ``"multiclass"``:
    ℓ = Σ_c alpha_c t_c (1 - p_c)^gamma (-log p_c). Gradients are finite for every gamma >= 0.

    Args:
        alpha: weight of positives; negatives have 1 - alpha. A number >= 0 or one per channel; in ``"multiclass"`` C
            values. None: no weights. The denominator of the mean does not have them.
        gamma: exponent, >= 0.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.FocalLoss("binary", alpha=0.25)(logits, target)
    tensor(0.1002)
    >>> segfuse.focal_loss(logits, target, mode="binary", alpha=0.25)
    tensor(0.1002)
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
        return PointwiseTerm(kind, (options["gamma"],), **balanced_by("none" if alpha is None else weighting, alpha))


@function_of(FocalLoss)
def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    alpha: PerClass | None = None,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(FocalLoss, mode=mode, alpha=alpha, gamma=gamma, **data)(logits, target, weight)


class KLDivLoss(SingleLoss):
    """Kullback-Leibler divergence: ℓ = Σ t log(t / p), 0 log 0 = 0. With hard labels it is the cross-entropy.

    The sum runs over both outcomes in ``"binary"`` and ``"multilabel"``, and over the classes in ``"multiclass"``. It
    is the cross-entropy minus the entropy of the label, computed in float32. So where p is nearly t its absolute error
    is 1e-7; its relative error may be large.

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.KLDivLoss("multiclass")(logits, target)
    tensor(1.1269)
    >>> segfuse.kl_div_loss(logits, target, mode="multiclass")
    tensor(1.1269)
    """

    name = "kl_div_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("kl_divergence")


@function_of(KLDivLoss)
def kl_div_loss(
    logits: Tensor, target: Tensor, *, mode: Mode, weight: Tensor | None = None, **data: Unpack[DataOptions]
) -> Tensor:
    return cached(KLDivLoss, mode=mode, **data)(logits, target, weight)
