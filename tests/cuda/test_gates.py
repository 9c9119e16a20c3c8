"""The machine code of the CUDA kernels, without a GPU: every architecture, no spills, few instructions."""

import re
import zlib
from pathlib import Path

import pytest

import gates
from environment import REQUIRED, leave_out
from turns import Code

LARGEST_WHEEL = 20_000_000  # bytes of the module, compressed as in a wheel


@pytest.fixture(scope="module")
def module() -> Path:
    found = gates.installed_module()
    if found is None:
        leave_out("segfuse was built without nvcc")
    return found


@pytest.fixture(scope="module")
def used(module: Path) -> dict[str, dict[str, gates.Usage]]:
    return {name: by_arch for name, by_arch in gates.usage(module).items() if gates.is_hot(name)}


@pytest.fixture(scope="module")
def codes(module: Path) -> dict[str, Code]:
    if gates.MEASURED not in gates.architectures(module, "elf"):
        leave_out(f"no machine code for {gates.MEASURED}")
    return gates.code(module)


def test_every_architecture_is_there(module: Path) -> None:
    """Names are those of CMake: 90-virtual is PTX, 90-real is machine code, 90 is machine code and perhaps PTX."""
    from segfuse import _cuda

    names = _cuda.architectures.split(",")
    assert all(re.fullmatch(r"\d+[af]?(-real|-virtual)?", name) for name in names), names
    virtual = {f"sm_{name.removesuffix('-virtual')}" for name in names if name.endswith("-virtual")}
    real = {f"sm_{name.removesuffix('-real')}" for name in names if not name.endswith("-virtual")}
    ptx = gates.architectures(module, "ptx")
    assert gates.architectures(module, "elf") == real
    assert ptx >= virtual
    if REQUIRED:
        assert ptx, "no PTX, so nothing for later GPUs"
        assert real == {arch for row in gates.table().values() for arch in row["registers"]}


def test_the_table_has_the_hot_kernels(used: dict[str, dict[str, gates.Usage]]) -> None:
    """After a change of kernels or architectures: python tools/gates.py --write."""
    assert used.keys() == gates.table().keys()


def test_no_spills_and_registers(used: dict[str, dict[str, gates.Usage]]) -> None:
    """Nothing on the stack. The number of registers decides how many blocks run on a processor at once."""
    wrong = []
    for name, by_arch in used.items():
        limits = gates.table().get(name, {}).get("registers", {})
        for arch, usage in by_arch.items():
            limit = limits.get(arch, 255)
            if usage.stack or usage.local or usage.registers > limit:
                wrong.append(f"{name}, {arch}: {usage}, {limit} registers allowed")
    assert not wrong, "\n".join(wrong)


def test_no_local_memory(codes: dict[str, Code]) -> None:
    assert not [name for name, code in codes.items() if code.total["local"]]


def test_wide_accesses_and_instructions_per_pixel(codes: dict[str, Code]) -> None:
    wrong = []
    for name, row in gates.table().items():
        if "instructions" not in row or name not in codes:
            continue
        code = codes[name]
        if code.instructions is None:
            wrong.append(f"{name}: no way through a loop with every logit, label and gradient in 16-byte accesses")
        elif code.instructions > gates.SLACK * row["instructions"]:
            wrong.append(f"{name}: {code.instructions:.1f} instructions per pixel, {row['instructions']} in the table")
        if code.turn["double"] * row["pixels"] > row["double"] * code.pixels:
            wrong.append(f"{name}: more float64 than in the table")
    assert not wrong, "\n".join(wrong)
    assert any("instructions" in row for row in gates.table().values())


def test_what_the_model_of_the_roof_counts(codes: dict[str, Code]) -> None:
    """Neither more nor less than in the table: docs/performance.md is computed from these numbers."""
    wrong = []
    table = gates.table()
    for name, row in table.items():
        for what, cost in codes[name].costs.items() if name in codes else ():
            if not row[what] / gates.SLACK <= round(cost, 1) <= row[what] * gates.SLACK:
                wrong.append(f"{name}, {what}: {cost:.1f} instructions, {row[what]} in the table")
    assert not wrong, "\n".join(wrong)
    assert any(code.costs for code in codes.values())


def test_the_module_is_small_enough_for_a_wheel(module: Path) -> None:
    assert len(zlib.compress(module.read_bytes(), 6)) <= LARGEST_WHEEL
