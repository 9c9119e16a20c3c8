"""The registered operators, for torch.compile, export, fake tensors and subclasses; the same for torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segfuse._core import steps
from segfuse._core.calls import Constants
from segfuse._core.counts import region_counts
from segfuse._core.plan import data_of, plan_of
from segfuse._core.steps import coefficient_gradient

_library = torch.library.Library("segfuse", "DEF")
_tags: tuple[torch.Tag, ...] = (torch.Tag.pt2_compliant_tag,)
if hasattr(torch.Tag, "needs_exact_strides"):
    _tags += (torch.Tag.needs_exact_strides,)
_library.define(
    "forward(Tensor logits, Tensor target, Tensor? weight, Tensor? class_values, Tensor? coefficients, str spec)"
    " -> (Tensor loss, Tensor terms, Tensor slopes)",
    tags=_tags,
)
_library.define(
    "backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, Tensor? class_values, Tensor slopes,"
    " str spec)"
    " -> Tensor",
    tags=_tags,
)


def _forward_op(logits: Tensor, target: Tensor, weight: Any, class_values: Any, coefficients: Any, spec: str) -> Any:
    plan = plan_of(spec)
    return tuple(steps.forward(plan, data_of(plan, logits, target, weight), Constants(class_values, coefficients))[0])


def _backward_op(
    grad_loss: Tensor, logits: Tensor, target: Tensor, weight: Any, class_values: Any, slopes: Tensor, spec: str
) -> Tensor:
    plan = plan_of(spec)
    return steps.backward(plan, grad_loss, data_of(plan, logits, target, weight), class_values, slopes)


for _device in ("CPU", "CUDA"):
    _library.impl("forward", _forward_op, _device)
    _library.impl("backward", _backward_op, _device)


@torch.library.register_fake("segfuse::forward", lib=_library)
def _(logits: Tensor, target: Tensor, weight: Any, class_values: Any, coefficients: Any, spec: str) -> Any:
    plan = plan_of(spec)
    dtype, loss_shape = plan.loss_dtype(logits), plan.loss_shape(logits.shape)
    shape = plan.joined(logits.shape) if logits.is_cuda else logits.shape
    return (
        logits.new_empty(loss_shape, dtype=dtype),
        logits.new_empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64),
        logits.new_empty([plan.slope_count(shape)], dtype=dtype),
    )


@torch.library.register_fake("segfuse::backward", lib=_library)
def _(
    grad_loss: Tensor, logits: Tensor, target: Tensor, weight: Any, class_values: Any, slopes: Tensor, spec: str
) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight, class_values, coefficients, spec = inputs
    _, terms, slopes = output
    ctx.save_for_backward(logits, target, weight, class_values, coefficients, slopes, terms)
    ctx.mark_non_differentiable(terms, slopes)
    ctx.spec = spec


def _backward_formula(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight, class_values, coefficients, slopes, terms = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True, in eager
        ctx.plan = plan_of(ctx.spec)
        return reference_gradient(ctx, grad_loss, logits, target, weight, class_values, coefficients)
    gradient = of_coefficients = None
    if ctx.needs_input_grad[0]:
        gradient = torch.ops.segfuse.backward(grad_loss, logits, target, weight, class_values, slopes, ctx.spec)
    if ctx.needs_input_grad[4]:
        of_coefficients = coefficient_gradient(grad_loss, terms, coefficients.device)
    return gradient, None, None, None, of_coefficients, None


_library.define("region_stats(Tensor logits, Tensor target, Tensor? weight, str spec) -> Tensor", tags=_tags)


def _region_stats_op(logits: Tensor, target: Tensor, weight: Any, spec: str) -> Tensor:
    plan = plan_of(spec)
    return steps.region_stats(plan, data_of(plan, logits, target, weight))


for _device in ("CPU", "CUDA"):
    _library.impl("region_stats", _region_stats_op, _device)


@torch.library.register_fake("segfuse::region_stats", lib=_library)
def _(logits: Tensor, target: Tensor, weight: Any, spec: str) -> Tensor:
    plan = plan_of(spec)
    return logits.new_empty([logits.shape[0], plan.classes(logits.shape), 4], dtype=plan.loss_dtype(logits))


_library.define(
    "region_counts(Tensor logits, Tensor target, Tensor? weight, float threshold, str spec) -> Tensor", tags=_tags
)


def _region_counts_op(logits: Tensor, target: Tensor, weight: Any, threshold: float, spec: str) -> Tensor:
    plan = plan_of(spec)
    return region_counts(plan, data_of(plan, logits, target, weight), threshold)


# For every device. As an operator it is hidden from torch.compile, because inductor (torch 2.13) computes wrong numbers
# for the difference of two integer scatter_add_.
_library.impl("region_counts", _region_counts_op, "CompositeExplicitAutograd")


@torch.library.register_fake("segfuse::region_counts", lib=_library)
def _(logits: Tensor, target: Tensor, weight: Any, threshold: float, spec: str) -> Tensor:
    return logits.new_empty([logits.shape[0], plan_of(spec).classes(logits.shape), 4], dtype=torch.int64)


def _save_region_stats(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)


def _region_stats_formula(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight = ctx.saved_tensors
    plan = plan_of(ctx.spec)
    if torch.is_grad_enabled():  # create_graph=True, in eager
        stats = plan.reference_stats(logits, target, weight)
        (gradient,) = torch.autograd.grad(stats, logits, grad, create_graph=True)
        return gradient, None, None, None
    return _stats_gradient(grad, logits, target, weight, ctx.spec), None, None, None


def _stats_gradient(grad: Tensor, logits: Tensor, target: Tensor, weight: Any, spec: str) -> Tensor:
    plan = plan_of(spec)
    slopes = steps.region_stats_slopes(plan, grad, plan.slope_count(logits.shape))
    one = grad.new_ones([])
    return torch.ops.segfuse.backward(one, logits, target, weight, None, slopes, spec)  # type: ignore[no-any-return]


def _vmap_rule(operator: Callable[..., Any], outputs: Any) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(operator, info.batch_size, in_dims, arguments), outputs

    return rule


def reference_gradient(
    ctx: Any,
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_values: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of a Function's inputs, computed by the reference so that they can be differentiated again."""
    wanted = {i: (logits, coefficients)[i == 4] for i in (0, 4) if ctx.needs_input_grad[i]}
    loss, _ = ctx.plan.reference(logits, target, weight, class_values, coefficients)
    inputs = [tensor for tensor in wanted.values() if tensor is not None]
    found = dict(zip(wanted, torch.autograd.grad(loss, inputs, grad_loss, create_graph=True), strict=True))
    return found.get(0), None, None, None, found.get(4), None


def _one_by_one(function: Callable[..., Any], count: int, dims: tuple[int | None, ...], arguments: Any) -> Any:
    """The vmap rule: one call for each element, because every element has its own sums."""
    calls = [
        function(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, dims, strict=True)))
        for i in range(count)
    ]
    return torch.stack(calls) if isinstance(calls[0], Tensor) else tuple(map(torch.stack, zip(*calls, strict=True)))


def _no_second_order(*_: object) -> Any:
    raise NotImplementedError(
        "segfuse: the second derivative is available in eager mode (create_graph=True) and by forward over reverse "
        "(torch.func.hessian), not under torch.compile or by reverse over reverse under torch.func"
    )


torch.library.register_autograd("segfuse::forward", _backward_formula, setup_context=_save, lib=_library)
torch.library.register_autograd("segfuse::backward", _no_second_order, lib=_library)
torch.library.register_autograd(
    "segfuse::region_stats", _region_stats_formula, setup_context=_save_region_stats, lib=_library
)
if hasattr(torch.library, "register_vmap"):
    torch.library.register_vmap("segfuse::forward", _vmap_rule(torch.ops.segfuse.forward, (0, 0, 0)), lib=_library)
    torch.library.register_vmap("segfuse::backward", _vmap_rule(torch.ops.segfuse.backward, 0), lib=_library)
    for _name in ("region_stats", "region_counts"):
        _rule = _vmap_rule(getattr(torch.ops.segfuse, _name), 0)
        torch.library.register_vmap(f"segfuse::{_name}", _rule, lib=_library)


class Functorch(torch.autograd.Function):
    """The loss for torch.func, because the autograd of the operator cannot run under its transforms."""

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        class_values: Tensor | None,
        coefficients: Tensor | None,
        spec: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.segfuse.forward(  # type: ignore[no-any-return]
            logits.detach(), target, weight, class_values, None if coefficients is None else coefficients.detach(), spec
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, class_values, coefficients, slopes, terms = ctx.saved_tensors
        gradient = _FunctorchGradient.apply(
            coefficients, grad_loss, logits, target, weight, class_values, slopes, ctx.spec
        )
        of_coefficients = None
        if coefficients is not None:
            of_coefficients = _FunctorchTerms.apply(grad_loss, terms, logits, coefficients.device)
        return gradient, None, None, None, of_coefficients, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(Functorch.apply, info.batch_size, in_dims, arguments), (0, 0, 0)


class _FirstOrderOnly(torch.autograd.Function):
    """Base of derivatives that cannot be differentiated again: it raises."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        _no_second_order()


class _FunctorchGradient(_FirstOrderOnly):
    """The gradient in the logits. It depends on the coefficients too, so they are an input. Its derivative raises."""

    @staticmethod
    def forward(coefficients: Tensor | None, *arguments: Any) -> Tensor:
        return torch.ops.segfuse.backward(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(_FunctorchGradient.apply, info.batch_size, in_dims, arguments), 0


class FunctorchStats(torch.autograd.Function):
    """`region_stats` for torch.func."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor, weight: Tensor | None, spec: str) -> Tensor:
        return torch.ops.segfuse.region_stats(logits.detach(), target, weight, spec)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_region_stats(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _FunctorchStatsGradient.apply(grad, *ctx.saved_tensors, ctx.spec), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(FunctorchStats.apply, info.batch_size, in_dims, arguments), 0


class _FunctorchStatsGradient(_FirstOrderOnly):
    """The gradient of `region_stats` in the logits. Its derivative raises."""

    @staticmethod
    def forward(grad: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, spec: str) -> Tensor:
        return _stats_gradient(grad, logits, target, weight, spec)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(_FunctorchStatsGradient.apply, info.batch_size, in_dims, arguments), 0


class _FunctorchTerms(_FirstOrderOnly):
    """The gradient in the coefficients. It depends on the logits through the terms; its derivative raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_loss: Tensor, terms: Tensor, logits: Tensor, device: torch.device) -> Tensor:
        return coefficient_gradient(grad_loss, terms, device)
