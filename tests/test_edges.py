"""The edges: nothing valid, nothing there, not finite, saturated, nearly perfect, very large, very small."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import (
    CLASSES,
    PER_CLASS,
    REGIONS,
    TOLERANCE,
    Case,
    check_case,
    check_close,
    make_logits,
    make_target,
    shape_of,
)
from torch import Tensor

TVERSKY = {"alpha": 0.3, "beta": 0.7}
REDUCTIONS = ("mean", "sum", "none", "sample")
POISON = (math.nan, math.inf, -math.inf, 3e38)


def every(mode: str) -> list[Case]:
    """Every loss of a mode, and every way a region loss sums."""
    point = [Case("focal_loss", mode, {"gamma": gamma}) for gamma in (0.0, 0.5, 1.0, 2.0, 2.5)]
    if mode == "multiclass":
        point += [Case("focal_loss", mode, {"alpha": PER_CLASS}), Case("cross_entropy_loss", mode)]
        point += [Case("cross_entropy_loss", mode, {"class_weight": PER_CLASS})]
    else:
        point += [Case("focal_loss", mode, {"alpha": 0.3}), Case("bce_with_logits_loss", mode, {"pos_weight": 2.5})]
        point += [Case("bce_with_logits_loss", mode, {"balanced": True})]
    region = [Case(loss, mode, TVERSKY if "tversky" in loss else {}) for loss in REGIONS]
    ways: list[dict[str, Any]] = [{"squared": True}, {"soft_label": True}, {"shape": "log"}, {"shape": "log_cosh"}]
    ways += [{"pool_batch": True, "smooth": (0.5, 2.0)}, {"pool_classes": True}, {"absent": "skip"}]
    return [*point, *region, *(Case("tversky_loss", mode, {**TVERSKY, **way}) for way in ways)]


EVERY = [case for mode in ("binary", "multilabel", "multiclass") for case in every(mode)]
each = pytest.mark.parametrize("case", EVERY, ids=str)
each_region = pytest.mark.parametrize("case", [case for case in EVERY if case.is_region], ids=str)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On a busy machine torch's small operations wait for their second thread a hundred times longer than they run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    case: Case, logits: Tensor, target: Tensor, weight: Tensor | None = None, upstream: float = 1.7, **data: Any
) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    logits = logits.detach().clone().requires_grad_()
    loss = case.module(**data)(logits, target, weight)
    (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))
    return loss.detach(), gradient


def reductions(case: Case) -> list[str]:
    return [r for r in REDUCTIONS if not (r == "sample" and case.options.get("pool_batch"))]


def inputs(case: Case, *space: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    shape = shape_of(case.mode, *space)
    return make_logits(shape, dtype), make_target(case.mode, shape)


def one_hot(case: Case, target: Tensor) -> Tensor:
    if case.mode == "multiclass":
        target = torch.nn.functional.one_hot(target, CLASSES).movedim(-1, 1)
    return target.double()


# -------------------------------------------------------------------------------------------------------- nothing valid


@each
def test_nothing_valid_gives_zero(case: Case) -> None:
    logits, target = inputs(case, 5, 13)
    pixels = target if case.mode == "multiclass" else torch.empty(logits.shape)
    options = {**case.options, **({"smooth": 1.0} if case.is_region else {})}
    for how in (case, Case(case.loss, case.mode, options)):
        for reduction in reductions(case):
            for labels, weight in (
                (torch.full_like(target, 255), None),
                (target, torch.zeros(pixels.shape)),
                (target, torch.zeros(pixels.shape, dtype=torch.bool)),
            ):
                loss, gradient = run(how, logits, labels, weight, reduction=reduction, ignore_index=255)
                assert loss.shape == run(how, logits, target, reduction=reduction)[0].shape
                assert torch.equal(loss, torch.zeros_like(loss)), (reduction, loss)
                assert torch.equal(gradient, torch.zeros_like(gradient)), reduction


@each
def test_no_pixels_or_no_samples(case: Case) -> None:
    channels = CLASSES if case.mode != "binary" else 1
    for shape in ((0, channels, 4, 6), (3, channels, 0, 6), (0, channels), (0, channels, 0)):
        grid = (shape[0], *shape[2:]) if case.mode == "multiclass" else shape
        for reduction in reductions(case):
            loss, gradient = run(case, torch.empty(shape), torch.empty(grid, dtype=torch.int64), reduction=reduction)
            assert gradient.shape == shape
            assert torch.equal(loss, torch.zeros_like(loss)), (shape, reduction)
            expected = case.reference(torch.empty(shape), torch.empty(grid, dtype=torch.int64), reduction=reduction)
            assert loss.shape == expected.shape


@each
def test_one_sample_without_a_valid_pixel(case: Case) -> None:
    logits, target = inputs(case, 6, 11)
    target[1] = 255
    for reduction in reductions(case):
        check_case(case, logits, target, reduction=reduction, ignore_index=255)
    pooled = case.options.get("pool_batch") or case.options.get("pool_classes")
    rows, gradient = run(case, logits, target, reduction="none", ignore_index=255)
    assert not gradient[1].any()
    if not case.is_region:
        assert not rows[1].any()
        assert run(case, logits, target, reduction="sample", ignore_index=255)[0][1] == 0
    elif not pooled:  # the empty row is scored by its formula: (0 + nr) / (0 + dr)
        for smooth, index in (((0.5, 2.0), 0.25), (0.0, 1.0), (1.0, 1.0)):
            if "shape" not in case.options and case.options.get("absent") != "skip":
                score = Case(case.loss, case.mode, {**case.options, "smooth": smooth})
                expected = (1 - index) ** (0.75 if case.loss == "focal_tversky_loss" else 1)
                rows, _ = run(score, logits, target, reduction="none", ignore_index=255)
                torch.testing.assert_close(rows[1], torch.full_like(rows[1], expected), rtol=1e-6, atol=0)


@each_region
def test_nothing_to_find_and_nothing_found_scores_one(case: Case) -> None:
    case = Case(case.loss, case.mode, {**case.options, "smooth": 0.0})
    logits, target = inputs(case, 7, 9)
    if case.mode == "multiclass":  # class 2 of sample 1
        target[target == 2] = 3
        logits[:, 2] = -1e4
    else:
        target[:, 0] = 0
        logits[:, 0] = -1e4
    for reduction in reductions(case):
        check_case(case, logits, target, reduction=reduction)
    empty = 2 if case.mode == "multiclass" else 0
    rows, gradient = run(case, logits, target, reduction="none")
    assert not gradient[:, empty].any()
    if not case.options.get("pool_classes"):
        assert not rows.reshape(-1, logits.shape[1])[:, empty].any()


@pytest.mark.parametrize("pool_batch", [False, True])
@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
@pytest.mark.parametrize("loss", REGIONS)
def test_absent(loss: str, mode: str, pool_batch: bool) -> None:
    options = {"smooth": 0.8, "pool_batch": pool_batch, **(TVERSKY if "tversky" in loss else {})}
    logits, target = inputs(Case(loss, mode), 4, 9, dtype=torch.float64)
    logits.requires_grad_()
    labels = one_hot(Case(loss, mode), target) * torch.tensor([1, 1, 1, 0, 1])[:, None, None]
    labels[0, 0] = 0  # absent: class 0 of sample 0, class 2 of sample 1 by its weight, class 3 everywhere
    weight = torch.rand(3, 1, 4, 9).double() if mode == "multiclass" else torch.rand(3, CLASSES, 4, 9).double()
    weight[1:2][(labels[1:2, 2:3] > 0).expand_as(weight[1:2])] = 0
    mass = (labels * weight).flatten(2).sum(2)
    present = (mass.sum(0) if pool_batch else mass) > 0
    assert 0 < present.sum() < present.numel()
    row_weight = torch.tensor(PER_CLASS, dtype=torch.float64).expand(present.shape)
    rows = Case(loss, mode, options).module(reduction="none")(logits, labels, weight) * row_weight
    assert (rows > 0).all()  # by default the formula scores them all
    for absent, kept, denominator in (
        ("score", 1, row_weight),
        ("zero", present, row_weight),
        ("skip", present, row_weight * present),
    ):
        case, counted = Case(loss, mode, {**options, "absent": absent, "class_weight": PER_CLASS}), rows * kept
        expected = {"none": counted, "sum": counted.sum(), "mean": counted.sum() / denominator.sum()}
        if not pool_batch:
            expected["sample"] = counted.sum(1) / denominator.sum(1)
        for reduction, value in expected.items():
            actual = case.module(reduction=reduction)(logits, labels, weight)
            check_close(actual.detach(), value.detach(), 1e-12, f"{absent} {reduction}")
            upstream = torch.rand_like(value) + 0.3
            gradients = [torch.autograd.grad(v, logits, upstream, retain_graph=True)[0] for v in (actual, value)]
            check_close(gradients[0], gradients[1], 1e-12, f"gradient, {absent} {reduction}")


@each_region
def test_every_class_absent(case: Case) -> None:
    logits, target = inputs(case, 5, 7)
    classes = {"classes": [1, 4]} if case.mode == "multiclass" else {}
    for absent in ("skip", "zero"):
        every_row = Case(case.loss, case.mode, {**case.options, **classes, "absent": absent})
        loss, gradient = run(every_row, logits, target * 0)
        assert loss == 0
        assert not gradient.any()


# -------------------------------------------------------------------------------------------------------------- ignored


@each
def test_ignored_pixels_are_not_read(case: Case) -> None:
    logits, target = inputs(case, 5, 13)
    ignored = torch.rand(target.shape) < 0.3
    pixels = ignored.unsqueeze(1).expand_as(logits) if case.mode == "multiclass" else ignored
    soft = logits.softmax(1) if case.mode == "multiclass" else logits.sigmoid()
    for x, labels, weight, data in (
        (logits, target.masked_fill(ignored, 255).byte(), None, {"ignore_index": 255}),
        (logits, target, (~ignored).float(), {}),
        (logits, soft.masked_fill(pixels, math.nan), ~ignored, {}),
        (soft, target, (~ignored).long(), {"from_logits": False}),
    ):
        for reduction in ("mean", "none"):
            expected = run(case, x.masked_fill(pixels, 0), labels, weight, reduction=reduction, **data)
            assert expected[0].isfinite().all()
            assert expected[1].isfinite().all()
            assert not expected[1][pixels].any()
            for poison in POISON:
                found = run(case, x.masked_fill(pixels, poison), labels, weight, reduction=reduction, **data)
                assert torch.equal(found[0], expected[0]), (poison, reduction, data)
                assert torch.equal(found[1], expected[1]), (poison, reduction, data)


@each
def test_ignoring_is_deleting(case: Case) -> None:
    shape = (1, *shape_of(case.mode, 157)[1:])
    logits, target = make_logits(shape, torch.float64), make_target(case.mode, shape)
    if case.mode != "multiclass":
        target[..., ::3] = 1
    keep = torch.rand(157) < 0.6
    for reduction in ("mean", "sum"):
        expected = run(case, logits[..., keep], target[..., keep], reduction=reduction)
        for labels, weight, index in (
            (target.masked_fill(~keep, 7), None, 7),
            (target.to(torch.int8).masked_fill(~keep, -100), None, -100),
            (target, keep, None),
            (target, keep.double().expand_as(target), None),
            (target.masked_fill(keep.logical_not() & (torch.arange(157) > 70), 9), keep | (torch.arange(157) > 70), 9),
        ):
            loss, gradient = run(case, logits, labels, weight, reduction=reduction, ignore_index=index)
            check_close(loss, expected[0], 1e-12, "loss")
            check_close(gradient[..., keep], expected[1], 1e-12, "gradient")
            assert not gradient[..., ~keep].any()


def test_ignore_index_is_compared_as_an_integer() -> None:
    logits = torch.randn(2, 200, 5, 7)
    labels = torch.randint(150, 160, (2, 5, 7))
    for case in (Case("cross_entropy_loss", "multiclass"), Case("dice_loss", "multiclass")):
        for index, dtype in ((-100, torch.uint8), (156 + 256, torch.uint8), (156 + 2**16, torch.int16)):
            expected = run(case, logits, labels, ignore_index=None)
            for actual, wanted in zip(run(case, logits, labels.to(dtype), ignore_index=index), expected, strict=True):
                assert torch.equal(actual, wanted)
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
            loss, gradient = run(case, logits, torch.full((2, 5, 7), -100, dtype=dtype), ignore_index=-100)
            assert loss == 0
            assert not gradient.any()
        with pytest.raises(IndexError, match=" -1 "):
            run(case, logits, torch.full((2, 5, 7), -1, dtype=torch.int8), ignore_index=255)


# ----------------------------------------------------------------------------------------------------------- not finite


@each
def test_what_is_not_finite_propagates(case: Case) -> None:
    for value in (math.nan, math.inf, -math.inf):
        logits, target = inputs(case, 5, 13)
        logits[1, 0, 2, 3] = value
        for reduction in reductions(case):
            loss, gradient = run(case, logits, target, reduction=reduction)
            exact = case.reference(logits, target, reduction=reduction)
            torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0, equal_nan=True)
            if math.isnan(value):
                assert loss.isnan().any()
                assert gradient[1, 0, 2, 3].isnan()


def test_infinite_logits_of_bce() -> None:
    logits, target = torch.tensor([1, 1, -1, -1]) * math.inf, torch.tensor([1, 0, 1, 0])
    loss, gradient = run(Case("bce_with_logits_loss", "binary"), logits, target, reduction="none")
    assert loss.tolist() == [0, math.inf, math.inf, 0]
    assert gradient.div(1.7).tolist() == [0, 1, -1, 0]


@each
def test_minus_infinity_on_other_classes(case: Case) -> None:
    logits, target = inputs(case, 9, 15)
    off = (one_hot(case, target) == 0) & (torch.rand(logits.shape) < 0.7)
    logits[off] = -math.inf
    for reduction in reductions(case):
        loss, gradient = run(case, logits, target, reduction=reduction)
        assert gradient.isfinite().all()
        assert not gradient[off].any()
        check_close(loss, case.reference(logits, target, reduction=reduction), 1e-6, "loss")


def predictions(case: Case, gap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are about `gap` right, as many wrong, and their labels."""
    shape = shape_of(case.mode, 17, 19)
    target = make_target(case.mode, shape)
    side = (one_hot(case, target) - 0.5) if case.mode == "multiclass" else (one_hot(case, target) * 2 - 1)
    logits = side * (gap + torch.rand(shape))
    return logits.to(dtype), -logits.to(dtype), target


@pytest.mark.parametrize("gap", [9.2, 14.0])  # 1 - p about 1e-4 and 1e-6
@each
def test_nearly_perfect_and_hopeless_predictions(case: Case, gap: float) -> None:
    right, wrong, target = predictions(case, gap, torch.float32)
    check_case(case, right, target)
    check_case(case, wrong, target)


@each
def test_huge_logits(case: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        *both, target = predictions(case, 1e4, dtype)
        for logits in both:
            for reduction in reductions(case):
                loss, gradient = run(case, logits, target, reduction=reduction)
                assert gradient.isfinite().all()
                check_close(loss, case.reference(logits, target, reduction=reduction), TOLERANCE[dtype][0], "loss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("loss", "weight"), [("dice_loss", (2, 1, 1)), ("tversky_loss", (1, 0.3, 0.7))])
def test_hopeless_predictions_over_a_large_tensor(loss: str, weight: tuple[float, ...], dtype: torch.dtype) -> None:
    # Every slope of the score is a quotient of positive sums; taken from 1 - loss, with the loss near 1, it cancels.
    count = 2**20 if dtype == torch.float32 else 2**8
    labels = torch.arange(3).repeat(count)[None]
    logits = (15 - 30 * torch.eye(3, dtype=dtype) + torch.tensor([[0.5], [0], [0]])).repeat(1, count)[None]
    case = Case(loss, "multiclass", TVERSKY if "tversky" in loss else {})
    _, gradient = run(case, logits, labels, upstream=1.0)
    hit, fp, fn = weight
    p = logits[0, :, :3].double().softmax(0)
    inter, false = count * p.diag(), count * (p.sum(1) - p.diag())
    numerator = hit * inter + 1e-5
    rest = fp * false + fn * (count - inter)
    absent = fp * numerator / (numerator + rest) ** 2
    slopes = torch.where(torch.eye(3) > 0, -(hit * rest + fn * numerator) / (numerator + rest) ** 2, absent[:, None])
    exact = p * (slopes - (p * slopes).sum(0)) / 3
    check_close(gradient[0, :, :3], exact, TOLERANCE[dtype][1], "gradient")
    assert torch.equal(gradient[0], gradient[0, :, :3].repeat(1, count))


# ----------------------------------------------------------------------------------------------------- large and small

SCALE_FREE = [
    Case(case.loss, case.mode, {**case.options, **({"smooth": 0.0} if case.is_region else {})})
    for case in EVERY
    if case.loss in ("bce_with_logits_loss", "cross_entropy_loss", "dice_loss")
    or (case.options.keys() - TVERSKY) & {"squared", "soft_label"}
    or case.options.get("gamma") in (2.0, 2.5)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SCALE_FREE, ids=str)
def test_equal_predictions_over_a_large_tensor(case: Case, dtype: torch.dtype) -> None:
    channels, labels = shape_of(case.mode)[1], torch.tensor([4, 0, 0, 3, 0, 1, 0, 2])
    repeats = 2**19 // channels
    logits = (torch.linspace(-1.3, 1.9, channels)[:, None]).expand(1, channels, 8).to(dtype)
    target = labels[None] if case.mode == "multiclass" else (labels > torch.arange(channels)[:, None]).long()[None]
    upstream = 65536.0  # a usual loss scale, without which half gradients of so many pixels are denormal
    large = logits.repeat(1, 1, repeats), torch.cat([target] * repeats, -1)
    loss, gradient = run(case, *large, upstream=upstream)
    exact_logits = logits.double().requires_grad_()
    exact = case.reference(exact_logits, target)
    (exact_gradient,) = torch.autograd.grad(exact, exact_logits, torch.tensor(upstream / repeats).double())
    check_close(loss, exact.detach(), TOLERANCE[dtype][0], "loss")
    copies = gradient.reshape(1, channels, repeats, 8)
    check_close(copies[:, :, 0], exact_gradient, TOLERANCE[dtype][1], "gradient")
    assert torch.equal(copies, copies[:, :, :1].expand_as(copies))


@each
def test_half_logits_under_a_loss_scale(case: Case) -> None:
    logits, target = inputs(case, 33, 31, dtype=torch.float16)
    exact_logits = logits.double().requires_grad_()
    (exact,) = torch.autograd.grad(case.reference(exact_logits, target) * 65536, exact_logits)
    _, gradient = run(case, logits, target, upstream=65536.0)
    assert gradient.isfinite().all()
    check_close(gradient, exact, TOLERANCE[torch.float16][1], "gradient")


@pytest.mark.parametrize("classes", range(2, 8))
def test_few_pixels_and_classes(classes: int) -> None:
    for case in EVERY:
        if case.mode != "binary" and PER_CLASS not in case.options.values():
            for samples, space in ((1, ()), (2, ()), (1, (1, 1)), (2, (1,))):
                shape = (samples, classes, *space)
                check_case(case, make_logits(shape), make_target(case.mode, shape))


@pytest.mark.parametrize("loss", REGIONS)
def test_soft_labels_are_their_own_minimum(loss: str) -> None:
    target = torch.rand(2, 1, 9, 11, dtype=torch.float64) * 0.8 + 0.1
    for options in ({}, TVERSKY) if "tversky" in loss else ({},):
        case = Case(loss, "binary", {**options, "soft_label": True})
        value, gradient = run(case, target, target, from_logits=False)
        assert value == 0
        if not options:  # under unequal alpha and beta the middle of the two slopes is not 0
            assert not gradient.any()
        step = (torch.rand_like(target) - 0.5) * 0.1
        value, gradient = run(case, target + step, target, from_logits=False)
        assert value > 0
        assert torch.equal(gradient.sign(), step.sign())
