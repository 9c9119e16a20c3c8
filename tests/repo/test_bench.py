"""The benches run, and compare what is the same function. Nothing here is about how long anything takes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
sys.path.append(str(BENCH))  # behind tests/support, which has a cases.py too

import formulas  # noqa: E402
import harness  # noqa: E402
import peers  # noqa: E402
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
ABSENT = ("is not installed", "No module named")


def run(*command: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def bench(script: str, *arguments: str) -> str:
    done = run(sys.executable, str(BENCH / f"{script}.py"), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of a few seconds leaves; a training step is in test_gpu_runs.py."""
    out = tmp_path_factory.mktemp("results")
    quick = ("--device", "cpu", "--out", str(out), "--quick", "--peers", "eager|monai|nnunet|smp")
    small = ("--shrink", "16", "--cases", "^c/dice_ce/float32/uint8$|^tiny4", "--threads", "1")
    assert "nnunet" in bench("run", *quick, *small, "--what", "cases", "scaling", "report")
    return out


def test_a_run_and_what_it_leaves(folder: Path) -> None:
    text = (folder / "cpu.json").read_text()
    results = json.loads(text)
    # A line for each row; numbers of five digits, and a 0 behind the point of whole ones.
    starts = [line[:8] for line in text.splitlines()]
    assert starts.count('{"who": ') == sum(len(case["rows"]) for case in results["cases"])
    assert max(len(digits.replace(".", "").lstrip("0")) for digits in re.findall(r"\b\d+\.\d+", text)) <= 6
    assert {"device", "cores", "torch", "segfuse", "peers", "options"} <= results.keys()
    assert str(folder) not in text
    assert not any(results["not_run"].values())
    assert [case["case"] for case in results["cases"]] == ["tiny4/dice_ce/float32/int64", "c/dice_ce/float32/uint8"]
    for case in results["cases"]:
        assert case["threads"] == 1
        assert case["copy_TB/s"] > 0
        assert isinstance(case["noisy"], bool)
        assert [row["who"] for row in case["rows"]] == ["segfuse", "eager", "monai", "nnunet", "smp"]
        for row in case["rows"]:
            if "skipped" in row:
                assert any(reason in row["skipped"] for reason in ABSENT)
                continue
            assert row["low"] <= row["ratio"] <= row["high"]
            assert 0 < row["p20"] <= row["us"] <= row["p80"]
            assert 0 <= row["dropped"] <= row["repeated"] <= row["rounds"] == 5
            assert ("forward_us" in row) == case["tiny"]
            assert row["of_floor"] > 0
            assert row["peak_bytes"] >= case["logit_bytes"]
            assert row["allocations"] >= 2
    # What the kernels say they move is what two passes have to; and nothing beside the gradient is large.
    ours = results["cases"][1]["rows"][0]
    assert ours["bytes_per_pixel"] == cases.bytes_per_pixel("kept", 4, 4, 1)
    assert ours["peak_bytes"] <= results["cases"][1]["logit_bytes"] + 4096


def test_the_report(folder: Path, tmp_path: Path) -> None:
    """From the JSON alone, again; a miss that is put into it is told."""
    results = json.loads((folder / "cpu.json").read_text())
    row = results["cases"][1]["rows"][1]
    row |= {"ratio": 0.5, "low": 0.4, "high": 0.6, "noisy": False}
    results["cases"][1]["rows"][2]["error"] = "AssertionError: another function"
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    (tmp_path / "README.md").write_text("before\n<!-- bench: cpu -->\nold\n<!-- /bench -->\nafter\n")
    readme = tmp_path / "readme"
    readme.write_text((tmp_path / "README.md").read_text())
    bench("report", str(tmp_path), "--readme", str(readme))
    page = (tmp_path / "README.md").read_text()
    assert "c/dice_ce/float32/uint8, 1 thread: slower than eager, 0.50 [0.40, 0.60]" in page
    assert "monai: AssertionError: another function" in page
    for part in ("## What a call costs", "### classes", "## Every row"):
        assert part in page
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"cpu-{name}.png" for name in ("ratios", "memory", "roofline", "scaling")
    }
    assert all(f"({path.name})" in page for path in tmp_path.glob("*.png"))
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench: cpu -->\n| forward + backward")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "([all rows](README.md))" in text
    assert "old" not in text
    readme.write_text("no marks")
    assert run(sys.executable, str(BENCH / "report.py"), str(tmp_path), "--readme", str(readme)).returncode != 0
    assert run(sys.executable, str(BENCH / "report.py"), str(tmp_path / "nothing")).returncode != 0


def test_the_table_of_the_readme(folder: Path) -> None:
    """Its rows are the headlines and the pointwise losses of the core; the marks are there."""
    report = load("report")
    results = {**json.loads((folder / "cpu.json").read_text())}
    core = results["cases"][1] | {"core": True, "headline": True, "case": "c/dice_ce/float32/int64"}
    plain = core | {"headline": False, "case": "c/ce/float32/int64"}
    region = core | {"headline": False, "case": "c/dice/float32/int64"}
    lines = list(report.short_table(results | {"cases": [*results["cases"], core, plain, region]}))
    assert len(lines) == 4
    assert lines[2].startswith("| Dice + CE, 4 classes, 1x4x6x6x6 | ")
    assert lines[3].startswith("| CE, 4 classes, 1x4x6x6x6 | ")
    text = (ROOT / "README.md").read_text()
    assert 0 < text.find("<!-- bench: cpu -->") < text.find("<!-- /bench -->")


def test_the_parts_do_not_share_their_threads(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--out", str(tmp_path), "--quick", "--shrink", "256", "--peers", "eager")
    arguments += ("--cases", "^a/bce", "--threads", "1", "--what", "cases", "scaling")
    assert run(sys.executable, str(BENCH / "run.py"), *arguments, threads=2).returncode == 0
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert [case["threads"] for case in results["cases"]] == [1]
    assert {row["threads"] for row in results["scaling"]["pixels"]} == {2}
    assert [row["threads"] for row in results["scaling"]["threads"]] == [1, 2] * 3


def test_a_digest_of_much(tmp_path: Path) -> None:
    """It fits, begins with how the parts went, and says that there is more."""
    (tmp_path / "cpu.json").write_text((ROOT / "bench" / "results" / "amd-epyc-avx512-2cores" / "cpu.json").read_text())
    (tmp_path / "steps.md").write_text("| first run | | seconds | |\n")
    text = load("digest").digest(tmp_path)
    assert 10_000 < len(text) < 12_000
    assert text.startswith("| first run |")
    assert "| b/dice_ce/float32/int64 | nnunet | " in text
    assert text.endswith("\n... more in README.md")


# Runs in turn in one process, for most of a short one is the import of torch; RESULTS after each as 0.json, 1.json ...
IN_TURN = """
import json, pathlib, runpy, shutil, sys
script, results, *runs = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(script).parent))
for i, arguments in enumerate(runs):
    sys.argv = [script, *json.loads(arguments)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
    shutil.copy(results, pathlib.Path(results).with_name(f"{i}.json"))
"""


def test_rows_that_a_run_leaves_out_stay(tmp_path: Path) -> None:
    common = ("--device", "cpu", "--out", str(tmp_path), "--shrink", "256", "--peers", "nobody", "--threads", "1")
    late = ("--cases", "^a/focal/", "--seconds", "-1")  # nothing is measured
    runs = (("--cases", "^a/bce/", "--quick"), ("--cases", "^a/(bce|focal)/", "--quick"), (*late, "--quick"), late)
    each = [json.dumps([*common, "--what", "cases", *arguments]) for arguments in runs]
    done = run(sys.executable, "-c", IN_TURN, str(BENCH / "run.py"), str(tmp_path / "cpu.json"), *each)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, third, fourth = (json.loads((tmp_path / f"{i}.json").read_text())["cases"] for i in range(4))
    assert [row["case"] for row in second] == ["a/bce/float32/float32", "a/focal/float32/float32"]
    assert second[0]["case"] == first[0]["case"]
    assert second[0] != first[0]
    assert third == second[:1]
    assert fourth == []  # rows of a quick run are no rows of this one


def test_no_time_left(tmp_path: Path) -> None:
    bench("run", "--device", "cpu", "--shrink", "64", "--seconds", "-1", "--out", str(tmp_path), "--threads", "1")
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["cases"] == []
    assert len(results["not_run"]["cases"]) == len(TABLE["cpu"])
    assert len(results["not_run"]["scaling"]) == 3
    assert "- not run: cases, b/dice_ce" in (tmp_path / "README.md").read_text()


def test_a_round_that_something_disturbed_is_done_again_then_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(*rounds: tuple[float, ...]) -> dict[str, object]:
        """Of a clock that says so: copy, ours, theirs, theirs, ours of each try, after six calls that calibrate."""
        said = iter([1.0] * 6 + [value for one in rounds for value in one])
        monkeypatch.setattr(harness.Clock, "seconds", lambda *_: next(said))
        step = harness.Step(torch.add, [(torch.zeros(1), torch.zeros(1))])
        found = harness.compare(step, step, harness.Setting("cpu", quick=True), lambda: None)
        assert next(said, None) is None
        return found

    good, bad, copied = (1.0, 1.0, 2.0, 2.0, 1.0), (1.0, 1.0, 2.0, 2.0, 5.0), (9.0, 1.0, 2.0, 2.0, 1.0)
    found = compared(good, bad, good, copied, good, good, bad, bad)
    assert (found["ratio"], found["low"], found["high"]) == (2.0, 2.0, 2.0)
    assert (found["repeated"], found["dropped"], found["rounds"], found["noisy"]) == (3, 1, 5, False)
    found = compared(*[bad] * 10)
    assert (found["repeated"], found["dropped"], found["noisy"]) == (5, 5, True)
    assert found["ratio"] == pytest.approx(4 / 6)


def test_memory_is_counted() -> None:
    def step() -> torch.Tensor:
        first = torch.empty(1000)
        del first
        return torch.empty(500), torch.empty(3000)

    found = harness.memory(step, "cpu")
    assert found == {"peak_bytes": 14000, "allocations": 3}


@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignored"])
@pytest.mark.parametrize("case", TABLE["cpu"], ids=lambda case: case.name)
def test_the_peers_are_the_same_function(case: object, ignored: bool) -> None:
    """The formulas, and the packages where they are installed."""
    ignore = cases.IGNORED if ignored else None
    sets = [case.inputs("cpu", 0, "blobs", 0.1 * ignored)]
    found = set()
    for packages in (False, True):
        for peer in peers_of(case.loss, case.classes, len(case.shape) - 2, ignore, packages):
            if peer.loss is None:
                assert any(reason in peer.label for reason in ABSENT)
            elif peer.name != "compile":
                loss = under_autocast(peer.loss, "cpu", sets[0][0].dtype)
                ours = Contender("segfuse", case.ours(ignore, **peer.options), sets)
                check_equal(ours, Contender(peer.label, loss, sets), peer.offset)
                found.add(peer.name)
    wanted = {"eager", "monai"} if not ignored and case.loss in ("dice", "dice_bce", "dice_ce") else {"eager"}
    assert found >= wanted | ({"nnunet"} if case.loss == "dice_ce" else set())


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LIBRARIES", dict.fromkeys(peers.LIBRARIES, peers.Library("nothing", "nothing")))
    found = {peer.name: peer for peer in peers_of("dice_ce", 4, 2)}
    assert found["monai"].label == "formula of monai's dice_ce (nothing is not installed)"
    assert found["monai"].loss is formulas.monai_dice_ce
    assert (found["smp"].loss, found["smp"].label) == (None, "nothing is not installed")


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
    assert len(set(names)) == len(names) == 2 * (5 + 2) + 2 * (5 + 2 + 1) + 2
    head = names[:8]
    assert {name.split("/")[0] for name in head} == set("ABCD")
    assert all(name.split("/")[1] in ("dice_bce", "dice_ce") for name in head)
    for case in TABLE["cpu"]:
        logits, _ = case.inputs("cpu", 0)
        if case.layout == "channels_last":
            assert logits.stride(1) == 1
        assert logits.is_contiguous() == (case.layout == "contiguous")


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
    for scheme in ("gradient_in_forward", "one_pass"):
        assert case.bytes_per_pixel(scheme) == one_pass
    assert case.pixels == (33554432 if workload == "D" else 4194304)
