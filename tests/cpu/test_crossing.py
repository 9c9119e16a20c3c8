"""From Python to C++: what one side alone knows is an error that names it."""

from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

import segfuse
from segfuse import _C
from segfuse._core import engines, native, options, spec
from segfuse._core.calls import Buffers, Constants
from segfuse._core.plan import Plan, data_of
from segfuse._core.spec import KernelSpec, Spec

LOSSES = (
    0.5 * segfuse.DiceLoss("multiclass", classes=[1, 2], class_weight=[1.0, 2.0, 3.0]) + segfuse.CrossEntropyLoss(),
    segfuse.FocalLoss("binary", alpha=0.3) + segfuse.AdaptiveLogLoss(segfuse.JaccardLoss("binary", shape="log")),
    segfuse.GeneralizedDiceLoss("multilabel", weight_type="simple", ignore_index=7, reduction="none"),
)


def loosened(kernel_spec: KernelSpec) -> SimpleNamespace:
    """The same fields, which can be taken away."""
    terms = tuple(SimpleNamespace(**vars(term)) for term in kernel_spec.terms)
    return SimpleNamespace(**{**vars(kernel_spec), "terms": terms})


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_field_that_one_side_lacks(loss: segfuse.Loss) -> None:
    exact = loss.plan.kernel_spec
    _C.Plan(loosened(exact))
    for index in range(-1, len(exact.terms)):
        for field in fields(exact if index < 0 else exact.terms[index]):
            given = loosened(exact)
            part = given if index < 0 else given.terms[index]
            delattr(part, field.name)
            with pytest.raises(ValueError, match=f"has no field '{field.name}'"):
                _C.Plan(given)
        given = loosened(exact)
        (given if index < 0 else given.terms[index]).gama = 2.0
        with pytest.raises(ValueError, match="has a field that no kernel knows: 'gama'"):
            _C.Plan(given)


def test_names() -> None:
    """Those of the types in Python are those of the lists in C++."""
    aliases = {"Mode": options.Mode, "Reduction": options.Reduction, "Scheme": native.Scheme}
    for name in ("Shape", "Absent", "Statistics", "ClassFactor", "Balance"):
        aliases[name] = getattr(spec, name)
    for name, alias in aliases.items():
        assert get_args(alias) == _C.NAMES[name]
    assert _C.NAMES.keys() - aliases.keys() == {"PointwiseKind", "RegionKind"}  # which losses name one by one
    given = loosened(LOSSES[0].plan.kernel_spec)
    for part, field in ((given, "mode"), (given, "reduction"), (given.terms[0], "absent"), (given.terms[1], "balance")):
        before = getattr(part, field)
        setattr(part, field, "skpi")
        with pytest.raises(ValueError, match=f"{field}: unknown name 'skpi'"):
            _C.Plan(given)
        setattr(part, field, before)
    with pytest.raises(ValueError, match="scheme must be one of automatic, two_pass, gradient_in_forward; got 'both'"):
        native.scheme("both").__enter__()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_spec_as_text(loss: segfuse.Loss) -> None:
    text = loss.plan.spec
    content = Spec.from_json(text)
    assert content.to_json() == text
    assert Plan(text).kernel_spec == loss.plan.kernel_spec
    whole = asdict(content)
    for wrong in ({**whole, "reducton": "sum"}, {k: v for k, v in whole.items() if k != "reduction"}):
        with pytest.raises(TypeError, match="reduct"):
            Spec.of_fields(wrong)


def test_a_module_of_another_version() -> None:
    other = SimpleNamespace(__name__="segfuse._cuda", CALL=_C.CALL[:-1], BUFFERS=_C.BUFFERS)
    with pytest.raises(ImportError, match=r"segfuse\._cuda is of another version: Call has the fields"):
        engines.Engine(other)  # type: ignore[arg-type]


def test_memory_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step tells its caller which memory is too short or absent, and touches none."""
    loss, engine = LOSSES[0], engines.CpuEngine()
    logits, target = torch.randn(2, 3, 5, 4), torch.randint(0, 3, (2, 5, 4))
    call = engine.call(loss.plan, data_of(loss.plan, logits, target, None), Constants(torch.ones(1, 3).double()))
    sizes, slopes = engine.sizes(call), loss.plan.slope_count(logits.shape)
    assert loss.plan.sums_of == (3, 3)
    assert sizes.sums == 2 * (3 + 3 * 3)
    assert slopes == 2 * (2 + 6 * 3) + 1
    counts = {"loss": 1, "terms": 2, "slopes": slopes, "sums": sizes.sums, "vector": sizes.vector}
    memory = {name: torch.zeros(count, dtype=torch.float64) for name, count in counts.items()}
    memory["workspace"] = torch.zeros(sizes.head_workspace, dtype=torch.float64)
    head = {name: (tensor.data_ptr(), tensor.numel()) for name, tensor in memory.items()}
    run: list[tuple[Any, dict[str, Any]]] = [
        (lambda given: _C.head(call, given, _C.GATHER), head),
        (lambda given: _C.forward(call, given, "two_pass"), {name: head[name] for name in ("loss", "terms", "slopes")}),
        (lambda given: _C.statistics(call, given), {"sums": head["sums"]}),
    ]
    for step, wanted in run:
        step(Buffers(**wanted))
        for name, (address, count) in wanted.items():
            with pytest.raises(ValueError, match=f"{name}: {count + 1} numbers, where {count} are expected"):
                step(Buffers(**{**wanted, name: (address, count + 1)}))
            with pytest.raises(ValueError, match=f"{name}: has no storage"):
                step(Buffers(**{**wanted, name: (0, count)}))
