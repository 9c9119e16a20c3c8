"""What mypy and hints say of the public names: correct calls pass, and a misspelt option is an error before it runs."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import typing_extensions

import segfuse
from cases import CLASS_NAME
from environment import ROOT

TENSOR, PAIR = "Tensor", "tuple[Tensor, dict[str, Tensor]]"
# Beside each expression its type, or what the error says after "!".
EXPRESSIONS = {
    # classes
    'segfuse.DiceLoss("multiclass", smooth=(1.0, 2.0), ignore_index=255)': "DiceLoss",
    'segfuse.DiceLoss("multiclas")': '! Argument 1 to "DiceLoss" has incompatible type "Literal[\'multiclas\']"',
    'segfuse.DiceLoss("binary", smoth=3)': '! Unexpected keyword argument "smoth" for "DiceLoss"',
    'segfuse.DiceLoss("binary", shape="cosh")': '! Argument "shape" to "DiceLoss"',
    'segfuse.DiceLoss("binary", reduction="avg")': '! Argument "reduction" to "DiceLoss"',
    'segfuse.TverskyLoss("binary", alpha="1")': '! Argument "alpha" to "TverskyLoss"',
    'segfuse.FocalTverskyLoss("binary", shape="log")': '! Unexpected keyword argument "shape"',
    'segfuse.BackgroundTverskyLoss("binary", squared=True)': '! Unexpected keyword argument "squared"',
    'segfuse.GeneralizedDiceLoss("binary", absent="skip")': '! Unexpected keyword argument "absent"',
    'segfuse.SensitivitySpecificityLoss("binary", soft_label=True)': '! Unexpected keyword argument "soft_label"',
    'segfuse.CrossEntropyLoss(mode="binary")': '! Unexpected keyword argument "mode"',
    "segfuse.CrossEntropyLoss(class_weight=[1.0, 2.0], label_smoothing=0.1)": "CrossEntropyLoss",
    'segfuse.BCEWithLogitsLoss("multiclass")': '! Argument 1 to "BCEWithLogitsLoss"',
    'segfuse.BCEWithLogitsLoss("binary", pool_batch=True)': '! Unexpected keyword argument "pool_batch"',
    'segfuse.MSELoss("binary", gamma=2)': '! Unexpected keyword argument "gamma"',
    "segfuse.DiceCELoss(ce_weight=x, class_weight=[1, 2], pool_batch=True)": "DiceCELoss",
    "segfuse.DiceCELoss(lambda_ce=2)": '! Unexpected keyword argument "lambda_ce"',
    'segfuse.ComboLoss("binary", eps=1.0)': '! Unexpected keyword argument "eps"',
    'segfuse.AdaptiveLogLoss(segfuse.DiceLoss("binary"), omega=8)': "AdaptiveLogLoss",
    "segfuse.AdaptiveLogLoss(segfuse.CrossEntropyLoss())": '! Argument 1 to "AdaptiveLogLoss"',
    # functions
    'segfuse.dice_loss(x, t, mode="multiclass", weight=x, smooth=1.0)': TENSOR,
    'segfuse.dice_loss(x, t, mode="multiclas")': '! Argument "mode" to "dice_loss"',
    'segfuse.dice_loss(x, t, mode="binary", smoth=3)': '! Unexpected keyword argument "smoth" for "dice_loss"',
    "segfuse.dice_loss(x, t)": '! Missing named argument "mode"',
    'segfuse.dice_loss(x, t, "binary")': '! Too many positional arguments for "dice_loss"',
    'segfuse.focal_tversky_loss(x, t, mode="binary", shape="log")': '! Unexpected keyword argument "shape"',
    'segfuse.cross_entropy_loss(x, t, mode="multiclass")': '! Unexpected keyword argument "mode"',
    "segfuse.cross_entropy_loss(x, t, class_weight=x, reduction='none')": TENSOR,
    'segfuse.hinge_loss(x, t, mode="multiclass")': '! Argument "mode" to "hinge_loss"',
    'segfuse.unified_focal_loss(x, t, mode="multiclass", num_classes=3, weight=x)': TENSOR,
    'segfuse.adaptive_log_loss(x, t, base=segfuse.DiceLoss("binary"), weight=x)': TENSOR,
    'segfuse.pointwise_loss(x, t, lambda z, y: z * y, mode="binary", reduction="sum")': TENSOR,
    'segfuse.pointwise_loss(x, t, torch.mul, mode="binary", smooth=1)': '! Unexpected keyword argument "smooth"',
    # what a call gives
    'segfuse.DiceLoss("binary")(x, t)': TENSOR,
    'segfuse.DiceLoss("binary")(x, t, x, return_terms=True)': PAIR,
    'segfuse.DiceLoss("binary")(x, t, return_terms=flag)': f"{TENSOR} | {PAIR}",
    'segfuse.DiceLoss("binary")(x, t, return_term=True)': "! No overload variant",
    "segfuse.DiceCELoss()(x, t)": TENSOR,
    "segfuse.DiceCELoss()(x, t, return_terms=True)": PAIR,
    "(0.5 * segfuse.CrossEntropyLoss())(x, t)": TENSOR,
    "(segfuse.CrossEntropyLoss() * x)(x, t, return_terms=True)": PAIR,
    '(segfuse.CrossEntropyLoss() / 2 - segfuse.DiceLoss("multiclass"))(x, t)': TENSOR,
    'sum([segfuse.CrossEntropyLoss()], segfuse.DiceLoss("multiclass"))(x, t)': TENSOR,
    "(-segfuse.CrossEntropyLoss()).forward(x, t, return_terms=True)": PAIR,
}


with_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="needs mypy, which requirements-dev.txt has"
)


def mypy(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """With the options of pyproject.toml and one cache: to read torch takes most of a minute."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *options, *arguments]
    variables = {**os.environ, "MYPYPATH": str(ROOT / "python")}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=variables)


@with_mypy
def test_the_package() -> None:
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr


@with_mypy
def test_what_mypy_says(tmp_path: Path) -> None:
    """One strict run over all: ``reveal_type`` of each expression, on a line of its own."""
    lines = ["import torch", "import segfuse", "def calls(x: torch.Tensor, t: torch.Tensor, flag: bool) -> None:"]
    first = len(lines) + 1
    lines += [f"    reveal_type({expression})" for expression in EXPRESSIONS]
    (tmp_path / "calls.py").write_text("\n".join(lines) + "\n")
    done = mypy("--no-error-summary", "calls.py", cwd=tmp_path)
    said = re.findall(r"^calls\.py:(\d+): (error|note): (.*)$", done.stdout, re.MULTILINE)
    assert said, done.stdout + done.stderr
    wrong = []
    for line, (expression, expected) in enumerate(EXPRESSIONS.items(), first):
        found = [(kind, text) for number, kind, text in said if int(number) == line]
        errors = [text for kind, text in found if kind == "error"]
        revealed = [text.split('"')[1] for _, text in found if text.startswith("Revealed type")]
        types = [re.sub(r"\b(segfuse|torch|builtins)\.([a-z_]+\.)*", "", text) for text in revealed]
        if expected.startswith("! "):
            is_right = any(expected[2:] in text for text in errors)
        else:
            is_right = not errors and types == [expected]
        if not is_right:
            wrong.append(f"{expression}: expected {expected}, got {found}")
    assert wrong == []


PUBLIC = {name: getattr(segfuse, name) for name in segfuse.__all__ if callable(getattr(segfuse, name))}


@pytest.mark.parametrize("name", PUBLIC)
def test_hints_resolve(name: str) -> None:
    """At run time; and the set of options is that which the signature spells out."""
    public = PUBLIC[name]
    hints = typing.get_type_hints(public.__init__ if inspect.isclass(public) else public)
    for options in [hints[kind] for kind in ("options", "data") if kind in hints]:
        (taken,) = typing.get_args(options)
        assert options == typing_extensions.Unpack[taken]
        spelled = {n: p.annotation for n, p in inspect.signature(public).parameters.items()}
        assert typing.get_type_hints(taken).items() <= spelled.items()


@pytest.mark.parametrize("name", CLASS_NAME)
def test_a_function_takes_what_its_class_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, types and defaults; and each goes to the class."""
    function, cls = PUBLIC[name], PUBLIC[CLASS_NAME[name]]
    own = {n: (p.annotation, p.default) for n, p in inspect.signature(function).parameters.items()}
    call = {n: own.pop(n) for n in ("logits", "target", "weight")}
    assert call == {
        "logits": (torch.Tensor, inspect.Parameter.empty),
        "target": (torch.Tensor, inspect.Parameter.empty),
        "weight": (torch.Tensor | None, None),
    }
    assert own == {n: (p.annotation, p.default) for n, p in inspect.signature(cls).parameters.items()}

    def passed(made: type, **options: object) -> Any:
        assert made is cls
        return lambda *arguments: (options, arguments)

    monkeypatch.setitem(function.__globals__, "cached", passed)
    given = {n: object() for n in own}
    assert function(1, 2, weight=3, **given) == (given, (1, 2, 3))
