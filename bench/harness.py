"""Timing side by side: steps over rotating inputs, CUDA-graph replay, ratios with their intervals, memory.

Two contenders are timed in rounds of ours, theirs, theirs, ours (ABBA). The blocks of a round take about equal time.
The ratio is the median over the rounds, with a bootstrap 95 % interval. A round begins with a copy of the logits. If a
side differs from itself, or the copy from the other copies, something else ran: the round is done again, and dropped if
this happens twice. Both are counted. On a GPU a step is timed in two ways. "graph" replays a captured graph over
several input sets, so no input is in the cache. "wall" is the eager loop, where the host may be the limit. On a CPU
there is only "wall", on one set. "forward" is the eager loop without its backward.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from machine import Clock, told
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Loss = Callable[[Tensor, Tensor], Tensor]
Sets = list[tuple[Tensor, Tensor]]
Context = Callable[[], AbstractContextManager[object]]

# Allowed error of the loss (relative), and of the gradient (relative to its largest element). In half precision it is
# the rounding of the peer.
TOLERANCE = {torch.float32: (2e-5, 2e-4), torch.bfloat16: (1e-2, 5e-2)}
# Allowed factor between the two blocks of a side in a round, and between a copy and the earlier copies.
DRIFT, COPY_DRIFT = 1.1, 1.25


@dataclass(frozen=True)
class Setting:
    """The device and the effort of a measurement. `shrink` divides sizes, to try the benches."""

    device: str
    quick: bool = False
    shrink: int = 1

    @property
    def clock(self) -> Clock:
        return Clock(self.device)

    def rounds(self, seconds: float) -> int:
        """How many rounds, if one takes this many seconds."""
        return 5 if self.quick else min(15, max(5, round(4 / seconds)))

    @property
    def block(self) -> float:
        """Seconds of one block."""
        whole = 0.004 if self.device == "cuda" else 0.02
        return whole / (20 if self.shrink > 1 else 4 if self.quick else 1)


class Timed(Protocol):
    """Something that can be timed: a call does `per_call` steps, in a context."""

    per_call: int
    context: Context

    def __call__(self) -> object: ...


def under_autocast(loss: Loss, device: str, dtype: torch.dtype) -> Loss:
    """The loss under autocast for half-precision logits, as people use it. The backward runs outside of autocast."""
    if dtype == torch.float32:
        return loss

    def run(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device, dtype, cache_enabled=False):
            return loss(logits, target)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the two lines that the profiler writes to the standard error, outside of Python."""
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def memory(step: Callable[[], object], device: str) -> dict[str, int]:
    """Peak bytes of a step beyond the memory before it, with its result, and the number of allocations.

    It counts only memory from torch's allocators. Other memory (scratch of the CPU kernels of segfuse and oneDNN,
    torch's own sums over threads) is not counted.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        kept = step()
        torch.cuda.synchronize()
        after = torch.cuda.memory_stats()
        del kept
        peak, count = "allocated_bytes.all.peak", "allocation.all.allocated"
        held = "allocated_bytes.all.current"
        return {"peak_bytes": after[peak] - before[held], "allocations": after[count] - before[count]}
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = step()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    del kept
    sizes = [size for _, size in events]
    return {
        "peak_bytes": int(np.cumsum([0, *sizes]).max()),
        "allocations": sum(size > 0 for size in sizes),
    }


class Step:
    """A forward and backward. Each call takes the next of several input sets."""

    per_call = 1

    def __init__(
        self, loss: Loss, sets: Sets, context: Context = nullcontext, upstream: float = 1.0, backward: bool = True
    ) -> None:
        self.loss, self.sets, self.context, self.upstream, self.backward = loss, sets, context, upstream, backward
        self.turn = 0
        # A gradient lives until its set comes again. Else the next step would use the same memory, still in the cache.
        self.gradients: list[Tensor | None] = [None] * len(sets)

    def once(self, index: int) -> tuple[Tensor, Tensor | None]:
        logits, target = self.sets[index]
        loss = self.loss(logits, target)
        if loss.dim():  # one loss per sample; the peer is the mean over samples
            loss = loss.mean()
        if not self.backward:
            return loss, None
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
            with torch.cuda.stream(side):  # what the first use makes must exist before the capture
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            step.clear()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                outputs = [step.once(i) for i in range(self.per_call)]
        self.keep = outputs  # their memory belongs to the graph

    def __call__(self) -> None:
        self.graph.replay()


class Contender:
    """A loss with all the ways to time it."""

    def __init__(
        self, name: str, loss: Loss, sets: Sets, context: Context = nullcontext, upstream: float = 1.0
    ) -> None:
        self.name, self.sets, self.context = name, sets, context
        self.step = Step(loss, sets, context, upstream)
        self.warm = Step(loss, sets[:1], context, upstream)
        self.no_graph: str | None = None
        self.ways: dict[str, Timed] = {"wall": self.step}

    def result(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the first set."""
        with self.context():
            loss, gradient = self.step.once(0)
        assert gradient is not None
        return loss, gradient

    def forward(self) -> None:
        """Add the way "forward": a forward that also prepares the backward."""
        self.ways["forward"] = Step(self.step.loss, self.sets[:1], self.context, backward=False)

    def capture(self) -> None:
        """Add the way "graph", or keep the reason why there is none."""
        try:
            self.ways["graph"] = Replay(self.step)
        except Exception as error:
            self.no_graph = told(error)
            torch.cuda.synchronize()
        self.step.clear()

    def memory(self) -> dict[str, int]:
        """Memory of a step beyond its inputs, with the gradient."""
        self.step.clear()
        with self.context():
            self.warm.once(0)
            return memory(lambda: self.warm.once(0), self.sets[0][0].device.type)


def check_equal(ours: Contender, theirs: Contender, offset: float = 0.0) -> dict[str, float]:
    """Differences of loss and gradient between the two. An AssertionError if they are not the same function."""
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


def apart(a: float, b: float, limit: float) -> bool:
    return max(a, b) > limit * min(a, b)


def compare(ours: Timed, theirs: Timed, setting: Setting, copy: Callable[[], object]) -> dict[str, Any]:
    """Microseconds per step of both (for theirs also quantiles), and how many times as long theirs takes."""
    clock, block = setting.clock, setting.block

    def seconds(f: Timed, repeat: int) -> float:
        with f.context():
            return clock.seconds(f, repeat) / f.per_call

    repeats = []
    expected = 0.0
    for f in (ours, theirs):
        seconds(f, 2)
        call = seconds(f, 2) * f.per_call
        repeats.append(max(1, round(block / call)))
        expected += 2 * repeats[-1] * call
    rounds = setting.rounds(expected)
    clock.seconds(copy, 2)
    copy_repeat = max(1, round(block / 4 / clock.seconds(copy, 2)))
    copies: list[float] = []
    kept: list[tuple[float, float, float, float]] = []
    dropped: list[tuple[float, float, float, float]] = []
    repeated = 0
    for _ in range(rounds):
        for attempt in range(2):
            copies.append(clock.seconds(copy, copy_repeat))
            a, b = seconds(ours, repeats[0]), seconds(theirs, repeats[1])
            c, d = seconds(theirs, repeats[1]), seconds(ours, repeats[0])
            moved = apart(copies[-1], float(np.median(copies)), COPY_DRIFT)
            if not (moved or apart(a, d, DRIFT) or apart(b, c, DRIFT)):
                kept.append((a, b, c, d))
                break
            repeated += attempt == 0
        else:
            dropped.append((a, b, c, d))
    noisy = len(kept) < max(3, rounds / 3)
    blocks = np.array(kept + dropped if noisy else kept)  # if too few are kept, use all: the interval shows the noise
    ratios = (blocks[:, 1] + blocks[:, 2]) / (blocks[:, 0] + blocks[:, 3])
    low, high = bootstrap(ratios)
    p20, us, p80 = map(float, np.quantile(blocks[:, 1:3], (0.2, 0.5, 0.8)) * 1e6)
    return {
        "ours_us": float(np.median(blocks[:, [0, 3]])) * 1e6,
        "us": us,
        "p20": p20,
        "p80": p80,
        "ratio": float(np.median(ratios)),
        "low": low,
        "high": high,
        "rounds": rounds,
        "repeated": repeated,
        "dropped": len(dropped),
        "noisy": noisy,
    }


def measure(ours: Contender, theirs: Contender, setting: Setting, alone: bool = False) -> dict[str, Any]:
    """`compare` with graphs if both have one, else with loops. Without `alone`, also times theirs in other ways."""
    logits = ours.sets[0][0].detach()
    both = [way for way in ("graph", "wall", "forward") if way in ours.ways and way in theirs.ways]
    main, *others = (compare(ours.ways[w], theirs.ways[w], setting, logits.clone) for w in both[: 1 if alone else None])
    ours.step.clear()
    theirs.step.clear()
    return main | {f"{way}_us": found["us"] for way, found in zip(both[1:], others, strict=False)}
