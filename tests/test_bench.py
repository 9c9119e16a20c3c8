"""The benches run, and compare what is the same function. Nothing here is about how long anything takes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
sys.path.append(str(BENCH))  # behind this folder, which has a cases.py too

from harness import Contender, check_equal, under_autocast  # noqa: E402
from peers import peers_of  # noqa: E402


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cases = load("cases")
TABLE = {device: list(cases.table(device, shrink=16)) for device in ("cpu", "cuda")}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def bench(script: str, *arguments: str) -> str:
    done = run(sys.executable, str(BENCH / f"{script}.py"), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_and_what_it_leaves(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--out", str(tmp_path))
    quick = ("--quick", "--shrink", "16", "--threads", "1", "--cases", "^c/dice_ce/float32/uint8$")
    printed = bench("run", *arguments, *quick, "--peers", "eager|monai|nnunet")
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert {"device", "torch", "segfuse", "options", "cases", "not_run"} <= results.keys()
    assert str(tmp_path) not in json.dumps(results)
    (case,) = results["cases"]
    assert case["case"] == "c/dice_ce/float32/uint8"
    assert case["threads"] == 1
    assert case["copy_TB/s"] > 0
    assert isinstance(case["noisy"], bool)
    assert [row["who"] for row in case["rows"]] == ["segfuse", "eager", "monai", "nnunet"]
    for row in case["rows"]:
        assert row["who"] in printed
        assert row["wall"]["low"] <= row["wall"]["ratio"] <= row["wall"]["high"]
        assert row["wall"]["theirs"]["p20"] <= row["wall"]["theirs"]["us"] <= row["wall"]["theirs"]["p80"]
        assert row["of_floor"] > 0
        assert row["peak_bytes"] is None
    # What the kernels say they move is what two passes have to.
    assert case["rows"][0]["bytes_per_pixel"] == cases.bytes_per_pixel("two_pass", 4, 4, 1)

    bench("experiments", *arguments, "--shrink", "64", "--only", "window|scaled_loss")
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert len(results["cases"]) == 1
    assert {"MB", "us", "TB/s"} <= results["experiments"]["window"][0].keys()
    assert any("skipped" in row for row in results["experiments"]["scaled_loss"])
    table = bench("summary", str(tmp_path))
    assert "| c/dice_ce/float32/uint8 (1 threads)" in table
    assert "**window**" in table


def test_no_time_left(tmp_path: Path) -> None:
    bench("run", "--device", "cpu", "--shrink", "64", "--seconds", "-1", "--out", str(tmp_path), "--threads", "1")
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["cases"] == []
    assert len(results["not_run"]) == len(TABLE["cpu"])
    assert "not run: " in bench("summary", str(tmp_path))


@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignored"])
@pytest.mark.parametrize("case", TABLE["cpu"], ids=lambda case: case.name)
def test_the_peers_are_the_same_function(case: object, ignored: bool) -> None:
    """The formulas, and the packages where they are installed."""
    ignore = cases.IGNORED if ignored else None
    sets = [case.inputs("cpu", 0, "blobs", 0.1 * ignored)]
    found = set()
    for packages in (False, True):
        for peer in peers_of(case.loss, case.classes, ignore, packages):
            if peer.name != "compile":
                loss = under_autocast(peer.loss, "cpu", sets[0][0].dtype)
                ours = Contender("segfuse", case.ours(ignore, **peer.options), sets)
                check_equal(ours, Contender(peer.label, loss, sets), peer.offset)
                found.add(peer.name)
    wanted = {"eager"} if ignored or case.loss in ("bce", "ce") else {"eager", "monai"}
    assert found >= wanted | ({"nnunet"} if case.loss == "dice_ce" else set())


def test_what_is_not_the_same_is_not_timed() -> None:
    case = TABLE["cpu"][0]
    sets = [case.inputs("cpu", 0)]
    ours, other = (Contender("", case.ours(smooth=smooth), sets) for smooth in (1e-5, 100.0))
    check_equal(ours, ours)
    with pytest.raises(AssertionError, match="against"):
        check_equal(ours, other)


@pytest.mark.parametrize("labels", ["blobs", "iid"])
def test_inputs(labels: str) -> None:
    for case in TABLE["cpu"]:
        logits, target = case.inputs("cpu", 3, labels, 0.1)
        again = case.inputs("cpu", 3, labels, 0.1)
        assert torch.equal(target, again[1])
        assert torch.equal(logits, again[0])
        valid = target != cases.IGNORED
        assert 0 < valid.sum() < valid.numel()
        assert target[valid].max() < max(case.classes, 2)


def test_the_table_is_whole_and_its_order_is_by_weight() -> None:
    names = [case.name for case in TABLE["cuda"]]
    assert len(set(names)) == len(names) == 2 * 4 * 4 + 2 * 2 * 4
    head = names[:8]
    assert {name.split("/")[0] for name in head} == set("ABCD")
    assert all(name.split("/")[1] in ("dice_bce", "dice_ce") for name in head)


@pytest.mark.parametrize(
    ("workload", "dtype", "target", "two_pass", "one_pass"),
    [
        ("A", "float32", "float32", 20, 12),
        ("A", "float32", "uint8", 14, 9),
        ("A", "bfloat16", "uint8", 8, 5),
        ("B", "float32", "int64", 244, 160),
        ("B", "bfloat16", "uint8", 116, 77),
        ("C", "float32", "int64", 64, 40),
        ("C", "bfloat16", "int64", 40, 24),
        ("D", "float32", "float32", 20, 12),
    ],
)
def test_bytes_per_pixel(workload: str, dtype: str, target: str, two_pass: int, one_pass: int) -> None:
    case = cases.Case(workload, cases.WORKLOADS["cuda"][workload], "", dtype, target)
    assert case.bytes_per_pixel("two_pass") == two_pass
    for scheme in ("gradient_in_forward", "sample_serial", "one_pass"):
        assert case.bytes_per_pixel(scheme) == one_pass
    assert case.pixels == (33554432 if workload == "D" else 4194304)


def test_what_compute_sanitizer_watches_is_right() -> None:
    assert " 0 wrong" in bench("sanitize", "--device", "cpu", "--stride", "5")


def test_the_steps_on_a_gpu() -> None:
    done = run("bash", str(BENCH / "gpu.sh"), "--dry-run")
    assert done.returncode == 0, done.stderr
    steps = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert steps == ["environment", "build", "tests", "sanitize", "bench", "ncu"]
    for part in ("SEGFUSE_CUDA=ON", "tests/test_cuda.py", "racecheck", "bench/experiments.py", "--clock-control none"):
        assert part in done.stdout
    assert run("bash", str(BENCH / "gpu.sh"), "--wrong").returncode != 0
