"""Devices without float64 (Apple MPS): the reference, and all around it, make no tensor of that type there.

Such a device is emulated: the CPU without kernels, and a mode that refuses every float64 tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import segfuse
from cases import CASES, PER_CLASS, Case, check_close, make_logits, make_target, make_weight, shape_of
from environment import DEVICE, SHIM
from segfuse._core import engines, native

pytestmark = pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="emulates a device on the CPU")


class NoFloat64(TorchFunctionMode):
    """What MPS says to a float64 tensor."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"{function}: this device has no float64")
        return found


@pytest.fixture
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(engines.engines, "cpu", None)
    monkeypatch.setattr(native, "FLOAT64_DEVICES", {"cuda", "meta"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def test_the_emulation_refuses() -> None:
    for make in (
        lambda: torch.zeros(2, dtype=torch.float64),
        torch.zeros(2).double,
        lambda: torch.tensor(0.5).to(float),
    ):
        with NoFloat64(), pytest.raises(TypeError, match="no float64"):
            make()


@pytest.mark.usefixtures("_device")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_loss(case: Case) -> None:
    shape = shape_of(case.mode, 5, 7)
    logits, target, weight = make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape)
    for reduction in filter(case.allows, ("mean", "sum", "sample", "none")):
        leaf = logits.clone().requires_grad_()
        with NoFloat64():
            value, terms = (1.0 * case.module(reduction=reduction))(leaf, target, weight, return_terms=True)
            (gradient,) = torch.autograd.grad(value, leaf, torch.full_like(value, 1.7))
        exact = case.reference(logits, target, weight, reduction=reduction)
        check_close(value.detach(), exact, 1e-4, reduction)
        assert gradient.isfinite().all()
        assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.usefixtures("_device")
def test_what_is_around_the_losses() -> None:
    logits, target = make_logits(shape_of("multiclass", 6, 7)), make_target("multiclass", shape_of("multiclass", 6, 7))
    with NoFloat64():
        scale = nn.Parameter(torch.tensor(0.5))
        table = segfuse.DiceLoss("multiclass", class_weight=PER_CLASS)
        loss = scale * table + segfuse.CrossEntropyLoss(class_weight=torch.tensor(PER_CLASS)) / torch.tensor(2.0)
        loss = loss + segfuse.UnifiedFocalLoss("multiclass", 5)
        value = loss(logits.requires_grad_(), target)
        gradients = torch.autograd.grad(value, (logits, scale))
        assert all(gradient.isfinite().all() for gradient in gradients)
        stats = segfuse.region_stats(logits, target, mode="multiclass")
        counts = segfuse.region_stats(logits, target, mode="multiclass", hard=True)
        metrics = segfuse.metrics.SegmentationMetrics("multiclass")
        metrics.update(logits, target)
        found = {name: metric.item() for name, metric in metrics.compute().items()}
        segfuse.region_stats(logits, (target[:, None] == torch.arange(5)[:, None, None]), mode="multilabel", hard=True)
        segfuse.pointwise_loss(logits, target, lambda z, t: z * t, mode="multiclass")
    assert all(stat.dtype == torch.float32 for stat in stats)
    assert counts[0].dtype == torch.int64
    assert 0 < found["iou"] < 1


def test_moving_a_loss_to_such_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weights of a list are float64 where there is such a type."""
    loss: Any = segfuse.DiceLoss("multiclass", class_weight=[0.25, 1.5, 0.75, 2.0, 1.0])
    unified = segfuse.UnifiedFocalLoss("multiclass", 5)
    assert loss.class_weight.dtype == torch.float64
    monkeypatch.setattr(native, "FLOAT64_DEVICES", {"cuda", "meta"})
    with NoFloat64():
        compound = (0.5 * loss + unified).to("cpu")
    assert loss.class_weight.dtype == torch.float32
    assert {buffer.dtype for buffer in compound.buffers()} == {torch.float32}
    assert list(loss.state_dict()) == ["class_weight"]
    assert unified.state_dict() == {}
