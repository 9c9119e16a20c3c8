"""What torch records before it runs: operator contracts, fake tensors, traces, torch.compile and torch.export."""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import segfuse
from cases import MODES, PER_CLASS, make_logits, make_target, make_weight, shape_of
from compounds import close, compound, data_of, gradient_of, in_every_mode, jit
from segfuse._core import native, steps
from segfuse._core.calls import Constants
from segfuse._core.checks import check_inputs
from segfuse._core.plan import Data

OPS = torch.ops.segfuse
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "slice": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(-1, -2),
    "expanded": lambda x: x[:, :, :1].expand(-1, -1, 3, -1),
    "empty batch": lambda x: x[:0],
}
OPERATORS = [
    *((mode, reduction, torch.float32, "contiguous") for mode in MODES for reduction in ("mean", "sum", "sample")),
    *((mode, "none", torch.float64, "contiguous") for mode in MODES),
    *((mode, "mean", torch.float32, layout) for mode in MODES for layout in LAYOUTS if layout != "contiguous"),
    *(("multiclass", "sample", dtype, "channels_last") for dtype in (torch.float16, torch.bfloat16, torch.float64)),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own
@pytest.mark.parametrize(("mode", "reduction", "dtype", "layout"), OPERATORS)
def test_opcheck(mode: str, reduction: str, dtype: torch.dtype, layout: str) -> None:
    x = LAYOUTS[layout](make_logits(shape_of(mode, 4, 6), dtype))
    y, w = (t[: len(x), ..., : x.shape[-2], : x.shape[-1]] for t in data_of(mode, 6, 6)[1:])
    losses: list[Any] = [segfuse.FocalLoss(mode, reduction="none"), segfuse.TverskyLoss(mode, reduction="none")]
    if reduction != "none":
        losses = [compound(mode, torch.tensor(0.7), reduction=reduction)]
    for loss in losses:
        for wants_grad, weight in ((False, None), (True, w)):
            logits, target, weight, _ = check_inputs(loss.plan, x.detach().requires_grad_(wants_grad), y, weight)
            class_values, coefficients = None, None
            if reduction != "none":
                class_values = loss._class_values(logits, target, weight)
                coefficients = torch.tensor([0.7, 1.0], dtype=torch.float64, requires_grad=wants_grad)
            inputs = logits, target, weight, class_values, coefficients, loss.plan.spec
            torch.library.opcheck(OPS.forward.default, inputs)
        with torch.no_grad():
            value, _, slopes = OPS.forward(*inputs)
        for upstream in (torch.rand_like(value), torch.ones(()).to(value).expand(value.shape)):
            inputs = upstream, logits.detach(), target, weight, class_values, slopes, loss.plan.spec
            torch.library.opcheck(OPS.backward.default, inputs)


@pytest.mark.parametrize("reduction", ["mean", "sample", "none"])
@in_every_mode
def test_fake_and_meta_tensors(mode: str, reduction: str) -> None:
    data = data_of(mode)
    loss: Any = segfuse.FocalLoss(mode, reduction=reduction)
    loss = loss if reduction == "none" else 0.7 * segfuse.DiceLoss(mode) + loss
    expected = loss(*data), gradient_of(loss, *data)
    fake, none = FakeTensorMode(), contextlib.nullcontext()
    for convert, context in ((lambda t: t.to("meta"), none), (fake.from_tensor, none), (fake.from_tensor, fake)):
        x, y, w = map(convert, data)
        with context:
            found = loss(x, y, w), gradient_of(loss, x, y, w)
        for a, b in zip(found, expected, strict=True):
            assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), x.device)
    with fake:
        loss = compound(mode)
    with pytest.raises(AssertionError, match="FakeTensor"):  # its class_values are fake, the data is not
        loss(*data)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # some releases of torch raise
def test_kernels_refuse_what_has_no_storage() -> None:
    """Were a fake tensor to slip past the choice of the route, its address, 0, must not be read."""
    (x, y, _), fake = data_of("multiclass"), FakeTensorMode().from_tensor
    plan = (segfuse.DiceLoss("multiclass") + segfuse.CrossEntropyLoss()).plan
    results, _ = steps.forward(plan, Data(x, y, None, soft=False), Constants())
    for logits, target in ((fake(x), y), (x, fake(y))):
        data = Data(logits, target, None, soft=False)
        with pytest.raises((ValueError, RuntimeError), match=r"has no storage|FakeTensor"):
            steps.forward(plan, data, Constants())
        with pytest.raises((ValueError, RuntimeError), match=r"has no storage|FakeTensor"):
            steps.backward(plan, x.new_ones(()), data, None, results.slopes)


TRACERS: dict[str, Callable[..., Callable[..., Tensor]]] = {
    "jit": lambda f, *a: torch.jit.trace(f, a),
    **{m: lambda f, *a, m=m: make_fx(f, tracing_mode=m)(*a) for m in ("real", "fake", "symbolic")},
}


@jit
@in_every_mode
@pytest.mark.parametrize("tracer", TRACERS)
def test_a_trace_keeps_the_loss(tracer: str, mode: str) -> None:
    loss = segfuse.DiceLoss(mode) + segfuse.FocalLoss(mode)
    first, data = data_of(mode), data_of(mode)
    close(TRACERS[tracer](loss, *first)(*data), loss(*data))
    if tracer != "jit":
        close(TRACERS[tracer](partial(gradient_of, loss), *first)(*data), gradient_of(loss, *data))


class Net(nn.Module):
    """A layer and its loss."""

    def __init__(self, mode: str, loss: Any) -> None:
        super().__init__()
        self.layer = nn.Conv2d(shape_of(mode)[1], shape_of(mode)[1], 3, padding=1)
        self.loss = loss

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return self.loss(self.layer(x), *rest)  # type: ignore[no-any-return]


def batch(mode: str, n: int = 3, *space: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (n, shape_of(mode)[1], *(space or (6, 5)))
    return make_logits(shape), make_target(mode, shape), make_weight(mode, shape)


def step(call: Callable[..., Tensor], net: nn.Module, *data: Any) -> list[Tensor]:
    """The loss and all gradients."""
    net.zero_grad()
    value = call(*data)
    (value.sum() * 1.7).backward()
    return [value.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def check_compiled(mode: str, loss: Any, backend: Any = "aot_eager", data: Any = None, **options: Any) -> Any:
    """A compiled training step gives what the eager one gives; the compiled network, to run again."""
    torch._dynamo.reset()
    net, data = Net(mode, loss), data or batch(mode)
    compiled = torch.compile(net, fullgraph=True, backend=backend, **options)
    close(step(compiled, net, *data), step(net, net, *data))
    with native.trace() as events:  # the kernels, not the reference, run in what was compiled
        step(compiled, net, *data)
    assert [e.kernel for e in events if e.kernel != "values"] == ["statistics", "gradient"]
    return net, compiled


def functional(name: str, **options: Any) -> Callable[..., Tensor]:
    return lambda x, y, w: getattr(segfuse, name)(x, y, weight=w, **options)


TABLE = torch.tensor(PER_CLASS)
DICE, CE = segfuse.DiceLoss("multiclass", class_weight=PER_CLASS), segfuse.CrossEntropyLoss(label_smoothing=0.1)
TVERSKY = segfuse.TverskyLoss("multiclass", alpha=0.3, beta=0.7, shape="log")
COMPILED: dict[str, tuple[str, Any]] = {
    "bce": ("binary", segfuse.BCEWithLogitsLoss("binary", pos_weight=2.0, label_smoothing=0.1)),
    "balanced bce": ("multilabel", segfuse.BCEWithLogitsLoss("multilabel", balanced=True, reduction="sample")),
    "cross-entropy": ("multiclass", segfuse.CrossEntropyLoss(class_weight=PER_CLASS, ignore_index=2)),
    "focal": ("multilabel", segfuse.FocalLoss("multilabel", alpha=PER_CLASS, reduction="none")),
    "scaled none": ("multiclass", torch.tensor(0.3) * segfuse.FocalLoss("multiclass", reduction="none")),
    "dice": ("binary", segfuse.DiceLoss("binary", squared=True, reduction="none")),
    "jaccard": ("multilabel", segfuse.JaccardLoss("multilabel", pool_batch=True, class_weight=PER_CLASS)),
    "tversky": ("multiclass", segfuse.TverskyLoss("multiclass", alpha=0.3, pool_classes=True, reduction="sum")),
    "focal tversky": ("multiclass", segfuse.FocalTverskyLoss("multiclass", classes=[1, 3], absent="skip")),
    "dice bce": ("binary", segfuse.DiceBCELoss("binary", ignore_index=0)),
    "dice ce": ("multiclass", segfuse.DiceCELoss(ce_class_weight=PER_CLASS, reduction="sample")),
    "dice focal": ("multilabel", segfuse.DiceFocalLoss("multilabel", focal_weight=20.0)),
    "three terms": ("multiclass", 0.5 * DICE + CE / torch.tensor(3.0) - nn.Parameter(torch.tensor(0.2)) * TVERSKY),
    "deep copy": ("multiclass", copy.deepcopy(nn.Parameter(torch.tensor(0.2)) * DICE + CE)),
    "terms": ("multiclass", lambda *a: (DICE + CE)(*a, return_terms=True)[0]),
    "function": ("binary", functional("dice_loss", mode="binary")),
    "function with a pair": ("multiclass", functional("jaccard_loss", mode="multiclass", smooth=(0.5, 1.0))),
    "function with a list": ("multiclass", functional("cross_entropy_loss", class_weight=list(PER_CLASS))),
    "function with a tensor": (
        "multiclass",
        functional("focal_loss", mode="multiclass", alpha=TABLE, reduction="sample"),
    ),
    "built inside": ("multiclass", lambda *a: (2 * segfuse.DiceLoss("multiclass") + segfuse.CrossEntropyLoss())(*a)),
    "added inside": ("multiclass", lambda *a: (0.5 * DICE + CE)(*a)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compile(name: str) -> None:
    check_compiled(*COMPILED[name])


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own
@pytest.mark.parametrize("name", ["dice bce", "three terms", "function with a tensor"])
def test_inductor(name: str) -> None:
    mode, loss = COMPILED[name]
    x, y, w = batch(mode)
    check_compiled(mode, loss, "inductor", (x.contiguous(memory_format=torch.channels_last), y, w))


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own
def test_inductor_keeps_strides() -> None:
    """Logits and target that are views, made inside the graph."""
    loss = segfuse.DiceLoss("multiclass") + segfuse.CrossEntropyLoss()
    x, y, _ = batch("multiclass", 2, 8, 10)

    def step(x: Tensor, y: Tensor) -> Tensor:
        base = (x * 2).transpose(-1, -2)
        one, labels = base[:1].expand(2, -1, -1, -1), y.transpose(-1, -2)
        return loss(base[..., 1::2], labels[..., 1::2]) + loss(one, labels)  # type: ignore[no-any-return]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="inductor")
    close(gradient_of(compiled, x, y), gradient_of(step, x, y))
    close(compiled(x, y), step(x, y))


@pytest.mark.parametrize("name", ["dice bce", "focal", "dice ce", "three terms"])
def test_five_shapes_compile_twice(name: str) -> None:
    mode, loss = COMPILED[name]
    counter = CompileCounterWithBackend("aot_eager")
    net, compiled = check_compiled(mode, loss, counter)
    for shape in ((2, 9, 4), (4, 7, 8), (5, 3, 3), (7, 12, 2)):
        data = batch(mode, *shape)
        close(step(compiled, net, *data), step(net, net, *data))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("kind", [nn.Parameter, lambda tensor: tensor], ids=["parameter", "tensor"])
def test_a_new_coefficient_compiles_nothing(kind: Any) -> None:
    coefficient, counter, data = kind(torch.tensor(0.5)), CompileCounterWithBackend("aot_eager"), batch("multiclass")
    net, compiled = check_compiled("multiclass", coefficient * DICE + CE, counter, data)
    values = []
    for value in (0.25, 3.0):
        coefficient.data.fill_(value)
        values += step(compiled, net, *data)[:1]
        close(step(compiled, net, *data), step(net, net, *data))
    close(values[1] - values[0], 2.75 * DICE(net.layer(data[0]), *data[1:]).detach())
    assert counter.frame_count == 1


def test_a_parameter_as_coefficient() -> None:
    x, y, w = data_of("multiclass")
    parameter = torch.nn.Parameter(torch.tensor(0.5))
    loss: Any = compound("multiclass", parameter)
    loss(x, y, w).backward()
    (name,) = dict(loss.named_parameters())
    dice = segfuse.DiceLoss("multiclass", class_weight=PER_CLASS)(x, y, w).detach().float()
    close(parameter.grad, dice)
    call = partial(torch.func.functional_call, loss, args=(x.detach(), y, w))
    close(torch.func.grad(lambda p: call({name: p}))(torch.tensor(0.3)), dice)
    close(call({name: torch.tensor(0.3)}), compound("multiclass", 0.3)(x.detach(), y, w))
    loss.load_state_dict({**loss.state_dict(), name: torch.tensor(0.2)}, assign=True)
    close(loss(x, y, w), compound("multiclass", 0.2)(x, y, w))


def test_compiled_higher_orders_raise_or_are_right() -> None:
    x, y, _ = batch("multiclass")
    loss = segfuse.DiceLoss("multiclass") + segfuse.CrossEntropyLoss()
    with contextlib.suppress(RuntimeError):  # and not zeros
        close(torch.compile(torch.func.grad(loss), backend="aot_eager")(x, y), gradient_of(loss, x, y))
    torch._dynamo.reset()
    xs, ys = torch.stack((x, -x)), torch.stack((y, y))
    close(
        torch.compile(torch.vmap(lambda *a: loss(*a)), fullgraph=True, backend="aot_eager")(xs, ys),
        torch.stack((loss(x, y), loss(-x, y))),
    )
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own
def test_compiled_autograd() -> None:
    data = batch("multiclass")
    net = Net("multiclass", nn.Parameter(torch.tensor(0.2)) * DICE + CE)
    expected = step(net, net, *data)
    module = torch._dynamo.compiled_autograd
    enable = getattr(module, "_enable", None) or module.enable  # its name before torch 2.6
    with enable(torch.compile(backend="aot_eager", fullgraph=True)):
        close(step(net, net, *data), expected)


def test_autocast() -> None:
    def cast(*data: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(*data)  # type: ignore[no-any-return]

    net, data = Net("multiclass", DICE + CE), batch("multiclass")
    found = step(torch.compile(cast, fullgraph=True, backend="aot_eager"), net, *data)
    assert found[0].dtype == torch.float32
    close(found, step(cast, net, *data))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    net = Net("multiclass", nn.Parameter(torch.tensor(0.2)) * DICE + CE)
    program = torch.export.export(net, batch("multiclass"), strict=strict).module()
    for _ in range(2):
        data = batch("multiclass")
        close(program(*data), net(*data))
        with torch.no_grad():  # no parameter is baked into the program
            for name, parameter in net.named_parameters():
                parameter.mul_(1.5)
                program.get_parameter(name).copy_(parameter)
