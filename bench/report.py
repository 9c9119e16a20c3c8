"""Writes the tables and pictures of a folder of results: FOLDER/README.md, and PNG files if matplotlib is installed.

    python bench/report.py [FOLDER] [--tables] [--readme [FILE]]

Without FOLDER it does every folder of bench/results. --tables draws no pictures. --readme rewrites the table between
<!-- bench: cpu --> and <!-- /bench --> in FILE (default: the README of the repository) from FOLDER/cpu.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from digest import profiled, steps
from pictures import draw
from tables import (
    LOSSES,
    PEERS,
    Row,
    experiments,
    most_threads,
    multiple,
    name_of,
    not_run,
    of_copy,
    present,
    ratio,
    results_of,
    row_of,
    table,
    time_of,
)

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = """\
A step is forward + backward. Both sides run in turn in one process (ABBA rounds, `bench/harness.py`).

- **case**: WORKLOAD/LOSS/LOGITS/TARGET, then the layout if it is not contiguous, and the threads.
- **segfuse**: median time of a step, and its 20 % and 80 % quantiles. On a GPU it is the time of a captured graph over
  inputs that are not in the cache. For a tiny case it is the eager loop (the forward, and forward + backward).
- **A/A**: segfuse against itself, the control. A case is marked *noisy* if its interval leaves 0.95 to 1.05, or if the
  copy rate moved by a quarter during the case.
- **of copy**: bytes per second that the passes move, as a share of the copy rate. Two passes move the logits three
  times and the target twice, and the logits once more if the forward leaves exponentials for the backward. The copy
  rate is that of a copy of the logits just before, with its allocation. More than 1 means: from the cache.
- **x floor**: time of a step divided by the least time: logits and target are read once and the gradient is written
  once, at the copy rate.
- **memory**: peak beyond the inputs, in multiples of the logits; 1 is the gradient alone. **allocations**: number in a
  step. Both count only torch's allocators, not the scratch of segfuse on a CPU (under a megabyte) and of oneDNN.
- **eager**, ...: how many times as long the other takes [95 % interval of the median over rounds]. Both compute the
  same loss and gradient; this is checked before the timing.
- **again, dropped**: rounds done again because a side differed from itself by 10 % or the copy by 25 %; rounds that
  failed twice and do not count. ~ marks a comparison with two of three rounds dropped: there all rounds count.
"""


def main_table(cases: list[Row]) -> Iterator[str]:
    peers = present(cases)
    rows = []
    for case in cases:
        ours = row_of(case, "segfuse")
        if "us" not in ours:
            rows.append((name_of(case), ours.get("error", "not run")[:80]))
            continue
        time = f"{time_of(ours['us'])} ({time_of(ours['p20'])} to {time_of(ours['p80'])})"
        cells = (time, ratio(ours), of_copy(ours), f"{ours['of_floor']:.2f}", multiple(case, ours), ours["allocations"])
        rows.append((name_of(case), *cells, *(ratio(row_of(case, peer)) for peer in peers)))
    columns = ("case", "segfuse", "A/A", "of copy", "x floor", "memory", "allocations")
    yield from table((*columns, *(PEERS[peer] for peer in peers)), rows)


def tiny_table(cases: list[Row]) -> Iterator[str]:
    if not cases:
        return
    yield "\n## What a call costs\n"
    yield "On 64 pixels: microseconds of the forward, and of forward + backward.\n"
    rows = [
        (name_of(case), row["who"], f"{row['forward_us']:.1f}", f"{row['us']:.1f}", ratio(row))
        for case in cases
        for row in case["rows"]
        if "us" in row
    ]
    yield from table(("case", "who", "forward", "forward + backward", "times as long as segfuse"), rows)


def all_rows(results: Row) -> Iterator[str]:
    rows = []
    for case in results["cases"]:
        for row in case["rows"]:
            cells = [name_of(case), row["who"], row["label"], row.get("error", row.get("skipped", ""))]
            if "us" in row:
                cells[3:] = (time_of(row["us"]), ratio(row), multiple(case, row), row["allocations"])
                cells.append(f"{row['repeated']}, {row['dropped']} of {row['rounds']}")
                cells += (f"{row[f'{what}_difference']:.0e}" for what in ("loss", "gradient"))
            rows.append(cells + [""] * (10 - len(cells)))
    columns = ("case", "who", "what", "time", "ratio", "memory", "allocations", "again, dropped")
    yield from table((*columns, "loss apart", "gradient apart"), rows)


def misses(results: Row) -> Iterator[str]:
    """Where segfuse is not faster, far from the copy rate, or above the promised memory; what is not measured."""
    absent: dict[str, None] = {}
    slow, noisy = [], []
    for case in results["cases"]:
        name, ours = name_of({**case, "noisy": False}), row_of(case, "segfuse")
        for row in case["rows"]:
            peer = PEERS.get(row["who"])
            if "error" in row:
                yield f"- {name}, {row['who']}: {row['error']}"
            elif "skipped" in row and peer:
                absent[f"{peer}: {row['skipped']}"] = None
            elif peer and row["low"] < 1:
                sure = "slower than" if row["high"] < 1 else "not surely faster than"
                yield f"- {name}: {sure} {peer}, {ratio(row)}"
            if row.get("no_graph"):
                yield f"- {name}, {row['who']}: not captured: {row['no_graph']}"
        if not case["tiny"] and ours.get("of_copy_rate", 1) < 1 / 1.5:
            slow.append(f"{name} {1 / ours['of_copy_rate']:.2f}")
        if ours.get("peak_bytes", 0) > case["logit_bytes"] + (1 << 20):
            yield f"- {name}: peak memory of {multiple(case, ours)} times the logits"
        if case["noisy"]:
            noisy.append(name)
    if slow:
        yield "- times as long as a copy of as many bytes (1.5 is the aim, beyond the caches): " + "; ".join(slow)
    if noisy:
        yield "- noisy, the control differs from itself: " + "; ".join(noisy)
    yield from (f"- not measured: {reason}" for reason in absent)
    yield from not_run(results)
    for part in ("scaling", "end_to_end"):
        for name, rows in results[part].items():
            yield from (f"- {part}, {name}: {row['error']}" for row in rows if "error" in row)


def scaling_tables(results: Row) -> Iterator[str]:
    for name, found in results["scaling"].items():
        rows = [
            (
                "x".join(map(str, row["shape"])),
                row["threads"] or "",
                time_of(row["ours_us"]),
                f"{1e3 * row['ours_us'] / row['pixels']:.2f}",
                f"{row['bytes'] / row['ours_us'] * row['copy_us'] / (2 * row['classes'] * row['pixels'] * 4):.2f}",
                ratio(row) if row["against"] == "eager" else "",
            )
            for row in found
            if "us" in row
        ]
        if rows:
            yield f"\n### {name}\n"
            yield from table(("shape", "threads", "segfuse", "ns per pixel", "of copy", "eager"), rows)


def end_to_end_table(results: Row) -> Iterator[str]:
    rows = [
        (
            LOSSES[name] + (f", {row['classes']} classes" if row["classes"] > 1 else ""),
            f"{row['batch']} of {row['side']}²",
            ", ".join(map(str, row["widths"])),
            row["threads"] or "",
            row["label"],
            time_of(row["ours_us"]),
            time_of(row["us"]),
            ratio(row),
            *(f"{time_of(row[f'{w}loss_us'])}, {row[f'{w}loss_us'] / row[f'{w}us']:.1%}" for w in ("ours_", "")),
            *(f"{row[f'{w}peak_bytes'] / 1e6:.0f} MB" for w in ("ours_", "")),
        )
        for name, found in results["end_to_end"].items()
        for row in found
        if "us" in row
    ]
    if not rows:
        return
    yield "\n## A training step\n"
    yield "The U-Net of `examples/unet.py`, ABBA in one process; peak memory beyond weights and optimizer.\n"
    columns = ("loss", "image", "widths", "threads", "against", "step, segfuse", "step, other", "times as long")
    yield from table((*columns, "loss, segfuse", "loss, other", "peak, segfuse", "peak, other"), rows)


def about(results: Row) -> str:
    """Hardware and versions, in one line."""
    keys = ("device", "cores", "CPU instruction set in use", "driver", "torch", "segfuse", "CUDA architectures")
    names = {"CPU instruction set in use": "instructions"}
    found = [f"{names.get(key, key)} {results[key]}" for key in keys if results.get(key)]
    return ", ".join(found + [f"{name} {version}" for name, version in results.get("peers", {}).items()])


def page(folder: Path) -> Iterator[str]:
    """The README.md of a folder, with the parts for which it has results."""
    yield "# Measured: segfuse beside others\n"
    yield "Written by `python bench/report.py` from the JSON files here, which `python bench/run.py` leaves.\n"
    yield COLUMNS
    yield from steps(folder)
    for device, results in results_of(folder):
        yield f"\n# {device}\n\n{about(results)}\n"
        if any(options["quick"] or options["shrink"] > 1 for options in results["options"].values()):
            yield "**A quick run or shrunk sizes: this shows that the bench works; its numbers mean nothing.**\n"
        for picture in sorted(folder.glob(f"{device}-*.png")):
            yield f"![{picture.stem}]({picture.name})\n"
        if results["cases"] or results["not_run"]:
            yield from main_table([case for case in results["cases"] if not case["tiny"]])
            yield from tiny_table([case for case in results["cases"] if case["tiny"]])
            yield "\n## Misses, and what is not measured\n"
            yield from misses(results)
        yield from end_to_end_table(results)
        if results["scaling"]:
            yield "\n## Scaling\n"
            yield "Of copy: by the bytes of two passes. Powers of two and their neighbours show the cost of strides."
            yield from scaling_tables(results)
        if results["experiments"]:
            yield "\n## Experiments\n"
            yield from experiments(results)
        if results["cases"]:
            yield "\n## Every row\n"
            yield from all_rows(results)
    yield from profiled(folder / "ncu.csv")


def write(folder: Path, pictures: bool = True) -> Path:
    """Writes README.md and pictures beside the JSON files of a folder."""
    if pictures:
        draw(folder)
    path = folder / "README.md"
    path.write_text("\n".join(page(folder)) + "\n")
    return path


def short_table(results: Row) -> Iterator[str]:
    """The table for the README of the repository: the headlines and the pointwise losses, with all threads."""
    peers = ("eager", "compile", "monai", "nnunet", "smp")
    rows = []
    for case in results["cases"]:
        loss, ours = case["case"].split("/")[1], row_of(case, "segfuse")
        wanted = case["headline"] or (case["core"] and loss in ("ce", "bce", "focal"))
        if case["threads"] != most_threads(results) or case["tiny"] or "us" not in ours or not wanted:
            continue
        kind = "binary" if case["shape"][1] == 1 else f"{case['shape'][1]} classes"
        name = f"{LOSSES[loss]}, {kind}, {'x'.join(map(str, case['shape']))}"
        peak = " and ".join(f"{row_of(case, who).get('peak_bytes', 0) / 1e6:.1f}" for who in ("segfuse", "eager"))
        rows.append((name, time_of(ours["us"]), *(ratio(row_of(case, peer)) for peer in peers), f"{peak} MB"))
    columns = ("segfuse", *(PEERS[peer] for peer in peers), "peak memory, segfuse and eager")
    yield from table(("forward + backward, float32", *columns), rows)


def rewrite(readme: Path, folder: Path) -> None:
    """Puts the table of a folder between the marks of a README."""
    results = dict(results_of(folder)).get("cpu")
    if results is None:
        raise SystemExit(f"{folder} has no cpu.json")
    begin, end = "<!-- bench: cpu -->", "<!-- /bench -->"
    before, mark, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (mark and closed):
        raise SystemExit(f"{readme} has no {begin} ... {end}")
    note = (
        "How many times as long as segfuse the others take, with the 95 % interval; ~: much noise. "
        f"{about(results)}; {most_threads(results)} threads"
    )
    if folder.resolve().is_relative_to(readme.resolve().parent):
        note += f" ([all rows]({(folder.resolve() / 'README.md').relative_to(readme.resolve().parent)}))"
    readme.write_text(before + begin + "\n" + "\n".join([*short_table(results), "", f"{note}."]) + "\n" + end + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tables", action="store_true", help="no pictures")
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "README.md")
    options = parser.parse_args()
    if options.readme and not options.folder:
        parser.error("--readme wants a FOLDER")
    folders = [options.folder] if options.folder else sorted((ROOT / "bench" / "results").iterdir())
    for folder in folders:
        if dict(results_of(folder)) or list(steps(folder)):
            print(write(folder, not options.tables))
        elif options.folder:
            parser.error(f"{folder} holds no results of bench/run.py")
    if options.readme:
        rewrite(options.readme, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
