"""Region losses: a function of the sums of a row, by default one row per sample and class.

With labels t, probabilities p and weights w, over the valid pixels of a row:
    I = Σ w t p,   FP = Σ w (1 - t) p,   FN = Σ w t (1 - p).

Options of every region loss:
    smooth (1e-5): added to numerator and denominator, or a pair (numerator, denominator).
    eps (0.0): floor of the denominator.
    pool_batch, pool_classes (False): sum over the batch, over the classes, before the ratio.
    squared (False): P = Σ w p², T = Σ w t², FP = P - I, FN = T - I.
    soft_label (False): I = Σ w min(p, t), FP = Σ w max(p - t, 0), FN = Σ w max(t - p, 0); the minimum is at p = t.
    absent ("score"): what a class without a labelled pixel in its row counts: its formula, 0 ("zero"), or nothing
        ("skip": it leaves the mean).
    class_weight (None): C weights of the rows. Not with pool_classes.
    classes (None): indices of the scored classes; the softmax still runs over all.
    shape ("linear"): of the loss L of a row: L, "log" (-log max(1 - L, 1e-12)), "log_cosh" (log cosh L).
    from_logits (True), ignore_index (None), reduction ("mean"): a row weighs class_weight, and "mean" is the weighted
        mean over rows, "sum" the weighted sum, "sample" (N,) the mean over each sample's rows, "none" the rows:
        (N, C), (C,) with pool_batch, (N,) with pool_classes, () with both.

A row that is 0/0 scores 1. If nothing in the whole call is valid the loss is 0. Shapes, weights and errors as in
:mod:`segfuse.pointwise`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from segfuse._options import MODES, Mode, RegionOptions, check_choice, check_number, check_region
from segfuse._plan import table_of
from segfuse.algebra import SingleLoss, function_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segfuse._options import DataOptions

    class Options(RegionOptions, DataOptions, total=False):
        """Everything that a region loss shares with the others."""


class RegionLoss(SingleLoss):
    """What region losses share: their options, checked and lowered."""

    name = "region_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = check_region({})

    def __init__(self, mode: Mode, own: dict[str, Any], options: Options) -> None:
        check_choice("mode", mode, MODES)
        data = {k: v for k, v in options.items() if k not in RegionOptions.__annotations__}
        region: Any = {k: v for k, v in options.items() if k in RegionOptions.__annotations__}
        checked = {k: v for k, v in check_region(region).items() if k in self.hidden_defaults}
        if mode == "binary" and checked["classes"] is not None:
            raise ValueError('classes has no meaning with mode="binary": there is one class')
        super().__init__(mode, {**own, **checked}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        numerator, denominator = options["smooth"]
        return {
            "family": "region",
            "kind": "tversky",
            "shape": options["shape"],
            "shape_parameter": 0.0,
            "statistics": "squared" if options["squared"] else "soft_label" if options["soft_label"] else "product",
            "absent": options["absent"],
            "pool_batch": options["pool_batch"],
            "pool_classes": options["pool_classes"],
            "smooth_numerator": numerator,
            "smooth_denominator": denominator,
            "eps": options["eps"],
            "alpha": options.get("alpha", 0.5),
            "beta": options.get("beta", 0.5),
            "table": table_of(options["class_weight"]),
            "classes": options["classes"] or [],
        }


class DiceLoss(RegionLoss):
    """Dice loss (Milletari et al. 2016), of a row: 1 - (2 I + nr) / (2 I + FP + FN + dr), smooth = (nr, dr).

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        options: every option of :mod:`segfuse.region`.
    """

    name = "dice_loss"

    def __init__(self, mode: Mode, **options: Unpack[Options]) -> None:
        super().__init__(mode, {}, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        return {**RegionLoss.lower(options, mode), "kind": "dice"}


class JaccardLoss(RegionLoss):
    """Jaccard (soft IoU) loss, of a row: 1 - (I + nr) / (I + FP + FN + dr), smooth = (nr, dr).

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        options: every option of :mod:`segfuse.region`.
    """

    name = "jaccard_loss"

    def __init__(self, mode: Mode, **options: Unpack[Options]) -> None:
        super().__init__(mode, {}, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        return {**RegionLoss.lower(options, mode), "kind": "jaccard"}


class TverskyLoss(RegionLoss):
    """Tversky loss (Salehi et al. 2017), of a row: 1 - (I + nr) / (I + alpha FP + beta FN + dr), smooth = (nr, dr).

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        alpha: weight of false positives, >= 0 (default 0.5).
        beta: weight of false negatives, >= 0 (default 0.5).
        options: every option of :mod:`segfuse.region`.
    """

    name = "tversky_loss"

    def __init__(self, mode: Mode, *, alpha: float = 0.5, beta: float = 0.5, **options: Unpack[Options]) -> None:
        own = {"alpha": check_number("alpha", alpha, 0), "beta": check_number("beta", beta, 0)}
        super().__init__(mode, own, options)


class FocalTverskyLoss(RegionLoss):
    """Focal Tversky loss (Abraham & Khan 2019), of a row: u^gamma with u = max(0, Tversky loss); gradient 0 at u = 0.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        alpha: weight of false positives, >= 0 (default 0.5).
        beta: weight of false negatives, >= 0 (default 0.5).
        gamma: exponent, >= 0 (default 0.75; the paper writes it 1/gamma).
        options: every option of :mod:`segfuse.region` but ``shape``.
    """

    name = "focal_tversky_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = {k: v for k, v in check_region({}).items() if k != "shape"}

    def __init__(
        self, mode: Mode, *, alpha: float = 0.5, beta: float = 0.5, gamma: float = 0.75, **options: Unpack[Options]
    ) -> None:
        if "shape" in options:
            raise ValueError("focal_tversky_loss has its own shape, the power gamma: shape cannot be given")
        own = {
            "alpha": check_number("alpha", alpha, 0),
            "beta": check_number("beta", beta, 0),
            "gamma": check_number("gamma", gamma, 0),
        }
        super().__init__(mode, own, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
        lowered = RegionLoss.lower({**options, "shape": "power"}, mode)
        return {**lowered, "shape_parameter": options["gamma"]}


dice_loss = function_of(DiceLoss, "dice_loss")
jaccard_loss = function_of(JaccardLoss, "jaccard_loss")
tversky_loss = function_of(TverskyLoss, "tversky_loss")
focal_tversky_loss = function_of(FocalTverskyLoss, "focal_tversky_loss")
