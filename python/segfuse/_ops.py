"""From tensors to kernels: the routes of a call, its autograd, and the registered operators.

A raw pointer may be taken of a plain, real tensor only. Which of the routes a call takes is decided in `apply`:

    compiling (Dynamo, export)             the registered operator
    functorch (vmap, func.grad, jacrev)    the operator, inside a Function with setup_context
    plain CPU tensors, no mode active      kernels directly, through a plain autograd.Function if a gradient is wanted
    a device without kernels               the reference (one warning; an error if SEGFUSE_STRICT=1)
    anything else (fake, subclass, trace)  the registered operator
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from segfuse import _C
from segfuse._checks import check_inputs, is_soft
from segfuse._native import DTYPE_CODE
from segfuse._plan import Plan, plan_of

# Private names of torch, read with a safe default: without them the slower routes are taken.
_functorch_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_tracing_state: Callable[[], object] = getattr(torch._C, "_get_tracing_state", lambda: None)
_PLAIN = (Tensor, torch.nn.Parameter)


def apply(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss and its (detached, unscaled) terms, float64, one row per term."""
    if torch.compiler.is_compiling():
        logits, target, weight = check_inputs(plan, logits, target, weight)
        if logits.device.type not in ("cpu", "meta"):
            return plan.reference(logits, target, weight, tables, coefficients)
        loss, terms, _ = torch.ops.segfuse.forward(logits, target, weight, tables, coefficients, plan.spec)
        return loss, terms
    logits, target = _unwrap(logits), _unwrap(target)
    weight = None if weight is None else _unwrap(weight)
    logits, target, weight = check_inputs(plan, logits, target, weight)
    if _functorch_active():
        loss, terms, _ = _Functorch.apply(logits, target, weight, tables, coefficients, plan.spec)
        return loss, terms
    plain = type(logits) in _PLAIN and type(target) is Tensor and (weight is None or type(weight) is Tensor)
    if plain and _dispatch_modes() == 0 and _tracing_state() is None:
        if logits.is_cpu:
            wants_grad = logits.requires_grad or (coefficients is not None and coefficients.requires_grad)
            if wants_grad and torch.is_grad_enabled():
                return _Loss.apply(logits, target, weight, tables, coefficients, plan)  # type: ignore[no-any-return]
            loss, terms, _ = _forward(plan, logits, target, weight, tables, coefficients)
            return loss, terms
        if not logits.is_meta:
            _announce_reference(logits.device)
            return plan.reference(logits, target, weight, tables, coefficients)
    loss, terms, _ = torch.ops.segfuse.forward(logits, target, weight, tables, coefficients, plan.spec)
    return loss, terms


def _unwrap(tensor: Tensor) -> Tensor:
    """A subclass that only wraps ``__torch_function__`` (MONAI's MetaTensor) is a plain tensor to the kernels."""
    if type(tensor) in _PLAIN or not isinstance(tensor, Tensor):
        return tensor
    if type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
        return tensor.as_subclass(Tensor)
    return tensor


_announced: set[str] = set()


def _announce_reference(device: torch.device) -> None:
    message = f"segfuse has no kernels for {device.type} here: the loss runs in plain PyTorch (segfuse.reference)"
    if os.environ.get("SEGFUSE_STRICT") == "1":
        raise RuntimeError(message + ", which SEGFUSE_STRICT=1 forbids")
    if device.type not in _announced:
        _announced.add(device.type)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


# ------------------------------------------------------------------------------------------------------- kernel calls


_Native: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def _native(tensor: Tensor) -> _Native:
    return tensor.data_ptr(), DTYPE_CODE[tensor.dtype], tensor.shape, tensor.stride()


def _optional(tensor: Tensor | None) -> _Native | None:
    return None if tensor is None else _native(tensor)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _forward(
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
    loss = torch.empty(loss_shape, dtype=dtype)
    terms = torch.empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64)
    slopes = torch.empty(plan.slope_count(shape), dtype=dtype)
    if tables is not None:
        tables = tables.contiguous()
    if coefficients is not None:
        coefficients = coefficients.contiguous()
    _C.forward(
        plan.native,
        _native(logits),
        _native(target),
        _optional(weight),
        plan.mode == "multiclass" and is_soft(logits, target),
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


def _backward(
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
        _native(logits),
        _native(target),
        _optional(weight),
        plan.mode == "multiclass" and is_soft(logits, target),
        _address(tables),
        slopes.data_ptr(),
        slopes.numel(),
        0 if plan.unreduced else grad_loss.data_ptr(),
        _native(grad_loss) if plan.unreduced else None,
        _native(gradient),
        torch.get_num_threads(),
    )
    return gradient


def _coefficient_gradient(grad_loss: Tensor, terms: Tensor) -> Tensor:
    return (terms * grad_loss).reshape(terms.shape[0], -1).sum(1)


# ----------------------------------------------------------------------------------------------------- eager autograd


class _Loss(torch.autograd.Function):
    """The fast route. Saved: the inputs, and the few floats per row that the head leaves."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        tables: Tensor | None,
        coefficients: Tensor | None,
        plan: Plan,
    ) -> tuple[Tensor, Tensor]:
        loss, terms, slopes = _forward(plan, logits, target, weight, tables, coefficients)
        ctx.save_for_backward(logits, target, weight, tables, coefficients, slopes, terms)
        ctx.plan = plan
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, tables, coefficients, slopes, terms = ctx.saved_tensors
        wants_logits, wants_coefficients = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
        if torch.is_grad_enabled():  # create_graph=True: this gradient is to be differentiated again
            return _reference_gradient(ctx, grad_loss, logits, target, weight, tables, coefficients)
        return (
            _backward(ctx.plan, grad_loss, logits, target, weight, tables, slopes) if wants_logits else None,
            None,
            None,
            None,
            _coefficient_gradient(grad_loss, terms) if wants_coefficients else None,
            None,
        )


def _reference_gradient(
    ctx: Any,
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor | None, ...]:
    wanted = {i: (logits, coefficients)[i == 4] for i in (0, 4) if ctx.needs_input_grad[i]}
    loss, _ = ctx.plan.reference(logits, target, weight, tables, coefficients)
    inputs = [tensor for tensor in wanted.values() if tensor is not None]
    found = dict(zip(wanted, torch.autograd.grad(loss, inputs, grad_loss, create_graph=True), strict=True))
    return found.get(0), None, None, None, found.get(4), None


class _Functorch(torch.autograd.Function):
    """For torch.func: the operator's own autograd cannot run under its transforms."""

    generate_vmap_rule = False

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        tables: Tensor | None,
        coefficients: Tensor | None,
        spec: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.segfuse.forward(  # type: ignore[no-any-return]
            logits.detach(), target, weight, tables, None if coefficients is None else coefficients.detach(), spec
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _save(ctx, inputs, output)
        ctx.mark_non_differentiable(output[1], output[2])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, tables, coefficients, slopes, terms = ctx.saved_tensors
        gradient = _FunctorchGradient.apply(grad_loss, logits, target, weight, tables, slopes, ctx.spec)
        return (
            gradient,
            None,
            None,
            None,
            None if coefficients is None else _coefficient_gradient(grad_loss, terms),
            None,
        )


class _FunctorchGradient(torch.autograd.Function):
    """First order only: its own derivative raises."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return torch.ops.segfuse.backward(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        _no_second_order()


def _no_second_order(*_: object) -> Any:
    raise NotImplementedError(
        "segfuse: the second derivative is available in plain eager mode (create_graph=True), "
        "not under torch.compile, torch.func or tensor subclasses"
    )


# ---------------------------------------------------------------------------------------------------------- operators

_library = torch.library.Library("segfuse", "DEF")
_tags: tuple[torch.Tag, ...] = (torch.Tag.pt2_compliant_tag,)
if hasattr(torch.Tag, "needs_exact_strides"):
    _tags += (torch.Tag.needs_exact_strides,)
_library.define(
    "forward(Tensor logits, Tensor target, Tensor? weight, Tensor? tables, Tensor? coefficients, str spec)"
    " -> (Tensor loss, Tensor terms, Tensor slopes)",
    tags=_tags,
)
_library.define(
    "backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, Tensor? tables, Tensor slopes, str spec)"
    " -> Tensor",
    tags=_tags,
)


def _forward_op(logits: Tensor, target: Tensor, weight: Any, tables: Any, coefficients: Any, spec: str) -> Any:
    return _forward(plan_of(spec), logits, target, weight, tables, coefficients)


def _backward_op(
    grad_loss: Tensor, logits: Tensor, target: Tensor, weight: Any, tables: Any, slopes: Tensor, spec: str
) -> Tensor:
    return _backward(plan_of(spec), grad_loss, logits, target, weight, tables, slopes)


_library.impl("forward", _forward_op, "CPU")
_library.impl("backward", _backward_op, "CPU")


@torch.library.register_fake("segfuse::forward", lib=_library)
def _(logits: Tensor, target: Tensor, weight: Any, tables: Any, coefficients: Any, spec: str) -> Any:
    plan = plan_of(spec)
    dtype, loss_shape = plan.loss_dtype(logits), plan.loss_shape(logits.shape)
    return (
        logits.new_empty(loss_shape, dtype=dtype),
        logits.new_empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64),
        logits.new_empty([plan.slope_count(logits.shape)], dtype=dtype),
    )


@torch.library.register_fake("segfuse::backward", lib=_library)
def _(grad_loss: Tensor, logits: Tensor, target: Tensor, weight: Any, tables: Any, slopes: Tensor, spec: str) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight, tables, coefficients, spec = inputs
    ctx.save_for_backward(logits, target, weight, tables, coefficients, output[2], output[1])
    ctx.spec = spec


def _backward_formula(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight, tables, coefficients, slopes, terms = ctx.saved_tensors
    gradient = None
    if ctx.needs_input_grad[0]:
        gradient = torch.ops.segfuse.backward(grad_loss, logits, target, weight, tables, slopes, ctx.spec)
    wants_coefficients = coefficients is not None and ctx.needs_input_grad[4]
    return gradient, None, None, None, _coefficient_gradient(grad_loss, terms) if wants_coefficients else None, None


torch.library.register_autograd("segfuse::forward", _backward_formula, setup_context=_save, lib=_library)
torch.library.register_autograd("segfuse::backward", _no_second_order, lib=_library)
