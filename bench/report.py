"""The tables and pictures of a folder of results: FOLDER/README.md, and PNG files where matplotlib is installed.

    python bench/report.py [FOLDER] [--tables] [--readme [FILE]]

Without FOLDER: of every folder of bench/results. --tables: no pictures. --readme rewrites the table between
<!-- bench: cpu --> and <!-- /bench --> of FILE (the README of the repository) from FOLDER/cpu.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from digest import experiments, profiled, steps
from pictures import draw
from tables import (
    LOSSES,
    PEERS,
    Row,
    head,
    line,
    most_threads,
    multiple,
    name_of,
    present,
    ratio,
    results_of,
    row_of,
    spoken,
    time_of,
    timing,
)

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = """\
Forward + backward of one step, one process, both sides in turn (ABBA rounds, `bench/harness.py`).

- **case**: WORKLOAD/LOSS/LOGITS/TARGET, the layout if it is not contiguous, the threads.
- **segfuse**: median time of a step, and its 20 % and 80 % quantiles. On a GPU, of a captured graph over inputs that
  are not in the cache; of a tiny case, of the eager loop (the forward, and forward + backward).
- **A/A**: segfuse against itself, the control. A case whose interval leaves 0.95 to 1.05, or during which the copy rate
  moved by a quarter, is marked *noisy*.
- **of copy**: bytes that the passes have to move (of two passes the logits three times and the target twice; once more
  the logits' size where the forward leaves powers for the backward), per second, as a share of the rate at which a copy
  of the logits runs, allocation included, just before. More than 1: from the cache.
- **x floor**: time over that of reading logits and target and writing the gradient, once each, at the copy rate.
- **memory**: peak beyond the inputs, in multiples of the logits; 1 is the gradient alone. **allocations**: of a step.
  Both as torch's allocators see them: what a library takes past them is not counted (segfuse's own scratch on a CPU,
  under a megabyte, and that of oneDNN).
- **eager**, ...: how many times as long the other takes [95 % interval of the median over rounds]. Loss and gradient of
  both are the same function, which is checked before the timing.
- **again, dropped**: rounds done again because either side differed from itself by 10 % or the copy by 25 %; and those
  where the second try did too, which do not count. ~ marks a comparison that lost two rounds of three so: all of its
  rounds count.
"""


def main_table(results: Row) -> Iterator[str]:
    cases = [case for case in results["cases"] if not case["tiny"]]
    peers = present(cases)
    columns = ("case", "segfuse", "A/A", "of copy", "x floor", "memory", "allocations")
    yield from head(*columns, *(PEERS[peer] for peer in peers))
    for case in cases:
        ours = row_of(case, "segfuse")
        found = timing(ours)
        if found is None:
            yield line(name_of(case), ours.get("error", "not run")[:80])
            continue
        time = found["theirs"]
        yield line(
            name_of(case),
            f"{time_of(time['us'])} ({time_of(time['p20'])} to {time_of(time['p80'])})",
            ratio(found),
            f"{ours['of_copy_rate']:.2f}" if "of_copy_rate" in ours else "",
            f"{ours['of_floor']:.2f}",
            multiple(case, ours),
            ours["allocations"],
            *(ratio(timing(row_of(case, peer))) for peer in peers),
        )


def tiny_table(results: Row) -> Iterator[str]:
    cases = [case for case in results["cases"] if case["tiny"]]
    if not cases:
        return
    yield "\n## What a call costs\n"
    yield "On 64 pixels: microseconds of the forward, and of forward + backward.\n"
    yield from head("case", "who", "forward", "forward + backward", "times as long as segfuse")
    for case in cases:
        for row in case["rows"]:
            if "wall" in row and "forward" in row:
                forward, both = row["forward"]["theirs"]["us"], row["wall"]["theirs"]["us"]
                yield line(name_of(case), row["who"], f"{forward:.1f}", f"{both:.1f}", ratio(row["wall"]))


def all_rows(results: Row) -> Iterator[str]:
    columns = ("case", "who", "what", "time", "ratio", "memory", "allocations", "again, dropped")
    yield from head(*columns, "loss apart", "gradient apart")
    for case in results["cases"]:
        for row in case["rows"]:
            found = timing(row)
            what = row.get("label", "the control" if row["who"] == "segfuse" else "scheme")
            if found is None:
                yield line(name_of(case), row["who"], what, row.get("error", row.get("skipped", "")), *[""] * 6)
                continue
            yield line(
                name_of(case),
                row["who"],
                what,
                time_of(found["theirs"]["us"]),
                ratio(found),
                multiple(case, row),
                row["allocations"],
                f"{found['repeated']}, {found['dropped']} of {found['rounds']}",
                f"{row['loss_difference']:.0e}",
                f"{row['gradient_difference']:.0e}",
            )


def misses(results: Row) -> Iterator[str]:
    """Where segfuse is not ahead, far from the copy rate, or larger than promised; and what was not measured."""
    absent: dict[str, None] = {}
    slow, noisy = [], []
    for case in results["cases"]:
        name, ours = name_of({**case, "noisy": False}), row_of(case, "segfuse")
        for row in case["rows"]:
            found = timing(row)
            if "error" in row:
                yield f"- {name}, {row['who']}: {row['error']}"
            elif "skipped" in row and row["who"] in PEERS:
                absent[f"{PEERS[row['who']]}: {row['skipped']}"] = None
            elif found and row["who"] in PEERS and found["low"] < 1:
                sure = "slower than" if found["high"] < 1 else "not surely faster than"
                yield f"- {name}: {sure} {PEERS[row['who']]}, {ratio(found)}"
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
    for part, names in results.get("not_run", {}).items():
        yield from (f"- not run: {part}, {name}" for name in names)
    for part in ("scaling", "end_to_end"):
        for name, rows in results.get(part, {}).items():
            yield from (f"- {part}, {name}: {row['error']}" for row in rows if "error" in row)


def scaling_table(results: Row) -> Iterator[str]:
    for name, rows in results.get("scaling", {}).items():
        good = [row for row in rows if "time" in row]
        if not good:
            continue
        yield f"\n### {name}\n"
        yield from head("shape", "threads", "segfuse", "ns per pixel", "of copy", "eager")
        for row in good:
            us, bytes_per_us = row["time"]["ours"]["us"], 2 * row["classes"] * row["pixels"] * 4 / row["copy_us"]
            yield line(
                "x".join(map(str, row["shape"])),
                row["threads"] or "",
                time_of(us),
                f"{1e3 * us / row['pixels']:.2f}",
                f"{row['bytes'] / us / bytes_per_us:.2f}",
                ratio(row["time"]) if row["against"] == "eager" else "",
            )


def end_to_end_table(results: Row) -> Iterator[str]:
    rows = [(name, row) for name, rows in results.get("end_to_end", {}).items() for row in rows if "step" in row]
    if not rows:
        return
    yield "\n## A training step\n"
    yield "The U-Net of `examples/unet.py`, ABBA in one process; peak memory beyond weights and optimizer.\n"
    columns = ("loss", "image", "widths", "threads", "against", "step, segfuse", "step, other", "times as long")
    yield from head(*columns, "loss, segfuse", "loss, other", "peak, segfuse", "peak, other")
    for name, row in rows:
        step, classes = row["step"], row["classes"]
        yield line(
            LOSSES[name] + (f", {classes} classes" if classes > 1 else ""),
            f"{row['batch']} of {row['side']}²",
            ", ".join(map(str, row["widths"])),
            row["threads"] or "",
            row["label"],
            time_of(step["ours"]["us"]),
            time_of(step["theirs"]["us"]),
            ratio(step),
            *(f"{time_of(row['loss'][who]['us'])}, {row[f'{who}_share']:.1%}" for who in ("ours", "theirs")),
            *(f"{row[f'{who}_peak_bytes'] / 1e6:.0f} MB" for who in ("ours", "theirs")),
        )


def about(results: Row) -> str:
    """Hardware and versions, in a line."""
    keys = ("device", "cores", "CPU instruction set in use", "driver", "torch", "segfuse", "CUDA architectures")
    names = {"CPU instruction set in use": "instructions"}
    found = [f"{names.get(key, key)} {results[key]}" for key in keys if results.get(key)]
    return ", ".join(found + [f"{name} {version}" for name, version in results.get("peers", {}).items()])


def page(folder: Path) -> Iterator[str]:
    """README.md of a folder, whatever it holds."""
    yield "# Measured: segfuse beside others\n"
    yield "Written by `python bench/report.py` from the JSON files here, which `python bench/run.py` leaves.\n"
    yield COLUMNS
    yield from steps(folder)
    for device, results in results_of(folder):
        yield f"\n# {device}\n\n{about(results)}\n"
        if any(options["quick"] or options["shrink"] > 1 for options in results["options"].values()):
            yield "**A quick run, or one of shrunk sizes: of no meaning beyond that the bench runs.**\n"
        for picture in sorted(folder.glob(f"{device}-*.png")):
            yield f"![{picture.stem}]({picture.name})\n"
        if results["cases"] or results.get("not_run"):
            yield from main_table(results)
            yield from tiny_table(results)
            yield "\n## Misses, and what is not measured\n"
            yield from misses(results)
        yield from end_to_end_table(results)
        if results.get("scaling"):
            yield "\n## Scaling\n"
            yield "Of copy: by the bytes of two passes. Powers of two beside other sizes show what their strides cost."
            yield from scaling_table(results)
        if "experiments" in results:
            yield "\n## Experiments\n"
            yield from experiments(results)
        if results["cases"]:
            yield "\n## Every row\n"
            yield from all_rows(results)
    yield from profiled(folder / "ncu.csv")


def write(folder: Path, pictures: bool = True) -> Path:
    """README.md and pictures beside the JSON files of a folder."""
    if pictures:
        draw(folder)
    path = folder / "README.md"
    path.write_text("\n".join(page(folder)) + "\n")
    return path


def short_table(results: Row) -> Iterator[str]:
    """The table for the README of the repository: with all threads, the headlines and the pointwise losses alone."""
    peers = ("eager", "compile", "monai", "nnunet", "smp")
    columns = ("segfuse", *(PEERS[peer] for peer in peers), "peak memory, segfuse and eager")
    yield from head("forward + backward, float32", *columns)
    for case in results["cases"]:
        ours = timing(row_of(case, "segfuse"))
        plain = case["core"] and case["case"].split("/")[1] in ("ce", "bce", "focal")
        if case["threads"] != most_threads(results) or case["tiny"] or ours is None or not (case["headline"] or plain):
            continue
        peak = " and ".join(f"{row_of(case, who).get('peak_bytes', 0) / 1e6:.1f}" for who in ("segfuse", "eager"))
        cells = (ratio(timing(row_of(case, peer))) for peer in peers)
        yield line(spoken(case), time_of(ours["theirs"]["us"]), *cells, f"{peak} MB")


def rewrite(readme: Path, folder: Path) -> None:
    """Put the table of a folder between the marks of a README."""
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
