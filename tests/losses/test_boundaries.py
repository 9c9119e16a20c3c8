"""Where formulas have corners: kinks, p = 0 and 1, infinite logits, rows without a label. Value and slope, exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import REDUCED, Case, check_case, shape_of
from segfuse._core import steps
from segfuse._core.calls import Constants
from segfuse._core.engines import required_engine
from segfuse._core.plan import data_of

INF = math.inf

# Loss, options, (logit, label, value, slope) of single pixels, by hand from the formulas.
PIXELS: list[tuple[str, dict[str, Any], list[tuple[float, float, float, float]]]] = [
    ("hinge_loss", {}, [(1.0, 1, 0.0, 0.0), (-1.0, 0, 0.0, 0.0), (0.5, 1, 0.5, -1.0), (0.5, 0, 1.5, 1.0)]),
    ("hinge_loss", {}, [(3.0, 0.5, 1.0, 0.0), (INF, 0.5, 1.0, 0.0), (INF, 1, 0.0, 0.0)]),
    (
        "sigmoid_free_loss",
        {"asymmetry": 3.0},
        [
            (0.0, 1, 6 * 0.0625, -3.0),
            (0.0, 0, 2 * 0.0625, 1.0),
            (0.5, 1, 0.0, 0.0),
            (-0.5, 0, 0.0, 0.0),
            (-2.0, 1, 6 * (1.0 + 0.0625), -3.0),
            (0.25, 1, 6 * 0.25**4, -6 * 4 * 0.25**3),
            (INF, 1, 0.0, 0.0),
            (-INF, 0, 0.0, 0.0),
        ],
    ),
    ("mse_loss", {}, [(INF, 1, 0.0, 0.0), (-INF, 1, 1.0, 0.0), (0.0, 0.5, 0.0, 0.0), (0.0, 1, 0.25, -0.25)]),
    ("l1_loss", {}, [(0.0, 0.5, 0.0, 0.0), (0.0, 1, 0.5, -0.25), (0.0, 0, 0.5, 0.25), (INF, 0, 1.0, 0.0)]),
    ("huber_loss", {"delta": 0.5}, [(0.0, 0, 0.125, 0.125), (0.0, 1, 0.125, -0.125), (INF, 0, 0.375, 0.0)]),
    ("huber_loss", {"delta": 0.25}, [(0.0, 1, 0.25 * 0.375, -0.0625), (0.0, 0.5, 0.0, 0.0)]),
    (
        "polynomial_loss",
        {"exponents": (1, 3), "asymmetry": 2.0},
        [(INF, 1, 0.0, 0.0), (-INF, 1, 4.0, 0.0), (0.0, 0, 0.5 + 0.125, (1 + 0.75) / 4), (-INF, 0, 0.0, 0.0)],
    ),
    ("kl_div_loss", {}, [(INF, 1, 0.0, 0.0), (-INF, 0, 0.0, 0.0), (0.0, 0.5, 0.0, 0.0), (0.0, 1, math.log(2), -0.5)]),
    ("focal_loss", {"gamma": 0.5}, [(INF, 1, 0.0, 0.0), (-INF, 0, 0.0, 0.0)]),
]
# The same of probabilities.
PROBABILITIES: list[tuple[str, dict[str, Any], list[tuple[float, float, float, float]]]] = [
    ("broken_loss", {"asymmetry": 3.0}, [(0.5, 0, 3 / 16, 1.5), (0.75, 0, 3 * 0.3125, 3.0)]),
    ("broken_loss", {"asymmetry": 3.0}, [(0.5, 1, 1 / 16, -0.5), (0.25, 1, 0.3125, -1.0)]),
    ("broken_loss", {}, [(0.0, 0, 0.0, 0.0), (1.0, 1, 0.0, 0.0), (1.0, 0, 1 - 7 / 16, 1.0)]),
    ("l1_loss", {}, [(0.25, 0.25, 0.0, 0.0), (1.0, 1, 0.0, 0.0), (0.0, 1, 1.0, -1.0)]),
    ("huber_loss", {"delta": 0.25}, [(0.5, 0.25, 0.03125, 0.25), (0.0, 1, 0.25 * 0.875, -0.25)]),
    ("mse_loss", {}, [(0.0, 1, 1.0, -2.0), (1.0, 1, 0.0, 0.0)]),
    ("polynomial_loss", {"exponents": (6,)}, [(1.0, 0, 1.0, 6.0), (0.0, 1, 1.0, -6.0), (0.0, 0, 0.0, 0.0)]),
    ("focal_loss", {"gamma": 0.5}, [(1.0, 1, 0.0, 0.0), (0.0, 0, 0.0, 0.0)]),
    ("kl_div_loss", {}, [(0.0, 0, 0.0, 1.0), (0.25, 0.25, 0.0, 0.0)]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_corners_of_pixels(from_logits: bool, dtype: torch.dtype) -> None:
    for name, options, points in PIXELS if from_logits else PROBABILITIES:
        x, t, values, slopes = torch.tensor(points, dtype=dtype).unbind(1)
        for function in (getattr(segfuse, name), getattr(segfuse.reference, name)):
            leaf = x.clone().unsqueeze(0).requires_grad_()
            data = {} if name in ("hinge_loss", "sigmoid_free_loss") else {"from_logits": from_logits}
            loss = function(leaf, t.unsqueeze(0), mode="binary", reduction="none", **options, **data)
            (gradient,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 3.0))
            torch.testing.assert_close(loss[0], values, rtol=1e-6, atol=2e-7, msg=lambda m, n=name: f"{n} value: {m}")
            torch.testing.assert_close(
                gradient[0], 3 * slopes, rtol=1e-6, atol=2e-7, msg=lambda m, n=name: f"{n} slope: {m}"
            )


def rows(*labels: int) -> tuple[Tensor, Tensor]:
    """Random logits of five classes beside a label map that holds these labels only."""
    torch.manual_seed(3)
    target = torch.tensor(labels)[torch.randint(0, len(labels), (2, 9, 8))]
    return torch.randn(2, 5, 9, 8) * 2, target


@pytest.mark.parametrize("labels", [(0,), (2,), (1, 3)], ids=str)
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("generalized_dice_loss", {"weight_type": "square"}),
        ("generalized_dice_loss", {"weight_type": "simple", "pool_batch": True}),
        ("generalized_dice_loss", {"weight_type": "uniform", "smooth": 0.0}),
        ("sensitivity_specificity_loss", {"sensitivity_weight": 0.3, "smooth": 0.0}),
        ("sensitivity_specificity_loss", {"sensitivity_weight": 0.3, "squared_error": True, "absent": "skip"}),
        ("background_tversky_loss", {"alpha": 0.3, "beta": 0.7, "smooth": 0.0}),
        ("adaptive_log_loss", {"base": "dice_loss", "base_options": {"absent": "zero"}}),
    ],
)
def test_absent_classes(loss: str, options: dict[str, Any], labels: tuple[int, ...]) -> None:
    check_case(Case(loss, "multiclass", options), *rows(*labels))


def test_a_class_without_a_label_takes_the_largest_factor() -> None:
    """v = 1/T² of classes 0 and 1 (T = 3 and 1), and 1 of class 2, which is not there."""
    p = torch.tensor([[[0.7, 0.2, 0.6, 0.1], [0.2, 0.5, 0.3, 0.6], [0.1, 0.3, 0.1, 0.3]]], dtype=torch.float64)
    target = torch.tensor([[0, 0, 0, 1]])
    overlap = (0.7 + 0.2 + 0.6) / 9 + 0.6
    volume = (1.6 + 3) / 9 + (1.6 + 1) + 0.8
    loss = segfuse.generalized_dice_loss(p, target, mode="multiclass", from_logits=False, smooth=(0.25, 0.5))
    assert loss.item() == pytest.approx(1 - (2 * overlap + 0.25) / (volume + 0.5), rel=1e-12)


def test_the_adaptive_loss_is_continuous_and_its_slope_is_not() -> None:
    """Of one pixel without smoothing the Dice loss is 1 - 2p / (1 + p): any value can be had."""

    def at(loss: float) -> tuple[float, float]:
        p = torch.tensor([[(1 - loss) / (1 + loss)]], dtype=torch.float64, requires_grad=True)
        base = segfuse.DiceLoss("binary", smooth=0.0, from_logits=False)
        value = segfuse.AdaptiveLogLoss(base, omega=10.0, gamma=0.1, epsilon=0.5)(p, torch.ones(1, 1))
        (slope,) = torch.autograd.grad(value, p)
        (of_dice,) = torch.autograd.grad(base(p, torch.ones(1, 1)), p)
        return value.item(), (slope / of_dice).item()

    below, above, far = at(0.1 - 1e-9), at(0.1 + 1e-9), at(0.8)
    assert below[0] == pytest.approx(10 * math.log(1.2), rel=1e-7)
    assert above[0] == pytest.approx(below[0], rel=1e-7)
    assert below[1] == pytest.approx(10 / 0.6, rel=1e-6)
    assert above[1] == pytest.approx(1.0, rel=1e-9)
    assert far[0] == pytest.approx(0.8 + 10 * math.log(1.2) - 0.1, rel=1e-9)


def test_the_unified_loss_of_two_classes_is_the_binary_one() -> None:
    """Two softmax classes whose logits differ by z are a sigmoid of z."""
    z, t = torch.randn(2, 1, 7, 9) * 2, (torch.rand(2, 7, 9) < 0.3).long()
    pair = torch.cat([torch.zeros_like(z), z], 1)
    for options in ({}, {"asymmetric": False, "delta": 0.8}, {"gamma": 0.2, "focal_weight": 0.9, "reduction": "sum"}):
        binary = segfuse.UnifiedFocalLoss("binary", **options)(z, t)
        torch.testing.assert_close(segfuse.UnifiedFocalLoss("multiclass", 2, **options)(pair, t), binary)


@pytest.mark.parametrize(("case", "reduction"), REDUCED, ids=str)
def test_the_head_without_samples_pixels_or_both(case: Case, reduction: str) -> None:
    """A rank without samples finishes with what the others have summed: no count of outputs may divide."""
    loss = case.module(reduction=reduction)
    for n, space in ((0, (4, 6)), (0, (0,)), (3, (0, 6))):
        shape = torch.Size((n, *shape_of(case.mode, *space)[1:]))
        x, y = torch.zeros(shape), torch.zeros((n, *space) if case.mode == "multiclass" else shape, dtype=torch.int64)
        class_values = loss._class_values(x, y, None)
        data, constants = data_of(loss.plan, x, y, None), Constants(class_values)
        sums = steps.statistics(loss.plan, data, constants)
        results = steps.new_results(loss.plan, shape, torch.float32, x.device)
        required_engine(x.device).head(
            x.device,
            loss.plan,
            shape,
            False,
            constants,
            sums,
            results,
            lambda vector: vector.add_(torch.rand_like(vector) + 0.5),  # what another rank has
        )
        gradient = steps.backward(loss.plan, torch.ones_like(results.loss), data, class_values, results.slopes)
        value = results.loss
        assert value.isfinite().all()
        assert gradient.shape == shape
