"""A plan: a loss, made from a spec, ready for the kernels and for the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segfuse import _C, reference
from segfuse._core.native import number_dtype
from segfuse._core.options import Shard
from segfuse._core.spec import (
    KernelSpec,
    KernelTerm,
    PointwiseTerm,
    RegionTerm,
    Spec,
    class_values_row,
    is_class_values,
)

# Name of a loss -> function of its options and the mode that gives the term of the kernels. Loss classes fill it.
LOWER: dict[str, Callable[[dict[str, Any], str], KernelTerm]] = {}

# Limits of `Plan.joined`: pixels of a sample; dimensions that the kernels take.
FEW_PIXELS, MOST_DIMS = 256, 15


class Data(NamedTuple):
    """The tensors of a call."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    soft: bool
    """True if a multiclass target has one value per class (soft or one-hot labels), not class indices."""


class Plan:
    """The terms with their options. ``spec`` is its text; all other fields are computed from it once."""

    def __init__(self, spec: str) -> None:
        content = Spec.from_json(spec)
        self.spec, self.content = spec, content
        self.mode, self.from_logits, self.ignore_index = content.mode, content.from_logits, content.ignore_index
        self.reduction, self.terms = content.reduction, content.terms
        self.process_group, self.shard, self.averaged = content.process_group, content.shard, content.averaged
        lowered = [replace(LOWER[t.name](t.options, self.mode), coefficient=t.coefficient) for t in self.terms]
        self.kernel_spec = KernelSpec(
            self.mode, self.from_logits, self.ignore_index, self.reduction, terms=tuple(lowered)
        )
        self._natives: dict[ModuleType, Any] = {}
        native = self.native_of(_C)
        self.sums_of: tuple[int, int] = native.sums  # (a, b): a sample has a + b * classes sums, csrc/problem.h
        self.slopes_of: tuple[int, int] = native.slopes
        self.listed_classes: int = native.listed_classes
        self.regions = [t for t in lowered if isinstance(t, RegionTerm)]
        pointwise = [t for t in lowered if isinstance(t, PointwiseTerm)]
        self.last_class = max((c for r in self.regions for c in r.classes), default=-1)
        self.unreduced = self.reduction == "none" and not self.regions
        self.unreduced_classes = self.unreduced and (self.mode != "multiclass" or pointwise[0].every_class)
        # True: one loss for all ranks. False: each rank has a loss of its own samples.
        self.is_global = self.reduction in ("mean", "sum") or any(r.pool_batch for r in self.regions)
        # True if no term tells the samples of a batch apart.
        self.joins_samples = (
            self.process_group is None
            and self.reduction in ("mean", "sum")
            and all(r.pool_batch for r in self.regions)
            and not any(p.balance == "balanced" for p in pointwise)
        )

    def native_of(self, module: ModuleType) -> Any:
        """This plan for a native module. It lives as long as this object."""
        if module not in self._natives:
            self._natives[module] = module.Plan(self.kernel_spec)
        return self._natives[module]

    def sharded(self, process_group: str, shard: Shard) -> Plan:
        """The same plan over the ranks of a group. Each rank gets its own part of the gradient, not averaged."""
        content = replace(self.content, process_group=process_group, shard=shard, averaged=False)
        return plan_of(content.to_json())

    def __reduce__(self) -> tuple[Callable[[str], Plan], tuple[str]]:
        return plan_of, (self.spec,)

    def classes(self, shape: Sequence[int]) -> int:
        """Number of classes for logits of a shape."""
        return 1 if self.mode == "binary" else shape[1]

    def loss_shape(self, shape: Sequence[int]) -> list[int]:
        """Shape of the loss for logits of a shape."""
        if self.reduction == "sample":
            return [shape[0]]
        if self.reduction != "none":
            return []
        if self.unreduced:
            return list(shape) if self.unreduced_classes else [shape[0], *shape[2:]]
        region = self.regions[0]
        samples = [] if region.pool_batch else [shape[0]]
        return samples if region.pool_classes else [*samples, len(region.classes) or self.classes(shape)]

    def joined(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape as a GPU reads it. Small samples are read as one sample if no term tells them apart.

        Else statistics and slopes of the rows would need more memory than the pixels of such samples.
        """
        first = 1 if self.mode == "binary" else 2
        pixels = math.prod(shape[first:])  # also for symbolic sizes
        if not self.joins_samples or shape[0] < 2 or len(shape) > MOST_DIMS or not 0 < pixels <= FEW_PIXELS:
            return shape
        return 1, *shape[1:first], shape[0], *shape[first:]

    def slope_count(self, shape: Sequence[int]) -> int:
        """How many numbers the head leaves for the gradient pass: the slopes and the status (csrc/problem.h)."""
        of_sample, of_class = self.slopes_of
        return shape[0] * (of_sample + of_class * self.classes(shape)) + 1

    def loss_dtype(self, logits: Tensor) -> torch.dtype:
        """float64 for float64 logits, else float32."""
        return torch.float64 if logits.dtype == torch.float64 else torch.float32

    def reference(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        class_values: Tensor | None,
        coefficients: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss and its terms in plain PyTorch (segfuse.reference). It has derivatives of any order."""
        if self.process_group is not None:
            raise NotImplementedError(
                "segfuse: a loss with a process_group has only the first derivative, in reverse mode, on a device with "
                "kernels"
            )
        values = []
        class_values = None if class_values is None else class_values.to(logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for term in self.terms:
                options = dict(term.options)
                for name, option in term.options.items():
                    if class_values is not None and is_class_values(option):
                        options[name] = class_values[class_values_row(option)]
                values.append(
                    getattr(reference, term.name)(
                        logits,
                        target,
                        mode=self.mode,
                        weight=weight,
                        from_logits=self.from_logits,
                        ignore_index=self.ignore_index,
                        reduction=self.reduction,
                        **options,
                    )
                )
            exact = torch.promote_types(self.loss_dtype(logits), number_dtype(logits.device))
            terms = torch.stack(values).to(exact)
            if coefficients is None:
                numbers = [t.coefficient for t in self.terms]
                coefficients = torch.tensor(numbers, dtype=exact, device=terms.device)
            loss = torch.tensordot(coefficients.to(terms), terms, dims=1)
        return loss.to(self.loss_dtype(logits)), terms.detach()

    def reference_stats(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """tp, fp, fn, tn in plain PyTorch, (N, C, 4)."""
        with torch.autocast(logits.device.type, enabled=False):
            stats = reference.region_stats(
                logits,
                target,
                mode=self.mode,
                weight=weight,
                from_logits=self.from_logits,
                ignore_index=self.ignore_index,
            )
        return torch.stack(stats, -1).to(self.loss_dtype(logits))


def data_of(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None) -> Data:
    """The data of checked tensors (`checks.check_inputs`). No method, because Dynamo cannot call one of a constant."""
    soft = plan.mode == "multiclass" and target.dim() == logits.dim() and target.shape[1] == logits.shape[1]
    return Data(logits, target, weight, soft)


@lru_cache(maxsize=1024)
def plan_of(spec: str) -> Plan:
    """The plan for the text of a spec."""
    return Plan(spec)


@torch.compiler.assume_constant_result
def plan_for(content: dict[str, Any]) -> Plan:
    """The plan for the fields of a spec. For Dynamo it is a constant, so a compiled function may make a loss."""
    return plan_of(Spec.of_fields(content).to_json())
