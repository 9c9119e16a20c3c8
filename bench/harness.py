"""Timing side by side: steps over rotating inputs, CUDA-graph replay, ratios with their intervals, peak memory.

Two contenders are timed in rounds of ours, theirs, theirs, ours (ABBA), each block about equally long; the ratio is the
median over the rounds, with a bootstrap 95 % interval. On a GPU a step is timed three ways: "graph" replays a captured
graph that walks through several input sets, so that no input is in the cache; "graph_warm" replays one set; "wall" is
the eager loop, in which the host may be the limit. On a CPU there is only "wall", on one set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from machine import Clock, l2_bytes
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Sets = list[tuple[Tensor, Tensor]]
Context = Callable[[], AbstractContextManager[object]]

# Of the loss (relative), and of the gradient relative to its largest element. Half precision: of the peer's rounding.
TOLERANCE = {torch.float32: (2e-5, 2e-4), torch.bfloat16: (1e-2, 5e-2)}


def set_count(device: str, size: int) -> int:
    """How many input sets of a size it takes to be sure that none of them is in the cache when its turn comes."""
    return 1 if device == "cpu" else min(64, max(4, math.ceil(4 * l2_bytes() / max(size, 1))))


def under_autocast(loss: Loss, device: str, dtype: torch.dtype) -> Loss:
    """As people run a loss on half-precision logits; the backward runs outside, as theirs does."""
    if dtype == torch.float32:
        return loss

    def run(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device, dtype, cache_enabled=False):
            return loss(logits, target)

    return run


class Step:
    """A forward and backward on the next of several input sets; `per_call` steps are done by one call."""

    per_call = 1

    def __init__(self, loss: Loss, sets: Sets, context: Context = nullcontext, upstream: float = 1.0) -> None:
        self.loss, self.sets, self.context, self.upstream = loss, sets, context, upstream
        self.turn = 0
        # Gradients live until their set comes again: a buffer that is written at once again would stay in the cache.
        self.gradients: list[Tensor | None] = [None] * len(sets)

    def once(self, index: int) -> tuple[Tensor, Tensor]:
        logits, target = self.sets[index]
        loss = self.loss(logits, target)
        scaled = loss if self.upstream == 1.0 else loss * self.upstream
        (gradient,) = torch.autograd.grad(scaled, logits)
        return loss.detach(), gradient

    def __call__(self) -> None:
        self.gradients[self.turn] = self.once(self.turn)[1]
        self.turn = (self.turn + 1) % len(self.sets)

    def clear(self) -> None:
        self.gradients = [None] * len(self.sets)


class Replay:
    """A captured graph of one step per input set."""

    def __init__(self, step: Step) -> None:
        self.context: Context = nullcontext
        self.per_call = len(step.sets)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with step.context():
            with torch.cuda.stream(side):  # whatever is made at the first use is made before the capture
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            step.clear()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                outputs = [step.once(i) for i in range(self.per_call)]
        self.keep = outputs  # in the graph's own memory

    def __call__(self) -> None:
        self.graph.replay()


class Contender:
    """A loss in every way in which it is timed."""

    def __init__(
        self, name: str, loss: Loss, sets: Sets, context: Context = nullcontext, upstream: float = 1.0
    ) -> None:
        self.name, self.sets, self.context = name, sets, context
        self.step = Step(loss, sets, context, upstream)
        self.warm = Step(loss, sets[:1], context, upstream)
        self.no_graph: str | None = None
        self.ways: dict[str, Step | Replay] = {"wall": self.step}

    def result(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the first set."""
        with self.context():
            return self.step.once(0)

    def capture(self) -> None:
        """Add the graphs, or say why there are none."""
        try:
            self.ways |= {"graph": Replay(self.step), "graph_warm": Replay(self.warm)}
        except Exception as error:
            self.no_graph = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            torch.cuda.synchronize()
        self.step.clear()
        self.warm.clear()

    def peak_bytes(self) -> int | None:
        """Peak memory of a step beyond its inputs, the gradient included."""
        if not self.sets[0][0].is_cuda:
            return None
        self.step.clear()
        with self.context():
            self.warm.once(0)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            kept = self.warm.once(0)
            torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before


def check_equal(ours: Contender, theirs: Contender, offset: float = 0.0) -> dict[str, float]:
    """How far loss and gradient of the two are apart; AssertionError if they are not the same function."""
    loss_tolerance, gradient_tolerance = TOLERANCE[ours.sets[0][0].dtype]
    (our_loss, our_gradient), (their_loss, their_gradient) = ours.result(), theirs.result()
    value, expected = float(our_loss) + offset, float(their_loss)
    scale = float(their_gradient.abs().max())
    error = float((our_gradient.float() - their_gradient.float()).abs().max())
    size = max(abs(expected), abs(offset), 1e-3)
    found = {"loss_difference": abs(value - expected) / size, "gradient_difference": error / scale if scale else error}
    assert found["loss_difference"] <= loss_tolerance, f"loss {value} against {expected} of {theirs.name}"
    assert found["gradient_difference"] <= gradient_tolerance, (
        f"gradient off by {error} of {scale}, against {theirs.name}"
    )
    return found


def bootstrap(ratios: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(seconds, (0.2, 0.5, 0.8)) * 1e6
    return {"us": float(middle), "p20": float(low), "p80": float(high)}


def compare(ours: Step | Replay, theirs: Step | Replay, clock: Clock, rounds: int, block: float) -> dict[str, Any]:
    """Microseconds per step of both, and how many times as long theirs takes."""

    def seconds(f: Step | Replay, repeat: int) -> float:
        with f.context():
            return clock.seconds(f, repeat) / f.per_call

    repeats = {}
    for name, f in (("ours", ours), ("theirs", theirs)):
        seconds(f, 2)
        repeats[name] = max(1, round(block / (seconds(f, 2) * f.per_call)))
    first: list[float] = []
    second: list[float] = []
    ratios = []
    for _ in range(rounds):
        a, b = seconds(ours, repeats["ours"]), seconds(theirs, repeats["theirs"])
        c, d = seconds(theirs, repeats["theirs"]), seconds(ours, repeats["ours"])
        first += [a, d]
        second += [b, c]
        ratios.append((b + c) / (a + d))
    low, high = bootstrap(np.array(ratios))
    return {
        "ours": spread(first),
        "theirs": spread(second),
        "ratio": float(np.median(ratios)),
        "low": low,
        "high": high,
    }


def measure(ours: Contender, theirs: Contender, clock: Clock, rounds: int, block: float) -> dict[str, Any]:
    """`compare` for every way that both can be timed in."""
    found = {}
    for way in ("graph", "graph_warm", "wall"):
        if way in ours.ways and way in theirs.ways:
            found[way] = compare(ours.ways[way], theirs.ways[way], clock, rounds, block)
    ours.step.clear()
    theirs.step.clear()
    return found
