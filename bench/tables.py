"""Shared by the report, its pictures, the digest and the runs: results, names, cells, tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

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
TIMED = ("time", "times segfuse", "of copy", "x floor", "loop")


def results_of(folder: Path) -> Iterator[tuple[str, Row]]:
    for path in (folder / "cuda.json", folder / "cpu.json"):
        if path.exists():
            found: Row = {"cases": []}
            found |= {part: {} for part in ("options", "not_run", "scaling", "end_to_end", "experiments")}
            yield path.stem, found | json.loads(path.read_text())


def line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    yield line(*columns)
    yield line(*["---"] * len(columns))
    yield from (line(*row) for row in rows)


def row_of(case: Row, who: str) -> Row:
    return next((row for row in case["rows"] if row["who"] == who), {})


def time_of(us: float) -> str:
    return f"{us:.3g} µs" if us < 1000 else f"{us / 1000:.3g} ms"


def ratio(row: Row) -> str:
    if "us" not in row:
        return ""
    return f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" + "~" * row["noisy"]


def of_copy(row: Row) -> str:
    return f"{row['of_copy_rate']:.2f}" if "of_copy_rate" in row else ""


def timed(row: Row) -> tuple[str, ...]:
    """The cells of TIMED: times of the graph (inputs not in the cache) if there is one, else of the loop."""
    if "us" not in row:
        return (row.get("error", row.get("skipped", ""))[:100],)
    loop = time_of(row.get("wall_us", row["us"]))
    return time_of(row["us"]), ratio(row), of_copy(row), f"{row['of_floor']:.2f}", loop


def multiple(case: Row, row: Row) -> str:
    return f"{row['peak_bytes'] / case['logit_bytes']:.2f}" if "peak_bytes" in row else ""


def name_of(case: Row) -> str:
    threads = case["threads"]
    counted = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
    return case["case"] + counted + " (*noisy*)" * case["noisy"]


def most_threads(results: Row) -> int | None:
    return max((case["threads"] for case in results["cases"] if case["threads"]), default=None)


def present(cases: list[Row]) -> list[str]:
    """The peers that were timed in any of the cases."""
    return [peer for peer in PEERS if any("us" in row_of(case, peer) for case in cases)]


def shown(row: Row) -> str:
    """A row of an experiment, as text for a terminal."""
    return "  ".join(f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in row.items())


def experiments(results: Row) -> Iterator[str]:
    for name, rows in results["experiments"].items():
        if not rows:
            continue
        yield f"\n**{name}**\n"
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = ([row.get(column, "") for column in columns] for row in rows)
        yield from table(columns, ([f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in cells))


def not_run(results: Row) -> Iterator[str]:
    for part, names in results["not_run"].items():
        yield from (f"- not run: {part}, {name}" for name in names)
