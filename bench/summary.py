"""A short table, in Markdown, of whatever a folder of results holds.

python bench/summary.py FOLDER
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PEERS = ("eager", "compile", "monai", "nnunet")


def line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Our fastest row: a scheme that was asked for, or the one that segfuse chose."""
    timed = [row for row in rows if row["who"].startswith("segfuse") and "wall" in row]
    return min(timed, key=lambda row: (row.get("graph") or row["wall"])["theirs"]["us"], default=None)


def against(rows: list[dict[str, Any]], peer: str) -> str:
    for row in rows:
        if row["who"] == peer and "wall" in row:
            main = row.get("graph") or row["wall"]
            return f"{main['ratio']:.2f} [{main['low']:.2f}, {main['high']:.2f}]"
        if row["who"] == peer:
            return row.get("error", row.get("skipped", ""))[:24].replace("|", "/")
    return ""


def cases(results: dict[str, Any]) -> Iterator[str]:
    yield line("case", "scheme", "us", "of copy", "x floor", "warm us", "wall us", "peak MB", *PEERS)
    yield line(*["---"] * (8 + len(PEERS)))
    for case in results.get("cases", []):
        rows = case["rows"]
        name = case["case"] + (f" ({case['threads']} threads)" if case["threads"] else "")
        name += " (noisy)" if case.get("noisy") else ""
        ours = best(rows)
        if ours is None:
            yield line(name, rows[0].get("error", "not run")[:80].replace("|", "/") if rows else "not run")
            continue
        main, warm, peak = ours.get("graph") or ours["wall"], ours.get("graph_warm"), ours["peak_bytes"]
        yield line(
            name,
            ours["scheme"],
            f"{main['theirs']['us']:.1f}",
            f"{ours['of_copy_rate']:.2f}" if "of_copy_rate" in ours else "",
            f"{ours['of_floor']:.2f}",
            f"{warm['theirs']['us']:.1f}" if warm else "",
            f"{ours['wall']['theirs']['us']:.1f}",
            "" if peak is None else f"{peak / 1e6:.1f}",
            *(against(rows, peer) for peer in PEERS),
        )


def problems(results: dict[str, Any]) -> Iterator[str]:
    for case in results.get("cases", []):
        for row in case["rows"]:
            if "error" in row:
                yield f"- {case['case']}, {row['who']}: {row['error']}"
            elif row.get("no_graph"):
                yield f"- {case['case']}, {row['who']}: not captured: {row['no_graph']}"


def experiments(results: dict[str, Any]) -> Iterator[str]:
    for name, rows in results.get("experiments", {}).items():
        if not isinstance(rows, list):
            continue
        yield f"\n**{name}**\n"
        columns = list(dict.fromkeys(key for row in rows for key in row))
        yield line(*columns)
        yield line(*["---"] * len(columns))
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
    yield line("kernel", *metrics)
    yield line(*["---"] * (1 + len(metrics)))
    for kernel in kernels.values():
        name = kernel["kernel"].replace("|", "/")
        yield line(name if len(name) <= 70 else name[:67] + "...", *(kernel.get(m, "") for m in metrics))


def summary(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        if "cases" not in results and "experiments" not in results:
            continue  # of another time
        keys = ("device", "driver", "torch", "segfuse", "CUDA architectures")
        yield f"\n## {path.name}: " + ", ".join(f"{k} {results[k]}" for k in keys if results.get(k)) + "\n"
        yield "Forward + backward. Peers: times as long as segfuse takes with the scheme that it chooses.\n"
        yield from cases(results)
        yield from (f"- not run: {name}" for name in results.get("not_run", []))
        found = list(problems(results))
        if found:
            yield from ("", "### Problems", "", *found)
        yield from experiments(results)
    log = folder / "ncu.log"
    if log.exists():
        found = list(profiled(log))
        if found:
            yield from ("", "## ncu", "", *found)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    print("\n".join(summary(Path(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
