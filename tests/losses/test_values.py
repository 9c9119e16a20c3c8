"""Value and gradient of every loss and option against the oracle in float64."""

import pytest
import torch

import segfuse
from cases import (
    CASES,
    CLASS_NAME,
    CLASSES,
    COMPOUNDS,
    MODES,
    OF_PROBABILITIES,
    PATHS,
    REDUCED,
    REDUCTIONS,
    Case,
    check_case,
    make_logits,
    make_target,
    make_weight,
    shape_of,
)
from environment import DEVICE, SHIM
from segfuse import _C
from segfuse._core import native
from segfuse._core.plan import LOWER

LABEL_DTYPES = [dtype for dtype in native.DTYPE_CODE if not dtype.is_floating_point]


@pytest.mark.parametrize(("case", "reduction"), REDUCED, ids=str)
def test_hard_labels(case: Case, reduction: str) -> None:
    shape = shape_of(case.mode, 19, 13)
    target = make_target(case.mode, shape)
    for dtype in (torch.float32, torch.float64):
        check_case(case, make_logits(shape, dtype), target, reduction=reduction)


@pytest.mark.parametrize(("case", "reduction"), REDUCED, ids=str)
def test_weight_and_ignored_pixels(case: Case, reduction: str) -> None:
    shape = shape_of(case.mode, 11, 17)
    target = make_target(case.mode, shape)
    target[torch.rand(target.shape) < 0.2] = 255
    logits, weight = make_logits(shape), make_weight(case.mode, shape)
    check_case(case, logits, target, weight, reduction=reduction, ignore_index=255)
    check_case(case, logits.double(), target, weight, reduction=reduction, ignore_index=255)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_soft_labels(case: Case) -> None:
    shape = shape_of(case.mode, 9, 15)
    target = make_target(case.mode, shape, torch.float32, soft=True)
    for reduction in REDUCTIONS:
        if case.allows(reduction):
            check_case(case, make_logits(shape), target, make_weight(case.mode, shape), reduction=reduction)
            check_case(case, make_logits(shape, torch.float64), target, reduction=reduction)


@pytest.mark.parametrize("case", [case for case in CASES if case not in OF_PROBABILITIES], ids=str)
def test_losses_of_logits_refuse_probabilities(case: Case) -> None:
    with pytest.raises(ValueError, match="from_logits"):
        case.module(from_logits=False)


@pytest.mark.parametrize("case", OF_PROBABILITIES, ids=str)
def test_probabilities(case: Case) -> None:
    shape = shape_of(case.mode, 9, 15)
    for soft in (False, True):
        target = make_target(case.mode, shape, torch.float32 if soft else torch.int64, soft=soft)
        logits = make_logits(shape, torch.float64, scale=1.5)
        probabilities = logits.softmax(1) if case.mode == "multiclass" else logits.sigmoid()
        for dtype in (torch.float32, torch.float64):
            # 1 - p is a subtraction here, in the oracle too: float32 rounds it, hence the slack.
            check_case(case, probabilities.to(dtype), target, from_logits=False, slack=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_every_logit_and_label_dtype(case: Case, dtype: torch.dtype) -> None:
    shape = shape_of(case.mode, 8, 21)
    logits = make_logits(shape, dtype)
    for label_dtype in LABEL_DTYPES:
        check_case(case, logits, make_target(case.mode, shape, label_dtype))
    for label_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        soft = make_target(case.mode, shape, label_dtype, soft=True)
        # float64 labels are read as float32 beside float32 logits.
        check_case(case, logits, soft if dtype == torch.float64 else soft.float(), slack=1.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_every_weight_dtype(case: Case, dtype: torch.dtype) -> None:
    shape = shape_of(case.mode, 8, 21)
    weight = (make_weight(case.mode, shape) * 3).to(dtype)
    check_case(case, make_logits(shape), make_target(case.mode, shape), weight)


@pytest.mark.parametrize("case", [case for case in PATHS if case.mode == "multiclass"], ids=str)
def test_one_hot_integers_equal_the_label_map(case: Case) -> None:
    shape = shape_of(case.mode, 6, 7)
    labels = make_target(case.mode, shape)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1)
    logits = make_logits(shape, torch.float64)
    module = case.module()
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        torch.testing.assert_close(module(logits, one_hot.to(dtype)), module(logits, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "space",
    [(), (1,), (7,), (64,), (65,), (2049,), (3, 5, 7), (2, 3, 4, 5)],
    ids=lambda s: "x".join(map(str, s)) or "0d",
)
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_any_number_of_dimensions(case: Case, space: tuple[int, ...]) -> None:
    shape = shape_of(case.mode, *space)
    check_case(case, make_logits(shape), make_target(case.mode, shape))


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 19, 33, 65, 150, 1024])
@pytest.mark.parametrize("case", [c for c in PATHS if c.mode == "multiclass"], ids=str)
def test_any_number_of_classes(case: Case, classes: int) -> None:
    shape = (2, classes, 9, 11)
    check_case(case, make_logits(shape), make_target("multiclass", shape))


@pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="of the CPU kernels")
@pytest.mark.parametrize("name", _C.instruction_sets())
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_every_instruction_set(case: Case, name: str) -> None:
    shape = shape_of(case.mode, 23, 29)
    target, weight = make_target(case.mode, shape), make_weight(case.mode, shape)
    with native.instruction_set(name), native.trace() as events:
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            check_case(case, make_logits(shape, dtype), target, weight)
            check_case(case, make_logits(shape, dtype), target)
    assert {event.instruction_set for event in events} == {name}


def test_the_table_is_whole() -> None:
    names = {case.loss for case in CASES}
    assert names == {*LOWER, *COMPOUNDS} - {"region_loss"}
    assert names == {name for name in segfuse.reference.__all__ if name.endswith("_loss")}
    assert names == {name for name in segfuse.__all__ if name.endswith("_loss")} - {"region_loss", "pointwise_loss"}
    assert set(CLASS_NAME.values()) <= set(segfuse.__all__)
    assert len(LABEL_DTYPES) == 9
    for mode in MODES:
        assert sum(case.mode == mode for case in CASES) > 20
