"""The edges: nothing valid, nothing there, not finite, saturated, nearly perfect, very large, very small."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import PER_CLASS, REGIONS, TOLERANCE, Case, check_case, check_close, make_logits, make_target, shape_of
from environment import DEVICE, SHIM

TVERSKY = {"alpha": 0.3, "beta": 0.7}
MULTILABEL, MULTICLASS = "multilabel", "multiclass"


def changed(case: Case, **options: Any) -> Case:
    return Case(case.loss, case.mode, {**case.options, **options})


def every(mode: str) -> list[Case]:
    """Every loss of a mode, and every way a region loss sums."""
    point = [Case("focal_loss", mode, {"gamma": gamma}) for gamma in (0.0, 0.5, 1.0, 2.0, 2.5)]
    point += [Case("focal_loss", mode, {"alpha": PER_CLASS if mode == MULTICLASS else 0.3})]
    if mode == MULTICLASS:
        point += [Case("cross_entropy_loss", mode), Case("cross_entropy_loss", mode, {"class_weight": PER_CLASS})]
    else:
        point += [Case("bce_with_logits_loss", mode, options) for options in ({"pos_weight": 2.5}, {"balanced": True})]
    region = [Case(loss, mode, TVERSKY if "tversky" in loss else {}) for loss in REGIONS]
    ways: list[dict[str, Any]] = [{"squared": True}, {"soft_label": True}, {"shape": "log"}, {"shape": "log_cosh"}]
    ways += [{"pool_batch": True, "smooth": (0.5, 2.0)}, {"pool_classes": True}, {"absent": "skip"}]
    return [*point, *region, *(Case("tversky_loss", mode, {**TVERSKY, **way}) for way in ways)]


EVERY = [case for mode in ("binary", MULTILABEL, MULTICLASS) for case in every(mode)]
each = pytest.mark.parametrize("case", EVERY, ids=str)
each_region = pytest.mark.parametrize("case", [case for case in EVERY if case.is_region], ids=str)


def run(
    case: Case, logits: Tensor, target: Tensor, weight: Tensor | None = None, upstream: float = 1.7, **data: Any
) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    logits = logits.detach().clone().requires_grad_()
    loss = case.module(**data)(logits, target, weight)
    (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))
    return loss.detach(), gradient


def reductions(case: Case) -> list[str]:
    return ["mean", "sum", "none"] + ([] if "pool_batch" in case.options else ["sample"])


def inputs(case: Case, *space: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    shape = shape_of(case.mode, *space)
    return make_logits(shape, dtype), make_target(case.mode, shape)


def one_hot(case: Case, target: Tensor) -> Tensor:
    if case.mode == MULTICLASS:
        target = torch.nn.functional.one_hot(target, len(PER_CLASS)).movedim(-1, 1)
    return target.double()


@each
def test_nothing_valid_gives_zero(case: Case) -> None:
    logits, target = inputs(case, 5, 13)
    nothing = torch.zeros(target.shape)
    hows = (case, changed(case, smooth=1.0)) if case.is_region else (case,)
    for how, reduction in product(hows, reductions(case)):
        shape = run(how, logits, target, reduction=reduction)[0].shape
        for labels, weight in ((target * 0 + 255, None), (target, nothing), (target, nothing.bool())):
            loss, gradient = run(how, logits, labels, weight, reduction=reduction, ignore_index=255)
            assert torch.equal(loss, torch.zeros(shape)), (reduction, loss)
            assert not gradient.any(), reduction


@each
def test_no_pixels_or_no_samples(case: Case) -> None:
    channels = shape_of(case.mode)[1]
    for shape in ((0, channels, 4, 6), (3, channels, 0, 6), (0, channels), (0, channels, 0)):
        target = torch.empty((shape[0], *shape[2:]) if case.mode == MULTICLASS else shape, dtype=torch.int64)
        for reduction in reductions(case):
            loss, gradient = run(case, torch.empty(shape), target, reduction=reduction)
            assert gradient.shape == shape
            assert loss.shape == case.reference(torch.empty(shape), target, reduction=reduction).shape
            assert not loss.any(), (shape, reduction, loss)


@each
def test_one_sample_without_a_valid_pixel(case: Case) -> None:
    logits, target = inputs(case, 6, 11)
    target[1] = 255
    for reduction in reductions(case):
        check_case(case, logits, target, reduction=reduction, ignore_index=255)
    loss, gradient = run(case, logits, target, reduction="none", ignore_index=255)
    assert not gradient[1].any()
    if not case.is_region:
        assert not loss[1].any()
        assert run(case, logits, target, reduction="sample", ignore_index=255)[0][1] == 0
    elif case.loss == "dice_loss":  # by its formula: 1 - (0 + nr) / (0 + dr), and 0/0 is a score of 1
        for smooth, row in (((0.5, 2.0), 0.75), (0.0, 0.0), (1.0, 0.0)):
            loss, _ = run(changed(case, smooth=smooth), logits, target, reduction="none", ignore_index=255)
            assert (loss[1] == row).all()


@each_region
def test_nothing_to_find_and_nothing_found_scores_one(case: Case) -> None:
    case = changed(case, smooth=0.0)
    logits, target = inputs(case, 7, 9)
    logits[:, 0] = -1e4
    if case.mode == MULTICLASS:
        target[target == 0] = 3
    else:
        target[:, 0] = 0
    for reduction in reductions(case):
        check_case(case, logits, target, reduction=reduction)
    rows, gradient = run(case, logits, target, reduction="none")
    assert not gradient[:, 0].any()
    assert "pool_classes" in case.options or not rows.reshape(-1, logits.shape[1])[:, 0].any()


@pytest.mark.parametrize("pool_batch", [False, True])
@pytest.mark.parametrize("mode", [MULTILABEL, MULTICLASS])
@pytest.mark.parametrize("loss", REGIONS)
def test_absent(loss: str, mode: str, pool_batch: bool) -> None:
    case = Case(loss, mode, {"smooth": 0.8, "pool_batch": pool_batch, **(TVERSKY if "tversky" in loss else {})})
    logits, target = inputs(case, 4, 9, dtype=torch.float64)
    labels, weight = one_hot(case, target), torch.rand(3, 1, 4, 9).double()
    labels[0, 0], labels[:, 3] = 0, 0  # absent: class 0 of sample 0, class 3 everywhere,
    weight[1] *= 1 - labels[1, 2:3]  # and class 2 of sample 1 by its weight
    mass = (labels * weight).flatten(2).sum(2)
    present = (mass.sum(0) if pool_batch else mass) > 0
    assert 0 < present.sum() < present.numel()
    row_weight = torch.tensor(PER_CLASS, dtype=torch.float64).expand(present.shape)
    rows = case.module(reduction="none")(logits.requires_grad_(), labels, weight) * row_weight
    for absent, kept, counted in (("score", 1, 1), ("zero", present, 1), ("skip", present, present)):
        for reduction, dims in (("sum", None), ("mean", None), ("sample", 1)):
            if not (pool_batch and reduction == "sample"):
                divisor = 1 if reduction == "sum" else (row_weight * counted).sum(dims)
                module = changed(case, absent=absent, class_weight=PER_CLASS).module(reduction=reduction)
                pair = module(logits, labels, weight), (rows * kept).sum(dims) / divisor
                check_close(*(v.detach() for v in pair), 1e-12, f"{absent} {reduction}")
                upstream = torch.rand_like(pair[1]) + 0.3
                slopes = [torch.autograd.grad(v, logits, upstream, retain_graph=True)[0] for v in pair]
                check_close(*slopes, 1e-12, f"gradient, {absent} {reduction}")
        if absent != "score":  # no class at all
            assert not any(v.any() for v in run(changed(case, absent=absent), logits, labels * 0))


@each
def test_ignored_pixels_are_not_read(case: Case) -> None:
    logits, target = inputs(case, 5, 13)
    ignored = torch.rand(target.shape) < 0.3
    pixels = ignored.unsqueeze(1).expand_as(logits) if case.mode == MULTICLASS else ignored
    soft = logits.softmax(1) if case.mode == MULTICLASS else logits.sigmoid()
    for x, labels, weight, data in (
        (logits, target.masked_fill(ignored, 255).byte(), None, {"ignore_index": 255}),
        (logits, target, (~ignored).float(), {}),
        (logits, soft.masked_fill(pixels, math.nan), ~ignored, {}),
        (soft, target, (~ignored).long(), {"from_logits": False}),
    ):
        for reduction in ("mean", "none"):
            expected = run(case, x.masked_fill(pixels, 0), labels, weight, reduction=reduction, **data)
            assert all(v.isfinite().all() for v in expected)
            assert not expected[1][pixels].any()
            for poison in (math.nan, math.inf, -math.inf, 3e38):
                found = run(case, x.masked_fill(pixels, poison), labels, weight, reduction=reduction, **data)
                assert all(map(torch.equal, found, expected)), (poison, reduction, data)


@each
def test_ignoring_is_deleting(case: Case) -> None:
    shape = (1, *shape_of(case.mode, 157)[1:])
    logits, target = make_logits(shape, torch.float64), make_target(case.mode, shape)
    if case.mode != MULTICLASS:
        target[..., ::3] = 1
    keep, half = torch.rand(157) < 0.6, torch.arange(157) > 70
    for reduction in ("mean", "sum"):
        loss, gradient = run(case, logits[..., keep], target[..., keep], reduction=reduction)
        for labels, weight, index in (
            (target.masked_fill(~keep, 7), None, 7),
            (target.to(torch.int8).masked_fill(~keep, -100), None, -100),
            (target, keep[None], None),
            (target, keep.double().expand_as(target), None),
            (target.masked_fill(~keep & half, 9), (keep | half)[None], 9),
        ):
            found = run(case, logits, labels, weight, reduction=reduction, ignore_index=index)
            check_close(found[0], loss, 1e-12, "loss")
            check_close(found[1][..., keep], gradient, 1e-12, "gradient")
            assert not found[1][..., ~keep].any()


def test_ignore_index_is_compared_as_an_integer() -> None:
    logits, labels = torch.randn(2, 200, 5, 7), torch.randint(150, 160, (2, 5, 7))
    for case in (Case("cross_entropy_loss", MULTICLASS), Case("dice_loss", MULTICLASS)):
        expected = run(case, logits, labels, ignore_index=None)
        for index, dtype in ((-100, torch.uint8), (156 + 2**8, torch.uint8), (156 + 2**16, torch.int16)):
            assert all(map(torch.equal, run(case, logits, labels.to(dtype), ignore_index=index), expected))
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
            assert not any(v.any() for v in run(case, logits, (labels * 0 - 100).to(dtype), ignore_index=-100))
        if DEVICE == "cpu" and SHIM is None:  # else NaN: tests/cuda/test_labels.py
            with pytest.raises(IndexError, match=" -1 "):
                run(case, logits, (labels * 0 - 1).to(torch.int8), ignore_index=255)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each
def test_what_is_not_finite_propagates(case: Case, value: float) -> None:
    logits, target = inputs(case, 5, 13)
    logits[1, 0, 2, 3] = value
    for reduction in reductions(case):
        loss, gradient = run(case, logits, target, reduction=reduction)
        exact = case.reference(logits, target, reduction=reduction)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0, equal_nan=True)
        assert not math.isnan(value) or (loss.isnan().any() and gradient[1, 0, 2, 3].isnan())


def test_infinite_logits_of_bce() -> None:
    logits, target = torch.tensor([1, 1, -1, -1]) * math.inf, torch.tensor([1, 0, 1, 0])
    loss, gradient = run(Case("bce_with_logits_loss", "binary"), logits, target, upstream=1.5, reduction="none")
    assert loss.tolist() == [0, math.inf, math.inf, 0]
    assert gradient.tolist() == [0, 1.5, -1.5, 0]


@each
def test_saturated_predictions(case: Case) -> None:
    target = make_target(case.mode, shape := shape_of(case.mode, 17, 19))
    side = (one_hot(case, target) - 0.5) * (1 if case.mode == MULTICLASS else 2)
    for gap in (9.2, 14.0, -9.2, -14.0):  # 1 - p about 1e-4 and 1e-6, right and wrong
        check_case(case, (side * (gap + torch.rand(shape))).float(), target)
    minus_infinity = side.sign().masked_fill((side < 0) & (torch.rand(shape) < 0.7), -math.inf)
    for wide in (side * 1e4 + torch.rand(shape), side * -1e4 + torch.rand(shape), minus_infinity):
        for logits, reduction in product((wide, wide.float()), reductions(case)):
            loss, gradient = run(case, logits, target, reduction=reduction)
            check_close(loss, case.reference(logits, target, reduction=reduction), TOLERANCE[logits.dtype][0], "loss")
            assert gradient.isfinite().all()
            assert not gradient[logits == -math.inf].any()


@pytest.mark.parametrize("largest", [3e8, 1e12, 1e35])
@each
def test_logits_of_any_size(case: Case, largest: float) -> None:
    """What masks a class may mask all of a pixel. (A product of 3e9 with log2(e) is rounded by more than 128.)"""
    logits, target = inputs(case, 7, 19)
    steps = (logits * 2).round().clamp(-2, 2)  # with ties
    for values in (
        steps / 2,
        (steps - 3) / 5,
        torch.where(logits < 0, logits, steps / 2),
        torch.full_like(logits, -1.0),
    ):
        huge = torch.where((values == logits) | (torch.rand(7, 19) < 0.2), logits, values * largest)
        for wide in (huge, huge.double(), huge.bfloat16()):
            check_case(case, wide, target)
    masked = torch.where(torch.rand(logits[:, :1].shape) < 0.3, torch.finfo(torch.float32).min, logits)
    if case.mode == MULTICLASS:  # a softmax of equal logits
        check_case(case, masked, target)


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 2**20), (torch.float64, 2**8)], ids=str)
def test_hopeless_predictions_of_many_pixels(dtype: torch.dtype, count: int) -> None:
    # Every slope is a quotient of positive sums; taken from 1 - loss, where the loss is near 1, it loses its digits.
    logits = 15 - 30 * torch.eye(3, dtype=dtype) + torch.tensor([[0.5], [0], [0]])
    case, labels = Case("tversky_loss", MULTICLASS, TVERSKY), torch.arange(3).repeat(count)[None]
    found = run(case, logits.repeat(1, count)[None], labels, upstream=1.0)[1][0, :, :3]
    p, own = logits.double().softmax(0), torch.eye(3) > 0
    hits, rest = count * p.diag() + 1e-5, count * (0.3 * (p * ~own).sum(1) + 0.7 * (p * ~own).sum(0))
    slopes = torch.where(own, -(rest + 0.7 * hits), 0.3 * hits[:, None]) / (hits + rest)[:, None] ** 2
    check_close(found, p * (slopes - (p * slopes).sum(0)) / 3, TOLERANCE[dtype][1], "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each
def test_equal_predictions_of_many_pixels(case: Case, dtype: torch.dtype) -> None:
    case = changed(case, smooth=0.0) if case.is_region else case  # so that copies of the pixels change nothing
    channels, labels = shape_of(case.mode)[1], torch.tensor([4, 0, 0, 3, 0, 1, 0, 2])
    target = labels[None] if case.mode == MULTICLASS else (labels > torch.arange(channels)[:, None]).long()[None]
    logits = torch.linspace(-1.3, 1.9, channels)[:, None].expand(1, channels, 8).to(dtype)
    copies = 2 ** (19 if case.mode == "binary" and dtype == torch.float32 else 14)
    scale = 65536.0  # without a loss scale half gradients of so many pixels are denormal
    loss, gradient = run(case, logits.repeat(1, 1, copies), torch.cat([target] * copies, -1), upstream=scale)
    exact_logits = logits.double().requires_grad_()
    exact = case.reference(exact_logits, target)
    (exact_gradient,) = torch.autograd.grad(exact * scale / copies, exact_logits)
    check_close(loss, exact.detach(), TOLERANCE[dtype][0], "loss")
    gradient = gradient.reshape(1, channels, copies, 8)
    check_close(gradient[:, :, 0], exact_gradient, TOLERANCE[dtype][1], "gradient")
    assert torch.equal(gradient, gradient[:, :, :1].expand_as(gradient))


@each
def test_few_pixels_and_classes(case: Case) -> None:
    own_classes = case.mode == "binary" or PER_CLASS in case.options.values()
    for classes in (shape_of(case.mode)[1],) if own_classes else range(2, 8):
        for shape in ((1, classes), (2, classes), (1, classes, 1, 1), (2, classes, 1)):
            logits, target = make_logits(shape, scale=1.5), make_target(case.mode, shape)
            check_case(case, logits, target, slack=2.0)  # the errors of a single pixel do not average out


@pytest.mark.parametrize("loss", REGIONS)
def test_soft_labels_are_their_own_minimum(loss: str) -> None:
    target, step = torch.rand(2, 2, 1, 9, 11, dtype=torch.float64) * 0.8 + 0.1
    for options in ({}, TVERSKY) if "tversky" in loss else ({},):
        case = Case(loss, "binary", {**options, "soft_label": True})
        value, gradient = run(case, target, target, from_logits=False)
        assert value == 0
        assert options or not gradient.any()  # under unequal alpha and beta the mean of the two slopes is not 0
        value, gradient = run(case, target + 0.1 * (step - 0.5), target, from_logits=False)
        assert value > 0
        assert torch.equal(gradient.sign(), (step - 0.5).sign())
