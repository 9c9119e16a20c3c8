"""The rooms of the tests: every path that is named is there, no test imports another, none returns before its end."""

import ast
import re
from collections.abc import Iterator

from environment import ROOT

NAMING = {".md", ".toml", ".txt", ".sh", ".py", ".h", ".cpp", ".cu", ".yaml"}
LISTED = ("tests", "tools", "bench", "csrc", "docs", "python", "examples", "cmake", ".ci")
FILES = [*ROOT.glob("*"), *(path for folder in LISTED for path in (ROOT / folder).rglob("*"))]
NAMED = re.compile(r"(?<![\w./-])(?:tests|tools)/[\w./-]*\w")
TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
TESTS = {path: tree for path, tree in TREES.items() if path.name.startswith("test_")}


def imported(tree: ast.Module) -> Iterator[str]:
    """Each part of what is imported, anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (part for name in names for part in name.split("."))


def own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions and classes in it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            yield from own(node)


def test_every_path_that_is_named_is_there() -> None:
    named = [
        (path.relative_to(ROOT), name)
        for path in FILES
        if path.is_file() and (path.suffix in NAMING or path.parent.name == ".ci")
        for name in NAMED.findall(path.read_text())
    ]
    assert len(named) > 50
    assert [f"{path}: {name}" for path, name in named if not (ROOT / name).exists()] == []


def test_files_have_names_of_their_own() -> None:
    """Comments name them without their folders, and support and tools are imported so."""
    names = sorted(path.name for path in (*TREES, *(ROOT / "tools").glob("*.py")))
    assert sorted(set(names)) == names


def test_no_test_is_imported() -> None:
    tests = {"conftest", *(path.stem for path in TESTS)}
    found = {path.name: tests & set(imported(tree)) for path, tree in TREES.items()}
    assert {name: which for name, which in found.items() if which} == {}


def test_no_test_returns() -> None:
    """A table holds what applies: a test that returns early is green without testing."""
    functions = [
        (path.name, node)
        for path, tree in TESTS.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert {path.name for path in TESTS} == {name for name, _ in functions}
    assert [f"{name}::{f.name}" for name, f in functions if any(isinstance(n, ast.Return) for n in own(f))] == []
