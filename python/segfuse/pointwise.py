"""Pointwise losses: a sum over pixels of a function of the logit z and the label t, with p = link(z), q = 1 - p.

All of them: logits (N, C, *) or, in ``"binary"``, (N, *); target of the logits' shape, or in ``"multiclass"`` a label
map (N, *). ``weight`` is a per-pixel weight or mask (0 leaves the pixel out). Reductions: ``"mean"`` is
Σ w ℓ / Σ w over valid elements, ``"sum"`` Σ w ℓ, ``"sample"`` (N,) each sample's mean, ``"none"`` w ℓ per element (per
pixel in ``"multiclass"``), float32 unless the logits are float64. Errors: ValueError and TypeError name the argument;
an integer label out of range that is not ``ignore_index`` is an IndexError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from segfuse._options import (
    MODES,
    DataOptions,
    Mode,
    PerClass,
    check_bool,
    check_choice,
    check_number,
    check_table,
    scalar_or_table,
)
from segfuse._plan import table_of
from segfuse.algebra import SingleLoss, function_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack


def _point(kind: str, parameter: float, balance: str = "none", value: object = None, **flags: bool) -> dict[str, Any]:
    """The native term; `value` is the number, or the table, that balances the two parts."""
    return {
        "family": "point",
        "kind": kind,
        "parameter": parameter,
        "balance": balance,
        "balance_value": value if isinstance(value, float) else 1.0,
        "table": table_of(value),
        "weighs_the_mean": flags.get("weighs_the_mean", False),
        "smooths": flags.get("smooths", False),
    }


class BCEWithLogitsLoss(SingleLoss):
    """Binary cross-entropy of logits: ℓ = pos_weight t softplus(-z) + (1 - t) softplus(z).

    Args:
        mode: ``"binary"`` or ``"multilabel"``.
        pos_weight: weight of positives, a number or one per channel (default: 1).
        balanced: weight positives by beta = 1 - Σ w t / Σ w over the valid pixels of their sample and channel, and
            negatives by 1 - beta (balanced BCE, Xie & Tu 2015); no gradient flows into beta. Excludes ``pos_weight``.
        label_smoothing: e in [0, 1]; the label becomes t (1 - e) + e/2.
        data: ``from_logits=True``, ``ignore_index=None``, ``reduction="mean"``.
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
            "balanced": balanced,
            "label_smoothing": check_number("label_smoothing", label_smoothing, 0, 1),
        }
        super().__init__(mode, options, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        balance = "balanced" if options["balanced"] else "none" if options["pos_weight"] is None else "positive"
        return _point("bce_with_logits", options["label_smoothing"], balance, options["pos_weight"])


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
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        weighted = options["class_weight"] is not None
        smoothing = options["label_smoothing"]
        return _point(
            "cross_entropy",
            smoothing,
            "class_weight" if weighted else "none",
            options["class_weight"],
            weighs_the_mean=weighted,
            smooths=smoothing > 0,
        )


class FocalLoss(SingleLoss):
    """Focal loss (Lin et al. 2017): ℓ = -alpha_t (1 - p_t)^gamma log p_t.

    With soft labels ℓ = alpha t q^gamma (-log p) + (1 - alpha) (1 - t) p^gamma (-log q), and in ``"multiclass"``
    Σ_c alpha_c t_c (1 - p_c)^gamma (-log p_c). Gradients are finite for every gamma >= 0.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"`` (softmax).
        alpha: weight of positives, 1 - alpha of negatives: a number or one per channel; in ``"multiclass"`` C values.
            It does not count in the denominator of the mean. Default: no weighting.
        gamma: exponent, >= 0 (default 2).
        data: ``from_logits=True``, ``ignore_index=None``, ``reduction="mean"``.
    """

    name = "focal_loss"

    def __init__(
        self, mode: Mode, *, alpha: PerClass | None = None, gamma: float = 2.0, **data: Unpack[DataOptions]
    ) -> None:
        check_choice("mode", mode, MODES)
        weights = None if alpha is None else scalar_or_table("alpha", alpha)
        if mode == "multiclass" and isinstance(weights, float):
            raise ValueError(f'alpha must have one value per class with mode="multiclass"; got the number {alpha!r}')
        super().__init__(mode, {"alpha": weights, "gamma": check_number("gamma", gamma, 0, 1e6)}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        kind = "focal_square" if options["gamma"] == 2 else "focal"
        weighting = "class_weight" if mode == "multiclass" else "alpha"
        alpha = options["alpha"]
        return _point(kind, options["gamma"], "none" if alpha is None else weighting, alpha)


bce_with_logits_loss = function_of(BCEWithLogitsLoss, "bce_with_logits_loss")
cross_entropy_loss = function_of(CrossEntropyLoss, "cross_entropy_loss")
focal_loss = function_of(FocalLoss, "focal_loss")
