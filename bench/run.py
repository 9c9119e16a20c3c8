"""segfuse beside plain PyTorch, torch.compile and the losses of other libraries, forward and backward, in one process.

    python bench/run.py [--device cuda] [--quick] [--what PART ...] [--cases REGEX] [--seconds N] [--out FOLDER]

cases        the table of cases.py, against every peer that has the loss (peers.py)
scaling      time against pixels, classes and threads (scaling.py)
end_to_end   a training step of a U-Net with either loss (end_to_end.py)
experiments  measurements that decide how kernels are written (experiments.py)
report       FOLDER/README.md and its pictures (report.py)

Without --what it does all but the experiments. It compares loss and gradient of both sides before it times them. Every
case also has the loss against itself (the row "segfuse") and the copy rate of the same run. FOLDER/DEVICE.json is
written after each row. A new measurement replaces the old one. Rows that this run leaves out (--cases, --threads) stay
if machine, versions and options are the same. harness.py explains how it is timed, the report what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import end_to_end
import experiments
import scaling
import torch
from harness import Contender, Sets, Setting, check_equal, measure, under_autocast
from machine import copy_rate_for, describe, slug, told, write_results
from peers import peers_of, versions
from tables import TIMED, Row, line, results_of, shown, timed

import report
import segfuse
from cases import IGNORED, SCHEMES, Case, table
from segfuse._core import native

MODULES = {"scaling": scaling, "end_to_end": end_to_end, "experiments": experiments}


def bytes_moved(contender: Contender) -> int:
    """The bytes that the kernels of a step move, from their trace."""
    with native.trace() as events:
        contender.result()
    return sum(event.bytes_read + event.bytes_written for event in events)


class Bench:
    """The options of a run, its clock, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.start = time.monotonic()
        self.setting = Setting(self.device, options.quick, options.shrink)
        self.table = list(table(self.device, options.shrink))
        self.chosen = [case for case in self.table if re.search(options.cases, case.name)]
        self.schemes = SCHEMES if self.device == "cuda" else ()  # a CPU has none
        self.ignore = IGNORED if options.ignored else None
        kept = ("quick", "peers", "shrink", "labels", "ignored", "upstream")  # a number depends on these options
        self.kept = {name: getattr(options, name) for name in kept}
        about = {**describe(self.device), "peers": versions()}
        self.folder = options.out or Path(__file__).resolve().parents[1] / "runs" / "bench" / slug(about["device"])
        self.results = {**self.before(about), **about}
        self.failed = False

    def before(self, about: Row) -> Row:
        """The results of an earlier run, if it was on the same machine with the same versions."""
        try:
            found = dict(results_of(self.folder)).get(self.device, {})
        except ValueError:
            return {}
        return found if all(found.get(key) == value for key, value in about.items()) else {}

    def begin(self, part: str, empty: Any) -> Any:
        """Puts a new list of rows, or dict of lists, in the place of the old one."""
        self.results.setdefault("options", {})[part] = self.kept
        self.results.setdefault("not_run", {}).pop(part, None)
        self.results[part] = empty
        return empty

    def begin_cases(self, jobs: list[tuple[Case, int | None]]) -> None:
        """As `begin`, but keeps rows that are not in these jobs, if they were measured with the same options."""
        rows, left = [], []
        if self.results.get("options", {}).get("cases") == self.kept:
            known = {case.name for case in self.table}
            again = {(case.name, threads) for case, threads in jobs}
            rows = [row for row in self.results["cases"] if row["case"] in known]
            rows = [row for row in rows if (row["case"], row["threads"]) not in again]
            left = self.results["not_run"].get("cases", [])
            left = [text for text in left if text.partition(": ")[0] not in {name for name, _ in again}]
        self.begin("cases", rows)
        if left:
            self.results["not_run"]["cases"] = left

    def late(self) -> bool:
        return time.monotonic() - self.start > self.options.seconds

    def save(self) -> None:
        write_results(self.folder / f"{self.device}.json", self.results)

    def not_run(self, part: str, name: str, why: str) -> None:
        self.results["not_run"].setdefault(part, []).append(f"{name}: {why}")
        self.save()

    def contenders(self, case: Case, sets: Sets) -> Iterator[tuple[Row, Contender, Contender | None, float]]:
        """Row, ours, theirs if there is one, and the constant offset between their losses."""
        upstream = self.options.upstream
        matched: dict[str, Contender] = {}

        def ours(**extra: Any) -> Contender:
            if str(extra) not in matched:
                matched[str(extra)] = Contender("segfuse", case.ours(self.ignore, **extra), sets, upstream=upstream)
            return matched[str(extra)]

        yield {"who": "segfuse", "label": "the control"}, ours(), ours(), 0.0
        for name in self.schemes:
            theirs = Contender(name, case.ours(self.ignore), sets, partial(native.scheme, name), upstream)
            yield {"who": f"segfuse {name}", "label": "scheme"}, ours(), theirs, 0.0
        for peer in peers_of(case.loss, case.classes, len(case.shape) - 2, self.ignore):
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

    def row(self, row: Row, case: Case, copy: float, ours: Contender, theirs: Contender, offset: float) -> None:
        """Compares, then times. An error is written into the row."""
        try:
            row |= check_equal(ours, theirs, offset)
            moved = bytes_moved(theirs) if theirs is ours else 0
            if theirs.name in SCHEMES:
                moved = case.bytes_per_pixel(theirs.name) * case.pixels
            row |= theirs.memory()
            for contender in (ours, theirs):
                if case.tiny:
                    contender.forward()
                elif self.device == "cuda" and len(contender.ways) == 1 and contender.no_graph is None:
                    contender.capture()
            if theirs.no_graph:
                row["no_graph"] = theirs.no_graph
            row |= measure(ours, theirs, self.setting)
            rate = 1e6 * case.pixels / row["us"] / copy
            row["of_floor"] = 1 / (case.bytes_per_pixel("one_pass") * rate)
            if moved:
                row |= {"bytes_per_pixel": moved / case.pixels, "of_copy_rate": moved / case.pixels * rate}
        except Exception as error:
            if theirs.name in SCHEMES and isinstance(error, ValueError):
                row["skipped"] = told(error)  # a scheme that cannot do this case says so
            else:
                row["error"] = told(error)
                self.failed |= row["who"].startswith("segfuse") or isinstance(error, AssertionError)

    def case(self, case: Case, threads: int | None) -> None:
        torch._dynamo.reset()
        if threads is not None:
            torch.set_num_threads(threads)
        sets = case.sets(self.device, self.options.labels, 0.1 if self.options.ignored else 0.0)
        copy = copy_rate_for(sets[0][0])
        result: Row = {"case": case.name, "shape": case.shape, "threads": threads, "logit_bytes": sets[0][0].nbytes}
        result |= {name: getattr(case, name) for name in ("pixels", "headline", "core", "tiny")}
        result |= {"copy_TB/s": copy / 1e12, "noisy": True, "rows": []}  # it counts as noisy until it ends
        self.results["cases"].append(result)
        order = [case.name for case in self.table]
        self.results["cases"].sort(key=lambda row: (-(row["threads"] or 0), order.index(row["case"])))
        print(f"{line('who', *TIMED)}; copy {copy / 1e12:.3f} TB/s")
        for row, ours, theirs, offset in self.contenders(case, sets):
            if theirs is not None and self.late():
                row["skipped"] = "out of time"
            elif theirs is not None:
                self.row(row, case, copy, ours, theirs, offset)
            result["rows"].append(row)
            print(line(row["who"], *timed(row)), flush=True)
            self.save()
            if row["who"] == "segfuse" and "error" in row:
                break
        control = result["rows"][0]
        steady = "us" in control and 0.95 <= control["low"] <= control["high"] <= 1.05
        result["noisy"] = not (steady and 0.8 <= copy_rate_for(sets[0][0]) / copy <= 1.25)
        if result["noisy"]:
            print("noisy: the loss differs from itself by more than 5 %, or the copy rate moved")
        self.save()

    def once(self) -> None:
        """One step of each case and scheme for the profiler, after one step that it does not see."""
        for case, name in product(self.chosen, self.schemes or ("automatic",)):
            if self.late():
                return
            contender = Contender(name, case.ours(), [case.inputs(self.device, 0)], partial(native.scheme, name))
            try:
                contender.result()
            except ValueError as error:
                print(f"{case.name} {name}: skipped: {error}")
                continue
            self.setting.clock.synchronize()
            print(f"{case.name} {name}", flush=True)
            with torch.cuda.profiler.profile() if self.device == "cuda" else nullcontext():
                contender.result()
                self.setting.clock.synchronize()

    def cases(self) -> None:
        chosen = self.chosen
        if self.options.quick and not self.options.cases:
            chosen = [case for case in chosen if case.headline or case.tiny]
        jobs: list[tuple[Case, int | None]] = [(case, None) for case in chosen]
        threads = torch.get_num_threads()
        if self.device == "cpu":
            every = self.options.threads or [threads]
            jobs = [(case, count) for case in chosen for count in every]
            if not self.options.threads and not self.options.quick and every != [1]:
                jobs += [(case, 1) for case in chosen if case.headline]
        self.begin_cases(jobs)
        for i, (case, count) in enumerate(jobs, 1):
            if self.late():
                self.not_run("cases", case.name, "out of time")
            else:
                print(f"\n{i} of {len(jobs)}: {case.name}, {'x'.join(map(str, case.shape))}, {count or 'all'} threads")
                try:
                    self.case(case, count)
                except torch.cuda.OutOfMemoryError:
                    self.not_run("cases", case.name, "out of memory")
            torch.cuda.empty_cache()  # does nothing without a GPU
        torch.set_num_threads(threads)

    def rows(self, part: str) -> None:
        """The rows of each experiment while there is time. An error is a row too."""
        experiments = MODULES[part].EXPERIMENTS
        found = self.begin(part, {name: [] for name in experiments if re.search(self.options.only, name)})
        for name in found:
            print(f"\n{part}: {name}")
            iterator = experiments[name](self.setting)
            while not self.late():
                try:
                    row = next(iterator, None)
                except Exception as error:
                    row = {"error": told(error)}
                    self.failed = True
                if row is None:
                    break
                found[name].append(row)
                print("  " + shown(row), flush=True)
                self.save()
            else:
                self.not_run(part, name, "out of time")
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parts = ("experiments", "cases", "scaling", "end_to_end", "report")
    parser.add_argument("--what", nargs="+", choices=parts, default=parts[1:])
    parser.add_argument("--quick", action="store_true", help="few cases and rounds: two minutes on two cores")
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases WORKLOAD/LOSS/DTYPE/TARGET that match")
    parser.add_argument("--peers", default="", metavar="REGEX", help="only peers (eager, compile, ...) that match")
    parser.add_argument("--only", default="", metavar="REGEX", help="only experiments (pixels, window, ...) that match")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no row (--once: case) after these")
    parser.add_argument("--threads", type=int, nargs="+", help="on the CPU (default: all; also 1 for the headlines)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/bench/DEVICE)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the spatial sizes by this, to try the bench")
    parser.add_argument("--labels", choices=("blobs", "iid"), default="blobs")
    parser.add_argument("--ignored", action="store_true", help="ignore a tenth of the pixels")
    parser.add_argument("--upstream", type=float, default=1.0, help="scale the loss before its backward")
    parser.add_argument("--once", action="store_true", help="no timing: one step per scheme, for a profiler")
    options = parser.parse_args()
    os.environ.setdefault("SEGFUSE_STRICT", "1")  # else plain PyTorch could be measured under our name
    bench = Bench(options)
    if not bench.chosen:
        print(f"no case matches {options.cases!r}", file=sys.stderr)
        return 2
    print(f"{bench.results['device']}, torch {torch.__version__}, segfuse {segfuse.__version__}; forward + backward")
    if options.once:
        bench.once()
        return 0
    if "cases" in options.what:
        bench.cases()
    for part in MODULES:
        if part in options.what:
            bench.rows(part)
    bench.save()
    print(f"\n{report.write(bench.folder) if 'report' in options.what else bench.folder}")
    return int(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
