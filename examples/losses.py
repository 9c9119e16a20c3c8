"""Losses named on a command line: "dice + 0.5*bce", "adaptive_log(tversky(alpha=0.3, beta=0.7), gamma=0.2)"."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

import segfuse
from data import IGNORE

LOSSES: dict[str, Callable[..., segfuse.Loss]] = {
    "bce": segfuse.BCEWithLogitsLoss,
    "ce": lambda mode, **options: segfuse.CrossEntropyLoss(**options),  # always multiclass, so it has no mode
    "focal": segfuse.FocalLoss,
    "dice": segfuse.DiceLoss,
    "jaccard": segfuse.JaccardLoss,
    "tversky": segfuse.TverskyLoss,
    "focal_tversky": segfuse.FocalTverskyLoss,
    "sensitivity_specificity": segfuse.SensitivitySpecificityLoss,
    "generalized_dice": segfuse.GeneralizedDiceLoss,
    "unified_focal": segfuse.UnifiedFocalLoss,
    "combo": segfuse.ComboLoss,
    "polynomial": segfuse.PolynomialLoss,
    "sigmoid_free": segfuse.SigmoidFreeLoss,
    "broken": segfuse.BrokenLoss,
    "hinge": segfuse.HingeLoss,
    "mse": segfuse.MSELoss,
    "l1": segfuse.L1Loss,
    "huber": segfuse.HuberLoss,
}
SET_HERE = ("mode", "from_logits", "ignore_index", "reduction", "process_group", "shard", "upsample", "align_corners")


class LossError(ValueError):
    """The loss expression is wrong. The message names the wrong part."""


def build_loss(expression: str, mode: str) -> segfuse.Loss:
    """One fused loss from an expression such as "dice + 0.5*ce"."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise LossError(f'"{expression}" is not a sum of terms such as "dice + 0.5*ce"') from None
    return _interpret(tree, mode)


def _interpret(node: ast.expr, mode: str) -> segfuse.Loss:
    """Makes a loss from Python's syntax tree. Only sums, coefficients, names and literal options are allowed."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _interpret(left, mode) + _interpret(right, mode)
        case ast.BinOp(left=factor, op=ast.Mult(), right=term):
            try:
                coefficient = ast.literal_eval(factor)
            except (ValueError, TypeError):
                coefficient = None
            if type(coefficient) not in (int, float) or not 0 < coefficient < math.inf:
                raise LossError(f'the coefficient "{ast.unparse(factor)}" is not a positive number')
            return coefficient * _interpret(term, mode)
        case ast.Name(id=name):
            return _make(name, {}, mode)
        case ast.Call(func=ast.Name(id="adaptive_log"), args=[base], keywords=keywords):
            try:
                return segfuse.AdaptiveLogLoss(_interpret(base, mode), **_options("adaptive_log", keywords))  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise LossError(f"adaptive_log: {error}") from None
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return _make(name, _options(name, keywords), mode)
    raise LossError(f'"{ast.unparse(node)}" is not of the form [coefficient *] name [(option=value, ...)]')


def _options(name: str, keywords: list[ast.keyword]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for keyword in keywords:
        try:
            options[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            raise LossError(f'"{ast.unparse(keyword)}" of {name} is not of the form option=literal') from None
    return options


def _make(name: str, options: dict[str, Any], mode: str) -> segfuse.Loss:
    if name not in LOSSES:
        raise LossError(f'there is no loss "{name}"; there are {", ".join(LOSSES)}')
    if (name, mode) == ("ce", "binary"):
        raise LossError('"ce" is for label maps of several classes, and these masks have two: use "bce"')
    if (name, mode) == ("bce", "multiclass"):
        raise LossError('"bce" is for two classes, and these masks have more: use "ce"')
    for option in options:
        if option in SET_HERE:
            hint = ": use --ignore-index" if option == "ignore_index" else ""
            raise LossError(f'"{option}" of {name} is set by this example{hint}')
    try:
        # Every term gets IGNORE, because it also marks pixels of a crop that are outside its image.
        return LOSSES[name](mode, ignore_index=IGNORE, **options)
    except (TypeError, ValueError) as error:
        raise LossError(f"{name}: {error}") from None
