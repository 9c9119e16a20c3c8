"""A compound loss of each mode, its data and its gradient, for tests/torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import MODES, PER_CLASS, Case, make_logits, make_target, make_weight, shape_of

Loss = Callable[..., Tensor]
close = torch.testing.assert_close
in_every_mode = pytest.mark.parametrize("mode", MODES)
# torch itself warns on the first use of forward-mode AD, and of torch.jit.
jit = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")


def compound(mode: str, coefficient: Any = 0.7, package: Any = None, **data: Any) -> Loss:
    """A region term with a coefficient plus a pointwise term, each with class weights. package: one with references."""
    table = (0.8,) if mode == "binary" else PER_CLASS
    name, option = ("cross_entropy", "class_weight") if mode == "multiclass" else ("bce_with_logits", "pos_weight")
    if package is None:
        point = Case(f"{name}_loss", mode, {option: table}).module(**data)
        return coefficient * segfuse.DiceLoss(mode, class_weight=table, **data) + point

    def sum_of_references(x: Tensor, y: Tensor, w: Tensor | None = None) -> Tensor:
        region = package.dice_loss(x, y, mode=mode, weight=w, class_weight=table, **data)
        point = getattr(package, f"{name}_loss")(x, y, mode=mode, weight=w, **{option: table}, **data)
        return coefficient * region + point

    return sum_of_references


def data_of(mode: str, *space: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    shape = shape_of(mode, *(space or (4, 3)))
    return make_logits(shape, dtype).requires_grad_(), make_target(mode, shape), make_weight(mode, shape)


def gradient_of(loss: Loss, x: Tensor, *rest: Any) -> Tensor:
    x = x.detach().clone().requires_grad_()
    loss(x, *rest).sum().backward()
    return x.grad  # type: ignore[return-value]
