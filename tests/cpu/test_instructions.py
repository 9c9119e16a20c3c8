"""The CPU kernels stay as lean as they were tuned to be: within the budgets of instructions.py."""

import platform

import pytest

from instructions import CASES, per_pixel
from segfuse import _C

COUNTED = [(name, s) for name, case in CASES.items() for s in _C.instruction_sets() if s in case.budget]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the stepper reads registers of x86-64")
@pytest.mark.parametrize(("name", "instruction_set"), COUNTED)
def test_instructions_per_pixel(name: str, instruction_set: str) -> None:
    case = CASES[name]
    most_forward, most_backward = case.budget[instruction_set]
    forward, backward = per_pixel(case, instruction_set)
    assert most_forward / 3 < forward <= most_forward  # far less would be the count of something else
    assert backward <= most_backward
