"""Strides that logits, targets and weights may have."""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])


def every_other(x: Tensor) -> Tensor:
    """A slice with a step, of a larger tensor."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), 77).to(x.dtype)
    wide[..., 1 : 1 + 2 * x.shape[-1] : 2] = x
    return wide[..., 1 : 1 + 2 * x.shape[-1] : 2]


def inner(x: Tensor) -> Tensor:
    """A crop: rows that are contiguous, at an odd offset."""
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 5), 77).to(x.dtype)
    wide[..., 1:-1, 3:-2] = x
    return wide[..., 1:-1, 3:-2]


def inner_channels_last(x: Tensor) -> Tensor:
    """Classes are neighbours in memory, rows of pixels are not. The gradient is dense."""
    return inner(x.movedim(1, -1)).movedim(-1, 1)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def batch_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


LAYOUTS = (channels_last, every_other, inner, inner_channels_last, transposed, batch_last)
