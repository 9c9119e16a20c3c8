"""The CUDA sources on the CPU: the fiber shim itself, then the case table on them (test_shim_sanitized.py: again)."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import DEVICE, ROOT, SHIM

TESTS = ROOT / "tests"
SHIM_SOURCES = TESTS / "shim"
sys.path.insert(0, str(SHIM_SOURCES))  # build.py
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1")
# Other instruction sets, and an error for a label out of range, are the CPU kernels' own.
ALGEBRA = (
    "test_algebra.py",
    "--deselect=tests/test_algebra.py::test_the_default_of_cross_entropy_yields_to_what_is_given",
)
MORE = ("test_boundaries.py", "test_stats.py", "test_tiles.py")
# Values that are not finite, out of range, or confident: a share, for they walk the whole table with several inputs.
HOSTILE = ("test_weights.py", "test_probabilities.py", "test_confident.py")
VALUES = ("test_values.py", "--deselect=tests/test_values.py::test_every_instruction_set")

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="runs the other tests on the shim by itself")


def run(command: list[str], **environment: str) -> str:
    """What a command says; a failure if it fails."""
    done = subprocess.run(
        command,
        cwd=TESTS,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1800,
    )
    if done.returncode:
        shown = " ".join(f"{k}={v}" for k, v in environment.items())
        pytest.fail(f"exit {done.returncode}: {shown} {' '.join(command)}\n{done.stdout[-8000:]}", pytrace=False)
    return done.stdout


def run_tests(*groups: tuple[str, ...], **environment: str) -> list[str]:
    """Test files in subprocesses, one per group."""
    common = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "--maxfail=3",
        "--no-header",
        "-p",
        "no:cacheprovider",
    ]
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(lambda group: run([*common, *group], **environment), groups))


@pytest.mark.parametrize("sanitizers", [(), SANITIZERS], ids=["plain", "sanitized"])
def test_selftest(sanitizers: tuple[str, ...], tmp_path: Path) -> None:
    """selftest.cu says what it proves."""
    sources = [SHIM_SOURCES / "selftest.cu", *sorted(SHIM_SOURCES.glob("*.cpp"))]
    flags = ["-std=c++17", "-O1", f"-I{SHIM_SOURCES}", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *sanitizers]
    program = str(tmp_path / "selftest")
    run(["g++", *flags, "-x", "c++", *map(str, sources), "-ldl", "-o", program])
    assert "all passed" in run([program], ASAN_OPTIONS="detect_leaks=0")


def test_the_case_table() -> None:
    """A share of it, for the time (test_cuda.py runs whole beside it); the sanitizers see another (SEGFUSE_SEED)."""
    from build import build

    module = build(ROOT / "build" / "shim")
    rest = ("test_layout.py", "test_edges.py", *MORE, *ALGEBRA)
    run_tests(VALUES, rest, SEGFUSE_SHIM=str(module), SEGFUSE_THIN="4")
    run_tests(HOSTILE[:1], HOSTILE[1:], SEGFUSE_SHIM=str(module), SEGFUSE_THIN="8")
