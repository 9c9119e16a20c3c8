"""Any strides, without a copy: the same numbers, and a gradient of the logits' layout."""

import pytest
import torch

import segfuse
from cases import PATHS, Case, check_case, make_logits, make_target, make_weight, shape_of
from environment import DEVICE, SHIM
from layouts import LAYOUTS, channels_last
from segfuse import _C
from segfuse._core import native


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("space", [(13, 37), (5, 6, 11)], ids=["2d", "3d"])
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_layouts(case: Case, space: tuple[int, ...], layout) -> None:
    shape = shape_of(case.mode, *space)
    logits, target, weight = make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape)
    check_case(case, layout(logits), target)
    spread = target if target.dim() < 4 and layout is channels_last else layout(target)
    check_case(case, logits, spread)
    check_case(case, layout(logits.double()), spread, weight if layout is channels_last else layout(weight))
    check_case(case, layout(logits.half()), target, weight, reduction="sum")


@pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="on a GPU channels_last has kernels of its own")
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 7, 8, 9, 16, 19, 150, 512, 513])
def test_channels_last_has_the_same_bits(classes: int, dtype: torch.dtype, instruction_set: str) -> None:
    """The classes of a position lie side by side: turned by squares, of which the last ones overlap."""
    shape = (2, classes, 13, 37)
    logits = make_logits(shape).to(dtype)
    soft = torch.rand(shape).softmax(1)
    hard = torch.randint(0, classes, (2, 13, 37))
    losses = (segfuse.DiceCELoss(), hard), (segfuse.DiceCELoss(ignore_index=1), hard), (segfuse.DiceCELoss(), soft)
    with native.instruction_set(instruction_set):
        for loss, target in losses:
            found = []
            for layout in (lambda x: x, channels_last):
                x = layout(logits).detach().requires_grad_()
                value = loss(x, layout(target) if target is soft else target)
                found.append((value, *torch.autograd.grad(3 * value, x)))
            assert torch.equal(found[0][0], found[1][0])
            assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("case", PATHS, ids=str)
def test_gradient_keeps_the_layout(case: Case) -> None:
    shape = shape_of(case.mode, 7, 9)
    logits = channels_last(make_logits(shape)).requires_grad_()
    case.module()(logits, make_target(case.mode, shape)).backward()
    assert logits.grad is not None
    assert logits.grad.stride() == logits.stride()


@pytest.mark.parametrize("case", PATHS, ids=str)
def test_expanded_tensors(case: Case) -> None:
    shape = shape_of(case.mode, 6, 10)
    one = make_logits((1, *shape[1:]))
    check_case(case, one.expand(shape), make_target(case.mode, shape))
    target = make_target(case.mode, shape)
    check_case(case, make_logits(shape), target[1:2].expand(target.shape))
    row = torch.rand(1, 10) + 0.1
    check_case(case, make_logits(shape), target, row)  # broadcasts over everything else


@pytest.mark.parametrize("case", [c for c in PATHS if c.mode == "binary"], ids=str)
def test_binary_takes_any_arrangement_of_a_row(case: Case) -> None:
    logits, target = make_logits((3, 1, 8, 9)), make_target("binary", (3, 1, 8, 9))
    expected = case.module()(logits, target)
    for x in (logits, logits[:, 0]):
        for t in (target, target[:, 0]):
            for w in (None, torch.ones(3, 8, 9), torch.ones(3, 1, 8, 9)):
                assert torch.equal(case.module()(x, t, w), expected)


@pytest.mark.parametrize("case", [case for case in PATHS if not case.is_region], ids=str)
def test_upstream_without_strides(case: Case) -> None:
    """`.sum()` hands back a gradient of stride 0, `.t()` one that is transposed."""
    shape = shape_of(case.mode, 6, 10)
    target, base = make_target(case.mode, shape), make_logits(shape)
    reductions = (lambda v: 1.7 * v.sum(), lambda v: (v.transpose(-1, -2).contiguous().sin() * 0.3).sum())
    for reduce in reductions:
        logits = base.clone().requires_grad_()
        exact_logits = base.double().requires_grad_()
        reduce(case.module(reduction="none")(logits, target)).backward()
        reduce(case.reference(exact_logits, target, reduction="none")).backward()
        torch.testing.assert_close(logits.grad.double(), exact_logits.grad, rtol=1e-4, atol=2e-5)
