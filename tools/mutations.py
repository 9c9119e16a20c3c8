"""Mistakes that somebody could make in csrc/cuda, as patterns. Each match of a pattern is a mutation.

tools/mutate.py makes one mutation at a time and expects a test to fail. EQUIVALENT lists mutations that no test can
find, with the reason. If any other mutation survives, a test is missing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Constants that only large tensors exceed, and values that small tensors exceed. They have several chunks then, and
# flush their sums in the middle of a chunk. 7168 pixels are 28 rounds of 256 threads: 8 rounds follow the flush at 20.
SHRUNK = {
    r"(?<=kAddsPerFlush = )64(?=;)": "20",
    r"(?<=kSmallest = )4096(?=, )": "7168",
    r"(?<=kFewestPartials = )65536(?=,)": "300",
    r"(?<=kPartials = )114688(?=;)": "400",
    r"(?<=kMany = )1024(?=;)": "40",
    r"(?<=kFewChunks = )256(?=;)": "45",
    r"(?<=kFewRows = )2048(?=;)": "5",
    r"(?<=kRowsPerBlock = )512(?=,)": "3",
}


@dataclass(frozen=True)
class Pattern:
    """A regular expression for correct code, and its replacement, as for re.sub."""

    name: str
    before: str
    after: str
    files: str = r".*"
    seeds: int = 1  # orders of threads to try before it is a survivor


@dataclass(frozen=True)
class Mutation:
    pattern: Pattern
    file: str
    start: int
    before: str
    after: str
    line: int
    text: str  # the line
    nth: int = 0  # which of several equal lines, for the same pattern

    @property
    def key(self) -> str:
        """Names the mutation as long as its line does not change."""
        return f"{self.file}: {self.pattern.name}: {self.text}" + (f" #{self.nth + 1}" if self.nth else "")

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.pattern.name}: {self.text.replace(self.before, f'[{self.after}]', 1)}"

    def apply(self, text: str) -> str:
        end = self.start + len(self.before)
        assert text[self.start : end] == self.before
        return text[: self.start] + self.after + text[end:]


DEVICE = r"(?!steps|policy|binding).*"  # files with code of the GPU; loops of the host run over tables of kernels
FOR = r"(for \([^;:\n]*"
ARRAYS = (
    r"(?:totals|staging|scales|at_positive|at_negative|fp|sums|of_class|columns?"
    r"|job\.partial|job\.block_totals)"
)


PATTERNS = (
    Pattern("no barrier", r"__syncthreads\(\);|\bsync_teams\(\);", ";", seeds=3),
    Pattern("no barrier", r"1 \+ slice\.lane / kWarp", "1", seeds=3),
    Pattern("half a warp", r"0xffffffffu", "0x0000ffffu"),
    # Loops: without the first round, without the last one, with a stride that is too long.
    Pattern("first round", FOR + r" = )([^;,\n]+)(?=;)", r"\1\2 + 1", DEVICE),
    Pattern("last round", FOR + r";[^;\n]* < [^;\n]+)(?=;)", r"\1 - 1", DEVICE),
    Pattern("last round", FOR + r";[^;\n]* > [^;\n]+)(?=;)", r"\1 + 1", DEVICE),
    Pattern("stride", FOR + r";[^;\n]*; \w+ \+= [^()\n]+)(?=\))", r"\1 + 1", DEVICE),
    # Which threads do it, and where it ends.
    Pattern("thread guard", r"(if \((?:int\()?threadIdx\.x\)? < )([^)\n]+)\)", r"\1\2 - 1)"),
    Pattern("tail", r"(?<!; )(\b(?:i|lane|base \+ lane|group\.i)) < ([\w.]*\bcount|here)\b", r"\1 <= \2"),
    Pattern("tail", r"i >= count", "i > count"),
    Pattern("tail of a group", r"kVector \* kUnroll > count", "kVector * kUnroll > count + kVector"),
    Pattern("tail of a group", r"source\.count - kGroup", "source.count"),
    Pattern("tail of a tile", r"base \+ lane < pixels", "base + lane <= pixels"),
    Pattern("tail of a tile", r"left < shape\.pixels \? left : ", ""),
    Pattern("tail of a tile", r"if \(rest < size\)", "if (false)"),
    # Chunks.
    Pattern("tail of a domain", r"pixels - first < size \? pixels - first : ", ""),
    Pattern("chunk", r"\(i - domain \* per_domain\)", "(i + 1 - domain * per_domain)"),
    Pattern("chunk", r"i / per_domain", "i / (per_domain + 1)"),
    Pattern("chunk", r"(gridDim\.x\)?) - 1 - ", r"\1 - "),
    Pattern("chunk", r"(chunk\.first \+ \(?)(base|i|lane)\b", r"\g<1>1 + \2"),
    Pattern("chunk", r"\(chunks\.pixels \+ chunks\.size - 1\)", "chunks.pixels"),
    Pattern("chunk", r"\* job\.chunks\.per_domain \+ rank", "* (job.chunks.per_domain - 1) + rank"),
    Pattern("chunk", r"\* job\.chunks\.per_domain \+ rank", "* job.chunks.per_domain"),
    # Shared memory and workspace: arrays that overlap, or are too small.
    Pattern(
        "overlap", r"(\b" + ARRAYS + r" \+ )((?:[\w:.* ]+\(\)|[\w:.+* ]+?)(?=[;,)]))", r"\1\2 - 1", r".*\.h|steps\.cu"
    ),
    Pattern("overlap", r"staging\[(\w+) \* kCount", r"staging[\1 * (kCount - 1)"),
    Pattern("overlap", r"\by \* 2 \* kThreads", "y * kThreads"),
    Pattern("too small", r"\(kWarps \+ 1\)|\(1 \+ kWarps\)", "kWarps"),
    Pattern("too small", r"regions \? 2 \* shape\.classes : 0", "regions ? 2 * shape.classes - 1 : 0"),
    Pattern("too small", r"shape\.classes \+ shape\.teams\(\) \* slots", "shape.teams() * slots"),
    Pattern("too small", r"kPixels \* kThreads \* 5", "kPixels * kThreads * 4"),
    Pattern("too small", r"\+ 2 \* kClasses \* kThreads\)", "+ (2 * kClasses - 1) * kThreads)"),
    Pattern("too small", r"\(double\)\) \* kHeadThreads / kWarp", "(double)) * (kHeadThreads / kWarp - 1)"),
    # A sum is added twice, or lost.
    Pattern("no clear", r"\b(?:sums\.clear\(\)|own\.clear\(\)|pack\.clear\(\)|hard\.clear\(\)|first = false);", ";"),
    Pattern(
        "no clear",
        r"\b(?:values\[i\]|columns\[[^]]+\]|fp\[[cj]\]|group_sums\[s\]|columns\(\)\[[^]]+\]|at_negative\[i\]) = 0\.0f;",
        ";",
    ),
    Pattern("no clear", r"\b(?:totals\[threadIdx\.x\]|of_class\[s\]) = 0(?:\.0f)?;", ";"),
    Pattern("lost", r"\bpart \+= (?=f\(i\)|job\.partial)", "part = "),
    Pattern("lost", r"first \? 0 : to\[threadIdx\.x\]", "0"),
    # The gradient of a pixel with one label.
    Pattern("gradient", r"\bw \* slope \* x\.q", "slope * x.q"),
    Pattern("gradient", r"-\(w \* inverse \* slope\)", "-(inverse * slope)"),
    Pattern("gradient", r"x\.p \* \(s - r\) \+ sum \* inverse", "sum * inverse"),
    Pattern("gradient", r"mean_and_slope = mean \+ slope", "mean_and_slope = mean"),
    # Slopes.
    Pattern("slopes", r"\bkRegionSlopes \* c\b|\bc \* kRegionSlopes\b", "(kRegionSlopes - 1) * c"),
    Pattern(
        "slopes",
        r"\b((?:chunk\.)?domain|k / job\.chunks\.per_domain) \* (job\.layout\.domain_slopes\(\))",
        r"\1 * (\2 - 1)",
    ),
    Pattern("domain", r"domain % classes", "domain / classes"),
    # Hard labels in half precision.
    Pattern("hard labels", r"labels\.valid\(\) \? 0 : ~0u", "0"),
    Pattern("hard labels", r"if \(hard\.valid\(\)\) return;", "return;"),
    Pattern("hard labels", r"source\.plain_bytes\(\) && ", ""),
    Pattern("hard labels", r" && Pointwise::can_mirror\(job\)", ""),
    Pattern("hard labels", r"!job\.problem\.has_weight && !job\.can_ignore;", "!job.can_ignore;"),
    Pattern("hard labels", r"!job\.problem\.has_weight && !job\.can_ignore;", "!job.problem.has_weight;"),
    # What the vector kernels must not be given: the shim reports a misaligned access.
    Pattern("alignment", r"\bwhole\(int64_t\(reinterpret_cast<uintptr_t>\(v\.data\)\)\)", "true"),
    Pattern("alignment", r"\bwhole\(v\.\w+ \* size\)|\bis_array\(p\.\w+, group\)|\bv\.stride\[0\] == 1", "true"),
    Pattern("alignment", r"p\.pixels % group == 0 && ", ""),
    Pattern("alignment", r"\bis_dense_\w+\((?:t|p\.weight\.dtype)\)", "true", r".*\.cu"),
    Pattern("channels_last", r"v\.dims == 1 && v\.class_stride == 1", "v.class_stride == 1"),
    Pattern("channels_last", r"v\.dims == 1 && v\.class_stride == 1", "v.dims == 1"),
    Pattern("channels_last", r"v\.stride\[0\] == sizes\.classes", "true"),
    Pattern("channels_last", r"\| bytes\) % 16 == 0", "| bytes) % 4 == 0"),
    # Threads that share a pixel, and slots that hold no class.
    Pattern("teams", r"\(teams < 4 \? 4 : teams\)", "teams"),
    Pattern("teams", r"teams == 2 && ", "false && "),
    Pattern("teams", r"wrong \? at_negative\[0\] : s", "s"),
    Pattern("teams", r" && t != peak_team", ""),
    Pattern("slots", r"kSlots < 32 \|\| slice\.count < 32 \? ~0u << slice\.count : 0u", "0u"),
    Pattern("slots", r"kSlots < 32 \|\| slice\.count < 32 \? (~0u << slice\.count) : 0u", r"\1"),
    Pattern(
        "slots", r"job\.tile\.fewest = shape\.classes / shape\.teams\(\)", "job.tile.fewest = shape.most_classes()"
    ),
    Pattern("slots", r"job\.tile\.most = shape\.most_classes\(\)", r"\g<0> - 1"),
    Pattern("slots", r"shape\.padded\(int\(size\)\) \? ", "false ? "),
    # Plain jobs.
    Pattern("plain", r"!p\.has_weight && !p\.has_upstream", "!p.has_upstream"),
    Pattern("plain", r"!p\.has_weight && !p\.has_upstream", "!p.has_weight"),
    Pattern("plain", r"\(!plan\.pointwise_count \|\| \(plan\.pointwise_count == 1 && cross_entropy\)\)", "true"),
    Pattern("plain", r"v\.dims == 1 && v\.stride\[0\] >= 0", "v.stride[0] >= 0"),
    Pattern("plain", r"is_ignored \|\| !slice\.holds\(base\)", "is_ignored"),
    Pattern("plain", r"bits < 31 \? std::min\(p\.classes, int64_t\(1\) << bits\) : p\.classes", "p.classes"),
    Pattern("plain", r" & ~uint64_t\(0\) >> \(64 - 8 \* bytes\)", ""),
    Pattern("no clear", r"\bweights = losses = 0\.0f;", ";"),
    Pattern("sums", r"adds <= kAddsPerFlush", "true"),
    # The head of many blocks, a gradient that is there already, numbers of the host.
    Pattern("phase", r"\(first \? kTotal : 0\) \| middle", "middle"),
    Pattern("phase", r"if \(!one_output\) go\(kReduce, job\.score_blocks\);", ";"),
    Pattern("phase", r"go\(kSlopes, job\.score_blocks\);", ";"),
    Pattern("phase", r"kPool \| (?=\(one_output)", ""),
    Pattern("prefilled", r"\* upstream_of<float>\(job, 0, 0\)", ""),
    Pattern("prefilled", r"\*static_cast<const float\*>\(job\.status\) \* ", ""),
    Pattern("prefilled", r"factor - factor == 0\.0f", "true"),
    Pattern("prefilled", r"if \(i \+ u \* step >= vectors\) continue;", "if (u) continue;"),
    Pattern("words", r"\bto \+ first\b", "to"),
    Pattern("words", r"from \+ first(?=, from)", "from"),
    Pattern("words", r"count - first\b", "count - first - 1"),
)

# Key: why no test can see the difference.
PADDING = "beyond the end, all weights are 0"
FEW = "fewer than threads"
WHOLE = "counts are whole vectors"
FOURS = "both end after the last four"
EQUIVALENT = {
    "device.h: first round: for (int lane = kWarp / 2; lane > 0; lane /= 2) "
    "v += __shfl_xor_sync(0xffffffffu, v, lane);": "17, 8, 4, 2 and 1 span the warp as 16, 8, 4, 2 and 1 do",
    "device.h: first round: for (int i = 0; i < kBytes / kWide; ++i) word[i] = W{};": PADDING,
    "device.h: last round: for (int i = 0; i < kBytes / kWide; ++i) word[i] = W{};": PADDING,
    "device.h: tail: if (i >= count) break;": "one sum more, which nobody takes",
    "label_map.h: last round: for (int base = 0; base < here.count; base += kGroup) {": WHOLE,
    "label_map.h: last round: for (int i = int(threadIdx.x) * kVector; i < here.count; i += kGroup) {": WHOLE,
    "label_map.h: last round: for (int t = 0; t < kThreads; t += kWarp) {": "both end after the last whole warp",
    "label_map.h: stride: for (int c = threadIdx.x; c < kClasses; c += kThreads) {": FEW,
    "label_map.h: stride: for (int c = threadIdx.x; c < kClasses; c += kThreads)": FEW,
    "label_map.h: stride: for (int c = threadIdx.x; regions && c < kClasses; c += kThreads) {": FEW,
    "label_map.h: stride: for (int s = threadIdx.x; s < 3 * kClasses; s += kThreads) of_class[s] = 0;": FEW,
    "row_source.h: tail: if (i < count) g[u][0] *= load_number<Real>(v, offset_of(v, n, c, first + i));": "the product "
    "is not stored; the address is the sanitizers' to find",
    "policy.cu: alignment: (!p.has_upstream || is_array(p.upstream, group)) && (step == Step::statistics || "
    "is_array(p.output, group)); #2": "a gradient is a fresh tensor: an array where the logits are one",
    "slice.h: last round: for (int g = 0; g < kSlots; g += kGroup) {": FOURS,
    "slice.h: last round: for (int g = 0; g < kSlots; g += kGroup) { #2": FOURS,
    "slice.h: last round: for (int g = 0; g < kSlots; g += kGroup) { #3": FOURS,
    "slice.h: last round: for (int g = 0; g < kSlots; g += kGroup) { #4": FOURS,
    "tile.h: last round: for (int t = 0; t < teams; t += 4) {": FOURS,
    "tile.h: stride: for (uint32_t base = 0, adds = 1; base < slice.pixels; base += pixels, ++adds) {": "the count's, "
    "which nobody takes",
    "tile.h: stride: for (int c = threadIdx.x; step > kRegionSums && c < classes; c += kThreads)": "of a label map the "
    "head reads no sum of negatives (row_scores.h)",
}


def sources(csrc: Path) -> list[Path]:
    """The files of csrc/cuda, and what they share with the CPU of a pixel and of chunks."""
    shared = [csrc / "chunks.h", csrc / "pixel.h"]
    return sorted([*shared, *(csrc / "cuda").glob("*.h"), *(csrc / "cuda").glob("*.cu")])


def mutations(csrc: Path) -> list[Mutation]:
    """All mutations, in the order of the files."""
    found = []
    for path in sources(csrc):
        text = path.read_text()
        lines = text.splitlines()
        seen: Counter[tuple[str, str]] = Counter()
        for pattern in PATTERNS:
            if not re.fullmatch(pattern.files, path.name):
                continue
            for match in re.finditer(pattern.before, text):
                number = text.count("\n", 0, match.start())
                line = lines[number].strip()
                what = (match[0], match.expand(pattern.after))
                nth = seen[pattern.name, line]
                found.append(Mutation(pattern, path.name, match.start(), *what, number + 1, line, nth))
                seen[pattern.name, line] += 1
    return found
