"""Draws the pictures of docs/gallery.md. Values and gradients come from the fused kernels.

    python docs/make_gallery.py [--out docs/images/gallery]        half a minute

It also returns the numbers behind the pictures: tests/repo/test_gallery.py checks the text of the page with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")

from matplotlib import pyplot as plt

import segfuse

BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#7f7f7f"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9}
POINTWISE: dict[str, Callable[..., Tensor]] = {
    "binary cross-entropy": segfuse.bce_with_logits_loss,
    "focal, gamma 2": segfuse.focal_loss,
    "polynomial (2, 4)": segfuse.polynomial_loss,
    "polynomial (6)": lambda *x, **o: segfuse.polynomial_loss(*x, exponents=(6,), **o),
    "sigmoid-free": segfuse.sigmoid_free_loss,
    "broken": segfuse.broken_loss,
    "hinge": segfuse.hinge_loss,
    "squared error": segfuse.mse_loss,
    "absolute error": segfuse.l1_loss,
    "Huber, delta 0.3": lambda *x, **o: segfuse.huber_loss(*x, delta=0.3, **o),
    "cross-entropy, smoothing 0.1": lambda *x, **o: segfuse.bce_with_logits_loss(*x, label_smoothing=0.1, **o),
    "focal, gamma 0.5": lambda *x, **o: segfuse.focal_loss(*x, gamma=0.5, **o),
}


def save(figure: Any, out: Path, name: str) -> None:
    figure.savefig(out / f"{name}.png", dpi=130)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------------------ pointwise


def of_logits(loss: Callable[..., Tensor], z: Tensor, label: float) -> tuple[Tensor, Tensor]:
    """Value and slope at each logit."""
    leaf = z.clone().unsqueeze(0).requires_grad_()
    value = loss(leaf, torch.full_like(leaf, label), mode="binary", reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value[0].detach(), slope[0]


def pointwise(out: Path) -> dict[str, Any]:
    z = torch.linspace(-4, 4, 801, dtype=torch.float64)
    figure, grid = plt.subplots(3, 4, figsize=(11, 7.4), layout="constrained", sharex=True)
    steepest = {}
    for axes, (name, loss) in zip(grid.flat, POINTWISE.items(), strict=True):
        for label, colour in ((1.0, BLUE), (0.0, RED)):
            value, slope = of_logits(loss, z, label)
            axes.plot(z, value, color=colour, label=f"label {label:.0f}")
            axes.plot(z, slope, color=colour, linestyle=":", linewidth=1.6)
            steepest[name] = slope.abs().max().item()
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(title=name, ylim=(-1.6, 3.2))
    grid[0, 0].legend(frameon=False, loc="upper center")
    for axes in grid[-1]:
        axes.set_xlabel("logit")
    figure.suptitle("Pointwise losses: value (line) and gradient (dots) against the logit", fontweight="bold")
    save(figure, out, "pointwise")
    return {"steepest": steepest}


# --------------------------------------------------------------------------------------------------------------- region

TVERSKY: dict[str, Any] = {"alpha": 0.3, "beta": 0.7}


def region(out: Path) -> dict[str, Any]:
    """A mask of 100 of 1000 pixels, and a prediction that moves off it, or grows from 0 to three times its size."""
    binary: dict[str, Any] = {"from_logits": False, "smooth": 1e-5}
    losses: dict[str, Any] = {
        "Jaccard": segfuse.JaccardLoss("binary", **binary),
        "Dice": segfuse.DiceLoss("binary", **binary),
        "Tversky 0.3, 0.7": segfuse.TverskyLoss("binary", **TVERSKY, **binary),
        "focal Tversky": segfuse.FocalTverskyLoss("binary", **TVERSKY, **binary),
        "log Dice / 4": segfuse.DiceLoss("binary", shape="log", **binary) / 4,
        "log cosh Dice": segfuse.DiceLoss("binary", shape="log_cosh", **binary),
        "sensitivity-specificity": segfuse.SensitivitySpecificityLoss("binary", **binary),
        "adaptive log Dice / 3": segfuse.AdaptiveLogLoss(segfuse.DiceLoss("binary", **binary)) / 3,
    }
    pixels = np.arange(1000)
    truth = torch.from_numpy((pixels < 100).astype(np.uint8))[None]
    shifts, sizes = np.arange(101), np.arange(301)
    shifted = [torch.from_numpy(((pixels >= s) & (pixels < s + 100)).astype(np.float32))[None] for s in shifts]
    grown = [torch.from_numpy((pixels < n).astype(np.float32))[None] for n in sizes]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    colours = [GREY, "black", RED, ORANGE, BLUE, PURPLE, GREEN, "#56b4e9"]
    found = {}
    for (name, loss), colour in zip(losses.items(), colours, strict=True):
        found[name] = [loss(p, truth).item() for p in shifted]
        left.plot(1 - shifts / 100, found[name], color=colour, label=name)
        right.plot(sizes / 100, [loss(p, truth).item() for p in grown], color=colour)
    left.set(
        title="a mask of the right size, moved away", xlabel="part that overlaps", ylabel="loss", ylim=(-0.03, 1.6)
    )
    right.set(title="a mask in the right place, too small or too large", xlabel="size of the prediction / true size")
    left.legend(frameon=False)
    figure.suptitle("Region losses, of a class on a tenth of the pixels", fontweight="bold")
    save(figure, out, "region")
    return {"overlap": (1 - shifts / 100).tolist(), **found}


def adaptive(out: Path) -> dict[str, Any]:
    """The derivative of the adaptive logarithmic loss in the Dice loss (the paper's figure 1), by autograd."""
    dice = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    found = {}
    for gamma, colour in ((0.05, ORANGE), (0.1, BLUE), (0.3, GREEN)):
        values, slopes = [], []
        for wanted in dice:
            # One pixel of label 1 and no smoothing: the Dice loss is (1 - p) / (1 + p).
            p = ((1 - wanted) / (1 + wanted)).reshape(1, 1).requires_grad_()
            base = segfuse.DiceLoss("binary", smooth=0.0, from_logits=False)
            label = torch.ones(1, 1)
            value = segfuse.AdaptiveLogLoss(base, gamma=gamma)(p, label)
            (slope,) = torch.autograd.grad(value, p)
            (of_dice,) = torch.autograd.grad(base(p, label), p)
            values.append(value.item())
            slopes.append((slope / of_dice).item())
        found[gamma] = slopes
        left.plot(dice, values, color=colour, label=f"gamma {gamma}")
        right.plot(dice, slopes, color=colour)
    left.plot(dice, dice, color=GREY, linestyle="--", label="Dice loss itself")
    left.set(title="value", xlabel="Dice loss", ylim=(0, None))
    right.set(title="derivative", xlabel="Dice loss", ylim=(0, None))
    left.legend(frameon=False)
    figure.suptitle("Adaptive logarithmic loss: small errors weigh more", fontweight="bold")
    save(figure, out, "adaptive")
    return {"dice": dice.tolist(), "slopes": found}


# -------------------------------------------------------------------------------------- the paper on dynamics of losses


def gain(theta: np.ndarray, a: float, a1: float, b: float, epsilon: float, points: int = 4001) -> np.ndarray:
    """∫ ± phi(theta - x) dx over [a, b], + left of a1, with phi(x) = x / sqrt(x² + epsilon): by the trapezoid rule.

    (The sign of the ground truth is missing in the paper's integral; its derivative has it.)
    """

    def part(low: float, high: float) -> np.ndarray:
        x = np.linspace(low, high, points)
        difference = theta[:, None] - x
        phi = difference / np.sqrt(difference**2 + epsilon)
        return (phi[:, 1:] + phi[:, :-1]).sum(1) * (high - low) / (points - 1) / 2

    return part(a, a1) - part(a1, b)


def toy(out: Path) -> dict[str, Any]:
    """Proposition 4.1: the gain of one threshold on an interval."""
    cases = {"balanced": 0.5, "biased": 0.4, "rare": 0.1}
    figure, grid = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    found = {}
    theta = np.linspace(0, 1, 2001)
    for axes, (name, a1) in zip(grid, cases.items(), strict=True):
        for epsilon, colour in ((0.05, BLUE), (0.002, ORANGE)):
            values = gain(theta, 0.0, a1, 1.0, epsilon)
            best = float(theta[values.argmax()])
            found[f"{name}, epsilon {epsilon}"] = {"a1": a1, "argmax": best}
            axes.plot(theta, values, color=colour, label=f"epsilon {epsilon}: best at {best:.3f}")
            axes.plot(best, values.max(), "o", color=colour)
        axes.axvline(a1, color="black", linestyle="--", linewidth=1)
        axes.set(title=f"{name}: true threshold {a1}", xlabel="threshold")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    grid[0].set_ylabel("gain")
    figure.suptitle("The best threshold is not the true one where classes are unequal", fontweight="bold")
    save(figure, out, "toy")
    return found


def trap(out: Path, steps: int = 4000) -> dict[str, Any]:
    """Where stochastic gradients leave a prediction. Each step draws its label, which is 1 with probability P."""
    share = torch.linspace(0.02, 0.98, 49)
    copies = 60
    losses = {
        "broken": (segfuse.BrokenLoss("binary", reduction="sum"), RED),
        "polynomial (2, 4)": (segfuse.PolynomialLoss("binary", reduction="sum"), GREEN),
        "cross-entropy": (segfuse.BCEWithLogitsLoss("binary", reduction="sum"), BLUE),
    }
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    found: dict[str, Any] = {"share": share.tolist()}
    for name, (loss, colour) in losses.items():
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(copies, len(share), generator=generator).requires_grad_()
        for step in range(steps):
            label = torch.rand(z.shape, generator=generator) < share
            (slope,) = torch.autograd.grad(loss(z, label), z)
            z.data -= 0.5 / (1 + step / 200) * slope
        p = z.detach().sigmoid()
        found[name] = p.mean(0).tolist()
        axes.plot(share, p.mean(0), color=colour, label=name)
        axes.fill_between(share, *p.quantile(torch.tensor([0.1, 0.9]), 0), color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0.5, color="black", linewidth=0.6)
    axes.axvspan(1 / 3, 2 / 3, color=GREY, alpha=0.12, linewidth=0)
    axes.set(xlabel="probability that the label is 1", ylabel="prediction after training (10 % to 90 %)")
    axes.set_title(
        "The trap: wherever labels are mixed, 1 to 2 or more,\na slope that jumps at 1/2 holds the prediction there"
    )
    axes.legend(frameon=False)
    save(figure, out, "trap")
    return found


def asymmetry(out: Path) -> dict[str, Any]:
    """The prediction that minimises the expected loss, against the probability of label 1, for asymmetries c."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64).unsqueeze(0)
    share = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    found = {}
    for c, colour in ((0.5, GREY), (1.0, "black"), (3.0, BLUE), (10.0, GREEN)):
        options: dict[str, Any] = {"mode": "binary", "from_logits": False, "reduction": "none", "asymmetry": c}
        positive, negative = (segfuse.polynomial_loss(p, torch.full_like(p, t), **options)[0] for t in (1.0, 0.0))
        expected = share[:, None] * positive + (1 - share[:, None]) * negative
        best = p[0, expected.argmin(1)]
        found[c] = share[int((best > 0.5).int().argmax())].item()
        axes.plot(share, best, color=colour, label=f"c = {c:g}: positive from {found[c]:.2f} up")
    axes.axhline(0.5, color="black", linewidth=0.6)
    axes.set(xlabel="probability that the label is 1", ylabel="best prediction")
    axes.set_title("Asymmetry of the polynomial loss (2, 4)")
    axes.legend(frameon=False)
    save(figure, out, "asymmetry")
    return found


def make(out: Path) -> dict[str, Any]:
    """Draws every picture, and returns the numbers behind each."""
    out.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        return {f.__name__: f(out) for f in (pointwise, region, adaptive, toy, trap, asymmetry)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "gallery")
    options = parser.parse_args()
    make(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
