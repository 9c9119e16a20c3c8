"""Runs other test files on the CUDA sources built for the CPU, in subprocesses, for test_shim.py and its neighbour."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from environment import ROOT

LOSSES = "tests/losses"
# Left out: what only the CPU kernels have, which are instruction sets and errors for labels out of range.
VALUES = (f"{LOSSES}/test_values.py", f"--deselect={LOSSES}/test_values.py::test_every_instruction_set")
ALGEBRA = (
    f"{LOSSES}/test_algebra.py",
    f"--deselect={LOSSES}/test_algebra.py::test_the_default_of_cross_entropy_yields_to_what_is_given",
)
PLACES = ("tests/cpu/test_layout.py", f"{LOSSES}/test_edges.py")
MORE = tuple(f"{LOSSES}/test_{name}.py" for name in ("boundaries", "stats", "tiles"))
# Values that are not finite, out of range, or confident. Each of these files runs the whole table on several inputs.
HOSTILE = tuple(f"{LOSSES}/test_{name}.py" for name in ("weights", "probabilities", "confident"))


def run(command: list[str], **environment: str) -> str:
    """The output of a command. The test fails if the command does."""
    done = subprocess.run(
        command,
        cwd=ROOT,
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
    """Runs test files, each group in its own subprocess. All run at once."""
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
