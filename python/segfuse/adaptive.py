"""The adaptive logarithm around a region loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from segfuse._core.functions import cached, function_of
from segfuse._core.options import check_number
from segfuse._core.plan import LOWER
from segfuse._core.spec import RegionTerm, is_class_values
from segfuse.algebra import Loss
from segfuse.single import RegionLoss, SingleLoss

__all__ = [
    "AdaptiveLogLoss",
    "adaptive_log_loss",
]


class AdaptiveLogLoss(SingleLoss):
    """Adaptive logarithmic loss (Kaul, Pears & Manandhar 2021) of a region loss.

    A row with loss L has omega ln(1 + L / epsilon) where L < gamma, else L - C, with C = gamma - omega ln(1 + gamma /
    epsilon). So a small loss has a steep slope, omega / (epsilon + L), and a large one has slope 1. At gamma the value
    is continuous. The slope jumps there, unless omega = epsilon + gamma (the paper calls it smooth).

    Args:
        base: a region loss. Rows, options and reduction are those of the base.
        omega: height of the logarithm, > 0. The defaults of omega, gamma and epsilon are those of the paper.
        gamma: where the logarithm ends, > 0.
        epsilon: the slope at 0 is omega / epsilon, > 0.

    >>> logits, target = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]])
    >>> segfuse.AdaptiveLogLoss(segfuse.DiceLoss("multiclass"), omega=8)(logits, target)
    tensor(2.0252)
    >>> segfuse.adaptive_log_loss(logits, target, base=segfuse.DiceLoss("multiclass"), omega=8)
    tensor(2.0252)
    """

    name = "adaptive_log_loss"
    _symbols = ""

    def __init__(self, base: RegionLoss, omega: float = 10.0, gamma: float = 0.1, epsilon: float = 0.5) -> None:
        given: object = base
        if not isinstance(given, RegionLoss):
            shown = repr(given) if isinstance(given, Loss) else type(given).__name__
            raise ValueError(f"base must be one region loss, such as DiceLoss; got {shown}")
        own = {"omega": omega, "gamma": gamma, "epsilon": epsilon}
        for name, value in own.items():
            own[name] = check_number(name, value, 0)
            if own[name] == 0:
                raise ValueError(f"{name} must be > 0; got 0")
        base._require_plain()
        class_values = {name: getattr(base, name) for name in base.class_options}
        options = {"base": base.name, "base_options": base.options, **own, **class_values}
        super().__init__(base.mode, options, base.data)
        self._base = f"{type(base).__name__}({base.extra_repr()})"

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> RegionTerm:
        class_values = {k: v for k, v in options.items() if is_class_values(v)}
        base = LOWER[options["base"]]({**options["base_options"], **class_values}, mode)
        assert isinstance(base, RegionTerm)
        numbers = {"omega": options["omega"], "threshold": options["gamma"], "epsilon": options["epsilon"]}
        return replace(base, adaptive=True, **numbers)

    def extra_repr(self) -> str:
        """The base, and the options that differ from their defaults."""
        signature = self._own_signature()
        own = {k: self.options[k] for k in ("omega", "gamma", "epsilon")}
        return ", ".join([self._base, *(f"{k}={v:g}" for k, v in own.items() if v != signature[k].default)])


@function_of(AdaptiveLogLoss)
def adaptive_log_loss(
    logits: Tensor,
    target: Tensor,
    *,
    base: RegionLoss,
    omega: float = 10.0,
    gamma: float = 0.1,
    epsilon: float = 0.5,
    weight: Tensor | None = None,
) -> Tensor:
    return cached(AdaptiveLogLoss, base=base, omega=omega, gamma=gamma, epsilon=epsilon)(logits, target, weight)
