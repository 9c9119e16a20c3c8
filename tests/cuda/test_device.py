"""The CUDA kernels and their device: what a call allocates, numbers of the host, errors, streams and graphs."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

import segfuse
from cases import (
    LABEL_MAPS,
    PATHS,
    TOLERANCE,
    Case,
    check_close,
    make_logits,
    make_target,
    shape_of,
)
from environment import DEVICE, cuda_engine
from segfuse._core import engines, native
from segfuse._core.calls import Buffers, Constants
from segfuse._core.plan import Plan, data_of, plan_of

needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: SEGFUSE_TEST_DEVICE=cuda")
TVERSKY = {"alpha": 0.3, "beta": 0.7}

pytestmark = pytest.mark.usefixtures("cuda_kernels")


@pytest.mark.parametrize(
    ("criterion", "shape"),
    [
        (segfuse.DiceBCELoss("binary"), (6000, 1, 28, 28)),
        (segfuse.DiceCELoss(), (1500, 3, 24, 24)),
        (segfuse.BCEWithLogitsLoss("multilabel", pos_weight=[1.0] * 1000), (4096, 1000)),
        (segfuse.FocalLoss("multilabel") + segfuse.DiceLoss("multilabel", pool_batch=True), (4096, 1000)),
        (segfuse.CrossEntropyLoss(), (4096, 1000)),
        (segfuse.CrossEntropyLoss() + segfuse.DiceLoss("multiclass", pool_batch=True), (4096, 1000)),
        (segfuse.DiceBCELoss("binary"), (32, 1, 1024, 1024)),
        (segfuse.DiceCELoss(), (8, 19, 512, 1024)),
        (segfuse.DiceCELoss(), (8, 150, 512, 1024)),
        (segfuse.DiceCELoss(), (16, 150, 512, 512)),
    ],
    ids=str,
)
def test_a_megabyte_beside_the_gradient(criterion: segfuse.Loss, shape: tuple[int, ...]) -> None:
    """What a call allocates. Only sizes are computed; nothing runs."""
    plan, engine = criterion.plan, cuda_engine()
    read = plan.joined(torch.Size(shape))
    call = engine.call_of_sizes(torch.device(DEVICE), plan, read, False, torch.float32, Constants())
    own = 8 * engine.sizes(call).workspace + 4 * plan.slope_count(read)
    assert own <= 2**20


def test_more_rows_than_a_grid_has_blocks() -> None:
    engine, plan = cuda_engine(), segfuse.DiceLoss("multilabel").plan
    one = torch.ones(1).expand(2**17, 2**15)
    call = engine.call(plan, data_of(plan, one, one, None), Constants())
    sums = one.data_ptr(), engine.sizes(call).sums  # refused before anything is read or written
    with pytest.raises(ValueError, match="logits: 4294967296 rows"):
        engine.module.statistics(call, Buffers(sums=sums))


def test_numbers_of_the_host() -> None:
    """They travel as arguments of one kernel or of several. The next call sees a change of the tensor."""
    engine = cuda_engine()
    for count in (0, 1, 479, 480, 481, 961):
        numbers = torch.randn(count, dtype=torch.float64, device="cpu")
        found = engine.constant(numbers, torch.device(DEVICE))
        assert torch.equal(found.cpu(), numbers)
        assert count == 0 or found.data_ptr() != numbers.data_ptr()
    wide = (2, 1000, 2, 3)
    logits, target = make_logits(wide), make_target("multiclass", wide)
    criterion = segfuse.CrossEntropyLoss(class_weight=torch.rand(1000, device="cpu") + 0.1)
    for _ in range(2):
        weight = criterion.class_weight
        expected = torch.nn.functional.cross_entropy(logits.double(), target, weight.double().to(logits.device))
        check_close(criterion(logits, target), expected, 1e-6, "loss")
        with torch.no_grad():
            weight.mul_(torch.rand(1000, device="cpu"))


def test_nothing_stays_on_the_device() -> None:
    """Neither tensors nor plans. When torch.compile (reduce-overhead) warms up, it allocates in the memory of a graph,
    and a tensor that stays there is an error. Plans would pile up, because every new coefficient makes one.
    """
    engine, shape = cuda_engine(), shape_of("multiclass", 8, 8)
    assert vars(engine).keys() == {"module"}
    plan = plan_of(segfuse.DiceLoss("multiclass", classes=[3, 1]).plan.spec)
    assert plan.native_of(engine.module) is plan.native_of(engine.module)
    own = Plan(plan.spec)
    native = weakref.ref(own.native_of(engine.module))
    assert native() is not None
    del own
    gc.collect()
    assert native() is None
    logits, target = make_logits(shape), make_target("multiclass", shape)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(o, Tensor) for o in gc.get_objects())

    counts = []
    for factor in (0.3, 0.5, 0.7):
        leaf = logits.clone().requires_grad_()
        (factor * segfuse.DiceLoss("multiclass", classes=[3, 1], reduction="sum"))(leaf, target).backward()
        del leaf
        counts.append(tensors())
    assert counts[0] == counts[2]


# cudaError_t: what the error says.
FAULTS = {700: "a kernel that ran before on this device failed, of whatever library", 701: "sigmoid.statistics"}


@pytest.mark.skipif(DEVICE != "cpu", reason="only the shim can be told to fail")
@pytest.mark.parametrize("code", FAULTS)
def test_errors_of_the_device(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of another library is not reported as ours. The device keeps its kernels."""
    loss, logits = segfuse.DiceLoss("binary"), make_logits((1, 1, 8, 8))
    target, module = make_target("binary", (1, 1, 8, 8)), cuda_engine().module
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(engines, "cuda_module", lambda: module)
    monkeypatch.setattr(engines, "engines", {**engines.engines})
    device = torch.device("cuda:0")
    monkeypatch.setenv("SEGFUSE_SHIM_FAULT", str(code))
    with pytest.raises(RuntimeError, match=FAULTS[code]):
        loss(logits, target)
    with pytest.raises(RuntimeError):
        engines.engine_of(device)
    assert str(device) not in engines.engines
    monkeypatch.setenv("SEGFUSE_SHIM_FAULT", "209")  # no code for the device: an error for good
    assert "no code for the device" in module.unusable()
    monkeypatch.setenv("SEGFUSE_SHIM_FAULT", "0")
    assert isinstance(engines.engine_of(device), engines.CudaEngine)
    assert loss(logits, target).isfinite()


def test_warmup_loads_every_kernel() -> None:
    segfuse.warmup(DEVICE)
    with pytest.raises(RuntimeError, match="segfuse has no kernels for mps"):
        segfuse.warmup("mps")


@needs_gpu
@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_side_stream_and_graph(case: Case) -> None:
    shape = shape_of(case.mode, 96, 128)
    loss = case.module()
    static = make_logits(shape).requires_grad_()
    target = make_target(case.mode, shape)
    segfuse.warmup(static.device)

    def step() -> tuple[Tensor, Tensor]:
        value = loss(static, target)
        return value, torch.autograd.grad(value, static)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradient = step()
    for _ in range(3):
        with torch.no_grad():
            static.copy_(make_logits(shape))
        graph.replay()
        expected = step()
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])


@needs_gpu
@pytest.mark.parametrize("classes", [1, 4])
def test_more_than_two_to_the_31_elements(classes: int) -> None:
    """All predictions are equal: a plain sum in float32 would be off by 2.6e-4."""
    pixels = (2**31 + 4096) // classes
    mode = "binary" if classes == 1 else "multiclass"
    logits = torch.full((1, classes, pixels), 0.3, dtype=torch.bfloat16)
    logits[:, 0] = 0.5
    target = torch.zeros((1, pixels), dtype=torch.uint8)
    small = (1, classes, 4096)
    loss = segfuse.DiceLoss(mode, smooth=0.0) + (segfuse.CrossEntropyLoss() if classes > 1 else 0)
    value = loss(logits.requires_grad_(), target if classes > 1 else target[:, None])
    (gradient,) = torch.autograd.grad(value, logits)
    part = logits.detach()[..., :4096].contiguous().requires_grad_()
    expected = loss(part, target[:, :4096] if classes > 1 else target[:, None, :4096])
    (expected_gradient,) = torch.autograd.grad(expected, part)
    check_close(value.detach(), expected.detach().double(), TOLERANCE[torch.float32][0], "loss")
    scale = 4096 / pixels
    for found in (gradient[..., :4096], gradient[..., -4096:]):
        check_close(
            found.reshape(small), expected_gradient.double() * scale, 3 * TOLERANCE[torch.bfloat16][1], "gradient"
        )


@needs_gpu
@pytest.mark.parametrize("scheme", ["two_pass", "automatic"])
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (segfuse.DiceBCELoss("binary"), (4, 1, 1024, 1024)),
        (segfuse.DiceCELoss(), (2, 19, 512, 512)),
        (segfuse.CrossEntropyLoss(), (1, 150, 256, 256)),
    ],
    ids=str,
)
def test_memory_is_the_gradient_and_a_megabyte(loss: segfuse.Loss, shape: tuple[int, ...], scheme: str) -> None:
    logits = torch.randn(shape, requires_grad=True)
    target = make_target("binary" if shape[1] == 1 else "multiclass", shape)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with native.scheme(scheme):
        torch.autograd.grad(loss(logits, target), logits)
    assert torch.cuda.max_memory_allocated() - before <= 4 * logits.numel() + 2**20
