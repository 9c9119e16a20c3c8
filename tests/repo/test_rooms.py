"""The rooms: every path that is named is there, no test imports another, none returns before its end.

And the modules behind the losses import in one direction.
"""

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


def test_no_file_is_long() -> None:
    """At most 350 lines. losses.h is the list of every loss, the pages in results are written by a program."""
    sources = [path for path in FILES if path.suffix in {".py", ".pyi", ".h", ".cpp", ".cu", ".sh", ".md"}]
    lines = {path: path.read_text().count("\n") for path in sources if "results" not in path.parts}
    assert lines.pop(ROOT / "csrc" / "losses.h") < 400
    assert {path: count for path, count in lines.items() if count > 350} == {}


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


CORE = ROOT / "python" / "segfuse" / "_core"
BELOW = {"_C", "_version", "reference"}  # of the package, what the modules of CORE may import besides


def parts_imported(tree: ast.Module) -> Iterator[str]:
    """segfuse.x and segfuse._core.x as x, at the top of the file."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segfuse"):
            last = (node.module or "").split(".")[-1]
            yield from ([alias.name for alias in node.names] if last in ("segfuse", "_core") else [last])


def test_one_direction() -> None:
    """_core/__init__.py lists its modules; each imports those below it. Only `functions` knows what a loss is."""
    text = ast.get_docstring(ast.parse((CORE / "__init__.py").read_text())) or ""
    order = [line.split()[0] for line in text.split("\n\n", 1)[1].splitlines()]
    trees = {path.stem: ast.parse(path.read_text()) for path in CORE.glob("*.py") if path.stem != "__init__"}
    assert sorted(order) == sorted(trees)
    for name, tree in trees.items():
        allowed = {*order[order.index(name) + 1 :], *BELOW, *(["algebra"] if name == "functions" else [])}
        assert set(parts_imported(tree)) <= allowed, name
        inside = [
            node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in own(function)
        ]
        late = {getattr(node, "module", None) for node in inside if isinstance(node, ast.Import | ast.ImportFrom)}
        assert not any((module or "").startswith("segfuse") for module in late), name
