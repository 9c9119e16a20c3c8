"""Functions to call when a loss is NaN, and before you capture a CUDA graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from segfuse._core.checks import check_tensor
from segfuse._core.engines import required_engine
from segfuse._core.options import Mode
from segfuse.algebra import Loss
from segfuse.pointwise import BCEWithLogitsLoss, CrossEntropyLoss


def warmup(device: torch.device | str | int | None = None) -> None:
    """Load every kernel onto a CUDA device (default: the current one).

    CUDA loads a kernel when it first runs. This is not allowed while a CUDA graph is captured. So call this, and run
    the loss once, before the capture. On other devices it does nothing.

    Args:
        device (device | str | int | None, default None): the device; None is the current CUDA device.

    Raises:
        RuntimeError: segfuse has no kernels for the device; the message says why.

    >>> segfuse.warmup("cpu")
    """
    device = torch.device("cuda" if device is None else device)
    index: int | None = device.index
    if device.type == "cuda" and index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    required_engine(device).warmup(device)


def check_target(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    from_logits: bool = True,
) -> None:
    """Check the values of a target on any device, and wait for the result.

    On a GPU a label out of range makes loss and gradient NaN. An error would need the host to wait for the kernels.
    This function waits. Its error says which value is wrong, how many there are, and where the first one is.

    Args:
        logits (Tensor): (N, C, *), or (N, *) in "binary". Their values are read only with ``from_logits=False``.
        target (Tensor): the target that you pass to the loss.
        mode ("binary" | "multilabel" | "multiclass"): the mode of the loss.
        ignore_index (int | None, default None): a label that is allowed although it is out of range.
        weight (Tensor | None, default None): the weight that you pass to the loss. Pixels of weight 0 are not checked.
        from_logits (bool, default True): False: the "logits" are probabilities, which are checked too.

    Raises:
        IndexError: an integer label is neither in range nor ignored; a float label or a probability is not in [0, 1].
        ValueError, TypeError: shape, dtype or device do not fit the mode.

    >>> segfuse.check_target(torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 255.0], [0.0, 0.0]]]]), mode="binary")
    Traceback (most recent call last):
    IndexError: target: value 255 is outside [0, 1]; ...
    """
    check_tensor("logits", logits)
    check_tensor("target", target)
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device}, logits are on {logits.device}")
    make: Any = CrossEntropyLoss if mode == "multiclass" else partial(BCEWithLogitsLoss, mode)
    loss: Loss = make(ignore_index=ignore_index, reduction="sum", from_logits=from_logits)
    values = torch.zeros((), device="cpu").expand(logits.shape) if from_logits else logits.detach().to("cpu")
    with torch.no_grad():
        loss(values, target.detach().to("cpu"), None if weight is None else weight.detach().to("cpu"))
