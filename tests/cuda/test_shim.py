"""The CUDA sources on the CPU, through tests/shim: a test of the shim, then the case table on the sources."""

from pathlib import Path

import pytest

from build_shim import build
from environment import DEVICE, ROOT, SHIM
from shim_runs import ALGEBRA, HOSTILE, MORE, PLACES, VALUES, run, run_tests

SHIM_SOURCES = ROOT / "tests" / "shim"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1")

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="runs the other tests on the shim by itself")


@pytest.mark.parametrize("sanitizers", [(), SANITIZERS], ids=["plain", "sanitized"])
def test_selftest(sanitizers: tuple[str, ...], tmp_path: Path) -> None:
    """What it tests stands in selftest.cu."""
    sources = [SHIM_SOURCES / "selftest.cu", *sorted(SHIM_SOURCES.glob("*.cpp"))]
    flags = ["-std=c++17", "-O1", f"-I{SHIM_SOURCES}", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *sanitizers]
    program = str(tmp_path / "selftest")
    run(["g++", *flags, "-x", "c++", *map(str, sources), "-ldl", "-o", program])
    assert "all passed" in run([program], ASAN_OPTIONS="detect_leaks=0")


def test_the_case_table() -> None:
    """A share of it, to save time: test_kernels.py runs whole. The sanitizers see another share (SEGFUSE_SEED)."""
    module = build(ROOT / "build" / "shim")
    groups = (*VALUES, *HOSTILE[:1]), (*PLACES, *MORE, *ALGEBRA, *HOSTILE[1:])
    run_tests(*groups, SEGFUSE_SHIM=str(module), SEGFUSE_THIN="10")
