"""Writes the tables of docs/performance.md: how near to the copy rate the CUDA kernels can come, by roof.py.

    python tools/roof_page.py            prints the tables
    python tools/roof_page.py --write    writes them into the page, from gates.json (gates.py --write comes first)

The text of the page is written by hand. The tables stand between marks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from roof import (
    AIMS,
    COPY,
    DEVICES,
    ENGINES,
    LATENCY,
    ORDER,
    SCHEDULERS,
    SUSTAINED,
    WARP,
    Device,
    Kernel,
    kernels,
    reached,
    share,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"


def table(header: str, rows: list[list[object]]) -> str:
    lines = [header.split(", "), ["---"] * len(rows[0]), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n".replace("|  |", "| |") for cells in lines)


def percent(x: float) -> str:
    return f"{100 * x:.0f}"


def row_of(kernel: Kernel) -> list[object]:
    on = [share(kernel, device) for device in DEVICES]
    aim = "" if kernel.aim is None else f"{percent(kernel.aim)}{'' if reached(kernel) else ' **missed**'}"
    return [
        kernel.classes,
        f"{kernel.logits}, {kernel.label}",
        f"{kernel.step}, {kernel.terms}",
        kernel.read + kernel.written,
        f"{kernel.per_pixel:.0f}",
        f"{kernel.per_block:.0f}",
        f"{on[0].blocks}, {on[0].warps}",
        f"{on[0].flight / 1024:.0f}",
        percent(on[0].of_copy),
        aim,
        "",
        *(percent(s.of_copy) for s in on[1:]),
    ]


def device_row(d: Device) -> list[object]:
    copy, issue = COPY * d.rated, d.processors * SCHEDULERS * WARP * d.clock
    rates = [f"{d.clock / 1e9:.2f}", f"{d.rated / 1e12:.2f}", f"{copy / 1e12:.2f}", f"{issue / 1e12:.1f}"]
    needed = f"{copy * LATENCY / d.processors / 1024:.0f}"
    return [d.name, d.code, d.processors, *rates, d.shared // 1024, d.warps, d.blocks, needed]


def aim_row(found: list[Kernel], logits: str, step: str) -> list[object]:
    cells: list[object] = []
    for engine in ENGINES:
        of = [k for k in found if (k.engine, k.logits, k.step) == (engine, logits, step)]
        shares = [share(kernel, DEVICES[0]).of_copy for kernel in of]
        cells.append(f"{sum(map(reached, of))} of {len(of)} ({percent(min(shares))} to {percent(max(shares))} %)")
    return [f"{logits}, {step}", f"{percent(AIMS[logits, step])} %", *cells]


def parts() -> dict[str, str]:
    """The tables, by the names of their marks."""
    found = sorted(kernels(), key=lambda k: (ORDER.index(k.logits), k.classes, k.step != "statistics", k.step))
    out = {
        "devices": table(
            ", code, SMs, clock GHz, rated TB/s, copy TB/s, 10^12 instructions/s, shared KB, warps, blocks, needed KB",
            [device_row(device) for device in DEVICES],
        ),
        "constants": f"Copy rate: {percent(COPY)} % of the rated one. Sustained: {percent(SUSTAINED)} % of all slots. "
        f"Latency of a busy memory: {LATENCY * 1e6:.2f} µs.\n",
        "aims": table(", aim, sigmoid, label_map, tile, staged_tile", [aim_row(found, *what) for what in AIMS]),
    }
    columns = "/px, /block, blocks; warps, KB in flight, H100 %, aim %, H100 measured, A100 %, RTX 4090 %"
    for engine in ENGINES:
        rows = [row_of(kernel) for kernel in found if kernel.engine == engine]
        out[engine] = table(f"C, logits; labels, step; loss, B/px, {columns}", rows)
    return out


def page(text: str) -> str:
    """The page, its tables written anew."""
    for name, part in parts().items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        if not mark or not end:
            raise ValueError(f"{PAGE.name} has no marks around {name}")
        text = before + mark + part + end + after
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="What share of the copy rate the CUDA kernels should reach.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print("\n".join(parts().values()))


if __name__ == "__main__":
    main()
