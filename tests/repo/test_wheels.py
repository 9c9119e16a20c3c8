"""bench/build_wheels.py: modules for another Python from the objects of a build, and a wheel that holds them."""

import base64
import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from environment import ROOT

SOURCE = """#include <Python.h>
int kernel(void);
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_m", 0, -1};
PyMODINIT_FUNC PyInit__m(void) { return kernel() ? PyModule_Create(&module) : 0; }
"""
PIECES = {
    "segfuse/__init__.py": "",
    "segfuse/_m{suffix}": "old",
    "s-1.dist-info/WHEEL": "Tag: {tag}-{tag}-linux_x86_64\n",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_wheels", ROOT / "bench" / "build_wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_second_wheel(script: ModuleType, tmp_path: Path) -> None:
    """A build of one object with Python in it and one without, whose commands a stand-in for ninja lists."""
    base = script.interpreter(sys.executable)
    headers = tmp_path / "headers"
    headers.symlink_to(base.include)
    other = base._replace(tag="cp399", suffix=".cpython-399.so", include=str(headers))
    (tmp_path / "m.c").write_text(SOURCE)
    (tmp_path / "kernel.c").write_text("int kernel(void) { return 1; }\n")
    (tmp_path / "CMakeFiles" / "_m.dir").mkdir(parents=True)
    commands = [
        "gcc -fPIC -c kernel.c -o kernel.o",
        f"gcc -fPIC -isystem {base.include} -c m.c -o CMakeFiles/_m.dir/m.o",
        f"gcc -shared CMakeFiles/_m.dir/m.o kernel.o -o _m{base.suffix}",
    ]
    for command in commands:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    compiled = (tmp_path / "kernel.o").stat().st_mtime_ns
    ninja = tmp_path / "ninja"
    ninja.write_text(f"#!/bin/sh\n[ \"$5\" = '_m{base.suffix}' ] && cat '{tmp_path}/commands'\n")
    ninja.chmod(0o755)
    (tmp_path / "commands").write_text("\n".join(commands) + "\n")
    (tmp_path / "CMakeCache.txt").write_text(f"CMAKE_MAKE_PROGRAM:FILEPATH={ninja}\n")
    modules = script.relinked(tmp_path, base, other)
    assert modules == [tmp_path / "_m.cpython-399.so"]
    assert (tmp_path / "cp399" / "_m.dir" / "m.o").exists()
    assert (tmp_path / "kernel.o").stat().st_mtime_ns == compiled

    wheel = tmp_path / f"s-1-{base.tag}-{base.tag}-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in (PIECES | {"s-1.dist-info/RECORD": ""}).items():
            file.writestr(name.format(suffix=base.suffix), text.format(tag=base.tag))
    with zipfile.ZipFile(script.repacked(wheel, base, other, modules)) as file:
        assert file.filename == str(tmp_path / "s-1-cp399-cp399-linux_x86_64.whl")
        held = {name: file.read(name) for name in file.namelist()}
    assert held["segfuse/_m.cpython-399.so"] == modules[0].read_bytes()
    assert held["s-1.dist-info/WHEEL"] == b"Tag: cp399-cp399-linux_x86_64\n"
    record = dict(line.split(",", 1) for line in held.pop("s-1.dist-info/RECORD").decode().splitlines())
    assert record.pop("s-1.dist-info/RECORD") == ","
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=") for name, text in held.items()
    }
    assert record == {name: f"sha256={digests[name].decode()},{len(text)}" for name, text in held.items()}
    with pytest.raises(SystemExit, match="does not hold"):
        script.repacked(wheel, base, other, [*modules, tmp_path / "_n.cpython-399.so"])


def test_a_module_that_lacks_a_symbol_is_no_module(script: ModuleType, tmp_path: Path) -> None:
    base = script.interpreter(sys.executable)
    (tmp_path / "m.c").write_text(SOURCE)
    command = f"gcc -shared -fPIC -isystem {base.include} m.c -o _m{base.suffix}"
    (tmp_path / "ninja").write_text(f"#!/bin/sh\ncat '{tmp_path}/commands'\n")
    (tmp_path / "ninja").chmod(0o755)
    (tmp_path / "commands").write_text(command + "\n")
    (tmp_path / "CMakeCache.txt").write_text(f"CMAKE_MAKE_PROGRAM:FILEPATH={tmp_path}/ninja\n")
    with pytest.raises(subprocess.CalledProcessError):
        script.relinked(tmp_path, base, base._replace(suffix=".cpython-399.so"))


def test_a_build_without_ninja_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "CMakeCache.txt").write_text("CMAKE_MAKE_PROGRAM:FILEPATH=/usr/bin/gmake\n")
    base = script.interpreter(sys.executable)
    with pytest.raises(SystemExit, match="was not built with ninja"):
        script.relinked(tmp_path, base, base)
