"""Train the same small U-Net with each loss of a list, from the same seeds, and compare the results.

    python examples/compare_losses.py                      eleven losses, three seeds: up to an hour on two cores
    python examples/compare_losses.py --losses "dice; dice + bce; focal(gamma=3)" --seeds 5
    python examples/compare_losses.py --quick              half a minute, to see that all works

The data are the images of thin vessels of train.py; few pixels are vessel. It prints the table of Kaul, Pears &
Manandhar 2021 (recall, specificity, Jaccard, F-measure) over all held-out pixels at the threshold 1/2, and the area
under the ROC curve by exact ranking of the scores. Each number is the mean and the spread over the seeds. It writes
table.md, roc.png and results.json to runs/compare/. Needs `pip install '.[examples]'`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from tqdm import tqdm

    import segfuse
    from data import Data, synthetic
    from losses import LossError, build_loss
    from report import draw_roc, write_json
    from unet import UNet
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}: run `pip install '.[examples]'` in the root of the repository")

LOSSES = (
    "bce",
    "bce(balanced=True)",
    "focal",
    "polynomial(asymmetry=3)",
    "jaccard",
    "dice",
    "tversky(alpha=0.3, beta=0.7)",
    "combo",
    "unified_focal",
    "adaptive_log(dice)",
    "adaptive_log(dice) + focal",
)
COLUMNS = {"recall": "recall", "specificity": "specificity", "iou": "Jaccard", "f1": "F-measure", "auc": "AUC"}


def ranked_area(scores: NDArray[Any], labels: NDArray[np.bool_]) -> float:
    """Probability that a positive pixel scores above a negative one; a tie counts half. Exact, from the ranks."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[first, len(ordered)])
    ranks = np.repeat(first + (sizes + 1) / 2, sizes)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    rank_sum = ranks[labels[order]].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def roc_curve(scores: NDArray[Any], labels: NDArray[np.bool_], points: int = 400) -> tuple[list[float], list[float]]:
    """False and true positive rates at some thresholds."""
    order = np.argsort(-scores, kind="stable")
    hits = np.r_[0, np.cumsum(labels[order])]
    at = np.unique(np.r_[0, np.geomspace(1, len(scores), points).astype(np.int64)])
    true = hits[at] / max(1, hits[-1])
    false = (at - hits[at]) / max(1, len(scores) - hits[-1])
    return false.tolist(), true.tolist()


def train(loss: segfuse.Loss, data: Data, seed: int, given: argparse.Namespace, bar: Any) -> UNet:
    """Trains with one loss. Initial weights, crops and schedule are the same for every loss."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    model = UNet(data.channels, 1).to(given.device)
    steps = math.ceil(len(data.epoch(given.size, 64, rng)) / given.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, total_steps=given.epochs * steps + 1)
    for _ in range(given.epochs):
        plan = data.epoch(given.size, 64, rng)
        for start in range(0, len(plan), given.batch_size):
            images, masks = data.batch(plan[start : start + given.batch_size], given.size, rng)
            logits = model(torch.from_numpy(images).to(given.device))
            value = loss(logits, torch.from_numpy(masks).to(given.device))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            bar.update()
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the loss is {value.item()}")
    return model


@torch.inference_mode()
def judge(model: UNet, data: Data, size: int, device: str) -> tuple[dict[str, float], tuple[list[float], list[float]]]:
    """Scores over all held-out pixels, and the ROC curve."""
    model.eval()
    stream = segfuse.metrics.SegmentationMetrics("binary")
    scores, labels = [], []
    for sample in data.held_out:
        image, mask = sample.window(0, 0, size, size)
        logits = model(torch.from_numpy(image)[None].to(device)).cpu()
        stream.update(logits, torch.from_numpy(mask)[None])
        scores.append(logits.flatten().numpy())
        labels.append(mask.ravel() == 1)
    all_scores, all_labels = np.concatenate(scores), np.concatenate(labels)
    found = {name: value.item() for name, value in stream.compute().items()}
    result = {name: found["dice" if name == "f1" else name] for name in COLUMNS if name != "auc"}
    return {**result, "auc": ranked_area(all_scores, all_labels)}, roc_curve(all_scores, all_labels)


def table(results: dict[str, list[dict[str, float]]]) -> list[str]:
    """Markdown table: mean ± standard deviation over the seeds, in per cent. The best mean of a column is bold."""
    means = {loss: {c: float(np.mean([r[c] for r in runs])) for c in COLUMNS} for loss, runs in results.items()}
    best = {c: max(mean[c] for mean in means.values()) for c in COLUMNS}
    lines = [f"| loss | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for loss, runs in results.items():
        cells = []
        for c in COLUMNS:
            text = f"{100 * means[loss][c]:.2f} ± {100 * float(np.std([r[c] for r in runs], ddof=len(runs) > 1)):.2f}"
            cells.append(f"**{text}**" if means[loss][c] == best[c] else text)
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", default="; ".join(LOSSES), help="losses as for train.py, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--size", type=int, default=96, help="side of the images, a multiple of 8")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs") / "compare")
    parser.add_argument("--quick", action="store_true", help="few and small images, two epochs, two seeds")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.epochs, given.images, given.size = 2, 2, 24, 48
    for name in ("seeds", "epochs", "batch_size"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if given.size < 16 or given.size % 8 or given.images < 2:
        parser.error("--size must be a multiple of 8 from 16 up, --images at least 2")
    return parser, given


def main() -> int:
    parser, given = arguments()
    names = [name.strip() for name in given.losses.split(";") if name.strip()]
    try:
        losses = {name: build_loss(name, "binary").to(given.device) for name in names}
    except LossError as error:
        parser.error(f"--losses: {error}")
    data = synthetic(given.images, given.size, 0.25, 0, multiclass=False)
    foreground = float(np.mean([sample.mask.mean() for sample in data.train + data.held_out]))
    print(f"{len(data.train)} images to train on, {len(data.held_out)} held out, {foreground:.1%} foreground")
    steps = math.ceil(len(data.epoch(given.size, 64, np.random.default_rng(0))) / given.batch_size) * given.epochs
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    started = time.perf_counter()
    with tqdm(total=len(names) * given.seeds * steps, disable=None, unit="step") as bar:
        for seed in range(given.seeds):
            for name, loss in losses.items():
                bar.set_postfix_str(f"seed {seed}, {name}")
                try:
                    model = train(loss, data, seed, given, bar)
                except FloatingPointError as error:
                    print(f"{name}, seed {seed}: {error}: try a smaller --lr", file=sys.stderr)
                    return 1
                result, curve = judge(model, data, given.size, given.device)
                results[name].append(result)
                curves.setdefault(name, curve)  # keeps that of the first seed
    lines = table(results)
    print("\n".join(lines))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_roc(given.out / "roc.png", curves, {name: runs[0]["auc"] for name, runs in results.items()})
    content = {
        "arguments": {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in vars(given).items()},
        "foreground": foreground,
        "seconds": round(time.perf_counter() - started),
        "versions": {"segfuse": segfuse.__version__, "torch": torch.__version__},
        "results": results,
    }
    write_json(given.out / "results.json", content)
    print(f"\nwrote table.md, roc.png and results.json to {given.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
