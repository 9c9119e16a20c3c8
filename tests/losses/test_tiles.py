"""TiledLoss: statistics and gradients tile by tile are those of the whole images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, COMPOUNDS, Case, check_close, make_logits, make_target, make_weight, shape_of
from environment import DEVICE, SHIM

CHOSEN = {(case.loss, case.mode): case for case in CASES}  # the last of each, which has options


def tiles(tensor: Tensor) -> list[Tensor]:
    """Of unequal sizes; one is empty."""
    upper, lower, nothing = tensor.split([5, 6, 0], -2)
    return [*upper.split([4, 9], -1), lower, nothing]


@pytest.mark.parametrize("case", CHOSEN.values(), ids=str)
def test_tiles_are_the_whole(case: Case) -> None:
    shape = shape_of(case.mode, 11, 13)
    logits, target, weight = make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape)
    target[torch.rand(target.shape) < 0.2] = 255
    for reduction in filter(case.allows, ("mean", "sum", "sample")):
        loss = case.module(reduction=reduction, ignore_index=255)
        x = logits.clone().requires_grad_()
        whole = loss(x, target, weight)
        (expected,) = torch.autograd.grad(whole, x, torch.ones_like(whole))
        tiled = segfuse.TiledLoss(loss)
        for tile in zip(tiles(logits), tiles(target), tiles(weight), strict=True):
            tiled.add(*tile)
        # In double, in another order.
        check_close(tiled.loss(), whole.detach(), 1e-6, "loss")
        for x, t, w, g in zip(tiles(logits), tiles(target), tiles(weight), tiles(expected), strict=True):
            found = tiled.gradient(x, t, w)
            assert found.shape == g.shape
            if g.numel():
                assert (found - g).abs().max() <= 1e-6 * expected.abs().max(), reduction


def test_a_network_trained_by_tiles_has_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(2, 4, 1).double()
    image, target = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.randint(0, 4, (2, 8, 8))
    criterion = 0.5 * segfuse.DiceLoss("multiclass", pool_batch=True)
    criterion = criterion + segfuse.CrossEntropyLoss(class_weight=[1, 2, 3, 4])
    criterion(network(image), target).backward()
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    tiled = segfuse.TiledLoss(criterion)
    pairs = list(zip(image.split(3, -1), target.split(3, -1), strict=True))
    with torch.no_grad():
        for x, t in pairs:
            tiled.add(network(x), t)
    for x, t in pairs:
        logits = network(x)
        logits.backward(tiled.gradient(logits, t))
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_parameters_as_coefficients_are_read() -> None:
    coefficient = torch.nn.Parameter(torch.tensor(3.0))
    loss = coefficient * segfuse.DiceLoss("binary") + segfuse.BCEWithLogitsLoss("binary")
    x, t = torch.randn(2, 6), torch.rand(2, 6) < 0.5
    tiled = segfuse.TiledLoss(loss)
    tiled.add(x, t)
    torch.testing.assert_close(tiled.loss(), loss(x, t).detach())


def test_mistakes() -> None:
    x, t = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match='reduction="none" has no meaning'):
        segfuse.TiledLoss(segfuse.CrossEntropyLoss(reduction="none"))
    tiled = segfuse.TiledLoss(segfuse.CrossEntropyLoss())
    with pytest.raises(RuntimeError, match="nothing was added"):
        tiled.loss()
    tiled.add(x, t)
    others: list[tuple[Any, Any]] = [
        (x[:1], t[:1]),
        (x[:, :2], t),
        (x.double(), t),
        (x, x.softmax(1)),
    ]
    for logits, target in others:
        with pytest.raises(ValueError, match="tiles must agree"):
            tiled.add(logits, target)
    if DEVICE == "cpu" and SHIM is None:  # elsewhere the loss is NaN
        with pytest.raises(IndexError, match="label 7"):
            tiled.add(x, t + 7)
    torch.testing.assert_close(tiled.loss(), torch.tensor(3.0).log())
    with pytest.raises(RuntimeError, match="add was called after loss"):
        tiled.add(x, t)
    assert {case.loss for case in CHOSEN.values()} >= set(COMPOUNDS)
