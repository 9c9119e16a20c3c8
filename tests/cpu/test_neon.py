"""The CPU kernels on aarch64 (NEON): cross-compiled with a driver that needs no Python, run by qemu, and compared with
what this machine's kernels say of the same calls. Compiled for this machine, the driver must say the same.

SEGFUSE_REQUIRE_NEON=1: where the compiler or qemu is missing, the test fails.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from torch import Tensor

import segfuse
from cases import TOLERANCE, check_close
from environment import ROOT
from segfuse import _C
from segfuse._core.native import DTYPE_CODE

# Compiler, and what runs the program.
MACHINES = {"this machine": ("g++", ""), "aarch64": ("aarch64-linux-gnu-g++", "qemu-aarch64")}
PACKAGES = {"g++": "g++", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
SOURCES = [
    *(ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("isa_baseline", "instruction_sets", "steps", "threads"))
]
SOURCES.append(Path(__file__).parent / "neon.cpp")
FLAGS = ["-std=c++17", "-O1", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror", "-pthread"]
# GCC's search for stores that nobody reads takes a third of its time.
FLAGS += ["--param=sccvn-max-alias-queries-per-access=50", "--param=dse-max-alias-queries-per-store=4"]

# Losses as neon.cpp knows them, term by term; and the engine in which each runs.
LOSSES: dict[str, list[segfuse.Loss]] = {
    "dice_bce": [segfuse.DiceLoss("binary"), segfuse.BCEWithLogitsLoss("binary")],  # rows
    "bce": [segfuse.BCEWithLogitsLoss("binary")],  # rows, the gradient in the forward
    "focal": [segfuse.FocalLoss("binary", gamma=2.5, reduction="none")],  # rows, a value per element
    "dice_of_probabilities": [segfuse.DiceLoss("binary", from_logits=False)],
    # label_map; of soft labels softmax_general
    "dice_ce": [segfuse.DiceLoss("multiclass", ignore_index=-100), segfuse.CrossEntropyLoss()],
    "ce": [segfuse.CrossEntropyLoss()],
    # softmax_general
    "squared": [segfuse.DiceLoss("multiclass", squared=True, ignore_index=-100), segfuse.CrossEntropyLoss()],
}
# No multiples of a register; less than a tile, and more.
SHAPES = {"binary": [(2, 1, 37), (1, 1, 2501)], "multiclass": [(2, 5, 37), (1, 19, 701)]}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SPECIAL = {
    "ordinary": [],
    "saturated": [100.0, -100.0, 2e4, -2e4, 0.0, -0.0, 1e-7, -1e-7, 1e-40, -1e-40],
    "infinite": [float("inf")],
    "NaN": [float("nan"), float("-inf")],
}

# exp_nonpositive, log, log1p, log1p_unit, exp2, log2, pow: arguments, beside those at the ends.
FUNCTIONS = {0: (-90, 0), 1: (1e-30, 1e30), 2: (0, 1e6), 3: (0, 1), 4: (-130, 4), 5: (1e-30, 1e30), 6: (0, 1)}
ENDS = {0: [-np.inf, np.nan, -1e4], 1: [0, -1, np.inf, np.nan, 1e-40], 4: [-np.inf, np.nan], 6: [np.nan, 1e-40]}
ULPS = 8


@dataclass
class Call:
    """A loss on logits (samples, classes, pixels); bytes for the driver, and what comes out here."""

    loss: str
    logits: Tensor
    target: Tensor
    upstream: Tensor

    def text(self) -> bytes:
        target_classes = self.target.shape[1] if self.target.dim() == 3 else 0
        codes = DTYPE_CODE[self.logits.dtype], DTYPE_CODE[self.target.dtype]
        header = " ".join(map(str, (self.loss, *codes, *self.logits.shape, target_classes)))
        arrays = (self.logits, self.target, self.upstream)
        return header.encode() + b"\n" + b"".join(a.flatten().view(torch.uint8).numpy().tobytes() for a in arrays)

    def expected(self) -> list[Tensor]:
        """Loss, terms and gradient."""
        parts = LOSSES[self.loss]
        leaf = self.logits.clone().requires_grad_()
        value = sum(parts[1:], start=parts[0])(leaf, self.target)
        (gradient,) = torch.autograd.grad(value, leaf, self.upstream)
        terms = [torch.stack([p(self.logits, self.target) for p in parts]).double()] if value.dim() == 0 else []
        return [value.detach(), *terms, gradient]


def make_calls() -> list[Call]:
    """Every loss, dtype and kind of logits; targets are hard, soft and of several types in turn."""
    torch.manual_seed(0)
    calls = []
    for (loss, parts), dtype, special in product(LOSSES.items(), DTYPES, SPECIAL.values()):
        for shape in SHAPES[parts[0].mode]:
            logits = (3 * torch.randn(shape)).to(dtype)
            if special:
                chosen = torch.rand(shape) < 0.05
                logits[chosen] = torch.tensor(special).to(dtype)[torch.randint(len(special), (int(chosen.sum()),))]
            if loss == "dice_of_probabilities":
                logits = logits.double().sigmoid().to(dtype)
            samples, classes, pixels = shape
            hard = torch.randint(max(2, classes), (samples, pixels))
            hard[:, 3] = -100 if classes > 1 else 1
            targets = (
                [hard, torch.rand(shape).softmax(1)] if classes > 1 else [hard.to(torch.uint8), torch.rand(hard.shape)]
            )
            for target in targets:
                real = torch.float64 if dtype == torch.float64 else torch.float32
                upstream = torch.rand(shape if loss == "focal" else (), dtype=real) + 0.3
                calls.append(Call(loss, logits, target, upstream))
    return calls


def elementary_arguments(function: int, dtype: type) -> np.ndarray:
    low, high = FUNCTIONS[function]
    rng = np.random.default_rng(function)
    x = rng.uniform(low, high, 500)
    near_low = low + (high - low) * np.exp(rng.uniform(-60, 0, 500))
    return np.concatenate([x, near_low, [low, high], ENDS.get(function, [])]).astype(dtype)


def native_elementary(function: int, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    native = _C.elementary32 if x.dtype == np.float32 else _C.elementary64
    native(function, 2.5, x.ctypes.data, out.ctypes.data, x.size)
    return out


def installed(program: str) -> str:
    if which(program) is None:
        reason = f"no {program}: apt-get install {PACKAGES[program]}"
        pytest.fail(reason) if os.environ.get("SEGFUSE_REQUIRE_NEON") == "1" else pytest.skip(reason)
    return program


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command that runs the driver, by machine."""
    folder = tmp_path_factory.mktemp("drivers")
    compilers = [installed(compiler) for compiler, _ in MACHINES.values()]
    runners = [[installed(runner)] if runner else [] for _, runner in MACHINES.values()]

    def compiled(compiler: str, source: Path) -> str:
        target = str(folder / f"{compiler}-{source.stem}.o")
        subprocess.run([compiler, *FLAGS, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        pairs = [(compiler, source) for source in SOURCES for compiler in compilers]
        objects = list(pool.map(compiled, *zip(*pairs, strict=True)))
    commands = {}
    for i, (machine, compiler) in enumerate(zip(MACHINES, compilers, strict=True)):
        program = str(folder / f"{compiler}-driver")
        own = objects[i :: len(compilers)]
        subprocess.run([compiler, "-static", "-pthread", *own, "-ldl", "-o", program], check=True)
        commands[machine] = [*runners[i], program]
    return commands


def results(command: list[str], calls: bytes, folder: Path) -> bytes:
    (folder / "calls").write_bytes(calls)
    subprocess.run([*command, str(folder / "calls"), str(folder / "results")], check=True)
    return (folder / "results").read_bytes()


def check_same(actual: Tensor, expected: Tensor, tolerance: float, what: str, floor: float) -> None:
    """As `check_close`; what is not finite is so in both, in the same way."""
    finite = expected.isfinite()
    assert torch.equal(actual[~finite].nan_to_num(nan=7), expected[~finite].nan_to_num(nan=7)), what
    check_close(torch.where(finite, actual, 0), torch.where(finite, expected, 0), tolerance, what, floor)


@pytest.mark.parametrize("machine", MACHINES)
def test_losses(machine: str, drivers: dict[str, list[str]], tmp_path: Path) -> None:
    calls = make_calls()
    data = results(drivers[machine], b"".join(call.text() for call in calls), tmp_path)
    for number, call in enumerate(calls):
        loss_tolerance, gradient_tolerance = TOLERANCE[call.logits.dtype]
        *values, gradient = call.expected()
        what = f"call {number}, {call.loss} of {call.logits.dtype} {tuple(call.logits.shape)}"
        for expected in (*values, gradient):
            size = expected.numel() * expected.element_size()
            assert len(data) >= size, f"{what}: the results end early"
            actual = torch.frombuffer(bytearray(data[:size]), dtype=expected.dtype).reshape(expected.shape)
            data = data[size:]
            tolerance = gradient_tolerance if expected is gradient else loss_tolerance
            floor = 2.0**-24 if expected.dtype == torch.float16 else 1e-37  # the smallest one: both are rounded
            check_same(actual, expected, tolerance, what, floor)
    assert not data


@pytest.mark.parametrize("machine", MACHINES)
def test_elementary_functions(machine: str, drivers: dict[str, list[str]], tmp_path: Path) -> None:
    for function, dtype in product(FUNCTIONS, (np.float32, np.float64)):
        x = elementary_arguments(function, dtype)
        header = f"elementary {function} {DTYPE_CODE[torch.from_numpy(x).dtype]} {x.size}\n"
        y = np.frombuffer(results(drivers[machine], header.encode() + x.tobytes(), tmp_path), dtype)
        expected = native_elementary(function, x)
        np.testing.assert_allclose(y, expected, rtol=ULPS * np.finfo(dtype).eps, atol=0, err_msg=str(function))
