"""Features of PyTorch as checks of a loss, and kinds of losses to check: the rows and columns of test_matrix.py."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import segfuse


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
