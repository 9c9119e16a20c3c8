"""On a CPU a lone pointwise loss writes its gradient in the forward: one read of the logits, and the same gradient."""

from collections.abc import Callable

import pytest
import torch

import segfuse
from cases import make_logits, make_target, make_weight, shape_of
from segfuse import _C, _native

Build = Callable[..., segfuse.Loss]

LOSSES: dict[str, tuple[Build, str]] = {
    "bce": (segfuse.BCEWithLogitsLoss, "binary"),
    "bce, pos_weight": (lambda m, **o: segfuse.BCEWithLogitsLoss(m, pos_weight=[0.5, 3, 2], **o), "multilabel"),
    "focal": (lambda m, **o: segfuse.FocalLoss(m, alpha=0.3, **o), "binary"),
    "focal, gamma 1.5": (lambda m, **o: segfuse.FocalLoss(m, gamma=1.5, **o), "multiclass"),
    "cross entropy": (lambda m, **o: segfuse.CrossEntropyLoss(**o), "multiclass"),
    "cross entropy, weighted": (
        lambda m, **o: segfuse.CrossEntropyLoss(class_weight=[0.5, 3, 0, 1, 2], **o),
        "multiclass",
    ),
    "hinge": (segfuse.HingeLoss, "binary"),
    "polynomial": (segfuse.PolynomialLoss, "multilabel"),
    "scaled": (lambda m, **o: 0.3 * segfuse.MSELoss(m, **o), "multilabel"),
}


def gradient(
    scheme: str, loss: segfuse.Loss, inputs: tuple[torch.Tensor, ...], upstream: float
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    logits = inputs[0].detach().requires_grad_()
    with _native.scheme(scheme), _native.trace() as events:
        value = loss(logits, *inputs[1:])
        (found,) = torch.autograd.grad(value, logits, torch.tensor(upstream))
    return value.detach(), found, [event.kernel for event in events]


@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_one_pass_gives_the_gradient_of_two(name: str, reduction: str, instruction_set: str) -> None:
    build, mode = LOSSES[name]
    shape = (2, {"binary": 1, "multilabel": 3, "multiclass": 5}[mode], 37, 53)
    logits, target, weight = make_logits(shape), make_target(mode, shape), make_weight(mode, shape)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = logits.to(memory_format=layout)
        for options, rest in (({}, ()), ({"ignore_index": 1}, ()), ({}, (weight,)), ({"ignore_index": 0}, (weight,))):
            loss = build(mode, reduction=reduction, **options)
            for upstream in (1.0, -0.37):
                with _native.instruction_set(instruction_set):
                    value, one, passes = gradient("auto", loss, (x, target, *rest), upstream)
                    expected_value, two, both_passes = gradient("two_pass", loss, (x, target, *rest), upstream)
                assert (passes, both_passes) == (["both"], ["statistics", "gradient"])
                assert one.stride() == two.stride() == x.stride()
                torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=0)
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * float(two.abs().max()))


def test_what_is_not_written_ahead() -> None:
    logits, target = (
        make_logits(shape_of("multiclass", 9, 11)),
        make_target("multiclass", shape_of("multiclass", 9, 11)),
    )
    soft = torch.rand(logits.shape).softmax(1)
    cross_entropy = segfuse.CrossEntropyLoss()
    for loss, x, t in (
        (segfuse.DiceCELoss(), logits, target),  # a region: its slopes need all sums
        (cross_entropy + segfuse.FocalLoss("multiclass"), logits, target),
        (segfuse.BCEWithLogitsLoss("multilabel", balanced=True), logits, (soft > 0.2).float()),
        (cross_entropy, logits.double(), target),
        (cross_entropy, logits.bfloat16(), target),  # would be rounded twice
        (cross_entropy, logits, soft),
        (segfuse.CrossEntropyLoss(label_smoothing=0.1), logits, target),
    ):
        assert gradient("auto", loss, (x, t), 1.0)[2] == ["statistics", "gradient"]
    with torch.no_grad(), _native.trace() as events:
        cross_entropy(logits, target)
    assert [event.kernel for event in events] == ["statistics"]


def test_a_second_backward_has_its_own_gradient() -> None:
    shape = shape_of("multiclass", 9, 11)
    logits, target = make_logits(shape).requires_grad_(), make_target("multiclass", shape)
    value = segfuse.CrossEntropyLoss()(logits, target)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * value, logits)
    assert torch.equal(first, kept)
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(second, 3 * kept)


@pytest.mark.parametrize("upstream", [float("inf"), float("nan"), 0.0])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_whatever_comes_from_above(mode: str, upstream: float) -> None:
    """Infinity and NaN as in two passes, 0 as a factor."""
    shape = shape_of(mode, 9, 11)
    logits, target = make_logits(shape), make_target(mode, shape).clone()
    target[..., 2:4, :] = 255
    logits[..., 2:4, :] = float("nan")
    build = segfuse.CrossEntropyLoss if mode == "multiclass" else segfuse.BCEWithLogitsLoss
    loss = build(ignore_index=255) if mode == "multiclass" else build(mode, ignore_index=255)
    one, two = (gradient(scheme, loss, (logits, target), upstream)[1] for scheme in ("auto", "two_pass"))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=0, equal_nan=True)
    if upstream == 0 or mode == "binary":
        assert (one[..., 2:4, :] == 0).all()


def test_nothing_counts() -> None:
    logits, target = make_logits((2, 5, 9, 11)), torch.full((2, 9, 11), 255)
    loss = segfuse.CrossEntropyLoss(ignore_index=255)
    one, two = (gradient(scheme, loss, (logits, target), 2.0) for scheme in ("auto", "two_pass"))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
