"""Checks of the tensors of a call; every message names the argument and the values seen."""

from __future__ import annotations

import torch
from torch import Tensor

from segfuse._native import DTYPE_CODE
from segfuse._plan import Plan

_LOGITS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAX_CLASSES = 65536


def check_inputs(
    plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, target and weight, checked; the weight expanded to the target's grid (without a copy)."""
    for name, tensor in (("logits", logits), ("target", target), ("weight", weight)):
        if tensor is None and name == "weight":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {tensor.layout}")
        if name != "logits" and tensor.requires_grad:
            raise ValueError(f"{name} requires grad, but a loss gives it no gradient: detach it")
        if name == "weight" and tensor.dim() == 0 and tensor.is_cpu:
            weight = tensor = tensor.to(logits.device)  # a number, in effect
        if name != "logits" and tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, logits are on {logits.device}")
        if tensor.dtype not in DTYPE_CODE or (name == "logits" and tensor.dtype not in _LOGITS):
            wanted = "a floating type" if name == "logits" else "a floating, integer or bool type"
            raise TypeError(f"{name} must have {wanted}; got {tensor.dtype}")
    _check_target(plan, logits, target)
    if weight is not None:
        weight = _expand_weight(plan, logits, weight)
    return logits, target, weight


def is_soft(logits: Tensor, target: Tensor) -> bool:
    """Whether a multiclass target has one value per class (soft or one-hot labels)."""
    return target.dim() == logits.dim() and target.shape[1] == logits.shape[1]


def _shapes(logits: Tensor, target: Tensor) -> str:
    return f"logits have shape {tuple(logits.shape)}, target has shape {tuple(target.shape)}"


def _check_target(plan: Plan, logits: Tensor, target: Tensor) -> None:
    x, t = logits.shape, target.shape
    if plan.mode == "binary":
        if len(x) == 0:
            raise ValueError("logits must have a batch dimension; got a 0-d tensor")
        if (
            x == t
            or (len(x) > 1 and x[1] == 1 and t == x[:1] + x[2:])
            or (len(t) > 1 and t[1] == 1 and x == t[:1] + t[2:])
        ):
            return
        hint = ' (labels of several classes? mode="multiclass")' if len(x) > 1 and t == x[:1] + x[2:] else ""
        raise ValueError(f'mode="binary" wants a target of the logits\' shape: {_shapes(logits, target)}{hint}')
    if len(x) < 2:
        raise ValueError(f'mode="{plan.mode}" wants logits (N, C, ...); got shape {tuple(x)}')
    if x[1] == 0:
        raise ValueError(f"logits have no classes: shape {tuple(x)}")
    if x[1] == 1 and plan.mode == "multiclass":
        raise ValueError(f'mode="multiclass" wants at least two classes; got logits {tuple(x)}: use mode="binary"')
    if plan.last_class >= x[1]:
        raise ValueError(f"classes holds {plan.last_class}, but the logits have {x[1]} classes")
    if plan.mode == "multilabel":
        if x == t:
            return
        hint = ' (a label map? mode="multiclass")' if t == x[:1] + x[2:] else ""
        raise ValueError(f'mode="multilabel" wants a target of the logits\' shape: {_shapes(logits, target)}{hint}')
    if x[1] > _MAX_CLASSES:
        raise ValueError(f"logits have {x[1]} classes; at most {_MAX_CLASSES} are supported")
    if x == t:
        if plan.ignore_index not in (None, -100):
            raise ValueError(
                f"ignore_index={plan.ignore_index} needs a label map, but target has one value per class "
                f"(shape {tuple(t)}): pass a weight of 0 for such pixels"
            )
        return
    if t == x[:1] + x[2:] or (len(t) == len(x) and t[1] == 1 and t == x[:1] + t[1:2] + x[2:]):
        if target.dtype.is_floating_point:
            raise TypeError(
                f"target is a label map by its shape {tuple(t)} and must be integer or bool; got {target.dtype} "
                f"(soft labels have the logits' shape {tuple(x)})"
            )
        return
    raise ValueError(
        f'mode="multiclass" wants a label map {(x[0], *x[2:])} or soft labels {tuple(x)}: {_shapes(logits, target)}; '
        "resize the logits or the target to one size first"
    )


def _expand_weight(plan: Plan, logits: Tensor, weight: Tensor) -> Tensor:
    grid = list(logits.shape)
    if plan.mode == "multiclass":
        grid[1] = 1
    given = tuple(weight.shape)
    has_channel = plan.mode != "binary" or (logits.dim() > 1 and logits.shape[1] == 1)
    if has_channel and weight.dim() == logits.dim() - 1 and weight.dim() > 0:
        weight = weight.unsqueeze(1)
    elif plan.mode == "binary" and weight.dim() == logits.dim() + 1 and given[1] == 1:
        weight = weight.squeeze(1)
    try:
        return weight.expand(grid)
    except RuntimeError as error:
        raise ValueError(
            f"weight of shape {given} does not broadcast to {tuple(grid)} (logits have shape {tuple(logits.shape)})"
        ) from error
