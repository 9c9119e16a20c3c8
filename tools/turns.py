"""Instructions per pixel of a compiled CUDA kernel. gates.py holds them to a table, roof.py models time.

What is counted: one turn of the innermost loop that loads 16 bytes at a time, divided by the pixels of that turn. There
are several ways through such a loop. The cheapest one is taken, under two conditions:

- Every logit and label is loaded, and every gradient stored, 16 bytes at a time. So the target is float32 or an int64
  label map, there are no weights, it is not the end of a row, and threads exchange nothing.
- Where a branch has two arms that only compute, the longer arm counts: region and pointwise terms are there.

It is a count, not a time. float64 instructions are counted apart: many GPUs have few units for them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import sass

# Kernels with a loop over pixels in 16-byte accesses.
STREAMING = re.compile(
    r"(SigmoidRows<DenseRow<(?P<row>\w+)>, Sigmoid, (NoTerm|OneTerm<\w+, \w+>), false>"
    r"|LabelMap<(?P<map>\w+), (?P<classes>\d+)>) (?P<step>\w+)"
)
# Of each step: whether the loop over pixels writes.
LOOPS = {"statistics": {False}, "gradient": {True}, "fused": {True}}
# Tiles of plain jobs (is_plain in tile.cu). No instructions are counted of the other tiles.
TILE = re.compile(r"Tile<(?P<element>\w+), (?P<slots>\d+), (?P<staged>\w+), true> (?P<step>\w+)")
GROUP = 4  # slots that tile.h loads at once
ALONE = 8  # slots of a thread, in kernels where each pixel has one thread
MANY_CLASSES = 16  # with so many classes or more, label_group.h reads 8 bytes of each class, not 16
WARPS = 8  # of a block
SHUFFLES = 5  # to add a float over the lanes of a warp; a double needs 10


@dataclass(frozen=True)
class Code:
    """What was counted in one kernel.

    total: of the whole kernel, by kind.
    instructions: per pixel. None if an access of 16 bytes is missing.
    pixels, turn: of the one turn that was counted: its pixels, and its instructions by kind.
    costs: other counts, which only roof.py reads. By kernel they are:

    rows and label maps:
      narrow         per pixel, if labels are uint8
      before, after  per thread and block: ahead of the loop over pixels; behind it, where the block adds its sums

    tiles of plain jobs, per thread and turn, if all slots are in use:
      alone          the one thread of a pixel
      label, other   threads that share a pixel: the one that handles the label, and each other one
      slot           what one unused slot saves
      team           to read one value of another thread
      row, value     to add one sum over the lanes; for each 32 lanes of it
      fill, drain    for each 16 bytes that enter the stage, and that leave it
      loads          not instructions, but bytes that a thread loads into the stage before it uses the first
      before         as above
    """

    total: Counter[str]
    instructions: float | None
    pixels: int
    turn: Counter[str]
    costs: dict[str, float]


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
    # A turn of a label map has one vector of pixels. With more, loads of weights would be counted as loads of labels.
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
    """By whether the loop writes: instructions of its cheapest turn, the pixels of a turn, its counts, the loop.

    The pixels of a turn are the first number of `many` for which the loop has enough loads and stores.
    """
    best: dict[bool, tuple[int, int, Counter[str], sass.Loop]] = {}
    for loop in sass.innermost_loops(blocks, "load128"):
        writes = any(kind.startswith("store") for block in loop.blocks.values() for kind in block.counts)
        for pixels in many:
            required = Counter(mufu=pixels * (classes + 1))  # an exponential per class, and a reciprocal
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
    """Shuffles and barriers of a thread behind the loop, where the block adds its sums.

    They stand in add_over_block (device.h) and add_columns (label_map.h).
    """
    if kernel["step"] == "gradient":
        return 0
    if kernel["row"]:
        sums = 5 if "NoTerm" in kernel[0] else 8 if "BceWithLogits" in kernel[0] else 7  # BCE: labels, to balance
        if kernel["step"] == "fused" and kernel["row"] == "float":
            sums -= 4  # no region sums; half precision keeps them, for a wrong label makes them NaN
        return SHUFFLES * sums + 2
    classes = int(kernel["classes"])
    columns = [2 * classes, classes] if kernel["step"] == "statistics" else []
    if classes == 2 and kernel["map"] != "float":
        columns = columns[:1]  # kMirrors in label_map.h
    return SHUFFLES * 3 + 2 + sum(SHUFFLES * math.ceil(c / WARPS) + 1 for c in columns) + (len(columns) > 1)


def around(blocks: dict[int, sass.Block], head: int, turning: set[int], exchanges: int) -> dict[str, float]:
    """before: the cheapest way to the loop. after: the cheapest way from its end to that of the kernel, with at least
    so many exchanges. A loop on that way is counted as often as the exchanges need it; without exchanges, once."""
    before = sass.cheapest_way(blocks, 0, {head}, {})
    left = {b: replace(block, after=[w for w in block.after if w != head]) for b, block in blocks.items()}
    ends = {b for b, block in left.items() if not block.after and b not in turning}
    ways = [(sass.cheapest_way(left, b, ends, {"exchange": exchanges}), blocks[b].length) for b in turning]
    after = [way[0] - length for way, length in ways if way]
    if not before or not after:
        raise ValueError(f"no way around the loop at instruction {head} with {exchanges} exchanges")
    return {"before": before[0] - blocks[head].length, "after": min(after)}


def tile_kinds(code: list[str]) -> Counter[str]:
    """Kinds of instructions by which the phases of a turn in tile.h are recognised."""
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
        found["sum"] = 0  # not the phase of sums: that only adds to false positives, by one FFMA in two instructions
    return found


def tile_costs(function: sass.Function, tile: re.Match[str]) -> dict[str, float]:
    blocks = sass.flow(function)
    for first, block in blocks.items():
        block.counts = tile_kinds(function.code[first : first + block.length])
    loops = sass.nest(blocks, set(blocks))
    # Several loops are over pixels. Only that of plain jobs loads labels by LDG.E.64.
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
        """A turn with so many slots in use. The phases follow one another, so their costs are added."""
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

    # Written to shared memory: the sums I and FN; what a thread tells the others of its pixel (peak, rest, others), and
    # the thread with the label also label and weight.
    label = {"label": 1}
    sums = 2 if step == "statistics" else 0
    exchanged = 3 if step == "gradient" else 2
    barriers = (2 if staged else 0) + (1 if staged and step != "statistics" else 0)
    of_team = {"barrier": barriers + 2}
    costs: dict[str, float] = {
        "alone": whole_turn(slots, label | {"write": sums, "barrier": barriers}, without_teams=slots > ALONE)
    }
    if slots > ALONE:
        costs["label"] = whole_turn(slots, label | of_team | {"write": sums + exchanged + 2}, without_teams=False)
        costs["other"] = whole_turn(slots, of_team | {"write": exchanged}, without_teams=False)
    half = whole_turn(slots // 2, label | {"write": sums, "barrier": barriers}, without_teams=slots > ALONE)
    costs["slot"] = (costs["alone"] - half) / (slots - slots // 2)
    costs |= dict.fromkeys(("team", "row", "value"), 0.0)
    for loop in pixels.inner:
        counts = sum((blocks[b].counts for b in loop.body), Counter())
        if (
            counts["slopes"] > 1 and not counts["write"] and not loop.inner
        ):  # unrolled: each read has the values of four threads
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
    if staged:  # loads that slice.h issues together
        costs["loads"] = 16.0 * max(block.counts["run"] for block in blocks.values())
    return costs
