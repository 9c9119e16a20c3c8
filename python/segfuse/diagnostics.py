"""What to call when something is off, and before a graph is captured."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from segfuse import _kernels
from segfuse.algebra import Loss
from segfuse.pointwise import BCEWithLogitsLoss, CrossEntropyLoss


def warmup(device: torch.device | str | int | None = None) -> None:
    """Load every kernel onto a CUDA device (default: the current one).

    Kernels are loaded when they first run, which is not allowed while a CUDA graph is captured. Call this, and run the
    loss once, before the capture. Nothing to do for other devices.

    Raises:
        RuntimeError: segfuse has no kernels for the device; the message says why.
    """
    device = torch.device("cuda" if device is None else device)
    index: int | None = device.index
    if device.type == "cuda" and index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    _kernels.required_engine(device).warmup(device)


def check_target(logits: Tensor, target: Tensor, *, mode: str, ignore_index: int | None = None) -> None:
    """Check the labels of a target on any device, and wait for the result.

    On a GPU a label out of range makes loss and gradient NaN: to say more, the kernels would have to make the host
    wait. This does wait, and says which label, how many, and where.

    Args:
        logits: of which the shape is read, ``(N, C, *)``.
        target: as a loss of that mode takes it.
        mode: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        ignore_index: the label that is allowed beside those in range.

    Raises:
        IndexError: an integer label is neither in range nor ignored.
        ValueError, TypeError: shape, dtype or device are not what the mode wants.
    """
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device}, logits are on {logits.device}")
    make: Any = CrossEntropyLoss if mode == "multiclass" else partial(BCEWithLogitsLoss, cast(Any, mode))
    loss: Loss = make(ignore_index=ignore_index, reduction="sum")
    with torch.no_grad():
        loss(torch.zeros((), device="cpu").expand(logits.shape), target.detach().to("cpu"))
