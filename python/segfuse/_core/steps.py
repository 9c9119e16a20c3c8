"""The three steps of a loss: statistics, head and gradient, in one process or over the ranks of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from segfuse._core.calls import Constants, Results
from segfuse._core.engines import Engine, required_engine
from segfuse._core.plan import Data, Plan


def new_results(plan: Plan, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Results:
    """Empty results, to be filled. The device is explicit because `with torch.device(...)` would choose another."""
    loss_shape = plan.loss_shape(shape)
    loss = torch.empty(loss_shape, dtype=dtype, device=device)
    terms = torch.empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64, device=device)
    return Results(loss, terms, torch.empty(plan.slope_count(shape), dtype=dtype, device=device))


def _brought(engine: Engine, constants: Constants, device: torch.device) -> Constants:
    """The constants, brought to where the kernels read them."""
    class_values, coefficients = constants
    if class_values is None and coefficients is None:
        return constants
    return Constants(
        None if class_values is None else engine.constant(class_values, device),
        None if coefficients is None else engine.constant(coefficients, device),
    )


def _joined(plan: Plan, data: Data) -> Data:
    """The data with all samples as one sample (`Plan.joined`)."""
    by_class = plan.mode == "multilabel"
    return Data(
        _join(data.logits, plan.mode != "binary"),
        _join(data.target, by_class or data.soft),
        None if data.weight is None else _join(data.weight, by_class),
        data.soft,
    )


def _join(tensor: Tensor, has_classes: bool) -> Tensor:
    return (tensor.movedim(1, 0) if has_classes else tensor).unsqueeze(0)


def forward(
    plan: Plan, data: Data, constants: Constants, wants_gradient: bool = False
) -> tuple[Results, Tensor | None]:
    """Loss, terms and slopes. With ``wants_gradient`` perhaps also a tensor for `backward`, which may use it once."""
    logits = data.logits
    if plan.process_group is not None and not plan.unreduced and _group_of(plan) is not None:
        sums = statistics(plan, data, constants)
        return head(plan, logits.shape, plan.loss_dtype(logits), data.soft, sums, constants), None
    device, given = logits.device, logits.shape
    engine = required_engine(device)
    shape = plan.joined(given) if engine.joins_samples else given
    joined = shape is not given
    results = new_results(plan, shape, plan.loss_dtype(logits), device)
    gradient = torch.empty_like(logits) if wants_gradient and engine.may_prefill(plan, logits) else None
    written = engine.forward(
        device,
        plan,
        _joined(plan, data) if joined else data,
        _brought(engine, constants, device),
        results,
        _join(gradient, plan.mode != "binary") if joined and gradient is not None else gradient,
    )
    return results, gradient if written else None


def statistics(plan: Plan, data: Data, constants: Constants) -> Tensor:
    """The sums of every domain (csrc/problem.h), float64 and flat. Calls on parts of the same samples add them."""
    device = data.logits.device
    engine = required_engine(device)
    return engine.statistics(device, plan, data, _brought(engine, Constants(constants.class_values), device))


def head(plan: Plan, shape: torch.Size, dtype: torch.dtype, soft: bool, sums: Tensor, constants: Constants) -> Results:
    """Loss, terms and slopes from the sums, for logits of a shape, over all ranks of the plan's process group.

    It takes one all-reduce. If ranks share samples it adds the sums, else a vector that is short for any number of
    samples.
    """
    device = sums.device
    engine, results, group = required_engine(device), new_results(plan, shape, dtype, device), _group_of(plan)
    if group is not None and plan.shard == "space":
        distributed.all_reduce(sums, group=group)

    def between(vector: Tensor) -> None:
        if group is not None and plan.shard == "batch":
            distributed.all_reduce(vector, group=group)

    engine.head(device, plan, shape, soft, _brought(engine, constants, device), sums, results, between)
    if group is not None and plan.averaged and (plan.shard == "space" or plan.is_global):
        results.slopes.mul_(distributed.get_world_size(group))  # DDP and FSDP divide by it later
    return results


def _group_of(plan: Plan) -> Any:
    """The plan's process group. None if there is none, or if it has a single rank: the bits are the same then."""
    if plan.process_group is None:
        return None
    if not distributed.is_initialized():
        raise RuntimeError(
            f"process_group {plan.process_group!r}: torch.distributed is not initialized in this process"
        )
    resolve: Any = distributed.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    group = resolve(plan.process_group)
    return group if distributed.get_world_size(group) > 1 else None


def backward(
    plan: Plan,
    grad_loss: Tensor,
    data: Data,
    class_values: Tensor | None,
    slopes: Tensor,
    prefilled: Tensor | None = None,
) -> Tensor:
    """The gradient in the logits, with their dtype and layout. ``prefilled`` is the tensor that `forward` gave."""
    logits, device, given = data.logits, data.logits.device, data.logits.shape
    gradient = torch.empty_like(logits) if prefilled is None else prefilled
    engine = required_engine(device)
    shape = plan.joined(given) if engine.joins_samples else given
    # `forward` gives slopes for the joined sample, `head` gives slopes for all samples.
    joined = shape is not given and slopes.numel() == plan.slope_count(shape)
    engine.backward(
        device,
        plan,
        _joined(plan, data) if joined else data,
        _brought(engine, Constants(class_values), device),
        slopes,
        grad_loss if plan.unreduced else grad_loss.contiguous(),
        _join(gradient, plan.mode != "binary") if joined else gradient,
        prefilled is not None,
    )
    return gradient


def region_stats(plan: Plan, data: Data) -> Tensor:
    """tp, fp, fn, tn of every sample and class, (N, C, 4). The plan has one sensitivity_specificity_loss alone."""
    logits = data.logits
    n, classes = logits.shape[0], plan.classes(logits.shape)
    multiclass = plan.mode == "multiclass"
    of_sample, of_class = plan.sums_of
    # They are the last four sums of a class. The sums before them are for pointwise terms (csrc/problem.h).
    rows = statistics(plan, data, Constants()).reshape(n, of_sample + of_class * classes)
    tp, fp, fn, tn = rows[:, of_sample:].reshape(n, classes, of_class)[..., -4:].unbind(-1)
    if multiclass and not data.soft:  # a label map: tn = other labels - fp. The other labels are added, not subtracted
        positives = tp + fn
        nothing = positives.new_zeros(n, 1)
        before = torch.cat([nothing, positives[:, :-1]], 1).cumsum(1)
        after = torch.cat([nothing, positives.flip(1)[:, :-1]], 1).cumsum(1).flip(1)
        negatives = before + after
        tn = torch.where(negatives < fp, 0.0, negatives - fp)  # not below 0 by rounding; NaN stays
    return torch.stack([tp, fp, fn, tn], -1).to(plan.loss_dtype(logits))


def region_stats_slopes(plan: Plan, grad: Tensor, slope_count: int) -> Tensor:
    """The slopes (csrc/problem.h) of a function of the statistics, from its gradient in the statistics, (N, C, 4)."""
    tp, fp, fn, tn = grad.unbind(-1)
    zero = torch.zeros_like(tp)
    slopes = torch.stack([tp - fn, fp - tn, zero, zero, zero, zero], -1).flatten()
    return torch.cat([slopes, slopes.new_zeros(slope_count - slopes.numel())])


def coefficient_gradient(grad_loss: Tensor, terms: Tensor, device: torch.device) -> Tensor:
    """The gradient in the coefficients, on their device, from the terms (one row per term)."""
    return (terms * grad_loss).reshape(terms.shape[0], -1).sum(1).to(device)
