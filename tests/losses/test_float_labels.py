"""Label maps of floats: read as they are, on a CPU with the bits of integers. A fraction is an error that names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, Case, check_case, make_logits, make_target, make_weight, shape_of
from environment import DEVICE, SHIM

MULTICLASS = "multiclass"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAPS = [case for case in CASES if case.mode == MULTICLASS]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "(N, H, W)": lambda t: t,
    "(N, 1, H, W)": lambda t: t.unsqueeze(1),
    "columns before rows": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "every second": lambda t: torch.stack([t, torch.full_like(t, 0.5)], -1)[..., 0],
}
on_the_cpu = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="on a GPU a wrong label makes NaN")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_float_labels_are_integer_labels(case: Case, dtype: torch.dtype, layout: str) -> None:
    """The same bits. ignore_index may be a class, or out of range, or a number that no float of the target is."""
    shape = shape_of(case.mode, 9, 41)
    logits, labels = make_logits(shape).requires_grad_(), make_target(case.mode, shape)
    for ignored, weight in ((None, None), (2, make_weight(case.mode, shape)), (-100, None), (255, None), (2**60, None)):
        target = labels.clone()
        if ignored in (2, -100, 255):
            target[:, 3:5] = ignored
        criterion = case.module(ignore_index=ignored)
        found = []
        for given in (target, LAYOUTS[layout](target.to(dtype))):
            loss = criterion(logits, given, weight)
            found += [loss.detach(), *torch.autograd.grad(loss, logits, torch.tensor(1.5))]
        tolerance = 0.0 if DEVICE == "cpu" and not SHIM else 1e-6  # a GPU has other kernels for floats
        for same, other in ((found[0], found[2]), (found[1], found[3])):
            torch.testing.assert_close(other, same, rtol=tolerance, atol=tolerance * float(same.abs().max()))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", MAPS[::5], ids=str)
def test_float_labels_against_the_oracle(case: Case, dtype: torch.dtype) -> None:
    shape = shape_of(case.mode, 6, 17)
    for logits in (make_logits(shape, torch.float64), make_logits(shape, torch.bfloat16)):
        check_case(case, logits, make_target(case.mode, shape).to(dtype), ignore_index=3)


class Wrapped(Tensor):
    """As MONAI's MetaTensor: only `__torch_function__` differs."""


def test_float_labels_of_a_subclass_compiled_and_differentiated_twice() -> None:
    logits, target = make_logits(shape_of(MULTICLASS, 9, 41)).requires_grad_(), make_target(MULTICLASS, (3, 5, 9, 41))
    criterion = 0.5 * segfuse.DiceLoss(MULTICLASS) + segfuse.CrossEntropyLoss()
    expected = criterion(logits, target)
    floats = target.float().as_subclass(Wrapped)
    torch.testing.assert_close(criterion(logits, floats).as_subclass(Tensor), expected)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target.half()), expected)
    assert torch.autograd.gradgradcheck(
        lambda z: criterion(z, target[:, :2, :3].double()), logits[:, :, :2, :3].detach().double().requires_grad_()
    )


WRONG = (
    (0.5, r"label 0\.5 is not a whole number"),
    (-0.25, r"label -0\.25 is not a whole number"),
    (float("nan"), "label -?nan is not a whole number"),
    (float("inf"), r"label inf is outside \[0, 5\)"),
    (-1.0, r"label -1 is outside \[0, 5\)"),
    (5.0, r"label 5 is outside \[0, 5\)"),
    (255.0, r"label 255 is outside \[0, 5\)"),
)


@on_the_cpu
@pytest.mark.parametrize(("value", "message"), WRONG, ids=lambda x: str(x)[:12])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_wrong_float_label_is_named(dtype: torch.dtype, value: float, message: str) -> None:
    for case in (Case("cross_entropy_loss", MULTICLASS), Case("mse_loss", MULTICLASS), Case("dice_loss", MULTICLASS)):
        shape = shape_of(case.mode, 9, 41)
        target = make_target(case.mode, shape).to(dtype)
        target[1, 2, 3] = target[2, 0, 0] = value
        hint = r"; did you mean ignore_index=255\?$" if value == 255 else "$"
        where = f"^target: {message}; 2 such label.s., the first in sample 1 at flat position 85{hint}"
        with pytest.raises(IndexError, match=where):
            case.module()(make_logits(shape), target)
        with pytest.raises(IndexError, match=r"^target: value"):
            case.reference(make_logits(shape), target)
        with pytest.raises(IndexError, match=r"^target: label"):
            segfuse.check_target(make_logits(shape), target, mode=MULTICLASS)


@on_the_cpu
def test_a_double_is_compared_as_a_double() -> None:
    """1 + 1e-12 would be a label in float32."""
    logits, target = torch.zeros(1, 3, 4), torch.ones(1, 4, dtype=torch.float64)
    target[0, 2] += 1e-12
    with pytest.raises(IndexError, match=r"label 1\.00000000000\d+ is not a whole number; 1 such"):
        segfuse.CrossEntropyLoss()(logits, target)


@on_the_cpu
def test_counts_of_float_labels() -> None:
    shape = shape_of(MULTICLASS, 9, 41)
    logits, labels = make_logits(shape), make_target(MULTICLASS, shape)
    labels[:, 4] = 255
    options = {"mode": MULTICLASS, "ignore_index": 255, "hard": True}
    expected = segfuse.region_stats(logits, labels, **options)
    for found, exact in zip(segfuse.region_stats(logits, labels.double(), **options), expected, strict=True):
        assert torch.equal(found, exact)
    wrong = labels.float()
    wrong[0, 0, 0] = 1.5
    with pytest.raises(IndexError, match=r"label 1\.5 is not a whole number; 1 such"):
        segfuse.region_stats(logits, wrong, **options)
