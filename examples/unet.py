"""A small, plain U-Net: about 300 000 parameters, enough for the example and quick on a CPU."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Sequential):
    """Two times convolution, GroupNorm and ReLU. Unlike BatchNorm, GroupNorm does not depend on the batch size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """Gives logits (N, outputs, H, W) for images (N, inputs, H, W). H and W are multiples of :attr:`multiple`."""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.multiple = 2 ** len(pairs)
        self.first = Block(inputs, widths[0])
        self.down = nn.ModuleList(Block(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.merge = nn.ModuleList(Block(2 * fine, fine) for fine, _ in pairs)
        self.last = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(nn.functional.max_pool2d(x, 2))
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            x = merge(torch.cat((skip, up(x)), dim=1))
        logits: Tensor = self.last(x)
        return logits
