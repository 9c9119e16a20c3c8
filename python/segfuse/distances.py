"""Pointwise losses that measure the distance between probability and label."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.functions import cached, function_of
from segfuse._core.options import MODES, DataOptions, Mode, check_choice, check_number
from segfuse._core.spec import PointwiseTerm
from segfuse.single import SingleLoss

__all__ = [
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "huber_loss",
    "l1_loss",
    "mse_loss",
]


class MSELoss(SingleLoss):
    """Squared error of the probability (Brier score): ℓ = (p - t)², without a factor 1/2, as in torch.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.MSELoss("binary")(logits, target)
    tensor(0.1580)
    >>> segfuse.mse_loss(logits, target, mode="binary")
    tensor(0.1580)
    """

    name = "mse_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("squared_error", every_class=mode == "multiclass")


@function_of(MSELoss)
def mse_loss(
    logits: Tensor, target: Tensor, *, mode: Mode, weight: Tensor | None = None, **data: Unpack[DataOptions]
) -> Tensor:
    return cached(MSELoss, mode=mode, **data)(logits, target, weight)


class L1Loss(SingleLoss):
    """Absolute error of the probability: ℓ = |p - t|. At p = t the derivative is 0.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.L1Loss("binary", ignore_index=255)(logits, target)
    tensor(0.3369)
    >>> segfuse.l1_loss(logits, target, mode="binary", ignore_index=255)
    tensor(0.3369)
    """

    name = "l1_loss"

    def __init__(self, mode: Mode, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("absolute_error", every_class=mode == "multiclass")


@function_of(L1Loss)
def l1_loss(
    logits: Tensor, target: Tensor, *, mode: Mode, weight: Tensor | None = None, **data: Unpack[DataOptions]
) -> Tensor:
    return cached(L1Loss, mode=mode, **data)(logits, target, weight)


class HuberLoss(SingleLoss):
    """Huber loss (1964) of e = p - t: ℓ = e²/2 where |e| <= delta, else delta (|e| - delta/2).

    Args:
        delta: where the square ends, > 0. |e| is at most 1.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.HuberLoss("binary", delta=0.2)(logits, target)
    tensor(0.0485)
    >>> segfuse.huber_loss(logits, target, mode="binary", delta=0.2)
    tensor(0.0485)
    """

    name = "huber_loss"

    def __init__(self, mode: Mode, *, delta: float = 1.0, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, MODES)
        delta = check_number("delta", delta, 0)
        if delta == 0:
            raise ValueError("delta must be > 0; got 0")
        super().__init__(mode, {"delta": delta}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("huber", (options["delta"],), every_class=mode == "multiclass")


@function_of(HuberLoss)
def huber_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    delta: float = 1.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(HuberLoss, mode=mode, delta=delta, **data)(logits, target, weight)
