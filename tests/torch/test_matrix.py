"""Features of PyTorch x kinds of losses: each cell is right, or refused with an error that says so.

python tests/torch/test_matrix.py --write     docs/integration.md anew, from the tables of this file
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import segfuse

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integration.md"


class OwnHead(nn.Module):
    """A loss written on the statistics."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return segfuse.region_loss(x, t, lambda tp, fp, fn, tn: ((fp + 2 * fn) / (tp + 1)).mean(), mode="multiclass")


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "pointwise": lambda: segfuse.FocalLoss("multiclass", gamma=1.5),
    "region": lambda: segfuse.TverskyLoss("multiclass", alpha=0.3, beta=0.7, class_weight=[1, 2, 3, 4]),
    "compound": lambda: 0.5 * segfuse.DiceLoss("multiclass") + segfuse.CrossEntropyLoss(label_smoothing=0.1),
    "own head": OwnHead,
}


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return (torch.randn(2, 4, 6, 5) * 2).to(dtype).requires_grad_(), torch.randint(0, 4, (2, 6, 5))


def gradient(loss: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, *rest) * 3, leaf)
    return found


def same(loss: Callable[..., Tensor], other: Callable[..., Tensor]) -> None:
    x, t = data()
    value = other(x, t)
    torch.testing.assert_close(value, loss(x, t))
    (value * 3).backward()  # reentrant checkpoints know no autograd.grad
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient(loss, x, t))


def compiled(backend: str, dynamic: bool | None) -> Callable[[nn.Module], None]:
    def check(loss: nn.Module) -> None:
        torch._dynamo.reset()
        same(loss, torch.compile(loss, fullgraph=True, backend=backend, dynamic=dynamic))

    return check


def exported(strict: bool) -> Callable[[nn.Module], None]:
    def check(loss: nn.Module) -> None:
        x, t = data()
        program = torch.export.export(loss, (x, t), strict=strict).module()
        torch.testing.assert_close(program(x, t), loss(x, t))

    return check


def dynamic(dim: int) -> Callable[[nn.Module], None]:
    """One dimension of logits and label map is a symbol: one graph, one program, other sizes."""

    def check(loss: nn.Module) -> None:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        graph = torch.compile(loss, fullgraph=True, backend=counter)
        x, t = (tensor.detach() for tensor in data())
        at = {0: 0, 2: 1, 3: 2}[dim]  # of the label map
        size = torch.export.Dim("size", min=2, max=64)
        shapes = {dim: size}, {at: size}
        programs = [torch.export.export(loss, (x, t), dynamic_shapes=shapes, strict=s).module() for s in (True, False)]
        for count in (x.shape[dim], 3, 9):
            other = torch.cat([x * 0.7] * 5, dim).narrow(dim, 1, count).contiguous()
            labels = torch.cat([t] * 5, at).narrow(at, 1, count).contiguous()
            torch._dynamo.mark_dynamic(other, dim)
            torch._dynamo.mark_dynamic(labels, at)
            for found in (graph, *programs):
                torch.testing.assert_close(found(other, labels), loss(other, labels))
        assert counter.frame_count == 1

    return check


def traced(tracer: Callable[..., Any]) -> Callable[[nn.Module], None]:
    def check(loss: nn.Module) -> None:
        x, t = data()
        other, labels = torch.randn_like(x), t.flip(0)
        graph = tracer(loss, x, t)
        torch.testing.assert_close(graph(other, labels), loss(other, labels))

    return check


def train_step(loss: nn.Module) -> None:
    """A small network with its loss and backward, compiled without a graph break."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    image, t = torch.randn(2, 3, 6, 5), data()[1]

    def step(image: Tensor, t: Tensor) -> Tensor:
        return loss(net(image), t)

    step(image, t).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    torch._dynamo.reset()
    torch.compile(step, fullgraph=True, backend="aot_eager")(image, t).backward()
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def shapes_only(loss: nn.Module) -> None:
    x, t = data()
    assert loss(x.to("meta"), t.to("meta")).is_meta
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # class weights are real
    inputs = mode.from_tensor(x.detach()), mode.from_tensor(t)
    with mode:
        fake = loss(*inputs)
    assert fake.shape == ()
    assert fake.dtype == torch.float64


def vmapped(loss: nn.Module) -> None:
    x, t = data()
    xs, ts = torch.stack([x.detach(), x.detach() * 2]), torch.stack([t, t.flip(0)])
    torch.testing.assert_close(torch.vmap(loss)(xs, ts), torch.stack([loss(a, b) for a, b in zip(xs, ts, strict=True)]))
    per_sample = torch.vmap(torch.func.grad(lambda a, b: loss(a[None], b[None])))(x.detach(), t)
    expected = torch.stack([gradient(loss, a[None], b[None])[0] / 3 for a, b in zip(x, t, strict=True)])
    torch.testing.assert_close(per_sample, expected)


def functional(loss: nn.Module) -> None:
    x, t = data()
    expected = gradient(loss, x, t) / 3
    torch.testing.assert_close(torch.func.grad(loss)(x.detach(), t), expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(x.detach(), t), expected)


def forward_mode(loss: nn.Module) -> None:
    x, t = data()
    direction = torch.randn_like(x)
    value, slope = torch.func.jvp(lambda x: loss(x, t), (x.detach(),), (direction,))
    torch.testing.assert_close(slope, (gradient(loss, x, t) / 3 * direction).sum())
    torch.testing.assert_close(value, loss(x, t).detach())


def second_order(loss: nn.Module) -> None:
    x, t = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (1, 4))
    if isinstance(loss, segfuse.TverskyLoss):
        x, t = data()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, t), x, fast_mode=True)


def compiled_second_order(loss: nn.Module) -> None:
    x, t = data()
    torch._dynamo.reset()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, t)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    torch.autograd.grad(first.sum(), x)


def checkpointed(reentrant: bool) -> Callable[[nn.Module], None]:
    return lambda loss: same(loss, lambda *a: checkpoint(loss, *a, use_reentrant=reentrant))


def inside(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[nn.Module], None]:
    def check(loss: nn.Module) -> None:
        x, t = data()
        expected = gradient(loss, x, t)
        with context():
            torch.testing.assert_close(gradient(loss, x, t), expected)

    return check


def deterministic() -> AbstractContextManager[Any]:
    class On:
        def __enter__(self) -> None:
            torch.use_deterministic_algorithms(True)

        def __exit__(self, *_: object) -> None:
            torch.use_deterministic_algorithms(False)

    return On()


def without_gradient(loss: nn.Module) -> None:
    x, t = data()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(loss(x, t), loss(x.detach(), t))
            assert not loss(x, t).requires_grad


def mixed_precision(loss: nn.Module) -> None:
    """float16 under GradScaler, and autocast: the loss is float32, the gradient of the logits' type."""
    for dtype in (torch.float16, torch.bfloat16):
        x, t = data(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(x, t)
        assert value.dtype == torch.float32
        torch.amp.GradScaler("cpu", init_scale=65536.0).scale(value).backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        exact = gradient(loss, x.double(), t) / 3 * 65536
        assert (x.grad - exact).abs().max() <= 1.6e-2 * exact.abs().max()


def copies(loss: nn.Module) -> None:
    x, t = data()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(x, t), loss(x, t))
        assert repr(other) == repr(loss)
        other.load_state_dict(loss.state_dict())
    assert loss.to(torch.float64) is loss
    assert torch.equal(loss(x, t), copy.deepcopy(loss)(x, t))


class Meta(Tensor):
    """As MONAI's MetaTensor: a subclass by ``__torch_function__`` alone."""


def function_subclass(loss: nn.Module) -> None:
    x, t = data()
    wrapped = x.detach().as_subclass(Meta).requires_grad_()
    value = loss(wrapped, t.as_subclass(Meta))
    torch.testing.assert_close(value.as_subclass(Tensor), loss(x, t))
    (value * 3).backward()
    torch.testing.assert_close(wrapped.grad.as_subclass(Tensor), gradient(loss, x, t))


FEATURES: dict[str, Callable[[nn.Module], None]] = {
    "`torch.compile(fullgraph=True)`, aot_eager": compiled("aot_eager", False),
    "`torch.compile(fullgraph=True)`, inductor": compiled("inductor", False),
    "`torch.compile(fullgraph=True, dynamic=True)`": compiled("aot_eager", True),
    "a compiled training step, one graph": train_step,
    "`torch.export`, strict": exported(True),
    "`torch.export`, not strict": exported(False),
    "a batch of any size: one graph (`torch.compile`), one program (`torch.export`, strict and not)": dynamic(0),
    "any height: one graph, one program": dynamic(2),
    "any width: one graph, one program": dynamic(3),
    "`make_fx`": traced(lambda loss, *a: make_fx(loss)(*a)),
    "`make_fx`, fake tensors": traced(
        lambda loss, *a: make_fx(loss, tracing_mode="fake", _allow_non_fake_inputs=True)(*a)
    ),
    "`torch.jit.trace`": traced(lambda loss, *a: torch.jit.trace(loss, a)),
    "meta and fake tensors": shapes_only,
    "`vmap`, and of a gradient": vmapped,
    "`func.grad`, `jacrev`": functional,
    "forward mode (`jvp`)": forward_mode,
    "second derivative": second_order,
    "second derivative, compiled": compiled_second_order,
    "checkpointing": checkpointed(False),
    "checkpointing, reentrant": checkpointed(True),
    "saved-tensor hooks (`save_on_cpu`)": inside(torch.autograd.graph.save_on_cpu),
    "anomaly mode": inside(lambda: torch.autograd.set_detect_anomaly(True)),
    "deterministic algorithms": inside(deterministic),
    "`no_grad`, `inference_mode`": without_gradient,
    "autocast, float16 and bfloat16, GradScaler": mixed_precision,
    "deepcopy, pickle, `state_dict`": copies,
    "`__torch_function__` subclasses (MONAI's MetaTensor)": function_subclass,
}
# What is refused: the error says what to do instead. Everything else must work.
REFUSED: dict[tuple[str, str], str] = {
    ("second derivative, compiled", family): "aot_autograd|second derivative|double backward" for family in FAMILIES
}
# Features whose tests stand elsewhere, by what must be there.
ELSEWHERE = {
    "DDP, unequal batches, `process_group=`": "tests/torch/test_distributed.py",
    "FSDP": "tests/repo/test_recipes.py",
    "DTensor: replicated, sharded along batch or space": "tests/torch/test_distributed.py",
    "five shapes, at most two compilations": "tests/torch/test_compile.py",
    "a schedule of coefficients, no recompilation": "tests/torch/test_compile.py",
    "threads, fork": "tests/torch/test_ops.py",
    "CUDA graphs, side streams (only on a GPU)": "tests/cuda/test_kernels.py",
}


# What tools/large.py printed.
LARGE = (
    "2152960000 bfloat16 logits: 14 s forward and backward, peak memory 11.2 GB",
    "loss 0.693925083, in float64 0.693925059: 3.4e-08 of it apart",
    "gradient: no element is further than 3.86e-03 of itself from float64; bfloat16 rounds by 3.91e-03",
)
# What goes wrong in a custom operator without an error, or kills the process: each has its test.
TRAPS = {
    "a raw call on a fake or meta tensor reads address 0": (
        "tests/torch/test_compile.py::test_fake_and_meta_tensors",
        "tests/torch/test_compile.py::test_kernels_refuse_what_has_no_storage",
    ),
    "`make_fx` and `torch.jit.trace` bake the loss in as a constant": (
        "tests/torch/test_compile.py::test_a_trace_keeps_the_loss",
    ),
    "`create_graph=True`: a second derivative that is wrong": (
        "tests/torch/test_ops.py::test_second_derivative",
        "tests/torch/test_ops.py::test_gradcheck_of_every_order",
    ),
    "`torch.compile(torch.func.grad(loss))` gives zeros": (
        "tests/torch/test_compile.py::test_compiled_higher_orders_raise_or_are_right",
    ),
    "`func.grad`, `jacrev`: an operator's own autograd cannot run": (
        "tests/torch/test_ops.py::test_every_route_gives_the_same_gradient",
        "tests/torch/test_compile.py::test_a_parameter_as_coefficient",
    ),
    "`vmap` by the slow fallback, or not at all": ("tests/torch/test_ops.py::test_vmap",),
    "forward mode: a tangent of None": (
        "tests/torch/test_matrix.py::forward_mode",
        "tests/torch/test_ops.py::test_gradcheck_of_every_order",
    ),
    "MetaTensor takes the slow route and comes out again": (
        "tests/torch/test_ops.py::test_subclasses_modes_and_terms",
    ),
    "DTensor: no sharding strategy": ("tests/torch/test_distributed.py::test_three_ranks_of_dtensors",),
    "a kernel writes over logits that something else saved": ("tests/torch/test_ops.py::test_the_rules_of_autograd",),
    "an upstream gradient of stride 0": (
        "tests/cpu/test_layout.py::test_upstream_without_strides",
        "tests/torch/test_ops.py::test_every_route_gives_the_same_gradient",
    ),
    "inductor hands over other strides": (
        "tests/torch/test_compile.py::test_inductor_keeps_strides",
        "tests/torch/test_compile.py::test_opcheck",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:User provided device_type of:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("feature", FEATURES)
def test_cell(feature: str, family: str) -> None:
    loss = FAMILIES[family]()
    message = REFUSED.get((feature, family))
    errors = (RuntimeError, NotImplementedError)
    refused: Any = nullcontext() if message is None else pytest.raises(errors, match=message)
    with refused:
        FEATURES[feature](loss)


def page() -> str:
    lines = [
        "# Integration with PyTorch",
        "",
        "Every cell is a test of `tests/torch/test_matrix.py`: value and gradient are those of the plain eager call,",
        "or there is an error that says so. `python tests/torch/test_matrix.py --write` writes this page.",
        "",
        f"| | {' | '.join(FAMILIES)} |",
        "|---" * (len(FAMILIES) + 1) + "|",
    ]
    for feature in FEATURES:
        cells = ["error" if (feature, family) in REFUSED else "yes" for family in FAMILIES]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    lines += ["", "Tested elsewhere, for compounds:", "", "| | test |", "|---|---|"]
    lines += [f"| {feature} | `{test}` |" for feature, test in ELSEWHERE.items()]
    lines += ["", "Known traps of custom operators:", "", "| | test |", "|---|---|"]
    lines += [f"| {trap} | {', '.join(f'`{test}`' for test in tests)} |" for trap, tests in TRAPS.items()]
    lines += [
        "",
        "The second derivative of a loss in eager mode is that of its reference (`segfuse.reference`), at no cost to",
        "the first; with a `process_group` there is only the first. How to use these: [recipes](recipes.md). Older",
        "releases of torch: [versions](versions.md).",
        "",
        "Limits: a compound holds at most 4 pointwise and 8 region losses; `torch.jit.script` takes no loss",
        "(`torch.jit.trace` does); logits have at most 16 spatial dimensions that do not merge.",
        "",
        "## More than 2^31 elements",
        "",
        "`tests/cpu/test_engine.py` runs 2^31 + 12345 positions of stride 0, and rows that lie 2^31 elements apart.",
        "Logits that are really there: `python tools/large.py`, Dice + BCE of 46400 x 46400 bfloat16 logits and uint8",
        "labels, against float64. On an AMD EPYC (AVX-512), 2 virtual cores, shared with other work, torch 2.13:",
        "",
        *(f"    {line}" for line in LARGE),
        "",
    ]
    return "\n".join(lines)


def test_the_page_is_that_of_this_file() -> None:
    assert PAGE.read_text() == page(), "python tests/torch/test_matrix.py --write"
    for test in ELSEWHERE.values():
        assert (ROOT / test).is_file()
    for file, name in (test.split("::") for tests in TRAPS.values() for test in tests):
        assert f"\ndef {name}(" in (ROOT / file).read_text()


if __name__ == "__main__" and "--write" in sys.argv:
    PAGE.write_text(page())
