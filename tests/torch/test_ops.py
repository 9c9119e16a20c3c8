"""Autograd of every order, and all that may stand between a call and its kernels: modes, subclasses, hooks, threads."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

import segfuse
from cases import CASES, Case, check_close
from compounds import Loss, close, compound, data_of, gradient_of, in_every_mode, jit
from segfuse import _C
from segfuse._core import routes


class Seen(TorchDispatchMode):
    """Lists the operators that it sees."""

    names: ClassVar[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Wrapper(Tensor):
    """A subclass that holds another tensor and has no storage."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        made = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapper, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, func(*args, **kwargs))


class Meta(Tensor):
    """As MONAI's MetaTensor: a subclass by ``__torch_function__`` alone."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    x, y, w = data_of(case.mode, 2)
    reduction = "mean" if CASES.index(case) % 2 else "sample" if case.allows("sample") else "none"
    module = case.module(reduction=reduction)
    upstream = torch.rand(module(x, y, w).shape, dtype=x.dtype) + 0.3
    torch.autograd.gradcheck(lambda x: module(x, y, w) * upstream, x)


@jit
@pytest.mark.parametrize("case", {(case.loss, case.mode): case for case in reversed(CASES)}.values(), ids=str)
def test_gradcheck_of_every_order(case: Case) -> None:
    x, y, w = data_of(case.mode, 1)
    module = case.module(reduction="sample" if case.allows("sample") else "mean")
    torch.autograd.gradcheck(lambda x: module(x, y, w), x, check_batched_grad=True, check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda x: module(x, y, w).square(), x, fast_mode=True)


def second(loss: Loss, x: Tensor, a: Tensor) -> list[Tensor]:
    """The derivatives in x and a, then those of x along a direction in x and a, and that of a in x."""
    first = torch.autograd.grad(loss(x, a).sum(), (x, a), create_graph=True)
    direction = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
    along = torch.autograd.grad((first[0] * direction).sum(), (x, a), retain_graph=True)
    return [*first, *along, *torch.autograd.grad(first[1], x)]


@jit
@in_every_mode
def test_second_derivative(mode: str) -> None:
    x, y, w = data_of(mode)
    a = torch.tensor(0.7, dtype=x.dtype, requires_grad=True)

    def loss(x: Tensor, a: Tensor) -> Tensor:
        return compound(mode, a)(x, y, w)

    expected = second(lambda x, a: compound(mode, a, segfuse.reference)(x, y, w), x, a)
    close(second(loss, x, a), expected)
    with Seen():
        close(second(loss, x, a), expected)
    close([getattr(t, "inner", t) for t in second(loss, Wrapper(x.detach()).requires_grad_(), a)], expected)
    hessian = torch.func.hessian(loss, (0, 1))(x.detach(), a.detach())
    close(hessian[1][0].reshape(x.shape), expected[-1])
    for inner, outer in ((0, 0), (0, 1), (1, 0)):
        with pytest.raises(NotImplementedError, match="second derivative"):
            torch.func.jacrev(lambda *v, i=inner: torch.func.grad(loss, i)(*v).sum(), outer)(x.detach(), a.detach())


def deterministic(loss: Loss, *arguments: Any) -> Tensor:
    torch.use_deterministic_algorithms(True)
    try:
        return gradient_of(loss, *arguments)
    finally:
        torch.use_deterministic_algorithms(False)


def inside(context: Callable[[], Any]) -> Callable[..., Tensor]:
    def gradient(loss: Loss, *arguments: Any) -> Tensor:
        with context():
            return gradient_of(loss, *arguments)

    return gradient


def backward_of(take: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> Callable[..., Tensor]:
    """A plain forward; how its backward runs is up to `take`."""

    def gradient(loss: Loss, x: Tensor, *rest: Any) -> Tensor:
        value = loss(x, *rest)
        return take(lambda g, **how: torch.autograd.grad(value, x, g, retain_graph=True, **how)[0], value.detach())

    return gradient


def batched(value: Tensor) -> Tensor:
    return torch.eye(value.numel(), dtype=value.dtype).reshape(-1, *value.shape)


graph, zero = torch.autograd.graph, torch._efficientzerotensor
ROUTES: dict[str, Callable[..., Tensor]] = {
    "save on cpu": inside(graph.save_on_cpu),
    "saved tensor hooks": inside(lambda: graph.saved_tensors_hooks(lambda t: (t.clone(),), lambda saved: saved[0])),
    "anomaly mode": inside(lambda: torch.autograd.set_detect_anomaly(True)),
    "deterministic": deterministic,
    "default device": inside(lambda: torch.device("meta")),
    "dispatch mode": inside(Seen),
    "subclass": lambda loss, x, *rest: gradient_of(loss, Wrapper(x.detach()), *rest).inner,
    "checkpoint": lambda loss, *a: gradient_of(partial(checkpoint, loss, use_reentrant=False), *a),
    "reentrant checkpoint": lambda loss, *a: gradient_of(partial(checkpoint, loss, use_reentrant=True), *a),
    "func.grad": lambda loss, x, *rest: torch.func.grad(lambda x: loss(x, *rest).sum())(x.detach()),
    "jacrev": lambda loss, x, *rest: torch.func.jacrev(loss)(x.detach(), *rest).reshape(-1, *x.shape).sum(0),
    "batched backward": backward_of(lambda backward, value: backward(batched(value), is_grads_batched=True).sum(0)),
    "vmapped backward": backward_of(lambda backward, value: torch.vmap(backward)(batched(value)).sum(0)),
    "traced backward": backward_of(lambda backward, value: make_fx(backward)(value)(torch.ones_like(value))),
    "expanded upstream": backward_of(lambda backward, value: backward(value.new_ones(()).expand_as(value))),
    "negated upstream": backward_of(lambda backward, value: backward(torch._neg_view(-torch.ones_like(value)))),
    "strided upstream": backward_of(lambda backward, value: backward(value.new_ones(*value.shape, 2)[..., 0])),
    "no upstream": backward_of(lambda backward, value: backward(zero(value.shape, dtype=value.dtype))),
}


@in_every_mode
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_same_gradient(route: str, mode: str) -> None:
    x, y, w = data_of(mode)
    unreduced = [cls(mode, reduction="none") for cls in (segfuse.FocalLoss, segfuse.DiceLoss)]
    for loss in (compound(mode, torch.tensor(0.7)), *unreduced):
        close(ROUTES[route](loss, x, y, w), gradient_of(loss, x, y, w) * (route != "no upstream"))


@in_every_mode
def test_vmap(mode: str) -> None:
    xs, ys, ws = (torch.stack(ts) for ts in zip(*(data_of(mode) for _ in range(3)), strict=True))
    loss, a = compound(mode), torch.rand(3).double()
    expected = torch.stack([gradient_of(loss, *each) for each in zip(xs, ys, ws, strict=True)])
    close(torch.vmap(torch.func.grad(loss))(xs.detach(), ys, ws), expected)
    values = torch.vmap(lambda x, a: compound(mode, a)(x, ys[0], ws[0]), (1, 0))(xs.transpose(0, 1), a)
    close(values, torch.stack([compound(mode, c.item())(x, ys[0], ws[0]) for x, c in zip(xs, a, strict=True)]))


def test_the_rules_of_autograd() -> None:
    (x, y, _), loss = data_of("multiclass"), compound("multiclass")
    before = [t.detach().clone() for t in (x, y)]
    value = loss(x, y)
    value.backward(retain_graph=True)
    value.backward()
    assert torch.equal(x, before[0])  # nothing is written over what the caller holds
    assert torch.equal(y, before[1])
    assert torch.equal(x.grad, 2 * gradient_of(loss, x, y))
    with pytest.raises(RuntimeError, match="a second time"):
        value.backward()
    logits = x.detach() * torch.ones_like(x).requires_grad_()
    value = loss(logits, y)
    logits.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        value.backward()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(loss(x, y), loss(x.detach(), y))
            assert not loss(x, y).requires_grad


def test_a_loss_that_gets_no_gradient() -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> None:
            return None

    (x, y, _), loss = data_of("multiclass"), compound("multiclass")
    (Stop.apply(loss(x, y)) + x[0, 0, 0, 0]).backward()
    expected = torch.zeros_like(x)
    expected[0, 0, 0, 0] = 1
    assert torch.equal(x.grad, expected)


@in_every_mode
def test_subclasses_modes_and_terms(mode: str) -> None:
    x, y, w = data_of(mode)
    loss: Any = compound(mode, torch.tensor(0.7))
    wrapped = [t.detach().as_subclass(Meta).requires_grad_(t.requires_grad) for t in (x, y, w)]
    value = loss(*wrapped)
    assert type(value) is Tensor
    assert type(value.grad_fn).__name__ == "_LossBackward"  # the fast route: the operator takes four times as long
    loss(*wrapped).backward()
    close(wrapped[0].grad.as_subclass(Tensor), gradient_of(loss, x, y, w))
    Seen.names.clear()
    results = [loss(x, y, w, return_terms=True)]
    with Seen():
        results += [loss(x, y, w, return_terms=True)]
        results[1][0].backward()
    assert {"segfuse::forward", "segfuse::backward"} <= set(Seen.names)
    for value, terms in results:
        assert value.requires_grad
        assert not any(term.requires_grad for term in terms.values())
    close(loss(torch._neg_view(-x), y, w), loss(x, y, w))


@in_every_mode
def test_mixed_precision(mode: str) -> None:
    x, y, w = data_of(mode, dtype=torch.float16)
    loss, reference = compound(mode), compound(mode, package=segfuse.reference)
    torch.amp.GradScaler("cpu", init_scale=65536.0).scale(loss(x, y, w)).backward()
    assert x.grad.dtype == torch.float16
    check_close(x.grad, 65536 * gradient_of(reference, x.double(), y, w), 2e-3, "gradient")
    layer = torch.nn.Conv2d(x.shape[1], x.shape[1], 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x.detach().float())
        value = loss(logits, y, w)
    assert (logits.dtype, value.dtype) == (torch.bfloat16, torch.float32)
    check_close(value.detach(), reference(logits.detach().double(), y, w), 1e-6, "loss")
    assert torch.autograd.grad(value, logits)[0].dtype == torch.bfloat16


@pytest.fixture
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    _C.force_own_pool(True)
    yield
    _C.force_own_pool(False)


def test_threads(own_pool: None) -> None:
    x, y, w = data_of("multiclass", 64, 64, dtype=torch.float32)
    expected = gradient_of(compound("multiclass"), x, y, w)
    for own in (True, False):
        _C.force_own_pool(own)
        with ThreadPoolExecutor(4) as pool:
            for gradient in pool.map(lambda _: gradient_of(compound("multiclass"), x, y, w), range(40)):
                assert torch.equal(gradient, expected)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork(own_pool: None) -> None:  # torch's own pool hangs in the child of a fork, for torch's operators too
    (x, y, w), loss = data_of("multiclass", 64, 64, dtype=torch.float32), compound("multiclass")
    expected = torch.autograd.grad(loss(x, y, w), x)[0][..., ::9, ::9].contiguous()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            found = torch.autograd.grad(loss(x, y, w), x)[0][..., ::9, ::9].contiguous()
            os._exit(0 if torch.equal(found, expected) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_device_without_kernels_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_announced", set())
    monkeypatch.delenv("SEGFUSE_STRICT", raising=False)
    with pytest.warns(RuntimeWarning, match="no kernels for mps"):
        routes._announce_reference(torch.device("mps"))
    routes._announce_reference(torch.device("mps"))
    monkeypatch.setenv("SEGFUSE_STRICT", "1")
    with pytest.raises(RuntimeError, match="SEGFUSE_STRICT"):
        routes._announce_reference(torch.device("mps"))
