"""The blocks of docs/recipes.md run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from environment import DEVICE, ROOT, SHIM

pytestmark = pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="processes on the CPU")


def recipes() -> dict[str, str]:
    text = (ROOT / "docs" / "recipes.md").read_text()
    found = {}
    for section in text.split("\n## ")[1:]:
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        found[section.splitlines()[0]] = code
    return found


RECIPES = recipes()
OF_RANKS = [name for name, code in RECIPES.items() if code.startswith("# ranks")]
LIGHTNING = [name for name, code in RECIPES.items() if code.startswith("# lightning")]
# The others run one after another in one process, because a process takes seconds to import torch.
RUN_ALL = """
import runpy, sys, traceback
for path in sys.argv[1:]:
    try:
        runpy.run_path(path, run_name="__main__")
    except BaseException:
        with open(path + ".failed", "w") as file:
            traceback.print_exc(file=file)
    else:
        open(path + ".passed", "w").close()
"""


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each recipe of one process, or ""."""
    folder = tmp_path_factory.mktemp("recipes")
    paths = {name: folder / f"recipe{i}.py" for i, name in enumerate(RECIPES) if name not in OF_RANKS}
    for name, path in paths.items():
        path.write_text(RECIPES[name])
    if not importlib.util.find_spec("lightning"):
        paths = {name: path for name, path in paths.items() if name not in LIGHTNING}
    done = run("-c", RUN_ALL, *map(str, paths.values()), folder=folder)
    crash = f"ended with status {done.returncode}: {done.stderr[-4000:]}"
    found = {}
    for name, path in paths.items():
        failed, passed = Path(f"{path}.failed"), Path(f"{path}.passed")
        found[name] = "" if passed.exists() else failed.read_text() if failed.exists() else crash
    return found


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OF_RANKS])
def test_recipe(name: str, ended: dict[str, str]) -> None:
    if name not in ended:
        pytest.skip("lightning is not installed: it is heavy")
    assert ended[name] == ""


@pytest.mark.parametrize("name", OF_RANKS)
def test_recipe_of_ranks(name: str, tmp_path: Path) -> None:
    """They leave without torch's shutdown: with gloo it aborts in one of ten runs, of plain DDP without segfuse too."""
    (tmp_path / "recipe.py").write_text(RECIPES[name] + "import os\n\nos._exit(0)\n")
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "recipe.py", folder=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
