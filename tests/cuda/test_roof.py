"""The model of how fast the CUDA kernels can be (tools/roof.py): its page, occupancy, arithmetic, and sources."""

import dataclasses

import pytest

import gates
import roof
import roof_page
from environment import ROOT
from turns import STREAMING, TILE

# The text of csrc that roof.py repeats in Python. If one changes, the other must change, too.
SOURCES = {
    "cuda/device.h": [
        "kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;",
        "constexpr int kAddsPerFlush = 64;",
    ],
    "problem.h": ["constexpr int kMaxPointwise = 4,", "constexpr int kRegionSums = 3, kNegativeSums = 4;"],
    "cuda/sigmoid.h": [
        "kRegion = kExtra ? kExtraSums : kNegativeSums, kPointwise = 2 + kRegion,",
        "kCount = kPointwise + 2 * Pointwise::kCount;",
        "int(sizeof(double)) * Totals::kCount * (kWarps + 1) + int(sizeof(Real)) * 2 * kMaxPointwise;",
    ],
    "cuda/row_source.h": ["kVector = 16 / int(sizeof(Element)), kUnroll = 8 / kVector;"],
    "cuda/label_map.h": [
        "kGroupSums = 1 + 2 * Pointwise::kCount;",
        "int(sizeof(double)) * (kGroupSums * (1 + kWarps) + 3 * kClasses) + "
        "int(sizeof(float)) * ((kClasses + 1) / 2 * 2 + 2 * kClasses * kThreads);",
    ],
    "cuda/label_group.h": ["kVector = (kClasses < 16 ? 16 : 8) / int(sizeof(Element));"],
    "cuda/tile_shape.h": [
        "return kThreads / pixels;",
        "return (classes + teams() - 1) / teams();",
        "return classes * size % 32 == 0;",
        "return classes * size + (padded(size) ? 16 : 0);",
        "constexpr int kFewSlots = 8;",
        "return staged ? 24 : 32;",
        "classes <= kFewSlots && shape.teams() == 1 ? kFewSlots : classes <= 20 && !staged ? 20 : most_slots(staged);",
        "float peak[2 * kThreads], rest[2 * kThreads], others[2 * kThreads];",
        "float label[kThreads], weight[kThreads], reference[kThreads];",
        "float slopes[2 * kMaxPointwise];",
        "(layout.group_sums() + (regions ? 2 * shape.classes : 0)) * shape.pixels;",
        "return regions ? shape.classes + shape.teams() * slots : 0;",
        "(column_floats(layout, shape, slots, statistics) + 3) / 4 * 4 * int64_t(sizeof(float));",
    ],
    "cuda/slice.h": ["static constexpr int kGroup = 4;"],
    "cuda/tile.cu": ["for (int pixels = kThreads; pixels >= kFewestTilePixels; pixels /= 2)"],
    "cuda/policy.cu": [
        "return most < 81920 ? most : 81920;",
        "kSmallest = 4096, kLargest = 16384, kMany = 1024;",
        "kStep = 256, kFewestPartials = 65536, kPartials = 114688;",
        "while (chunks.size < kLargest && domains * per_domain() >= kMany) chunks.size *= 2;",
        "const int64_t partials = std::max(kFewestPartials, kPartials - 3 * sums);",
        "if (per_domain() > most) chunks.size = ((chunks.pixels + most - 1) / most + kStep - 1) / kStep * kStep;",
    ],
}

H100, A100, RTX_4090 = roof.DEVICES
KB = 1024


def test_the_page_is_what_the_model_says() -> None:
    """After a change of kernels: python tools/gates.py --write, then python tools/roof_page.py --write."""
    text = roof_page.PAGE.read_text()
    assert roof_page.page(text) == text


@pytest.mark.parametrize("file", SOURCES)
def test_the_sources_say_what_the_model_repeats(file: str) -> None:
    text = " ".join((ROOT / "csrc" / file).read_text().split())
    assert [part for part in SOURCES[file] if part not in text] == []


# By hand. Registers: a scheduler has 16,384, a warp takes 32 times as many as a thread in units of 256.
OCCUPANCY = [
    (H100, 256, 128, 0, 2),  # 4,096 a warp: 4 warps a scheduler
    (H100, 256, 80, 0, 3),  # 2,560: 6 warps
    (H100, 256, 168, 0, 1),  # 5,376: 3 warps a scheduler, 12 in all; two blocks have 16
    (H100, 256, 129, 0, 1),  # 136 are handed out: 4,352, 3 warps
    (H100, 96, 200, 0, 2),  # 6,400: 2 warps a scheduler, 8 in all; the whole file would hold 10
    (H100, 512, 128, 0, 1),
    (H100, 256, 32, 0, 8),  # 64 warps
    (RTX_4090, 256, 32, 0, 6),  # 48 warps
    (H100, 32, 16, 0, 32),  # blocks
    (RTX_4090, 32, 16, 0, 24),
    (H100, 256, 32, 75 * KB, 3),  # 76 KB with the system's, of 228
    (H100, 256, 32, 75 * KB + 1, 2),
    (A100, 256, 32, 81 * KB, 2),  # 82 of 164
    (A100, 256, 32, 81 * KB + 1, 1),
    (RTX_4090, 256, 32, 80 * KB, 1),  # 81 of 100
]


@pytest.mark.parametrize(("device", "threads", "registers", "shared", "blocks"), OCCUPANCY)
def test_occupancy(device: roof.Device, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert roof.blocks_per_processor(device, threads, registers, shared) == blocks


def test_sizes() -> None:
    """By hand, of csrc/cuda: shared memory, the pixels of a tile, those of a chunk."""
    assert roof.sigmoid_bytes(1) == 8 * 8 * 9 + 4 * 8
    assert roof.label_map_bytes(19) == 8 * (27 + 57) + 4 * (20 + 2 * 19 * 256)
    exchange = 4 * (9 * 256 + 8)
    assert roof.tile_bytes(128, 64, 4, False, "statistics") == exchange + 4 * (3 + 128) * 128
    assert roof.tile_bytes(128, 64, 4, False, "gradient") == exchange + 4 * (64 + 2 * 32)
    assert roof.tile_bytes(256, 6, 2, True, "fused") == exchange + 4 * 3 * 256 + 256 * 12
    assert roof.tile_bytes(64, 64, 4, True, "fused") == exchange + 4 * 3 * 64 + 64 * (256 + 16)  # 16 bytes stay free
    assert [roof.tile_pixels(classes, 4, False) for classes in (6, 32, 33, 64, 118, 150)] == [
        256,
        256,
        128,
        128,
        64,
        32,
    ]
    assert [roof.tile_pixels(classes, 4, True) for classes in (6, 19, 24, 25, 150)] == [256, 256, 128, 128, 32]
    assert roof.chunk_of(8, 512 * 1024, 3 + 3 * 19) == 8192  # 8 x 128 are many, 8 x 64 are not
    assert roof.chunk_of(32, 1024 * 1024, 6) == 16384  # 32 x 64 still are
    assert roof.chunk_of(16, 256 * 256, 6) == 4096  # 16 x 16 are few
    assert roof.chunk_of(8, 512 * 1024, 3 + 3 * 64) == 8192  # 8 x 64 x 195 sums
    assert roof.chunk_of(8, 512 * 1024, 3 + 3 * 150) == 18944  # 103,816 sums, 28 times 3,624
    assert roof.chunk_of(8, 512 * 1024, 0) == 8192


KERNEL = roof.Kernel(
    engine="sigmoid",
    classes=1,
    logits="float32",
    label="float32",
    step="statistics",
    terms="Dice",
    registers={"sm_90": 80, "sm_80": 80},
    shared=0,
    read=8,
    written=0,
    per_pixel=50,
    per_block=160,  # 10 a pixel
    flight=64,
    chunk=4096,
    blocks=132 * 30,
    groups=0,
)


def test_a_share_by_hand() -> None:
    """In picoseconds per pixel: to copy, 8 B / 3.015 TB/s; to compute, 60 / (72 % of 32.10e12)."""
    copy, arithmetic = 8 / 3.015, 60 / (0.72 * 132 * 128 * 1.9e-3)
    found = roof.share(KERNEL, H100)
    assert (found.blocks, found.warps, found.flight) == (3, 24, 24 * 32 * 64)
    assert found.of_copy == pytest.approx(copy / (copy + arithmetic / 6))
    # Twice the arithmetic: now it takes longer than the copy.
    slow = dataclasses.replace(KERNEL, per_pixel=110)
    assert roof.share(slow, H100).of_copy == pytest.approx(copy / (2 * arithmetic + copy / 6))
    # 4 bytes a thread are 3 KB an SM, read in 0.75 us: 0.54 TB/s. Barriers bind each block: it reads or computes.
    late = dataclasses.replace(KERNEL, flight=4, groups=1)
    reading = 8 / (24 * 32 * 4 * 132 / 0.75e6)
    assert roof.share(late, H100).of_copy == pytest.approx(copy / (reading + arithmetic / 3))
    # Barriers bind the two halves of each block. With 3 blocks that is as good as no barrier: 6 warps a scheduler.
    assert roof.share(dataclasses.replace(late, groups=2), H100) == roof.share(
        dataclasses.replace(late, groups=0), H100
    )
    # What is written is not waited for.
    written = dataclasses.replace(late, read=4, written=4)
    assert roof.share(written, H100).of_copy == pytest.approx(copy / ((reading + copy) / 2 + arithmetic / 3))
    # 100 blocks: one on each of 100 SMs, 32 do nothing.
    few = dataclasses.replace(KERNEL, blocks=100, flight=128)
    assert roof.share(few, H100).of_copy == pytest.approx(100 / 132 * copy / (copy + arithmetic / 2))


def test_every_kernel_over_pixels_is_there() -> None:
    table = gates.table()
    over_pixels = [name for name in table if STREAMING.fullmatch(name)]
    tiles = [name for name in table if TILE.fullmatch(name)]
    wholes = [kernel for kernel in roof.kernels() if kernel.engine.endswith("tile")]
    assert len(roof.kernels()) == len(over_pixels) + len(wholes)
    # Planes and channels_last, three types, two or three steps: each number of classes has a kernel.
    assert len(wholes) == 2 * (3 + 3 + 2) * len(roof.TILE_CLASSES)
    assert len(tiles) == (3 + 2) * (3 + 3 + 2)
    others = set(table) - {*over_pixels, *tiles, *(name.replace("true> ", "false> ") for name in tiles)}
    assert {name.split()[-1] for name in others} == {"add", "head", "rescale"}
    aimed = {(kernel.engine, kernel.logits, kernel.step) for kernel in roof.kernels() if kernel.aim}
    assert aimed == {(engine, *what) for engine in roof.ENGINES for what in roof.AIMS}
    shares = [roof.share(kernel, device).of_copy for kernel in roof.kernels() for device in roof.DEVICES]
    assert all(0 < of_copy < 1 for of_copy in shares)
