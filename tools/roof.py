"""How near to the copy rate of a GPU each CUDA kernel can come, computed from gates.json.

A model: nothing here was measured on a GPU. docs/performance.md explains it, and roof_page.py writes the tables there.
The constants are below, each with its source.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import gates
from turns import GROUP, STREAMING, TILE


@dataclass(frozen=True)
class Device:
    """A GPU.

    Limits per SM: CUDA programming guide, "Technical Specifications per Compute Capability". How registers and shared
    memory are allocated: the occupancy calculator of Nsight Compute. SMs, clock, memory: white papers and data sheets
    of H100, A100 and Ada (AD102). The data sheet of an H100 has 67 TFLOPS, so 1.98 GHz; under load it runs at 1.9.
    """

    name: str
    code: str  # the architecture of the machine code that it runs
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
WARP = 32  # lanes
SCHEDULERS = 4  # of an SM; each issues one instruction of a warp per cycle
REGISTERS_OF_SCHEDULER = 16384
REGISTER_UNIT = 256  # the registers of a warp are a multiple of it
SHARED_UNIT, SHARED_OF_SYSTEM = 128, 1024  # bytes: the shared memory of a block is a multiple; the system adds 1 KB
# The copy rate, as a share of the rated bandwidth. Hand-written reductions reach 3.01 of an H100's 3.35 TB/s
# (Dao-AILab/quack, "Getting memory-bound kernels to speed-of-light", 2025).
COPY = 0.9
# An assumption: the share of issue slots that a loop of dependent arithmetic with loads and stores keeps busy.
SUSTAINED = 0.72
# An assumption: seconds of a load while the memory is busy. A load alone takes 450 to 550 cycles (arXiv 2402.13499).
LATENCY = 0.75e-6

# Numbers of csrc/cuda. The functions below repeat formulas of it. test_roof.py holds both to the text of the sources.
THREADS, WARPS, MOST_POINTWISE, ADDS_PER_FLUSH, TILE_MEMORY = 256, 8, 4, 64, 81920
MOST_SLOTS = {False: 32, True: 24}  # staged or not


def blocks_per_processor(device: Device, threads: int, registers: int, shared: int) -> int:
    of_block = -(-threads // WARP)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS_OF_SCHEDULER // of_warp * SCHEDULERS // of_block
    by_shared = device.shared // (-(-(shared + SHARED_OF_SYSTEM) // SHARED_UNIT) * SHARED_UNIT)
    return min(by_registers, by_shared, device.warps // of_block, device.blocks)


def sigmoid_bytes(terms: int) -> int:
    return 8 * (2 + 4 + 2 * terms) * (WARPS + 1) + 4 * 2 * MOST_POINTWISE


def label_map_bytes(classes: int) -> int:
    return 8 * (3 * (1 + WARPS) + 3 * classes) + 4 * ((classes + 1) // 2 * 2 + 2 * classes * THREADS)


def slots_of(classes: int, teams: int, staged: bool) -> int:
    """Slots of a thread that has so many classes."""
    return 8 if classes <= 8 and teams == 1 else 20 if classes <= 20 and not staged else MOST_SLOTS[staged]


def tile_bytes(pixels: int, classes: int, size: int, staged: bool, step: str) -> int:
    """Shared memory of a block, for Dice + CE; for CE alone if one pass does both steps."""
    teams = THREADS // pixels
    if step == "gradient":
        floats = classes + teams * slots_of(-(-classes // teams), teams, staged)
    else:
        floats = (3 + (2 * classes if step == "statistics" else 0)) * pixels
    exchange = 4 * (9 * THREADS + 2 * MOST_POINTWISE)
    stride = classes * size + (16 if classes * size % 32 == 0 else 0)
    return exchange + 16 * -(-floats // 4) + (pixels * stride if staged else 0)


def tile_pixels(classes: int, size: int, staged: bool) -> int:
    """Pixels of a tile. Every device above lets a block have more than TILE_MEMORY."""
    pixels = THREADS
    while -(-classes // (THREADS // pixels)) > MOST_SLOTS[staged] or any(
        tile_bytes(pixels, classes, size, staged, step) > TILE_MEMORY for step in ("statistics", "gradient")
    ):
        pixels //= 2
    return pixels


def chunk_of(domains: int, pixels: int, domain_sums: int) -> int:
    chunk = 4096
    while chunk < 16384 and domains * -(-pixels // chunk) >= 1024:
        chunk *= 2
    sums = domains * domain_sums
    most = max(max(65536, 114688 - 3 * sums) // sums, 1) if sums else pixels
    if -(-pixels // chunk) > most:
        least = math.ceil(pixels / most)
        chunk = math.ceil(least / 256) * 256
    return chunk


ENGINES, ORDER = ("sigmoid", "label_map", "tile", "staged_tile"), ("float32", "bfloat16", "float16")
# What share of an H100's copy rate is aimed at. No aim: float16, and one pass that does both steps.
AIMS = {
    ("float32", "statistics"): 0.80,
    ("float32", "gradient"): 0.88,
    ("bfloat16", "statistics"): 0.60,
    ("bfloat16", "gradient"): 0.75,
}


@dataclass(frozen=True)
class Kernel:
    """A kernel of gates.json, on the tensors of the page.

    per_pixel, per_block: instructions of a thread, in the loop over pixels, and per block outside it.
    """

    engine: str
    classes: int
    logits: str
    label: str
    step: str
    terms: str
    registers: dict[str, int]
    shared: int
    read: int  # bytes per pixel
    written: int
    per_pixel: float
    per_block: float
    flight: float  # bytes that a thread loads before it uses the first
    chunk: int
    blocks: int
    groups: int  # into which barriers bind the warps of a block; 0: no warp waits for another

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
TERMS = {"NoTerm": "Dice", "BceWithLogits": "Dice + BCE", "FocalSquare": "Dice + focal"}
ROW_DOMAINS, ROW_PIXELS, MAP_DOMAINS, MAP_PIXELS = 32, 1024 * 1024, 8, 512 * 1024
TILE_CLASSES = (6, 19, 64, 118, 150)


def flushed(row: dict, adds: float) -> float:
    return row["before"] + row["after"] * math.ceil(adds / ADDS_PER_FLUSH)


def kernels() -> list[Kernel]:
    found = []
    for name, row in gates.table().items():
        if tile := TILE.fullmatch(name):
            found += [tiled(tile, classes, row) for classes in TILE_CLASSES if holds(tile, classes)]
        elif kernel := STREAMING.fullmatch(name):
            found.append(streaming(kernel, row))
    return found


def streaming(kernel: re.Match[str], row: dict) -> Kernel:
    logits, size = ELEMENTS[kernel["row"] or kernel["map"]]
    classes, step = int(kernel["classes"] or 1), kernel["step"]
    wide = logits == "float32"
    label, label_size = ("float32" if kernel["row"] else "int64", 4 if kernel["row"] else 8) if wide else ("uint8", 1)
    if kernel["row"]:
        terms = next(text for word, text in TERMS.items() if word in kernel[0])
        count = 0 if terms == "Dice" else 1
        shared = sigmoid_bytes(count)
        domains, pixels, sums = ROW_DOMAINS, ROW_PIXELS, 1 + 2 * count + 3
    else:
        terms, shared = "Dice + CE", label_map_bytes(classes)
        domains, pixels, sums = MAP_DOMAINS, MAP_PIXELS, 3 + 3 * classes
    if step == "fused":
        terms, sums = terms.removeprefix("Dice + "), 3
    chunk = chunk_of(domains, pixels, 0 if step == "gradient" else sums)
    return Kernel(
        engine="sigmoid" if kernel["row"] else "label_map",
        classes=classes,
        logits=logits,
        label=label,
        step=step,
        terms=terms,
        registers=row["registers"],
        shared=shared,
        read=classes * size + label_size,
        written=0 if step == "statistics" else classes * size,
        per_pixel=row["instructions"] if wide else row["narrow"],
        per_block=flushed(row, chunk / THREADS),
        flight=row["pixels"] * (classes * size + label_size),
        chunk=chunk,
        blocks=domains * -(-pixels // chunk),
        groups=0,
    )


def holds(tile: re.Match[str], classes: int) -> bool:
    """Whether this kernel takes so many classes."""
    staged = tile["staged"] == "true"
    teams = THREADS // tile_pixels(classes, ELEMENTS[tile["element"]][1], staged)
    return slots_of(-(-classes // teams), teams, staged) == int(tile["slots"])


def tiled(tile: re.Match[str], classes: int, row: dict) -> Kernel:
    logits, size = ELEMENTS[tile["element"]]
    step, staged, slots = tile["step"], tile["staged"] == "true", int(tile["slots"])
    label, label_size = ("int64", 8) if logits == "float32" else ("uint8", 1)
    pixels = tile_pixels(classes, size, staged)
    teams = THREADS // pixels
    sums = {"statistics": 3 + 3 * classes, "fused": 3, "gradient": 0}[step]
    chunk = chunk_of(MAP_DOMAINS, MAP_PIXELS, sums)
    in_use = -(-classes // teams)
    unused = (slots - -(-in_use // GROUP) * GROUP) * row["slot"]
    if teams == 1:
        per_pixel = row["alone"] - unused
    else:
        turns = row["label"] + (teams - 1) * row["other"] - teams * unused
        per_pixel = turns + teams * max(teams, 4) * row["team"]
    if staged:
        per_pixel += classes * size / 16 * (row["fill"] + (0 if step == "statistics" else row["drain"]))
    # A block has 8 warps. Each adds one in eight sums over the lanes.
    flush = math.ceil(sums / WARPS) * (row["row"] + row["value"] * math.ceil(pixels / WARP))
    flushes = 0 if step == "gradient" else math.ceil(chunk / pixels / ADDS_PER_FLUSH)
    return Kernel(
        engine="staged_tile" if staged else "tile",
        classes=classes,
        logits=logits,
        label=label,
        step=step,
        terms="CE" if step == "fused" else "Dice + CE",
        registers=row["registers"],
        shared=tile_bytes(pixels, classes, size, staged, step),
        read=classes * size + label_size,
        written=0 if step == "statistics" else classes * size,
        per_pixel=per_pixel,
        per_block=row["before"] + flushes * flush,
        flight=row["loads"] if staged else in_use * size,
        chunk=chunk,
        blocks=MAP_DOMAINS * -(-MAP_PIXELS // chunk),
        groups=1 if staged else 0 if teams == 1 else max(pixels // WARP, 1),
    )


def reached(kernel: Kernel) -> bool:
    return kernel.aim is None or share(kernel, DEVICES[0]).of_copy >= kernel.aim
