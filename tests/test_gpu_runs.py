"""Both runs of bench/gpu.sh rehearsed without a GPU, from the first line to the report, with whatever can go wrong.

In a copy that holds only what git tracks, with a wheel, on the CUDA sources compiled for the CPU; under Python 3.12,
which such machines have, if there is one with torch and a wheel for it in dist/, else under the Python of the tests.
"""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import DEVICE, ROOT, SHIM

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="takes the device into its own hands")

# What takes the place of the tools: strict about options, then the program itself.
SANITIZER = """#!/usr/bin/env bash
while :; do
  case $1 in
    --tool) tool=$2 && shift 2 ;;
    --kernel-name | --error-exitcode | --padding) shift 2 ;;
    -*) echo "unknown option $1" && exit 64 ;;
    *) break ;;
  esac
done
case $tool in
  racecheck) sleep 600 ;;
  initcheck) echo "========= Error: no such device" && exit 1 ;;
esac
exec "$@"
"""
NCU = """#!/usr/bin/env bash
while :; do
  case $1 in
    --csv) shift ;;
    --log-file) csv=$2 && shift 2 ;;
    --metrics) metrics=$2 && shift 2 ;;
    --clock-control | --cache-control | --profile-from-start | --target-processes | --print-units) shift 2 ;;
    --kernel-name-base | --kernel-name | --print-kernel-base) shift 2 ;;
    -*) echo "unknown option $1" && exit 64 ;;
    *) break ;;
  esac
done
echo "==PROF== Connected" >"$csv"
echo '"ID","Kernel Name","Metric Name","Metric Value"' >>"$csv"
[ -z "${NCU_HANGS:-}" ] || sleep 600
for metric in ${metrics//,/ }; do echo "\\"0\\",\\"void kernel<Rows, 3>(Job)\\",\\"$metric\\",\\"17\\"" >>"$csv"; done
exec "$@"
"""
# Beside the tests: one passes, one fails, one hangs; and what torch.compile leaves.
TROUBLE = """
import os, pathlib, time

def test_right():
    cache = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    cache.mkdir(exist_ok=True)
    (cache / "made").touch()

def test_wrong():
    assert "MENDED" in os.environ

def test_hangs():
    time.sleep(0 if "MENDED" in os.environ else 600)
"""
# Behind bench/harness.py: the process dies in its fourth comparison.
DEATH = """
if "DIES" in os.environ:
    _measure, _times = measure, iter(range(3))

    def measure(*arguments, **options):
        if next(_times, None) is None:
            os.kill(os.getpid(), 9)
        return _measure(*arguments, **options)
"""


@cache
def other_python() -> tuple[str, Path] | None:
    """Python 3.12 with torch, and a wheel for it."""
    found = shutil.which("python3.12")
    wheels = sorted((ROOT / "dist").glob("segfuse-*-cp312-*.whl"))
    if found is None or not wheels:
        return None
    done = subprocess.run([found, "-c", "import numpy, pybind11, pytest, torch"], capture_output=True)
    return (found, wheels[-1]) if done.returncode == 0 else None


def packed(folder: Path) -> Path:
    """The installed package as a wheel."""
    installed = importlib.metadata.distribution("segfuse")
    tag = next(line[5:] for line in (installed.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: "))
    target = folder / f"segfuse-{installed.version}-{tag}.whl"
    with zipfile.ZipFile(target, "w") as file:
        for path in installed.files or ():
            if path.suffix != ".pyc":
                file.write(str(installed.locate_file(path)), str(path))
    return target


class Run(NamedTuple):
    """What a run of bench/gpu.sh left."""

    status: int
    printed: str
    out: Path
    work: Path

    def steps(self) -> dict[str, str]:
        """The verdict on each part."""
        rows = [line.split(" | ") for line in (self.out / "steps.md").read_text().splitlines()[2:]]
        return {row[0].removeprefix("| "): row[1] for row in rows}

    def results(self) -> dict:
        return json.loads((self.out / "cpu.json").read_text())


class Rehearsal:
    """A copy of the tree, tools, a wheel; and runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree, self.tools = folder, folder / "tree", folder / "tools"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
        if tracked.returncode:
            pytest.skip("not a git checkout: what travels to another machine is what git tracks")
        for name in filter(None, tracked.stdout.split("\0")):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.tree / name)
        other = other_python()
        self.python, self.wheel = other or (sys.executable, packed(folder))
        build = [self.python, str(ROOT / "tests" / "shim" / "build.py"), str(ROOT / "build" / "shim")]
        self.shim = subprocess.run(build, capture_output=True, text=True, check=True).stdout.strip()
        self.size = sum(path.stat().st_size for path in [*self.tree.rglob("*"), self.wheel] if path.is_file())
        self.tools.mkdir()
        for name, text in (("compute-sanitizer", SANITIZER), ("ncu", NCU)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        (self.tree / "trouble").mkdir()
        (self.tree / "trouble" / "test_trouble.py").write_text(TROUBLE)
        with (self.tree / "bench" / "harness.py").open("a") as file:
            file.write(DEATH)

    def start(self, name: str, mode: str, **environment: str) -> subprocess.Popen:
        small = {
            "CASE_ARGS": "--shrink 128 --threads 1",
            "WARM_ARGS": "--shrink 128",
            "WARM_PROCESSES": "1",
            "EXPERIMENT_ARGS": "--shrink 64 --only window|scaled_loss",
            "TORCHDYNAMO_DISABLE": "1",  # compiles nothing, else all the same
        }
        places = {"PYTHON": self.python, "WHEEL": self.wheel, "SEGFUSE_SHIM": self.shim, "DEVICE": "cpu"}
        places |= {"OUT": self.folder / name, "WORK": self.folder / f"{name}-work"}
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **small,
            **{k: str(v) for k, v in places.items()},
            **environment,
        }
        command = ["bash", "bench/gpu.sh", mode]
        return subprocess.Popen(command, cwd=self.tree, env=variables, text=True, stdout=-1, stderr=-2)

    def end(self, name: str, process: subprocess.Popen) -> Run:
        printed, _ = process.communicate(timeout=300)
        return Run(process.returncode, printed, self.folder / name, self.folder / f"{name}-work")

    def run(self, name: str, mode: str, **environment: str) -> Run:
        return self.end(name, self.start(name, mode, **environment))

    def first(self) -> Run:
        """One sanitizer hangs, one test fails and one hangs, the headlines die in the middle."""
        path = f"{self.tools}:{os.environ['PATH']}"
        limits = {"LIMIT_RACECHECK": "10", "LIMIT_TESTS": "16"}
        return self.run("first", "first", PATH=path, TESTS="trouble/test_trouble.py", DIES="1", **limits)

    def both(self) -> tuple[Run, Run]:
        first = self.first()
        tests = {"TESTS": "trouble/test_trouble.py", "TEST_ARGS": "-n 0", "MENDED": "1"}
        return first, self.run("second", "second", PREVIOUS=str(first.out), ENGINE_ARGS="--stride 20", **tests)

    def others(self) -> tuple[Run, Run]:
        """No wheel that fits; the tests themselves, then an end from outside."""
        bare = self.run("bare", "first", WHEEL=str(self.folder / "no.whl"))
        some = {"TESTS": "tests/test_cuda.py", "TEST_ARGS": "-n 0 -k test_ties_and_extremes", "NCU_HANGS": "1"}
        path = f"{self.tools}:{os.environ['PATH']}"
        process = self.start("ended", "first", PARTS="tests ncu", PATH=path, **some)
        while process.poll() is None and not (self.folder / "ended-work" / "ncu.csv").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        return bare, self.end("ended", process)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return Rehearsal(tmp_path_factory.mktemp("rehearsal"))


@pytest.fixture(scope="module")
def runs(rehearsal: Rehearsal) -> dict[str, Run]:
    with ThreadPoolExecutor(2) as pool:
        both, others = pool.submit(rehearsal.both), pool.submit(rehearsal.others)
        return {run.out.name: run for run in (*both.result(), *others.result())}


def test_the_python_of_the_machine() -> None:
    if other_python() is None:
        pytest.skip(f"no python3.12 with torch and a wheel in dist/: rehearsed with {sys.version.split()[0]}")


def test_what_travels_and_what_comes_back(rehearsal: Rehearsal, runs: dict[str, Run]) -> None:
    assert rehearsal.size < 64 << 20
    for run in runs.values():
        files = {path.name: path.stat().st_size for path in run.out.iterdir()}
        assert len(files) <= 8
        assert max(files.values()) < 16e6
        assert {"log.txt", "steps.md", "README.md"} <= files.keys()
        assert (
            len(run.printed[run.printed.index("| first run" if "first run" in run.printed else "| second run") :])
            < 12000
        )


def test_the_first_run(runs: dict[str, Run]) -> None:
    run = runs["first"]
    assert run.steps() == {
        "install": "passed",
        "engines": "passed",
        "headlines": "killed",
        "tests": "out of time",
        "warm": "passed",
        "memcheck": "passed",
        "racecheck": "out of time",
        "synccheck": "passed",
        "initcheck": "skipped",
        "ncu": "passed",
    }, run.printed
    assert run.status == 1
    assert list(json.loads((run.out / "failed.json").read_text())) == ["trouble/test_trouble.py::test_wrong"]
    cases = run.results()["cases"]  # of the second, the row before its death
    assert [len(case["rows"]) for case in cases] == [2, 1]
    assert all("wall" in row for case in cases for row in case["rows"])
    page, log = (run.out / "README.md").read_text(), (run.out / "log.txt").read_text()
    for text in (
        "| racecheck | out of time |",
        "## Every row",
        "| void kernel<Rows, 3>(Job) | 17 | 17 | 17 | 17 | 17 |",
    ):
        assert text in page
    for text in ("test_hangs", "native CPU module", "replaying on the CPU", "b/dice_ce/float32/int64 auto"):
        assert text in log
    assert "| headlines | killed |" in run.printed
    assert f"{cases[0]['case']} | eager |" in run.printed.replace(" (noisy)", "")


def test_every_kernel_is_called_and_watched(runs: dict[str, Run]) -> None:
    log = (runs["first"].out / "log.txt").read_text()
    missing = re.findall(r"\w+\.\w+<[^>]*>", "".join(re.findall("^not launched: (.*)$", log, re.MULTILINE)))
    assert [name for name in missing if ".serial<" not in name] == []
    assert log.count(", 0 wrong") == 3  # the engines, and two tools


def test_the_second_run(runs: dict[str, Run]) -> None:
    run = runs["second"]
    parts = ("install", "engines", "tests", "racecheck", "table", "scaled", "scaling", "training")
    assert run.steps() == dict.fromkeys(parts, "passed") | {"racecheck": "skipped"}, run.printed
    assert run.status == 0
    assert (run.work / "inductor" / "made").exists()
    log = (run.out / "log.txt").read_text()
    assert "1 passed" in log
    assert "test_hangs" not in log
    results = run.results()
    assert not any(results["not_run"].values())
    assert len(results["cases"]) == 8
    for case in results["cases"]:
        assert {"segfuse", "eager", "compile"} <= {row["who"] for row in case["rows"]}
        assert all("wall" in row or "skipped" in row for row in case["rows"])
    assert {"MB", "us", "TB/s"} <= results["experiments"]["window"][0].keys()
    assert any("skipped" in row for row in results["experiments"]["scaled_loss"])
    assert {name: len(rows) for name, rows in results["scaling"].items()} == {"pixels": 12, "classes": 10, "threads": 3}
    for rows in results["scaling"].values():
        assert all(row["time"]["ours"]["us"] > 0 and row["copy_us"] > 0 and row["threads"] == 1 for row in rows)
    for name, rows in results["end_to_end"].items():
        assert {row["against"] for row in rows} == {"eager", "monai"}
        assert all(row["ours_share"] > 0 and row["theirs_peak_bytes"] > 0 for row in rows)
        assert {row["classes"] for row in rows} == {19 if name == "dice_ce" else 1}
    page = (run.out / "README.md").read_text()
    for part in ("## What failed", "## A training step", "### classes", "**window**", "## Every row"):
        assert (part in page) == (part != "## What failed")


def test_the_other_runs(runs: dict[str, Run]) -> None:
    bare, ended = runs["bare"], runs["ended"]
    assert list(bare.steps()) == ["install", "build"]
    assert all(verdict.startswith("failed") for verdict in bare.steps().values())
    assert ended.steps() == {"install": "passed", "tests": "passed", "ncu": "interrupted"}, ended.printed
    assert " passed, " in (ended.out / "log.txt").read_text()
    assert bare.status == ended.status == 1


def test_options() -> None:
    for arguments, status in ((["--help"], 0), (["third"], 1), ([], 1)):
        done = subprocess.run(["bash", ROOT / "bench" / "gpu.sh", *arguments], capture_output=True, text=True)
        assert done.returncode == status
        assert "bench/gpu.sh first" in done.stdout


def test_a_replay_sees_what_is_wrong(runs: dict[str, Run], tmp_path: Path, rehearsal: Rehearsal) -> None:
    """Every number of a gradient moved by a hundredth of the largest; a file that ends in the middle of an event."""
    code = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
import replay
events, changed = list(replay.events(replay.Path(sys.argv[2])))[:200], 0
with open(sys.argv[3], "wb") as file:
    for kind, *rest in events:
        if kind == "expect" and rest[0] == "gradient" and "float32" in rest[2]:
            rest[4] = rest[4] + 0.01 * abs(rest[4]).max()
            changed += 1
        pickle.dump((kind, *rest), file)
    file.write(b"\\x80")
print(changed)
"""
    bench, calls = str(ROOT / "bench"), str(runs["first"].work / "calls.pickle")
    bad = str(tmp_path / "bad.pickle")
    done = subprocess.run([rehearsal.python, "-c", code, bench, calls, bad], capture_output=True, text=True, check=True)
    changed = int(done.stdout)
    assert changed > 1
    command = [rehearsal.python, f"{bench}/replay.py", bad, "--module", rehearsal.shim]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("gradient off by") == changed
