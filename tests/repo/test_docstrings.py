"""Documentation of the public names: complete, short enough to read, and its examples run."""

from __future__ import annotations

import doctest
import inspect
import pydoc
import re
from typing import Any

import pytest
import torch

import segfuse
from cases import CLASS_NAME
from segfuse._core import describe

SCREENS = 3 * 50  # lines
PUBLIC = {name: getattr(segfuse, name) for name in segfuse.__all__ if callable(getattr(segfuse, name))}
METRICS = {name: getattr(segfuse.metrics, name) for name in segfuse.metrics.__all__}
# Those whose signature says nothing to a user: a base class, a sum, a tuple.
WITHOUT_ARGUMENTS = {"Loss", "CompoundLoss", "RegionStats"}


def entries(doc: str) -> dict[str, tuple[str, str]]:
    """Of the section ``Args:``: name, and what stands in brackets and after them."""
    listed = re.search(r"^Args:\n((?:    .*\n?)+)", doc, re.MULTILINE)
    blocks = re.split(r"^    (?=\w)", listed[1] if listed else "", flags=re.MULTILINE)
    found = [re.match(r"(\w+) \((.*?)\): (.*)", " ".join(block.split())) for block in blocks if block]
    return {entry[1]: (entry[2], entry[3]) for entry in found if entry}


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - WITHOUT_ARGUMENTS))
def test_every_option_is_said(name: str) -> None:
    """And nothing else: name, type, default and meaning, as in the signature."""
    found = entries(inspect.getdoc(PUBLIC[name]) or "")
    signature = inspect.signature(PUBLIC[name], eval_str=True).parameters
    assert list(found) == list(signature)
    for option, (bracket, meaning) in found.items():
        expected = describe.type_text(signature[option].annotation)
        default = signature[option].default
        if default is not inspect.Parameter.empty:
            expected += f', default "{default}"' if isinstance(default, str) else f", default {default!r}"
        assert bracket == expected, option
        assert len(meaning) > 5, option


@pytest.mark.parametrize("name", PUBLIC)
def test_help_is_short(name: str) -> None:
    """Up to the 1,000 lines on what torch adds to each module, which pydoc puts last, and without the signature."""
    text = pydoc.render_doc(PUBLIC[name], renderer=pydoc.plaintext).split("inherited from torch.nn")[0]
    _, doc, rest = text.partition((inspect.getdoc(PUBLIC[name]) or "").splitlines()[0])
    assert doc
    assert len(rest.splitlines()) < SCREENS
    assert ":mod:" not in text


@pytest.mark.parametrize("name", [*PUBLIC, *METRICS])
def test_the_examples(name: str) -> None:
    public: Any = {**METRICS, **PUBLIC}[name]
    globals_ = {"segfuse": segfuse, "torch": torch}
    parsed = doctest.DocTestParser().get_doctest(inspect.getdoc(public) or "", globals_, name, None, None)
    said: list[str] = []
    assert len(parsed.examples) > 0
    called = rf"\bsegfuse\.(metrics\.)?{public.__name__}\b"
    assert any(re.search(called, example.source) for example in parsed.examples) or name in WITHOUT_ARGUMENTS
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(parsed, out=said.append)
    assert said == []


@pytest.mark.parametrize("name", CLASS_NAME)
def test_class_and_function_give_the_same(name: str) -> None:
    """Both stand in the example of either."""
    for public in (PUBLIC[name], PUBLIC[CLASS_NAME[name]]):
        *_, ours, theirs = doctest.DocTestParser().get_examples(inspect.getdoc(public) or "")
        assert f"segfuse.{CLASS_NAME[name]}(" in ours.source
        assert f"segfuse.{name}(" in theirs.source
        assert ours.want == theirs.want
