"""What is installed: nothing linked to torch or OpenMP, typed, and able to say what it is."""

import ast
import importlib.resources
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import segfuse
from segfuse import _C
from segfuse._core import native


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_native_module_links_only_the_system() -> None:
    needed = set(re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", _C.__file__)))
    assert needed
    assert needed <= {
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libm.so.6",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
        "libpthread.so.0",
        "libdl.so.2",
    }


def test_the_native_module_wants_no_symbol_of_torch_or_openmp() -> None:
    undefined = [line.split()[-1] for line in run("nm", "-D", "--undefined-only", _C.__file__).splitlines()]
    assert len(undefined) > 10
    assert not [name for name in undefined if re.search(r"c10|torch|aoti|at\d|GOMP|omp_", name)]


def declared(stub: ast.Module) -> Iterator[str]:
    """The names of a stub; imports count where they are exported again."""
    for node in stub.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target)
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname for alias in node.names if alias.asname)


def test_it_is_typed() -> None:
    files = {entry.name for entry in importlib.resources.files(segfuse).iterdir()}
    assert {"py.typed", "_C.pyi", "_cuda.pyi"} <= files
    for stub_name, module in (("_C.pyi", _C), ("_cuda.pyi", native.cuda_module())):
        if module is None:
            continue
        stub = importlib.resources.files(segfuse).joinpath(stub_name).read_text()
        assert set(declared(ast.parse(stub))) == {name for name in dir(module) if not name.startswith("__")}


def test_build_info_and_its_command() -> None:
    info = segfuse.build_info()
    assert info["segfuse"] == segfuse.__version__
    assert info["CPU instruction set in use"] in info["CPU instruction sets"]
    printed = run(sys.executable, "-m", "segfuse")
    for key, value in info.items():
        assert key in printed
        if isinstance(value, str) and key != "CPU instruction set in use":
            assert value in printed


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    before = _C.instruction_set()
    with pytest.raises(ValueError, match="instruction set 'mmx' is not available"):
        _C.use_instruction_set("mmx")
    assert _C.instruction_set() == before


def test_importing_needs_no_more_than_torch() -> None:
    code = "import sys, segfuse; print([m for m in ('matplotlib', 'skimage', 'PIL', 'monai') if m in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == "[]"
