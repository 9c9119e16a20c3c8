"""Dual numbers and the losses of a pixel (csrc/dual.h, link.h, losses.h, pixel.h), without an engine, in double.

What pixel.cpp prints is held against segfuse.reference, which is written from the formulas and differentiated by
autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from environment import DEVICE, SHIM
from programs import Programs, numbers
from segfuse import reference

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="programs on the CPU")
close = torch.testing.assert_close


def test_dual_numbers_links_and_region_slopes(programs: Programs) -> None:
    """dual.cpp checks them itself, against central differences."""
    assert programs.run("dual") == []


class Point(NamedTuple):
    """A loss of losses.h: its reference, the options of that, its own parameters, its links."""

    reference: str
    options: dict[str, float | Sequence[int]]
    parameters: tuple[float, ...]
    links: tuple[str, ...]


CLASSES = 3
EVERY_CLASS = ("squared_error", "absolute_error", "huber")
ROWS, LOGITS, ALL = ("sigmoid", "identity"), ("sigmoid",), ("sigmoid", "identity", "softmax")
POINTS = {
    "bce_with_logits": Point("bce_with_logits_loss", {"label_smoothing": 0.15}, (0.15,), ROWS),
    "cross_entropy": Point("cross_entropy_loss", {"label_smoothing": 0.3}, (0.3, 0.3 / CLASSES), ("softmax",)),
    "focal": Point("focal_loss", {"gamma": 1.5}, (1.5,), ALL),
    "focal_square": Point("focal_loss", {"gamma": 2.0}, (2.0,), ALL),
    "polynomial": Point("polynomial_loss", {"exponents": (1, 3, 11, 2)}, (1, 3, 11, 2), ROWS),
    "sigmoid_free": Point("sigmoid_free_loss", {}, (), LOGITS),
    "broken": Point("broken_loss", {}, (), ROWS),
    "hinge": Point("hinge_loss", {}, (), LOGITS),
    "squared_error": Point("mse_loss", {}, (), ALL),
    "absolute_error": Point("l1_loss", {}, (), ALL),
    "huber": Point("huber_loss", {"delta": 0.2}, (0.2,), ALL),
    "kl_divergence": Point("kl_div_loss", {}, (), ALL),
}
PIXELS = [(loss, link) for loss, point in POINTS.items() for link in point.links]


def test_every_loss_is_in_the_table(programs: Programs) -> None:
    assert programs.run("pixel", "losses") == [list(POINTS)]


@pytest.mark.parametrize(("loss", "link"), PIXELS)
def test_a_pixel(loss: str, link: str, programs: Programs) -> None:
    """Confident and not, right and wrong, labels that are 0, 1 and between."""
    point, scales = POINTS[loss], torch.tensor([0.3, 3.0, 12.0] * 20, dtype=torch.float64)
    z = torch.randn(len(scales), CLASSES, dtype=torch.float64) * scales[:, None]
    t = torch.rand_like(z).softmax(1) if link == "softmax" else torch.rand_like(z)
    t[:30] = torch.nn.functional.one_hot(torch.randint(CLASSES, (30,)), CLASSES).double()
    z = z.sigmoid() if link == "identity" else z
    parameters = [*point.parameters, 0, 0, 0, 0][:4]
    lines = [
        [link, loss, int(loss in EVERY_CLASS), *parameters, CLASSES, *a.tolist(), *b.tolist()]
        for a, b in zip(z, t, strict=True)
    ]
    said = programs.run("pixel", "\n".join(" ".join(map(str, line)) for line in lines))
    found = torch.stack([numbers(words) for words in said])
    z.requires_grad_()
    mode = "multiclass" if link == "softmax" else "multilabel"
    options = {"mode": mode, "from_logits": link != "identity", "reduction": "none", **point.options}
    value = getattr(reference, point.reference)(z, t, **options).reshape(len(z), -1).sum(1)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    close(found[:, 0], value.detach(), rtol=1e-12, atol=1e-15)
    largest = gradient.abs().amax(1, keepdim=True).clamp_min(1)
    close(found[:, 1:] / largest, gradient / largest, rtol=0, atol=1e-12)
