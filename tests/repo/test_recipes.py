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


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, tmp_path: Path) -> None:
    code = RECIPES[name]
    if code.startswith("# lightning") and not importlib.util.find_spec("lightning"):
        pytest.skip("lightning is not installed: it is heavy")
    (tmp_path / "recipe.py").write_text(code)
    command = [sys.executable, "recipe.py"]
    if code.startswith("# ranks"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "recipe.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
