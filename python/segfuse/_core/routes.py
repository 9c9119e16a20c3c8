"""From tensors to kernels: the routes of a call, and its autograd in eager mode.

Only a plain, real tensor has an address that kernels may read. `apply` chooses the route of a call. `_gradient` chooses
again, because a backward may run under other modes than its forward:

    compiling (Dynamo, export)             the registered operator
    DTensors                               `apply` again, on each rank's part (dtensor.py)
    forward-mode AD (jvp, hessian)         the reference
    functorch (vmap, func.grad, jacrev)    the operator, inside a Function with setup_context
    plain tensors, no mode active          kernels directly, through a plain autograd.Function if a gradient is wanted
    a device without kernels               the reference (one warning; an error if SEGFUSE_STRICT=1)
    anything else (fake, subclass, trace)  the registered operator

The second derivative is that of the reference. Under torch.func and torch.compile it is an error.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from segfuse._core import engines, steps
from segfuse._core.calls import Constants
from segfuse._core.checks import check_inputs
from segfuse._core.dtensor import apply_to_parts, is_dtensor
from segfuse._core.native import PLAIN, functorch_active, is_plain
from segfuse._core.operators import Functorch, FunctorchStats, reference_gradient
from segfuse._core.plan import Data, Plan
from segfuse._core.steps import coefficient_gradient

# A private name of torch, with a safe default.
_has_storage: Callable[[Tensor], bool] = getattr(torch._C, "_has_storage", lambda _: True)


def apply(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_values: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss, and its terms: detached, unscaled, float64, one row per term."""
    if torch.compiler.is_compiling():
        logits, target, weight, _ = check_inputs(plan, logits, target, weight)
        if not logits.is_meta and not engines.has_kernels(str(logits.device)):
            return plan.reference(logits, target, weight, class_values, coefficients)
        loss, terms, _ = torch.ops.segfuse.forward(logits, target, weight, class_values, coefficients, plan.spec)
        return loss, terms
    if not (type(logits) in PLAIN and type(target) in PLAIN and weight is None and coefficients is None):
        if is_dtensor(logits):
            return apply_to_parts(apply, plan, logits, target, weight, class_values, coefficients)
        logits, target = _unwrap(logits), _unwrap(target)
        weight, coefficients = _unwrap(weight), _unwrap(coefficients)
    data = check_inputs(plan, logits, target, weight)
    logits, target, weight, _ = data
    if _dual_level() >= 0:
        return plan.reference(logits, target, weight, class_values, coefficients)
    if functorch_active():
        loss, terms, _ = Functorch.apply(logits, target, weight, class_values, coefficients, plan.spec)
        return loss, terms
    if is_plain(logits, target, weight, class_values, coefficients):
        if not logits.is_meta and engines.engine_of(logits.device) is not None:
            wants_grad = logits.requires_grad or (coefficients is not None and coefficients.requires_grad)
            if wants_grad and torch.is_grad_enabled():
                return _Loss.apply(logits, target, weight, class_values, coefficients, plan, data.soft)  # type: ignore[no-any-return]
            results, _ = steps.forward(plan, data, Constants(class_values, coefficients))
            return results.loss, results.terms
        if not logits.is_meta:
            _announce_reference(logits.device)
            return plan.reference(logits, target, weight, class_values, coefficients)
    loss, terms, _ = torch.ops.segfuse.forward(logits, target, weight, class_values, coefficients, plan.spec)
    return loss, terms


def region_stats(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """tp, fp, fn, tn of every sample and class, (N, C, 4). The reference computes them where the operator cannot."""
    logits, target, weight, _ = _checked(plan, logits, target, weight)
    if torch.compiler.is_compiling():
        kernels = logits.is_meta or engines.has_kernels(str(logits.device))
    else:
        kernels = logits.is_meta or engines.engine_of(logits.device) is not None
        if not kernels:
            _announce_reference(logits.device)
        if kernels and _dual_level() < 0 and functorch_active():
            return FunctorchStats.apply(logits, target, weight, plan.spec)  # type: ignore[no-any-return]
        kernels = kernels and _dual_level() < 0
    if not kernels:
        return plan.reference_stats(logits, target, weight)
    return torch.ops.segfuse.region_stats(logits, target, weight, plan.spec)  # type: ignore[no-any-return]


def region_counts(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None, threshold: float) -> Tensor:
    """tp, fp, fn, tn of hard predictions, of every sample and class, int64, (N, C, 4). They have no gradient."""
    logits, target, weight, _ = _checked(plan, logits, target, weight)
    return torch.ops.segfuse.region_counts(logits.detach(), target, weight, threshold, plan.spec)  # type: ignore[no-any-return]


def _checked(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None) -> Data:
    if not torch.compiler.is_compiling():
        logits, target, weight = _unwrap(logits), _unwrap(target), _unwrap(weight)
    return check_inputs(plan, logits, target, weight)


def _dual_level() -> int:
    """>= 0 inside forward-mode AD (torch.func.jvp, jacfwd and hessian too)."""
    return getattr(forward_ad, "_current_level", -1)


def _unwrap(tensor: Any) -> Any:
    """A plain tensor in place of a subclass that has only ``__torch_function__`` (MONAI's MetaTensor)."""
    if type(tensor) in PLAIN or not isinstance(tensor, Tensor):
        return tensor
    if type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
        return tensor.as_subclass(Tensor)
    return tensor


_announced: set[str] = set()


def _announce_reference(device: torch.device) -> None:
    reason = engines.reasons.get(str(device), "no such device is supported")
    message = f"segfuse has no kernels for {device} ({reason}): the loss runs in plain PyTorch (segfuse.reference)"
    if os.environ.get("SEGFUSE_STRICT") == "1":
        raise RuntimeError(message + ", which SEGFUSE_STRICT=1 forbids")
    if str(device) not in _announced:
        _announced.add(str(device))
        warnings.warn(message, RuntimeWarning, stacklevel=4)


class _Loss(torch.autograd.Function):
    """The fast route. It saves the inputs, the slopes (a few floats per row), and a gradient if there is one."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        class_values: Tensor | None,
        coefficients: Tensor | None,
        plan: Plan,
        soft: bool,
    ) -> tuple[Tensor, Tensor]:
        data, constants = Data(logits, target, weight, soft), Constants(class_values, coefficients)
        (loss, terms, slopes), ctx.gradient = steps.forward(plan, data, constants, wants_gradient=logits.requires_grad)
        ctx.save_for_backward(logits, target, weight, class_values, coefficients, slopes, terms)
        ctx.plan, ctx.soft = plan, soft
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # saves 3 us: no zeros for the terms
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:  # the loss has no upstream gradient
            return (None,) * 7
        logits, target, weight, class_values, coefficients, slopes, terms = ctx.saved_tensors
        wants_logits, wants_coefficients = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
        if torch.is_grad_enabled():  # create_graph=True: this gradient will be differentiated again
            return *reference_gradient(ctx, grad_loss, logits, target, weight, class_values, coefficients), None
        # Use it once only: a second backward must not write into the tensor that this one returns.
        prefilled, ctx.gradient = ctx.gradient, None
        gradient = None
        if wants_logits:
            data = Data(logits, target, weight, ctx.soft)
            gradient = _gradient(ctx.plan, grad_loss, data, class_values, slopes, prefilled)
        of_coefficients = coefficient_gradient(grad_loss, terms, coefficients.device) if wants_coefficients else None
        return gradient, None, None, None, of_coefficients, None, None


def _gradient(
    plan: Plan, grad_loss: Tensor, data: Data, class_values: Tensor | None, slopes: Tensor, prefilled: Tensor | None
) -> Tensor:
    """`steps.backward` by the right route: a backward may be batched (is_grads_batched), traced, or compiled."""
    saved = data.logits, data.target, data.weight, class_values, slopes
    if not torch.compiler.is_compiling() and _has_storage(grad_loss) and is_plain(grad_loss, *saved):
        return steps.backward(plan, grad_loss, data, class_values, slopes, prefilled)
    return torch.ops.segfuse.backward(grad_loss, *saved, plan.spec)  # type: ignore[no-any-return]
