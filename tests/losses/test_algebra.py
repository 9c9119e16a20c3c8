"""Losses add and scale: a compound is the sum of its terms, in value and gradient, and a module like any other."""

import copy
import inspect
import pickle
import pydoc
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import segfuse as sf
from cases import (
    CASES,
    CLASS_NAME,
    MODES,
    PER_CLASS,
    Case,
    check_close,
    make_logits,
    make_target,
    make_weight,
    shape_of,
)

ADAPTIVE = [case for case in CASES if case.loss == "adaptive_log_loss"]
BY_MODE = {mode: [case for case in CASES if case.mode == mode] for mode in MODES}
MULTICLASS = "multiclass"


def written(text: str, **names: Any) -> Any:
    """The value of an expression in the names of the library and these."""
    return eval(text, {**vars(sf), "np": np, "torch": torch, **names})


def inputs(mode: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    shape = shape_of(mode, 5, 9)
    return make_logits(shape, dtype).requires_grad_(), make_target(mode, shape)


def check_same(found: Tensor, expected: Tensor, *sources: Tensor, tolerance: float = 1e-12) -> None:
    """Values, and gradients in the sources under a random upstream gradient."""
    check_close(found.detach(), expected.detach(), tolerance, "value")
    upstream = torch.rand_like(expected) + 0.3
    gradients = [torch.autograd.grad(v, sources, upstream, retain_graph=True) for v in (found, expected)]
    for i, pair in enumerate(zip(*gradients, strict=True)):
        check_close(*pair, tolerance, f"gradient {i}")


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_compound_is_the_sum_of_its_terms(case: Case, size: int) -> None:
    others, (logits, target) = BY_MODE[case.mode], inputs(case.mode)
    terms = [others[(others.index(case) + k * (7 + k)) % len(others)] for k in range(size)]
    weight, scales = make_weight(case.mode, logits.shape).double(), [1.0, -0.7, 20.0, 0.3][:size]
    for reduction in (r for r in ("mean", "sum", "sample") if all(term.allows(r) for term in terms)):
        given: dict[str, Any] = {"reduction": reduction}
        losses = [term.module(**given if term.loss == "unified_focal_loss" else {}) for term in terms[1:]]
        losses.append(terms[0].module(**given))
        compound = sum(scale * loss for scale, loss in zip(scales, losses, strict=True))
        alone = [term.module(reduction=reduction)(logits, target, weight) for term in [*terms[1:], terms[0]]]
        expected = sum(scale * value for scale, value in zip(scales, alone, strict=True))
        check_same(compound(logits, target, weight), expected, logits)


EXPRESSIONS = (
    "a + b; a + b + c; 0.3 * a; a * 4; a / 4; -a; a - b; a - 2 * b + c / 3; sum([a, b, c]); sum([0.5 * a, -b]); a + a; "
    "2 * (a + 3 * (b - c / 4)); -(a - b) / 3 + a; 0 * a + b; np.float64(0.3) * a + b; p * a; a * p + b; a / q - p * b; "
    "p * (a + b) + c; p * (q * (p * a + 0.25 * b) / 3) - c / p; p * a / q + q * q * b; p * b + p * a; "
    "torch.tensor(3) * a - b / torch.tensor(0.5)"
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample"])
@pytest.mark.parametrize("expression", EXPRESSIONS.split("; "))
def test_expressions(expression: str, reduction: str) -> None:
    logits, target = inputs(MULTICLASS)
    a = sf.TverskyLoss(MULTICLASS, alpha=0.3, beta=0.7, reduction=reduction)
    b = sf.CrossEntropyLoss(class_weight=PER_CLASS, label_smoothing=0.1, reduction=reduction)
    c = sf.FocalLoss(MULTICLASS, gamma=1.5, reduction=reduction)
    scalars = {"p": Parameter(torch.tensor(0.7).double()), "q": torch.tensor(-1.3).double().requires_grad_()}
    found = written(expression, a=a, b=b, c=c, **scalars)(logits, target)
    values = {"a": a(logits, target), "b": b(logits, target), "c": c(logits, target)}
    used = [scalar for name, scalar in scalars.items() if re.search(rf"\b{name}\b", expression)]
    check_same(found, written(expression, **values, **scalars), logits, *used)


def test_what_is_no_sum_and_no_scale_is_refused() -> None:
    loss = sf.DiceLoss("binary")
    for wrong in ("a * a", "a + 1", "2.0 + a", "a * 'a'", "a * True", "1 / a", "a - 0.5", "a * None"):
        with pytest.raises(TypeError):
            written(wrong, a=loss)
    with pytest.raises(ValueError, match=r"coefficient .*0-d.*\(2, 3\)"):
        loss * torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"at most 4 pointwise .* 5"):
        sum(sf.FocalLoss("binary", gamma=gamma) for gamma in range(5))


@pytest.mark.parametrize(
    ("named", "sums"),
    [
        (
            "DiceBCELoss(n, dice_weight=0.3, bce_weight=2, pos_weight=w, smooth=1.0, pool_batch=True)",
            "0.3 * DiceLoss(n, smooth=1.0, pool_batch=True) + 2 * BCEWithLogitsLoss(n, pos_weight=w)",
        ),
        (
            "DiceCELoss(ce_weight=3, class_weight=w, ce_class_weight=v, label_smoothing=0.2, ignore_index=4)",
            "DiceLoss(m, class_weight=w) + CrossEntropyLoss(class_weight=v, label_smoothing=0.2, ignore_index=4) * 3",
        ),
        (
            "DiceFocalLoss('binary', focal_weight=20, alpha=0.3, gamma=1.5, squared=True, reduction='sample')",
            "DiceLoss('binary', squared=True) + 20 * FocalLoss('binary', alpha=0.3, gamma=1.5, reduction='sample')",
        ),
    ],
)
def test_named_compounds(named: str, sums: str) -> None:
    names = {"w": PER_CLASS, "v": PER_CLASS[::-1], "m": MULTICLASS, "n": "multilabel"}
    one, other = written(named, **names), written(sums, **names)
    logits, target = inputs(one.plan.mode)
    check_same(one(logits, target), other(logits, target), logits, tolerance=0)
    assert one.term_names() == other.term_names()


@pytest.mark.parametrize(
    ("given", "shared"),  # given to Dice, focal, cross-entropy
    [
        (({}, {}, {}), {"ignore_index": -100}),
        (({"ignore_index": 255}, {}, {}), {"ignore_index": 255}),
        (({}, {"ignore_index": 3}, {"ignore_index": 3}), {"ignore_index": 3}),
        (({}, {"reduction": "sample"}, {"ignore_index": 7}), {"reduction": "sample", "ignore_index": 7}),
        (({}, {"from_logits": False}, {"reduction": "sum"}), {"from_logits": False, "reduction": "sum"}),
        (({"from_logits": True, "reduction": "mean"}, {}, {"reduction": "mean"}), {"ignore_index": -100}),
    ],
)
def test_data_options_are_shared(given: Any, shared: dict[str, Any]) -> None:
    logits, target = inputs(MULTICLASS)
    if "from_logits" in shared:
        logits = logits.detach().softmax(1).requires_grad_()
    target[:, 1] = shared.get("ignore_index", 2)
    cases = [Case(name, MULTICLASS) for name in ("dice_loss", "focal_loss", "cross_entropy_loss")]
    a, b, c = (case.module(**own) for case, own in zip(cases, given, strict=True))
    expected = sum(case.module(**shared)(logits, target) for case in cases)
    for compound in (a + b + c, c + (b + a), sum([b, c, a])):
        check_same(compound(logits, target), expected, logits)


def test_the_default_of_cross_entropy_yields_to_what_is_given() -> None:
    logits, target = inputs(MULTICLASS)
    target[0, 2, 3] = -100
    assert written("DiceLoss(m) + CrossEntropyLoss()", m=MULTICLASS)(logits, target).isfinite()
    given = "DiceLoss(m, ignore_index=255) + CrossEntropyLoss(); CrossEntropyLoss() + FocalLoss(m, ignore_index=None)"
    for loss in ("DiceLoss(m) + FocalLoss(m)", *given.split("; ")):
        with pytest.raises(IndexError, match="-100"):
            written(loss, m=MULTICLASS)(logits, target)


@pytest.mark.parametrize(
    ("one", "other", "values"),
    [
        ("DiceLoss(m, reduction='mean')", "CrossEntropyLoss(reduction='sum')", "reduction='mean' reduction='sum'"),
        ("DiceLoss(m, ignore_index=9)", "CrossEntropyLoss(ignore_index=-100)", "ignore_index=9 ignore_index=-100"),
        ("DiceLoss(m, ignore_index=None)", "CrossEntropyLoss(ignore_index=9)", "ignore_index=None ignore_index=9"),
        ("JaccardLoss(m, from_logits=True)", "FocalLoss(m, from_logits=False)", "from_logits=True from_logits=False"),
        ("TverskyLoss('binary')", "BCEWithLogitsLoss('multilabel')", "mode='binary' mode='multilabel'"),
        ("FocalTverskyLoss('multilabel')", "CrossEntropyLoss()", "mode='multilabel' mode='multiclass'"),
    ],
)
def test_conflicting_data_options(one: str, other: str, values: str) -> None:
    a, b = written(one, m=MULTICLASS), written(other, m=MULTICLASS)
    for compound in ("a + b", "b - a", "sum([a, 0.3 * b])", "2 * (a + a) + b / 3"):
        with pytest.raises(ValueError, match=f"^(?=.*{type(a).__name__} )(?=.*{type(b).__name__} )") as info:
            written(compound, a=a, b=b)
        assert all(value in str(info.value) for value in values.split())


def test_reduction_none() -> None:
    logits, target = inputs(MULTICLASS)
    p = Parameter(torch.tensor(0.7).double())
    for name in ("tversky_loss", "cross_entropy_loss"):
        loss = Case(name, MULTICLASS).module(reduction="none")
        for scaled, scale in ((2.5 * loss, 2.5), (-loss / 4, -0.25), (p * loss / 2, p / 2), (loss, 1)):
            check_same(scaled(logits, target), loss(logits, target) * scale, logits, *[p] * isinstance(scale, Tensor))
            terms = scaled(logits, target, return_terms=True)[1]
            assert torch.equal(terms[name.removesuffix("_loss")], loss(logits, target).detach())
        for compound in ("a + b", "b - a", "a + a", "p * a + b"):
            with pytest.raises(ValueError, match=r'reduction="none" .*compound'):
                written(compound, a=loss, b=sf.DiceLoss(MULTICLASS), p=p)


def learned() -> sf.Loss:
    """p * Dice + cross-entropy / q, all its numbers powers of two or sums of few."""
    dice = sf.DiceLoss(MULTICLASS, class_weight=[0.25, 1.5, 0.75, 2.0, 1.0])
    ce = sf.CrossEntropyLoss(class_weight=[1.0, 0.5, 3.0, 0.25, 2.0]) / Parameter(torch.tensor(2.0))
    return Parameter(torch.tensor(0.5)) * dice + ce


def test_coefficients_are_read_at_each_call() -> None:
    logits, target = inputs(MULTICLASS)
    loss, schedule = learned(), torch.tensor(0.25)
    plan, (p, q) = loss.plan, loss.parameters()
    dice, ce = (term.item() for term in loss(logits, target, return_terms=True)[1].values())
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for _ in range(3):
        a, b = p.item(), q.item()
        value = loss(logits.detach(), target)
        assert value.item() == pytest.approx(a * dice + ce / b, rel=1e-6)
        p.grad, q.grad = torch.autograd.grad(value, (p, q), torch.tensor(1.7).double())
        optimizer.step()
        assert p.item() == pytest.approx(a - 0.17 * dice, rel=1e-5)
        assert q.item() == pytest.approx(b + 0.17 * ce / b**2, rel=1e-5)
    assert loss.plan is plan
    scheduled = schedule * sf.DiceLoss(MULTICLASS) + sf.FocalLoss(MULTICLASS)
    before, _ = scheduled(logits, target), schedule.zero_()
    found = scheduled(logits, target)
    assert found != before
    # Chunks depend on how many sums there are, so the last bit may differ.
    torch.testing.assert_close(found, sf.FocalLoss(MULTICLASS)(logits, target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sample"])
def test_terms(reduction: str, dtype: torch.dtype) -> None:
    logits, target = inputs(MULTICLASS, dtype)
    p, data = Parameter(torch.tensor(0.7)), {"reduction": reduction}
    names = ("focal_tversky", "dice", "focal", "dice_2", "tversky", "dice_3")
    options = [{} if name == "focal" else {"smooth": i + 0.5} for i, name in enumerate(names)]
    losses = [
        Case(n.rstrip("_23") + "_loss", MULTICLASS, o).module(**data) for n, o in zip(names, options, strict=True)
    ]
    compound = sum(s * loss for s, loss in zip((2.0, p, -3.0, 0.0, 1 / p.detach(), 1), losses, strict=True))
    value, terms = compound(logits, target, return_terms=True)
    assert value.dtype == torch.float32
    assert tuple(terms) == names
    assert not any(term.requires_grad for term in terms.values())
    for term, loss in zip(terms.values(), losses, strict=True):
        torch.testing.assert_close(term, loss(logits, target).detach(), rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(value, p, torch.full_like(value, 1.7))
    torch.testing.assert_close(slope, 1.7 * terms["dice"].sum())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_are_equal_and_independent(copied: Any) -> None:
    logits, target = inputs(MULTICLASS)
    for case in BY_MODE[MULTICLASS]:
        assert torch.equal(copied(case.module())(logits, target), case.module()(logits, target))
    loss = learned()
    double, expected = copied(loss), loss(logits, target)
    first, _ = double.parameters()
    assert torch.equal(double(logits, target), expected)
    with torch.no_grad():
        first.fill_(3.0)
        double.losses[1].class_weight.fill_(1.0)
    dice = loss(logits, target, return_terms=True)[1]["dice"]
    torch.testing.assert_close(double(logits, target), 3 * dice + sf.CrossEntropyLoss()(logits, target) / 2)
    torch.testing.assert_close(*torch.autograd.grad(double(logits, target), first), dice, check_dtype=False)
    assert torch.equal(loss(logits, target), expected)


def test_state_dict_and_dtypes() -> None:
    logits, target = inputs(MULTICLASS)
    loss = learned()
    state = {name: value + 1 for name, value in loss.state_dict().items()}
    assert sorted(value.numel() for value in state.values()) == [1, 1, 5, 5]
    dice = sf.DiceLoss(MULTICLASS, class_weight=[1.25, 2.5, 1.75, 3.0, 2.0])
    expected = (1.5 * dice + sf.CrossEntropyLoss(class_weight=[2.0, 1.5, 4.0, 1.25, 3.0]) / 3)(logits, target)
    for assign in (False, True):  # assigned, or swapped by functional_call, a Parameter is another object
        loaded = learned()
        loaded.load_state_dict(state, assign=assign)
        torch.testing.assert_close(loaded(logits, target), expected)
        assert all(v.any() for v in torch.autograd.grad(loaded(logits, target), list(loaded.parameters())))
    torch.testing.assert_close(torch.func.functional_call(loss, state, (logits, target)), expected)
    expected = loss(logits, target)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        assert {value.dtype for value in loss.to(dtype).state_dict().values()} == {dtype}
        assert torch.equal(loss(logits, target), expected)
        assert all(v.any() for v in torch.autograd.grad(loss(logits, target), list(loss.parameters())))


def test_repr() -> None:
    p = Parameter(torch.tensor(0.7))
    loss = 0.5 * sf.TverskyLoss(MULTICLASS, alpha=0.3, classes=[1, 2]) + p * sf.CrossEntropyLoss(class_weight=[1, 2.5])
    loss = loss - sf.FocalTverskyLoss(MULTICLASS, gamma=1.3, ignore_index=255) / 4
    assert "0.5 * TverskyLoss('multiclass', alpha=0.3, classes=[1, 2])" in repr(loss)
    assert "0.7 * CrossEntropyLoss(class_weight=[1.0, 2.5])" in repr(loss)
    assert "-0.25 * FocalTverskyLoss('multiclass', gamma=1.3, ignore_index=255)" in repr(loss)


@pytest.mark.parametrize("case", ADAPTIVE, ids=str)
def test_the_function_around_another_loss_equals_its_module(case: Case) -> None:
    logits, target = inputs(case.mode, torch.float32)
    weight = make_weight(case.mode, logits.shape)
    own = {k: v for k, v in case.options.items() if k not in ("base", "base_options")}
    base = Case(case.options["base"], case.mode, case.options.get("base_options", {})).module()
    found = sf.adaptive_log_loss(logits, target, base=base, weight=weight, **own)
    check_same(found, case.module()(logits, target, weight), logits, tolerance=0)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ADAPTIVE], ids=str)
def test_functions_equal_their_modules(case: Case) -> None:
    logits, target = inputs(case.mode, torch.float32)
    weight, function = make_weight(case.mode, logits.shape), getattr(sf, case.loss)
    mode = {} if case.loss == "cross_entropy_loss" else {"mode": case.mode}
    data_options = ({}, {"reduction": "sum", "ignore_index": 0}, {"reduction": "none"}, {"from_logits": False})
    for data in (o for o in data_options if case.allows(o.get("reduction", "mean"), o.get("from_logits", True))):
        x = logits.detach().softmax(1).requires_grad_() if "from_logits" in data else logits
        found = function(x, target, weight=weight, **mode, **case.options, **data)
        check_same(found, case.module(**data)(x, target, weight), x, tolerance=0)
    shown = inspect.signature(function).parameters
    options = {*mode, *case.options, "from_logits", "ignore_index", "reduction"}
    assert all(shown[option].kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    assert options <= set(re.findall(r"\w+", pydoc.plain(pydoc.render_doc(function))))
    assert inspect.signature(getattr(sf, CLASS_NAME[case.loss])).parameters.keys() <= shown.keys()
