"""Both schemes of the CUDA kernels: two passes, and a gradient that the forward writes and the backward rescales."""

from itertools import product

import pytest
import torch

import segfuse
from cases import (
    PER_CLASS,
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
from segfuse._core import native

pytestmark = pytest.mark.usefixtures("cuda_kernels")


def test_two_passes_and_a_head() -> None:
    criterion = segfuse.DiceCELoss() + 20 * segfuse.FocalLoss("multiclass") + segfuse.JaccardLoss("multiclass")
    shape = (2, 5, 32, 32)
    with native.trace() as events:
        criterion(make_logits(shape).requires_grad_(), make_target("multiclass", shape)).backward()
    kernels = [event.kernel.split("<")[0].split(".")[-1] for event in events]
    assert list(dict.fromkeys(kernels)) == [
        "statistics",
        "head",
        "gradient",
    ]  # of many rows: several heads
    read = 4 * 5 * 2048 + 8 * 2048
    assert [(e.bytes_read, e.bytes_written) for e in events if "head" not in e.kernel] == [(read, 0), (read, 4 * 10240)]


# Losses whose gradient the forward can write.
AHEAD = [
    Case("bce_with_logits_loss", "binary", {"pos_weight": 2.5}),
    Case("bce_with_logits_loss", "multilabel", {"pos_weight": PER_CLASS}),
    multiclass("cross_entropy_loss"),
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", AHEAD, ids=str)
def test_gradient_ahead(case: Case, reduction: str) -> None:
    """The backward rescales: the upstream gradient is not 1, and weights change the mean."""
    for dtype in (torch.float32, torch.bfloat16):
        shape = shape_of(case.mode, 72, 128)
        for target in (make_target(case.mode, shape), make_target(case.mode, shape, torch.uint8)):
            with native.scheme("gradient_in_forward"):
                logits, weight = make_logits(shape, dtype), make_weight(case.mode, shape)
                check_case(case, logits, target, reduction=reduction)
                check_case(case, logits, target, weight, reduction=reduction, ignore_index=1)


@pytest.mark.parametrize("upstream", [1.0, 65536.0, 1 / 3, -0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", AHEAD, ids=str)
def test_gradient_ahead_is_that_of_two_passes(case: Case, reduction: str, upstream: float) -> None:
    """The same bits if nothing is left to scale, else one rounding more. A second backward computes its own."""
    shape = shape_of(case.mode, 72, 128)
    for dtype, weighted in product((torch.float32, torch.bfloat16), (False, True)):
        base, target = make_logits(shape, dtype), make_target(case.mode, shape)
        weight = make_weight(case.mode, shape) if weighted else None  # 0 in some pixels, which do not count
        found = {}
        for name in ("two_pass", "gradient_in_forward"):
            logits = base.clone().requires_grad_()
            with native.scheme(name), native.trace() as events:
                loss = case.module(reduction=reduction)(logits, target, weight)
                seed = torch.full_like(loss, upstream)
                found[name] = [torch.autograd.grad(loss, logits, seed, retain_graph=True)[0] for _ in range(2)]
            kernels = [event.kernel.split("<")[0].split(".")[-1] for event in events]
            first = {"two_pass": ["statistics", "gradient"], "gradient_in_forward": ["fused", "rescale"]}[name]
            assert [k for k in kernels if k not in ("head", "add")] == [*first, "gradient"]
        expected, (once, twice) = found["two_pass"][0], found["gradient_in_forward"]
        assert once.data_ptr() != twice.data_ptr()
        assert torch.equal(twice.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(once.isnan(), expected.isnan())
        exact = upstream in (1.0, 65536.0) and not (weighted and reduction == "mean")
        if exact or not expected.isfinite().all():
            assert torch.equal(once.nan_to_num(7.0), expected.nan_to_num(7.0))
        else:
            check_close(once, expected.double(), 3e-7 if dtype == torch.float32 else 8e-3, "gradient")


def test_what_rescaling_moves() -> None:
    """It reads and writes the gradient, not the inputs again. The number of blocks does not grow with the size."""
    shape = (2, 4, 64, 72)
    logits, target = make_logits(shape).requires_grad_(), make_target("multiclass", shape)
    with native.scheme("gradient_in_forward"), native.trace() as events:
        (3 * segfuse.CrossEntropyLoss()(logits, target)).backward()
    whole = 4 * logits.numel()
    moved = {e.kernel.split("<")[0].split(".")[-1]: (e.bytes_read, e.bytes_written) for e in events}
    assert moved["fused"] == (whole + 8 * target.numel(), whole)
    assert moved["rescale"] == (whole, whole)
    shape = (
        1,
        1,
        4 * (4 * 12 * 256 + 1),
    )  # one vector more than the blocks of the shim's three processors take at once
    base, target, found = make_logits(shape), make_target("binary", shape), []
    for name in ("two_pass", "gradient_in_forward"):
        logits = base.clone().requires_grad_()
        with native.scheme(name):
            (4 * segfuse.BCEWithLogitsLoss("binary")(logits, target)).backward()
        found.append(logits.grad)
    assert torch.equal(*found)


def test_gradient_ahead_of_nothing_valid() -> None:
    logits = make_logits((2, 5, 16, 32)).requires_grad_()
    with native.scheme("gradient_in_forward"):
        value = segfuse.CrossEntropyLoss()(logits, torch.full((2, 16, 32), -100))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


def test_gradient_ahead_is_refused_or_left() -> None:
    """float16 would underflow. Region losses need their sums first. An ignored label changes the mean."""
    x, t = make_logits((2, 5, 8, 16)), make_target("multiclass", (2, 5, 8, 16))
    refused = [
        (segfuse.CrossEntropyLoss(), x.half(), "gradient_in_forward"),
        (segfuse.CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0, 4.0, 5.0]), x, "gradient_in_forward"),
        (segfuse.CrossEntropyLoss(reduction="sample"), x, "gradient_in_forward"),
        (segfuse.DiceLoss("multiclass"), x, "gradient_in_forward"),
        (segfuse.CrossEntropyLoss(reduction="none"), x, "two_pass"),
    ]
    for loss, logits, said in refused:
        with native.scheme("gradient_in_forward"), pytest.raises(ValueError, match=said):
            loss(logits.requires_grad_(), t)
    left = [
        (segfuse.CrossEntropyLoss(), x.half()),
        (segfuse.CrossEntropyLoss(reduction="sample"), x),
        (segfuse.DiceLoss("multiclass"), x),
        (segfuse.CrossEntropyLoss(ignore_index=255), x),
        (segfuse.CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0, 4.0, 5.0]), x),
    ]
    for loss, logits in left:
        with native.trace() as events:
            loss(logits.requires_grad_(), t).sum().backward()
        assert "statistics" in events[0].kernel
    with pytest.raises(ValueError, match="two_pass"), native.scheme("fastest"):
        pass


@pytest.mark.skipif(THIN > 1, reason="SEGFUSE_THIN leaves tests out")
def test_every_rescaling_was_launched() -> None:
    """The last test of the file: it counts what the tests above launched."""
    names = [name for name in cuda_engine().module.kernel_names() if name.startswith("rescale")]
    assert len(names) == 2
    assert [name for name in names if not LAUNCHED[name]] == []
