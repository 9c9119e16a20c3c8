"""Metrics of hard predictions, from exact counts. Counts can be added over batches and ranks.

Each function takes counts ``(tp, fp, fn, tn)`` of any shape, for example from :func:`segfuse.region_stats` with
``hard=True``. It returns one ratio per entry, in float64 (float32 on a device without float64, such as Apple's MPS).
0/0 gives ``zero_division`` (default 0, as in scikit-learn; a NaN is left out of averages). :class:`SegmentationMetrics`
adds up the counts of many batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, distributed

from segfuse._core.native import number_dtype
from segfuse._core.options import MODES, Mode, check_choice
from segfuse.stats import RegionStats, region_stats

if TYPE_CHECKING:
    Metric: TypeAlias = Callable[..., Tensor]

__all__ = [
    "SegmentationMetrics",
    "balanced_accuracy",
    "dice",
    "error_rate",
    "f1",
    "iou",
    "precision",
    "recall",
    "specificity",
]


def _ratio(numerator: Tensor, denominator: Tensor, zero_division: float) -> Tensor:
    dtype = number_dtype(numerator.device)
    value = numerator.to(dtype) / denominator.to(dtype)
    return torch.where(denominator == 0, zero_division, value)


def iou(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Intersection over union (Jaccard index): tp / (tp + fp + fn).

    >>> segfuse.metrics.iou(*torch.tensor([3, 1, 2, 4]))
    tensor(0.5000, dtype=torch.float64)
    """
    return _ratio(tp, tp + fp + fn, zero_division)


def dice(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Dice coefficient, the same as F1: 2 tp / (2 tp + fp + fn).

    >>> segfuse.metrics.dice(*torch.tensor([3, 1, 2, 4]))
    tensor(0.6667, dtype=torch.float64)
    """
    return _ratio(2 * tp, 2 * tp + fp + fn, zero_division)


f1 = dice


def recall(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Recall (sensitivity): tp / (tp + fn).

    >>> segfuse.metrics.recall(*torch.tensor([3, 1, 2, 4]))
    tensor(0.6000, dtype=torch.float64)
    """
    return _ratio(tp, tp + fn, zero_division)


def specificity(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Specificity: tn / (tn + fp).

    >>> segfuse.metrics.specificity(*torch.tensor([3, 1, 2, 4]))
    tensor(0.8000, dtype=torch.float64)
    """
    return _ratio(tn, tn + fp, zero_division)


def precision(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Precision: tp / (tp + fp).

    >>> segfuse.metrics.precision(*torch.tensor([3, 1, 2, 4]))
    tensor(0.7500, dtype=torch.float64)
    """
    return _ratio(tp, tp + fp, zero_division)


def balanced_accuracy(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Balanced accuracy of a class against the rest: (recall + specificity) / 2.

    >>> segfuse.metrics.balanced_accuracy(*torch.tensor([3, 1, 2, 4]))
    tensor(0.7000, dtype=torch.float64)
    """
    return (recall(tp, fp, fn, tn, zero_division) + specificity(tp, fp, fn, tn, zero_division)) / 2


def error_rate(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, zero_division: float = 0.0) -> Tensor:
    """Error rate (0-1 loss) of a class against the rest: (fp + fn) / (tp + fp + fn + tn).

    >>> segfuse.metrics.error_rate(*torch.tensor([3, 1, 2, 4]))
    tensor(0.3000, dtype=torch.float64)
    """
    return _ratio(fp + fn, tp + fp + fn + tn, zero_division)


METRICS: dict[str, Metric] = {
    "iou": iou,
    "dice": dice,
    "recall": recall,
    "specificity": specificity,
    "precision": precision,
    "balanced_accuracy": balanced_accuracy,
    "error_rate": error_rate,
}


class SegmentationMetrics:
    """All metrics over many batches, exact over ranks.

    >>> metrics = segfuse.metrics.SegmentationMetrics("multiclass", ignore_index=255)
    >>> for _ in range(2):
    ...     logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    ...     metrics.update(logits, target)
    >>> metrics.compute()["iou"]  # float64, the mean over classes
    tensor(0.2500, dtype=torch.float64)

    Args:
        mode ("binary" | "multilabel" | "multiclass"): a class is predicted where its probability is > threshold. In
            "multiclass" it is predicted where its probability is the largest (if equal, the lowest index).
        ignore_index (int | None, default None): pixels with this label do not count.
        from_logits (bool, default True): False: the logits are already probabilities, in [0, 1].
        threshold (float, default 0.5): in (0, 1). Not used in "multiclass".
    """

    def __init__(
        self, mode: Mode, *, ignore_index: int | None = None, from_logits: bool = True, threshold: float = 0.5
    ) -> None:
        check_choice("mode", mode, MODES)
        self.mode = mode
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "from_logits": from_logits,
            "threshold": threshold,
        }
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._counts: Tensor | None = None

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch. ``weight`` is a mask: pixels where it is 0 do not count."""
        stats = region_stats(logits, target, mode=self.mode, weight=weight, hard=True, **self.options)
        batch = torch.stack(stats).sum(1)
        if self._counts is not None and self._counts.shape != batch.shape:
            raise ValueError(f"logits have {batch.shape[1]} classes, earlier ones had {self._counts.shape[1]}")
        self._counts = batch if self._counts is None else self._counts + batch.to(self._counts.device)

    def counts(self, process_group: distributed.ProcessGroup | None = None) -> RegionStats:
        """Counts per class so far, each (C,). With a process group, those of all its ranks (one all-reduce)."""
        if self._counts is None:
            raise RuntimeError("nothing was counted: call update first")
        counts = self._counts
        if process_group is not None:
            counts = counts.clone()
            distributed.all_reduce(counts, group=process_group)
        return RegionStats(*counts.unbind())

    def compute(
        self,
        average: Literal["macro", "micro"] | None = "macro",
        *,
        zero_division: float = 0.0,
        process_group: distributed.ProcessGroup | None = None,
    ) -> dict[str, Tensor]:
        """Every metric of :data:`METRICS`, float64.

        Args:
            average: ``"macro"``: the mean over classes, without those that are NaN (by ``zero_division``).
                ``"micro"``: the metric of the sum of all classes' counts. None: one value per class.
            zero_division: the value of 0/0.
            process_group: first add the counts of all its ranks.
        """
        if average is not None:
            check_choice("average", average, ("macro", "micro"))
        counts = self.counts(process_group)
        if average == "micro":
            counts = RegionStats(*(count.sum(0, keepdim=True) for count in counts))
        found = {name: metric(*counts, zero_division=zero_division) for name, metric in METRICS.items()}
        return found if average is None else {name: value.nanmean() for name, value in found.items()}
