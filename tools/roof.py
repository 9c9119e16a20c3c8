"""How near to the copy rate the CUDA kernels can come, by a model. Nothing here was measured on a GPU.

    python tools/roof.py            the tables of docs/performance.md
    python tools/roof.py --write    the same, into that page, from gates.json (which comes first: gates.py --write)

The page says what the model is, by hand; what stands between its marks is written here. The constants are below, each
with its source.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import gates

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Device:
    """Limits per SM: "Technical Specifications per Compute Capability" of the CUDA programming guide; registers and
    shared memory are handed out as in the occupancy calculator of Nsight Compute. SMs, clock, memory: white papers and
    data sheets of H100 (67 TFLOPS of float32 would be 1.98 GHz; under load 1.9), A100 and Ada (AD102)."""

    name: str
    code: str  # whose machine code it runs
    processors: int
    clock: float  # Hz
    rated: float  # bytes/s
    shared: int  # bytes per SM; a block has at most 1 KB less
    warps: int
    blocks: int


DEVICES = [
    Device("H100 SXM", "sm_90", 132, 1.90e9, 3.35e12, 228 * 1024, 64, 32),
    Device("A100 SXM 80 GB", "sm_80", 108, 1.41e9, 2.039e12, 164 * 1024, 64, 32),
    Device("RTX 4090", "sm_80", 128, 2.52e9, 1.008e12, 100 * 1024, 48, 24),
]
WARP, SCHEDULERS = 32, 4  # lanes; of an SM, each issues one instruction of a warp per cycle
REGISTERS_OF_SCHEDULER, REGISTER_UNIT = 16384, 256  # the unit is a warp's
SHARED_UNIT, SHARED_OF_SYSTEM = 128, 1024  # of a block
# Of the rated bandwidth: hand-written reductions reach 3.01 of an H100's 3.35 TB/s (Dao-AILab/quack, "Getting
# memory-bound kernels to speed-of-light", 2025).
COPY = 0.9
# Of all issue slots, what a loop of dependent arithmetic with loads and stores keeps busy: an assumption.
SUSTAINED = 0.72
# Of a load while the memory is busy, in seconds: an assumption. Alone it takes 450 to 550 cycles (arXiv 2402.13499).
LATENCY = 0.75e-6

# The sources' own numbers and formulas, which the functions below repeat; test_roof.py has the text.
THREADS, WARPS, MOST_POINTS, ADDS_PER_FLUSH, TILE_MEMORY = 256, 8, 4, 64, 81920
MOST_SLOTS = {False: 32, True: 24}  # staged or not


def blocks_per_processor(device: Device, threads: int, registers: int, shared: int) -> int:
    of_block = -(-threads // WARP)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS_OF_SCHEDULER // of_warp * SCHEDULERS // of_block
    by_shared = device.shared // (-(-(shared + SHARED_OF_SYSTEM) // SHARED_UNIT) * SHARED_UNIT)
    return min(by_registers, by_shared, device.warps // of_block, device.blocks)


def rows_bytes(points: int) -> int:
    return 8 * (2 + 4 + 2 * points) * (WARPS + 1) + 4 * 2 * MOST_POINTS


def label_map_bytes(classes: int) -> int:
    return 8 * (3 * (1 + WARPS) + 3 * classes) + 4 * ((classes + 1) // 2 * 2 + 2 * classes * THREADS)


def slots_of(classes: int, teams: int, staged: bool) -> int:
    """Of a thread with so many classes."""
    return 8 if classes <= 8 and teams == 1 else 20 if classes <= 20 and not staged else MOST_SLOTS[staged]


def tile_bytes(pixels: int, classes: int, size: int, staged: bool, step: str) -> int:
    """Of Dice + CE, or of CE where one pass does both steps."""
    teams = THREADS // pixels
    if step == "gradient":
        floats = classes + teams * slots_of(-(-classes // teams), teams, staged)
    else:
        floats = (3 + (2 * classes if step == "statistics" else 0)) * pixels
    told = 4 * (9 * THREADS + 2 * MOST_POINTS)
    stride = classes * size + (16 if classes * size % 32 == 0 else 0)
    return told + 16 * -(-floats // 4) + (pixels * stride if staged else 0)


def tile_pixels(classes: int, size: int, staged: bool) -> int:
    """Every device above lets a block have more than TILE_MEMORY."""
    pixels = THREADS
    while -(-classes // (THREADS // pixels)) > MOST_SLOTS[staged] or any(
        tile_bytes(pixels, classes, size, staged, step) > TILE_MEMORY for step in ("statistics", "gradient")
    ):
        pixels //= 2
    return pixels


def chunk_of(units: int, pixels: int, unit_sums: int) -> int:
    chunk = 4096
    while chunk < 16384 and units * -(-pixels // chunk) >= 1024:
        chunk *= 2
    sums = units * unit_sums
    most = max(max(65536, 114688 - 3 * sums) // sums, 1) if sums else pixels
    if -(-pixels // chunk) > most:
        least = math.ceil(pixels / most)
        chunk = math.ceil(least / 256) * 256
    return chunk


ENGINES, ORDER = ("rows", "label_map", "tile", "staged_tile"), ("float32", "bfloat16", "float16")
# Of the copy rate, on an H100; none for float16, and where one pass does both steps.
AIMS = {
    ("float32", "statistics"): 0.80,
    ("float32", "gradient"): 0.88,
    ("bfloat16", "statistics"): 0.60,
    ("bfloat16", "gradient"): 0.75,
}


@dataclass(frozen=True)
class Kernel:
    """A kernel of gates.json at work. Instructions are a thread's: per pixel, and per block outside its pixels."""

    engine: str
    classes: int
    logits: str
    label: str
    step: str
    points: str
    registers: dict[str, int]
    shared: int
    read: int  # bytes per pixel
    written: int
    per_pixel: float
    per_block: float
    flight: float  # bytes that a thread asks for before it uses the first
    chunk: int
    blocks: int
    groups: int  # of a block's warps, which barriers keep together; 0: each for itself

    @property
    def aim(self) -> float | None:
        return AIMS.get((self.logits, self.step))


@dataclass(frozen=True)
class Share:
    blocks: int  # per SM
    warps: int
    flight: float  # bytes per SM
    of_copy: float


def share(kernel: Kernel, device: Device) -> Share:
    fit = blocks_per_processor(device, THREADS, kernel.registers[device.code], kernel.shared)
    busiest = -(-kernel.blocks // device.processors)
    resident = min(fit, busiest)
    warps = resident * WARPS
    flight = warps * WARP * kernel.flight
    copy = COPY * device.rated
    reading = min(copy, flight * device.processors / LATENCY)
    memory = kernel.read / reading + kernel.written / copy
    instructions = kernel.per_pixel + kernel.per_block * THREADS / kernel.chunk
    arithmetic = instructions / (SUSTAINED * device.processors * SCHEDULERS * WARP * device.clock)
    parties = min(resident * kernel.groups, warps / SCHEDULERS) if kernel.groups else warps / SCHEDULERS
    balance = kernel.blocks / device.processors / busiest
    time = (max(memory, arithmetic) + min(memory, arithmetic) / parties) / balance
    return Share(resident, warps, flight, (kernel.read + kernel.written) / copy / time)


ELEMENTS = {"float": ("float32", 4), "Bfloat16": ("bfloat16", 2), "Half": ("float16", 2)}
POINTS = {"NoPoints": "Dice", "BceWithLogits": "Dice + BCE", "FocalSquare": "Dice + focal"}
ROW_UNITS, ROW_PIXELS, MAP_UNITS, MAP_PIXELS = 32, 1024 * 1024, 8, 512 * 1024
TILE_CLASSES = (6, 19, 64, 118, 150)


def flushed(row: dict, adds: float) -> float:
    return row["before"] + row["after"] * math.ceil(adds / ADDS_PER_FLUSH)


def kernels() -> list[Kernel]:
    found = []
    for name, row in gates.table().items():
        if tile := gates.TILE.fullmatch(name):
            found += [tiled(tile, classes, row) for classes in TILE_CLASSES if holds(tile, classes)]
        elif kernel := gates.STREAMING.fullmatch(name):
            found.append(streaming(kernel, row))
    return found


def streaming(kernel: re.Match[str], row: dict) -> Kernel:
    logits, size = ELEMENTS[kernel["row"] or kernel["map"]]
    classes, step = int(kernel["classes"] or 1), kernel["step"]
    wide = logits == "float32"
    label, label_size = ("float32" if kernel["row"] else "int64", 4 if kernel["row"] else 8) if wide else ("uint8", 1)
    if kernel["row"]:
        points = next(text for word, text in POINTS.items() if word in kernel[0])
        count = 0 if points == "Dice" else 1
        shared = rows_bytes(count)
        units, pixels, sums = ROW_UNITS, ROW_PIXELS, 1 + 2 * count + 3
    else:
        points, shared = "Dice + CE", label_map_bytes(classes)
        units, pixels, sums = MAP_UNITS, MAP_PIXELS, 3 + 3 * classes
    if step == "both":
        points, sums = points.removeprefix("Dice + "), 3
    chunk = chunk_of(units, pixels, 0 if step == "gradient" else sums)
    return Kernel(
        engine="rows" if kernel["row"] else "label_map",
        classes=classes,
        logits=logits,
        label=label,
        step=step,
        points=points,
        registers=row["registers"],
        shared=shared,
        read=classes * size + label_size,
        written=0 if step == "statistics" else classes * size,
        per_pixel=row["instructions"] if wide else row["narrow"],
        per_block=flushed(row, chunk / THREADS),
        flight=row["pixels"] * (classes * size + label_size),
        chunk=chunk,
        blocks=units * -(-pixels // chunk),
        groups=0,
    )


def holds(tile: re.Match[str], classes: int) -> bool:
    """Whether it is the kernel for so many classes."""
    staged = tile["staged"] == "true"
    teams = THREADS // tile_pixels(classes, ELEMENTS[tile["element"]][1], staged)
    return slots_of(-(-classes // teams), teams, staged) == int(tile["slots"])


def tiled(tile: re.Match[str], classes: int, row: dict) -> Kernel:
    logits, size = ELEMENTS[tile["element"]]
    step, staged, slots = tile["step"], tile["staged"] == "true", int(tile["slots"])
    label, label_size = ("int64", 8) if logits == "float32" else ("uint8", 1)
    pixels = tile_pixels(classes, size, staged)
    teams = THREADS // pixels
    sums = {"statistics": 3 + 3 * classes, "both": 3, "gradient": 0}[step]
    chunk = chunk_of(MAP_UNITS, MAP_PIXELS, sums)
    in_use = -(-classes // teams)
    unused = (slots - -(-in_use // gates.GROUP) * gates.GROUP) * row["slot"]
    if teams == 1:
        per_pixel = row["alone"] - unused
    else:
        turns = row["label"] + (teams - 1) * row["other"] - teams * unused
        per_pixel = turns + teams * max(teams, 4) * row["team"]
    if staged:
        per_pixel += classes * size / 16 * (row["fill"] + (0 if step == "statistics" else row["drain"]))
    # Each warp adds every eighth sum over the lanes.
    flush = math.ceil(sums / WARPS) * (row["row"] + row["value"] * math.ceil(pixels / WARP))
    flushes = 0 if step == "gradient" else math.ceil(chunk / pixels / ADDS_PER_FLUSH)
    return Kernel(
        engine="staged_tile" if staged else "tile",
        classes=classes,
        logits=logits,
        label=label,
        step=step,
        points="CE" if step == "both" else "Dice + CE",
        registers=row["registers"],
        shared=tile_bytes(pixels, classes, size, staged, step),
        read=classes * size + label_size,
        written=0 if step == "statistics" else classes * size,
        per_pixel=per_pixel,
        per_block=row["before"] + flushes * flush,
        flight=row["loads"] if staged else in_use * size,
        chunk=chunk,
        blocks=MAP_UNITS * -(-MAP_PIXELS // chunk),
        groups=1 if staged else 0 if teams == 1 else max(pixels // WARP, 1),
    )


def reached(kernel: Kernel) -> bool:
    return kernel.aim is None or share(kernel, DEVICES[0]).of_copy >= kernel.aim


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
        f"{kernel.step}, {kernel.points}",
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
    """What the page has between its marks."""
    found = sorted(kernels(), key=lambda k: (ORDER.index(k.logits), k.classes, k.step != "statistics", k.step))
    out = {
        "devices": table(
            ", code, SMs, clock GHz, rated TB/s, copy TB/s, 10^12 instructions/s, shared KB, warps, blocks, needed KB",
            [device_row(device) for device in DEVICES],
        ),
        "constants": f"Copy rate: {percent(COPY)} % of the rated one. Sustained: {percent(SUSTAINED)} % of all slots. "
        f"Latency of a busy memory: {LATENCY * 1e6:.2f} µs.\n",
        "aims": table(", aim, rows, label_map, tile, staged_tile", [aim_row(found, *what) for what in AIMS]),
    }
    columns = "/px, /block, blocks; warps, KB in flight, H100 %, aim %, H100 measured, A100 %, RTX 4090 %"
    for engine in ENGINES:
        rows = [row_of(kernel) for kernel in found if kernel.engine == engine]
        out[engine] = table(f"C, logits; labels, step; loss, B/px, {columns}", rows)
    return out


def page(text: str) -> str:
    """The page with its parts made anew."""
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
