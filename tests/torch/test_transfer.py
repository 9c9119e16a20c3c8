"""Class weights, coefficients and lists of classes reach a GPU without a copy for which the host would wait.

A machine without a GPU has the meta device: a tensor of the host that is sent there by `Tensor.to` or `torch.tensor`
would be a pageable copy on a GPU. On a GPU torch itself reports who waits.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import segfuse
from cases import PER_CLASS, make_logits, make_target, multiclass
from environment import DEVICE, SHIM, cuda_engine
from segfuse._core import checks, engines, functions, steps, transfer
from segfuse._core.calls import Constants
from segfuse._core.plan import data_of

HOST = torch.device("cpu")
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: SEGFUSE_TEST_DEVICE=cuda")
Call = Callable[[Tensor, Tensor], Tensor]


def host(value: float | tuple[float, ...], **options: bool) -> Tensor:
    return torch.tensor(value, device=HOST, **options)


def calls(device: torch.device) -> dict[str, Call]:
    """Losses with numbers of the host and of a device, made as the CPU's are: nothing is moved by hand."""
    with HOST:
        weighted = segfuse.CrossEntropyLoss(class_weight=list(PER_CLASS))
        tversky = segfuse.TverskyLoss("multiclass", alpha=0.3, beta=0.7, classes=[3, 1], class_weight=list(PER_CLASS))
        plain = segfuse.DiceLoss("multiclass", classes=[4, 0, 2])
        focal = segfuse.FocalLoss("multiclass", alpha=list(PER_CLASS))
        unreduced = segfuse.CrossEntropyLoss(reduction="none", class_weight=list(PER_CLASS))
        pooled = segfuse.DiceLoss("multiclass", classes=[1, 2], reduction="none")
    near = torch.full((), 0.3, device=device)
    moved = segfuse.CrossEntropyLoss(class_weight=torch.ones(5, device=device))
    return {
        "class weights": weighted,
        "classes": plain,
        "classes, a loss of each": pooled,
        "weights and classes": tversky + 0.7 * focal,
        "weights here and there": tversky + moved,
        "a float": 0.3 * plain + weighted,
        "a tensor of the host": host(0.3) * plain + weighted,
        "a tensor of the host, (1,)": host((0.3,)) * plain,
        "a tensor of the device": near * plain + weighted,
        "tensors here and there": near * plain + host(0.7) * weighted,
        "a quotient": plain / near + host(2.0) * (weighted / host(0.3)),
        "a Parameter of the device": nn.Parameter(near.clone()) * plain + weighted,
        "each element, scaled": host(0.3) * unreduced,
        "each element, by the device": near * unreduced,
        "a weight that is a number": lambda x, t: weighted(x, t, host(0.5)),
        "functions": lambda x, t: (
            segfuse.dice_loss(x, t, mode="multiclass", classes=[1, 3])
            + segfuse.focal_loss(x, t, mode="multiclass", alpha=list(PER_CLASS))
            + segfuse.cross_entropy_loss(x, t, class_weight=host(PER_CLASS))
        ),
    }


CALLS = sorted(calls(HOST))


@pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="on a GPU torch says who waits: the test below")
@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_the_host_is_copied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, sent = torch.device("meta"), []
    to, tensor = Tensor.to, torch.tensor

    def watched_to(self: Tensor, *arguments: object, **options: object) -> Tensor:
        found = to(self, *arguments, **options)
        if self.is_cpu and found.device == device:
            sent.append(self.shape)
        return found

    def watched_tensor(*arguments: object, **options: object) -> Tensor:
        found = tensor(*arguments, **options)
        if found.device == device:
            sent.append(found.shape)
        return found

    class Engine(engines.CpuEngine):
        def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
            return torch.empty_like(numbers, device=device)

    monkeypatch.setattr(transfer, "FED_BY_HOST", {"meta"})
    monkeypatch.setitem(engines.engines, "meta", Engine())
    loss = calls(device)[name]
    with torch.device(device):
        logits, target = make_logits((2, 5, 6, 7)), make_target("multiclass", (2, 5, 6, 7))
    monkeypatch.setattr(Tensor, "to", watched_to)
    monkeypatch.setattr(torch, "tensor", watched_tensor)
    assert loss(logits, target).is_meta
    assert sent == []
    host((1.0, 2.0)).to(device)
    assert sent == [(2,)]  # they are watched indeed


def test_a_number_of_another_device_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a weight of every class, as the same number of the host."""
    two = torch.full((), 2.5, device="meta")
    monkeypatch.setattr(Tensor, "item", lambda _: pytest.fail("read"))
    for make in (
        lambda: segfuse.BCEWithLogitsLoss("multilabel", pos_weight=two),
        lambda: segfuse.FocalLoss("multilabel", alpha=two),
    ):
        loss = make()
        with torch.device("meta"):
            assert loss(torch.empty(2, 3, 4), torch.empty(2, 3, 4, dtype=torch.uint8)).is_meta
    with pytest.raises(ValueError, match="one value per class"):
        segfuse.FocalLoss("multiclass", alpha=two)
    monkeypatch.undo()
    logits, target = make_logits((2, 3, 40)), make_target("multilabel", (2, 3, 40))
    loss = segfuse.BCEWithLogitsLoss("multilabel", pos_weight=[1.0])
    loss.pos_weight = torch.tensor(2.5)
    assert torch.equal(
        loss(logits, target), segfuse.BCEWithLogitsLoss("multilabel", pos_weight=[2.5] * 3)(logits, target)
    )
    assert "pos_weight=2.5" in repr(loss)


@needs_gpu
@pytest.mark.parametrize("name", CALLS)
def test_nobody_waits(name: str) -> None:
    """Nor is anything done that a graph could not record; and the numbers are those of the CPU."""
    device = torch.device("cuda")
    loss = calls(device)[name]
    base, target = make_logits((2, 5, 24, 32)), make_target("multiclass", (2, 5, 24, 32))
    logits = base.clone().requires_grad_()
    segfuse.warmup(device)

    def step() -> tuple[Tensor, Tensor]:
        value = loss(logits, target)
        return value.detach(), torch.autograd.grad(value.sum(), logits)[0]

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        recorded = step()
    graph.replay()
    on_host = calls(HOST)[name](base.cpu(), target.cpu())
    for a, b in zip(found, recorded, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(found[0].cpu(), on_host, rtol=1e-5, atol=1e-6)


@needs_gpu
def test_graphs_of_torch_compile_with_classes() -> None:
    criterion = segfuse.DiceLoss("multiclass", classes=[3, 1]) + segfuse.CrossEntropyLoss()
    compiled = torch.compile(criterion, mode="reduce-overhead")
    logits, target = make_logits((2, 5, 24, 32)).requires_grad_(), make_target("multiclass", (2, 5, 24, 32))
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        value = compiled(logits, target)
        (gradient,) = torch.autograd.grad(value, logits)
        expected = criterion(logits, target)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


@pytest.mark.skipif(DEVICE != "cpu", reason="tensors of a GPU that is not there")
@pytest.mark.parametrize("shape", [(7, 5, 4, 4), (7, 5, 32, 32), (1, 5, 4, 4), (7, 5)], ids=str)
def test_a_traced_call_knows_how_many_slopes_a_gpu_leaves(shape: tuple[int, ...]) -> None:
    """Samples of few pixels are read as one there, and class weights of the host stay where they are."""
    criterion = segfuse.CrossEntropyLoss(class_weight=list(PER_CLASS))
    plan = criterion.plan
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.empty(shape, device="cuda")
        target = torch.empty((shape[0], *shape[2:]), dtype=torch.int64, device="cuda")
        _, _, slopes = torch.ops.segfuse.forward(logits, target, None, criterion.class_weight[None], None, plan.spec)
        assert criterion(logits, target).is_cuda
    samples = 1 if shape[0] == 1 or len(shape) == 2 or shape[2] == 4 else shape[0]
    assert slopes.numel() == 2 * samples + 1
    engine, real = cuda_engine(), torch.zeros(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.engines, "cpu", engine)
        data = data_of(plan, real, torch.zeros(target.shape, dtype=torch.int64), None)
        found, _ = steps.forward(plan, data, Constants(torch.ones(1, 5)))
    assert found.slopes.numel() == slopes.numel()


def test_a_coefficient_of_the_host_gets_its_gradient_there() -> None:
    coefficient = nn.Parameter(host(0.3))
    case = multiclass("dice_loss")
    logits, target = make_logits((2, 5, 6, 7)).requires_grad_(), make_target("multiclass", (2, 5, 6, 7))
    (coefficient * case.module() + segfuse.CrossEntropyLoss())(logits, target).backward()
    assert coefficient.grad is not None
    assert coefficient.grad.device == HOST
    torch.testing.assert_close(coefficient.grad.item(), case.module()(logits, target).item())


def test_functions_make_their_loss_once() -> None:
    """Also with lists; whichever device is the default; equal numbers of other types are other options."""
    made = functions.cached
    with torch.device("meta"):
        first = made(segfuse.CrossEntropyLoss, class_weight=[0.5, 2.0])
    assert made(segfuse.CrossEntropyLoss, class_weight=[0.5, 2.0]) is first
    assert first.class_weight.tolist() == [0.5, 2.0]
    assert made(segfuse.CrossEntropyLoss, class_weight=[0.5, 3.0]) is not first
    made(segfuse.DiceLoss, mode="multiclass", classes=[1, 0])
    with pytest.raises(ValueError, match="classes must be integers"):
        made(segfuse.DiceLoss, mode="multiclass", classes=[True, False])
    values = host((0.5, 2.0))
    assert made(segfuse.CrossEntropyLoss, class_weight=values) is not made(
        segfuse.CrossEntropyLoss, class_weight=values
    )


def test_a_loss_made_under_a_mode_serves_outside_of_it() -> None:
    logits, target = make_logits((2, 3, 4, 5)), make_target("multiclass", (2, 3, 4, 5))

    def loss(x: Tensor, factor: float) -> Tensor:
        return segfuse.cross_entropy_loss(x, target, class_weight=[factor, 2.0, 0.7])

    def fake(factor: float) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            loss(mode.from_tensor(logits), factor)

    def inference(factor: float) -> None:
        with torch.inference_mode():
            loss(logits, factor)

    first_calls = (
        fake,
        inference,
        lambda factor: torch.func.grad(lambda x: loss(x, factor))(logits),
        lambda factor: torch.vmap(lambda x: loss(x, factor))(logits[None]),
    )
    for i, first in enumerate(first_calls):
        first(0.37 + i)
        leaf = logits.clone().requires_grad_()
        loss(leaf, 0.37 + i).backward()
        weight = torch.tensor([0.37 + i, 2.0, 0.7])
        expected = torch.nn.functional.cross_entropy(logits, target, weight)
        torch.testing.assert_close(loss(logits, 0.37 + i), expected)


def test_a_number_as_weight_keeps_its_value() -> None:
    logits, target = make_logits((2, 5, 6, 7)), make_target("multiclass", (2, 5, 6, 7))
    for number in (host(0.25), host(3), host(True)):
        _, _, weight, _ = checks.check_inputs(segfuse.CrossEntropyLoss().plan, logits, target, number)
        assert weight is not None
        assert (weight == number.item()).all()
        assert weight.device == logits.device
