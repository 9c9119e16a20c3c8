"""Machine code as nvdisasm prints it: its flow graph, its loops, and the instructions of one turn of a loop."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

# Two arms of a branch without loads may be a special case (inf in log1p) and the ordinary one. They are, if they differ
# by fewer instructions than this.
SPECIAL_CASE = 8
NOT_ARITHMETIC = {"load128", "store128", "store64", "store", "exchange"}
KINDS = {"LDL": "local", "STL": "local", "MUFU": "mufu", "BAR": "exchange", "SHFL": "exchange"}
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)|.*\.F64")


@dataclass
class Function:
    code: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(listing: str, wanted: Callable[[str], bool]) -> dict[str, Function]:
    """The functions of a cubin whose mangled name is wanted."""
    functions: dict[str, Function] = {}
    current: Function | None = None
    for line in listing.splitlines():
        if line.startswith("        /*") and current:
            current.code.append(line.partition("*/")[2].strip(" ;"))
        elif line.startswith(".L_x_") and current:
            current.labels[line.rstrip(":")] = len(current.code)
        elif line.startswith(".text."):
            name = line.strip().removeprefix(".text.").rstrip(":")
            current = functions.setdefault(name, Function()) if wanted(name) else None
        elif line.startswith("\t.section"):
            current = None
    return functions


def opcode(instruction: str) -> str:
    words = instruction.split(None, 2)
    return words[1] if words[0].startswith("@") else words[0]


def kind(instruction: str) -> str:
    """The kind that an instruction is counted as, or ''."""
    op = opcode(instruction)
    name = op.partition(".")[0]
    if name in ("LDG", "STG"):
        width = next((w for w in ("128", "64") if f".{w}" in op), "")
        return ("load" if name == "LDG" else "store") + width
    return "double" if DOUBLE.match(op) else KINDS.get(name, "")


def count(function: Function) -> Counter[str]:
    return Counter(k for k in map(kind, function.code) if k)


@dataclass
class Block:
    length: int
    counts: Counter[str]
    after: list[int]


def flow(function: Function) -> dict[int, Block]:
    """The blocks that can be reached, by the index of their first instruction. A call is assumed to return."""
    ends: dict[int, list[int]] = {}
    for i, instruction in enumerate(function.code):
        op, predicated = opcode(instruction), instruction.startswith("@")
        name = op.partition(".")[0]
        if name in ("BRA", "BRX"):  # BRX lists its targets in a comment
            operands = instruction.partition(op)[2].strip()
            conditional = predicated or op == "BRA.DIV" or re.match(r"!?U?P\d", operands)
            targets = [function.labels[t] for t in re.findall(r"\.L_x_\d+", operands) if t in function.labels]
            ends[i] = sorted({*targets, *([i + 1] if conditional else [])})
        elif name in ("EXIT", "RET", "BREAK", "JMP") and not predicated:
            ends[i] = []
    cuts = sorted({0, len(function.code), *function.labels.values(), *(i + 1 for i in ends)})
    blocks: dict[int, Block] = {}
    for first, end in pairwise(cuts):
        counts = Counter(k for k in map(kind, function.code[first:end]) if k)
        blocks[first] = Block(end - first, counts, [b for b in ends.get(end - 1, [end]) if b < len(function.code)])
    reached = _reached([0], lambda b: blocks[b].after)
    return {b: block for b, block in blocks.items() if b in reached}


def _reached(start: list[int], after: Callable[[int], list[int]]) -> set[int]:
    seen: set[int] = set()
    todo = list(start)
    while todo:
        if (b := todo.pop()) not in seen:
            seen.add(b)
            todo += after(b)
    return seen


def _cycles(nodes: set[int], after: Callable[[int], list[int]]) -> list[set[int]]:
    """Sets of nodes that reach one another (Kosaraju)."""
    inside = {b: [w for w in after(b) if w in nodes] for b in nodes}
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(nodes):
        todo = [(root, False)]
        while todo:
            b, done = todo.pop()
            if done:
                order.append(b)
            elif b not in seen:
                seen.add(b)
                todo += [(b, True), *((w, False) for w in inside[b])]
    before: dict[int, list[int]] = {b: [] for b in nodes}
    for b, following in inside.items():
        for w in following:
            before[w].append(b)
    cycles = []
    left = set(nodes)

    def before_in_left(b: int) -> list[int]:
        return [w for w in before[b] if w in left]

    for root in reversed(order):
        if root in left:
            cycle = _reached([root], before_in_left)
            left.difference_update(cycle)
            if len(cycle) > 1 or root in inside[root]:
                cycles.append(cycle)
    return cycles


@dataclass
class Nest:
    """A loop, and the loops inside it."""

    head: int
    body: set[int]
    inner: list[Nest]


def nest(blocks: dict[int, Block], nodes: set[int], closed: frozenset[int] = frozenset()) -> list[Nest]:
    """The loops among `nodes`. closed: heads of the loops around them, where a turn of these ends."""
    found = []
    for body in _cycles(nodes, lambda b: [w for w in blocks[b].after if w not in closed]):
        entered = {w for b, block in blocks.items() if b not in body for w in block.after if w in body}
        head = min(entered or body)
        found.append(Nest(head, body, nest(blocks, body, closed | {head})))
    return sorted(found, key=lambda loop: loop.head)


def innermost_loops(blocks: dict[int, Block], wanted: str) -> Iterator[Loop]:
    """The innermost loops that have an instruction of the kind `wanted`."""

    def search(loops: list[Nest]) -> Iterator[Loop]:
        for loop in loops:
            if any(blocks[b].counts[wanted] for b in loop.body):
                yield from list(search(loop.inner)) or [Loop(blocks, loop.body, loop.head)]

    yield from search(nest(blocks, set(blocks)))


def cheapest_way(
    blocks: dict[int, Block], start: int, ends: set[int], required: dict[str, int]
) -> tuple[int, Counter[str]] | None:
    """The shortest way from `start` to the end of a block of `ends` with at least the required number of each kind: its
    instructions, and how many there are of each kind. None: there is no such way."""
    kinds = [k for k, n in required.items() if n]
    goal = tuple(required[k] for k in kinds)
    gains = {b: tuple(block.counts[k] for k in kinds) for b, block in blocks.items()}
    first = (start, (0,) * len(kinds))
    best = {first: 0}
    came: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}
    queue = [(0, *first)]
    found: list[tuple[int, int, tuple[int, ...]]] = []
    while queue:
        cost, b, got = heapq.heappop(queue)
        if best[b, got] < cost:
            continue
        cost += blocks[b].length
        now = tuple(map(min, map(int.__add__, got, gains[b]), goal)) if any(gains[b]) else got
        if b in ends and now == goal:
            found.append((cost, b, got))
        for w in blocks[b].after:
            if best.get((w, now), 1 << 62) > cost:
                best[w, now] = cost
                came[w, now] = (b, got)
                heapq.heappush(queue, (cost, w, now))
    if not found:
        return None
    cost, *state = min(found)
    at: tuple[int, tuple[int, ...]] | None = (state[0], state[1])
    counts: Counter[str] = Counter()
    while at:
        counts += blocks[at[0]].counts
        at = came.get(at)
    return cost, counts


class Loop:
    """A turn begins at `head` and ends with a block of `turning`."""

    def __init__(self, blocks: dict[int, Block], body: set[int], head: int) -> None:
        self.head = head
        self.turning = {b for b in body if head in blocks[b].after}
        self.blocks = {
            b: Block(blocks[b].length, blocks[b].counts, [w for w in blocks[b].after if w in body and w != head])
            for b in sorted(body)
        }
        self._drop_light_arms()

    def _joins(self) -> dict[int, int | None]:
        """For each block with two ways out, the first block that is on both of them."""
        order = list(self.blocks)
        bit = {b: 1 << i for i, b in enumerate(order)}
        everything = (1 << len(order)) - 1
        met = dict.fromkeys(order, everything)
        changed = True
        while changed:
            changed = False
            for b in reversed(order):
                ways = [met[w] for w in self.blocks[b].after] + ([0] if b in self.turning else [])
                common = everything if ways else 0
                for way in ways:
                    common &= way
                if (new := common | bit[b]) != met[b]:
                    met[b], changed = new, True
        # Of the blocks on both ways, the first one has the most blocks behind it.
        number = {b: m.bit_count() for b, m in met.items()}
        return {
            b: max((x for x in order if met[b] & bit[x] and x != b), key=number.__getitem__, default=None)
            for b in order
            if len(self.blocks[b].after) == 2
        }

    def _drop_light_arms(self) -> None:
        """Of two arms that only compute, keeps the longer one: with a region term, not without.

        Arms that store, exchange or load vectors (the end of a row, weights) both stay.
        """
        joins = {b: join for b, join in self._joins().items() if join is not None}
        inside = {
            b: _reached([w for w in self.blocks[b].after if w != join], lambda x, join=join: self._until(x, join))
            for b, join in joins.items()
        }
        for b in sorted(inside, key=lambda b: len(inside[b])):  # inner branches first
            counts = sum((self.blocks[x].counts for x in inside[b]), Counter())
            if b in inside[b] or NOT_ARITHMETIC & counts.keys():
                continue
            arms = self.blocks[b].after
            costs = [self._cost(arm, joins[b]) for arm in arms]
            if abs(costs[0] - costs[1]) >= (1 if counts else SPECIAL_CASE):
                self.blocks[b].after = [arms[costs.index(max(costs))]]

    def _until(self, b: int, join: int) -> list[int]:
        return [w for w in self.blocks[b].after if w != join]

    def _cost(self, start: int, end: int) -> int:
        """Instructions of the shortest way from `start` to `end`."""
        costs = {start: 0}
        queue = [(0, start)]
        while queue:
            cost, b = heapq.heappop(queue)
            if b == end:
                return cost
            for w in self.blocks[b].after:
                if costs.get(w, 1 << 62) > (new := cost + self.blocks[b].length):
                    costs[w] = new
                    heapq.heappush(queue, (new, w))
        return 0

    def cheapest_turn(self, required: dict[str, int]) -> tuple[int, Counter[str]] | None:
        held = sum((b.counts for b in self.blocks.values()), Counter())
        if any(held[k] < n for k, n in required.items()):
            return None
        return cheapest_way(self.blocks, self.head, self.turning, required)
