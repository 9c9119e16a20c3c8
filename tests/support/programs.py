"""Compiles and runs the C++ programs of tests/cpu, which call formulas of csrc without an engine."""

import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from environment import ROOT

FLAGS = ("-std=c++17", "-O0", "-g1", "-fsanitize=address")  # with UBSan, head.cpp compiles twice as long


class Programs:
    """dual.cpp, pixel.cpp, head.cpp: each is compiled when it first runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, said: str = "") -> list[list[str]]:
        """The words of each line that it prints."""
        program = self.folder / name
        if not program.exists():
            source = ROOT / "tests" / "cpu" / f"{name}.cpp"
            subprocess.run(["g++", *FLAGS, f"-I{ROOT}", str(source), "-o", str(program)], check=True)
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run([str(program)], input=said, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.split() for line in done.stdout.splitlines()]


def numbers(words: list[str]) -> Tensor:
    return torch.tensor([float(word) for word in words], dtype=torch.float64)
