"""Weights that are not finite, too large or negative, and upstream gradients that are not finite: never a silent 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, CLASSES, COMPOUNDS, Case, check_close, make_logits, make_target, make_weight, shape_of

INF, NAN = math.inf, math.nan
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "class_weight": lambda w: segfuse.CrossEntropyLoss(class_weight=[1, 1, w]),
    "class_weight of rows": lambda w: segfuse.DiceLoss("multiclass", class_weight=torch.tensor([1, w, 1.0])),
    "alpha": lambda w: segfuse.FocalLoss("multilabel", alpha=w),
    "alpha of classes": lambda w: segfuse.FocalLoss("multiclass", alpha=(0.5, w)),
    "pos_weight": lambda w: segfuse.BCEWithLogitsLoss("binary", pos_weight=w),
    "pos_weight of channels": lambda w: segfuse.DiceBCELoss("multilabel", pos_weight=[w, 2.0]),
    "ce_class_weight": lambda w: segfuse.DiceCELoss(ce_class_weight=[w, 1.0]),
    "asymmetry": lambda w: segfuse.PolynomialLoss("binary", asymmetry=w),
}


def both(loss: Callable[..., Tensor], logits: Tensor, *rest: Any, upstream: float = 1.7) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, *rest)
    (gradient,) = torch.autograd.grad(value, leaf, torch.full_like(value, upstream))
    return value.detach(), gradient


@pytest.mark.parametrize("weight", [INF, -INF, NAN, -0.5])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_finite_and_not_negative(option: str, weight: float) -> None:
    name = option.split()[0].removeprefix("ce_")
    with pytest.raises(ValueError, match=rf"^{name} must .*{weight}"):
        OPTIONS[option](weight)
    assert OPTIONS[option](0.5) is not None


@pytest.mark.parametrize("weight", [INF, NAN])
def test_a_coefficient_is_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        weight * segfuse.DiceLoss("binary")


@pytest.mark.parametrize("weight", [INF, NAN])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pixel_weight_that_is_not_finite_reaches_the_loss(case: Case, weight: float) -> None:
    shape = shape_of(case.mode, 5, 9)
    logits, target = make_logits(shape), make_target(case.mode, shape)
    weights = make_weight(case.mode, shape)
    weights[1, ..., 2, 3], weights[..., 4, 4] = weight, 0
    value, gradient = both(case.module(), logits, target, weights)
    assert not value.isfinite()
    assert not gradient[1].isfinite().all()
    ignored = gradient[..., 4, 4]
    assert torch.equal(ignored, torch.zeros_like(ignored))
    together = case.module(reduction="sum") + case.module(reduction="sum")
    assert not together(logits, target, weights).isfinite()


def test_weights_that_became_infinite_reach_the_loss() -> None:
    """By a state_dict or in place, where no constructor sees them."""
    shape = shape_of("multiclass", 5, 9)
    logits, target = make_logits(shape), make_target("multiclass", shape)
    for make in (segfuse.CrossEntropyLoss, lambda **o: segfuse.DiceLoss("multiclass", **o)):
        loss: Any = make(class_weight=[1.0] * CLASSES)
        loss.class_weight[2] = INF
        for each in (loss, loss + segfuse.FocalLoss("multiclass")):
            value, gradient = both(each, logits, target)
            assert not value.isfinite()
            assert gradient.isnan().any()


def test_sums_that_overflow_are_not_zero() -> None:
    """Class weights of 1e38: right in float64, where float32 sums overflow not a number."""
    shape = shape_of("multiclass", 40, 40)
    logits, target = make_logits(shape), make_target("multiclass", shape)
    weights = [1.0, 1.0, 1e38, 1.0, 1.0]
    loss = segfuse.CrossEntropyLoss(class_weight=weights)
    exact = segfuse.reference.cross_entropy_loss(logits.double(), target, class_weight=weights)
    check_close(loss(logits.double(), target), exact, 1e-12, "float64")
    value, gradient = both(loss, logits, target)
    assert value.isnan()
    assert gradient.isnan().all()
    rows = segfuse.DiceLoss("multiclass", class_weight=weights)
    check_close(
        rows(logits, target),
        segfuse.reference.dice_loss(logits.double(), target, mode="multiclass", class_weight=weights),
        1e-6,
        "rows",
    )


# Balanced factors are themselves means.
POINTWISE = [c for c in CASES if not c.is_region and c.loss not in COMPOUNDS and "balanced" not in c.options]


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_negative_pixel_weights(case: Case, reduction: str) -> None:
    """Σ w ℓ, also where Σ w is 0 although pixels count."""
    shape = (2, *shape_of(case.mode, 4, 8)[1:])
    logits, target = make_logits(shape), make_target(case.mode, shape)
    weight = make_weight(case.mode, shape) + 0.1
    weight[1] = -weight[0]
    value, gradient = both(case.module(reduction=reduction), logits, target, weight)
    leaf = logits.double().requires_grad_()
    exact = case.reference(leaf, target, weight, reduction=reduction)
    (exact_gradient,) = torch.autograd.grad(exact, leaf, torch.full_like(exact, 1.7))
    largest = case.reference(logits, target, weight.abs(), reduction=reduction).abs().max().item()
    check_close(value, exact.detach(), 0.0, "loss", floor=1e-6 * largest)
    check_close(gradient, exact_gradient, 2e-5, "gradient")
    assert gradient.any()


@pytest.mark.parametrize("upstream", [INF, NAN])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_upstream_gradient_that_is_not_finite_spares_ignored_pixels(case: Case, upstream: float) -> None:
    shape = shape_of(case.mode, 5, 8)  # for 16-byte loads, too
    logits, target = make_logits(shape), make_target(case.mode, shape)
    ignored = torch.rand(target.shape) < 0.4
    pixels = ignored.unsqueeze(1).expand(shape) if case.mode == "multiclass" else ignored
    for labels, weight in ((target.masked_fill(ignored, 255), None), (target, (~ignored).float())):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = logits.contiguous(memory_format=layout)
            value, gradient = both(case.module(ignore_index=255), x, labels, weight, upstream=upstream)
            assert value.isfinite()
            assert not gradient[pixels].any()
            assert not gradient[~pixels].isfinite().all()


WEIGHT_SHAPES = (  # logits, weight, what the message says
    ((2, 3, 4, 3), (3,), r"one number per sample, \(2,\).*reshape\(1, 1, -1\).*class_weight="),
    ((2, 3, 4, 5), (5,), r"one number per sample, \(2,\).*reshape\(1, 1, -1\)$"),
    ((3, 3, 4, 5), (3,), r"one per sample or one per class.*reshape\(-1, 1, 1, 1\).*class_weight="),
    ((2, 3, 4, 5), (3, 1, 1), "does not broadcast.*class_weight="),
)


@pytest.mark.parametrize(("shape", "weight", "message"), WEIGHT_SHAPES)
@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
def test_class_weights_are_no_pixel_weights(
    mode: str, shape: tuple[int, ...], weight: tuple[int, ...], message: str
) -> None:
    loss: Any = segfuse.DiceLoss(mode)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(shape), make_target(mode, shape), torch.ones(weight))
    # One weight per sample, or per column when the shape says so.
    for fits in ((shape[0], 1, 1), (1, 1, shape[-1]), (1, shape[-1]), (1,)):
        assert loss(torch.zeros(shape), make_target(mode, shape), torch.ones(fits)).isfinite()


SAMPLES = {
    "binary": ((3, 1, 4, 3), (3, 4, 3), (3, 5)),
    "multilabel": ((3, 2, 4, 3), (3, 2, 3)),
    "multiclass": ((3, 2, 4, 3), (3, 5, 3)),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample"])
@pytest.mark.parametrize("mode", SAMPLES)
def test_a_weight_per_sample(mode: str, reduction: str) -> None:
    """(N,) is (N, 1, ...), also where there are as many columns. A weight of 0 takes out a sample, NaN included."""
    for case in (Case("dice_loss", mode), Case("focal_loss", mode, {"gamma": 1.5}), Case("tversky_loss", mode)):
        for shape in SAMPLES[mode]:
            logits = make_logits(shape)
            labels = torch.randint(0, shape[1], (shape[0], *shape[2:])) if mode == "multiclass" else None
            target = make_target(mode, shape) if labels is None else labels
            weight = torch.tensor([0.3, 0.0, 1.7])
            logits[1] = NAN
            whole = weight.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            expected = both(
                case.module(reduction=reduction), logits, target, whole[:, :1] if mode == "multiclass" else whole
            )
            found = both(case.module(reduction=reduction), logits, target, weight)
            exact = case.reference(logits, target, weight, reduction=reduction)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
            check_close(found[0], exact, 1e-6, "loss")
