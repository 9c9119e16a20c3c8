"""Wheels for several Pythons. The kernels are compiled once, because only the bindings include Python.h.

    python bench/build_wheels.py [--build-dir FOLDER] [--out FOLDER] [--define NAME=VALUE ...] [PYTHON ...]

pip builds the wheel for the Python that runs this, without isolation. It needs scikit-build-core, pybind11 and ninja,
and nvcc for CUDA kernels of every architecture (SEGFUSE_CUDA=ON). Another PYTHON needs only its headers: the commands
of that build run again for the files that include Python.h, and the new modules replace the old ones in the wheel. A
wheel runs where glibc and libstdc++ are at least as new as here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ASK = """
import json, sys, sysconfig
tag = "cp%d%d" % sys.version_info[:2]
print(json.dumps([tag, sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")]))
"""


# Loading the modules here finds missing symbols, before the wheel is on another machine.
LOAD = """
import importlib.util, sys
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location(path.rpartition("/")[2].partition(".")[0], path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


class Interpreter(NamedTuple):
    """What a build depends on in a Python."""

    program: str
    tag: str
    suffix: str
    include: str


def interpreter(python: str) -> Interpreter:
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True)
    found = Interpreter(python, *json.loads(done.stdout))
    if not (Path(found.include) / "Python.h").exists():
        raise SystemExit(f"{python}: there is no {found.include}/Python.h")
    return found


def built(build: Path, out: Path, defines: list[str]) -> Path:
    """Builds the wheel for this Python."""
    options = [f"--config-settings=build-dir={build}", *(f"--config-settings=cmake.define.{d}" for d in defines)]
    quiet = ["--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(ROOT), *quiet, "--wheel-dir", str(out), *options], check=True
    )
    return max(out.glob(f"segfuse-*-{interpreter(sys.executable).tag}-*.whl"), key=lambda path: path.stat().st_mtime)


def relinked(build: Path, base: Interpreter, other: Interpreter) -> list[Path]:
    """Links the modules for another Python from the objects of a build."""
    ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.*ninja)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    if ninja is None:
        raise SystemExit(f"{build} was not built with ninja")
    modules = [path.name for path in build.glob(f"*{base.suffix}")]
    done = subprocess.run(
        [ninja[1], "-C", str(build), "-t", "commands", *modules], capture_output=True, text=True, check=True
    )
    made = []
    for command in done.stdout.splitlines():
        module = re.search(rf"-o (\w+){re.escape(base.suffix)}\b", command)
        if base.include not in command and module is None:
            continue  # an object that does not include Python.h
        command = command.replace(base.include, other.include).replace(base.suffix, other.suffix)
        command = re.sub(r"CMakeFiles/(_\w+\.dir/)", rf"{other.tag}/\1", command)
        for folder in re.findall(rf"-o ({other.tag}/\S+)/", command):
            (build / folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(command, shell=True, cwd=build, check=True)
        if module:
            made.append(build / (module[1] + other.suffix))
    subprocess.run([other.program, "-c", LOAD, *map(str, made)], check=True)
    return made


def repacked(wheel: Path, base: Interpreter, other: Interpreter, modules: list[Path]) -> Path:
    """A copy of the wheel with the modules and the name for another Python."""
    target = wheel.with_name(wheel.name.replace(f"-{base.tag}-{base.tag}-", f"-{other.tag}-{other.tag}-"))
    record = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as written:

        def add(name: str, content: bytes, mode: int) -> None:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode, zipfile.ZIP_DEFLATED
            written.writestr(info, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}\n")

        replaced = {f"segfuse/{path.name.replace(other.suffix, base.suffix)}": path for path in modules}
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename in replaced:
                path = replaced.pop(entry.filename)
                add(f"segfuse/{path.name}", path.read_bytes(), entry.external_attr)
            elif entry.filename.endswith(".dist-info/WHEEL"):
                text = content.replace(f"{base.tag}-{base.tag}".encode(), f"{other.tag}-{other.tag}".encode())
                add(entry.filename, text, entry.external_attr)
            elif entry.filename.endswith(".dist-info/RECORD"):
                last = entry
            else:
                add(entry.filename, content, entry.external_attr)
        if replaced:
            raise SystemExit(f"{wheel} does not hold {', '.join(replaced)}")
        written.writestr(last.filename, "".join(record) + f"{last.filename},,\n")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="*", help="other interpreters to make wheels for")
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--define", nargs="+", default=["SEGFUSE_CUDA=ON"], help="for CMake (default: SEGFUSE_CUDA=ON)")
    options = parser.parse_args()
    build = options.build_dir.resolve()
    base = interpreter(sys.executable)
    others = [interpreter(python) for python in options.python]
    wheel = built(build, options.out.resolve(), options.define)
    print(wheel)
    for other in others:
        print(repacked(wheel, base, other, relinked(build, base, other)))


if __name__ == "__main__":
    main()
