"""What the engine promises beside numbers: the same bits, two passes, no memory, its own elementary functions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import segfuse
from cases import PATHS, Case, make_logits, make_target, make_weight, shape_of
from segfuse import _C
from segfuse._core import native

COMPOUNDS = {
    "dice+bce": (lambda: segfuse.DiceBCELoss("binary"), "binary"),
    "focal+tversky+bce": (
        lambda: (
            20 * segfuse.FocalLoss("multilabel")
            + segfuse.TverskyLoss("multilabel", alpha=0.3, beta=0.7)
            + 0.5 * segfuse.BCEWithLogitsLoss("multilabel")
        ),
        "multilabel",
    ),
    "dice+ce": (segfuse.DiceCELoss, "multiclass"),
    "dice+jaccard+squared+ce+focal": (
        lambda: (
            segfuse.DiceLoss("multiclass")
            + segfuse.JaccardLoss("multiclass", pool_batch=True)
            + segfuse.TverskyLoss("multiclass", squared=True)
            + segfuse.CrossEntropyLoss(label_smoothing=0.1)
            + segfuse.FocalLoss("multiclass")
        ),
        "multiclass",
    ),
    "dice_focal": (lambda: segfuse.DiceFocalLoss("multiclass", gamma=1.5), "multiclass"),
    "adaptive_log(dice)+focal": (
        lambda: segfuse.AdaptiveLogLoss(segfuse.DiceLoss("multiclass")) + segfuse.FocalLoss("multiclass"),
        "multiclass",
    ),
    "combo+generalized+sensitivity_specificity": (
        lambda: (
            segfuse.ComboLoss("binary", alpha=0.3)
            + segfuse.GeneralizedDiceLoss("binary")
            + segfuse.SensitivitySpecificityLoss("binary")
        ),
        "binary",
    ),
    "unified_focal": (lambda: segfuse.UnifiedFocalLoss("multiclass", num_classes=5), "multiclass"),
}


def run(case: Case, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = inputs[0].detach().clone().requires_grad_()
    loss = case.module()(logits, *inputs[1:])
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


@pytest.mark.parametrize("pool", ["torch", "own"])
@pytest.mark.parametrize("case", PATHS, ids=str)
def test_bits_do_not_depend_on_threads(case: Case, pool: str) -> None:
    shape = shape_of(case.mode, 311, 257)
    inputs = make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape)
    before = torch.get_num_threads()
    results = []
    _C.force_own_pool(pool == "own")
    try:
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            results.append(run(case, inputs))
    finally:
        torch.set_num_threads(before)
        _C.force_own_pool(False)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


# Those whose second pass computes no exponential: no squared statistics, and no logarithm of a row.
KEPT = ("dice+bce", "dice+ce", "dice_focal", "adaptive_log(dice)+focal", "unified_focal")


@pytest.mark.parametrize("name", COMPOUNDS)
def test_every_compound_is_two_passes(name: str) -> None:
    build, mode = COMPOUNDS[name]
    shape = shape_of(mode, 64, 48)
    logits, target = make_logits(shape).requires_grad_(), make_target(mode, shape, torch.uint8)
    best, written = _C.instruction_set(), logits.numel() * 4
    read = written + target.numel()
    of_logits = [("statistics", best, read, 0), ("gradient", best, read, written)]
    of_powers = [("cache", best, read, written), ("from_cache", best, read, written)]  # see test_prefilled.py
    for scheme, expected in (("two_pass", of_logits), ("automatic", of_powers if name in KEPT else of_logits)):
        with native.scheme(scheme), native.trace() as events:
            build()(logits, target).backward()
        assert events == expected


@pytest.mark.parametrize("side", [1500, 3000])
@pytest.mark.parametrize("scheme", ["automatic", "two_pass"])
def test_a_large_gradient_asks_for_large_pages(scheme: str, side: int) -> None:
    """Linux notes the wish ("hg") with the pages, whatever it does about it; no other memory is marked."""
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no transparent huge pages")

    def marked(tensor: torch.Tensor) -> bool:
        here = tensor.data_ptr() + tensor.nbytes // 2
        found = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if span := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
                found = int(span[1], 16) <= here < int(span[2], 16)
            elif found and line.startswith("VmFlags"):
                return " hg" in line
        raise AssertionError("not mapped")

    logits = torch.randn(1, 1, side, side, requires_grad=True)
    target = (torch.rand(1, 1, side, side) < 0.5).float()
    with native.scheme(scheme):
        (gradient,) = torch.autograd.grad(segfuse.DiceBCELoss("binary")(logits, target), logits)
    assert marked(gradient)
    assert side < 3000 or not marked(target)  # smaller ones may lie where another gradient was


def test_the_flush_of_denormals_ends_with_the_call() -> None:
    torch.set_flush_denormal(False)  # what inductor of torch 2.4 compiled has set it for the whole process
    tiny = torch.tensor([1e-40])
    run(PATHS[0], (make_logits((2, 1, 300, 300)), make_target("binary", (2, 1, 300, 300))))
    assert (tiny * 1).item() > 0
    assert torch.full((4,), 1e-40).sum().item() > 0


def test_unreduced_losses_write_once() -> None:
    logits, target = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8))
    with native.trace() as events:
        segfuse.CrossEntropyLoss(reduction="none")(logits, target)
    assert [(e.kernel, e.bytes_written) for e in events] == [("statistics", 0), ("values", 4 * target.numel())]


MEMORY = """
import ctypes, sys, torch, segfuse
from torch.utils._python_dispatch import TorchDispatchMode
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) * 1024
crit = eval(sys.argv[1])
shape = eval(sys.argv[2])
target = torch.randint(0, 2, (shape[0], *shape[2:]), dtype=torch.uint8)
small = torch.randn(shape[0], shape[1], 64, 64, requires_grad=True)
for _ in range(3):
    crit(small, target[:, :64, :64]).backward()
logits = torch.randn(shape, requires_grad=True)
open("/proc/self/clear_refs", "w").write("5")
before = resident()
crit(logits, target).backward()
print(peak() - before - logits.numel() * 4)
"""


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        ("segfuse.DiceBCELoss('binary')", (4, 1, 1024, 1024)),
        ("segfuse.DiceCELoss()", (2, 19, 512, 1024)),
        ("segfuse.DiceCELoss(label_smoothing=0.1) + segfuse.FocalLoss('multiclass')", (2, 19, 512, 512)),
        ("segfuse.DiceCELoss()", (1, 200, 256, 256)),
    ],
)
def test_memory_is_the_gradient_and_a_megabyte(loss: str, shape: tuple[int, ...]) -> None:
    """Peak resident memory of forward and backward, measured by the kernel in a process of its own."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not measure peak memory")
    out = subprocess.run([sys.executable, "-c", MEMORY, loss, str(shape)], capture_output=True, text=True, check=True)
    assert int(out.stdout) <= 2**20


def test_more_than_two_to_the_31_positions() -> None:
    """Equal predictions everywhere: a plain float sum of them would be off by 2.6e-4."""
    count = 2**31 + 12345
    logits, target = torch.tensor([[0.3]]).expand(1, count), torch.tensor([[True]]).expand(1, count)
    loss = segfuse.DiceBCELoss("binary", smooth=0.0)(logits, target)
    p = torch.tensor(0.3, dtype=torch.float64).float().double().sigmoid()
    expected = 1 - 2 * p / (p + 1) - p.log()
    assert abs(loss.item() - expected.item()) <= 1e-6 * expected.item()


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_offsets_beyond_two_to_the_31(mode: str) -> None:
    """Rows that lie 2^31 elements apart, in memory of which only their pages are ever touched."""
    apart = 2**31 + 7
    storage = torch.empty(2 * apart, dtype=torch.float16)
    shape = (2, 64) if mode == "binary" else (1, 2, 64)
    logits = storage.as_strided(shape, (apart, 1) if mode == "binary" else (1, apart, 1))
    logits.copy_(torch.randn(shape))
    target = torch.randint(0, 2, shape[:1] + shape[2:] if mode == "multiclass" else shape)
    near = logits.clone().requires_grad_()
    loss = segfuse.DiceLoss(mode)
    expected = loss(near, target)
    expected.backward()
    far = logits.detach().requires_grad_()
    value = loss(far, target)
    (gradient,) = torch.autograd.grad(value, far)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, near.grad)


# ------------------------------------------------------------------------------------------------ elementary functions

FUNCTIONS = {
    # name: code, lowest and highest argument, the exact function, units in the last place
    "exp_nonpositive": (0, -87.0, 0.0, mpmath.exp, 2.0),
    "log": (1, 1e-37, 1e30, mpmath.log, 2.5),
    "log1p": (2, 1e-37, 1e6, mpmath.log1p, 3.5),
    "log1p_unit": (3, 1e-37, 1.0, mpmath.log1p, 2.5),
    "fast_exp2": (4, -125.0, 4.0, lambda x: mpmath.mpf(2) ** x, 2.0),
    "fast_log2": (5, 1e-37, 1e30, lambda x: mpmath.log(x, 2), 3.0),
    "pow": (6, 1e-14, 1.0, lambda x: x ** mpmath.mpf(2.5), 4.0),
}


def elementary(function: int, x: np.ndarray, parameter: float = 2.5) -> np.ndarray:
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    native = _C.elementary32 if x.dtype == np.float32 else _C.elementary64
    native(function, parameter, x.ctypes.data, out.ctypes.data, x.size)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
def test_elementary_functions(instruction_set: str, name: str, dtype: type) -> None:
    code, low, high, exact, ulps = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    uniform = rng.uniform(low, high, 400)
    logarithmic = (
        np.exp(rng.uniform(np.log(low), np.log(high), 400)) if low > 0 else -np.exp(rng.uniform(-20, 4.4, 400))
    )
    x = np.concatenate([uniform, logarithmic, [low, high], 1 + rng.uniform(-1, 0, 50) * 1e-6]).astype(dtype)
    if low < 0:
        x = x[(x <= high) & (x >= low)]
    with native.instruction_set(instruction_set):
        y = elementary(code, x)
    with mpmath.workdps(40):
        expected = [exact(mpmath.mpf(float(v))) for v in x]
        errors = [float(abs(mpmath.mpf(float(a)) - b) / abs(b)) for a, b in zip(y, expected, strict=True) if b != 0]
    assert max(errors) <= ulps * np.finfo(dtype).eps


@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
def test_elementary_functions_at_the_ends(instruction_set: str) -> None:
    inf, nan = np.inf, np.nan
    with native.instruction_set(instruction_set):
        for dtype in (np.float32, np.float64):
            a = lambda *v: np.array(v, dtype)  # noqa: B023, E731
            np.testing.assert_array_equal(elementary(0, a(-inf, -1e4, 0, nan)), a(0, 0, 1, nan))
            np.testing.assert_array_equal(elementary(1, a(0, inf, 1, -1, nan)), a(-inf, inf, 0, nan, nan))
            np.testing.assert_array_equal(elementary(2, a(0, inf, nan))[[0, 2]], a(0, nan))
            np.testing.assert_array_equal(elementary(3, a(0, nan)), a(0, nan))
            np.testing.assert_array_equal(elementary(4, a(-inf, -1e4, 0, 1, nan)), a(0, 0, 1, 2, nan))
            assert np.isfinite(elementary(5, a(0))).all()
            np.testing.assert_array_equal(elementary(5, a(1, 2)), a(0, 1))
            np.testing.assert_array_equal(elementary(6, a(0, 1, nan), 0.5), a(0, 1, nan))
            np.testing.assert_array_equal(elementary(6, a(0, 0.3, 1), 0.0), a(1, 1, 1))
