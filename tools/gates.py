"""The CUDA kernels as they were compiled: registers, stack, 16-byte accesses, instructions per pixel.

    python tools/gates.py [--module _cuda.so] [--arch sm_90]    a report
    python tools/gates.py --write                               gates.json anew, from a module with every architecture

cuobjdump and nvdisasm are on PATH or come from PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm.

Instructions per pixel: of one turn of the innermost loop that loads 16 bytes at a time, over its pixels. The turn is
the cheapest way through the loop with every logit and label loaded, and every gradient stored, 16 bytes at a time (so:
a float32 target or an int64 label map, no weights, no end of a row, no exchange between threads), where of two arms
that only compute the heavier one counts (regions and pointwise terms are there). It is a count, not a time. float64 is
counted too: many GPUs have hardly any.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import sass

TABLE = Path(__file__).with_name("gates.json")
KERNELS_H = Path(__file__).parents[1] / "csrc" / "cuda" / "kernels.h"
MEASURED = "sm_90"
SLACK = 1.05  # what a build may cost more than the table

# Kernels that must not spill: those with a loop over pixels in 16-byte accesses, and others.
STREAMING = re.compile(
    r"(Rows<DenseRow<(?P<row>\w+)>, Sigmoid, (NoPoints|OnePoint<\w+, \w+>), false>"
    r"|LabelMap<(?P<map>\w+), (?P<classes>\d+)>) (?P<step>\w+)"
)
OTHERS = re.compile(r"(Tile<\w+, \d+, \w+, \w+>|HeadKernel<\w+>|AddChunks|Rescale<\w+>) \w+")
# Loops of each step: whether they write.
LOOPS = {"statistics": {False}, "gradient": {True}, "both": {True}}
# Of plain jobs (tile.cu); the others are kept from spilling.
TILE = re.compile(r"Tile<(?P<element>\w+), (?P<slots>\d+), (?P<staged>\w+), true> (?P<step>\w+)")
GROUP = 4  # slots that tile.h asks for at once
ALONE = 8  # slots of the kernels whose threads share no pixel
MANY_CLASSES = 16  # from which label_group.h reads 8 bytes of each
WARPS, SHUFFLES = 8, 5  # of a block; that add a float over a warp (a double: twice as many)


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    local: int


@dataclass(frozen=True)
class Code:
    """`instructions` is per pixel, None where a 16-byte access is missing; `turn` counts kinds of one turn.

    costs: what else the model of the roof (roof.py) asks for, in instructions. narrow: per pixel, with uint8 labels.
    before, after: per thread and block, ahead of the loop over pixels and behind it, where the sums are added over the
    block. Of tiles of plain jobs, per thread and turn with all slots in use: alone, of the only thread of a pixel;
    label, other: of a team, the thread that sees to the label and the others. slot: of a slot, by which a turn is
    shorter where fewer are in use; team: of a value that another thread told; row, value: of a sum that is added over
    the lanes, and of each 32 lanes; loads, of a stage: bytes that a thread asks for before it uses the first; fill,
    drain: of each 16 bytes that come to the stage and go from it.
    """

    total: Counter[str]
    instructions: float | None
    pixels: int
    turn: Counter[str]
    costs: dict[str, float]


def installed_module() -> Path | None:
    spec = importlib.util.find_spec("segfuse._cuda")
    return Path(spec.origin) if spec and spec.origin else None


def tool(name: str) -> str:
    nvidia = importlib.util.find_spec("nvidia")
    places = [
        p for root in (nvidia.submodule_search_locations or [] if nvidia else []) for p in Path(root).glob("*/bin")
    ]
    found = shutil.which(name) or next((str(p / name) for p in sorted(places) if (p / name).exists()), None)
    if not found:
        raise FileNotFoundError(f"{name}: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return found


def run(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, input=text, capture_output=True, text=True, check=True
    ).stdout


def architectures(module: Path, form: str) -> set[str]:
    """Those with machine code (form 'elf') or PTX ('ptx')."""
    return set(re.findall(r"\.(sm_\w+)\.", run(tool("cuobjdump"), f"-l{form}", module)))


def kernel_names(mangled: list[str]) -> dict[str, str]:
    """Mangled to 'LabelMap<float, 19> gradient'; what is no kernel is left out."""
    steps = re.search(r"enum class Step : int \{(.*?)\}", KERNELS_H.read_text(), re.DOTALL)
    assert steps
    step_names = [s.strip() for s in steps[1].split(",")]
    out = {}
    for symbol, name in zip(mangled, run("c++filt", text="\n".join(mangled)).splitlines(), strict=True):
        short = re.sub(r"segfuse::|\(anonymous namespace\)::", "", name).replace("> >", ">>")
        if kernel := re.fullmatch(r"void kernel<(.*), \(Step\)(\d+)>\(Job\)", short):
            out[symbol] = f"{kernel[1]} {step_names[int(kernel[2])]}"
    return out


def usage(module: Path) -> dict[str, dict[str, Usage]]:
    """By kernel and architecture."""
    arch, symbol = "", ""
    found: dict[str, dict[str, Usage]] = {}
    for line in run(tool("cuobjdump"), "-res-usage", module).splitlines():
        if header := re.match(r"arch = (sm_\w+)", line):
            arch = header[1]
        elif function := re.match(r" Function (\S+):", line):
            symbol = function[1]
        elif numbers := re.match(r"\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found.setdefault(symbol, {})[arch] = Usage(*map(int, numbers.groups()))
    names = kernel_names(list(found))
    return {names[symbol]: found[symbol] for symbol in names}


def code(module: Path, arch: str = MEASURED) -> dict[str, Code]:
    """By kernel, of those that are hot."""
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", arch, module.resolve(), cwd=Path(folder))
        cubins = sorted(Path(folder).glob("*.cubin"))
        with ThreadPoolExecutor(2) as pool:
            listings = list(pool.map(lambda path: run(tool("nvdisasm"), "-c", path), cubins))
    symbols = [s for listing in listings for s in re.findall(r"^\.text\.(\S+):", listing, re.MULTILINE)]
    hot = {symbol: name for symbol, name in kernel_names(symbols).items() if is_hot(name)}
    functions = {s: f for listing in listings for s, f in sass.parse(listing, hot.__contains__).items()}
    return {hot[s]: measure(hot[s], function) for s, function in functions.items()}


def is_hot(name: str) -> bool:
    return bool(STREAMING.fullmatch(name) or OTHERS.fullmatch(name))


def measure(name: str, function: sass.Function) -> Code:
    total = sass.count(function)
    nothing = Code(total, None, 0, Counter(), {})
    if tile := TILE.fullmatch(name):
        return replace(nothing, costs=tile_costs(function, tile))
    kernel = STREAMING.fullmatch(name)
    if not kernel:
        return nothing
    blocks = sass.flow(function)
    size, classes = 4 if "float" in (kernel["row"], kernel["map"]) else 2, int(kernel["classes"] or 1)
    # Of a label map a turn is one vector: with more, loads that only weights need would count as labels.
    vector = (16 if classes < MANY_CLASSES else 8) // size
    many = (vector,) if kernel["map"] else (32, 16, 8, 4, 2, 1)
    turns = cheapest_turns(blocks, size, vector, classes, many, label_bytes=8 if kernel["map"] else 4)
    if turns.keys() != LOOPS[kernel["step"]]:
        return nothing
    cost, pixels, counts, loop = turns[kernel["step"] != "statistics"]
    narrow = cheapest_turns(blocks, size, vector, classes, many, label_bytes=1)[kernel["step"] != "statistics"]
    costs = around(blocks, loop.head, loop.turning, exchanges(kernel))
    return Code(total, cost / pixels, pixels, counts, {"narrow": narrow[0] / narrow[1], **costs})


def cheapest_turns(
    blocks: dict[int, sass.Block], size: int, vector: int, classes: int, many: tuple[int, ...], label_bytes: int
) -> dict[bool, tuple[int, int, Counter[str], sass.Loop]]:
    """Of the loops that only read and of those that write: instructions of a turn, its pixels (the first of `many`
    that it can hold), its counts."""
    best: dict[bool, tuple[int, int, Counter[str], sass.Loop]] = {}
    for loop in sass.innermost_loops(blocks, "load128"):
        writes = any(kind.startswith("store") for block in loop.blocks.values() for kind in block.counts)
        for pixels in many:
            required = Counter(mufu=pixels * (classes + 1))  # exponentials and a reciprocal
            for kind in ("load", "store") if writes else ("load",):
                required[f"{kind}{vector * size * 8}"] += math.ceil(pixels / vector) * classes
            labels = min(vector * label_bytes, 16)  # bytes that are loaded at once
            required[f"load{labels * 8}" if labels > 4 else "load"] += math.ceil(pixels * label_bytes / labels)
            if turn := loop.cheapest_turn(required):
                if writes not in best or turn[0] * best[writes][1] < best[writes][0] * pixels:
                    best[writes] = (turn[0], pixels, turn[1], loop)
                break
    return best


def exchanges(kernel: re.Match[str]) -> int:
    """Shuffles and barriers of a thread behind the loop, where a block adds its sums: add_over_block (device.h) and
    add_columns (label_map.h)."""
    if kernel["step"] == "gradient":
        return 0
    if kernel["row"]:
        sums = 5 if "NoPoints" in kernel[0] else 8 if "BceWithLogits" in kernel[0] else 7  # labels, if they balance
        if kernel["step"] == "both" and kernel["row"] == "float":
            sums -= 4  # no regions; in half precision a wrong label makes even them NaN
        return SHUFFLES * sums + 2
    classes = int(kernel["classes"])
    columns = [2 * classes, classes] if kernel["step"] == "statistics" else []
    if classes == 2 and kernel["map"] != "float":
        columns = columns[:1]  # kMirrors
    return SHUFFLES * 3 + 2 + sum(SHUFFLES * math.ceil(c / WARPS) + 1 for c in columns) + (len(columns) > 1)


def around(blocks: dict[int, sass.Block], head: int, turning: set[int], exchanges: int) -> dict[str, float]:
    """The cheapest way to a loop, and from it to the end with so many exchanges. Loops on the way count as often as
    the exchanges ask for: of those that only clear memory, once."""
    before = sass.cheapest_way(blocks, 0, {head}, {})
    left = {b: replace(block, after=[w for w in block.after if w != head]) for b, block in blocks.items()}
    ends = {b for b, block in left.items() if not block.after and b not in turning}
    ways = [(sass.cheapest_way(left, b, ends, {"exchange": exchanges}), blocks[b].length) for b in turning]
    after = [way[0] - length for way, length in ways if way]
    if not before or not after:
        raise ValueError(f"no way around the loop at instruction {head} with {exchanges} exchanges")
    return {"before": before[0] - blocks[head].length, "after": min(after)}


def tile_kinds(code: list[str]) -> Counter[str]:
    """What the phases of a turn of tile.h are told by."""
    ops = list(map(sass.opcode, code))
    found = Counter(
        {
            "logit": sum(op in ("LDG.E.CONSTANT", "LDG.E.U16.CONSTANT") for op in ops),
            "run": sum(op.startswith("LDG") and "128" in op for op in ops),
            "drain": sum(op.startswith("STG") and "128" in op for op in ops),
            "label": ops.count("LDG.E.64.CONSTANT"),
            "gradient": sum(op.startswith("STG") and ".EF" in op for op in ops),
            "power": ops.count("MUFU.EX2"),
            "read": sum(op.startswith("LDS") for op in ops),
            "slopes": ops.count("LDS.128"),
            "write": sum(op in ("STS", "STS.U16") for op in ops),
            "barrier": sum(op.startswith("BAR") for op in ops),
            "shuffle": sum(op.startswith("SHFL") for op in ops),
            "sum": sum(op.startswith("FFMA") for op in ops),
        }
    )
    if found["power"] or found["read"] or len(code) > 2 * found["sum"] or found["sum"] < GROUP:
        found["sum"] = 0  # a block that only adds to false positives has as many
    return found


def tile_costs(function: sass.Function, tile: re.Match[str]) -> dict[str, float]:
    blocks = sass.flow(function)
    for first, block in blocks.items():
        block.counts = tile_kinds(function.code[first : first + block.length])
    loops = sass.nest(blocks, set(blocks))
    # Of the loops over pixels the one of plain jobs: it alone asks for labels so.
    pixels = next(loop for loop in loops if any(blocks[b].counts["label"] for b in loop.body))
    slots, staged, step = int(tile["slots"]), tile["staged"] == "true", tile["step"]

    def turn(loop: sass.Nest, required: dict[str, int], without_teams: bool = False) -> int:
        left = loop.body
        if without_teams:
            left = {b for b in left if staged or not blocks[b].counts["barrier"]}
        ways = {b: [w for w in blocks[b].after if w in left and w != loop.head] for b in left}
        body = {b: replace(blocks[b], after=after) for b, after in ways.items()}
        found = sass.cheapest_way(body, loop.head, {b for b in left if loop.head in blocks[b].after}, required)
        if not found:
            raise ValueError(f"{tile[0]}: no turn with {required}")
        return found[0]

    def whole_turn(used: int, fixed: dict[str, int], without_teams: bool) -> int:
        """With so many slots in use: their phases follow one another, so that what each adds can be added."""
        phases = {"power": used + 1, "read" if staged else "logit": used + 1}
        if step == "statistics":
            phases["sum"] = used
        else:
            phases["write" if staged else "gradient"] = used
        if step == "gradient":
            phases["slopes"] = 2 * used // GROUP
        base = turn(pixels, fixed, without_teams)
        more = [fixed | {kind: fixed.get(kind, 0) + n} for kind, n in phases.items()]
        return base + sum(turn(pixels, required, without_teams) - base for required in more)

    # A label, I and FN. What the threads of a team tell one another: peak, rest, others; label, weight.
    label = {"label": 1}
    sums = 2 if step == "statistics" else 0
    told = 3 if step == "gradient" else 2
    barriers = (2 if staged else 0) + (1 if staged and step != "statistics" else 0)
    of_team = {"barrier": barriers + 2}
    costs: dict[str, float] = {
        "alone": whole_turn(slots, label | {"write": sums, "barrier": barriers}, without_teams=slots > ALONE)
    }
    if slots > ALONE:
        costs["label"] = whole_turn(slots, label | of_team | {"write": sums + told + 2}, without_teams=False)
        costs["other"] = whole_turn(slots, of_team | {"write": told}, without_teams=False)
    half = whole_turn(slots // 2, label | {"write": sums, "barrier": barriers}, without_teams=slots > ALONE)
    costs["slot"] = (costs["alone"] - half) / (slots - slots // 2)
    # A value of a row that is heard; a sum that is added over the lanes, and each 32 lanes of it.
    costs |= dict.fromkeys(("team", "row", "value"), 0.0)
    for loop in pixels.inner:
        counts = sum((blocks[b].counts for b in loop.body), Counter())
        if counts["slopes"] > 1 and not counts["write"] and not loop.inner:  # unrolled; each read has four teams'
            costs["team"] += sum(blocks[b].length for b in loop.body) / (4 * counts["slopes"])
        if counts["shuffle"] and loop.inner:
            costs["row"] = max(costs["row"], turn(loop, {"shuffle": SHUFFLES}))
            costs["value"] = max(costs["value"], turn(loop.inner[0], {}))
        for what, kind in (("fill", "run"), ("drain", "drain")):
            if counts[kind] and not loop.inner:
                costs[what] = turn(loop, {kind: counts[kind]}) / counts[kind]
    before = sass.cheapest_way(blocks, 0, {pixels.head}, {})
    assert before
    costs["before"] = before[0] - blocks[pixels.head].length
    if staged:  # a batch: slice.h
        costs["loads"] = 16.0 * max(block.counts["run"] for block in blocks.values())
    return costs


def table() -> dict[str, dict]:
    return json.loads(TABLE.read_text())


def write(used: dict[str, dict[str, Usage]], codes: dict[str, Code]) -> None:
    """Registers in eights, as they are handed out; instructions as they are."""
    rows = {}
    for name in sorted(codes):
        row: dict = {"registers": {arch: -(-u.registers // 8) * 8 for arch, u in sorted(used[name].items())}}
        if STREAMING.fullmatch(name):
            if codes[name].instructions is None:
                raise SystemExit(f"{name}: no way through a loop with every access of 16 bytes")
            row |= {"instructions": round(codes[name].instructions, 1)}
            row |= {kind: codes[name].turn[kind] for kind in ("load128", "store128", "mufu", "double")}
            row |= {"pixels": codes[name].pixels}
        row |= {what: round(cost, 1) for what, cost in codes[name].costs.items()}
        rows[name] = row
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    TABLE.write_text("{\n" + lines + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the CUDA kernels were compiled to.")
    parser.add_argument("--module", type=Path, help="default: the installed segfuse._cuda")
    parser.add_argument("--arch", default=MEASURED, help="whose instructions are counted")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    options = parser.parse_args()
    module = options.module or installed_module()
    if module is None:
        parser.error("segfuse was built without nvcc; name a module")
    used, codes = usage(module), code(module, options.arch)
    if options.write:
        write(used, codes)
    print(f"{'':86}    /px  MUFU/px   F64/px  LDG.128  STG.128  LDL+STL  registers (+ stack) by sm")
    for name in sorted(codes):
        c = codes[name]
        pixels = c.pixels or 1
        per_pixel = [c.instructions or 0, c.turn["mufu"] / pixels, c.turn["double"] / pixels]
        columns = [f"{n:7.1f}" for n in per_pixel] + [f"{c.total[k]:7}" for k in ("load128", "store128", "local")]
        registers = " ".join(
            f"{arch[3:]}:{u.registers}{f'+{u.stack}' if u.stack else ''}" for arch, u in sorted(used[name].items())
        )
        print(f"{name:86}{'  '.join(columns)}  {registers}")


if __name__ == "__main__":
    main()
