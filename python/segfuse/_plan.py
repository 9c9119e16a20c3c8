"""A plan: which terms, with which options, over the same two passes.

Its ``spec`` is text (JSON), so it can stand in a traced graph or a pickle; the rest is derived from it, once.
Options that are tensors (class weights) stand in it as ``{"table": i}``, row i of the tables that each call brings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from segfuse import _C, reference
from segfuse._native import number_dtype

# name -> the native term (csrc/cpu/binding.cpp) for its options and the mode. Filled by the loss modules.
LOWER: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {}


# Of `Plan.joined`: pixels of a sample, and dimensions that the kernels take.
FEW_PIXELS, MOST_DIMS = 256, 15


def is_table(option: object) -> bool:
    """Whether an option's values are a row of the tables."""
    return isinstance(option, dict) and option.keys() == {"table"}


def table_of(option: Any) -> int:
    """The row of the tables that holds an option's values, -1 if it has none."""
    return int(option["table"]) if is_table(option) else -1


class Plan:
    """What a spec says, ready for the kernels and for the reference."""

    def __init__(self, spec: str) -> None:
        content = json.loads(spec)
        self.spec = spec
        self.mode: str = content["mode"]
        self.from_logits: bool = content["from_logits"]
        self.ignore_index: int | None = content["ignore_index"]
        self.reduction: str = content["reduction"]
        self.process_group: str | None = content["process_group"]
        self.shard: str = content["shard"]
        # Whether gradients are averaged over the ranks, as DDP and FSDP do, so that each must be that much larger.
        self.averaged: bool = content.get("averaged", True)
        self.terms: list[dict[str, Any]] = content["terms"]
        lowered = [{**LOWER[t["name"]](t["options"], self.mode), "coefficient": t["coefficient"]} for t in self.terms]
        self.lowered: dict[str, Any] = {**content, "terms": lowered}
        self.native = _C.Plan(self.lowered)
        self._natives: dict[ModuleType, Any] = {}
        self.regions = [t for t in lowered if t["family"] == "region"]
        self.points = len(lowered) - len(self.regions)
        self.last_class = max((c for r in self.regions for c in r["classes"]), default=-1)
        self.listed_classes = sum(len(r["classes"]) for r in self.regions)
        self.unreduced = self.reduction == "none" and not self.regions
        # Whether the loss is one of all ranks, not of each rank's own samples.
        self.is_global = self.reduction in ("mean", "sum") or any(r["pool_batch"] for r in self.regions)
        # Whether no term tells the samples of a batch apart.
        self.joins_samples = (
            self.process_group is None
            and self.reduction in ("mean", "sum")
            and all(r["pool_batch"] for r in self.regions)
            and not any(t.get("balance") == "balanced" for t in lowered)
        )

    def native_of(self, module: ModuleType) -> Any:
        """The plan of another native module, which lives as long as this one."""
        if module not in self._natives:
            self._natives[module] = module.Plan(self.lowered)
        return self._natives[module]

    def sharded(self, process_group: str, shard: str) -> Plan:
        """The same over the ranks of a group, each of which gets its own part of the gradient, not averaged."""
        own = {"process_group": process_group, "shard": shard, "averaged": False}
        return plan_of(json.dumps({**json.loads(self.spec), **own}, sort_keys=True))

    def __reduce__(self) -> tuple[Callable[[str], Plan], tuple[str]]:
        return plan_of, (self.spec,)

    def loss_shape(self, shape: Sequence[int]) -> list[int]:
        """Shape of the loss for logits of a shape."""
        if self.reduction == "sample":
            return [shape[0]]
        if self.reduction != "none":
            return []
        if self.unreduced:
            per_class = self.mode != "multiclass" or self.lowered["terms"][0]["every_class"]
            return list(shape) if per_class else [shape[0], *shape[2:]]
        region = self.regions[0]
        classes = len(region["classes"]) or (1 if self.mode == "binary" else shape[1])
        return (
            []
            if region["pool_batch"] and region["pool_classes"]
            else [
                *([] if region["pool_batch"] else [shape[0]]),
                *([] if region["pool_classes"] else [classes]),
            ]
        )

    def joined(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape as a GPU reads it: the samples as one, where they have fewer pixels than a row has numbers beside
        its gradient (statistics, slopes) and no term tells them apart; else as it is."""
        first = 1 if self.mode == "binary" else 2
        pixels = math.prod(shape[first:])  # of symbolic sizes, too
        if not self.joins_samples or shape[0] < 2 or len(shape) > MOST_DIMS or not 0 < pixels <= FEW_PIXELS:
            return shape
        return 1, *shape[1:first], shape[0], *shape[first:]

    def slope_count(self, shape: Sequence[int]) -> int:
        """Floats that the head leaves for the gradient pass (Layout in csrc/problem.h), and one more (steps.h)."""
        classes = 1 if self.mode == "binary" else shape[1]
        units, rows = (shape[0], classes) if self.mode == "multiclass" else (shape[0] * classes, 1)
        return units * (2 * self.points + (6 * rows if self.regions else 0)) + 1

    def loss_dtype(self, logits: Tensor) -> torch.dtype:
        """float64 for float64 logits, else float32."""
        return torch.float64 if logits.dtype == torch.float64 else torch.float32

    def reference(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, tables: Tensor | None, coefficients: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss and its terms in plain PyTorch (segfuse.reference), differentiable as often as you like."""
        if self.process_group is not None:
            raise NotImplementedError(
                "segfuse: with a process_group there is only the first derivative, by the kernels, in reverse mode"
            )
        values = []
        tables = None if tables is None else tables.to(logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for term in self.terms:
                options = {
                    k: tables[table_of(v)] if is_table(v) and tables is not None else v
                    for k, v in term["options"].items()
                }
                values.append(
                    getattr(reference, term["name"])(
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
                numbers = [t["coefficient"] for t in self.terms]
                coefficients = torch.tensor(numbers, dtype=exact, device=terms.device)
            loss = torch.tensordot(coefficients.to(terms), terms, dims=1)
        return loss.to(self.loss_dtype(logits)), terms.detach()

    def reference_stats(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """tp, fp, fn, tn in plain PyTorch, (N, C, 4)."""
        data = {"from_logits": self.from_logits, "ignore_index": self.ignore_index}
        with torch.autocast(logits.device.type, enabled=False):
            stats = reference.region_stats(logits, target, mode=self.mode, weight=weight, **data)  # type: ignore[arg-type]
        return torch.stack(stats, -1).to(self.loss_dtype(logits))


@lru_cache(maxsize=1024)
def plan_of(spec: str) -> Plan:
    """The plan of a spec."""
    return Plan(spec)


# Of what the operators take and give (slopes, terms). A compiled graph that was kept on disk knows their sizes, and is
# found again by the spec: a change of sizes must change the spec.
LAYOUT = 3


@torch.compiler.assume_constant_result
def plan_for(content: dict[str, Any]) -> Plan:
    """The plan of a spec's content. A constant to Dynamo, so a loss may be built inside a compiled function."""
    return plan_of(json.dumps({**content, "layout": LAYOUT}, sort_keys=True))
