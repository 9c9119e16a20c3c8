"""The pictures of a folder of results, where matplotlib is installed."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tables import LOSSES, PEERS, Row, most_threads, present, results_of, row_of

BLUE, RED, GREEN, ORANGE, PURPLE, GREY, SKY = COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#7f7f7f", "#56b4e9"),
)
STYLE: Row = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}


def tidy_log(axes: Any, which: str, headroom: float = 1) -> None:
    """Writes plain numbers at 1, 2, 5, 10 ... of a logarithmic axis, few enough to read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}lim")(low, high * headroom)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high * headroom / low < 30 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def measured(results: Row) -> list[Row]:
    """The cases with all threads in which segfuse ran, without the tiny ones. Sorted by workload, the core first."""
    threads = most_threads(results)
    found = [case for case in results["cases"] if case["threads"] == threads and not case["tiny"]]
    found = [case for case in found if "us" in row_of(case, "segfuse")]
    return sorted(found, key=lambda case: (case["case"].split("/")[0], not case["core"]))


def short(case: Row) -> str:
    """The label of a bar: only what is different in this case."""
    workload, loss, dtype, target, *layout = case["case"].split("/")
    unusual = layout or [name for name in (dtype, target) if not case["core"] and name != "float32"]
    return ", ".join([f"{workload}: {LOSSES[loss]}", *unusual])


def bars(
    plt: Any, cases: list[Row], columns: list[str], value: Callable[[Row, Row], tuple[float, ...]], log: bool
) -> Any:
    """A row per case and a panel per contender: bars (from 1 on a log axis, else from 0), intervals, numbers."""
    size = (2.4 + 1.7 * len(columns), 1.3 + 0.24 * len(cases))
    options = {"figsize": size, "layout": "constrained", "sharex": True, "sharey": True, "squeeze": False}
    figure, grid = plt.subplots(1, len(columns), **options)
    start = 1 if log else 0
    for axes, who in zip(grid[0], columns, strict=True):
        for y, case in enumerate(cases):
            row = row_of(case, who)
            if "us" not in row:
                continue
            middle, low, high = value(case, row)
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


def ratios(plt: Any, results: Row) -> Any | None:
    cases = measured(results)
    peers = present(cases)
    if not peers:
        return None
    figure = bars(plt, cases, peers, lambda _, row: (row["ratio"], row["low"], row["high"]), log=True)
    figure.suptitle("How many times as long as segfuse, forward + backward (line: 95 % interval)", fontweight="bold")
    return figure


def memory(plt: Any, results: Row) -> Any | None:
    cases = measured(results)
    if not cases:
        return None
    columns = ["segfuse", *present(cases)]
    figure = bars(plt, cases, columns, lambda case, row: (row["peak_bytes"] / case["logit_bytes"],) * 3, log=False)
    figure.suptitle("Peak memory beyond the inputs, in multiples of the logits (1: the gradient)", fontweight="bold")
    return figure


def roofline(plt: Any, results: Row) -> Any | None:
    points = []
    for case in measured(results):
        ours = row_of(case, "segfuse")
        if "of_copy_rate" in ours:
            workload, loss = case["case"].split("/")[:2]
            points.append((ours["bytes_per_pixel"] * case["pixels"] / 1e6, ours["us"] / 1e3, workload, loss, case))
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    rate = statistics.median(case["copy_TB/s"] for *_, case in points) * 1e3  # MB per ms
    left, right = min(p[0] for p in points) / 1.5, max(p[0] for p in points) * 1.5
    for factor, style, label in ((1, "-", f"copy of as many bytes, {rate:.3g} GB/s"), (1.5, "--", "1.5 times that")):
        axes.plot((left, right), (factor * left / rate, factor * right / rate), style, color="black", lw=1, label=label)
    losses = [loss for loss in LOSSES if any(p[3] == loss for p in points)]
    markers = dict(zip(sorted({p[2] for p in points}), "osD^v", strict=False))
    for loss, colour in zip(losses, COLOURS, strict=False):
        for workload, marker in markers.items():
            chosen = [p for p in points if p[2:4] == (workload, loss)]
            x, y = [p[0] for p in chosen], [p[1] for p in chosen]
            axes.plot(x, y, marker, color=colour, ms=5.5, mec="white", mew=0.5)
        axes.plot([], [], "o", color=colour, label=LOSSES[loss])
    for workload, marker in markers.items():
        axes.plot([], [], marker, color="none", mec="black", label=f"workload {workload}")
    axes.set(xscale="log", yscale="log", xlabel="MB moved by the two passes", ylabel="ms, forward + backward")
    tidy_log(axes, "x")
    tidy_log(axes, "y")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Time against bytes", fontweight="bold")
    return figure


def per_pixel(rows: list[Row], axes: Any) -> None:
    x = [row["pixels"] for row in rows]
    lines = (
        ("ours_us", ".-", BLUE, "segfuse"),
        ("us", ".-", RED, "eager"),
        ("copy_us", ":", GREY, "copy of the logits"),
    )
    for key, style, colour, label in lines:
        axes.plot(x, [1e3 * row[key] / row["pixels"] for row in rows], style, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="pixels", ylabel="ns per pixel")
    tidy_log(axes, "y")


def per_logit(rows: list[Row], axes: Any) -> None:
    for width, key, style, colour, label in (
        (256, "ours_us", ".-", BLUE, "segfuse"),
        (256, "us", ".-", RED, "eager"),
        (250, "ours_us", ".:", BLUE, "segfuse, rows of 250"),
    ):
        chosen = sorted((row for row in rows if row["width"] == width), key=lambda row: row["classes"])
        y = [1e3 * row[key] / row["classes"] / row["pixels"] for row in chosen]
        axes.plot([row["classes"] for row in chosen], y, style, color=colour, label=label)
    axes.set(yscale="log", xlabel="classes", ylabel="ns per logit")
    axes.set_xscale("log", base=2)
    ticks = [2, 4, 8, 16, 32, 64, 128, 256]
    axes.set_xticks(ticks, map(str, ticks))
    tidy_log(axes, "y")


def by_thread(rows: list[Row], axes: Any) -> None:
    for name, colour in zip("abc", (BLUE, GREEN, ORANGE), strict=True):
        chosen = [row for row in rows if row["workload"] == name]
        for key, style, who in (("ours_us", ".-", "segfuse"), ("us", ".:", "eager")):
            y = [chosen[0][key] / row[key] for row in chosen]
            axes.plot([row["threads"] for row in chosen], y, style, color=colour, label=f"{name}, {who}")
    most = max(row["threads"] for row in rows)
    axes.plot((1, most), (1, most), color="black", linewidth=0.6)
    axes.set(xlabel="threads", ylabel="times as fast as one thread")
    axes.xaxis.get_major_locator().set_params(integer=True)


def growth(plt: Any, results: Row) -> Any | None:
    """One small picture for each experiment of scaling.py."""
    parts = {name: [row for row in rows if "us" in row] for name, rows in results["scaling"].items()}
    pixels, classes, threads = (parts.get(name, []) for name in ("pixels", "classes", "threads"))
    panels: list[tuple[str, Callable[[Any], None]]] = []
    for count, title in ((1, "Dice + BCE, one image"), (19, "Dice + CE, 19 classes, one image")):
        rows = [row for row in pixels if row["classes"] == count]
        if rows:
            panels.append((title, partial(per_pixel, rows)))
    if classes:
        total = math.log2(classes[0]["classes"] * classes[0]["pixels"])
        panels.append((f"Dice + CE, about $2^{{{total:.0f}}}$ logits", partial(per_logit, classes)))
    if len({row["threads"] for row in threads}) > 1:
        panels.append(("threads", partial(by_thread, threads)))
    if not panels:
        return None
    figure, grid = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.9), layout="constrained", squeeze=False)
    for axes, (title, draw) in zip(grid[0], panels, strict=True):
        draw(axes)
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    figure.suptitle("How time grows, forward + backward", fontweight="bold")
    return figure


PICTURES = {"ratios": ratios, "memory": memory, "roofline": roofline, "scaling": growth}


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
