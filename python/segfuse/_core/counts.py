"""Exact counts of hard predictions, in plain PyTorch. `operators.py` makes an operator of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from segfuse._core.plan import Data, Plan


def region_counts(plan: Plan, data: Data, threshold: float) -> Tensor:
    """tp, fp, fn, tn of every sample and class, int64, (N, C, 4). The tensors must be checked before."""
    logits, target, weight, soft = data
    multiclass = plan.mode == "multiclass"
    if soft or (target.is_floating_point() and not multiclass):
        raise TypeError(f"hard=True wants labels, integers or bools; got {target.dtype} of shape {tuple(target.shape)}")
    n, classes = logits.shape[0], plan.classes(logits.shape)
    if logits.numel() == 0:
        return torch.zeros(n, classes, 4, dtype=torch.int64, device=logits.device)
    grid = (n, -1) if multiclass else (n, classes, -1)
    counted = torch.ones_like(target, dtype=torch.bool) if weight is None else weight != 0
    labels, valid = _labels(plan, target.reshape(grid), counted.reshape(grid), classes if multiclass else 2)
    if multiclass:
        return _of_classes(logits.argmax(1).reshape(grid), labels, valid, classes)
    said, truth = _exceeds(logits.reshape(grid), threshold, plan.from_logits), labels == 1
    cases = (said & truth, said & ~truth, ~said & truth, ~said & ~truth)
    return torch.stack([(case & valid).sum(-1) for case in cases], -1)


def _labels(plan: Plan, target: Tensor, counted: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The labels as int64, and which of the counted pixels are not ignored. A label out of range is an error.

    The check waits for a GPU.
    """
    labels, wraps = target.long(), target.dtype == torch.uint64  # values from 2^63 on become negative
    if target.is_floating_point():
        fractions = counted & (labels != target)
        if fractions.any():
            value = float(target[fractions][0])
            raise IndexError(f"target: label {value:.9g} is not a whole number; {int(fractions.sum())} such label(s)")
    valid = counted
    if plan.ignore_index is not None and not (wraps and plan.ignore_index < 0):
        valid = valid & (labels != plan.ignore_index)
    wrong = valid & ((labels < 0) | (labels >= limit))
    if wrong.any():
        first = int(labels[wrong][0])
        value = first % 2**64 if wraps else first
        raise IndexError(f"target: label {value} is outside [0, {limit}); {int(wrong.sum())} such label(s)")
    return labels, valid


def _exceeds(logits: Tensor, threshold: float, from_logits: bool) -> Tensor:
    """Whether p > threshold, computed on the logits. In float32 the level is rounded down: no logit is between."""
    level = math.log(threshold / (1 - threshold)) if from_logits else threshold
    if logits.dtype == torch.float64:
        return logits > level
    rounded = np.float32(level)
    if float(rounded) > level:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return logits.float() > float(rounded)


def _of_classes(said: Tensor, labels: Tensor, valid: Tensor, classes: int) -> Tensor:
    n = labels.shape[0]
    first = torch.arange(n, device=labels.device).unsqueeze(1) * classes

    def per_class(index: Tensor, counted: Tensor) -> Tensor:
        found = torch.zeros(n * classes, dtype=torch.int64, device=labels.device)
        at = torch.where(counted, first + index, 0)
        return found.scatter_add_(0, at.flatten(), counted.flatten().long()).reshape(n, classes)

    tp = per_class(labels, valid & (said == labels))
    fp, fn = per_class(said, valid) - tp, per_class(labels, valid) - tp
    return torch.stack([tp, fp, fn, valid.sum(1, keepdim=True) - tp - fp - fn], -1)
