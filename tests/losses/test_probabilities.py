"""Values that must be probabilities and are not: soft labels, and inputs with from_logits=False."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, OF_PROBABILITIES, Case, check_case, make_logits, make_target, shape_of
from environment import DEVICE, SHIM

RAISES = DEVICE == "cpu" and SHIM is None
# Outside by more than the rounding of interpolated labels, which is left alone.
OUTSIDE = (255.0, -100.0, 1.01, -0.001, math.inf, -math.inf)
INSIDE = (1.00005, -0.00005)


def refused(case: Case, logits: Tensor, target: Tensor, message: str, **data: Any) -> None:
    """An error on the CPU; elsewhere, where nobody waits for the device, loss and gradient are NaN."""
    logits = logits.detach().requires_grad_()
    loss = case.module(**data)
    if RAISES:
        with pytest.raises(IndexError, match=message):
            loss(logits, target)
        with pytest.raises(IndexError, match="outside"):
            case.reference(logits, target, **data)
    else:
        value = loss(logits, target)
        assert value.isnan().any()
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.isnan().any()


def scored(case: Case) -> int:
    """A class that the loss reads."""
    return 0 if case.mode == "binary" else case.options.get("classes", [1])[0]  # type: ignore[no-any-return]


def soft(case: Case, *space: int) -> tuple[Tensor, Tensor]:
    shape = shape_of(case.mode, *space)
    return make_logits(shape), make_target(case.mode, shape, torch.float32, soft=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_soft_labels(case: Case) -> None:
    for value, dtype in zip((*OUTSIDE, math.nan), cycle((torch.float32, torch.bfloat16, torch.float64)), strict=False):
        logits, target = soft(case, 6, 8)
        target = target.to(dtype)
        channel = scored(case)
        target[1, channel, 2, 3] = target[2, channel, 1, 1] = value
        rounded = target[1, channel, 2, 3].item()  # bfloat16 has 1.0078125 for 1.01
        number = rf"{float(torch.tensor(rounded, dtype=torch.float32)):.9g}"
        message = rf"^target: value {number} .*\[0, 1\]; 2 such .*sample 1, channel {channel} at .* 19"
        refused(case, logits, target, message.replace("+", r"\+"))
    for inside in INSIDE:
        logits, target = soft(case, 6, 8)
        target[1, 0, 2, 3] = inside
        assert case.module()(logits, target).isfinite()
        assert case.reference(logits, target).isfinite()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_soft_labels_that_do_not_count_are_not_read(case: Case) -> None:
    logits, target = soft(case, 5, 7)
    keep = torch.rand(5, 7) < 0.7
    poisoned = torch.where(keep, target, 255.0)
    expected = case.module()(logits, target, keep)
    assert torch.equal(case.module()(logits, poisoned, keep), expected)
    if case.mode != "multiclass":
        assert torch.equal(case.module(ignore_index=255)(logits, poisoned), expected)
        check_case(case, logits, poisoned, ignore_index=255)


@pytest.mark.parametrize("case", OF_PROBABILITIES, ids=str)
def test_inputs_that_are_no_probabilities(case: Case) -> None:
    shape = shape_of(case.mode, 6, 8)
    logits, target = make_logits(shape), make_target(case.mode, shape)
    probabilities = logits.softmax(1) if case.mode == "multiclass" else logits.sigmoid()
    for value, dtype in zip((*OUTSIDE[2:], 7.5), cycle((torch.float32, torch.float16, torch.float64)), strict=False):
        p = probabilities.clone().to(dtype)
        channel = scored(case)
        p[1, channel, 2, 3] = value
        where = rf"sample 1, channel {channel} at .* 19; .*from_logits"
        message = rf"^logits: value .* outside \[0, 1\]; 1 such .*{where}"
        refused(case, p, target, message, from_logits=False)
    for inside in INSIDE:
        p = probabilities.clone()
        p[:, :, 2, 3] = inside
        assert case.module(from_logits=False)(p, target).isfinite()
    p = probabilities.clone()
    p[1, :, 2, 3] = math.nan  # of a network that diverged: GradScaler is to see it
    assert case.module(from_logits=False, reduction="sum")(p, target).isnan()
    keep = torch.rand(6, 8) < 0.7
    poisoned = torch.where(keep, probabilities, 7.5)
    module = case.module(from_logits=False)
    assert torch.equal(module(poisoned, target, keep), module(probabilities, target, keep))


@pytest.mark.skipif(not RAISES, reason="the CPU kernels tell")
def test_labels_are_told_before_probabilities() -> None:
    p, t = torch.full((2, 1, 300, 300), 1.5), torch.zeros(2, 1, 300, 300)
    t[1, 0, 299, 7] = t[1, 0, 299, 9] = 2.0
    loss = segfuse.DiceLoss("binary", from_logits=False)
    with pytest.raises(IndexError, match=r"^target: value 2 .* 2 such .*sample 1, channel 0 at .* 89707"):
        loss(p, t)
    with pytest.raises(IndexError, match=r"^logits: value 1.5 .* 180000 such .*sample 0, .* position 0;"):
        loss(p, t.clamp(0, 1))


@pytest.mark.skipif(not RAISES, reason="the CPU kernels tell")
@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_check_target_names_them(mode: Any) -> None:
    logits = make_logits(shape_of(mode, 4, 5))
    target = make_target(mode, logits.shape, torch.float32, soft=True)
    probabilities = logits.softmax(1) if mode == "multiclass" else logits.sigmoid()
    keep = torch.ones(4, 5).index_fill(0, torch.tensor([1]), 0)
    poisoned = target.clone()
    poisoned[:, :, 1] = 255
    assert segfuse.check_target(probabilities, target, mode=mode, from_logits=False) is None
    assert segfuse.check_target(logits, poisoned, mode=mode, weight=keep) is None
    with pytest.raises(IndexError, match=r"^target: value 255 .*divide it by 255"):
        segfuse.check_target(logits, poisoned, mode=mode)
    with pytest.raises(IndexError, match=r"^logits: value .*from_logits=False"):
        segfuse.check_target(logits, target, mode=mode, from_logits=False)
