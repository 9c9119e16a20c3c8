"""Runs the tests on several releases of torch, each in its own environment, with one wheel; writes docs/versions.md.

python tools/versions.py WHEEL [--torch 2.4.1 ...] [--keep FOLDER]

WHEEL       segfuse, built once (`pip wheel --no-deps .`); it must hold the Python of this checkout
--torch     only these releases; the page keeps the rows of the others
--keep      a folder for environments and reports, which the next run uses again; without it they are deleted
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
# The oldest release that pyproject.toml allows, one in between, that of requirements-dev.txt, and the newest. Each with
# a numpy of its time; the first has the oldest numpy that pyproject.toml allows.
VERSIONS = {"2.4.1": "numpy==1.24.*", "2.8.0": "numpy==2.2.*", "2.13.0": "numpy>=2", "2.15.0": "numpy>=2"}
# Tests that build or read kernels. The kernels do not depend on torch.
LEFT_OUT = {
    "tests/repo/test_contributing.py": "builds the CPU kernels",
    "tests/cuda/test_kernels.py": "builds the CUDA sources",
    "tests/cuda/test_alignment.py": "builds the CUDA sources",
    "tests/cuda/test_labels.py": "builds the CUDA sources",
    "tests/cuda/test_gates.py": "reads the CUDA kernels' machine code",
    "tests/cpu/test_instructions.py": "counts the CPU kernels' instructions",
    "tests/cuda/test_mutations.py": "builds the CUDA sources",
    "tests/cuda/test_shim.py": "builds the CUDA sources",
    "tests/repo/test_style.py": "checks the sources, with the pinned tools",
    "tests/cuda/test_toolkits.py": "compiles the CUDA sources",
    "tests/repo/test_versions.py": "compares this page",
}
# Tests that need a later torch than the oldest: the release, and what older ones lack. On older ones they must fail.
NEEDS = {
    r"test_compile\[(function|built inside)|test_inductor\[function": (
        "2.5",
        "Dynamo cannot make a module inside a compiled function: the losses as functions, there; make the loss outside",
    ),
    r"test_compile\[(terms|added inside)\]": ("2.5", "Dynamo cannot add or scale modules inside a compiled function"),
    r"test_cell\[.*(compile|, strict).*-own head\]|test_region_stats_elsewhere": (
        "2.5",
        "Dynamo cannot read what `assume_constant_result` gives: `region_stats`, `region_loss` in a compiled function",
    ),
    r"test_recipe_of_ranks\[FSDP\]": ("2.6", "`torch.distributed.fsdp.fully_shard` is not there"),
}
ESCAPED = "\\|"  # in a cell
HEADER = (
    "| torch | numpy | Python | passed | skipped | needs a later torch | failed | date | wheel, SHA-256 | platform |"
)


def run(python: Path, *arguments: str, check: bool = True, **environment: str) -> str:
    command = [str(python), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, check=check, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def environment(folder: Path, version: str, wheel: Path) -> Path:
    """The interpreter of a new environment with this torch and the wheel."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
        others = [line for line in lines if line and not re.match("#|torch==|numpy>=", line)]
        run(python, "-m", "pip", "install", "--quiet", f"torch=={version}", VERSIONS[version], *others)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
    return python


def measure(folder: Path, version: str, wheel: Path) -> str:
    """Runs the tests on a release: its row of the page."""
    python, report = environment(folder, version, wheel), folder / "report.xml"
    ignored = [f"--ignore={name}" for name in LEFT_OUT]
    said = run(
        python,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", f"--junitxml={report}", *ignored),
        check=False,
        TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"),
        OMP_NUM_THREADS="1",
    )
    (folder / "said").write_text(said)
    print(said[-3000:])
    versions = run(python, "-c", "import torch, numpy; print(torch.__version__, '|', numpy.__version__)")
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped[@type='pytest.skip']") is not None]
    lacking = [case for case in cases if case.find("skipped[@type='pytest.xfail']") is not None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    passed = len(cases) - len(skipped) - len(lacking) - len(failed)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    return (
        f"| {versions} | {platform.python_version()} | {passed} | {len(skipped)} | {len(lacking)} | {len(failed)} "
        f"| {datetime.date.today()} | {digest} "
        f"| {platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())} |"
    )


def rows() -> dict[str, str]:
    """The rows of the page, by release."""
    found = re.findall(r"^\| ((\d[\d.]*\d)\S* \|.*)$", PAGE.read_text() if PAGE.exists() else "", re.MULTILINE)
    return {version: f"| {row}" for row, version in found if version in VERSIONS}


def page(measured: dict[str, str]) -> str:
    lines = [
        "# Releases of PyTorch",
        "",
        "One wheel and the same tests on each; `python tools/versions.py WHEEL` makes the environments and this table.",
        "CI runs the release that `requirements-dev.txt` pins. None of these runs had a GPU.",
        "",
        HEADER,
        "|---" * HEADER.count(" | ") + "|---|",
        *(measured[version] for version in VERSIONS if version in measured),
        "",
        "Needs a later torch (each such test must fail on an older one):",
        "",
        "| torch | tests | |",
        "|---|---|---|",
        *(f"| {oldest} | `{tests.replace('|', ESCAPED)}` | {reason} |" for tests, (oldest, reason) in NEEDS.items()),
        "",
        "Left out; they build kernels or read them, and these know nothing of torch:",
        "",
        *(f"- `{name}`: {reason}" for name, reason in LEFT_OUT.items()),
        "",
    ]
    return "\n".join(lines)


def check_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    wanted = {str(p.relative_to(ROOT / "python")): p.read_bytes() for p in (ROOT / "python").rglob("*.py")}
    if held != wanted:
        sys.exit(f"{wheel.name} holds other Python than python/segfuse: build it again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    check_wheel(options.wheel)
    for version in options.torch:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep.resolve() / version if options.keep else Path(temporary)
            row = measure(folder, version, options.wheel.resolve())
        PAGE.write_text(page({**rows(), version: row}))
        print(row)


if __name__ == "__main__":
    main()
