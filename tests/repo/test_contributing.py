"""Adding a loss touches three files: the example of CONTRIBUTING.md, done to a copy, built, and compared."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pybind11
import pytest

from environment import DEVICE, ROOT, SHIM

pytestmark = pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="builds the CPU kernels")

CHECK = """
import doctest, torch, segfuse
torch.manual_seed(0)
for mode, reduction in (("binary", "mean"), ("multilabel", "sample")):
    z = (torch.randn(3, 4, 5, 7) * 3).requires_grad_()
    t = torch.rand(3, 4, 5, 7)
    w = torch.rand(3, 4, 5, 7)
    options = {"mode": mode, "epsilon": 0.7, "weight": w, "reduction": reduction}
    x = z.detach().double().requires_grad_()
    ours, theirs = segfuse.poly1_loss(z, t, **options), segfuse.reference.poly1_loss(x, t.double(), **options)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)
    upstream = torch.rand(ours.shape)
    (ours,), (theirs,) = torch.autograd.grad(ours, z, upstream), torch.autograd.grad(theirs, x, upstream.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())
both = segfuse.DiceLoss("binary") + 0.3 * segfuse.Poly1Loss("binary", epsilon=2)
assert both(z, t).isfinite()
assert "0.3 * Poly1Loss('binary', epsilon=2.0)" in repr(both)
doctest.run_docstring_examples(segfuse.Poly1Loss, {"segfuse": segfuse, "torch": torch})
print("added")
"""


def blocks() -> list[tuple[str, str]]:
    """(language, code) of the section, in its order."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a loss")[1].split("\n## ")[0]
    found = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    return [(language, textwrap.dedent(code)) for language, code in found]


def test_the_example(tmp_path: Path) -> None:
    struct, entry, module, oracle = blocks()
    assert [language for language, _ in (struct, entry, module, oracle)] == ["cpp", "cpp", "python", "python"]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "python" / "segfuse", tmp_path / "segfuse", ignore=shutil.ignore_patterns("*.so"))
    losses = tmp_path / "csrc" / "losses.h"
    text = losses.read_text()
    first = "#define SEGFUSE_POINTWISE(X)"
    assert text.count(first) == 1
    text = text.replace(first, struct[1] + "\n" + first)
    losses.write_text(re.sub(r"(#define SEGFUSE_POINTWISE\(X\)[^\n]*\n)", rf"\1  {entry[1].strip()} \\\n", text))
    for path, code in (("pointwise.py", module[1]), ("reference/_pointwise.py", oracle[1])):
        with (tmp_path / "segfuse" / path).open("a") as file:
            file.write("\n\n" + code)
    cpu = tmp_path / "csrc" / "cpu"
    sources = [
        cpu / name for name in ("binding.cpp", "steps.cpp", "threads.cpp", "instruction_sets.cpp", "isa_baseline.cpp")
    ]
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    target = tmp_path / "segfuse" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
    subprocess.run(["g++", *flags, *includes, *map(str, sources), "-ldl", "-o", str(target)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "added"
