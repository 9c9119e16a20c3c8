"""A folder of results of bench/gpu.sh in so few characters that they fit where only the end of an output is seen.

python bench/digest.py FOLDER
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator
from pathlib import Path

from tables import Row, head, line, ratio, results_of, time_of, timing

LENGTH = 11_500  # of 12,000
# What all names of our kernels have in common.
COMMON = re.compile(
    r"^void |segfuse::|<unnamed>::|\(anonymous namespace\)::|_GLOBAL__N_\w*::|\((?:int|bool|Step)\)|\(Job\)$"
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
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
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
        name = COMMON.sub("", COMMON.sub("", kernel["kernel"]))
        yield line(name if len(name) <= 70 else name[:67] + "...", *(kernel.get(m, "") for m in metrics))


def steps(folder: Path) -> Iterator[str]:
    """The parts of a run of bench/gpu.sh, and how each went."""
    path = folder / "steps.md"
    if path.exists():
        yield path.read_text()


def timings(results: Row) -> Iterator[str]:
    """A line per contender: of a graph over inputs that are not in the cache where there is one, else of a loop."""
    yield from head("case", "who", "time", "times segfuse", "of copy", "x floor", "loop")
    for case in results["cases"]:
        for row in case["rows"]:
            found, who = timing(row), row["who"].removeprefix("segfuse ")
            name = case["case"] + " (noisy)" * case["noisy"]
            if found is None:
                yield line(name, who, row.get("error", row.get("skipped", ""))[:100])
                continue
            share = f"{row['of_copy_rate']:.2f}" if "of_copy_rate" in row else ""
            loop = time_of(row["wall"]["theirs"]["us"])
            formula = " (formula)" * row.get("label", "").startswith("formula")
            time = time_of(found["theirs"]["us"])
            yield line(name, who + formula, time, ratio(found), share, f"{row['of_floor']:.2f}", loop)


def digest(folder: Path) -> str:
    """The most telling first; what does not fit stands in the report."""
    text = "\n".join(steps(folder))
    for _, results in results_of(folder):
        found = [*timings(results), *experiments(results)]
        found += [f"- not run: {part}, {name}" for part, names in results.get("not_run", {}).items() for name in names]
        text += "\n" + "\n".join(found) + "\n"
    text += "\n".join(profiled(folder / "ncu.csv"))
    return text if len(text) <= LENGTH else text[:LENGTH].rpartition("\n")[0] + "\n... more in README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    print(digest(parser.parse_args().folder))


if __name__ == "__main__":
    main()
