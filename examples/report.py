"""Results of train.py: scores, the table, and the pictures."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch

matplotlib.use("Agg")  # writes files only, so it needs no display

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from numpy.typing import NDArray

from data import IGNORE, Data, Sample
from unet import UNet

METRICS = {"iou": "IoU", "recall": "recall", "specificity": "specificity", "f1": "F1"}
_LINE_COLOURS = ("#0072b2", "#d55e00", "#7f7f7f", "#009e73")  # readable with any colour vision
_TRUE, _FALSE_POSITIVE, _FALSE_NEGATIVE, _WRONG_CLASS = "#2fbf4a", "#e8372c", "#2f6bff", "#c03ad8"
_VOID = "#6f6f6f"


class Shown(NamedTuple):
    """A held-out sample and its predicted label map."""

    sample: Sample
    prediction: NDArray[np.uint8]


@torch.inference_mode()
def evaluate(model: UNet, data: Data, pixels: int, device: torch.device) -> tuple[dict[str, Any], list[Shown]]:
    """Scores over all pixels of the held-out images at full size, and a few predictions to look at."""
    model.eval()
    count = len(data.classes)
    confusion = np.zeros(count * count, np.int64)
    shown: list[Shown] = []
    for (height, width), group in groupby(data.held_out, key=lambda sample: sample.mask.shape):
        samples = list(group)
        padded = [-(-side // model.multiple) * model.multiple for side in (height, width)]
        step = max(1, pixels // (height * width))  # about as many pixels in a batch as in training
        for chunk in (samples[start : start + step] for start in range(0, len(samples), step)):
            images = np.stack([sample.window(0, 0, *padded)[0] for sample in chunk])
            logits = model(torch.from_numpy(images).to(device))[..., :height, :width]
            labels = logits[:, 0] > 0 if data.binary else logits.argmax(1)
            for sample, prediction in zip(chunk, labels.to("cpu", torch.uint8).numpy(), strict=True):
                valid = sample.mask != IGNORE
                pairs = sample.mask[valid].astype(np.int64) * count + prediction[valid]
                confusion += np.bincount(pairs, minlength=count * count)
                if len(shown) < 4:
                    shown.append(Shown(sample, prediction))
    return scores(confusion.reshape(count, count)), shown


def scores(confusion: NDArray[np.int64]) -> dict[str, Any]:
    """IoU, recall, specificity and F1 of each foreground class, and their means, from counts [truth, prediction].

    0/0 is NaN and is left out of the mean; for example a class that neither occurs nor is predicted.
    """
    tp = np.diag(confusion)[1:].astype(np.float64)
    fp = confusion.sum(axis=0)[1:] - tp
    fn = confusion.sum(axis=1)[1:] - tp
    tn = confusion.sum() - tp - fp - fn
    with np.errstate(invalid="ignore"):
        each = {
            "iou": tp / (tp + fp + fn),
            "recall": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }
    means: dict[str, Any] = {
        name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for name, values in each.items()
    }
    return {**means, "per_class": {name: values.tolist() for name, values in each.items()}}


def table_head() -> str:
    return f"{'epoch':>5}  {'loss':>8}  " + "  ".join(f"{name:>11}" for name in METRICS.values()) + f"  {'seconds':>7}"


def table_row(row: dict[str, Any]) -> str:
    cells = "  ".join(f"{row[name]:11.4f}" if np.isfinite(row[name]) else f"{'-':>11}" for name in METRICS)
    return f"{row['epoch']:5d}  {row['loss']:8.4f}  {cells}  {row['seconds']:7.1f}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(_without_nan(content), indent=2) + "\n", encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """None in place of NaN, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def draw_curves(path: Path, history: list[dict[str, Any]], title: str) -> None:
    """The training loss, and the scores on held-out images, by epoch."""
    epochs = [row["epoch"] for row in history]
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
        marker = "o" if len(epochs) < 40 else None
        left.plot(epochs, [row["loss"] for row in history], color="black", marker=marker, markersize=3.5)
        left.set(title="training loss", xlabel="epoch", ylim=(min(0, *(row["loss"] for row in history)), None))
        for (name, label), colour in zip(METRICS.items(), _LINE_COLOURS, strict=True):
            values = [row[name] for row in history]
            right.plot(epochs, values, color=colour, marker=marker, markersize=3.5, label=f"{label} {values[-1]:.3f}")
        right.set(title="held-out images", xlabel="epoch", ylim=(-0.02, 1.02))
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="after the last epoch")
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle(textwrap.fill(title, 100), fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_roc(path: Path, curves: dict[str, tuple[list[float], list[float]]], areas: dict[str, float]) -> None:
    """ROC curves. The axis of false positives is logarithmic, where imbalanced classes differ."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
        colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(curves)))
        for (name, (false, true)), colour in zip(curves.items(), colours, strict=True):
            shown = [(f, t) for f, t in zip(false, true, strict=True) if f > 0]
            axes.plot(*zip(*shown, strict=True), color=colour, label=f"{name}: {areas[name]:.4f}")
        axes.set(
            xscale="log", xlim=(1e-3, 1), ylim=(0.4, 1.01), xlabel="false positive rate", ylabel="true positive rate"
        )
        axes.set_title("ROC curves of held-out pixels (first seed)", fontweight="bold")
        axes.grid(alpha=0.25)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="area under the curve")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_predictions(path: Path, shown: list[Shown], classes: list[str], title: str) -> None:
    """A row per held-out sample: image, truth, prediction, and where they differ."""
    colours = np.array([to_rgb("#14161a"), *_class_colours(len(classes) - 1)])
    heads = ("image", "truth", "prediction", "errors")
    aspects = [sample.mask.shape[0] / sample.mask.shape[1] for sample, _ in shown]
    cell = min(2.6, 5.5 / max(aspects))  # inches
    size = (4 * (cell + 0.06) + 0.25, sum(aspects) * cell + 0.06 * len(shown) + 0.95)
    figure, grid = plt.subplots(
        len(shown), 4, figsize=size, squeeze=False, layout="constrained", gridspec_kw={"height_ratios": aspects}
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    for line, (sample, prediction), first in zip(grid, shown, [True] + [False] * len(shown), strict=False):
        void = sample.mask == IGNORE
        pictures = (
            _displayed(sample.image),
            _coloured(np.where(void, 0, sample.mask), void, colours),
            _coloured(prediction, np.zeros_like(void), colours),
            _errors(_displayed(sample.image), sample.mask, prediction),
        )
        for axes, picture, head in zip(line, pictures, heads, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if first:
                axes.set_title(head, fontsize=11)
        line[0].set_ylabel(textwrap.shorten(sample.name, 28, placeholder="..."), fontsize=8, color="#555555")
    keys = [Patch(color=_TRUE, label="right"), Patch(color=_FALSE_POSITIVE, label="false positive")]
    keys.append(Patch(color=_FALSE_NEGATIVE, label="missed"))
    if len(classes) > 2:
        keys.append(Patch(color=_WRONG_CLASS, label="wrong class"))
        named = zip(colours[1:10], classes[1:10], strict=True)
        keys = [*(Patch(color=tuple(colour), label=name) for colour, name in named), *keys]
    if any((sample.mask == IGNORE).any() for sample, _ in shown):
        keys.append(Patch(color=_VOID, label="ignored"))
    columns = max(2, min(len(keys), int(size[0] / 1.3)))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(textwrap.fill(title, int(size[0] * 8.5)), fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _class_colours(count: int) -> list[tuple[float, float, float]]:
    if count == 1:
        return [to_rgb("#ffffff")]
    few = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
    if count <= len(few):
        return [to_rgb(colour) for colour in few[:count]]
    return [tuple(colour[:3]) for colour in plt.get_cmap("gist_rainbow")(np.linspace(0, 1, count))]


def _displayed(image: NDArray[Any]) -> NDArray[np.float64]:
    """Any image as RGB in [0, 1], with stretched contrast."""
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1]
    low, high = np.percentile(shown, (0.5, 99.5))
    return np.clip((shown.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1).repeat(3 // shown.shape[2], axis=2)


def _coloured(labels: NDArray[Any], void: NDArray[np.bool_], colours: NDArray[Any]) -> NDArray[Any]:
    picture: NDArray[Any] = colours[labels]
    picture[void] = to_rgb(_VOID)
    return picture


def _errors(image: NDArray[np.float64], truth: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.float64]:
    """Foreground over the dimmed image; a thin structure stays visible since its colour is nearly opaque."""
    picture = 0.55 * image
    valid = truth != IGNORE
    kinds = {
        _TRUE: (truth > 0) & (truth == prediction),
        _FALSE_POSITIVE: (truth == 0) & (prediction > 0),
        _FALSE_NEGATIVE: (truth > 0) & (prediction == 0),
        _WRONG_CLASS: (truth > 0) & (prediction > 0) & (truth != prediction),
    }
    for colour, where in kinds.items():
        picture[where & valid] = 0.2 * picture[where & valid] + 0.8 * np.array(to_rgb(colour))
    picture[~valid] = 0.5 * picture[~valid] + 0.5 * np.array(to_rgb(_VOID))
    return picture
