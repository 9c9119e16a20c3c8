"""A training step of the U-Net of examples/ with the loss of segfuse and with another loss, side by side.

There are two sizes and two tasks: Dice + BCE with one channel, Dice + CE with 19 classes. A row has the time of a step
with either loss, the share of the loss with its gradient, and the peak memory of a step with its network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from harness import Contender, Context, Loss, Setting, check_equal, compare, memory
from peers import peers_of
from torch import Tensor, nn

from cases import Case

Row = dict[str, Any]
SIZES: tuple[tuple[int, tuple[int, ...]], ...] = ((128, (16, 32, 64, 96)), (256, (32, 64, 128, 192)))
BATCH = {"cpu": 2, "cuda": 16}


class Training:
    """A training step: forward, loss, backward, update."""

    per_call = 1
    context: Context = nullcontext

    def __init__(self, model: nn.Module, loss: Loss, image: Tensor, target: Tensor) -> None:
        self.model, self.loss, self.image, self.target = model, loss, image, target
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model(self.image), self.target).backward()
        self.optimizer.step()


def task(setting: Setting, loss: str, classes: int) -> Iterator[Row]:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
    from unet import UNet

    device = setting.device
    for side, widths in SIZES[:1] if setting.quick else SIZES:
        side = max(8, side // setting.shrink)
        shape = (BATCH[device], classes, side, side)
        case = Case(str(side), shape, loss, "float32", "float32" if classes == 1 else "int64")
        _, target = case.inputs(device, 0)
        torch.manual_seed(0)
        image = torch.randn(BATCH[device], 3, side, side, device=device)
        model = UNet(3, classes, widths).to(device)
        logits = model(image).detach().requires_grad_()
        for peer in peers_of(loss, classes, 2):
            if peer.name not in ("eager", "monai") or peer.loss is None:
                continue
            ours, theirs = (
                Contender(name, f, [(logits, target)]) for name, f in (("segfuse", case.ours()), (peer.name, peer.loss))
            )
            check_equal(ours, theirs)
            steps = [Training(model, contender.step.loss, image, target) for contender in (ours, theirs)]
            for step in steps:  # the first step also makes things that later steps use again
                step()
                memory(step, device)
            ours_used, used = (memory(step, device) for step in steps)
            step_time = compare(steps[0], steps[1], setting, logits.detach().clone)
            loss_time = compare(ours.step, theirs.step, setting, logits.detach().clone)
            yield {
                "side": side,
                "widths": widths,
                "batch": BATCH[device],
                "classes": classes,
                "threads": torch.get_num_threads() if device == "cpu" else None,
                "against": peer.name,
                "label": peer.label,
                **step_time,
                "ours_loss_us": loss_time["ours_us"],
                "loss_us": loss_time["us"],
                "ours_peak_bytes": ours_used["peak_bytes"],
                "peak_bytes": used["peak_bytes"],
            }


EXPERIMENTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "dice_bce": lambda setting: task(setting, "dice_bce", 1),
    "dice_ce": lambda setting: task(setting, "dice_ce", 19),
}
