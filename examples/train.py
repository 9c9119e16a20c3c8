"""Train a small U-Net with any loss of segfuse, on a CPU in about a minute.

    python examples/train.py                                     images of thin vessels, loss "dice + bce"
    python examples/train.py --loss "focal_tversky(alpha=0.3, beta=0.7)"
    python examples/train.py --data synthetic-multiclass --loss "dice + 0.5*ce"
    python examples/train.py --data coins                        a photograph that scikit-image ships
    python examples/train.py --data PATH --ignore-index 255      PATH/images/NAME.* and PATH/masks/NAME.*
    python examples/train.py --quick                             ten seconds, to see that all works

A loss is a sum of terms. A term is [coefficient *] name [(option=value, ...)]. examples/losses.py lists the names, for
example bce, ce, focal, dice, jaccard, tversky, focal_tversky. The options are those of the class in segfuse. bce is for
two classes, ce for label maps with more.

Images and masks are PNG, JPEG, TIFF or NPY files, grey or colour, of any sizes. Masks are 0/1, 0/255 or label maps.

Needs `pip install '.[examples]'`. Writes curves.png, predictions.png, metrics.json and model.pt to runs/<data>_<loss>/.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    from tqdm import tqdm

    import segfuse
    from data import IGNORE, Data, DataError, coins, folder, synthetic
    from losses import LossError, build_loss
    from report import Shown, draw_curves, draw_predictions, evaluate, table_head, table_row, write_json
    from unet import UNet
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}: run `pip install '.[examples]'` in the root of the repository")


def _checked(kind: Callable[[str], Any], accepts: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    positive = _checked(int, lambda value: value >= 1, "a positive integer")
    size = _checked(int, lambda value: value >= 16 and value % 8 == 0, "a multiple of 8 from 16 up (three halvings)")
    rate = _checked(float, lambda value: 0 < value < math.inf, "a positive number")
    fraction = _checked(float, lambda value: 0 < value < 1, "a number between 0 and 1")
    seed = _checked(int, lambda value: 0 <= value < 2**63, "an integer from 0 up")
    classes = _checked(int, lambda value: 2 <= value < IGNORE, f"an integer from 2 to {IGNORE - 1}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--loss", help='default: "dice + bce", or "dice + ce" for more than two classes')
    add("--data", default="synthetic", help="synthetic (default), synthetic-multiclass, coins, or a folder")
    add("--epochs", type=positive, help="default: 20")
    add("--batch-size", type=positive, default=8, help="default: 8")
    add("--size", type=size, help="side of the training crops, a multiple of 8; default: 96")
    add("--lr", type=rate, default=3e-3, help="default: 0.003")
    add("--seed", type=seed, default=0, help="default: 0")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--out", type=Path, help="folder to write to; default: runs/<data>_<loss>")
    add("--classes", type=classes, help="number of classes in a folder, with background; default: from the masks")
    add("--ignore-index", type=int, help="value of unlabelled pixels in the masks of a folder")
    add("--val-fraction", type=fraction, help="share of held-out data; default: 0.2 (coins: 0.35)")
    add("--quick", action="store_true", help="few, small images and three epochs")
    given = parser.parse_args()
    given.epochs = given.epochs or (3 if given.quick else 20)
    given.size = given.size or (64 if given.quick else 96)
    given.val_fraction = given.val_fraction or (0.35 if given.data == "coins" else 0.2)
    try:
        given.device = torch.device(given.device)
    except RuntimeError:
        parser.error(f"--device {given.device} is no device; there are cpu and cuda")
    if given.device.type not in ("cpu", "cuda"):
        parser.error(f"--device {given.device} is neither cpu nor cuda")
    if given.device.type == "cuda" and (given.device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {given.device}: torch sees {torch.cuda.device_count()} GPUs")
    return parser, given


def load(given: argparse.Namespace) -> Data:
    if given.data in ("synthetic", "synthetic-multiclass"):
        multiclass = given.data == "synthetic-multiclass"
        return synthetic(40 if given.quick else 240, given.size, given.val_fraction, given.seed, multiclass)
    if given.data == "coins":
        return coins(given.val_fraction)
    if not Path(given.data).is_dir():
        raise DataError(f"--data {given.data} is neither a folder nor synthetic, synthetic-multiclass or coins")
    return folder(Path(given.data), given.val_fraction, given.seed, given.classes, given.ignore_index)


class Run:
    """A training run. Its results so far can be saved at any time."""

    def __init__(self, given: argparse.Namespace, data: Data, criterion: segfuse.Loss) -> None:
        self.given, self.data, self.criterion = given, data, criterion
        self.history: list[dict[str, Any]] = []
        self.shown: list[Shown] = []
        self.model = UNet(data.channels, 1 if data.binary else len(data.classes)).to(given.device)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def describe(self) -> str:
        data, device = self.data, self.given.device
        labelled = [sample.mask[sample.mask != IGNORE] for sample in data.train + data.held_out]
        share = sum(int((mask > 0).sum()) for mask in labelled) / max(1, sum(mask.size for mask in labelled))
        where = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        )
        return (
            f"data   {self.given.data}: {len(data.train)} to train on, {len(data.held_out)} held out; "
            f"{', '.join(data.classes[:8])}{', ...' if len(data.classes) > 8 else ''}; {share:.1%} foreground\n"
            f"model  U-Net of {self.parameters:,} parameters on {where}\n"
            f"loss   {self.given.loss}\n"
        )

    def train(self) -> None:
        given, data, model = self.given, self.data, self.model
        rng = np.random.default_rng([given.seed, 1])
        quick = 40 if given.quick else None
        steps = math.ceil(len(data.epoch(given.size, 64, rng)[:quick]) / given.batch_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, total_steps=given.epochs * steps + 1)
        tqdm.write(table_head())
        # disable=None: no bar if stderr is not a terminal.
        with tqdm(total=given.epochs * steps, disable=None, leave=False, unit="step") as bar:
            for epoch in range(1, given.epochs + 1):
                started = time.perf_counter()
                model.train()
                total = torch.zeros((), device=given.device)
                plan = data.epoch(given.size, 64, rng)[:quick]
                for start in range(0, len(plan), given.batch_size):
                    images, masks = data.batch(plan[start : start + given.batch_size], given.size, rng)
                    # Targets stay uint8 label maps (N, H, W). segfuse reads any integer type, so no cast to float or
                    # int64 and no one-hot copy is needed.
                    target = torch.from_numpy(masks).to(given.device)
                    loss = self.criterion(model(torch.from_numpy(images).to(given.device)), target)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += loss.detach()
                    bar.update()
                loss_of_epoch = float(total) / steps
                result, self.shown = evaluate(model, data, given.batch_size * given.size**2, given.device)
                seconds = time.perf_counter() - started
                self.history.append({"epoch": epoch, "loss": loss_of_epoch, **result, "seconds": round(seconds, 2)})
                tqdm.write(table_row(self.history[-1]))
                bar.set_postfix(epoch=epoch, IoU=f"{result['iou']:.3f}")
                if not math.isfinite(loss_of_epoch):
                    raise FloatingPointError(f"the loss is {loss_of_epoch} in epoch {epoch}: try a smaller --lr")

    def save(self) -> None:
        """Writes scores, pictures and weights of the finished epochs."""
        given, out = self.given, self.given.out
        content = {
            "arguments": {k: v if v is None or isinstance(v, (int, float)) else str(v) for k, v in vars(given).items()},
            "terms": repr(self.criterion),
            "classes": self.data.classes,
            "parameters": self.parameters,
            "versions": {"segfuse": segfuse.__version__, "torch": torch.__version__},
            "epochs": self.history,
            "final": self.history[-1],
        }
        title = f"{given.loss}  ({Path(given.data).resolve().name}, {len(self.history)} epochs)"
        write_json(out / "metrics.json", content)
        torch.save(self.model.state_dict(), out / "model.pt")
        draw_curves(out / "curves.png", self.history, title)
        draw_predictions(out / "predictions.png", self.shown, self.data.classes, title)
        print(f"\nwrote {out / 'curves.png'}, predictions.png, metrics.json and model.pt")


def prepare() -> Run:
    """Checks all input of the user before the first step."""
    parser, given = arguments()
    torch.manual_seed(given.seed)
    torch.backends.cudnn.deterministic = True
    try:
        data = load(given)
    except DataError as error:
        parser.error(str(error))
    binary = len(data.classes) == 2
    if given.loss is None:
        given.loss = "dice + bce" if binary else "dice + ce"
    channels = 1 if binary else len(data.classes)
    try:
        criterion = build_loss(given.loss, "binary" if binary else "multiclass")
        # The first call checks options with one value per class.
        criterion(torch.zeros(1, channels, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8))
    except (LossError, TypeError, ValueError) as error:
        parser.error(f"--loss: {error}")
    if given.out is None:
        slug = re.sub(r"[^a-z0-9.]+", "-", given.loss.lower()).strip("-")
        given.out = Path("runs") / f"{Path(given.data).resolve().name}_{slug}"[:120]
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    return Run(given, data, criterion.to(given.device))


def main() -> int:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # prints each row at once, also into a pipe or a log
    run = prepare()
    print(run.describe())
    code = 0
    try:
        run.train()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        code = 130
    except FloatingPointError as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        code = 1
    if run.history:
        run.save()
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
