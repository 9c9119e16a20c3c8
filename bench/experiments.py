"""Small experiments that decide how the kernels are to be written; the answers stand beside the results of run.py.

    python bench/experiments.py [--device cuda] [--only REGEX] [--seconds N] [--out FOLDER]

window       how fast a buffer of a given size is read again and again: where the cache ends
around_cache our two passes at sizes around that: how much of the second pass comes from the cache
classes      17, 18 and 19 classes: kernels of an exact number of classes against the one for any number
plane_stride planes a power of two bytes apart against planes that are not: whether memory channels collide
scaled_loss  a loss multiplied before its backward: what writing the gradient in the forward costs then
eager_ce     torch's own cross-entropy, against the bytes of two passes
compile      torch.compile of Dice + CE, against the bytes of two passes; and how long it compiles
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from harness import Contender, Replay, Step, set_count
from machine import Clock, copy_rate, median_seconds, write_whole
from peers import EAGER

from cases import WORKLOADS, Case
from segfuse._core import native

Row = dict[str, Any]
MB = 1 << 20


class Lab:
    """A device, its clock and its copy rate; `shrink` divides sizes, to try the experiments without a GPU."""

    def __init__(self, device: str, shrink: int) -> None:
        self.device, self.shrink, self.clock = device, shrink, Clock(device)
        self.copy = copy_rate(device, None if shrink == 1 else MB)
        workloads = WORKLOADS["cuda"].items()
        self.shapes = {k: (*s[:2], *(max(1, n // shrink) for n in s[2:])) for k, s in workloads}

    def seconds(self, f: Callable[[], object], inner: int = 1) -> float:
        return median_seconds(f, self.clock, rounds=9, repeat=3) / inner

    def graphed(self, f: Callable[[], object], inner: int) -> float:
        """Seconds of one f, of `inner` in a row in a captured graph, so that launching is not what is measured."""
        if self.device == "cpu":
            return self.seconds(f)
        f()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(inner):
                f()
        return self.seconds(graph.replay, inner)

    def step(self, case: Case, loss: Any, scheme: str | None = None, upstream: float = 1.0, cold: bool = True) -> float:
        """Seconds of a forward and backward, by graph replay on a GPU."""
        first = case.inputs(self.device, 0)
        size = sum(t.numel() * t.element_size() for t in first)
        count = set_count(self.device, size) if cold else 1
        sets = [first, *(case.inputs(self.device, seed) for seed in range(1, count))]
        context: Callable[[], Any] = nullcontext
        if self.device == "cuda" and hasattr(native, "scheme") and scheme:
            context = lambda: native.scheme(scheme)  # noqa: E731
        elif scheme not in (None, "two_pass"):
            raise ValueError(f"there is no {scheme} here")
        step = Step(loss, sets, context, upstream)
        with context():  # refuses here what it cannot do
            step()
        step.clear()
        f = Replay(step) if self.device == "cuda" else step
        return self.seconds(f, f.per_call)

    def moved(self, case: Case, seconds: float, scheme: str = "two_pass") -> Row:
        """A time as a share of the copy rate, by the bytes of a scheme."""
        size = case.bytes_per_pixel(scheme) * case.pixels
        return {"us": 1e6 * seconds, "TB/s": size / seconds / 1e12, "of_copy_rate": size / seconds / self.copy}


def case_of(shape: tuple[int, ...], loss: str, dtype: str, target: str) -> Case:
    return Case("x".join(map(str, shape)), shape, loss, dtype, target)


def window(lab: Lab) -> Iterator[Row]:
    for megabytes in (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 100, 130, 160):
        size = megabytes * MB // lab.shrink
        buffer = torch.zeros(size // 4, device=lab.device)
        seconds = lab.graphed(buffer.sum, 20)
        yield {"MB": megabytes, "us": 1e6 * seconds, "TB/s": size / seconds / 1e12}


def around_cache(lab: Lab) -> Iterator[Row]:
    for megabytes in (10, 20, 30, 40, 50, 60, 80, 100, 160, 320):
        side = max(16, int((megabytes * MB / lab.shrink / 8 / 16) ** 0.5) // 16 * 16)
        case = case_of((16, 1, side, side), "dice_bce", "float32", "float32")
        seconds = lab.step(case, case.ours(), "two_pass")
        yield {"MB of logits and target": megabytes, "side": side, **lab.moved(case, seconds)}


def classes(lab: Lab) -> Iterator[Row]:
    n, _, *space = lab.shapes["B"]
    for dtype in ("float32", "bfloat16"):
        for count in (17, 18, 19, 20, 21):
            case = case_of((n, count, *space), "dice_ce", dtype, "uint8")
            yield {"classes": count, "dtype": dtype, **lab.moved(case, lab.step(case, case.ours(), "two_pass"))}


def plane_stride(lab: Lab) -> Iterator[Row]:
    n, c, height, width = lab.shapes["B"]
    for dtype in ("float32", "bfloat16"):
        for columns in (width, width + 8, width + 64):
            case = case_of((n, c, height, columns), "dice_ce", dtype, "uint8")
            seconds = lab.step(case, case.ours(), "two_pass")
            yield {"columns": columns, "dtype": dtype, **lab.moved(case, seconds)}


def scaled_loss(lab: Lab) -> Iterator[Row]:
    for name, loss, target in (("D", "bce", "float32"), ("D", "bce", "uint8"), ("B", "ce", "int64")):
        case = case_of(lab.shapes[name], loss, "float32", target)
        for scheme in ("two_pass", "gradient_in_forward"):
            for upstream in (1.0, 0.5):
                row: Row = {"workload": name, "loss": loss, "target": target, "scheme": scheme, "upstream": upstream}
                try:
                    seconds = lab.step(case, case.ours(), scheme, upstream)
                except ValueError as error:
                    yield {**row, "skipped": str(error)}
                else:
                    yield {**row, **lab.moved(case, seconds, scheme)}


def eager_ce(lab: Lab) -> Iterator[Row]:
    for name in ("B", "C"):
        case = case_of(lab.shapes[name], "ce", "float32", "int64")
        yield {"workload": name, **lab.moved(case, lab.step(case, EAGER["ce"]))}


def compiled(lab: Lab) -> Iterator[Row]:
    for name in ("C", "B"):
        case = case_of(lab.shapes[name], "dice_ce", "float32", "int64")
        torch._dynamo.reset()
        begin = time.monotonic()
        loss = torch.compile(EAGER["dice_ce"], dynamic=False)
        contender = Contender("compile", loss, [case.inputs(lab.device, 0)])
        contender.result()
        took = time.monotonic() - begin
        row = {"workload": name, "compile_s": took, "peak_bytes": contender.peak_bytes()}
        yield {**row, **lab.moved(case, lab.step(case, loss))}


EXPERIMENTS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "window": window,
    "around_cache": around_cache,
    "classes": classes,
    "plane_stride": plane_stride,
    "scaled_loss": scaled_loss,
    "eager_ce": eager_ce,
    "compile": compiled,
}


def shown(row: Row) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after that long")
    parser.add_argument("--out", type=Path, help="a folder; its DEVICE.json gets the answers")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes, to try the experiments")
    options = parser.parse_args()
    start = time.monotonic()
    lab = Lab(options.device, options.shrink)
    answers: dict[str, Any] = {"copy_TB/s": lab.copy / 1e12}
    failed = False
    for name, experiment in EXPERIMENTS.items():
        if not re.search(options.only, name):
            continue
        rows: list[Row] = []
        answers[name] = rows
        print(f"\n{name}")
        try:
            for row in experiment(lab):
                rows.append(row)
                print("  " + shown(row), flush=True)
                if time.monotonic() - start > options.seconds:
                    raise TimeoutError("out of time")
        except Exception as error:
            failed |= not isinstance(error, TimeoutError)
            rows.append({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
            print("  " + shown(rows[-1]), flush=True)
        if options.out:
            save(options.out / f"{options.device}.json", answers)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    return int(failed)


def save(path: Path, answers: dict[str, Any]) -> None:
    """Beside what run.py wrote."""
    results = json.loads(path.read_text()) if path.exists() else {}
    write_whole(path, json.dumps({**results, "experiments": answers}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
