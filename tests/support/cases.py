"""The case table: losses with their options, inputs for them, and the largest error of each dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import segfuse

# Largest relative error of the loss, and of the gradient relative to its largest element, against float64.
TOLERANCE = {
    torch.float32: (1e-6, 2e-5),
    torch.float64: (1e-12, 1e-10),
    torch.float16: (1e-6, 2e-3),
    torch.bfloat16: (1e-6, 1.6e-2),
}

MODES = ("binary", "multilabel", "multiclass")
REDUCTIONS = ("mean", "sum", "sample", "none")
CLASSES = 5
PER_CLASS = (0.2, 1.5, 0.7, 2.0, 1.1)  # asymmetric on purpose
REGIONS = ("dice_loss", "jaccard_loss", "tversky_loss", "focal_tversky_loss")
# By function. test_values.py fails if a loss has no entry here, or no case.
CLASS_NAME = {
    "adaptive_log_loss": "AdaptiveLogLoss",
    "background_tversky_loss": "BackgroundTverskyLoss",
    "bce_with_logits_loss": "BCEWithLogitsLoss",
    "broken_loss": "BrokenLoss",
    "combo_loss": "ComboLoss",
    "cross_entropy_loss": "CrossEntropyLoss",
    "dice_loss": "DiceLoss",
    "focal_loss": "FocalLoss",
    "focal_tversky_loss": "FocalTverskyLoss",
    "generalized_dice_loss": "GeneralizedDiceLoss",
    "hinge_loss": "HingeLoss",
    "huber_loss": "HuberLoss",
    "jaccard_loss": "JaccardLoss",
    "kl_div_loss": "KLDivLoss",
    "l1_loss": "L1Loss",
    "mse_loss": "MSELoss",
    "polynomial_loss": "PolynomialLoss",
    "sensitivity_specificity_loss": "SensitivitySpecificityLoss",
    "sigmoid_free_loss": "SigmoidFreeLoss",
    "tversky_loss": "TverskyLoss",
    "unified_focal_loss": "UnifiedFocalLoss",
}
COMPOUNDS = ("combo_loss", "unified_focal_loss")
LOGITS_ONLY = ("hinge_loss", "sigmoid_free_loss")
TWO_SIDED = (  # binary and multilabel only
    "bce_with_logits_loss",
    "broken_loss",
    "combo_loss",
    "hinge_loss",
    "polynomial_loss",
    "sigmoid_free_loss",
)


@dataclass
class Case:
    """A loss, by name, with its options."""

    loss: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = "-".join(
            f"{k}={'table' if isinstance(v, (tuple, list)) and len(v) == CLASSES else v}"
            for k, v in self.options.items()
        )
        return f"{self.loss}-{self.mode}-{shown}".replace(" ", "")

    def module(self, **data: Any) -> Any:
        if self.loss == "adaptive_log_loss":
            own = {k: v for k, v in self.options.items() if k not in ("base", "base_options")}
            base = Case(self.options["base"], self.mode, self.options.get("base_options", {})).module(**data)
            return segfuse.AdaptiveLogLoss(base, **own)
        cls = getattr(segfuse, CLASS_NAME[self.loss])
        mode = {} if self.loss == "cross_entropy_loss" else {"mode": self.mode}
        return cls(**mode, **self.options, **data)

    def reference(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, **data: Any) -> Tensor:
        """The oracle, in float64."""
        if target.is_floating_point():
            target = target.double()
        if weight is not None:
            weight = weight.double()
        function = getattr(segfuse.reference, self.loss)
        return function(logits.double(), target, mode=self.mode, weight=weight, **self.options, **data)

    def allows(self, reduction: str, from_logits: bool = True) -> bool:
        """Whether the loss takes this reduction, and probabilities if not `from_logits`."""
        pools = {**self.options, **self.options.get("base_options", {})}.get("pool_batch", False)
        if reduction == "sample" and pools:
            return False
        if reduction == "none" and self.loss in COMPOUNDS:
            return False
        return from_logits or self.loss not in LOGITS_ONLY

    @property
    def is_region(self) -> bool:
        return issubclass(getattr(segfuse, CLASS_NAME[self.loss]), (segfuse.region.RegionLoss, segfuse.AdaptiveLogLoss))


def multiclass(loss: str, **options: Any) -> Case:
    return Case(loss, "multiclass", options)


# Losses of class indices: a pointwise and a region loss of the engine `label_map`, and one that it does not take.
LABEL_MAPS = [
    multiclass("cross_entropy_loss"),
    multiclass("tversky_loss", alpha=0.3, beta=0.7),
    multiclass("focal_loss", gamma=2.0),
]


def point_cases() -> Iterator[Case]:
    for mode in ("binary", "multilabel"):
        one = mode == "binary"
        yield Case("bce_with_logits_loss", mode)
        yield Case("bce_with_logits_loss", mode, {"pos_weight": 2.5})
        yield Case("bce_with_logits_loss", mode, {"balanced": True})
        yield Case("bce_with_logits_loss", mode, {"label_smoothing": 0.15, "pos_weight": (3.0,) if one else PER_CLASS})
        yield Case("bce_with_logits_loss", mode, {"label_smoothing": 0.3, "balanced": True})
        for gamma in (0.0, 0.5, 2.0, 2.5):
            yield Case("focal_loss", mode, {"gamma": gamma, "alpha": 0.3})
        yield Case("focal_loss", mode, {"alpha": (0.8,) if one else (0.2, 0.9, 0.7, 0.4, 0.5)})
        yield Case("polynomial_loss", mode, {"asymmetry": 2.5})
        yield Case("polynomial_loss", mode, {"exponents": (6,)})
        yield Case("polynomial_loss", mode, {"exponents": (1, 3, 11, 2), "asymmetry": 0.3})
        yield Case("sigmoid_free_loss", mode, {"asymmetry": 2.5})
        yield Case("broken_loss", mode, {"asymmetry": 0.4})
        yield Case("hinge_loss", mode)
    for mode in MODES:
        yield Case("mse_loss", mode)
        yield Case("l1_loss", mode)
        for delta in (0.2, 1.0):
            yield Case("huber_loss", mode, {"delta": delta})
        yield Case("kl_div_loss", mode)
    yield Case("cross_entropy_loss", "multiclass")
    yield Case("cross_entropy_loss", "multiclass", {"class_weight": PER_CLASS})
    yield Case("cross_entropy_loss", "multiclass", {"label_smoothing": 0.2})
    yield Case("cross_entropy_loss", "multiclass", {"label_smoothing": 0.1, "class_weight": PER_CLASS})
    for gamma in (0.0, 0.5, 2.0, 2.5):
        yield Case("focal_loss", "multiclass", {"gamma": gamma})
    yield Case("focal_loss", "multiclass", {"gamma": 1.5, "alpha": PER_CLASS})


def region_cases() -> Iterator[Case]:
    tversky = {"alpha": 0.3, "beta": 0.7}
    for mode in MODES:
        many = mode != "binary"
        weights: dict[str, Any] = {"class_weight": PER_CLASS} if many else {"class_weight": (0.6,)}
        for loss in REGIONS:
            own = tversky if "tversky" in loss else {}
            yield Case(loss, mode, dict(own))
            yield Case(loss, mode, {**own, "smooth": (0.5, 2.0), "pool_batch": True, **weights})
            yield Case(loss, mode, {**own, "squared": True, "smooth": 1.0, "absent": "skip"})
            yield Case(loss, mode, {**own, "soft_label": True, "absent": "zero"})
            yield Case(loss, mode, {**own, "pool_classes": True, "smooth": 0.0, "eps": 1e-7})
            if many:
                yield Case(loss, mode, {**own, "classes": [3, 1], "absent": "skip", **weights})
                yield Case(loss, mode, {**own, "classes": [1, 2, 4], "pool_classes": True, "pool_batch": True})
        for shape in ("log", "log_cosh"):
            yield Case("tversky_loss", mode, {**tversky, "shape": shape, **weights})
        yield Case("focal_tversky_loss", mode, {**tversky, "gamma": 1.6, "smooth": 1.0})
        yield Case("dice_loss", mode, {"eps": 1e5})  # a floor that is always active
        skewed = {"sensitivity_weight": 0.3}
        yield Case("sensitivity_specificity_loss", mode, dict(skewed))
        yield Case("sensitivity_specificity_loss", mode, {**skewed, "squared_error": True, "smooth": (0.5, 2.0)})
        yield Case("sensitivity_specificity_loss", mode, {**skewed, "pool_batch": True, "shape": "log", **weights})
        yield Case("sensitivity_specificity_loss", mode, {"squared_error": True, "pool_classes": True, "smooth": 0.0})
        for weight_type in ("square", "simple", "uniform"):
            yield Case("generalized_dice_loss", mode, {"weight_type": weight_type, "smooth": (0.5, 0.7)})
        yield Case("generalized_dice_loss", mode, {"pool_batch": True, **weights})
        yield Case("background_tversky_loss", mode, {**tversky, "gamma": 0.6, "pool_batch": True, **weights})
        yield Case("background_tversky_loss", mode, dict(tversky))
        if many:
            yield Case("generalized_dice_loss", mode, {"classes": [4, 1, 2], "soft_label": True, **weights})
            yield Case("sensitivity_specificity_loss", mode, {**skewed, "classes": [2, 0], "absent": "skip"})
        for base, own in (
            ("dice_loss", {}),
            ("focal_tversky_loss", {**tversky, "gamma": 1.4, "pool_batch": True, **weights}),
            ("tversky_loss", {**tversky, "shape": "log_cosh", "squared": True}),
        ):
            yield Case("adaptive_log_loss", mode, {"base": base, "base_options": own})
        yield Case("adaptive_log_loss", mode, {"base": "dice_loss", "omega": 3.0, "gamma": 0.7, "epsilon": 0.2})


def compound_cases() -> Iterator[Case]:
    for mode in MODES:
        own = {"num_classes": CLASSES} if mode == "multiclass" else {}
        for asymmetric in (True, False):
            skewed = {"focal_weight": 0.3, "delta": 0.7, "gamma": 0.4, "asymmetric": asymmetric}
            yield Case("unified_focal_loss", mode, {**own, **skewed})
        if mode != "multiclass":
            yield Case("combo_loss", mode, {"alpha": 0.3, "beta": 0.8})
            yield Case("combo_loss", mode, {"alpha": 0.6, "beta": 1.0, "smooth": (0.0, 1.0)})


CASES = [*point_cases(), *region_cases(), *compound_cases()]
REDUCED = [(case, reduction) for case in CASES for reduction in REDUCTIONS if case.allows(reduction)]
# Cases that take probabilities.
OF_PROBABILITIES = [case for case in CASES if case.allows("mean", from_logits=False)]
# One case for each path through the kernels.
PATHS = [
    Case("bce_with_logits_loss", "binary", {"pos_weight": 2.5}),
    Case("focal_loss", "multilabel", {"gamma": 2.5, "alpha": 0.3}),
    Case("focal_loss", "binary", {"alpha": 0.3}),
    Case("tversky_loss", "binary", {"alpha": 0.3, "beta": 0.7}),
    Case("tversky_loss", "multilabel", {"alpha": 0.3, "beta": 0.7, "squared": True}),
    Case("cross_entropy_loss", "multiclass"),
    Case("cross_entropy_loss", "multiclass", {"label_smoothing": 0.1}),
    Case("focal_loss", "multiclass", {"gamma": 1.5}),
    Case("tversky_loss", "multiclass", {"alpha": 0.3, "beta": 0.7}),
    Case("tversky_loss", "multiclass", {"alpha": 0.3, "beta": 0.7, "soft_label": True}),
]


def shape_of(mode: str, *space: int) -> tuple[int, ...]:
    """Logits of three samples."""
    return (3, 1, *space) if mode == "binary" else (3, CLASSES, *space)


def make_logits(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def make_target(mode: str, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, soft: bool = False) -> Tensor:
    """Labels for logits of a shape. One sample lacks one class, so absent rows occur."""
    if mode == "multiclass":
        if soft:
            return torch.rand(shape).softmax(1).to(dtype)
        labels = torch.randint(0, min(shape[1], 2 if dtype == torch.bool else shape[1]), (shape[0], *shape[2:]))
        labels[0][labels[0] == 1] = 0
        return labels.to(dtype)
    if soft:
        return torch.rand(shape).to(dtype)
    labels = torch.rand(shape) < 0.3
    labels[0, 0] = False
    return labels.to(dtype)


def make_weight(mode: str, shape: tuple[int, ...]) -> Tensor:
    """Weights with zeros among them, one value per pixel (per element in multilabel)."""
    grid = (shape[0], *shape[2:]) if mode == "multiclass" else shape
    return torch.rand(grid) * (torch.rand(grid) > 0.2)


def check_close(actual: Tensor, expected: Tensor, tolerance: float, what: str, floor: float = 1e-300) -> None:
    """No element differs by more than the tolerance times the largest element, plus the floor."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} against {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    expected = expected.double()
    scale = expected.abs().max().item()
    error = (actual.double() - expected).abs().max().item()
    assert math.isfinite(scale), f"{what}: the oracle gives {scale}"
    assert error <= tolerance * scale + floor, f"{what}: off by {error:.3g} of {scale:.3g}, {error / (scale or 1):.3g}"


def check_case(
    case: Case, logits: Tensor, target: Tensor, weight: Tensor | None = None, slack: float = 1.0, **data: Any
) -> None:
    """Value and gradient of a case against the oracle, under a random upstream gradient."""
    loss_tolerance, gradient_tolerance = (slack * t for t in TOLERANCE[logits.dtype])
    logits = logits.detach().requires_grad_()
    value = case.module(**data)(logits, target, weight)
    exact_logits = logits.detach().double().requires_grad_()
    exact = case.reference(exact_logits, target, weight, **data)
    wide = logits.dtype == torch.float64
    assert value.dtype == (torch.float64 if wide else torch.float32)
    check_close(value.detach(), exact.detach(), loss_tolerance, "loss")
    upstream = torch.rand(exact.shape, dtype=value.dtype) + 0.3
    (gradient,) = torch.autograd.grad(value, logits, upstream)
    (exact_gradient,) = torch.autograd.grad(exact, exact_logits, upstream.double())
    assert gradient.dtype == logits.dtype
    # Half of the smallest float16: without a GradScaler, small gradients are rounded by so much.
    floor = 2.0**-25 if logits.dtype == torch.float16 else 1e-300
    check_close(gradient, exact_gradient, gradient_tolerance, "gradient", floor)
