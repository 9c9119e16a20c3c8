"""What docs/gallery.md says of its pictures, from the numbers behind them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from environment import DEVICE, ROOT, SHIM

sys.path.insert(0, str(ROOT / "docs"))
pytestmark = pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="pictures, drawn once")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import make_gallery

    out = tmp_path_factory.mktemp("gallery")
    numbers = make_gallery.make(out)
    assert {path.stem for path in out.glob("*.png")} == set(numbers)
    return numbers


def test_every_picture_is_shown_and_committed(found: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "gallery.md").read_text()
    for name in found:
        assert f"images/gallery/{name}.png" in text
        assert (ROOT / "docs" / "images" / "gallery" / f"{name}.png").is_file()


def test_pointwise(found: dict[str, Any]) -> None:
    steepest = found["pointwise"]["steepest"]
    assert steepest["hinge"] == steepest["sigmoid-free"] == 1.0
    assert steepest["squared error"] < steepest["polynomial (2, 4)"] < steepest["binary cross-entropy"] <= 1.0


def test_dice_and_tversky_are_one_line_for_masks_of_the_right_size(found: dict[str, Any]) -> None:
    region = found["region"]
    np.testing.assert_allclose(region["Tversky 0.3, 0.7"], region["Dice"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(region["Dice"], 1 - np.array(region["overlap"]), atol=1e-5)


def test_the_derivative_of_the_adaptive_loss(found: dict[str, Any]) -> None:
    dice = np.array(found["adaptive"]["dice"])
    for gamma, slopes in found["adaptive"]["slopes"].items():
        expected = np.where(dice < gamma - 1e-9, 10 / (0.5 + dice), 1.0)
        np.testing.assert_allclose(slopes, expected, rtol=1e-6)


def test_the_toy_model(found: dict[str, Any]) -> None:
    """Proposition 4.1: the true threshold if balanced, one inside (a, a1) if biased, a itself if rare."""
    toy = found["toy"]
    assert abs(toy["balanced, epsilon 0.05"]["argmax"] - 0.5) <= 1e-3
    assert 0 < toy["biased, epsilon 0.05"]["argmax"] < 0.4 - 5e-3
    assert toy["biased, epsilon 0.05"]["argmax"] < toy["biased, epsilon 0.002"]["argmax"]
    assert toy["rare, epsilon 0.05"]["argmax"] == 0.0
    assert toy["rare, epsilon 0.002"]["argmax"] > 0


def test_the_trap(found: dict[str, Any]) -> None:
    share = np.array(found["trap"]["share"])
    mixed = (share > 0.36) & (share < 0.64)
    assert np.abs(np.array(found["trap"]["broken"])[mixed] - 0.5).max() < 0.01
    for name in ("polynomial (2, 4)", "cross-entropy"):
        spread = np.array(found["trap"][name])[mixed]
        assert np.ptp(spread) > 0.1
    assert np.abs(np.array(found["trap"]["cross-entropy"]) - share).max() < 0.05


def test_asymmetry(found: dict[str, Any]) -> None:
    for c, share in found["asymmetry"].items():
        assert share == pytest.approx(1 / (1 + c), abs=0.011)


def test_the_committed_pictures_are_not_huge() -> None:
    assert sum(path.stat().st_size for path in Path(ROOT / "docs" / "images").rglob("*.png")) < 3e6
