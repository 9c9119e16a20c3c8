"""Losses of images that do not fit: statistics tile by tile, then the gradient tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segfuse import _kernels
from segfuse._checks import check_inputs, is_soft

if TYPE_CHECKING:
    from segfuse.algebra import Loss

__all__ = ["TiledLoss"]


class TiledLoss:
    """The loss of whole images, given as tiles: equal to the loss of the tiles put together.

    The network runs twice over the tiles, first without a gradient:

    >>> tiled = segfuse.TiledLoss(criterion)
    >>> with torch.no_grad():
    ...     for image, target in tiles:
    ...         tiled.add(network(image), target)
    >>> loss = tiled.loss()
    >>> for image, target in tiles:
    ...     logits = network(image)
    ...     logits.backward(tiled.gradient(logits, target))

    All tiles have the same number of samples, sample n of one belonging to the same image as sample n of the others;
    their sizes may differ, and each pixel must be in one tile. With a ``process_group`` the loss is over the tiles of
    all ranks. The criterion's coefficients get no gradient here.

    Args:
        criterion: any loss of segfuse but ``reduction="none"`` of a pointwise one.
    """

    def __init__(self, criterion: Loss) -> None:
        criterion.require_plain()
        if criterion.plan.unreduced:
            raise ValueError(
                'reduction="none" has no meaning for tiles: a pointwise loss per pixel needs no other tile'
            )
        self.criterion = criterion
        self._sums: Tensor | None = None
        self._tables: Tensor | None = None
        self._head: tuple[Tensor, Tensor, Tensor] | None = None
        self._read: tuple[torch.Size, torch.dtype, torch.device, bool] | None = None

    def add(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add the statistics of a tile."""
        if self._head is not None:
            raise RuntimeError("add was called after loss: make a new TiledLoss for the next images")
        plan = self.criterion.plan
        logits, target, weight = self._checked(logits, target, weight)
        self._tables = self.criterion.tables(logits, target, weight)
        sums = _kernels.statistics(plan, logits, target, weight, self._tables)
        self._sums = sums if self._sums is None else self._sums.add_(sums)

    def loss(self) -> Tensor:
        """The loss of all tiles added, without a graph."""
        if self._sums is None or self._read is None:
            raise RuntimeError("nothing was added: call add with every tile first")
        if self._head is None:
            shape, dtype, device, soft = self._read
            label_map = self.criterion.plan.mode == "multiclass" and not soft
            tables, coefficients = self._tables, self.criterion.coefficients(device)
            self._head = _kernels.head(
                self.criterion.plan,
                shape,
                dtype,
                label_map,
                self._sums,
                tables,
                None if coefficients is None else coefficients.detach(),
            )
        return self._head[0].clone()

    def gradient(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The gradient of the loss in the logits of a tile; the tile must be as it was added."""
        self.loss()
        assert self._head is not None
        plan = self.criterion.plan
        logits, target, weight = self._checked(logits, target, weight)
        one = torch.ones_like(self._head[0])
        return _kernels.backward(plan, one, logits, target, weight, self._tables, self._head[2])

    def _checked(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """A tile as the kernels take it; it must be one like those before."""
        plan = self.criterion.plan
        logits, target, weight = check_inputs(plan, logits, target, weight)
        rows = logits.shape[:1] if plan.mode == "binary" else logits.shape[:2]
        soft = plan.mode == "multiclass" and is_soft(logits, target)
        # No pixels: sums and slopes do not depend on their number.
        own = torch.Size([*rows, 0]), plan.loss_dtype(logits), logits.device, soft
        if self._read is None:
            self._read = own
        if self._read != own:
            raise ValueError(
                f"tiles must agree in samples, classes, type, device and kind of labels: got {own[0][:-1]}, {own[1:]}, "
                f"after {self._read[0][:-1]}, {self._read[1:]}"
            )
        return logits.detach(), target, weight
