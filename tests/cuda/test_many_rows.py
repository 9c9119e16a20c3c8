"""Many rows, few pixels: the head of several blocks, and samples that the CUDA kernels read as one."""

import pytest
import torch
from torch import Tensor

import segfuse
from cases import (
    PER_CLASS,
    TOLERANCE,
    Case,
    check_case,
    check_close,
    make_logits,
    make_target,
    make_weight,
    multiclass,
    shape_of,
)
from environment import LAUNCHED, THIN, cuda_engine

TVERSKY = {"alpha": 0.3, "beta": 0.7}

pytestmark = pytest.mark.usefixtures("cuda_kernels")

# A head of several blocks has phases. The rows of these losses take different ways through them.
ROWS = [
    Case("tversky_loss", "binary", TVERSKY),
    Case("bce_with_logits_loss", "multilabel", {"balanced": True}),
    Case("tversky_loss", "multilabel", {**TVERSKY, "pool_batch": True, "class_weight": PER_CLASS}),
    multiclass("tversky_loss", **TVERSKY, classes=[4, 2], absent="skip"),
    multiclass("generalized_dice_loss", pool_batch=True),
    multiclass("focal_loss", alpha=PER_CLASS),
]


def many_rows(mode: str) -> tuple[int, ...]:
    """A shape of few pixels, and of more rows than a head of one block takes. Binary: also more than its threads."""
    rows = cuda_engine().module.few_rows + 30
    return {"binary": (max(rows, 530), 1, 5), "multilabel": (rows // 5, 5, 3), "multiclass": (rows // 5, 5, 2, 2)}[mode]


def turned(x: Tensor) -> Tensor:
    """The last dimension outermost in memory."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_many_rows(case: Case, reduction: str) -> None:
    shape = many_rows(case.mode)
    check_case(
        case, make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape), reduction=reduction
    )


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_many_rows_of_a_compound(mode: str) -> None:
    """Terms per sample, per batch, and pointwise; reduced to one value, and to a value per sample."""
    point = multiclass("cross_entropy_loss") if mode == "multiclass" else Case("bce_with_logits_loss", mode)
    cases = [Case("tversky_loss", mode, {**TVERSKY, "pool_batch": pool}) for pool in (True, False)] + [point]
    shape = many_rows(mode)
    for terms, reduction in ((cases, "mean"), (cases[1:], "sample")):
        logits, target = make_logits(shape).requires_grad_(), make_target(mode, shape)
        exact = logits.detach().double().requires_grad_()
        value = sum((0.3 + i) * c.module(reduction=reduction) for i, c in enumerate(terms))(logits, target)
        expected = sum((0.3 + i) * c.reference(exact, target, reduction=reduction) for i, c in enumerate(terms))
        check_close(value.detach(), expected.detach(), 1e-6, "loss")
        upstream = torch.rand(value.shape) + 0.3
        (gradient,) = torch.autograd.grad(value, logits, upstream)
        (exact_gradient,) = torch.autograd.grad(expected, exact, upstream.double())
        check_close(gradient, exact_gradient, TOLERANCE[torch.float32][1], "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case("bce_with_logits_loss", "binary", {"pos_weight": 2.5}),
        Case("focal_loss", "multilabel", {"alpha": (0.2, 0.9, 0.7, 0.5, 0.1), "gamma": 1.5}),
        Case("dice_loss", "multilabel", {"pool_batch": True, "smooth": (0.5, 2.0)}),
        multiclass("cross_entropy_loss", class_weight=PER_CLASS),
        multiclass("tversky_loss", **TVERSKY, pool_batch=True),
    ],
    ids=str,
)
def test_samples_that_are_read_as_one(case: Case, dtype: torch.dtype) -> None:
    """Samples of few pixels, or without space: any layout, soft labels, weights, ignored labels."""
    for space in ((), (3,), (4, 4), (2, 3, 5), (16, 16)):
        shape = shape_of(case.mode, *space)
        shape = (7, *shape[1:])
        target, weight = make_target(case.mode, shape), make_weight(case.mode, shape)
        assert case.module().plan.joined(torch.Size(shape)) != shape
        for logits in (make_logits(shape, dtype, 1.0), make_logits((14, *shape[1:]), dtype, 1.0)[::2]):
            # Few elements: their rounding does not average out.
            check_case(case, logits, target, weight, slack=3.0)
            check_case(case, turned(logits), target, ignore_index=1, slack=3.0)
        soft = make_target(case.mode, shape, torch.float32, soft=True)
        check_case(case, make_logits(shape, dtype, 1.0), soft, weight, reduction="sum", slack=3.0)


def test_tiles_of_samples_of_few_pixels() -> None:
    """A tile keeps the slopes of each sample, although a plain call would read these samples as one."""
    criterion = segfuse.CrossEntropyLoss()
    logits, target = make_logits((3, 5, 4, 8)), make_target("multiclass", (3, 5, 4, 8))
    leaf = logits.clone().requires_grad_()
    criterion(leaf, target).backward()
    tiled = segfuse.TiledLoss(criterion)
    for part in (slice(0, 4), slice(4, 8)):
        tiled.add(logits[..., part], target[..., part])
    check_close(tiled.loss(), criterion(logits, target).double(), 1e-6, "loss")
    for part in (slice(0, 4), slice(4, 8)):
        found = tiled.gradient(logits[..., part], target[..., part])
        check_close(found, leaf.grad[..., part].double(), 2e-6, "gradient")


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_no_pixels(mode: str) -> None:
    """No chunk writes a sum. torch fills new memory with NaN, so reading a sum would show."""
    shape = (3, 1 if mode == "binary" else 5, 0, 6)
    logits, target = make_logits(shape).requires_grad_(), make_target(mode, shape)
    torch.use_deterministic_algorithms(True)
    try:
        for loss in (Case("tversky_loss", mode, TVERSKY), Case("focal_loss", mode, {"gamma": 1.5})):
            value = loss.module()(logits, target)
            assert value == 0
            assert torch.autograd.grad(value, logits)[0].shape == shape
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(THIN > 1, reason="SEGFUSE_THIN leaves tests out")
def test_every_head_was_launched() -> None:
    """The last test of the file: it counts what the tests above launched."""
    names = [name for name in cuda_engine().module.kernel_names() if name.startswith("head")]
    assert len(names) == 3
    assert [name for name in names if not LAUNCHED[name]] == []
