"""Losses as modules: subclasses, hooks, what is state and what is not, coefficients of one element, numpy's numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import segfuse as sf
from cases import PER_CLASS, make_logits, make_target, shape_of

LOGITS = make_logits(shape_of("multiclass", 5, 6))
TARGET = make_target("multiclass", shape_of("multiclass", 5, 6))


class Preset(sf.DiceLoss):
    """A loss of fixed options, as users write them."""

    def __init__(self) -> None:
        super().__init__("multiclass", smooth=1.0, class_weight=PER_CLASS)


class Compound(sf.DiceCELoss):
    def __init__(self, **options: Any) -> None:
        super().__init__(ce_weight=0.5, **options)


class Overrides(sf.DiceLoss):
    """Does more at a call."""

    def forward(self, logits: Tensor, target: Tensor, *rest: Any, **more: Any) -> Any:
        return 2 * super().forward(logits, target, *rest, **more)


class OverridesCompound(sf.DiceCELoss):
    def forward(self, logits: Tensor, target: Tensor, *rest: Any, **more: Any) -> Any:
        return 2 * super().forward(logits, target, *rest, **more)


def test_a_preset_is_shown_computed_and_added() -> None:
    plain = sf.DiceLoss("multiclass", smooth=1.0, class_weight=PER_CLASS)
    shown = f"('multiclass', smooth=(1.0, 1.0), class_weight={list(PER_CLASS)})"
    assert repr(Preset()) == f"Preset{shown}"
    assert shown in str(nn.Sequential(nn.Identity(), Preset()))
    assert repr(sf.AdaptiveLogLoss(Preset())) == f"AdaptiveLogLoss(Preset{shown})"
    assert repr(0.5 * Preset() + Compound()).startswith(f"0.5 * Preset{shown} + DiceLoss")
    pairs: list[tuple[sf.Loss, sf.Loss]] = [
        (Preset(), plain),
        (0.5 * Preset(), 0.5 * plain),
        (Preset() + sf.CrossEntropyLoss(), plain + sf.CrossEntropyLoss()),
        (sf.AdaptiveLogLoss(Preset()), sf.AdaptiveLogLoss(plain)),
        (Compound(), sf.DiceLoss("multiclass") + 0.5 * sf.CrossEntropyLoss()),
        (copy.deepcopy(Preset()), plain),
    ]
    for one, other in pairs:
        assert torch.equal(one(LOGITS, TARGET), other(LOGITS, TARGET))


REFUSED: dict[str, Callable[[sf.Loss], object]] = {
    "scaled": lambda loss: 2 * loss,
    "divided": lambda loss: loss / 2,
    "negated": lambda loss: -loss,
    "added": lambda loss: loss + sf.FocalLoss("multiclass"),
    "added to": lambda loss: sf.FocalLoss("multiclass") + loss,
    "summed": lambda loss: sum([sf.FocalLoss("multiclass"), loss]),
    "tiled": sf.TiledLoss,
}
HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("use", REFUSED)
def test_a_forward_of_its_own_is_not_dropped(use: str) -> None:
    for loss, plain in ((Overrides("multiclass"), sf.DiceLoss("multiclass")), (OverridesCompound(), sf.DiceCELoss())):
        with pytest.raises(TypeError, match=f"^{type(loss).__name__} overrides forward"):
            REFUSED[use](loss)
        assert torch.equal(loss(LOGITS, TARGET), 2 * plain(LOGITS, TARGET))
        assert REFUSED[use](plain) is not None


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("use", REFUSED)
def test_hooks_are_not_dropped(use: str, hook: str) -> None:
    for loss in (sf.DiceLoss("multiclass"), sf.DiceCELoss(), sf.DiceCELoss()):
        with_hook = loss if loss.terms()[0].loss is loss else loss.get_submodule("losses.1")
        handle = getattr(with_hook, hook)(lambda *_: None)
        with pytest.raises(TypeError, match=f"^{type(with_hook).__name__} has hooks"):
            REFUSED[use](loss)
        handle.remove()
        assert REFUSED[use](loss) is not None


def test_hooks_on_the_whole_are_called() -> None:
    calls: list[object] = []
    loss = 0.5 * sf.DiceLoss("multiclass") + sf.CrossEntropyLoss()
    loss.register_forward_hook(lambda *a: calls.append(a))
    loss(LOGITS, TARGET)
    assert len(calls) == 1


def test_the_base_of_an_adaptive_loss_is_plain() -> None:
    with pytest.raises(TypeError, match=r"^Overrides overrides forward"):
        sf.AdaptiveLogLoss(Overrides("binary"))


def test_a_subclass_does_not_take_its_parents_name() -> None:
    with pytest.raises(TypeError, match=r"Other has a lower.* name of its own"):

        class Other(sf.DiceLoss):
            @staticmethod
            def lower(options: dict[str, Any], mode: str) -> dict[str, Any]:
                return sf.JaccardLoss.lower(options, mode)

    assert sf.DiceLoss("multiclass")(LOGITS, TARGET) != sf.JaccardLoss("multiclass")(LOGITS, TARGET)


# --------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("asymmetric", [True, False])
def test_tables_that_follow_from_numbers_are_no_state(asymmetric: bool) -> None:
    def make() -> sf.Loss:
        return sf.UnifiedFocalLoss("multiclass", 5, delta=0.7, asymmetric=asymmetric)

    expected = make()(LOGITS, TARGET)
    assert make().state_dict() == {}
    assert list(make().parameters()) == []
    with torch.device("meta"):
        on_meta = make()
    for changed in (
        make().bfloat16().float(),
        make().half(),
        make().to("meta").to_empty(device="cpu"),
        on_meta.to_empty(device="cpu"),
        copy.deepcopy(make().double()),
    ):
        assert torch.equal(changed(LOGITS, TARGET), expected)
    torch.testing.assert_close((0.5 * make()).bfloat16()(LOGITS, TARGET), 0.5 * expected)


def test_tables_of_the_user_are_state() -> None:
    loss = sf.DiceCELoss(class_weight=PER_CLASS, ce_class_weight=torch.tensor(PER_CLASS))
    assert sorted(loss.state_dict()) == ["losses.0.class_weight", "losses.1.class_weight"]


def test_repr_without_values() -> None:
    scale = nn.Parameter(torch.tensor(0.5))
    loss = scale * sf.DiceLoss("multiclass", class_weight=PER_CLASS) + sf.CrossEntropyLoss(class_weight=PER_CLASS) / 4
    assert "<meta> * DiceLoss" in repr(loss.to("meta"))
    assert "0.25 * CrossEntropyLoss(class_weight=" in repr(loss)
    with torch.device("meta"):
        assert "FocalLoss" in repr(sf.FocalLoss("multiclass", alpha=PER_CLASS))


# -------------------------------------------------------------------------------------------------------- coefficients


def test_a_coefficient_of_one_element() -> None:
    """FSDP2 refuses Parameters without dimensions."""
    one, none = (nn.Parameter(torch.full(shape, 0.7)) for shape in ((1,), ()))
    found, expected = (
        p * sf.DiceLoss("multiclass") + sf.CrossEntropyLoss() / p + sf.FocalLoss("multiclass", reduction="mean")
        for p in (one, none)
    )
    upstream = torch.tensor(1.7)
    gradients = [torch.autograd.grad(loss(LOGITS, TARGET), p, upstream) for loss, p in ((found, one), (expected, none))]
    assert torch.equal(found(LOGITS, TARGET), expected(LOGITS, TARGET))
    assert gradients[0][0].shape == (1,)
    assert torch.equal(gradients[0][0].reshape(()), gradients[1][0])
    assert repr(found) == repr(expected)
    rows = one * sf.DiceLoss("multiclass", reduction="none")
    assert rows(LOGITS, TARGET).shape == (3, 5)
    compiled = torch.compile(found, backend="aot_eager", fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(LOGITS, TARGET), one, upstream)
    torch.testing.assert_close(gradient, gradients[0][0])
    for wrong in ((2,), (1, 1)):
        with pytest.raises(ValueError, match=r"0-d tensor, or \(1,\); got shape"):
            torch.ones(wrong) * sf.DiceLoss("multiclass")


# --------------------------------------------------------------------------------------------------------------- numpy

F32, I64 = np.float32, np.int64
NUMPY: list[tuple[Any, Any]] = [
    (lambda: F32(0.5) * sf.DiceLoss("binary"), lambda: 0.5 * sf.DiceLoss("binary")),
    (lambda: sf.DiceLoss("binary") * I64(3), lambda: 3 * sf.DiceLoss("binary")),
    (lambda: sf.DiceLoss("binary") / np.array(4.0), lambda: sf.DiceLoss("binary") / 4),
    (lambda: sum([I64(2) * sf.DiceLoss("binary")]), lambda: 2 * sf.DiceLoss("binary")),
    (lambda: sf.DiceLoss("binary", smooth=F32(0.5)), lambda: sf.DiceLoss("binary", smooth=0.5)),
    (lambda: sf.DiceLoss("binary", smooth=np.array([1, 2])), lambda: sf.DiceLoss("binary", smooth=(1, 2))),
    (lambda: sf.DiceLoss("binary", eps=F32(0.25)), lambda: sf.DiceLoss("binary", eps=0.25)),
    (lambda: sf.DiceLoss("binary", squared=np.True_), lambda: sf.DiceLoss("binary", squared=True)),
    (lambda: sf.DiceLoss("multilabel", classes=np.arange(1, 3)), lambda: sf.DiceLoss("multilabel", classes=[1, 2])),
    (
        lambda: sf.DiceLoss("multilabel", classes=torch.tensor([2, 0])),
        lambda: sf.DiceLoss("multilabel", classes=[2, 0]),
    ),
    (lambda: sf.DiceLoss("multilabel", classes=(I64(1),)), lambda: sf.DiceLoss("multilabel", classes=[1])),
    (lambda: sf.DiceLoss("binary", ignore_index=I64(255)), lambda: sf.DiceLoss("binary", ignore_index=255)),
    (lambda: sf.DiceLoss("binary", from_logits=np.False_), lambda: sf.DiceLoss("binary", from_logits=False)),
    (lambda: sf.CrossEntropyLoss(class_weight=np.ones(3)), lambda: sf.CrossEntropyLoss(class_weight=[1.0, 1.0, 1.0])),
    (lambda: sf.CrossEntropyLoss(label_smoothing=F32(0.5)), lambda: sf.CrossEntropyLoss(label_smoothing=0.5)),
    (lambda: sf.FocalLoss("binary", gamma=F32(1.5)), lambda: sf.FocalLoss("binary", gamma=1.5)),
    (lambda: sf.FocalLoss("binary", alpha=np.array(0.25)), lambda: sf.FocalLoss("binary", alpha=0.25)),
    (lambda: sf.BCEWithLogitsLoss("binary", pos_weight=I64(2)), lambda: sf.BCEWithLogitsLoss("binary", pos_weight=2)),
    (lambda: sf.PolynomialLoss("binary", exponents=np.array([6])), lambda: sf.PolynomialLoss("binary", exponents=(6,))),
    (lambda: sf.HuberLoss("binary", delta=F32(0.5)), lambda: sf.HuberLoss("binary", delta=0.5)),
    (lambda: sf.ComboLoss("binary", alpha=F32(0.25)), lambda: sf.ComboLoss("binary", alpha=0.25)),
    (lambda: sf.DiceBCELoss("binary", dice_weight=F32(0.5)), lambda: sf.DiceBCELoss("binary", dice_weight=0.5)),
    (
        lambda: sf.UnifiedFocalLoss("multiclass", I64(4), gamma=F32(0.25), asymmetric=np.False_),
        lambda: sf.UnifiedFocalLoss("multiclass", 4, gamma=0.25, asymmetric=False),
    ),
    (lambda: sf.AdaptiveLogLoss(sf.DiceLoss("binary"), I64(5)), lambda: sf.AdaptiveLogLoss(sf.DiceLoss("binary"), 5.0)),
]


@pytest.mark.parametrize("pair", NUMPY, ids=lambda pair: repr(pair[1]()).replace(" ", ""))
def test_numbers_of_numpy(pair: tuple[Any, Any]) -> None:
    one, other = (make() for make in pair)
    assert repr(one) == repr(other)
    assert one.plan.spec == other.plan.spec


def test_numbers_of_numpy_as_arguments_of_functions() -> None:
    x, y = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 1, 4, 4))
    function = sf.focal_loss(x, y, mode="binary", gamma=F32(1.5), ignore_index=I64(0))
    assert function == sf.focal_loss(x, y, mode="binary", gamma=1.5, ignore_index=0)
    hard = sf.region_stats(x, y, mode="binary", hard=True, threshold=F32(0.25))
    assert torch.equal(torch.stack(hard), torch.stack(sf.region_stats(x, y, mode="binary", hard=True, threshold=0.25)))


def test_no_numbers_of_numpy_are_still_none() -> None:
    for wrong in (np.array([0.5]), np.str_("1"), np.True_):
        with pytest.raises(TypeError, match=r"^gamma must be a number"):
            sf.FocalLoss("binary", gamma=wrong)
    with pytest.raises(TypeError):
        np.array([0.5, 1.0]) * sf.DiceLoss("binary")
