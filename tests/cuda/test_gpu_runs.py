"""Both runs of bench/gpu.sh rehearsed without a GPU, from the first line to the report, with failures of all kinds.

It runs in a copy of what git tracks, with a wheel, on the CUDA sources built for the CPU. It takes Python 3.12, which
machines with a GPU have, if that has torch and dist/ has a wheel for it; else the Python of the tests.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from environment import DEVICE, ROOT, SHIM
from rehearsal import DRIVER, Rehearsal, Run, other_python

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="takes the device into its own hands")


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
    cases = run.results()["cases"]  # the second has only the row before the process died
    assert [len(case["rows"]) for case in cases] == [2, 1]
    assert all("us" in row for case in cases for row in case["rows"])
    page, log = (run.out / "README.md").read_text(), (run.out / "log.txt").read_text()
    for text in (
        "| racecheck | out of time |",
        "## Every row",
        "| kernel<LabelMap<float, 19>, 3> | 17 | 17 | 17 | 17 | 17 |",
    ):
        assert text in page
    for text in ("test_hangs", "native CPU module", "replaying on the CPU", "b/dice_ce/float32/int64 auto"):
        assert text in log
    assert "| headlines | killed |" in run.printed
    assert f"{cases[0]['case']} | eager |" in run.printed.replace(" (noisy)", "")


def test_every_kernel_is_called_and_watched(runs: dict[str, Run]) -> None:
    log = (runs["first"].out / "log.txt").read_text()
    assert re.findall("^not launched: (.*)$", log, re.MULTILINE) == []
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
        assert all("us" in row or "skipped" in row for row in case["rows"])
    assert {"MB", "us", "TB/s"} <= results["experiments"]["window"][0].keys()
    assert any("skipped" in row for row in results["experiments"]["scaled_loss"])
    assert {name: len(rows) for name, rows in results["scaling"].items()} == {"pixels": 12, "classes": 10, "threads": 3}
    for rows in results["scaling"].values():
        assert all(row["ours_us"] > 0 and row["copy_us"] > 0 and row["threads"] == 1 for row in rows)
    for name, rows in results["end_to_end"].items():
        assert {row["against"] for row in rows} == {"eager", "monai"}
        assert all(row["ours_loss_us"] > 0 and row["peak_bytes"] > 0 for row in rows)
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
    """Gradients that are off by a hundredth of the largest element, and a file that ends in the middle of an event."""
    code = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
import replay
events, changed = list(replay.events(replay.Path(sys.argv[2])))[:400], 0
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


def test_a_replay_by_the_driver(runs: dict[str, Run], tmp_path: Path, rehearsal: Rehearsal) -> None:
    """Against a fake libcuda.so.1 with the functions of the driver."""
    (tmp_path / "driver.cpp").write_text(DRIVER)
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run(["g++", "-shared", "-fPIC", str(tmp_path / "driver.cpp"), "-o", library], check=True)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import replay
calls, module = map(replay.Path, sys.argv[2:])
memory = replay.Gpu()
found = replay.Replay(replay.load(module), memory)
for kind, *rest in list(replay.events(calls))[:200]:
    if kind == "sequence":
        memory.free()
        found.addresses.clear()
    else:
        found.event(kind, *rest)
print(memory.name, found.calls > 20, found.wrong)
memory.allocate(0, None)
"""
    command = [
        rehearsal.python,
        "-c",
        code,
        str(ROOT / "bench"),
        str(runs["first"].work / "calls.pickle"),
        rehearsal.shim,
    ]
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "fake True 0\n", done.stdout + done.stderr
    assert "RuntimeError: cuMemAlloc_v2: an error (1)" in done.stderr
