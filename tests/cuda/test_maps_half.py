"""Label maps of half precision on the CUDA kernels: the error of their cheaper formulas (csrc/link.h), and labels that
do not count, at any place within a vector."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from cases import TOLERANCE, Case, check_case, check_close, make_logits, make_target, make_weight, multiclass
from segfuse._core import native

HALVES = (torch.bfloat16, torch.float16)
CLASSES = (2, 3, 4, 5, 8, 19)
LABELS = (torch.uint8, torch.int32, torch.int64)
SIZE = (40, 48)  # whole vectors, and too many pixels to read several samples as one
CROSS_ENTROPY, DICE = multiclass("cross_entropy_loss"), multiclass("dice_loss")
TVERSKY = multiclass("tversky_loss", alpha=0.3, beta=0.7)

pytestmark = pytest.mark.usefixtures("cuda_kernels")


def ahead(target: Tensor, classes: int, gap: float) -> Tensor:
    """Logits in which the class of `target` leads."""
    hot = torch.nn.functional.one_hot(target.long(), classes).movedim(-1, 1)
    return (gap * hot + 0.3 * torch.randn(hot.shape)).contiguous()


def wrong_by(target: Tensor, classes: int) -> Tensor:
    return (target + torch.randint(1, classes, target.shape)) % classes


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy_is_as_exact_as_promised(classes: int, dtype: torch.dtype) -> None:
    """Many pixels that are nearly perfect, all wrong, or undecided."""
    target = torch.randint(classes, (2, *SIZE))
    inputs = [make_logits((2, classes, *SIZE)), torch.zeros(2, classes, *SIZE)]
    for gap in (4.0, 7.0, 9.0, 12.0, 15.0, 17.0, 20.0, 40.0):
        inputs += [ahead(target, classes, gap), ahead(wrong_by(target, classes), classes, gap)]
    weights = tuple(0.3 + 0.2 * c for c in range(classes))
    for logits, case in product(inputs, (CROSS_ENTROPY, multiclass("cross_entropy_loss", class_weight=weights))):
        z = logits.to(dtype)
        with native.trace() as events:
            found = case.module()(z, target.to(torch.uint8)).double().item()
        assert events[0].kernel.startswith("label_map.statistics")
        exact = case.reference(z, target).item()
        bound = min(2e-7 * max(1, math.log2(classes)), exact / 2000) + 1e-6 * exact
        assert abs(found - exact) <= bound, f"{found} against {exact}"


@pytest.mark.parametrize("gap", [6.0, 12.0, 16.0, 20.0])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_p_and_q_keep_their_digits(classes: int, dtype: torch.dtype, gap: float) -> None:
    """Right and wrong pixels, each class at the peak: small p, small q, and gradients that are small differences."""
    for peak, case in product(range(classes), (DICE, TVERSKY)):
        target = torch.full((2, *SIZE), peak)
        logits = ahead(target, classes, gap).to(dtype)
        wrong = wrong_by(target, classes)
        for labels in (target, wrong, torch.where(torch.rand(target.shape) < 0.5, target, wrong)):
            check_case(case, logits, labels.to(torch.uint8))
    both = DICE.module() + 0.7 * CROSS_ENTROPY.module()
    target = torch.randint(classes, (2, *SIZE))
    logits = ahead(wrong_by(target, classes), classes, gap).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(both(logits, target), logits, torch.tensor(1.7))
    sought = DICE.reference(exact, target) + 0.7 * CROSS_ENTROPY.reference(exact, target)
    (expected,) = torch.autograd.grad(sought, exact, torch.tensor(1.7).double())
    check_close(found, expected, TOLERANCE[dtype][1], "gradient", 2.0**-25 if dtype == torch.float16 else 1e-300)


def test_logits_as_large_as_bfloat16_has() -> None:
    """Classes that tie at the peak, and classes that are one rounding below it."""
    target = torch.randint(3, (1, *SIZE))
    for large, case in product((1e8, 1e20, 3e38), (CROSS_ENTROPY, TVERSKY)):
        logits = ahead(target, 3, 4.0)
        logits[:, :, ::2] = large * torch.tensor([1.0, 1.0, 0.99]).view(1, 3, 1, 1)
        logits[:, :, ::4] = -logits[:, :, ::4]
        if case is CROSS_ENTROPY:  # a label far below the peak would give a loss as large as its logits
            target[:, ::2] = torch.randint(2, target[:, ::2].shape)
            target[:, ::4] = 2
        check_case(case, logits.to(torch.bfloat16), target.to(torch.uint8))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [CROSS_ENTROPY, TVERSKY], ids=str)
def test_logits_that_are_not_finite(case: Case, dtype: torch.dtype) -> None:
    """The loss is NaN. Of the gradient, only the pixel is."""
    target = torch.randint(3, (1, *SIZE))
    for value, scheme in product((math.nan, math.inf), ("two_pass", "automatic")):
        logits = make_logits((1, 3, *SIZE)).to(dtype)
        logits[0, 1, 3, 5] = value
        logits.requires_grad_()
        with native.scheme(scheme):
            loss = case.module()(logits, target)
        assert loss.isnan()
        if case is CROSS_ENTROPY:
            bad = torch.autograd.grad(loss, logits)[0].isnan()
            assert bad[0, :, 3, 5].all()
            assert bad.sum() == 3


@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_one_label_of_a_vector(dtype: torch.dtype, labels: torch.dtype, position: int) -> None:
    """A label out of range gives NaN. An ignored pixel, or one of weight 0, has no effect, even with logits of NaN."""
    classes, at = 5, 64 + position
    for case in (CROSS_ENTROPY, multiclass("cross_entropy_loss", class_weight=(9, 1, 0.5, 2, 1)), TVERSKY):
        target = torch.randint(1, classes, (1, *SIZE))
        logits = make_logits((1, classes, *SIZE)).to(dtype)
        for wrong in (classes, 127, 128, 255):
            bad = target.clone()
            bad.flatten()[at] = wrong
            assert case.module()(logits, bad.to(labels)).isnan()
        logits.flatten(2)[..., at] = math.nan
        plain = logits.clone()
        plain.flatten(2)[..., at] = 0.0
        weight = torch.ones(1, *SIZE)
        weight.flatten()[at] = 0
        for ignored in (None, 0, 255):
            given = target.clone()
            if ignored is not None:
                given.flatten()[at] = ignored
            data = ({"ignore_index": ignored}, None) if ignored is not None else ({}, weight)
            results = []
            for z, y, w in ((logits, given.to(labels), data[1]), (plain, target, weight)):
                leaf = z.clone().requires_grad_()
                value = case.module(**(data[0] if y is not target else {}))(leaf, y, w)
                for factor in (1.7, math.inf):
                    (gradient,) = torch.autograd.grad(value, leaf, torch.tensor(factor), retain_graph=True)
                    assert (gradient.flatten(2)[..., at] == 0).all()
                    if factor == 1.7:
                        results += [value.detach(), gradient]
            check_close(results[0], results[2], 1e-6, "loss")
            check_close(results[1], results[3], TOLERANCE[dtype][1], "gradient")


@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_weights_and_ignored_labels(classes: int, dtype: torch.dtype, labels: torch.dtype) -> None:
    shape = (2, classes, *SIZE)
    for ignored, weighs, case in product((None, 1, 255), (False, True), (CROSS_ENTROPY, TVERSKY)):
        target = make_target("multiclass", shape)
        target[:, 3:7] = 0 if ignored is None else ignored
        data = {} if ignored is None else {"ignore_index": ignored}
        for reduction in ("mean", "none"):
            weight = make_weight("multiclass", shape) if weighs else None
            check_case(case, make_logits(shape, dtype), target.to(labels), weight, reduction=reduction, **data)
