"""What the report (report.py), its pictures (pictures.py) and the digest (digest.py) share: results, names, cells."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def results_of(folder: Path) -> Iterator[tuple[str, Row]]:
    for device in ("cuda", "cpu"):
        path = folder / f"{device}.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        if "options" in results or "experiments" in results:  # else of an older form
            yield device, {"cases": [], "options": {}, **results}


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
