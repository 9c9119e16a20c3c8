"""The pictures of a folder of results, where matplotlib is installed."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import LOSSES, PEERS, Row, measured, most_threads, present, results_of, row_of, short, timing

BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#7f7f7f"
STYLE: Row = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}


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
