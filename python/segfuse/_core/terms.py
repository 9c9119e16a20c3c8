"""The terms of a compound: losses times coefficients, on the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from segfuse._core.options import DATA_DEFAULTS, check_number, plain

if TYPE_CHECKING:
    from segfuse.algebra import Loss
    from segfuse.single import SingleLoss


class Term(NamedTuple):
    """A loss times a coefficient: a number times tensors. Tensors have the power 1 or -1 and are read at each call."""

    loss: SingleLoss
    constant: float = 1.0
    tensors: tuple[tuple[Tensor | str, int], ...] = ()  # a str is the name of a Parameter of the compound

    def times(self, factor: float | Tensor, power: int) -> Term:
        # No _replace: Dynamo of torch 2.8 cannot trace it.
        if isinstance(factor, Tensor):
            return Term(self.loss, self.constant, (*self.tensors, (factor, power)))
        return Term(self.loss, self.constant * factor**power, self.tensors)

    def resolved(self, owner: Loss) -> Term:
        """The term with the current Parameters of the compound in place of their names."""
        tensors = tuple([(getattr(owner, t) if isinstance(t, str) else t, power) for t, power in self.tensors])
        return Term(self.loss, self.constant, tensors)

    def coefficient(self, owner: Loss, dtype: torch.dtype) -> float | Tensor:
        """A number; or a 0-d tensor of a dtype, on the device of its tensors, with their graph."""
        value: float | Tensor = self.constant
        for tensor, power in self.resolved(owner).tensors:
            assert isinstance(tensor, Tensor)
            factor = tensor.to(dtype).reshape(())
            value = value if isinstance(value, Tensor) else torch.full_like(factor, value, requires_grad=False)
            value = value * factor if power == 1 else value / factor
        return value


def coefficient_of(value: object) -> float | Tensor | None:
    """The value as a coefficient of a loss, or None if it cannot be one."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dim() > 1:
            raise ValueError(f"the coefficient of a loss must be a 0-d tensor, or (1,); got shape {tuple(value.shape)}")
        return value
    value = plain(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return check_number("the coefficient of a loss", value)


def shared_data(losses: list[SingleLoss]) -> dict[str, Any]:
    """The data options of all terms. Given values must be equal; a term without a value takes that of the others."""
    shared: dict[str, Any] = {}
    giver: dict[str, SingleLoss] = {}
    for loss in losses:
        for name, value in {"mode": loss.mode, **loss.data}.items():
            if name in shared and shared[name] != value:
                raise ValueError(
                    f"{type(giver[name]).__name__} was given {name}={shared[name]!r} and {type(loss).__name__} was "
                    f"given {name}={value!r}: all terms of a compound must have the same {name}"
                )
            shared[name] = value
            giver[name] = loss
    defaults: dict[str, Any] = dict(DATA_DEFAULTS)
    for loss in losses:
        defaults.update(loss._data_defaults)
    return {**defaults, **shared}


def numbers_of(tensor: Tensor) -> Any:
    """The values of a small tensor; its device if the tensor holds no values here (meta, fake, distributed)."""
    return tensor.tolist() if type(tensor.data) is Tensor and not tensor.is_meta else tensor.device
