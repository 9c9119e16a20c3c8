"""Features of PyTorch x kinds of losses: each cell is right, or refused with an error that says so.

PYTHONPATH=tests/support python tests/torch/test_matrix.py --write     writes docs/integration.md from these tables
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from features import FAMILIES, FEATURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integration.md"

# Cells that are refused, by what the error says. Every other cell must work.
REFUSED: dict[tuple[str, str], str] = {
    ("second derivative, compiled", family): "aot_autograd|second derivative|double backward" for family in FAMILIES
}
# Features that have their tests in another file.
ELSEWHERE = {
    "DDP, unequal batches, `process_group=`": "tests/torch/test_distributed.py",
    "FSDP": "tests/repo/test_recipes.py",
    "DTensor: replicated, sharded along batch or space": "tests/torch/test_distributed.py",
    "five shapes, at most two compilations": "tests/torch/test_compile.py",
    "a schedule of coefficients, no recompilation": "tests/torch/test_compile.py",
    "threads, fork": "tests/torch/test_ops.py",
    "CUDA graphs, side streams (only on a GPU)": "tests/cuda/test_device.py",
}


# What tools/large.py printed.
LARGE = (
    "2152960000 bfloat16 logits: 14 s forward and backward, peak memory 11.2 GB",
    "loss 0.693925083, in float64 0.693925059: 3.4e-08 of it apart",
    "gradient: no element is further than 3.86e-03 of itself from float64; bfloat16 rounds by 3.91e-03",
)
# Mistakes of a custom operator that give wrong results without an error, or kill the process; and the tests.
TRAPS = {
    "a raw call on a fake or meta tensor reads address 0": (
        "tests/torch/test_compile.py::test_fake_and_meta_tensors",
        "tests/torch/test_compile.py::test_kernels_refuse_what_has_no_storage",
    ),
    "`make_fx` and `torch.jit.trace` bake the loss in as a constant": (
        "tests/torch/test_compile.py::test_a_trace_keeps_the_loss",
    ),
    "`create_graph=True`: a second derivative that is wrong": (
        "tests/torch/test_ops.py::test_second_derivative",
        "tests/torch/test_ops.py::test_gradcheck_of_every_order",
    ),
    "`torch.compile(torch.func.grad(loss))` gives zeros": (
        "tests/torch/test_compile.py::test_compiled_higher_orders_raise_or_are_right",
    ),
    "`func.grad`, `jacrev`: an operator's own autograd cannot run": (
        "tests/torch/test_ops.py::test_every_route_gives_the_same_gradient",
        "tests/torch/test_compile.py::test_a_parameter_as_coefficient",
    ),
    "`vmap` by the slow fallback, or not at all": ("tests/torch/test_ops.py::test_vmap",),
    "forward mode: a tangent of None": (
        "tests/support/features.py::forward_mode",
        "tests/torch/test_ops.py::test_gradcheck_of_every_order",
    ),
    "MetaTensor takes the slow route and comes out again": (
        "tests/torch/test_ops.py::test_subclasses_modes_and_terms",
    ),
    "DTensor: no sharding strategy": ("tests/torch/test_distributed.py::test_three_ranks_of_dtensors",),
    "a kernel writes over logits that something else saved": ("tests/torch/test_ops.py::test_the_rules_of_autograd",),
    "an upstream gradient of stride 0": (
        "tests/cpu/test_layout.py::test_upstream_without_strides",
        "tests/torch/test_ops.py::test_every_route_gives_the_same_gradient",
    ),
    "inductor hands over other strides": (
        "tests/torch/test_compile.py::test_inductor_keeps_strides",
        "tests/torch/test_compile.py::test_opcheck",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:User provided device_type of:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("feature", FEATURES)
def test_cell(feature: str, family: str) -> None:
    loss = FAMILIES[family]()
    message = REFUSED.get((feature, family))
    errors = (RuntimeError, NotImplementedError)
    refused: Any = nullcontext() if message is None else pytest.raises(errors, match=message)
    with refused:
        FEATURES[feature](loss)


def page() -> str:
    lines = [
        "# Integration with PyTorch",
        "",
        "Every cell is a test of `tests/torch/test_matrix.py`: value and gradient are those of the plain eager call,",
        "or there is an error that says so. The same file writes this page.",
        "",
        f"| | {' | '.join(FAMILIES)} |",
        "|---" * (len(FAMILIES) + 1) + "|",
    ]
    for feature in FEATURES:
        cells = ["error" if (feature, family) in REFUSED else "yes" for family in FAMILIES]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    lines += ["", "Tested elsewhere, for compounds:", "", "| | test |", "|---|---|"]
    lines += [f"| {feature} | `{test}` |" for feature, test in ELSEWHERE.items()]
    lines += ["", "Known traps of custom operators:", "", "| | test |", "|---|---|"]
    lines += [f"| {trap} | {', '.join(f'`{test}`' for test in tests)} |" for trap, tests in TRAPS.items()]
    lines += [
        "",
        "The second derivative of a loss in eager mode is that of its reference (`segfuse.reference`), at no cost to",
        "the first; with a `process_group` there is only the first. How to use these: [recipes](recipes.md). Older",
        "releases of torch: [versions](versions.md).",
        "",
        "Limits: a compound holds at most 4 pointwise and 8 region losses; `torch.jit.script` takes no loss",
        "(`torch.jit.trace` does); logits have at most 16 spatial dimensions that do not merge.",
        "",
        "## More than 2^31 elements",
        "",
        "`tests/cpu/test_engine.py` runs 2^31 + 12345 positions of stride 0, and rows that lie 2^31 elements apart.",
        "Logits that are really there: `python tools/large.py`, Dice + BCE of 46400 x 46400 bfloat16 logits and uint8",
        "labels, against float64. On an AMD EPYC (AVX-512), 2 virtual cores, shared with other work, torch 2.13:",
        "",
        *(f"    {line}" for line in LARGE),
        "",
    ]
    return "\n".join(lines)


def test_the_page_is_that_of_this_file() -> None:
    assert PAGE.read_text() == page(), "PYTHONPATH=tests/support python tests/torch/test_matrix.py --write"
    for test in ELSEWHERE.values():
        assert (ROOT / test).is_file()
    for file, name in (test.split("::") for tests in TRAPS.values() for test in tests):
        assert f"\ndef {name}(" in (ROOT / file).read_text()


if __name__ == "__main__" and "--write" in sys.argv:
    PAGE.write_text(page())
