"""Brings numbers from the host to a GPU as arguments of a kernel, because a copy would make the host wait."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from segfuse._core.engines import engine_of
from segfuse._core.native import functorch_active, is_plain

# On these devices the kernels take class weights and coefficients from the host.
FED_BY_HOST = {"cuda"}


def may_stay(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether all tensors are on the host, and the kernels of the device take them from there."""
    for tensor in tensors:  # Dynamo of torch 2.4 cannot trace a generator in all()
        if not tensor.is_cpu:
            return False
    return device.type in FED_BY_HOST


def bring(numbers: Tensor, device: torch.device) -> Tensor:
    """The numbers on the device; float64 if they come from the host.

    Numbers that require grad are copied, which waits. Their gradient is copied back anyway.
    """
    if numbers.device == device:
        return numbers
    plain = not torch.compiler.is_compiling() and not functorch_active() and is_plain(numbers)
    if not plain or numbers.requires_grad or not may_stay((numbers,), device):
        return numbers.to(device)
    engine = engine_of(device)
    return numbers.to(device) if engine is None else engine.constant(numbers, device)
