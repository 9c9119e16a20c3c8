"""A copy of the tree with a wheel and fake NVIDIA tools. test_gpu_runs.py runs bench/gpu.sh in it."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from environment import ROOT

# Fakes of compute-sanitizer and ncu: an unknown option is an error; else they run the program.
SANITIZER = """#!/usr/bin/env bash
while :; do
  case $1 in
    --tool) tool=$2 && shift 2 ;;
    --kernel-name | --error-exitcode | --padding) shift 2 ;;
    -*) echo "unknown option $1" && exit 64 ;;
    *) break ;;
  esac
done
case $tool in
  racecheck) sleep 600 ;;
  initcheck) echo "========= Error: no such device" && exit 1 ;;
esac
exec "$@"
"""
NCU = """#!/usr/bin/env bash
while :; do
  case $1 in
    --csv) shift ;;
    --log-file) csv=$2 && shift 2 ;;
    --metrics) metrics=$2 && shift 2 ;;
    --clock-control | --cache-control | --profile-from-start | --target-processes | --print-units) shift 2 ;;
    --kernel-name-base | --kernel-name | --print-kernel-base) shift 2 ;;
    -*) echo "unknown option $1" && exit 64 ;;
    *) break ;;
  esac
done
echo "==PROF== Connected" >"$csv"
echo '"ID","Kernel Name","Metric Name","Metric Value"' >>"$csv"
[ -z "${NCU_HANGS:-}" ] || sleep 600
kernel="void segfuse::<unnamed>::kernel<segfuse::<unnamed>::LabelMap<float, (int)19>, (segfuse::Step)3>(segfuse::Job)"
for metric in ${metrics//,/ }; do echo "\\"0\\",\\"$kernel\\",\\"$metric\\",\\"17\\"" >>"$csv"; done
exec "$@"
"""
# Tests of the first run: one passes and writes a file as torch.compile would, one fails, one hangs.
TROUBLE = """
import os, pathlib, time

def test_right():
    cache = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    cache.mkdir(exist_ok=True)
    (cache / "made").touch()

def test_wrong():
    assert "MENDED" in os.environ

def test_hangs():
    time.sleep(0 if "MENDED" in os.environ else 600)
"""
# The functions of the CUDA driver that bench/replay.py calls, on the host. Addresses above 2^32 show a wrong prototype.
DRIVER = """
#include <cstdint>
#include <cstdlib>
#include <cstring>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int) { return *device = 7, 0; }
int cuDeviceGetName(char* name, int size, int device) { return device == 7 && size > 4 ? strcpy(name, "fake"), 0 : 1; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &device + (1l << 40), device != 7; }
int cuCtxSetCurrent(void* context) { return reinterpret_cast<uintptr_t>(context) < (1l << 40); }
int cuCtxSynchronize() { return 0; }
int cuGetErrorString(int, const char** text) { return *text = "an error", 0; }
int cuMemAlloc_v2(uint64_t* address, size_t size) {
  return *address = reinterpret_cast<uint64_t>(aligned_alloc(256, (size + 255) / 256 * 256)), size == 0;
}
int cuMemFree_v2(uint64_t address) { return free(reinterpret_cast<void*>(address)), 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t n) { return memcpy(reinterpret_cast<void*>(to), from, n), 0; }
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t n) { return memcpy(to, reinterpret_cast<void*>(from), n), 0; }
}
"""
# Appended to bench/harness.py: the process dies in its fourth comparison.
DEATH = """
if "DIES" in os.environ:
    _measure, _times = measure, iter(range(3))

    def measure(*arguments, **options):
        if next(_times, None) is None:
            os.kill(os.getpid(), 9)
        return _measure(*arguments, **options)
"""


@cache
def other_python() -> tuple[str, Path] | None:
    """Python 3.12 and a wheel for it, if that Python has torch and dist/ has the wheel."""
    found = shutil.which("python3.12")
    wheels = sorted((ROOT / "dist").glob("segfuse-*-cp312-*.whl"))
    if found is None or not wheels:
        return None
    done = subprocess.run([found, "-c", "import numpy, pybind11, pytest, torch"], capture_output=True)
    return (found, wheels[-1]) if done.returncode == 0 else None


def packed(folder: Path) -> Path:
    """The installed package as a wheel."""
    installed = importlib.metadata.distribution("segfuse")
    tag = next(line[5:] for line in (installed.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: "))
    target = folder / f"segfuse-{installed.version}-{tag}.whl"
    with zipfile.ZipFile(target, "w") as file:
        for path in installed.files or ():
            if path.suffix != ".pyc":
                file.write(str(installed.locate_file(path)), str(path))
    return target


class Run(NamedTuple):
    """The results of a run of bench/gpu.sh."""

    status: int
    printed: str
    out: Path
    work: Path

    def steps(self) -> dict[str, str]:
        """The verdict on each part, from steps.md."""
        rows = [line.split(" | ") for line in (self.out / "steps.md").read_text().splitlines()[2:]]
        return {row[0].removeprefix("| "): row[1] for row in rows}

    def results(self) -> dict:
        return json.loads((self.out / "cpu.json").read_text())


class Rehearsal:
    """Makes the copy, the fake tools and the wheel, and runs bench/gpu.sh there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree, self.tools = folder, folder / "tree", folder / "tools"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
        if tracked.returncode:
            pytest.skip("not a git checkout: what travels to another machine is what git tracks")
        for name in filter(None, tracked.stdout.split("\0")):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.tree / name)
        other = other_python()
        self.python, self.wheel = other or (sys.executable, packed(folder))
        build = [self.python, str(ROOT / "tools" / "build_shim.py"), str(ROOT / "build" / "shim")]
        self.shim = subprocess.run(build, capture_output=True, text=True, check=True).stdout.strip()
        self.size = sum(path.stat().st_size for path in [*self.tree.rglob("*"), self.wheel] if path.is_file())
        self.tools.mkdir()
        for name, text in (("compute-sanitizer", SANITIZER), ("ncu", NCU)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        (self.tree / "trouble").mkdir()
        (self.tree / "trouble" / "test_trouble.py").write_text(TROUBLE)
        with (self.tree / "bench" / "harness.py").open("a") as file:
            file.write(DEATH)
        began = time.monotonic()
        subprocess.run([self.python, "-m", "pytest", "-n", "3", "--co", "trouble"], cwd=self.tree, capture_output=True)
        self.pace = time.monotonic() - began  # seconds: how fast this machine is now

    def start(self, name: str, mode: str, **environment: str) -> subprocess.Popen:
        small = {
            "CASE_ARGS": "--shrink 128 --threads 1",
            "WARM_ARGS": "--shrink 128",
            "WARM_PROCESSES": "1",
            "EXPERIMENT_ARGS": "--only window|scaled_loss",
            "TORCHDYNAMO_DISABLE": "1",  # compiles nothing, else all the same
        }
        places = {"PYTHON": self.python, "WHEEL": self.wheel, "SEGFUSE_SHIM": self.shim, "DEVICE": "cpu"}
        places |= {"OUT": self.folder / name, "WORK": self.folder / f"{name}-work"}
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **small,
            **{k: str(v) for k, v in places.items()},
            **environment,
        }
        command = ["bash", "bench/gpu.sh", mode]
        return subprocess.Popen(command, cwd=self.tree, env=variables, text=True, stdout=-1, stderr=-2)

    def end(self, name: str, process: subprocess.Popen) -> Run:
        printed, _ = process.communicate(timeout=1600)
        return Run(process.returncode, printed, self.folder / name, self.folder / f"{name}-work")

    def run(self, name: str, mode: str, **environment: str) -> Run:
        return self.end(name, self.start(name, mode, **environment))

    def first(self) -> Run:
        """One sanitizer hangs, one test fails and one hangs, the headlines die in the middle."""
        path = f"{self.tools}:{os.environ['PATH']}"
        limits = {"LIMIT_RACECHECK": "8", "LIMIT_TESTS": str(round(10 + 5 * self.pace))}
        return self.run("first", "first", PATH=path, TESTS="trouble/test_trouble.py", DIES="1", **limits)

    def both(self) -> tuple[Run, Run]:
        first = self.first()
        tests = {"TESTS": "trouble/test_trouble.py", "TEST_ARGS": "-n 0", "MENDED": "1"}
        return first, self.run("second", "second", PREVIOUS=str(first.out), ENGINE_ARGS="--stride 20", **tests)

    def others(self) -> tuple[Run, Run]:
        """bare: no wheel fits. ended: some real tests, then a signal ends the run."""
        bare = self.run("bare", "first", WHEEL=str(self.folder / "no.whl"))
        some = {"TESTS": "tests/cuda/test_kernels.py", "TEST_ARGS": "-n 0 -k test_ties_and_extremes", "NCU_HANGS": "1"}
        path = f"{self.tools}:{os.environ['PATH']}"
        process = self.start("ended", "first", PARTS="tests ncu", PATH=path, **some)
        while process.poll() is None and not (self.folder / "ended-work" / "ncu.csv").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        return bare, self.end("ended", process)
