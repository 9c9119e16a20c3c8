"""The tables and pictures of a folder of results: FOLDER/README.md, and PNG files where matplotlib is installed.

    python bench/report.py [FOLDER] [--readme [FILE]]

Without FOLDER: of every folder of bench/results. --readme rewrites the table between <!-- bench: cpu --> and
<!-- /bench --> of FILE (the README of the repository) from FOLDER/cpu.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#7f7f7f"
STYLE: Row = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}
PEERS = {
    "eager": "eager",
    "compile": "torch.compile",
    "monai": "MONAI",
    "nnunet": "nnU-Net",
    "smp": "smp",
    "kornia": "kornia",
    "toolbelt": "toolbelt",
    "torchvision": "torchvision",
}
LOSSES = {
    "dice_bce": "Dice + BCE",
    "dice_ce": "Dice + CE",
    "dice": "Dice",
    "bce": "BCE",
    "ce": "CE",
    "focal": "focal",
    "tversky": "Tversky",
}
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


def line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def head(*cells: object) -> Iterator[str]:
    yield line(*cells)
    yield line(*["---"] * len(cells))


def timing(row: Row) -> Row | None:
    """The comparison that counts: of graphs where there are any."""
    found: Row | None = row.get("graph") or row.get("wall")
    return found


def row_of(case: Row, who: str) -> Row:
    return next((row for row in case["rows"] if row["who"] == who), {})


def time_of(us: float) -> str:
    return f"{us:.3g} µs" if us < 1000 else f"{us / 1000:.3g} ms"


def ratio(found: Row | None) -> str:
    if found is None:
        return ""
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" + ("~" if found["noisy"] else "")


def multiple(case: Row, row: Row) -> str:
    return f"{row['peak_bytes'] / case['logit_bytes']:.2f}" if "peak_bytes" in row else ""


def name_of(case: Row) -> str:
    threads: int | None = case["threads"]
    counted = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
    return f"{case['case']}{counted}{' (*noisy*)' if case['noisy'] else ''}"


def spoken(case: Row) -> str:
    """A core case for those who do not know the table."""
    kind = "binary" if case["shape"][1] == 1 else f"{case['shape'][1]} classes"
    return f"{LOSSES[case['case'].split('/')[1]]}, {kind}, {'x'.join(map(str, case['shape']))}"


def short(case: Row) -> str:
    """A case beside its bar: no more than what it differs in."""
    workload, loss, dtype, target, *layout = case["case"].split("/")
    unusual = layout or [name for name in (dtype, target) if not case["core"] and name != "float32"]
    return f"{workload}: {LOSSES[loss]}" + "".join(f", {name}" for name in unusual)


def most_threads(results: Row) -> int | None:
    return max((case["threads"] for case in results["cases"] if case["threads"]), default=None)


def measured(results: Row, threads: int | None) -> list[Row]:
    """The cases of as many threads in which segfuse ran, not the tiny ones; by workload, the core first."""
    found = [
        case
        for case in results.get("cases", [])
        if case["threads"] == threads and not case["tiny"] and timing(row_of(case, "segfuse"))
    ]
    return sorted(found, key=lambda case: (case["case"].split("/")[0], not case["core"]))


def present(cases: list[Row]) -> list[str]:
    """The peers that were timed in any of the cases."""
    return [peer for peer in PEERS if any(timing(row_of(case, peer)) for case in cases)]


# --------------------------------------------------------------------------------------------------------------- tables


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


def experiments(results: Row) -> Iterator[str]:
    for name, rows in results.get("experiments", {}).items():
        if not isinstance(rows, list):
            continue
        yield f"\n**{name}**\n"
        columns = list(dict.fromkeys(key for row in rows for key in row))
        yield from head(*columns)
        for row in rows:
            yield line(*(f"{v:.4g}" if isinstance(v, float) else v for v in (row.get(c, "") for c in columns)))


def profiled(log: Path) -> Iterator[str]:
    """The kernels of ncu's comma-separated lines, one row each."""
    lines = log.read_text(errors="replace").splitlines()
    start = next((i for i, text in enumerate(lines) if text.startswith('"ID"')), None)
    if start is None:
        return
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(text for text in lines[start:] if text.startswith('"')):
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        kernel[row["Metric Name"]] = row["Metric Value"]
    metrics = list(dict.fromkeys(key for kernel in kernels.values() for key in kernel if key != "kernel"))
    yield "\n## ncu\n"
    yield from head("kernel", *metrics)
    for kernel in kernels.values():
        name = kernel["kernel"]
        yield line(name if len(name) <= 70 else name[:67] + "...", *(kernel.get(m, "") for m in metrics))


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
    steps = folder / "steps.md"
    if steps.exists():
        yield steps.read_text()
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
    log = folder / "ncu.log"
    if log.exists():
        yield from profiled(log)


# ------------------------------------------------------------------------------------------------------------- pictures


def bars(
    plt: Any,
    cases: list[Row],
    columns: list[str],
    value: Callable[[Row, Row], tuple[float, float, float] | None],
    log: bool,
) -> Any:
    """A row per case and a panel per contender: bars from 1 of a logarithmic axis or from 0, intervals, the numbers."""
    size = (2.4 + 1.7 * len(columns), 1.3 + 0.24 * len(cases))
    figure, grid = plt.subplots(
        1, len(columns), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    start = 1 if log else 0
    for axes, who in zip(grid[0], columns, strict=True):
        for y, case in enumerate(cases):
            found = value(case, row_of(case, who))
            if found is None:
                continue
            middle, low, high = found
            colour = BLUE if low >= 1 else RED if high < 1 else GREY
            axes.barh(y, middle - start, left=start, height=0.62, color=colour, alpha=0.75, linewidth=0)
            axes.plot((low, high), (y, y), color="black", linewidth=1)
            end = max(middle, high, start)
            axes.annotate(f"{middle:.1f}", (end, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=PEERS.get(who, who), xscale="log" if log else "linear")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    first = grid[0, 0]
    first.set_yticks(range(len(cases)), [short(case) for case in cases])
    first.margins(x=0.25)
    first.set_ylim(len(cases) - 0.4, -0.6)
    if log:
        tidy_log(first, "x", headroom=2)
    return figure


def tidy_log(axes: Any, which: str, headroom: float = 1) -> None:
    """Plain numbers at 1, 2, 5, 10 ... of a logarithmic axis, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}lim")(low, high * headroom)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high * headroom / low < 30 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def ratios(plt: Any, results: Row) -> Any | None:
    cases = measured(results, most_threads(results))
    peers = present(cases)
    if not peers:
        return None

    def value(case: Row, row: Row) -> tuple[float, float, float] | None:
        found = timing(row)
        return None if found is None else (found["ratio"], found["low"], found["high"])

    figure = bars(plt, cases, peers, value, log=True)
    figure.suptitle("How many times as long as segfuse, forward + backward (line: 95 % interval)", fontweight="bold")
    return figure


def memory(plt: Any, results: Row) -> Any | None:
    cases = measured(results, most_threads(results))
    if not cases:
        return None

    def value(case: Row, row: Row) -> tuple[float, float, float] | None:
        if "peak_bytes" not in row:
            return None
        times = row["peak_bytes"] / case["logit_bytes"]
        return times, times, times

    figure = bars(plt, cases, ["segfuse", *present(cases)], value, log=False)
    figure.suptitle("Peak memory beyond the inputs, in multiples of the logits (1: the gradient)", fontweight="bold")
    return figure


def roofline(plt: Any, results: Row) -> Any | None:
    cases = [case for case in measured(results, most_threads(results)) if "of_copy_rate" in row_of(case, "segfuse")]
    if not cases:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    points = []
    for case in cases:
        ours = row_of(case, "segfuse")
        found = timing(ours)
        assert found is not None
        points.append((ours["bytes_per_pixel"] * case["pixels"] / 1e6, found["theirs"]["us"] / 1e3, case))
    rate = statistics.median(case["copy_TB/s"] for case in cases) * 1e3  # MB per ms
    left, right = min(p[0] for p in points) / 1.5, max(p[0] for p in points) * 1.5
    for factor, style in ((1, "-"), (1.5, "--")):
        label = f"copy of as many bytes, {rate:.3g} GB/s" if factor == 1 else "1.5 times that"
        axes.plot((left, right), (factor * left / rate, factor * right / rate), style, color="black", lw=1, label=label)
    losses = [loss for loss in LOSSES if any(case["case"].split("/")[1] == loss for *_, case in points)]
    workloads = sorted({case["case"].split("/")[0] for *_, case in points})
    for loss, colour in zip(losses, (BLUE, RED, GREEN, ORANGE, PURPLE, GREY, "#56b4e9"), strict=False):
        for workload, marker in zip(workloads, "osD^v", strict=False):
            chosen = [p for p in points if p[2]["case"].split("/")[:2] == [workload, loss]]
            axes.plot(
                [p[0] for p in chosen], [p[1] for p in chosen], marker, color=colour, ms=5.5, mec="white", mew=0.5
            )
        axes.plot([], [], "o", color=colour, label=LOSSES[loss])
    for workload, marker in zip(workloads, "osD^v", strict=False):
        axes.plot([], [], marker, color="none", mec="black", label=f"workload {workload}")
    axes.set(xscale="log", yscale="log", xlabel="MB moved by the two passes", ylabel="ms, forward + backward")
    tidy_log(axes, "x")
    tidy_log(axes, "y")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Time against bytes", fontweight="bold")
    return figure


def growth(plt: Any, results: Row) -> Any | None:
    """Small multiples of scaling.py."""
    parts = {name: [r for r in rows if "time" in r] for name, rows in results.get("scaling", {}).items()}
    pixels, classes, threads = (parts.get(name, []) for name in ("pixels", "classes", "threads"))
    panels: list[tuple[str, Callable[[Any], None]]] = []

    def per_pixel(axes: Any, rows: list[Row]) -> None:
        x = [row["pixels"] for row in rows]
        for who, colour, label in (("ours", BLUE, "segfuse"), ("theirs", RED, "eager")):
            axes.plot(x, [1e3 * r["time"][who]["us"] / r["pixels"] for r in rows], ".-", color=colour, label=label)
        copies = [1e3 * row["copy_us"] / row["pixels"] for row in rows]
        axes.plot(x, copies, ":", color=GREY, label="copy of the logits")
        axes.set(xscale="log", yscale="log", xlabel="pixels", ylabel="ns per pixel")
        tidy_log(axes, "y")

    def by_class(axes: Any) -> None:
        for width, style, name in ((256, ".-", ""), (250, ".:", ", rows of 250")):
            rows = sorted((r for r in classes if r["width"] == width), key=lambda r: r["classes"])
            scale = [1e3 * row["classes"] * row["pixels"] for row in rows]
            for who, colour, label in (("ours", BLUE, "segfuse"), ("theirs", RED, "eager")):
                if who == "ours" or width == 256:
                    y = [1e6 * r["time"][who]["us"] / s for r, s in zip(rows, scale, strict=True)]
                    axes.plot([r["classes"] for r in rows], y, style, color=colour, label=label + name)
        axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="ns per logit")
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 4, 8, 16, 32, 64, 128, 256], ["2", "4", "8", "16", "32", "64", "128", "256"])
        tidy_log(axes, "y")

    def by_thread(axes: Any) -> None:
        for name, colour in zip("abc", (BLUE, GREEN, ORANGE), strict=True):
            rows = [row for row in threads if row["workload"] == name]
            for who, style in (("ours", ".-"), ("theirs", ".:")):
                first = rows[0]["time"][who]["us"]
                label = f"{name}, {'segfuse' if who == 'ours' else 'eager'}"
                y = [first / row["time"][who]["us"] for row in rows]
                axes.plot([row["threads"] for row in rows], y, style, color=colour, label=label)
        most = max(row["threads"] for row in threads)
        axes.plot((1, most), (1, most), color="black", linewidth=0.6)
        axes.set(xlabel="threads", ylabel="times as fast as one thread")
        axes.xaxis.get_major_locator().set_params(integer=True)

    for count, title in ((1, "Dice + BCE, one image"), (19, "Dice + CE, 19 classes, one image")):
        rows = [row for row in pixels if row["classes"] == count]
        if rows:
            panels.append((title, lambda axes, rows=rows: per_pixel(axes, rows)))  # type: ignore[misc]
    if classes:
        total = math.log2(classes[0]["classes"] * classes[0]["pixels"])
        panels.append((f"Dice + CE, about $2^{{{total:.0f}}}$ logits", by_class))
    if len({row["threads"] for row in threads}) > 1:
        panels.append(("threads", by_thread))
    if not panels:
        return None
    figure, grid = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.9), layout="constrained", squeeze=False)
    for axes, (title, draw) in zip(grid[0], panels, strict=True):
        draw(axes)
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    figure.suptitle("How time grows, forward + backward", fontweight="bold")
    return figure


PICTURES: dict[str, Callable[[Any, Row], Any | None]] = {
    "ratios": ratios,
    "memory": memory,
    "roofline": roofline,
    "scaling": growth,
}


def draw(folder: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no pictures", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        for device, results in results_of(folder):
            for name, picture in PICTURES.items():
                path = folder / f"{device}-{name}.png"
                path.unlink(missing_ok=True)
                figure = picture(plt, results)
                if figure is not None:
                    figure.savefig(path, dpi=130)
                    plt.close(figure)


# --------------------------------------------------------------------------------------------------------------- files


def results_of(folder: Path) -> Iterator[tuple[str, Row]]:
    for device in ("cuda", "cpu"):
        path = folder / f"{device}.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        if "options" in results or "experiments" in results:  # else of an older form
            yield device, {"cases": [], "options": {}, **results}


def write(folder: Path) -> Path:
    """README.md and pictures beside the JSON files of a folder."""
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
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "README.md")
    options = parser.parse_args()
    if options.readme and not options.folder:
        parser.error("--readme wants a FOLDER")
    folders = [options.folder] if options.folder else sorted((ROOT / "bench" / "results").iterdir())
    for folder in folders:
        if dict(results_of(folder)):
            print(write(folder))
        elif options.folder:
            parser.error(f"{folder} holds no results of bench/run.py")
    if options.readme:
        rewrite(options.readme, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
