"""The CUDA engines: on a GPU if SEGFUSE_TEST_DEVICE=cuda, else their sources on the CPU, through the fiber shim.

test_shim.py and bench/gpu.sh run the other tests on these engines, too. This folder has what only the CUDA engines
have. Here: every kernel, by number of classes and type; sums of many chunks; results that are the same bits.
"""

import functools
import operator

import pytest
import torch

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
from environment import LAUNCHED, THIN, cuda_engine
from layouts import channels_last, inner, inner_channels_last
from segfuse._core import native

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Up to 21: those of label_map.cu. The others reach every tile: 8, 20, 24 or 32 slots of a thread, 1 to 32 threads of a
# pixel, stages with and without gaps, more classes than a stage holds.
CLASS_COUNTS = (2, 3, 4, 5, 6, 7, 8, 12, 16, 19, 21, 25, 33, 64, 65, 150, 1024)
ENGINES = ("sigmoid", "label_map", "tile", "staged_tile", "softmax_general")

pytestmark = pytest.mark.usefixtures("cuda_kernels")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_planes_that_are_arrays(case: Case, dtype: torch.dtype) -> None:
    """Several chunks, whole ones and a shorter last one; planes of a whole number of vectors, and not."""
    for space in ((16, 24), (72, 127), (72, 130)):
        shape = shape_of(case.mode, *space)
        for label_dtype in (torch.uint8, torch.int32, torch.int64, torch.bool):
            check_case(case, make_logits(shape, dtype), make_target(case.mode, shape, label_dtype))
    shape = shape_of(case.mode, 40, 32)
    for weight_dtype in (torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool):
        weight = (make_weight(case.mode, shape) * 3).to(weight_dtype)
        target = make_target(case.mode, shape)
        check_case(case, make_logits(shape, dtype), target, weight)
        check_case(case, make_logits(shape, dtype), target, weight, ignore_index=1)
    for label_dtype in (torch.float16, torch.bfloat16, torch.float32):
        soft = make_target(case.mode, shape, label_dtype, soft=True)
        check_case(case, make_logits(shape, dtype), soft.float())
        exact = case.module()(make_logits(shape, dtype), soft)
        assert exact.isfinite()


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_reductions(case: Case, reduction: str) -> None:
    shape = shape_of(case.mode, 24, 32)
    for layout in (channels_last, lambda x: x):
        logits = layout(make_logits(shape))
        check_case(case, logits, make_target(case.mode, shape), make_weight(case.mode, shape), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_float64_and_probabilities(case: Case, reduction: str) -> None:
    shape = shape_of(case.mode, 12, 16)
    target, weight = make_target(case.mode, shape), make_weight(case.mode, shape)
    for dtype in (torch.float64, torch.float32):
        logits = make_logits(shape, dtype, scale=1.5)
        check_case(case, logits, target, weight, reduction=reduction)
        probabilities = logits.softmax(1) if case.mode == "multiclass" else logits.sigmoid()
        # 1 - p is a subtraction here, in the oracle too: float32 rounds it, hence the slack.
        check_case(case, probabilities, target, weight, reduction=reduction, from_logits=False, slack=3.0)


@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", LABEL_MAPS, ids=str)
def test_numbers_of_classes(case: Case, dtype: torch.dtype, classes: int) -> None:
    shape = (2, classes, 12, 16) if classes > 100 else (2, classes, 24, 48)
    target = make_target("multiclass", shape)
    target[:, 3:5] = 255
    for layout in (channels_last, lambda x: x, inner, inner_channels_last):
        check_case(case, layout(make_logits(shape, dtype)), target, ignore_index=255)
    weight = make_weight("multiclass", shape)
    check_case(case, make_logits(shape, dtype), target.to(torch.int16), weight, ignore_index=255)
    odd = (2, classes, 5, 7)  # planes that are no whole vectors: a tile, whatever the number of classes
    check_case(case, make_logits(odd, dtype), make_target("multiclass", odd))
    if case.loss in ("cross_entropy_loss", "focal_loss") and dtype != torch.float16:
        with native.scheme("gradient_in_forward"):
            for layout in (channels_last, lambda x: x):
                check_case(case, layout(make_logits(shape, dtype)), target, ignore_index=255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_in_the_forward_of_odd_planes(dtype: torch.dtype) -> None:
    """Planes of few classes that label_map does not take, with too many pixels to read the samples as one."""
    shape = (2, 5, 17, 31)
    with native.scheme("gradient_in_forward"):  # without a trace: the last test of the file counts these launches
        check_case(multiclass("cross_entropy_loss"), make_logits(shape, dtype), make_target("multiclass", shape))


@pytest.mark.parametrize("classes", [4, 6, 12])
def test_many_rounds_of_sums(classes: int) -> None:
    """More additions than a thread makes before the block takes its sums over."""
    shape = (1, classes, 256, 260)
    logits = make_logits(shape)
    for case in (
        multiclass("tversky_loss", alpha=0.3, beta=0.7),
        multiclass("sensitivity_specificity_loss", sensitivity_weight=0.3),  # the pixels' weights are summed as well
    ):
        for values in (logits, torch.zeros(shape) + torch.arange(classes).view(1, -1, 1, 1)):
            check_case(case, values, make_target("multiclass", shape))
    shape = (1, 150, 64, 67)  # so many classes that a tile has 32 pixels
    check_case(multiclass("tversky_loss", alpha=0.3, beta=0.7), make_logits(shape), make_target("multiclass", shape))
    binary = Case("tversky_loss", "binary", {"alpha": 0.3, "beta": 0.7})
    for pixels in (8 * 2**15, 41 * 2**15):  # few chunks, which a warp adds; many, which a block adds
        for logits in (make_logits((1, 1, pixels)), torch.full((1, 1, pixels), 0.3)):
            check_case(binary, logits, make_target("binary", (1, 1, pixels)))


TIES = (
    [5.0, 5.0, 1.0],
    [1.0, 5.0, 5.0],
    [5.0, 5.0, 5.0],
    [-1e4, 0.0, 1e4],
    [float("-inf"), 0.0, 3.0],
    [40.0, 0.0, 1.0],
)


@pytest.mark.parametrize("kernel_classes", [3, 12, 70], ids=["registers", "tile", "teams"])
@pytest.mark.parametrize("case", LABEL_MAPS, ids=str)
def test_ties_and_extremes(case: Case, kernel_classes: int) -> None:
    """Several classes at the peak, logits of +-1e4, -inf beside the label, nearly perfect pixels."""
    logits = torch.full((1, kernel_classes, 16, 16), -3.0)
    target = torch.zeros(1, 16, 16, dtype=torch.int64)
    for i, values in enumerate(TIES):
        for label in range(3):
            if values[label] == float("-inf"):
                continue
            logits[0, :3, i, label] = torch.tensor(values)
            target[0, i, label] = label
    check_case(case, logits, target)
    perfect = torch.nn.functional.one_hot(target, kernel_classes).movedim(-1, 1) * 18.0
    check_case(case, perfect, target)


# Kernels of class indices: a pixel in registers; one thread of a tile per pixel; several threads; any options.
LABEL_MAP_KERNELS = [
    ("label_map", 4, multiclass("tversky_loss", alpha=0.3, beta=0.7)),
    ("tile", 12, multiclass("tversky_loss", alpha=0.3, beta=0.7)),
    ("tile", 70, multiclass("tversky_loss", alpha=0.3, beta=0.7)),
    ("softmax_general", 4, multiclass("tversky_loss", alpha=0.3, beta=0.7, squared=True)),
    ("tile", 4, multiclass("focal_loss", gamma=1.5)),
]


@pytest.mark.parametrize(("kernel", "classes", "case"), LABEL_MAP_KERNELS, ids=str)
@pytest.mark.parametrize("gap", [12.0, 1e4])
def test_each_class_at_the_peak(kernel: str, classes: int, case: Case, gap: float) -> None:
    """Certain and wrong, or certain and right. The gradient keeps its digits."""
    peaks = range(classes) if classes < 32 else (0, 1, 31, 32, classes - 2, classes - 1)
    for peak in peaks:
        logits = torch.rand(1, classes, 16, 16)
        logits[:, peak] += gap
        target = torch.randint(classes - 1, (1, 16, 16))
        target += target >= peak  # never the peak
        for scheme in ("two_pass", "automatic"):
            with native.scheme(scheme), native.trace() as events:
                check_case(case, logits, target)
                check_case(case, logits, torch.full_like(target, peak))
            assert f"{kernel}." in events[0].kernel


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_as_many_terms_as_a_plan_holds(mode: str) -> None:
    """As many sums of every kind as shared memory holds."""
    shape = shape_of(mode, 40, 32)
    tversky = {"alpha": 0.3, "beta": 0.7}
    pointwise = [Case("focal_loss", mode, {"gamma": 1.5}), Case("mse_loss", mode), Case("huber_loss", mode)]
    if mode == "multiclass":
        weighted = {"label_smoothing": 0.2, "class_weight": PER_CLASS}
        pointwise.append(multiclass("cross_entropy_loss", **weighted))
    else:
        pointwise.append(Case("bce_with_logits_loss", mode, {"pos_weight": 2.5}))
    regions = [
        Case("tversky_loss", mode, {**tversky, "squared": True}),
        Case("sensitivity_specificity_loss", mode, {"sensitivity_weight": 0.3, "squared_error": True}),
        Case("focal_tversky_loss", mode, tversky),
        Case("jaccard_loss", mode, {"pool_batch": True}),
    ]
    factors = (0.7, 0.2, 1.3, 0.4, 1.0, 0.9, 0.6, 1.1)
    terms = list(zip(factors, [*pointwise, *regions], strict=True))
    target, weight = make_target(mode, shape), make_weight(mode, shape)
    for reduction in ("mean", "sum"):
        logits = make_logits(shape).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        criterion = functools.reduce(operator.add, [f * case.module(reduction=reduction) for f, case in terms])
        value = criterion(logits, target, weight)
        (gradient,) = torch.autograd.grad(value, logits)
        expected = sum(f * case.reference(exact, target, weight, reduction=reduction) for f, case in terms)
        check_close(value.detach(), expected.detach(), 2e-6, "loss")
        check_close(gradient, torch.autograd.grad(expected, exact)[0], TOLERANCE[torch.float32][1], "gradient")


def test_as_many_pointwise_terms_of_a_label_map() -> None:
    """On a tile, which has the sums of all terms."""
    logits, target = make_logits((2, 6, 33, 16)).requires_grad_(), make_target("multiclass", (2, 6, 33, 16))
    exact = logits.detach().double().requires_grad_()
    alpha = (0.2, 1.5, 0.7, 2.0, 1.1, 0.9)
    cases = [multiclass("focal_loss", gamma=g, alpha=alpha) for g in (0.5, 1.5, 3.0)]
    cases.append(multiclass("cross_entropy_loss", class_weight=alpha))
    cases.append(multiclass("tversky_loss", alpha=0.3, beta=0.7))
    with native.trace() as events:
        value = functools.reduce(operator.add, [(0.3 + i) * case.module() for i, case in enumerate(cases)])(
            logits, target
        )
    assert "tile" in events[0].kernel
    expected = sum((0.3 + i) * case.reference(exact, target) for i, case in enumerate(cases))
    check_close(value.detach(), expected.detach(), 2e-6, "loss")
    (gradient,) = torch.autograd.grad(value, logits)
    check_close(gradient, torch.autograd.grad(expected, exact)[0], TOLERANCE[torch.float32][1], "gradient")


@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_the_same_bits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every run. In the shim also for other orders of blocks and threads, and other numbers of processors."""
    shape = shape_of(case.mode, 72, 128)
    base, target = make_logits(shape), make_target(case.mode, shape)
    found = []
    for seed in range(4):
        monkeypatch.setenv("SEGFUSE_SHIM_SEED", str(seed))
        monkeypatch.setenv("SEGFUSE_SHIM_SMS", str(1 + 5 * seed))
        logits = base.clone().requires_grad_()
        loss = case.module()(logits, target)
        loss.backward()
        found.append((loss.detach(), logits.grad))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_every_output_is_written(case: Case) -> None:
    """torch fills new tensors and the workspace with NaN. If no pixel counts, the loss is 0 for any smoothing."""
    smoothed = Case(case.loss, case.mode, {**case.options, "smooth": (0.5, 2.0)}) if case.is_region else case
    torch.use_deterministic_algorithms(True)
    try:
        for space in ((24, 32), (7, 9)):
            shape = shape_of(case.mode, *space)
            logits, target = make_logits(shape), make_target(case.mode, shape)
            check_case(case, logits, target, make_weight(case.mode, shape))
            loss = smoothed.module()(logits.requires_grad_(), target, torch.zeros(target.shape))
            assert loss == 0
            assert not torch.autograd.grad(loss, logits)[0].any()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_second_backward_and_upstream(case: Case) -> None:
    shape = shape_of(case.mode, 24, 32)
    logits = make_logits(shape).requires_grad_()
    loss = case.module()(logits, make_target(case.mode, shape))
    (first,) = torch.autograd.grad(loss, logits, torch.tensor(1.0), retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits, torch.tensor(1.7), retain_graph=True)
    (again,) = torch.autograd.grad(loss, logits, torch.tensor(1.0))
    check_close(second, first.double() * 1.7, 1e-6, "gradient")
    assert torch.equal(first, again)


@pytest.mark.skipif(THIN > 1, reason="SEGFUSE_THIN leaves tests out")
def test_every_engine_was_launched(capsys: pytest.CaptureFixture[str]) -> None:
    """The last test of the file: it prints how often the tests above launched each kernel, and fails if one is at 0."""
    names = [name for name in cuda_engine().module.kernel_names() if name.split(".")[0] in ENGINES]
    print("\n".join(f"{LAUNCHED[name]:6} {name}" for name in names))
    with capsys.disabled():
        for family in dict.fromkeys(name.split("<")[0] for name in names):
            counts = [LAUNCHED[name] for name in names if name.split("<")[0] == family]
            print(f"\n{family}: {len(counts)} kernels, each launched {min(counts)} to {max(counts)} times", end="")
        print()
    assert [name for name in names if not LAUNCHED[name]] == []
