"""Writes the shared options into the signatures and the documentation of the losses.

A docstring in the sources has the formula, ``Args:`` with the options of that loss alone, and an example. `options` has
the meaning of each shared option, once. Types and defaults come from the signature.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from segfuse._core.options import MODES, TWO_SIDED

WIDTH = 112
CALL = {
    "logits": 'floats of shape (N, C, *), or (N, *) in "binary". The first dimension is always the batch: in "binary" '
    "a mask (H, W) is H samples of W pixels.",
    "target": 'labels 0 and 1, or floats in [0, 1], of the same shape as the logits. In "multiclass" a label map '
    "(N, *) or (N, 1, *), of integers or of floats that are whole numbers; or soft labels (N, C, *).",
    "weight": "one number per pixel, of shape (N, *) or a shape that broadcasts to it. (N,) is one per sample, "
    "(1, H, W) one per position. A pixel of weight 0 is left out, even if it holds NaN. Weights may be negative.",
}
CALL_TYPES = {"logits": "Tensor", "target": "Tensor", "weight": "Tensor | None, default None"}
RETURNS = 'The loss, float32 (float64 for float64 logits), of shape () with reduction "mean" or "sum".'
TERMS = "With return_terms=True a pair: the loss, and a dict of its terms, detached and unscaled."
RAISES = """Raises:
    TypeError: an unknown option, or a value of the wrong type.
    ValueError: a value out of its range, or shapes that do not fit; the message names the argument.
    IndexError: on the CPU, a label that is out of range and not ignore_index, a label of a label map that is not a
        whole number, or a soft label or probability that is outside [0, 1] by more than 1e-4. On a GPU loss and
        gradient are NaN; segfuse.check_target says why."""
MODE_TEXTS = {
    TWO_SIDED: "one class with a sigmoid, or C classes with a sigmoid each, which may overlap.",
    MODES: "one class with a sigmoid; C classes with a sigmoid each, which may overlap; C classes with one softmax.",
}


def in_package(cls: type) -> bool:
    """False for a subclass of a user: its hints may not resolve, and its documentation stays as it is."""
    return cls.__module__.startswith("segfuse.")


def spelled_out(signature: inspect.Signature, taken: type, defaults: Mapping[str, Any]) -> inspect.Signature:
    """The signature with each option of its ``**options`` as a parameter."""
    given = list(signature.parameters.values())
    own = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(own) == len(given):
        return signature
    hints = get_type_hints(taken)
    rest = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=v, annotation=hints[n])
        for n, v in defaults.items()
    ]
    return signature.replace(parameters=[*own, *rest])


def full_signature(cls: Any) -> inspect.Signature:
    """The signature of a loss class, with each option of its ``**options`` as a parameter."""
    constructor = inspect.signature(cls.__init__, eval_str=in_package(cls))
    own = list(constructor.parameters.values())[1:]
    return spelled_out(inspect.Signature(own), cls._takes, cls._hidden_defaults)


def type_text(hint: Any) -> str:
    """The text of a type, as a user writes it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "None"
    if isinstance(hint, list):  # the arguments of a Callable
        return f"[{', '.join(map(type_text, hint))}]"
    if origin is Literal:
        return " | ".join(f'"{value}"' for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"
    return str(hint.__name__)


def _entry(name: str, text: str) -> str:
    whole = f"{name}: {text}".rstrip()
    return textwrap.fill(whole, WIDTH, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)


def _arguments(signature: inspect.Signature, taken: type, own: Mapping[str, str]) -> str:
    """The text of ``Args:``: type, default and meaning of each parameter. The docstring wins over the tables."""
    hints = get_type_hints(taken, include_extras=True)
    meanings = {**{name: hint.__metadata__[0] for name, hint in hints.items()}, **CALL, **own}
    if "mode" in signature.parameters:
        meanings.setdefault("mode", MODE_TEXTS[get_args(signature.parameters["mode"].annotation)])
    entries = ["Args:"]
    for name, parameter in signature.parameters.items():
        default = parameter.default
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        given = "" if default is inspect.Parameter.empty else f", default {shown}"
        entries.append(_entry(f"{name} ({type_text(parameter.annotation)}{given})", meanings.get(name, "")))
    return "\n".join(entries)


def _parts(doc: str) -> tuple[str, dict[str, str], dict[str, str], str]:
    """The parts of a docstring in the sources: its head, the texts of ``Args:``, other sections, and the example."""
    before, mark, example = ("\n" + inspect.cleandoc(doc)).partition("\n>>> ")
    head: list[str] = []
    sections: dict[str, str] = {}
    for block in before.strip().split("\n\n"):
        title, separator, _ = block.partition(":\n")
        if separator and title in ("Args", "Returns", "Raises"):
            sections[title] = block
        else:
            head.append(block)
    found = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", sections.pop("Args", ""), re.MULTILINE)
    meanings = {name: " ".join(text.split()) for name, text in found}
    return "\n\n".join(head), meanings, sections, (mark + example).strip()


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def class_doc(cls: Any, doc: str) -> str:
    """The full documentation of a loss class, from its docstring in the sources."""
    head, meanings, _, example = _parts(doc)
    arguments = _arguments(cls.__signature__, cls._takes, meanings)
    call = "Args of a call:\n" + "\n".join(
        _entry(f"{name} ({type_})", CALL[name]) for name, type_ in CALL_TYPES.items()
    )
    returns = f"Returns:\n{_wrapped(RETURNS + ' ' + TERMS, '    ')}"
    blocks = (head, _wrapped(cls._symbols), arguments, call, returns, RAISES, example)
    return "\n\n".join(block for block in blocks if block)


def describe(function: Any, taken: type, defaults: Mapping[str, Any], doc: str, symbols: str = "") -> None:
    """Gives a function its full signature and documentation, from a docstring in the sources."""
    signature = inspect.signature(function, eval_str=True)
    function.__signature__ = spelled_out(signature, taken, defaults)
    head, meanings, others, example = _parts(doc)
    arguments = _arguments(function.__signature__, taken, meanings)
    returns = others.get("Returns", f"Returns:\n{_wrapped(RETURNS, '    ')}")
    blocks = (head, _wrapped(symbols), arguments, returns, others.get("Raises", RAISES), example)
    function.__doc__ = "\n\n".join(block for block in blocks if block)
