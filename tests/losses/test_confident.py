"""Pixels that are all confidently right or all confidently wrong: nothing but small numbers, none of them lost."""

from __future__ import annotations

from itertools import product
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, CLASSES, TOLERANCE, Case, check_case, check_close, make_logits, make_target, shape_of

# Beyond a gap of 20 the oracle's own float64 loses digits; mpmath takes over below.
GAPS = (5.0, 10.0, 15.0, 20.0)


def gaps_of(case: Case) -> tuple[float, ...]:
    """Powers of p that are no normal float32 are 0."""
    return GAPS[:2] if case.loss in ("broken_loss", "polynomial_loss") else GAPS


def confident(mode: str, gap: float, right: bool) -> tuple[Tensor, Tensor]:
    """Logits (2, C, 3, 4) of which each pixel has one far ahead, and labels."""
    shape = (2, *shape_of(mode, 3, 4)[1:])
    target = make_target(mode, shape)
    if mode == "multiclass":
        likely = target if right else (target + torch.randint(1, CLASSES, target.shape)) % CLASSES
        ahead = torch.nn.functional.one_hot(likely, CLASSES).movedim(-1, 1) * 1.0
    else:
        target[1, ..., 0] = 1
        ahead = (2.0 * target - 1) * (1 if right else -1)
    return ahead * gap + 0.3 * torch.randn(shape), target


def labels_of(mode: str, target: Tensor, certain: float) -> Tensor:
    """Soft labels, `certain` of each."""
    hot = torch.nn.functional.one_hot(target, CLASSES).movedim(-1, 1) if mode == "multiclass" else target
    rest = (1 - certain) / (CLASSES - 1 if mode == "multiclass" else 1)
    return (hot * certain + (1 - hot) * rest).float()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_loss(case: Case, right: bool) -> None:
    for gap in gaps_of(case):
        logits, target = confident(case.mode, gap, right)
        check_case(case, logits, target, slack=2.0)  # the errors of some pixels do not average out


# What their docstrings say: KL is the cross-entropy less the label's entropy, in float32; weights of 1 / T² are 1e12
# times those of other classes where T is nearly 0.
UNSURE = ("kl_div_loss", "generalized_dice_loss")


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("case", [c for c in CASES if c.loss not in UNSURE], ids=str)
def test_every_loss_of_soft_labels(case: Case, right: bool) -> None:
    for gap, certain in product(gaps_of(case), (0.9, 1 - 1e-6)):
        logits, target = confident(case.mode, gap, right)
        check_case(case, logits, labels_of(case.mode, target, certain), slack=2.0)


def exact_softmax(logits: list[float]) -> list[Any]:
    powers = [mpmath.exp(mpmath.mpf(z)) for z in logits]
    total = sum(powers)
    return [power / total for power in powers]


# ℓ of e = p - t, and dℓ/dp. The Dice loss is no function of one e: in the test.
OF_PROBABILITY: dict[str, tuple[Any, Any]] = {
    "l1_loss": (lambda e: abs(e), lambda e: mpmath.sign(e)),
    "mse_loss": (lambda e: e * e, lambda e: 2 * e),
    "huber_loss": (lambda e: e * e / 2, lambda e: e),
    "dice_loss": (None, None),
}


@pytest.mark.parametrize("gap", [5.0, 10.0, 20.0, 40.0, 60.0])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("loss", OF_PROBABILITY)
def test_losses_of_probabilities_at_any_gap(loss: str, right: bool, gap: float) -> None:
    """Each pixel's gradient in every class, against 60 digits."""
    logits = torch.tensor([[gap, 0.3, -0.2], [0.1, gap, 0.7], [-0.4, 0.2, gap], [gap, -0.1, gap - 3]])
    target = torch.tensor([0, 1, 2, 0]) if right else torch.tensor([1, 2, 0, 1])
    value, slope = OF_PROBABILITY[loss]
    with mpmath.workdps(60):
        for z, y in zip(logits, target, strict=True):
            p = exact_softmax(z.tolist())
            t = [1 if c == y else 0 for c in range(3)]
            if loss == "dice_loss":  # of one pixel, no smoothing: per class 1 - 2 t p / (t + p)
                slopes = [(-2 * t[c] * t[c] / (t[c] + p[c]) ** 2) / 3 for c in range(3)]
                values = [(1 - 2 * t[c] * p[c] / (t[c] + p[c])) / 3 for c in range(3)]
                module: Any = segfuse.DiceLoss("multiclass", smooth=0.0)
            else:
                slopes = [slope(p[c] - t[c]) / 3 for c in range(3)]
                values = [value(p[c] - t[c]) / 3 for c in range(3)]
                # p - t without cancellation: -(1 - p) is minus the others.
                own = -sum(p[c] for c in range(3) if c != y)
                slopes[y], values[y] = slope(own) / 3, value(own) / 3
                module = Case(loss, "multiclass").module()
            mean = sum(a * b for a, b in zip(p, slopes, strict=True))
            exact = [float(p[c] * (slopes[c] - mean)) for c in range(3)]
            leaf = z.reshape(1, 3, 1).clone().requires_grad_()
            found = module(leaf, y.reshape(1, 1))
            (gradient,) = torch.autograd.grad(found, leaf, torch.tensor(1.7))
            check_close(gradient.flatten() / 1.7, torch.tensor(exact), TOLERANCE[torch.float32][1], f"{z} {y}", 1e-38)
            check_close(found.detach(), torch.tensor(float(sum(values))), 2e-6, "loss", 1e-38)


SMALL_SCORES = [
    Case(loss, mode, {**options, "shape": "log", "smooth": smooth})
    for smooth in (0.0, 1e-5)
    for mode in ("binary", "multilabel", "multiclass")
    for loss, options in (
        ("dice_loss", {"soft_label": True}),
        ("jaccard_loss", {"soft_label": True}),
        ("tversky_loss", {"soft_label": True, "alpha": 0.3, "beta": 0.7}),
        ("tversky_loss", {"squared": True, "alpha": 0.3, "beta": 0.7}),
        ("sensitivity_specificity_loss", {"sensitivity_weight": 0.3}),
        ("sensitivity_specificity_loss", {"sensitivity_weight": 0.3, "squared_error": True}),
        ("sensitivity_specificity_loss", {"sensitivity_weight": 0.0, "pool_batch": True}),
    )
]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("case", SMALL_SCORES, ids=str)
def test_shapes_that_magnify_small_scores(case: Case, soft: bool) -> None:
    """Nothing is found, and what is found is wrong: a score of 1e-4 is a sum of its own, not 1 less something."""
    shape = (2, *shape_of(case.mode, 32, 32)[1:])
    target = make_target(case.mode, shape)
    if case.mode == "multiclass":  # the label is the least likely class, another one nearly certain
        hot = torch.nn.functional.one_hot(target, CLASSES).movedim(-1, 1)
        wrong = torch.nn.functional.one_hot((target + 1) % CLASSES, CLASSES).movedim(-1, 1)
        logits = make_logits(shape, scale=0.1) + 9.2 * (wrong - hot)
    else:
        logits = make_logits(shape, scale=0.1) + 9.2 * (1.0 - 2 * target)
    check_case(case, logits, labels_of(case.mode, target, 1.0) if soft else target)


def test_the_soft_labels_that_were_reported() -> None:
    logits = -9.2 + 0.1 * torch.randn(1, 1, 32, 32)
    target = (torch.rand(1, 1, 32, 32) < 0.5).float()
    check_case(Case("dice_loss", "binary", {"soft_label": True, "shape": "log"}), logits, target)


def test_true_negatives_where_hardly_any_are() -> None:
    """tn of rows is summed, not left over from fp."""
    logits = 12 + 0.1 * torch.randn(3, 1, 64, 64)
    target = (torch.rand(3, 1, 64, 64) < 0.5).long()
    stats = segfuse.region_stats(logits, target, mode="binary")
    exact = segfuse.reference.region_stats(logits.double(), target, mode="binary")
    for name, one, other in zip(("tp", "fp", "fn", "tn"), stats, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0, msg=name)
