"""Losses of images that do not fit in memory: first the statistics of all tiles, then the gradient of each tile."""

from __future__ import annotations

import torch
from torch import Tensor

from segfuse._core import steps
from segfuse._core.calls import Constants, Results
from segfuse._core.checks import check_inputs
from segfuse._core.plan import Data
from segfuse.algebra import Loss

__all__ = ["TiledLoss"]


class TiledLoss:
    """The loss of whole images, given tile by tile. Its value is that of the whole images.

    The network runs over the tiles twice, the first time without a gradient:

    >>> network, image = torch.nn.Conv2d(3, 2, 1), torch.rand(1, 3, 8, 8)
    >>> tiles = [(half, (half[:, 0] > 0.5).long()) for half in image.chunk(2, 2)]
    >>> tiled = segfuse.TiledLoss(segfuse.DiceLoss("multiclass"))
    >>> with torch.no_grad():
    ...     for image, target in tiles:
    ...         tiled.add(network(image), target)
    >>> tiled.loss()
    tensor(0...)
    >>> for image, target in tiles:
    ...     logits = network(image)
    ...     logits.backward(tiled.gradient(logits, target))

    All tiles have the same number of samples: sample n of every tile belongs to image n. The sizes of tiles may differ.
    Each pixel must be in exactly one tile. With a ``process_group`` the loss is over the tiles of all ranks. The
    coefficients of the criterion get no gradient here.

    Args:
        criterion (Loss): any loss of segfuse, except a pointwise loss with ``reduction="none"``.

    Raises:
        ValueError: the criterion is a pointwise loss with ``reduction="none"``, or a tile does not match the earlier
            ones.
        RuntimeError: ``add`` was called after ``loss`` or ``gradient``, or these were called before any ``add``.
    """

    def __init__(self, criterion: Loss) -> None:
        criterion._require_plain()
        if criterion.plan.unreduced:
            raise ValueError(
                'reduction="none" has no meaning for tiles: the loss of a pixel does not depend on other tiles'
            )
        self.criterion = criterion
        self._sums: Tensor | None = None
        self._class_values: Tensor | None = None
        self._results: Results | None = None
        self._read: tuple[torch.Size, torch.dtype, torch.device, bool] | None = None

    def add(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add the statistics of a tile."""
        if self._results is not None:
            raise RuntimeError("add was called after loss: make a new TiledLoss for the next images")
        data = self._checked(logits, target, weight)
        self._class_values = self.criterion._class_values(*data[:3])
        sums = steps.statistics(self.criterion.plan, data, Constants(self._class_values))
        self._sums = sums if self._sums is None else self._sums.add_(sums)

    def loss(self) -> Tensor:
        """The loss over all tiles that were added, without a graph."""
        return self._whole().loss.clone()

    def _whole(self) -> Results:
        if self._sums is None or self._read is None:
            raise RuntimeError("nothing was added: call add with every tile first")
        if self._results is None:
            shape, dtype, device, soft = self._read
            plan, coefficients = self.criterion.plan, self.criterion._coefficients(device)
            constants = Constants(self._class_values, None if coefficients is None else coefficients.detach())
            self._results = steps.head(plan, shape, dtype, soft, self._sums, constants)
        return self._results

    def gradient(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The gradient of the loss in the logits of a tile. Pass the same values as to ``add``."""
        whole = self._whole()
        data = self._checked(logits, target, weight)
        one = torch.ones_like(whole.loss)
        return steps.backward(self.criterion.plan, one, data, self._class_values, whole.slopes)

    def _checked(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Data:
        """The data of a tile for the kernels. It must match the earlier tiles."""
        plan = self.criterion.plan
        data = check_inputs(plan, logits, target, weight)
        rows = logits.shape[:1] if plan.mode == "binary" else logits.shape[:2]
        # The shape has 0 pixels: sums and slopes do not depend on the number of pixels.
        own = torch.Size([*rows, 0]), plan.loss_dtype(logits), logits.device, data.soft
        if self._read is None:
            self._read = own
        if self._read != own:
            raise ValueError(
                f"tiles must agree in samples, classes, type, device and kind of labels: got {own[0][:-1]}, {own[1:]}, "
                f"after {self._read[0][:-1]}, {self._read[1:]}"
            )
        return data._replace(logits=data.logits.detach())
