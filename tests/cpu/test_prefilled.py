"""On a CPU the forward writes into the place of a float32 gradient what its backward would have to compute again.

Of a lone pointwise loss the gradient itself, up to a factor ("fused"; the backward has nothing left to read); of others
the powers of the softmax, or the probability ("cache"; "from_cache" goes on from there). The gradient is that of two
passes.
"""

from collections.abc import Callable

import pytest
import torch

import segfuse
from cases import make_logits, make_target, make_weight, shape_of
from segfuse import _C
from segfuse._core import native

Build = Callable[..., segfuse.Loss]

ONE_PASS: dict[str, tuple[Build, str]] = {
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
KEPT: dict[str, tuple[Build, str]] = {
    "dice": (segfuse.DiceLoss, "binary"),
    "tversky": (lambda m, **o: segfuse.TverskyLoss(m, alpha=0.3, beta=0.7, **o), "multilabel"),
    "tversky + 0.4 bce": (
        lambda m, **o: (
            segfuse.TverskyLoss(m, alpha=0.3, beta=0.7, **o)
            + 0.4 * segfuse.BCEWithLogitsLoss(m, label_smoothing=0.1, **o)
        ),
        "binary",
    ),
    "balanced bce": (lambda m, **o: segfuse.BCEWithLogitsLoss(m, balanced=True, **o), "multilabel"),
    "dice, 5 classes": (segfuse.DiceLoss, "multiclass"),
    "tversky + 0.4 ce": (
        lambda m, **o: segfuse.TverskyLoss(m, alpha=0.3, beta=0.7, **o) + 0.4 * segfuse.CrossEntropyLoss(**o),
        "multiclass",
    ),
    "specificity, 5 classes": (
        lambda m, **o: segfuse.SensitivitySpecificityLoss(m, sensitivity_weight=0.3, **o),
        "multiclass",
    ),
    "ce + focal": (
        lambda m, **o: segfuse.CrossEntropyLoss(**o) + segfuse.FocalLoss(m, gamma=1.5, alpha=[0.5, 3, 0.2, 1, 2], **o),
        "multiclass",
    ),
}


def gradient(
    scheme: str, loss: segfuse.Loss, inputs: tuple[torch.Tensor, ...], upstream: float
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    logits = inputs[0].detach().requires_grad_()
    with native.scheme(scheme), native.trace() as events:
        value = loss(logits, *inputs[1:])
        (found,) = torch.autograd.grad(value, logits, upstream * torch.ones_like(value).cumsum(0))
    return value.detach(), found, [event.kernel for event in events]


@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample"])
@pytest.mark.parametrize("name", [*ONE_PASS, *KEPT])
def test_what_is_ahead_gives_the_gradient_of_two_passes(name: str, reduction: str, instruction_set: str) -> None:
    build, mode = (ONE_PASS | KEPT)[name]
    of_one_pass = name in ONE_PASS and reduction != "sample"
    shape = (2, {"binary": 1, "multilabel": 3, "multiclass": 5}[mode], 37, 53)
    logits, target, weight = make_logits(shape), make_target(mode, shape), make_weight(mode, shape)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = logits.to(memory_format=layout)
        for options, rest in (({}, ()), ({"ignore_index": 1}, ()), ({}, (weight,)), ({"ignore_index": 0}, (weight,))):
            loss = build(mode, reduction=reduction, **options)
            for upstream in (1.0, -0.37):
                with native.instruction_set(instruction_set):
                    value, prefilled, passes = gradient("automatic", loss, (x, target, *rest), upstream)
                    expected_value, two, both_passes = gradient("two_pass", loss, (x, target, *rest), upstream)
                assert both_passes == ["statistics", "gradient"]
                if of_one_pass or name in KEPT:
                    assert passes == (["fused"] if of_one_pass else ["cache", "from_cache"])
                assert prefilled.stride() == two.stride() == x.stride()
                torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=0)
                if passes == ["cache", "from_cache"] and mode == "multiclass":
                    assert torch.equal(prefilled, two)
                else:
                    torch.testing.assert_close(prefilled, two, rtol=1e-5, atol=1e-6 * float(two.abs().max()))


def test_nothing_is_ahead() -> None:
    shape = shape_of("multiclass", 9, 11)
    logits, target = make_logits(shape), make_target("multiclass", shape)
    mask, soft = make_target("multilabel", shape), torch.rand(shape).softmax(1)
    compound, cross_entropy = segfuse.DiceCELoss(), segfuse.CrossEntropyLoss()
    for loss, x, t in (
        (compound, logits.double(), target),
        (compound, logits.bfloat16(), target),  # would be rounded twice
        (compound, logits, soft),
        (segfuse.DiceLoss("multiclass", squared=True), logits, target),
        (segfuse.DiceFocalLoss("multilabel"), logits, mask),  # a focal loss reads logarithms
        (segfuse.DiceLoss("multilabel", from_logits=False), logits.sigmoid(), mask),
        (cross_entropy, logits, soft),
        (segfuse.CrossEntropyLoss(label_smoothing=0.1), logits, target),
    ):
        assert gradient("automatic", loss, (x, t), 1.0)[2] == ["statistics", "gradient"]
    for loss in (compound, cross_entropy):
        with torch.no_grad(), native.trace() as events:
            loss(logits, target)
        assert [event.kernel for event in events] == ["statistics"]


@pytest.mark.parametrize("loss", [segfuse.CrossEntropyLoss(), segfuse.DiceCELoss()], ids=str)
def test_a_second_backward_has_its_own_gradient(loss: segfuse.Loss) -> None:
    shape = shape_of("multiclass", 9, 11)
    logits, target = make_logits(shape).requires_grad_(), make_target("multiclass", shape)
    value = loss(logits, target)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * value, logits)
    assert torch.equal(first, kept)
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(second, 3 * kept)


@pytest.mark.parametrize("upstream", [float("inf"), float("nan"), 0.0])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("compound", [False, True])
def test_whatever_comes_from_above(mode: str, upstream: float, compound: bool) -> None:
    """Infinity and NaN as in two passes, 0 as a factor."""
    shape = shape_of(mode, 9, 11)
    logits, target = make_logits(shape), make_target(mode, shape).clone()
    target[..., 2:4, :] = 255
    logits[..., 2:4, :] = float("nan")
    build = segfuse.CrossEntropyLoss if mode == "multiclass" else segfuse.BCEWithLogitsLoss
    loss = build(ignore_index=255) if mode == "multiclass" else build(mode, ignore_index=255)
    if compound:
        loss = loss + 0.4 * segfuse.DiceLoss(mode, ignore_index=255)
    one, two = (gradient(scheme, loss, (logits, target), upstream)[1] for scheme in ("automatic", "two_pass"))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-12, equal_nan=True)
    if upstream == 0 or mode == "binary":
        assert (one[..., 2:4, :] == 0).all()


@pytest.mark.parametrize("logit", [-1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30, float("inf"), float("nan")])
def test_a_kept_probability_is_both_p_and_its_rest(logit: float) -> None:
    """Next to 0 and to 1 alike: a gradient of p q keeps its digits on both sides."""
    logits = torch.full((1, 1, 8, 16), logit)
    logits[0, 0, 0] = torch.linspace(-20, 20, 16)
    target = (torch.rand(1, 1, 8, 16) < 0.5).float()
    loss = segfuse.TverskyLoss("binary", alpha=0.3, beta=0.7) + 0.4 * segfuse.BCEWithLogitsLoss("binary")
    kept, two = (gradient(scheme, loss, (logits, target), 3.0)[1] for scheme in ("automatic", "two_pass"))
    torch.testing.assert_close(kept, two, rtol=1e-6, atol=1e-30, equal_nan=True)


def test_nothing_counts() -> None:
    logits, target = make_logits((2, 5, 9, 11)), torch.full((2, 9, 11), 255)
    for loss in (segfuse.CrossEntropyLoss(ignore_index=255), segfuse.DiceCELoss(ignore_index=255)):
        one, two = (gradient(scheme, loss, (logits, target), 2.0) for scheme in ("automatic", "two_pass"))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
