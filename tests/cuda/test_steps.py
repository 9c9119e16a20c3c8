"""What the CUDA kernels have beside their engines: the head in one block and in many, gradients that the forward wrote,
numbers of the host, errors of the device, streams, graphs, memory. On a GPU or through the fiber shim, as
test_kernels.py.
"""

import gc
import weakref
from itertools import product

import pytest
import torch
from torch import Tensor

import segfuse
from cases import (
    LABEL_MAPS,
    PATHS,
    PER_CLASS,
    TOLERANCE,
    Case,
    check_case,
    check_close,
    make_logits,
    make_target,
    make_weight,
    multiclass,
    shape_of,
)
from environment import DEVICE, LAUNCHED, THIN, cuda_engine
from segfuse._core import engines, native
from segfuse._core.calls import Buffers, Constants
from segfuse._core.plan import Plan, data_of, plan_of

needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: SEGFUSE_TEST_DEVICE=cuda")
TVERSKY = {"alpha": 0.3, "beta": 0.7}

pytestmark = pytest.mark.usefixtures("cuda_kernels")


def test_two_passes_and_a_head() -> None:
    criterion = segfuse.DiceCELoss() + 20 * segfuse.FocalLoss("multiclass") + segfuse.JaccardLoss("multiclass")
    shape = (2, 5, 32, 32)
    with native.trace() as events:
        criterion(make_logits(shape).requires_grad_(), make_target("multiclass", shape)).backward()
    kernels = [event.kernel.split("<")[0].split(".")[-1] for event in events]
    assert list(dict.fromkeys(kernels)) == ["statistics", "head", "gradient"]  # of many rows the head has phases
    read = 4 * 5 * 2048 + 8 * 2048
    assert [(e.bytes_read, e.bytes_written) for e in events if "head" not in e.kernel] == [(read, 0), (read, 4 * 10240)]


# Losses whose gradient the forward can write.
AHEAD = [
    Case("bce_with_logits_loss", "binary", {"pos_weight": 2.5}),
    Case("bce_with_logits_loss", "multilabel", {"pos_weight": PER_CLASS}),
    multiclass("cross_entropy_loss"),
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", AHEAD, ids=str)
def test_gradient_ahead(case: Case, reduction: str) -> None:
    """The scheme's traps: upstream gradients that are not 1, weights that could not be foreseen."""
    for dtype in (torch.float32, torch.bfloat16):
        shape = shape_of(case.mode, 72, 128)
        for target in (make_target(case.mode, shape), make_target(case.mode, shape, torch.uint8)):
            with native.scheme("gradient_in_forward"):
                logits, weight = make_logits(shape, dtype), make_weight(case.mode, shape)
                check_case(case, logits, target, reduction=reduction)
                check_case(case, logits, target, weight, reduction=reduction, ignore_index=1)


@pytest.mark.parametrize("upstream", [1.0, 65536.0, 1 / 3, -0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", AHEAD, ids=str)
def test_gradient_ahead_is_that_of_two_passes(case: Case, reduction: str, upstream: float) -> None:
    """To the bit where nothing is left to do, else but for one rounding; a second backward gets one of its own."""
    shape = shape_of(case.mode, 72, 128)
    for dtype, weighted in product((torch.float32, torch.bfloat16), (False, True)):
        base, target = make_logits(shape, dtype), make_target(case.mode, shape)
        weight = make_weight(case.mode, shape) if weighted else None  # 0 in places: pixels that do not count
        found = {}
        for name in ("two_pass", "gradient_in_forward"):
            logits = base.clone().requires_grad_()
            with native.scheme(name), native.trace() as events:
                loss = case.module(reduction=reduction)(logits, target, weight)
                seed = torch.full_like(loss, upstream)
                found[name] = [torch.autograd.grad(loss, logits, seed, retain_graph=True)[0] for _ in range(2)]
            kernels = [event.kernel.split("<")[0].split(".")[-1] for event in events]
            first = {"two_pass": ["statistics", "gradient"], "gradient_in_forward": ["both", "rescale"]}[name]
            assert [k for k in kernels if k not in ("head", "add")] == [*first, "gradient"]
        expected, (once, twice) = found["two_pass"][0], found["gradient_in_forward"]
        assert once.data_ptr() != twice.data_ptr()
        assert torch.equal(twice.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(once.isnan(), expected.isnan())
        exact = upstream in (1.0, 65536.0) and not (weighted and reduction == "mean")
        if exact or not expected.isfinite().all():
            assert torch.equal(once.nan_to_num(7.0), expected.nan_to_num(7.0))
        else:
            check_close(once, expected.double(), 3e-7 if dtype == torch.float32 else 8e-3, "gradient")


def test_what_rescaling_moves() -> None:
    """The gradient read and written, in place of another pass over the inputs: by few blocks, whatever the size."""
    shape = (2, 4, 64, 72)
    logits, target = make_logits(shape).requires_grad_(), make_target("multiclass", shape)
    with native.scheme("gradient_in_forward"), native.trace() as events:
        (3 * segfuse.CrossEntropyLoss()(logits, target)).backward()
    whole = 4 * logits.numel()
    moved = {e.kernel.split("<")[0].split(".")[-1]: (e.bytes_read, e.bytes_written) for e in events}
    assert moved["both"] == (whole + 8 * target.numel(), whole)
    assert moved["rescale"] == (whole, whole)
    shape = (
        1,
        1,
        4 * (4 * 12 * 256 + 1),
    )  # one vector more than the blocks of the shim's three processors take at once
    base, target, found = make_logits(shape), make_target("binary", shape), []
    for name in ("two_pass", "gradient_in_forward"):
        logits = base.clone().requires_grad_()
        with native.scheme(name):
            (4 * segfuse.BCEWithLogitsLoss("binary")(logits, target)).backward()
        found.append(logits.grad)
    assert torch.equal(*found)


def test_gradient_ahead_of_nothing_valid() -> None:
    logits = make_logits((2, 5, 16, 32)).requires_grad_()
    with native.scheme("gradient_in_forward"):
        value = segfuse.CrossEntropyLoss()(logits, torch.full((2, 16, 32), -100))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


def test_gradient_ahead_is_refused_or_left() -> None:
    """float16 would underflow; region losses need their sums first; a label that is ignored moves the mean."""
    x, t = make_logits((2, 5, 8, 16)), make_target("multiclass", (2, 5, 8, 16))
    refused = [
        (segfuse.CrossEntropyLoss(), x.half(), "gradient_in_forward"),
        (segfuse.CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0, 4.0, 5.0]), x, "gradient_in_forward"),
        (segfuse.CrossEntropyLoss(reduction="sample"), x, "gradient_in_forward"),
        (segfuse.DiceLoss("multiclass"), x, "gradient_in_forward"),
        (segfuse.CrossEntropyLoss(reduction="none"), x, "two_pass"),
    ]
    for loss, logits, said in refused:
        with native.scheme("gradient_in_forward"), pytest.raises(ValueError, match=said):
            loss(logits.requires_grad_(), t)
    left = [
        (segfuse.CrossEntropyLoss(), x.half()),
        (segfuse.CrossEntropyLoss(reduction="sample"), x),
        (segfuse.DiceLoss("multiclass"), x),
        (segfuse.CrossEntropyLoss(ignore_index=255), x),
        (segfuse.CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0, 4.0, 5.0]), x),
    ]
    for loss, logits in left:
        with native.trace() as events:
            loss(logits.requires_grad_(), t).sum().backward()
        assert "statistics" in events[0].kernel
    with pytest.raises(ValueError, match="two_pass"), native.scheme("fastest"):
        pass


# Losses whose rows take different ways through the phases of a head of several blocks.
ROWS = [
    Case("tversky_loss", "binary", TVERSKY),
    Case("bce_with_logits_loss", "multilabel", {"balanced": True}),
    Case("tversky_loss", "multilabel", {**TVERSKY, "pool_batch": True, "class_weight": PER_CLASS}),
    multiclass("tversky_loss", **TVERSKY, classes=[4, 2], absent="skip"),
    multiclass("generalized_dice_loss", pool_batch=True),
    multiclass("focal_loss", alpha=PER_CLASS),
]


def many_rows(mode: str) -> tuple[int, ...]:
    """A shape of few pixels and of more rows than one block has in the head; of one class, more than its threads."""
    rows = cuda_engine().module.few_rows + 30
    return {"binary": (max(rows, 530), 1, 5), "multilabel": (rows // 5, 5, 3), "multiclass": (rows // 5, 5, 2, 2)}[mode]


def turned(x: Tensor) -> Tensor:
    """The last dimension outermost in memory."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_many_rows(case: Case, reduction: str) -> None:
    shape = many_rows(case.mode)
    check_case(
        case, make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape), reduction=reduction
    )


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_many_rows_of_a_compound(mode: str) -> None:
    """Terms of single samples, of the whole batch, and pointwise; for every sample, and for all together."""
    point = multiclass("cross_entropy_loss") if mode == "multiclass" else Case("bce_with_logits_loss", mode)
    cases = [Case("tversky_loss", mode, {**TVERSKY, "pool_batch": pool}) for pool in (True, False)] + [point]
    shape = many_rows(mode)
    for terms, reduction in ((cases, "mean"), (cases[1:], "sample")):
        logits, target = make_logits(shape).requires_grad_(), make_target(mode, shape)
        exact = logits.detach().double().requires_grad_()
        value = sum((0.3 + i) * c.module(reduction=reduction) for i, c in enumerate(terms))(logits, target)
        expected = sum((0.3 + i) * c.reference(exact, target, reduction=reduction) for i, c in enumerate(terms))
        check_close(value.detach(), expected.detach(), 1e-6, "loss")
        upstream = torch.rand(value.shape) + 0.3
        (gradient,) = torch.autograd.grad(value, logits, upstream)
        (exact_gradient,) = torch.autograd.grad(expected, exact, upstream.double())
        check_close(gradient, exact_gradient, TOLERANCE[torch.float32][1], "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case("bce_with_logits_loss", "binary", {"pos_weight": 2.5}),
        Case("focal_loss", "multilabel", {"alpha": (0.2, 0.9, 0.7, 0.5, 0.1), "gamma": 1.5}),
        Case("dice_loss", "multilabel", {"pool_batch": True, "smooth": (0.5, 2.0)}),
        multiclass("cross_entropy_loss", class_weight=PER_CLASS),
        multiclass("tversky_loss", **TVERSKY, pool_batch=True),
    ],
    ids=str,
)
def test_samples_that_are_read_as_one(case: Case, dtype: torch.dtype) -> None:
    """Of few pixels each, in any layout, with soft labels, weights and labels that are ignored; also without space."""
    for space in ((), (3,), (4, 4), (2, 3, 5), (16, 16)):
        shape = shape_of(case.mode, *space)
        shape = (7, *shape[1:])
        target, weight = make_target(case.mode, shape), make_weight(case.mode, shape)
        assert case.module().plan.joined(torch.Size(shape)) != shape
        for logits in (make_logits(shape, dtype, 1.0), make_logits((14, *shape[1:]), dtype, 1.0)[::2]):
            # Few elements: the rounding of one is not averaged out.
            check_case(case, logits, target, weight, slack=3.0)
            check_case(case, turned(logits), target, ignore_index=1, slack=3.0)
        soft = make_target(case.mode, shape, torch.float32, soft=True)
        check_case(case, make_logits(shape, dtype, 1.0), soft, weight, reduction="sum", slack=3.0)


def test_tiles_of_samples_of_few_pixels() -> None:
    """Slopes of all samples, though the samples of one call would be read as one."""
    criterion = segfuse.CrossEntropyLoss()
    logits, target = make_logits((3, 5, 4, 8)), make_target("multiclass", (3, 5, 4, 8))
    leaf = logits.clone().requires_grad_()
    criterion(leaf, target).backward()
    tiled = segfuse.TiledLoss(criterion)
    for part in (slice(0, 4), slice(4, 8)):
        tiled.add(logits[..., part], target[..., part])
    check_close(tiled.loss(), criterion(logits, target).double(), 1e-6, "loss")
    for part in (slice(0, 4), slice(4, 8)):
        found = tiled.gradient(logits[..., part], target[..., part])
        check_close(found, leaf.grad[..., part].double(), 2e-6, "gradient")


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
    """What a call asks for, by the sizes alone."""
    plan, engine = criterion.plan, cuda_engine()
    read = plan.joined(torch.Size(shape))
    call = engine.call_of_sizes(torch.device(DEVICE), plan, read, False, torch.float32, Constants())
    own = 8 * engine.sizes(call).workspace + 4 * plan.slope_count(read)
    assert own <= 2**20


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_no_pixels(mode: str) -> None:
    """No chunk writes a sum then. torch fills new memory with NaN, so that nobody's sums are seen."""
    shape = (3, 1 if mode == "binary" else 5, 0, 6)
    logits, target = make_logits(shape).requires_grad_(), make_target(mode, shape)
    torch.use_deterministic_algorithms(True)
    try:
        for loss in (Case("tversky_loss", mode, TVERSKY), Case("focal_loss", mode, {"gamma": 1.5})):
            value = loss.module()(logits, target)
            assert value == 0
            assert torch.autograd.grad(value, logits)[0].shape == shape
    finally:
        torch.use_deterministic_algorithms(False)


def test_more_rows_than_a_grid_has_blocks() -> None:
    engine, plan = cuda_engine(), segfuse.DiceLoss("multilabel").plan
    one = torch.ones(1).expand(2**17, 2**15)
    call = engine.call(plan, data_of(plan, one, one, None), Constants())
    sums = one.data_ptr(), engine.sizes(call).sums  # refused before anything is read or written
    with pytest.raises(ValueError, match="logits: 4294967296 rows"):
        engine.module.statistics(call, Buffers(sums=sums))


def test_numbers_of_the_host() -> None:
    """As arguments of kernels, more of them than one launch takes; a change of the tensor is seen by the next call."""
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
    """What was allocated in a graph's memory while torch.compile warms up would not be allowed to stay (reduce-overhead
    with `classes`), and plans of changing coefficients would pile up."""
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


# cudaError_t -> what is said of it.
FAULTS = {700: "a kernel that ran before on this device failed, of whatever library", 701: "rows.statistics"}


@pytest.mark.skipif(DEVICE != "cpu", reason="only the shim can be told to fail")
@pytest.mark.parametrize("code", FAULTS)
def test_errors_of_the_device(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of another library is not called ours, and does not decide whether there are kernels."""
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
    monkeypatch.setenv("SEGFUSE_SHIM_FAULT", "209")  # no code for the device: this lasts
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
    """Equal predictions everywhere: a plain float sum of them would be off by 2.6e-4."""
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


@pytest.mark.skipif(THIN > 1, reason="SEGFUSE_THIN leaves tests out")
def test_every_step_was_launched() -> None:
    """Last in the file: those kernels that test_kernels.py does not count."""
    names = [name for name in cuda_engine().module.kernel_names() if name.startswith(("head", "rescale"))]
    assert len(names) == 5
    assert [name for name in names if not LAUNCHED[name]] == []
