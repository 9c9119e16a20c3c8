"""Builds the CUDA sources with g++ against the fiber shim, as a Python module that takes CPU tensors.

    python tools/build_shim.py FOLDER [--sanitize] [--sources csrc]

An object file is named by a hash of its flags and of all text that its source includes, not by the path of the source.
So an unchanged source is not compiled twice, and of a changed copy of csrc only the changed part is compiled.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[1]
SHIM = ROOT / "tests" / "shim"
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]
# Without sanitizers, with them. Their checks make functions so long that -O1 compiles twice as long as -Og, most of it
# for registers. The tests run no faster for it.
OPTIMIZE = "-O1", "-Og"
# tests/shim switches between the threads, which takes much of a test's time. So it is optimised and never has checks;
# beside sanitizers it tells ASan of each switch. With checks it runs in selftest.cu.
SCHEDULER = ["-O2"], ["-O2", "-DSEGFUSE_SHIM_ASAN=1"]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)
NAME = "_cuda_shim"


def text_of(source: Path) -> bytes:
    """The source and all headers of csrc and of the shim that it includes, also those of headers."""
    found, left = {}, [source.resolve()]
    while left:
        path = left.pop()
        found[path] = path.read_bytes()
        for name in INCLUDE.findall(found[path].decode()):
            near = [p.resolve() for p in (path.parent / name, SHIM / name) if p.is_file()]
            left += [p for p in near[:1] if p not in found]
    return b"\0".join(found[p] for p in sorted(found, key=lambda p: (p.name, found[p])))


def build(folder: Path, sanitize: bool = False, csrc: Path = ROOT / "csrc") -> Path:
    """The path of the module, built if it is not there. One process at a time builds in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(folder, sanitize, csrc)


def _build(folder: Path, sanitize: bool, csrc: Path) -> Path:
    cuda = sorted((csrc / "cuda").glob("*.cu"))
    sources = [*cuda, csrc / "cuda" / "binding.cpp", *sorted(SHIM.glob("*.cpp"))]
    kernel_flags = [*FLAGS, OPTIMIZE[sanitize], *(SANITIZE if sanitize else [])]
    includes = [f"-I{SHIM}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    defines = [f"-DSEGFUSE_MODULE={NAME}", '-DSEGFUSE_ARCHITECTURES="shim"']

    def compile_one(source: Path) -> Path:
        flags = [*FLAGS, *SCHEDULER[sanitize]] if source.parent == SHIM else kernel_flags
        python = includes if source.name == "binding.cpp" else []  # all the others know nothing of it
        own = text_of(source) + " ".join([*flags, *defines, *python]).encode()
        target = folder / f"{source.stem}-{hashlib.sha256(own).hexdigest()[:16]}.o"
        if not target.exists():
            command = ["g++", "-x", "c++", *flags, *includes, *defines, "-c", str(source), "-o", f"{target}.part"]
            subprocess.run(command, check=True)
            Path(f"{target}.part").rename(target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    digest = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
    module = folder / digest / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        module.parent.mkdir(exist_ok=True)
        link = ["g++", "-shared", *kernel_flags, *map(str, objects), "-o", f"{module}.part"]
        subprocess.run(link, check=True)
        Path(f"{module}.part").rename(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--sources", type=Path, default=ROOT / "csrc")
    options = parser.parse_args()
    sys.stdout.write(f"{build(options.folder, options.sanitize, options.sources)}\n")


if __name__ == "__main__":
    main()
