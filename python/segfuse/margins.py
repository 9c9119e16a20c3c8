"""Pointwise losses that decide where gradients are large, by powers of p or by margins of the logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from segfuse._core.functions import cached, function_of
from segfuse._core.options import (
    TWO_SIDED,
    DataOptions,
    TwoSided,
    check_choice,
    check_ints,
    check_number,
    check_reads_logits,
)
from segfuse._core.spec import PointwiseTerm, balanced_by
from segfuse.single import SingleLoss

__all__ = [
    "BrokenLoss",
    "HingeLoss",
    "PolynomialLoss",
    "SigmoidFreeLoss",
    "broken_loss",
    "hinge_loss",
    "polynomial_loss",
    "sigmoid_free_loss",
]


class PolynomialLoss(SingleLoss):
    """Polynomial loss (Le Bich Phuong & Nguyen Tien Zung): ℓ = c t Σ_k (1 - p)^k + (1 - t) Σ_k p^k.

    It is more focal than the cross-entropy: errors below 1/2 weigh little. ``exponents=(2, 4)`` is the authors' ℓ24,
    ``(6,)`` is their ℓ6.

    Args:
        exponents: one to four integers k from 1 to 64.
        asymmetry: c, the weight of positives, >= 0. Give more than 1 if positives are rare.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.PolynomialLoss("binary", exponents=[6])(logits, target)
    tensor(0.0195)
    >>> segfuse.polynomial_loss(logits, target, mode="binary", exponents=[6])
    tensor(0.0195)
    """

    name = "polynomial_loss"

    def __init__(
        self,
        mode: TwoSided,
        *,
        exponents: Sequence[int] = (2, 4),
        asymmetry: float = 1.0,
        **data: Unpack[DataOptions],
    ) -> None:
        check_choice("mode", mode, TWO_SIDED)
        found = check_ints("exponents", exponents, 1, 64)
        if len(found) > 4:
            raise ValueError(f"exponents must be one to four integers; got {exponents!r}")
        options = {"exponents": tuple(found), "asymmetry": check_number("asymmetry", asymmetry, 0)}
        super().__init__(mode, options, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("polynomial", tuple(options["exponents"]), **balanced_by("positive", options["asymmetry"]))


@function_of(PolynomialLoss)
def polynomial_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TwoSided,
    exponents: Sequence[int] = (2, 4),
    asymmetry: float = 1.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(PolynomialLoss, mode=mode, exponents=exponents, asymmetry=asymmetry, **data)(logits, target, weight)


class SigmoidFreeLoss(SingleLoss):
    """Loss on logits without a sigmoid (Le Bich Phuong & Nguyen Tien Zung).

    ℓ = c (1 + s) l(z) + (1 - s) l(-z) with s = 2 t - 1 and l(r) = max(-r, 0) / 2 + clamp(1/2 - r, 0, 1/2)^4. l is
    linear on the wrong side, flat beyond a margin of 1/2, and once differentiable (slope -1/2 at 0). With hard labels
    1 ± s is 0 or 2; this factor 2 is the authors'.

    Args:
        asymmetry: c, >= 0, the weight of positives.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.SigmoidFreeLoss("binary", asymmetry=2)(logits, target)
    tensor(0.2083)
    >>> segfuse.sigmoid_free_loss(logits, target, mode="binary", asymmetry=2)
    tensor(0.2083)
    """

    name = "sigmoid_free_loss"

    def __init__(self, mode: TwoSided, *, asymmetry: float = 1.0, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, TWO_SIDED)
        check_reads_logits("sigmoid_free_loss", data)
        super().__init__(mode, {"asymmetry": check_number("asymmetry", asymmetry, 0)}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("sigmoid_free", **balanced_by("positive", options["asymmetry"]))


@function_of(SigmoidFreeLoss)
def sigmoid_free_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TwoSided,
    asymmetry: float = 1.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(SigmoidFreeLoss, mode=mode, asymmetry=asymmetry, **data)(logits, target, weight)


class BrokenLoss(SingleLoss):
    """A loss whose slope jumps at p = 1/2 (Le Bich Phuong & Nguyen Tien Zung): a study object, not to train with.

    ℓ = c (1 - t) l(p) + t l(1 - p), with l(y) = y^4 for y <= 1/2 and y - 7/16 above. At y = 1/2 the slope jumps from
    1/2 to 1. This jump is a trap: noisy gradients hold predictions near 1/2, where decisions are made (see the
    gallery). With the paper's constant 3/16 the value would jump too; with 7/16 it does not. Here c is the weight of
    negatives.

    Args:
        asymmetry: c, >= 0, the weight of negatives.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.BrokenLoss("binary", reduction="none")(logits, target)
    tensor([[0.0002, 0.0052, 0.1850]])
    >>> segfuse.broken_loss(logits, target, mode="binary", reduction="none")
    tensor([[0.0002, 0.0052, 0.1850]])
    """

    name = "broken_loss"

    def __init__(self, mode: TwoSided, *, asymmetry: float = 1.0, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, TWO_SIDED)
        super().__init__(mode, {"asymmetry": check_number("asymmetry", asymmetry, 0)}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("broken", **balanced_by("negative", options["asymmetry"]))


@function_of(BrokenLoss)
def broken_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TwoSided,
    asymmetry: float = 1.0,
    weight: Tensor | None = None,
    **data: Unpack[DataOptions],
) -> Tensor:
    return cached(BrokenLoss, mode=mode, asymmetry=asymmetry, **data)(logits, target, weight)


class HingeLoss(SingleLoss):
    """Hinge loss: ℓ = max(0, 1 - s z) with s = 2 t - 1. At the kink the derivative is 0.

    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> segfuse.HingeLoss("binary", reduction="sum")(logits, target)
    tensor(1.5000)
    >>> segfuse.hinge_loss(logits, target, mode="binary", reduction="sum")
    tensor(1.5000)
    """

    name = "hinge_loss"

    def __init__(self, mode: TwoSided, **data: Unpack[DataOptions]) -> None:
        check_choice("mode", mode, TWO_SIDED)
        check_reads_logits("hinge_loss", data)
        super().__init__(mode, {}, data)

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> PointwiseTerm:
        return PointwiseTerm("hinge")


@function_of(HingeLoss)
def hinge_loss(
    logits: Tensor, target: Tensor, *, mode: TwoSided, weight: Tensor | None = None, **data: Unpack[DataOptions]
) -> Tensor:
    return cached(HingeLoss, mode=mode, **data)(logits, target, weight)
