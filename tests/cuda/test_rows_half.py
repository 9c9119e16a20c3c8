"""Rows of hard labels in half precision, which have their own code in csrc/cuda/sigmoid.h.

The error of a logarithm there is bounded by LOG per pixel plus 1e-6 of the loss, so a small loss has fewer digits.
p and 1 - p keep all digits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, TOLERANCE, Case, check_case, check_close, make_logits, make_target, shape_of
from environment import LAUNCHED, THIN
from segfuse._core import native

HALF = (torch.float16, torch.bfloat16)
LABELS = (torch.uint8, torch.bool)
SPACE = (72, 130)  # several chunks, and the last group of each plane is cut off
BCE = Case("bce_with_logits_loss", "binary")
FOCAL = Case("focal_loss", "binary")
DICE = Case("dice_loss", "binary", {"smooth": 0.0})
# The largest error of -log p. BCE takes one logarithm of a product of pixels, focal loss one of each: csrc/link.h
LOG = {BCE.loss: 6.1e-8, FOCAL.loss: 2.4e-7}

pytestmark = pytest.mark.usefixtures("cuda_kernels")


def labels(dtype: torch.dtype, space: tuple[int, ...] = SPACE) -> Tensor:
    return make_target("binary", (3, 1, *space), dtype)


def filled(value: float, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Logits of `value` and a little more, with the sign of the label."""
    return lambda target: ((2.0 * target - 1) * (value + 0.1 * torch.rand(target.shape))).to(dtype)


# From all right to all wrong. From 17 on, the product of 1 + exp(-z) does not grow.
INPUTS = {str(value): value for value in (0.0, 1.0, 6.0, 10.0, 13.0, 17.0, 30.0, 200.0, -1.0, -10.0, -30.0, -200.0)}


@pytest.mark.parametrize("value", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", [BCE, FOCAL], ids=str)
def test_the_bound_of_the_loss(case: Case, dtype: torch.dtype, value: float) -> None:
    for label_dtype in LABELS:
        target = labels(label_dtype)
        logits = filled(value, dtype)(target)
        loss, exact = case.module()(logits, target).double(), case.reference(logits, target)
        assert (loss - exact).abs() <= LOG[case.loss] + 1e-6 * exact


@pytest.mark.parametrize("value", [v for v in INPUTS.values() if abs(v) <= 30])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_sums_of_probabilities_keep_their_digits(dtype: torch.dtype, value: float) -> None:
    """p and 1 - p, each to 1e-6 of itself, however small the sum."""
    for label_dtype in LABELS:
        target = labels(label_dtype)
        logits = filled(value, dtype)(target)
        found = segfuse.region_stats(logits, target, mode="binary")
        exact = segfuse.reference.region_stats(logits.double(), target, mode="binary")
        for name, one, other in zip(("tp", "fp", "fn", "tn"), found, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("value", [v for v in INPUTS.values() if abs(v) <= 10])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", [BCE, FOCAL, DICE], ids=str)
def test_gradients_of_confident_pixels(case: Case, dtype: torch.dtype, value: float) -> None:
    """The error is relative to the largest gradient, which is small if all pixels are right."""
    target = labels(torch.uint8)
    logits = filled(value, dtype)(target).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    scale = 2.0**14  # as with a GradScaler: float16 would underflow
    data = {"reduction": "sum"} if case is not DICE else {}
    factor = scale * (1 if case is not DICE else target[0].numel())
    (gradient,) = torch.autograd.grad(case.module(**data)(logits, target) * factor, logits)
    (expected,) = torch.autograd.grad(case.reference(exact, target, **data) * factor, exact)
    check_close(gradient, expected, TOLERANCE[dtype][1], "gradient", 2.0**-24)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.mode != "multiclass"], ids=str)
def test_every_loss_of_rows(case: Case, dtype: torch.dtype) -> None:
    """Also losses and weights that the code for half precision does not take."""
    shape = shape_of(case.mode, 32, 72)
    for label_dtype in LABELS:
        target = make_target(case.mode, shape, label_dtype)
        check_case(case, make_logits(shape, dtype), target, slack=1.5)
    target = target.to(torch.uint8)
    weight = torch.rand(shape) * (torch.rand(shape) > 0.2)
    check_case(case, make_logits(shape, dtype), target, weight, slack=1.5)
    target[..., ::5] = 255
    check_case(case, make_logits(shape, dtype), target, ignore_index=255, slack=1.5)


@pytest.mark.parametrize("scheme", ["two_pass", "gradient_in_forward"])
def test_both_schemes(scheme: str) -> None:
    for smoothing in (0.0, 0.1):
        case = Case("bce_with_logits_loss", "binary", {"pos_weight": 2.5, "label_smoothing": smoothing})
        with native.scheme(scheme):
            check_case(case, make_logits((3, 1, *SPACE), torch.bfloat16), labels(torch.bool))


@pytest.mark.parametrize("wrong", [2, 3, 128, 255])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_wrong_label_makes_everything_nan(dtype: torch.dtype, wrong: int) -> None:
    """In all sums of its row. In the gradient, only in its group of 8 pixels."""
    for position in (0, 5, 2047, 2048, 9352, 9359):
        target = labels(torch.uint8)
        target[1].flatten()[position] = wrong
        for stats in segfuse.region_stats(make_logits(target.shape, dtype), target, mode="binary"):
            assert stats.isnan().flatten().tolist() == [False, True, False]
        for case in (BCE, FOCAL, DICE, Case("bce_with_logits_loss", "binary", {"balanced": True})):
            logits = make_logits(target.shape, dtype).requires_grad_()
            loss = case.module(reduction="sample")(logits, target)
            assert loss.isnan().tolist() == [False, True, False]
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            nan = gradient.isnan().flatten(1)
            assert nan[1, position]
            assert not nan[0].any()
            assert not nan[2].any()
        for case in (BCE, FOCAL):  # of a sum: no factor is NaN, so only the group of the pixel is
            logits = make_logits(target.shape, dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(case.module(reduction="sum")(logits, target), logits)
            first = position // 8 * 8
            assert gradient[1].flatten().isnan().nonzero().flatten().tolist() in (
                [position],
                [*range(first, first + 8)],
            )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 6e4, -6e4])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", [BCE, FOCAL, DICE], ids=str)
def test_logits_that_are_not_finite(case: Case, dtype: torch.dtype, value: float) -> None:
    """At one pixel, with label 0 and with label 1."""
    for position, label in itertools.product((0, 7, 4096), (0, 1)):
        target = labels(torch.uint8)
        target[0, 0, 0, 0] = 1
        logits = make_logits(target.shape, dtype)
        logits[1].flatten()[position] = value
        target[1].flatten()[position] = label
        loss, exact = (
            case.module(reduction="sample")(logits, target),
            case.reference(logits, target, reduction="sample"),
        )
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0, equal_nan=True)
        assert loss[1].isnan() == math.isnan(value)


def test_a_long_row_of_perfect_pixels() -> None:
    """The loss is never negative and at most its bound, although thousands of products are rounded."""
    for dtype, value in itertools.product(HALF, (8.0, 16.0, 17.0, 40.0)):
        target = (torch.rand(1, 1, 2**17) < 0.5).to(torch.uint8)
        logits = ((2.0 * target - 1) * value).to(dtype)
        loss, exact = BCE.module()(logits, target).double(), BCE.reference(logits, target)
        assert 0 <= loss <= exact + LOG[BCE.loss]
        assert (loss - exact).abs() <= LOG[BCE.loss]


@pytest.mark.skipif(THIN > 1, reason="SEGFUSE_THIN leaves tests out")
def test_every_kernel_of_half_precision_was_launched() -> None:
    """Otherwise the tests above would test other kernels."""
    for name, step in itertools.product(
        ("float16, none", "float16, bce", "bfloat16, focal_square"), ("statistics", "gradient")
    ):
        assert LAUNCHED[f"sigmoid.{step}<{name}>"], LAUNCHED
    assert LAUNCHED["sigmoid.fused<bfloat16, bce>"]
