"""Formatting, settled by machine; test_types.py has the types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "csrc", ROOT / "tests")
SOURCES = sorted(str(p) for folder in FOLDERS for p in folder.rglob("*") if p.suffix in (".h", ".cpp", ".cu"))

COMMANDS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "clang-format": ["clang-format", "--dry-run", "-Werror", *SOURCES],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_style(name: str) -> None:
    command, *arguments = COMMANDS[name]
    tool = Path(sys.executable).with_name(command)
    done = subprocess.run([str(tool), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
