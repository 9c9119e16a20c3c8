"""What the README shows runs as it stands: its example, and the main job on each kind of data."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def example(program: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """On one thread: other tests use the other cores, and threads that wait for one another at a barrier burn them."""
    command = [sys.executable, str(ROOT / "examples" / program), "--quick", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def write_folder(path: Path, classes: int, size: int = 48) -> None:
    """Four images of bright discs, the masks 0/255 or a label map, in three file formats."""
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    y, x = np.mgrid[:size, :size]
    for i, suffix in enumerate(("png", "tiff", "npy", "png", "png", "tiff")):
        mask = np.zeros((size, size), np.uint8)
        for c in range(1, classes):
            row, column = RNG.integers(10, size - 10, 2)
            mask[(y - row) ** 2 + (x - column) ** 2 < 64] = c
        image = (60 * mask + RNG.integers(0, 40, mask.shape)).astype(np.uint8)
        stored = mask * 255 if classes == 2 else mask
        for kind, array in (("images", image), ("masks", stored)):
            name = path / kind / f"disc{i}.{suffix}"
            np.save(name, array) if suffix == "npy" else Image.fromarray(array).save(name)


@pytest.mark.parametrize(
    ("data", "loss"),
    [
        ("synthetic", "dice + 0.5*bce"),
        ("synthetic-multiclass", "dice + 0.5*ce"),
        ("coins", "tversky(alpha=0.3, beta=0.7) + 0.5*focal(gamma=2)"),
        ("folder-2", "jaccard + bce"),
        ("folder-3", "focal_tversky(gamma=1.3) + ce"),
    ],
)
def test_the_main_job(tmp_path: Path, data: str, loss: str) -> None:
    if data.startswith("folder"):
        write_folder(tmp_path / "data", int(data[-1]))
        data = str(tmp_path / "data")
    done = example("train.py", tmp_path, "--data", data, "--loss", loss, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {"curves.png", "predictions.png", "metrics.json"} <= files
    metrics = json.loads(next((tmp_path / "out").rglob("metrics.json")).read_text())
    losses = [epoch["loss"] for epoch in metrics["epochs"]]
    assert losses[-1] < losses[0]
    for name in ("IoU", "recall", "specificity", "F1"):
        assert name in done.stdout


def test_the_comparison(tmp_path: Path) -> None:
    losses = "dice + 0.5*bce; adaptive_log(tversky(alpha=0.3, beta=0.7), gamma=0.2); combo"
    done = example("compare_losses.py", tmp_path, "--losses", losses, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "roc.png", "results.json"}
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == losses.split("; ")
    assert lines[0] == "| loss | recall | specificity | Jaccard | F-measure | AUC |"
    content = json.loads((tmp_path / "results.json").read_text())
    for runs in content["results"].values():
        assert len(runs) == 2
        assert all(0.5 < run["auc"] < 1 for run in runs)
        assert runs[0] != runs[1]


def test_the_area_by_ranking_is_exact() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    import compare_losses

    for scores in (RNG.normal(size=999), RNG.integers(0, 7, 999), np.zeros(999)):
        labels = RNG.random(999) < 0.1
        expected = sklearn.metrics.roc_auc_score(labels, scores)
        assert compare_losses.ranked_area(scores, labels) == pytest.approx(expected, rel=1e-12)


MISTAKES = {
    ("--loss", "adaptive_log(ce)"): "ce",
    ("--loss", "adaptive_log(dice, omega=0)"): "omega must be > 0",
    ("--loss", "adaptive_log(dice + bce)"): "base must be one region loss",
    ("--loss", "dise"): 'there is no loss "dise"',
    ("--loss", "ce"): "bce",
    ("--loss", "dice(smooth=-1)"): "smooth must lie in",
    ("--loss", "dice * 2 +"): "--loss",
    ("--data", "nowhere"): "nowhere",
}
# All in one process, because a process takes seconds to import torch. An exception that train.py lets out ends it.
ANSWER_ALL = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
import train
for arguments in json.loads(sys.argv[2]):
    sys.argv, said = ["train.py", "--quick", *arguments], io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = train.main()
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str]]:
    """Exit status and error output of train.py, by its arguments."""
    command = [sys.executable, "-c", ANSWER_ALL, str(ROOT / "examples"), json.dumps(list(MISTAKES))]
    folder = tmp_path_factory.mktemp("mistakes")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return dict(zip(MISTAKES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes_on_the_command_line(
    arguments: tuple[str, str], answers: dict[tuple[str, str], tuple[int, str]]
) -> None:
    status, said = answers[arguments]
    assert status == 2
    assert MISTAKES[arguments] in said


def test_the_example_of_the_readme() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0.5 * DiceLoss('multiclass', ignore_index=255) + CrossEntropyLoss()" in done.stdout
