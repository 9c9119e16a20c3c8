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

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from segfuse._core.functions import function_of
from segfuse._core.options import MODES, Mode, RegionOptions, check_bool, check_choice, check_number, check_region
from segfuse._core.plan import LOWER
from segfuse._core.spec import RegionTerm, is_table, table_of
from segfuse.algebra import Loss, SingleLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segfuse._core.options import DataOptions

    class Options(RegionOptions, DataOptions, total=False):
        """Everything that a region loss shares with the others."""


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


def _without(*names: str) -> dict[str, Any]:
    """The defaults of the options that every region loss has, but some."""
    return {k: v for k, v in check_region({}).items() if k not in names}


class RegionLoss(SingleLoss):
    """What region losses share: their options, checked and lowered."""

    name = "region_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = _without()

    def __init__(self, mode: Mode, own: dict[str, Any], options: Options) -> None:
        check_choice("mode", mode, MODES)
        data = {k: v for k, v in options.items() if k not in RegionOptions.__annotations__}
        region: Any = {k: v for k, v in options.items() if k in RegionOptions.__annotations__}
        for option in region:
            if option not in self.hidden_defaults:
                raise ValueError(f"{option} cannot be given: {type(self).__name__} has its own")
        checked = {k: v for k, v in check_region(region).items() if k in self.hidden_defaults}
        if mode == "binary" and checked["classes"] is not None:
            raise ValueError('classes has no meaning with mode="binary": there is one class')
        super().__init__(mode, {**own, **checked}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        o = {**_without(), **options}
        numerator, denominator = o["smooth"]
        return RegionTerm(
            kind="tversky",
            shape=o["shape"],
            statistics="squared" if o["squared"] else "soft_label" if o["soft_label"] else "product",
            absent=o["absent"],
            pool_batch=o["pool_batch"],
            pool_classes=o["pool_classes"],
            smooth_numerator=numerator,
            smooth_denominator=denominator,
            eps=o["eps"],
            alpha=o.get("alpha", 0.5),
            beta=o.get("beta", 0.5),
            table=table_of(o["class_weight"]),
            classes=tuple(o["classes"] or ()),
        )


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
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(RegionLoss.lower(options, mode), kind="dice")


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
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(RegionLoss.lower(options, mode), kind="jaccard")


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
    hidden_defaults: ClassVar[dict[str, Any]] = _without("shape")

    def __init__(
        self, mode: Mode, *, alpha: float = 0.5, beta: float = 0.5, gamma: float = 0.75, **options: Unpack[Options]
    ) -> None:
        own = {
            "alpha": check_number("alpha", alpha, 0),
            "beta": check_number("beta", beta, 0),
            "gamma": check_number("gamma", gamma, 0),
        }
        super().__init__(mode, own, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(RegionLoss.lower(options, mode), shape="power", shape_parameter=options["gamma"])


class BackgroundTverskyLoss(FocalTverskyLoss):
    """Focal Tversky loss of the background of each row, that is of 1 - p and 1 - t (``gamma=1``: Tversky loss).

    A binary loss of two classes, background and foreground, is this beside the loss of the foreground; see
    :class:`segfuse.UnifiedFocalLoss`.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        alpha: weight of the background's false positives, which are the row's false negatives (default 0.5).
        beta: weight of the background's false negatives (default 0.5).
        gamma: exponent, >= 0 (default 1).
        options: every option of :mod:`segfuse.region` but ``shape``, ``squared`` and ``soft_label``.
    """

    name = "background_tversky_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = _without("shape", "squared", "soft_label")

    def __init__(
        self, mode: Mode, *, alpha: float = 0.5, beta: float = 0.5, gamma: float = 1.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(mode, alpha=alpha, beta=beta, gamma=gamma, **options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(FocalTverskyLoss.lower(options, mode), kind="background_tversky")


class SensitivitySpecificityLoss(RegionLoss):
    """Sensitivity and specificity, of a row: 1 - (a sens + (1 - a) spec).

    sens = (I + nr) / (I + FN + dr), spec = (TN + nr) / (TN + FP + dr), smooth = (nr, dr). With ``squared_error=True``
    the form of Brosch et al. 2015: FN = Σ w t (p - t)² and FP = Σ w (1 - t) (p - t)², over the same weights of labels.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        sensitivity_weight: a in [0, 1] (default 0.5).
        squared_error: (default False).
        options: every option of :mod:`segfuse.region` but ``squared`` and ``soft_label``.
    """

    name = "sensitivity_specificity_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = _without("squared", "soft_label")

    def __init__(
        self,
        mode: Mode,
        *,
        sensitivity_weight: float = 0.5,
        squared_error: bool = False,
        **options: Unpack[Options],
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


class GeneralizedDiceLoss(RegionLoss):
    """Generalized Dice loss (Sudre et al. 2017), of a sample: 1 - (2 Σ_c v_c I_c + nr) / (Σ_c v_c (P_c + T_c) + dr).

    v_c = class_weight[c] / T_c², T_c the labelled weight of class c in the sample (in the batch with ``pool_batch``). A
    class with T_c = 0 takes the largest 1 / T² of the others, 0 if there is none. Rows are samples: ``"none"`` is (N,).
    Soft labels that leave a class almost nothing (T_c of 1e-6) make its weight so large that gradients lose digits.

    Args:
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        weight_type: ``"square"`` (1/T²), ``"simple"`` (1/T) or ``"uniform"`` (1).
        options: every option of :mod:`segfuse.region` but ``absent``, ``pool_classes``, ``squared`` and ``shape``;
            ``class_weight`` stands inside the ratio.
    """

    name = "generalized_dice_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = _without("absent", "pool_classes", "squared", "shape")

    def __init__(
        self,
        mode: Mode,
        *,
        weight_type: Literal["square", "simple", "uniform"] = "square",
        **options: Unpack[Options],
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


class AdaptiveLogLoss(RegionLoss):
    """Adaptive logarithmic loss (Kaul, Pears & Manandhar 2021) around a region loss, row by row.

    omega ln(1 + L / epsilon) where L < gamma, else L - C, with L the row's loss and C = gamma - omega ln(1 + gamma /
    epsilon): small errors get a steep slope, omega / (epsilon + L), large ones 1. The value is continuous at gamma; the
    slope is not, unless omega = epsilon + gamma (the paper says smooth).

    Args:
        base: a region loss, of which rows, options and reduction are taken.
        omega, gamma, epsilon: > 0 (defaults of the paper: 10, 0.1, 0.5).
    """

    name = "adaptive_log_loss"
    hidden_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: RegionLoss, omega: float = 10.0, gamma: float = 0.1, epsilon: float = 0.5) -> None:
        if not isinstance(base, RegionLoss) or isinstance(base, AdaptiveLogLoss):
            shown = repr(base) if isinstance(base, Loss) else type(base).__name__
            raise ValueError(f"base must be one region loss, such as DiceLoss; got {shown}")
        own = {"omega": omega, "gamma": gamma, "epsilon": epsilon}
        for name, value in own.items():
            own[name] = check_number(name, value, 0)
            if own[name] == 0:
                raise ValueError(f"{name} must be > 0; got 0")
        base.require_plain()
        tables = {name: getattr(base, name) for name in base.tables_of}
        options = {"base": base.name, "base_options": base.options, **own, **tables}
        SingleLoss.__init__(self, base.mode, options, base.data)
        self._base = f"{type(base).__name__}({base.extra_repr()})"

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        tables = {k: v for k, v in options.items() if is_table(v)}
        base = LOWER[options["base"]]({**options["base_options"], **tables}, mode)
        assert isinstance(base, RegionTerm)
        numbers = {"omega": options["omega"], "threshold": options["gamma"], "epsilon": options["epsilon"]}
        return replace(base, adaptive=True, **numbers)

    def extra_repr(self) -> str:
        signature = self.own_signature()
        own = {k: self.options[k] for k in ("omega", "gamma", "epsilon")}
        return ", ".join([self._base, *(f"{k}={v:g}" for k, v in own.items() if v != signature[k].default)])


dice_loss = function_of(DiceLoss, "dice_loss")
jaccard_loss = function_of(JaccardLoss, "jaccard_loss")
tversky_loss = function_of(TverskyLoss, "tversky_loss")
focal_tversky_loss = function_of(FocalTverskyLoss, "focal_tversky_loss")
background_tversky_loss = function_of(BackgroundTverskyLoss, "background_tversky_loss")
sensitivity_specificity_loss = function_of(SensitivitySpecificityLoss, "sensitivity_specificity_loss")
generalized_dice_loss = function_of(GeneralizedDiceLoss, "generalized_dice_loss")
adaptive_log_loss = function_of(AdaptiveLogLoss, "adaptive_log_loss")
