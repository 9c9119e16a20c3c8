"""segfuse beside plain PyTorch, torch.compile and the losses of other libraries, forward and backward, in one process.

    python bench/run.py [--device cuda] [--quick] [--what PART ...] [--cases REGEX] [--seconds N] [--out FOLDER]

cases       the table of cases.py against every peer that has the loss (peers.py)
scaling     time against pixels, classes and threads (scaling.py)
end_to_end  a training step of a U-Net with either loss (end_to_end.py)
report      FOLDER/README.md and its pictures (report.py)

Without --what it does all of these. Loss and gradient of both sides are compared before anything is timed. Every ratio
stands beside the same loss against itself (the row "segfuse") and beside the copy rate of the same run.
FOLDER/DEVICE.json is written after each row. What is measured again takes the place of its old numbers; rows of the
table that a run leaves out (--cases, --threads) stay, if they are of the same machine, versions and options. No number
here is ever asserted in a test. How it is timed: harness.py; what the columns mean: the report.
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

import end_to_end
import scaling
import torch
from harness import Contender, Setting, check_equal, measure, set_count, under_autocast
from machine import copy_rate, describe, median_seconds, slug, write_whole
from peers import peers_of, versions

import report
import segfuse
from cases import IGNORED, SCHEMES, Case, table
from segfuse._core import native

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

PARTS = ("cases", "scaling", "end_to_end", "report")
HEADER = (
    f"{'who':30} {'us':>9} {'p20':>9} {'p80':>9}  {'ratio [95 % interval]':22} {'warm us':>9} {'wall us':>9} "
    f"{'TB/s':>6} {'of copy':>7} {'x floor':>7} {'peak MB':>8} {'allocs':>6} {'again, dropped':>14}"
)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--what", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="few cases and rounds: two minutes on two cores")
    parser.add_argument("--cases", default="", metavar="REGEX", help="of WORKLOAD/LOSS/DTYPE/TARGET")
    parser.add_argument("--peers", default="", metavar="REGEX", help="of eager, compile, monai, nnunet, smp, ...")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no row (--once: case) after that long"
    )
    parser.add_argument("--threads", type=int, nargs="+", help="on the CPU (default: all; 1 as well for the headlines)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/bench/DEVICE)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the spatial sizes, to try the harness")
    parser.add_argument("--labels", choices=("blobs", "iid"), default="blobs")
    parser.add_argument("--ignored", action="store_true", help="a tenth of the pixels is ignored")
    parser.add_argument("--upstream", type=float, default=1.0, help="scale the loss before its backward")
    parser.add_argument("--once", action="store_true", help="no timing: one step per scheme, for a profiler")
    return parser


def scheme_context(name: str) -> Callable[[], Any]:
    return (lambda: native.scheme(name)) if name != "automatic" else nullcontext


def schemes(device: str) -> list[str]:
    """The memory schemes that can be asked for beside the one that segfuse chooses."""
    return list(SCHEMES) if device == "cuda" and hasattr(native, "scheme") else []


def traced(contender: Contender) -> dict[str, Any]:
    """The kernels of a step, and the bytes that they say they move."""
    with native.trace() as events:
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
        f"{row['peak_bytes'] / 1e6:8.1f} {row['allocations']:6} {main['repeated']:8}, {main['dropped']}",
    ]
    return f"{row['who']:30} " + " ".join(cells)


def shown_flat(row: dict[str, Any]) -> str:
    """A row of another part: its numbers, and of a comparison the times and the ratio."""
    cells = []
    for key, value in row.items():
        if isinstance(value, dict) and "ratio" in value:
            times = f"{value['ours']['us']:.1f} against {value['theirs']['us']:.1f} us"
            cells.append(f"{key} {times}, {value['ratio']:.2f} [{value['low']:.2f}, {value['high']:.2f}]")
        else:
            cells.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return "  ".join(cells)


class Bench:
    """The options of a run, its clock, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.start = time.monotonic()
        self.setting = Setting(self.device, options.quick, options.shrink)
        about = {**describe(self.device), "peers": versions()}
        folder = options.out or Path(__file__).resolve().parents[1] / "runs" / "bench" / slug(about["device"])
        self.path = folder / f"{self.device}.json"
        self.results: dict[str, Any] = {**self.before(about), **about}
        self.order: dict[str, int] = {}  # of the table
        self.failed = False

    def before(self, about: dict[str, Any]) -> dict[str, Any]:
        """What another run left, unless it was on another machine or of other versions."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if all(found.get(key) == value for key, value in about.items()) else {}

    def begin(self, part: str, empty: Any) -> Any:
        """A new list of rows, or dict of such, in the place of the old."""
        self.results.setdefault("options", {})[part] = self.kept_options()
        self.results.setdefault("not_run", {}).pop(part, None)
        self.results[part] = empty
        return empty

    def kept_options(self) -> dict[str, Any]:
        """Those that a number depends on."""
        names = ("quick", "peers", "shrink", "labels", "ignored", "upstream")
        return {name: getattr(self.options, name) for name in names}

    def begin_cases(self, jobs: list[tuple[Case, int | None]]) -> None:
        """As `begin`, but rows of the table that these jobs leave out stay if they were measured in the same way."""
        again = {(case.name, threads) for case, threads in jobs}
        known = [case.name for case in table(self.device, self.options.shrink)]
        rows, not_run = [], []
        if self.results.get("options", {}).get("cases") == self.kept_options():
            rows = [row for row in self.results["cases"] if row["case"] in known]
            rows = [row for row in rows if (row["case"], row["threads"]) not in again]
            left = self.results.get("not_run", {}).get("cases", [])
            not_run = [text for text in left if text.partition(": ")[0] not in {case.name for case, _ in jobs}]
        self.begin("cases", rows)
        if not_run:
            self.results["not_run"]["cases"] = not_run
        self.order = {name: i for i, name in enumerate(known)}

    def late(self) -> bool:
        return time.monotonic() - self.start > self.options.seconds

    def save(self) -> None:
        write_whole(self.path, json.dumps(self.results, indent=1) + "\n")

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

    def contenders(self, case: Case, sets: Any) -> Iterator[tuple[dict[str, Any], Contender, Contender | None, float]]:
        """Row, ours, theirs if there is one, and the constant between their losses."""
        ignore = IGNORED if self.options.ignored else None
        upstream = self.options.upstream
        matched: dict[str, Contender] = {}

        def ours(**extra: Any) -> Contender:
            if str(extra) not in matched:
                matched[str(extra)] = Contender("segfuse", case.ours(ignore, **extra), sets, upstream=upstream)
            return matched[str(extra)]

        yield {"who": "segfuse", "scheme": "automatic"}, ours(), ours(), 0.0
        for name in schemes(self.device):
            theirs = Contender(name, case.ours(ignore), sets, scheme_context(name), upstream)
            yield {"who": f"segfuse {name}", "scheme": name}, ours(), theirs, 0.0
        for peer in peers_of(case.loss, case.classes, len(case.shape) - 2, ignore):
            if not re.search(self.options.peers, peer.name):
                continue
            row = {"who": peer.name, "label": peer.label}
            if peer.loss is None:
                yield row | {"skipped": peer.label}, ours(), None, 0.0
            elif peer.name == "compile" and self.options.quick and case.classes > 1:
                yield row | {"skipped": "compiles for too long for a quick run"}, ours(), None, 0.0
            else:
                loss = under_autocast(peer.loss, self.device, sets[0][0].dtype)
                yield row, ours(**peer.options), Contender(peer.name, loss, sets, upstream=upstream), peer.offset

    def row(
        self, row: dict[str, Any], ours: Contender, theirs: Contender, offset: float, case: Case, copy: float
    ) -> None:
        """Compare, then time; what goes wrong is written into the row."""
        is_ours = row["who"].startswith("segfuse")
        try:
            row |= check_equal(ours, theirs, offset)
            if is_ours:
                row |= traced(theirs)
            row |= theirs.memory()
            if case.tiny:
                ours.forward()
                theirs.forward()
            elif self.device == "cuda":
                for contender in (ours, theirs):
                    if len(contender.ways) == 1 and contender.no_graph is None:
                        contender.capture()
                row["no_graph"] = theirs.no_graph
            row |= measure(ours, theirs, self.setting)
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
        return 2 * logits.numel() * logits.element_size() / median_seconds(logits.clone, self.setting.clock)

    def case(self, case: Case, threads: int | None) -> None:
        torch._dynamo.reset()
        if threads is not None:
            torch.set_num_threads(threads)
        sets = self.sets(case)
        copy = self.copy_rate(sets)
        rows: list[dict[str, Any]] = []
        result: dict[str, Any] = {"case": case.name, "shape": case.shape, "threads": threads, "sets": len(sets)}
        result |= {"pixels": case.pixels, "logit_bytes": sets[0][0].numel() * sets[0][0].element_size()}
        result |= {"headline": case.headline, "core": case.core, "tiny": case.tiny, "copy_TB/s": copy / 1e12}
        result["noisy"] = True  # until its end
        result |= {"one_pass_bytes_per_pixel": case.bytes_per_pixel("one_pass"), "rows": rows}
        self.results["cases"].append(result)
        self.results["cases"].sort(key=lambda row: (-(row["threads"] or 0), self.order[row["case"]]))
        floor = 1e6 * case.bytes_per_pixel("one_pass") * case.pixels / copy
        shape = "x".join(map(str, case.shape)) + (f", {threads} thread(s)" if threads else "")
        self.say(f"\n{case.name} {shape}; copy {copy / 1e12:.3f} TB/s, floor {floor:.1f} us")
        self.say(HEADER)
        for row, ours, theirs, offset in self.contenders(case, sets):
            if theirs is not None and self.late():
                row["skipped"] = "out of time"
            elif theirs is not None:
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
        for name in schemes(self.device) or ["automatic"]:
            contender = Contender(name, case.ours(), sets, scheme_context(name))
            try:
                contender.result()
            except ValueError as error:
                self.say(f"{case.name} {name}: skipped: {error}")
                continue
            self.setting.clock.synchronize()
            self.say(f"{case.name} {name}")
            if self.device == "cuda":
                torch.cuda.profiler.start()
            contender.result()
            self.setting.clock.synchronize()
            if self.device == "cuda":
                torch.cuda.profiler.stop()

    def cases(self) -> None:
        chosen = [case for case in table(self.device, self.options.shrink) if re.search(self.options.cases, case.name)]
        if self.options.quick and not self.options.cases:
            chosen = [case for case in chosen if case.headline or case.tiny]
        jobs: list[tuple[Case, int | None]] = [(case, None) for case in chosen]
        threads = torch.get_num_threads()
        if self.device == "cpu":
            every = self.options.threads or [threads]
            jobs = [(case, count) for case in chosen for count in every]
            if not self.options.threads and not self.options.quick and every != [1]:
                jobs += [(case, 1) for case in chosen if case.headline]
        if not self.options.once:
            self.begin_cases(jobs)
        for case, count in tqdm(jobs, disable=None) if tqdm is not None else jobs:
            if self.options.once:
                if not self.late():
                    self.once(case)
            elif self.late():
                self.not_run("cases", case.name, "out of time")
            else:
                try:
                    self.case(case, count)
                except torch.cuda.OutOfMemoryError:
                    self.not_run("cases", case.name, "out of memory")
                self.tidy()
        torch.set_num_threads(threads)

    def tidy(self) -> None:
        self.save()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def not_run(self, part: str, name: str, why: str) -> None:
        self.results["not_run"].setdefault(part, []).append(f"{name}: {why}")

    def rows(self, part: str, experiments: dict[str, Callable[[Setting], Iterator[dict[str, Any]]]]) -> None:
        """The rows of each experiment, as far as the time goes; what goes wrong is a row too."""
        found = self.begin(part, {name: [] for name in experiments})
        for name, experiment in experiments.items():
            self.say(f"\n{part}: {name}")
            iterator = experiment(self.setting)
            while not self.late():
                try:
                    row = next(iterator, None)
                except Exception as error:
                    row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
                    self.failed = True
                if row is None:
                    break
                found[name].append(row)
                self.say("  " + shown_flat(row))
                self.save()
            else:
                self.not_run(part, name, "out of time")
            self.tidy()


def main() -> int:
    options = arguments().parse_args()
    # Plain PyTorch under our name must not be measured.
    os.environ.setdefault("SEGFUSE_STRICT", "1")
    if not any(re.search(options.cases, case.name) for case in table(options.device)):
        print(f"no case matches {options.cases!r}", file=sys.stderr)
        return 2
    bench = Bench(options)
    print(f"{bench.results['device']}, torch {torch.__version__}, segfuse {segfuse.__version__}; forward + backward")
    if options.once or "cases" in options.what:
        bench.cases()
    if options.once:
        return int(bench.failed)
    if "scaling" in options.what:
        bench.rows("scaling", scaling.EXPERIMENTS)
    if "end_to_end" in options.what:
        bench.rows("end_to_end", end_to_end.EXPERIMENTS)
    bench.save()
    print(f"\n{bench.path}")
    if "report" in options.what:
        print(report.write(bench.path.parent))
    return int(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
