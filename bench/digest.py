"""Prints a short digest of the results of bench/gpu.sh, for places that show only the end of an output.

python bench/digest.py FOLDER
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator
from pathlib import Path

from tables import TIMED, Row, experiments, not_run, results_of, table, timed

LENGTH = 11_500  # characters; the output has room for 12,000
# Parts that all names of our kernels share.
COMMON = re.compile(
    r"^void |segfuse::|<unnamed>::|\(anonymous namespace\)::|_GLOBAL__N_\w*::|\((?:int|bool|Step)\)|\(Job\)$"
)


def profiled(log: Path) -> Iterator[str]:
    """The kernels from the CSV file of ncu, one row each."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [text for text in lines if text.startswith('"')]
    if not lines:
        return
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        kernel = kernels.setdefault(row["ID"], {"kernel": COMMON.sub("", COMMON.sub("", row["Kernel Name"]))})
        kernel[row["Metric Name"]] = row["Metric Value"]
    columns = list(dict.fromkeys(["kernel", *(key for kernel in kernels.values() for key in kernel)]))
    yield "\n## ncu\n"
    cells = ([kernel.get(column, "") for column in columns] for kernel in kernels.values())
    yield from table(columns, ([name if len(name) <= 70 else name[:67] + "...", *rest] for name, *rest in cells))


def steps(folder: Path) -> Iterator[str]:
    """The parts of a run of bench/gpu.sh, with the result of each."""
    path = folder / "steps.md"
    if path.exists():
        yield path.read_text()


def timings(results: Row) -> Iterator[str]:
    """One line per contender."""
    rows = []
    for case in results["cases"]:
        for row in case["rows"]:
            who = row["who"].removeprefix("segfuse ") + " (formula)" * row["label"].startswith("formula")
            rows.append((case["case"] + " (noisy)" * case["noisy"], who, *timed(row)))
    yield from table(("case", "who", *TIMED), rows)


def digest(folder: Path) -> str:
    """The digest, the most important parts first. The report has what does not fit here."""
    text = "\n".join(steps(folder))
    for _, results in results_of(folder):
        text += "\n" + "\n".join([*timings(results), *experiments(results), *not_run(results)]) + "\n"
    text += "\n".join(profiled(folder / "ncu.csv"))
    return text if len(text) <= LENGTH else text[:LENGTH].rpartition("\n")[0] + "\n... more in README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    print(digest(parser.parse_args().folder))


if __name__ == "__main__":
    main()
