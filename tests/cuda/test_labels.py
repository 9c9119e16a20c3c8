"""Labels on the CUDA engines: every integer type, floats, ignored ones, and NaN for a label out of range."""

import pytest
import torch

from cases import (
    LABEL_MAPS,
    PATHS,
    Case,
    check_case,
    make_logits,
    make_target,
    multiclass,
    shape_of,
)
from layouts import channels_last

pytestmark = pytest.mark.usefixtures("cuda_kernels")

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64)


@pytest.mark.parametrize("classes", [6, 140])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_type(dtype: torch.dtype, classes: int) -> None:
    """tile.h reads labels as bits. ignore_index may be a class. In int8, -120 has the bits of 136, which is a class."""
    case, shape = multiclass("tversky_loss", alpha=0.3, beta=0.7), (2, classes, 12, 17)
    labels = make_target("multiclass", shape) % 127
    least, most = torch.iinfo(dtype).min, min(torch.iinfo(dtype).max, torch.iinfo(torch.int64).max)
    for layout in (channels_last, lambda x: x):
        logits = layout(make_logits(shape))
        for ignored in (2, most, least, -100):
            target = labels.clone()
            if least <= ignored <= most:
                target[:, 3:5] = ignored
            check_case(case, logits, target.to(dtype), ignore_index=ignored)
        for wrong in (-120, 140, most):
            target = labels.clone()
            target[1, 2, 3] = wrong
            if least <= wrong <= most and not 0 <= wrong < classes:
                assert case.module(ignore_index=2)(logits, target.to(dtype)).isnan()


@pytest.mark.parametrize("classes", [4, 6, 140])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_label_maps_of_floats(dtype: torch.dtype, classes: int) -> None:
    """A fraction, a number out of range, NaN and infinity make NaN; not where the weight is 0."""
    shape = (2, classes, 12, 17)
    labels = make_target("multiclass", shape)
    for case in (
        multiclass("tversky_loss", alpha=0.3, beta=0.7),
        multiclass("cross_entropy_loss"),
        multiclass("mse_loss"),
    ):
        for layout in (channels_last, lambda x: x):
            logits = layout(make_logits(shape))
            for ignored in (2, -100, 255, 2**60):
                target = labels.clone()
                if ignored < 256:
                    target[:, 3:5] = ignored
                check_case(case, logits, target.to(dtype), ignore_index=ignored)
            for wrong in (0.5, -1.0, float(classes), float("nan"), float("inf"), -1e30):
                target = labels.to(dtype)
                target[1, 2, 3] = wrong
                assert case.module()(logits, target).isnan()
                masked = torch.ones(target.shape)
                masked[1, 2, 3] = 0
                assert case.module()(logits, target, masked).isfinite()
    target = labels.double()
    target[0, 0, 0] += 1e-12
    assert multiclass("cross_entropy_loss").module()(make_logits(shape), target).isnan()


@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_label_anywhere_in_a_vector(dtype: torch.dtype, position: int) -> None:
    for case in [*PATHS, *LABEL_MAPS]:
        shape = shape_of(case.mode, 2048)
        target = make_target(case.mode, shape)
        target.flatten()[64 + position] = 7
        assert case.module()(make_logits(shape, dtype), target).isnan()


@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_labels_out_of_range_give_nan(case: Case) -> None:
    """A wrong label is never an address: the next call is right."""
    shape = shape_of(case.mode, 24, 32)
    limit = 5 if case.mode == "multiclass" else 2
    for layout in (channels_last, lambda x: x):
        for wrong in (-1, limit, 2**31 + 1, -(2**40)):
            target = make_target(case.mode, shape)
            logits = layout(make_logits(shape)).requires_grad_()
            target.flatten()[37] = wrong
            loss = case.module()(logits, target)
            loss.backward()
            assert loss.isnan()
            assert logits.grad.isnan().any()
            masked = torch.ones(target.shape)
            masked.flatten()[37] = 0
            assert case.module()(logits, target, masked).isfinite()
            assert case.module(ignore_index=wrong)(logits, target).isfinite()
    check_case(case, make_logits(shape), make_target(case.mode, shape))
