"""Region losses with one weight for false positives and one for false negatives: Tversky and its powers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.functions import cached, function_of
from segfuse._core.options import Mode, OverlapOptions, RegionOptions, ScoredOptions, check_number
from segfuse._core.spec import RegionTerm
from segfuse.single import RegionLoss

__all__ = [
    "BackgroundTverskyLoss",
    "FocalTverskyLoss",
    "TverskyLoss",
    "background_tversky_loss",
    "focal_tversky_loss",
    "tversky_loss",
]


class TverskyLoss(RegionLoss):
    """Tversky loss (Salehi et al. 2017). A row has 1 - (I + nr) / (I + alpha FP + beta FN + dr), smooth = (nr, dr).

    Args:
        alpha: weight of false positives, >= 0.
        beta: weight of false negatives, >= 0.

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.TverskyLoss("multiclass", alpha=0.3, beta=0.7)(logits, target)
    tensor(0.7059)
    >>> segfuse.tversky_loss(logits, target, mode="multiclass", alpha=0.3, beta=0.7)
    tensor(0.7059)
    """

    name = "tversky_loss"

    def __init__(self, mode: Mode, *, alpha: float = 0.5, beta: float = 0.5, **options: Unpack[RegionOptions]) -> None:
        own = {"alpha": check_number("alpha", alpha, 0), "beta": check_number("beta", beta, 0)}
        super().__init__(mode, own, options)


@function_of(TverskyLoss)
def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    alpha: float = 0.5,
    beta: float = 0.5,
    weight: Tensor | None = None,
    **options: Unpack[RegionOptions],
) -> Tensor:
    return cached(TverskyLoss, mode=mode, alpha=alpha, beta=beta, **options)(logits, target, weight)


class FocalTverskyLoss(RegionLoss):
    """Focal Tversky loss (Abraham & Khan 2019). A row has u^gamma, u = max(0, Tversky loss); gradient 0 at u = 0.

    Args:
        alpha: weight of false positives, >= 0.
        beta: weight of false negatives, >= 0.
        gamma: exponent, >= 0 (the paper writes 1/gamma for it).

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.FocalTverskyLoss("multiclass", alpha=0.3, beta=0.7)(logits, target)
    tensor(0.7570)
    >>> segfuse.focal_tversky_loss(logits, target, mode="multiclass", alpha=0.3, beta=0.7)
    tensor(0.7570)
    """

    name = "focal_tversky_loss"
    _takes: ClassVar[type] = OverlapOptions

    def __init__(
        self,
        mode: Mode,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 0.75,
        **options: Unpack[OverlapOptions],
    ) -> None:
        own = {
            "alpha": check_number("alpha", alpha, 0),
            "beta": check_number("beta", beta, 0),
            "gamma": check_number("gamma", gamma, 0),
        }
        super().__init__(mode, own, options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(RegionLoss.lower(options, mode), shape="power", shape_parameter=options["gamma"])


@function_of(FocalTverskyLoss)
def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 0.75,
    weight: Tensor | None = None,
    **options: Unpack[OverlapOptions],
) -> Tensor:
    return cached(FocalTverskyLoss, mode=mode, alpha=alpha, beta=beta, gamma=gamma, **options)(logits, target, weight)


class BackgroundTverskyLoss(FocalTverskyLoss):
    """Focal Tversky loss of the background: 1 - p and 1 - t take the place of p and t (``gamma=1``: Tversky loss).

    Add it to the loss of the foreground for a binary loss of two classes, background and foreground; UnifiedFocalLoss
    does so.

    Args:
        alpha: weight of the background's false positives (FN of the row), >= 0.
        beta: weight of the background's false negatives (FP of the row), >= 0.
        gamma: exponent, >= 0.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.BackgroundTverskyLoss("binary", alpha=0.7, beta=0.3)(logits, target)
    tensor(0.2404)
    >>> segfuse.background_tversky_loss(logits, target, mode="binary", alpha=0.7, beta=0.3)
    tensor(0.2404)
    """

    name = "background_tversky_loss"
    _takes = ScoredOptions

    def __init__(
        self, mode: Mode, *, alpha: float = 0.5, beta: float = 0.5, gamma: float = 1.0, **options: Unpack[ScoredOptions]
    ) -> None:
        super().__init__(mode, alpha=alpha, beta=beta, gamma=gamma, **options)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        return replace(FocalTverskyLoss.lower(options, mode), kind="background_tversky")


@function_of(BackgroundTverskyLoss)
def background_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    weight: Tensor | None = None,
    **options: Unpack[ScoredOptions],
) -> Tensor:
    return cached(BackgroundTverskyLoss, mode=mode, alpha=alpha, beta=beta, gamma=gamma, **options)(
        logits, target, weight
    )
