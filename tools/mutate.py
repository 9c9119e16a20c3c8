"""Mutation tests of csrc/cuda: each mistake of mutations.py, made in a copy of the sources, must fail a test of FILES.

    python tools/mutate.py --all [--only REGEX]     tries them: an hour on two cores for all; exits 1 if one survives
    python tools/mutate.py --list [--only REGEX]    prints them

The copy has smaller constants (mutations.SHRUNK), for example a chunk's pixels, so that small tensors reach every line.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from build_shim import build
from mutations import EQUIVALENT, SHRUNK, Mutation, mutations, sources

ROOT = Path(__file__).parents[1]
# The quicker ones first.
FILES = (
    "tests/cuda/test_many_rows.py",
    "tests/cuda/test_schemes.py",
    "tests/cuda/test_device.py",
    "tests/cuda/test_rows_half.py",
    "tests/cuda/test_maps_half.py",
    "tests/cuda/test_labels.py",
    "tests/cuda/test_alignment.py",
    "tests/cuda/test_kernels.py",
)
TIMEOUT = 600  # seconds for a run of the tests: a mutant may loop forever


@dataclass
class Verdict:
    killed: bool
    by: str  # the test that failed, or the error of the shim
    seconds: float


def shrunk(folder: Path) -> Path:
    """A copy of csrc in a folder, with the constants of SHRUNK."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    left = dict(SHRUNK)
    for path in sources(csrc):
        text = path.read_text()
        for before, after in SHRUNK.items():
            text, times = re.subn(before, after, text)
            if times:
                left.pop(before)
        path.write_text(text)
    assert not left, f"nothing to shrink: {left}"
    return csrc


@contextmanager
def applied(mutation: Mutation | None, csrc: Path) -> Iterator[None]:
    if mutation is None:
        yield
        return
    (path,) = [path for path in sources(csrc) if path.name == mutation.file]
    text = path.read_text()
    path.write_text(mutation.apply(text))
    try:
        yield
    finally:
        path.write_text(text)


def run_tests(module: Path, thin: int, seed: int) -> Verdict:
    command = [sys.executable, "-m", "pytest", *FILES, "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    command += ["-k", "not was_launched"]
    own = {"SEGFUSE_SHIM": str(module), "SEGFUSE_THIN": str(thin), "SEGFUSE_SHIM_SEED": str(seed)}
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return Verdict(True, f"no end in {TIMEOUT} seconds", time.monotonic() - begin)
    said = done.stdout + done.stderr
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise RuntimeError(f"pytest did not run:\n{said[-3000:]}")
    by = re.findall(r"^(?:segfuse shim: |FAILED |ERROR |Fatal Python error: ).*", said, re.MULTILINE)
    return Verdict(done.returncode != 0, (by or [f"exit {done.returncode}"])[0], time.monotonic() - begin)


def try_all(wanted: Sequence[Mutation | None]) -> Iterator[tuple[Mutation | None, Verdict]]:
    """Each mutation and its verdict. None: the copy without a mutation. While one is tested, the next one compiles."""
    kept = ROOT / "build" / "mutants"
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as builder:
        csrc = shrunk(Path(name))
        build(kept, csrc=csrc)  # mutants share what their mutation does not change

        def make(index: int) -> Path:
            folder = Path(name) / str(index)
            folder.mkdir()
            for path in kept.glob("*.o"):
                os.link(path, folder / path.name)
            with applied(wanted[index], csrc):
                return build(folder, csrc=csrc)

        future = builder.submit(make, 0)
        for i, mutation in enumerate(wanted):
            module = future.result()
            if i + 1 < len(wanted):
                future = builder.submit(make, i + 1)
            # One test in ten kills most mutants. The others see all tests.
            seconds = 0.0
            for thin, seed in [(10, 0), *((1, seed) for seed in range(mutation.pattern.seeds if mutation else 1))]:
                verdict = run_tests(module, thin, seed)
                seconds += verdict.seconds
                if verdict.killed:
                    break
            verdict.seconds = seconds
            shutil.rmtree(module.parents[1])
            yield mutation, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="", help="a regular expression: only mutations that it matches")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        meant = [m for m in mutations(shrunk(Path(name))) if re.search(options.only, str(m))]
    if options.list or not options.all:
        print(*meant, f"{len(meant)} mutations", sep="\n")
        return 0
    survivors = []
    for mutation, verdict in try_all([None, *meant]):
        if mutation is None:
            assert not verdict.killed, f"the tests fail without a mutation: {verdict.by}"
            continue
        known = mutation.key in EQUIVALENT
        word = "killed" if verdict.killed else "equivalent" if known else "SURVIVED"
        print(f"{word:10} {verdict.seconds:5.1f} s  {mutation}\n{'':20}{verdict.by}", flush=True)
        survivors += [] if verdict.killed or known else [mutation]
        if verdict.killed and known:
            print(f"{'':20}but mutations.EQUIVALENT has it", flush=True)
    print(f"{len(meant)} mutations, {len(survivors)} survivors", *survivors, sep="\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
