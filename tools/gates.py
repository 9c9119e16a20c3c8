"""The CUDA kernels as they were compiled: registers, stack, 16-byte accesses, instructions per pixel.

    python tools/gates.py [--module _cuda.so] [--arch sm_90]    a report
    python tools/gates.py --write                               gates.json anew, from a module with every architecture

cuobjdump and nvdisasm are on PATH or come from PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sass
from turns import STREAMING, Code, measure

TABLE = Path(__file__).with_name("gates.json")
KERNELS_H = Path(__file__).parents[1] / "csrc" / "cuda" / "kernels.h"
MEASURED = "sm_90"
SLACK = 1.05  # what a build may cost more than the table

# Kernels that must not spill, beside those of STREAMING.
OTHERS = re.compile(r"(Tile<\w+, \d+, \w+, \w+>|HeadKernel<\w+>|AddChunks|Rescale<\w+>) \w+")


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    local: int


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
    """Those that the module has machine code for (form 'elf'), or PTX ('ptx')."""
    return set(re.findall(r"\.(sm_\w+)\.", run(tool("cuobjdump"), f"-l{form}", module)))


def kernel_names(mangled: list[str]) -> dict[str, str]:
    """By mangled name, the name that the table uses: 'LabelMap<float, 19> gradient'. Other functions are left out."""
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
    """What was counted, by kernel, of those that are hot."""
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


def table() -> dict[str, dict]:
    return json.loads(TABLE.read_text())


def write(used: dict[str, dict[str, Usage]], codes: dict[str, Code]) -> None:
    """Registers are rounded up to a multiple of 8, as a GPU allocates them."""
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
