"""Checks of the tensors of a call. Every message names the argument and its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segfuse._core.native import DTYPE_CODE
from segfuse._core.plan import Data, Plan, data_of
from segfuse._core.transfer import bring

_LOGITS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAX_CLASSES = 65536


def check_tensor(name: str, value: object) -> None:
    """A TypeError if the value is no tensor. For a model output it says which part to pass."""
    if isinstance(value, Tensor):
        return
    hint = ""
    if isinstance(getattr(value, "logits", None), Tensor):
        hint = ": pass its .logits"
    elif isinstance(value, Mapping):
        keys = [key for key in ("out", "logits", *value) if isinstance(value.get(key), Tensor)]
        hint = f': pass its ["{keys[0]}"]' if keys else ""
    raise TypeError(f"{name} must be a tensor; got {type(value).__name__}{hint}")


def check_inputs(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None) -> Data:
    """Checks logits, target and weight, and expands the weight to the grid of the pixels (without a copy)."""
    for name, tensor in (("logits", logits), ("target", target), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            if tensor is None and name == "weight":
                continue
            check_tensor(name, tensor)
        assert tensor is not None
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {tensor.layout}")
        if name != "logits" and tensor.requires_grad:
            raise ValueError(f"{name} requires grad, but a loss gives it no gradient: detach it")
        if name == "weight" and tensor.dim() == 0 and tensor.is_cpu:
            weight = tensor = bring(tensor, logits.device)  # a 0-d tensor is used like a number
        if name != "logits" and tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, logits are on {logits.device}")
        if tensor.dtype not in DTYPE_CODE or (name == "logits" and tensor.dtype not in _LOGITS):
            wanted = "a floating type" if name == "logits" else "a floating, integer or bool type"
            raise TypeError(f"{name} must have {wanted}; got {tensor.dtype}")
    _check_target(plan, logits, target)
    if weight is not None:
        weight = _expand_weight(plan, logits, weight)
    return data_of(plan, logits, target, weight)


def _same(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes are equal. Lengths come first: comparing symbolic sizes adds a guard to a compiled graph."""
    return len(a) == len(b) and a == b


def _shapes(logits: Tensor, target: Tensor) -> str:
    return f"logits have shape {tuple(logits.shape)}, target has shape {tuple(target.shape)}"


def _check_target(plan: Plan, logits: Tensor, target: Tensor) -> None:
    x, t = logits.shape, target.shape
    if plan.mode == "binary":
        if len(x) == 0:
            raise ValueError("logits must have a batch dimension; got a 0-d tensor")
        if (
            _same(x, t)
            or (len(x) == len(t) + 1 and x[1] == 1 and _same(t, x[:1] + x[2:]))
            or (len(t) == len(x) + 1 and t[1] == 1 and _same(x, t[:1] + t[2:]))
        ):
            return
        hint = _shape_hint(x, t)
        if len(x) > 1 and _same(t, x[:1] + x[2:]):
            hint = ' (labels of several classes? mode="multiclass")'
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
        if _same(x, t):
            return
        hint = ' (a label map? mode="multiclass")' if _same(t, x[:1] + x[2:]) else _shape_hint(x, t)
        raise ValueError(f'mode="multilabel" wants a target of the logits\' shape: {_shapes(logits, target)}{hint}')
    if x[1] > _MAX_CLASSES:
        raise ValueError(f"logits have {x[1]} classes; at most {_MAX_CLASSES} are supported")
    if _same(x, t):
        if plan.ignore_index not in (None, -100):
            raise ValueError(
                f"ignore_index={plan.ignore_index} needs a label map, but target has one value per class "
                f"(shape {tuple(t)}): pass a weight of 0 for such pixels"
            )
        return
    if _same(t, x[:1] + x[2:]) or (len(t) == len(x) and t[1] == 1 and _same(t[:1] + t[2:], x[:1] + x[2:])):
        return
    raise ValueError(
        f'mode="multiclass" wants a label map {(x[0], *x[2:])} or soft labels {tuple(x)}: {_shapes(logits, target)}'
        f"{_shape_hint(x, t)}"
    )


def _shape_hint(x: torch.Size, t: torch.Size) -> str:
    """The most likely reason why the shapes of logits and target do not fit."""
    if len(t) == len(x) and _same(t[:1] + t[2:], x[:1] + x[2:]):
        return f" (the logits have {x[1]} channels, the target {t[1]})"
    if _same(t, x[1:]):
        return " (no batch dimension? logits.unsqueeze(0), target.unsqueeze(0))"
    if _same(t, x[2:]):
        return " (no batch dimension in the target? target.unsqueeze(0))"
    if _same(x, t[1:]) or (len(x) == len(t) and _same(x[1:], t[1:]) and x[0] != t[0]):
        return " (the batch dimensions differ)"
    same_batch = len(x) > 0 and len(t) > 0 and x[0] == t[0]
    if same_batch and len(t) in (len(x), len(x) - 1):
        return "; resize the logits or the target to one size first"
    return ""


def _sample_weight(plan: Plan, logits: Tensor, weight: Tensor, per_class: str) -> Tensor:
    """A weight of shape (N,), one number per sample, shaped to broadcast."""
    count, samples, given = weight.shape[0], logits.shape[0], tuple(weight.shape)
    per_sample = (-1, *[1] * (logits.dim() - 1))
    if count != samples:
        looks_per_class = plan.mode != "binary" and count == logits.shape[1]
        raise ValueError(
            f"weight of shape {given} must have one number per sample, ({samples},); for one per column pass "
            f"weight.reshape({'1, ' * (logits.dim() - 2)}-1){per_class if looks_per_class else ''}"
        )
    if plan.mode != "binary" and count == logits.shape[1]:
        raise ValueError(
            f"weight of shape {given} could be one per sample or one per class; for one per sample pass "
            f"weight.reshape{per_sample}{per_class}"
        )
    return weight.reshape(per_sample)


def _expand_weight(plan: Plan, logits: Tensor, weight: Tensor) -> Tensor:
    grid = list(logits.shape)
    if plan.mode == "multiclass":
        grid[1] = 1
    given = tuple(weight.shape)
    per_class = "; class weights are an option of the loss: class_weight=, pos_weight=, alpha="
    if weight.dim() == 1 and logits.dim() > (1 if plan.mode == "binary" else 2) and given[0] != 1:
        return _sample_weight(plan, logits, weight, per_class).expand(grid)
    has_channel = plan.mode != "binary" or (logits.dim() > 1 and logits.shape[1] == 1)
    if has_channel and weight.dim() == logits.dim() - 1 and weight.dim() > 0:
        weight = weight.unsqueeze(1)
    elif plan.mode == "binary" and weight.dim() == logits.dim() + 1 and given[1] == 1:
        weight = weight.squeeze(1)
    try:
        return weight.expand(grid)
    except RuntimeError as error:
        looks_per_class = plan.mode != "binary" and weight.numel() == logits.shape[1] in given
        raise ValueError(
            f"weight of shape {given} does not broadcast to {tuple(grid)} (logits have shape {tuple(logits.shape)})"
            f"{per_class if looks_per_class else ''}"
        ) from error
