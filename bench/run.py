"""segfuse beside plain PyTorch, torch.compile, MONAI and nnU-Net, forward and backward, in one process.

    python bench/run.py [--device cuda] [--quick] [--cases REGEX] [--seconds N] [--out FOLDER]

Loss and gradient of both sides are compared before anything is timed. Every ratio stands beside the same loss against
itself (the row "segfuse") and beside the copy rate of the same run. FOLDER/DEVICE.json is written after each row. No
number here is ever asserted in a test. What the columns mean: `harness.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from harness import Contender, check_equal, measure, set_count, under_autocast
from machine import Clock, copy_rate, describe, median_seconds, slug
from peers import Peer, peers_of

import segfuse
from cases import IGNORED, SCHEMES, Case, table
from segfuse import _native

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

HEADER = (
    f"{'who':30} {'us':>9} {'p20':>9} {'p80':>9}  {'ratio [95 % interval]':22} {'warm us':>9} {'wall us':>9} "
    f"{'TB/s':>6} {'of copy':>7} {'x floor':>7} {'peak MB':>8}"
)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few and short rounds")
    parser.add_argument("--cases", default="", metavar="REGEX", help="of WORKLOAD/LOSS/DTYPE/TARGET")
    parser.add_argument("--peers", default="", metavar="REGEX", help="of eager, monai, nnunet, compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no row after that long")
    parser.add_argument("--threads", type=int, nargs="+", help="on the CPU (default: 1, and all)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/bench/DEVICE)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the spatial sizes, to try the harness")
    parser.add_argument("--labels", choices=("blobs", "iid"), default="blobs")
    parser.add_argument("--ignored", action="store_true", help="a tenth of the pixels is ignored")
    parser.add_argument("--upstream", type=float, default=1.0, help="scale the loss before its backward")
    parser.add_argument("--once", action="store_true", help="no timing: one step per scheme, for a profiler")
    return parser


def scheme_context(name: str) -> Callable[[], Any]:
    return (lambda: _native.scheme(name)) if name != "auto" else nullcontext


def schemes(device: str) -> list[str]:
    """The memory schemes that can be asked for beside the one that segfuse chooses."""
    return list(SCHEMES) if device == "cuda" and hasattr(_native, "scheme") else []


def traced(contender: Contender) -> dict[str, Any]:
    """The kernels of a step, and the bytes that they say they move."""
    with _native.trace() as events:
        contender.result()
    moved = sum(event.bytes_read + event.bytes_written for event in events)
    return {"kernels": [event.kernel for event in events], "traced_bytes": moved or None}


def rates(row: dict[str, Any], case: Case, copy: float) -> None:
    """The row's time against the byte floor, and against its own bytes if those are known."""
    main = row.get("graph") or row["wall"]
    seconds = main["theirs"]["us"] / 1e6
    row["of_floor"] = seconds / (case.bytes_per_pixel("one_pass") * case.pixels / copy)
    moved = row.get("traced_bytes")
    if row.get("scheme") in SCHEMES:
        moved = case.bytes_per_pixel(row["scheme"]) * case.pixels
    if moved:
        row["bytes_per_pixel"] = moved / case.pixels
        row["TB/s"] = moved / seconds / 1e12
        row["of_copy_rate"] = moved / seconds / copy


def shown(row: dict[str, Any]) -> str:
    for key in ("skipped", "error"):
        if key in row:
            return f"{row['who']:30} {key}: {row[key]}"
    main = row.get("graph") or row["wall"]
    warm = row.get("graph_warm")
    cells = [
        f"{main['theirs']['us']:9.1f} {main['theirs']['p20']:9.1f} {main['theirs']['p80']:9.1f}",
        f" {main['ratio']:6.2f} [{main['low']:.2f}, {main['high']:.2f}]".ljust(23),
        f"{warm['theirs']['us']:9.1f}" if warm else " " * 9,
        f"{row['wall']['theirs']['us']:9.1f}",
        f"{row['TB/s']:6.3f} {row['of_copy_rate']:7.2f}" if "TB/s" in row else " " * 14,
        f"{row['of_floor']:7.2f}",
        f"{row['peak_bytes'] / 1e6:8.1f}" if row["peak_bytes"] is not None else "",
    ]
    return f"{row['who']:30} " + " ".join(cells)


class Bench:
    """The options of a run, its clock, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.start = time.monotonic()
        self.clock = Clock(self.device)
        self.rounds = 5 if options.quick else 15
        self.block = (0.004 if self.device == "cuda" else 0.02) / (4 if options.quick else 1)
        about = describe(self.device)
        self.results: dict[str, Any] = {
            **about,
            "options": {k: v for k, v in vars(options).items() if k not in ("out", "seconds", "once")},
            "cases": [],
            "not_run": [],
        }
        folder = options.out or Path(__file__).resolve().parents[1] / "runs" / "bench" / slug(about["device"])
        self.path = folder / f"{self.device}.json"
        self.failed = False

    def late(self) -> bool:
        return time.monotonic() - self.start > self.options.seconds

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".tmp")
        half.write_text(json.dumps(self.results, indent=1) + "\n")
        half.replace(self.path)  # an interrupted run leaves a whole file

    def say(self, text: str) -> None:
        if tqdm is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def sets(self, case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
        ignored = 0.1 if self.options.ignored else 0.0
        first = case.inputs(self.device, 0, self.options.labels, ignored)
        size = sum(tensor.numel() * tensor.element_size() for tensor in first)
        rest = range(1, set_count(self.device, size))
        return [first, *(case.inputs(self.device, seed, self.options.labels, ignored) for seed in rest)]

    def contenders(self, case: Case, sets: Any) -> Iterator[tuple[dict[str, Any], Contender, Contender, float]]:
        """Row, ours, theirs, and the constant between their losses."""
        ignore = IGNORED if self.options.ignored else None
        upstream = self.options.upstream
        matched: dict[str, Contender] = {}

        def ours(**extra: Any) -> Contender:
            if str(extra) not in matched:
                matched[str(extra)] = Contender("segfuse", case.ours(ignore, **extra), sets, upstream=upstream)
            return matched[str(extra)]

        yield {"who": "segfuse", "scheme": "auto"}, ours(), ours(), 0.0
        for name in schemes(self.device):
            theirs = Contender(name, case.ours(ignore), sets, scheme_context(name), upstream)
            yield {"who": f"segfuse {name}", "scheme": name}, ours(), theirs, 0.0
        for peer in peers_of(case.loss, case.classes, ignore):
            if not re.search(self.options.peers, peer.name):
                continue
            yield {"who": peer.name, "label": peer.label}, ours(**peer.options), self.peer(peer, sets), peer.offset

    def peer(self, peer: Peer, sets: Any) -> Contender:
        loss = under_autocast(peer.loss, self.device, sets[0][0].dtype)
        return Contender(peer.name, loss, sets, upstream=self.options.upstream)

    def row(
        self, row: dict[str, Any], ours: Contender, theirs: Contender, offset: float, case: Case, copy: float
    ) -> None:
        """Compare, then time; what goes wrong is written into the row."""
        is_ours = row["who"].startswith("segfuse")
        try:
            row |= check_equal(ours, theirs, offset)
            if is_ours:
                row |= traced(theirs)
            row["peak_bytes"] = theirs.peak_bytes()
            if self.device == "cuda":
                for contender in (ours, theirs):
                    if len(contender.ways) == 1 and contender.no_graph is None:
                        contender.capture()
                row["no_graph"] = theirs.no_graph
            row |= measure(ours, theirs, self.clock, self.rounds, self.block)
            rates(row, case, copy)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if row.get("scheme") in SCHEMES and isinstance(error, ValueError):
                row["skipped"] = text  # a scheme that cannot do this case says so
            else:
                row["error"] = text
                self.failed |= is_ours or isinstance(error, AssertionError)

    def copy_rate(self, sets: Any) -> float:
        """Of a large buffer on a GPU; on a CPU, whose memory is slower when it is new, of a clone of the logits."""
        if self.device == "cuda":
            return copy_rate("cuda")
        logits = sets[0][0].detach()
        return 2 * logits.numel() * logits.element_size() / median_seconds(logits.clone, self.clock)

    def case(self, case: Case, threads: int | None) -> None:
        torch._dynamo.reset()
        if threads is not None:
            torch.set_num_threads(threads)
        sets = self.sets(case)
        copy = self.copy_rate(sets)
        rows: list[dict[str, Any]] = []
        result: dict[str, Any] = {"case": case.name, "shape": case.shape, "threads": threads, "sets": len(sets)}
        result |= {"copy_TB/s": copy / 1e12, "one_pass_bytes_per_pixel": case.bytes_per_pixel("one_pass"), "rows": rows}
        self.results["cases"].append(result)
        floor = 1e6 * case.bytes_per_pixel("one_pass") * case.pixels / copy
        shape = "x".join(map(str, case.shape)) + (f", {threads} thread(s)" if threads else "")
        self.say(f"\n{case.name} {shape}; copy {copy / 1e12:.3f} TB/s, floor {floor:.1f} us")
        self.say(HEADER)
        for row, ours, theirs, offset in self.contenders(case, sets):
            if self.late():
                row["skipped"] = "out of time"
            else:
                self.row(row, ours, theirs, offset, case, copy)
            rows.append(row)
            self.say(shown(row))
            self.save()
            if row["who"] == "segfuse" and "error" in row:
                break
        control = rows[0].get("graph") or rows[0].get("wall")
        after = self.copy_rate(sets)
        result["noisy"] = control is None or not 0.95 <= control["low"] <= control["high"] <= 1.05
        result["noisy"] |= not 0.8 <= after / copy <= 1.25
        if result["noisy"]:
            self.say("noisy: the loss differs from itself by more than 5 %, or the copy rate moved")
        self.save()

    def once(self, case: Case) -> None:
        """One step of each scheme between the profiler's marks, after one that is not looked at."""
        sets = [case.inputs(self.device, 0)]
        for name in schemes(self.device) or ["auto"]:
            contender = Contender(name, case.ours(), sets, scheme_context(name))
            try:
                contender.result()
            except ValueError as error:
                self.say(f"{case.name} {name}: skipped: {error}")
                continue
            self.clock.synchronize()
            self.say(f"{case.name} {name}")
            if self.device == "cuda":
                torch.cuda.profiler.start()
            contender.result()
            self.clock.synchronize()
            if self.device == "cuda":
                torch.cuda.profiler.stop()


def main() -> int:
    options = arguments().parse_args()
    # Plain PyTorch under our name must not be measured.
    os.environ.setdefault("SEGFUSE_STRICT", "1")
    threads: list[int | None] = [None]
    if options.device == "cpu":
        threads = list(dict.fromkeys(options.threads or [1, torch.get_num_threads()]))
    chosen = [case for case in table(options.device, options.shrink) if re.search(options.cases, case.name)]
    if not chosen:
        print(f"no case matches {options.cases!r}", file=sys.stderr)
        return 2
    bench = Bench(options)
    print(f"{bench.results['device']}, torch {torch.__version__}, segfuse {segfuse.__version__}; forward + backward")
    jobs = [(case, count) for case in chosen for count in threads]
    for case, count in tqdm(jobs, disable=None) if tqdm is not None else jobs:
        if options.once:
            bench.once(case)
        elif bench.late():
            bench.results["not_run"].append(f"{case.name}: out of time")
        else:
            try:
                bench.case(case, count)
            except torch.cuda.OutOfMemoryError:
                bench.results["not_run"].append(f"{case.name}: out of memory")
            if options.device == "cuda":
                torch.cuda.empty_cache()
    if not options.once:
        bench.save()
        print(f"\n{len(bench.results['cases'])} of {len(jobs)} cases: {bench.path}")
    return int(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
