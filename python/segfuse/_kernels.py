"""Kernel calls: from plain CPU tensors to addresses, sizes and strides."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from segfuse import _C
from segfuse._checks import is_soft
from segfuse._native import DTYPE_CODE
from segfuse._plan import Plan

_Native: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def _native(tensor: Tensor) -> _Native:
    return tensor.data_ptr(), DTYPE_CODE[tensor.dtype], tensor.shape, tensor.stride()


def _optional(tensor: Tensor | None) -> _Native | None:
    return None if tensor is None else _native(tensor)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _inputs(
    plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[_Native, _Native, _Native | None, bool]:
    """The arguments that both native calls begin with, after the plan."""
    soft = plan.mode == "multiclass" and is_soft(logits, target)
    return _native(logits), _native(target), _optional(weight), soft


def forward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, terms and slopes."""
    shape = logits.shape
    dtype = plan.loss_dtype(logits)
    loss_shape = plan.loss_shape(shape)
    device = logits.device  # named, for `with torch.device(...)` would put them elsewhere
    loss = torch.empty(loss_shape, dtype=dtype, device=device)
    terms = torch.empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64, device=device)
    slopes = torch.empty(plan.slope_count(shape), dtype=dtype, device=device)
    if tables is not None:
        tables = tables.contiguous()
    if coefficients is not None:
        coefficients = coefficients.contiguous()
    _C.forward(
        plan.native,
        *_inputs(plan, logits, target, weight),
        _address(tables),
        _address(coefficients),
        _native(loss) if plan.unreduced else None,
        loss.data_ptr(),
        terms.data_ptr(),
        slopes.data_ptr(),
        slopes.numel(),
        torch.get_num_threads(),
    )
    return loss, terms, slopes


def backward(
    plan: Plan,
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    slopes: Tensor,
) -> Tensor:
    """The gradient in the logits, of their dtype and layout."""
    gradient = torch.empty_like(logits)
    if not plan.unreduced:
        grad_loss = grad_loss.contiguous()
    if tables is not None:
        tables = tables.contiguous()
    _C.backward(
        plan.native,
        *_inputs(plan, logits, target, weight),
        _address(tables),
        slopes.data_ptr(),
        slopes.numel(),
        0 if plan.unreduced else grad_loss.data_ptr(),
        _native(grad_loss) if plan.unreduced else None,
        _native(gradient),
        torch.get_num_threads(),
    )
    return gradient


def coefficient_gradient(grad_loss: Tensor, terms: Tensor) -> Tensor:
    """The gradient in the coefficients, from the terms (one row per term)."""
    return (terms * grad_loss).reshape(terms.shape[0], -1).sum(1)
