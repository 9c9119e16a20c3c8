"""Which architectures each CUDA toolkit compiles for, and that the sources compile for the oldest one.

Every CUDA source is compiled for compute capability 7.0 by clang, against the headers and with the assembler of the
packages that requirements-dev.txt pins. It does not optimise, and assembles every function by itself (ptxas -c): that
takes 30 s of a core, not 160. It does not show errors that only nvcc finds, registers, or spills.
"""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import which

import pytest

from environment import ROOT, leave_out

SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
COMPILER = "clang++-19"
PACKAGES = {"nvidia-cuda-nvcc-cu12": "cuda_nvcc", "nvidia-cuda-runtime-cu12": "cuda_runtime"}

# clang includes a header of this name after its other CUDA headers. The real one is in a package of 70 MB, and clang
# needs nothing from it. This one declares what every nvcc has and clang 19 lacks.
LAST_HEADER = """
#undef __grid_constant__
#define __grid_constant__
template <class T>
__device__ inline T __ldcg(const T* address) { return *address; }
template <class T>
__device__ inline void __stcs(T* address, T value) { *address = value; }
"""

# An instruction and a function of compute capability 8.0, a device attribute of CUDA 13; and the error for each.
NEWER = {
    'asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(*y) : "f"(x));': "'cvt.bf16.f32' requires .target sm_80 or higher",
    "*y = __reduce_add_sync(~0u, int(x));": "undeclared identifier '__reduce_add_sync'",
    "*y = cudaDevAttrHostMemoryPoolsSupported;": "undeclared identifier 'cudaDevAttrHostMemoryPoolsSupported'",
}

# Toolkit: architectures, and nvcc's options for them.
FROM_70 = ["-gencode=arch=compute_70,code=[sm_70,sm_75]", "-Wno-deprecated-gpu-targets"]
FROM_75 = ["-gencode=arch=compute_75,code=sm_75"]
TO_90 = ["-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]"]
TO_120 = ["-gencode=arch=compute_80,code=[sm_80,sm_90,sm_100,sm_120,compute_80]"]
TOOLKITS = {
    "12.4.99": ("70,75,80,90,80-virtual", FROM_70 + TO_90),
    "12.6.85": ("70,75,80,90,80-virtual", FROM_70 + TO_90),
    "12.8.61": ("70,75,80,90,100,120,80-virtual", FROM_70 + TO_120),
    "12.9.86": ("70,75,80,90,100,120,80-virtual", FROM_70 + TO_120),
    "13.0.48": ("75,80,90,100,120,80-virtual", FROM_75 + TO_120),
    "13.1.80": ("75,80,90,100,120,80-virtual", FROM_75 + TO_120),
}


def chosen(toolkit: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Prints what Architectures.cmake chooses for a toolkit: the architectures, then one option a line."""
    if which("cmake") is None:
        leave_out("no cmake on PATH")
    script = folder / "choose.cmake"
    script.write_text(
        f'cmake_minimum_required(VERSION 3.24)\ninclude("{ROOT}/cmake/Architectures.cmake")\n'
        f"segfuse_architectures({toolkit})\n"
        'list(JOIN generations "\\n" lines)\nmessage("${architectures}\\n${lines}")\n'
    )
    return subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True)


def test_the_architectures_of_each_toolkit(tmp_path: Path) -> None:
    for toolkit, (architectures, options) in TOOLKITS.items():
        done = chosen(toolkit, tmp_path)
        assert (done.returncode, done.stderr.splitlines()) == (0, [architectures, *options]), toolkit


def test_a_toolkit_that_is_too_old_is_an_error(tmp_path: Path) -> None:
    for toolkit in ("11.8.89", "12.3.107"):
        done = chosen(toolkit, tmp_path)
        assert done.returncode == 1
        assert f"CUDA {toolkit}, 12.4 or newer is wanted" in " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as clang wants it, of links into the packages."""
    if which(COMPILER) is None:
        pytest.skip(f"no {COMPILER}: apt-get install clang-19")
    folder = tmp_path_factory.mktemp("toolkit")
    (folder / "include").mkdir()
    for package, name in PACKAGES.items():
        try:
            place = Path(distribution(package).locate_file(f"nvidia/{name}"))
        except PackageNotFoundError:
            leave_out(f"no {package}: pip install -r requirements-dev.txt")
        for header in (*place.glob("include/*.h*"), *place.glob("include/crt")):
            (folder / "include" / header.name).symlink_to(header)
        if name == "cuda_nvcc":
            (folder / "bin").symlink_to(place / "bin")
            (folder / "nvvm").symlink_to(place / "nvvm")
    (folder / "include" / "curand_mtgp32_kernel.h").write_text(LAST_HEADER)
    return folder


def compiled(source: Path, toolkit: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [COMPILER, "-x", "cuda", f"--cuda-path={toolkit}", "--cuda-device-only", "--cuda-gpu-arch=sm_70"]
    command += ["-std=c++17", "-O0", "-Xcuda-ptxas", "-c", "-Werror", "-Wno-unknown-cuda-version"]
    command += ["-fno-crash-diagnostics", "-c", str(source), "-o", str(folder / "code.cubin")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_compiles_for_compute_capability_7_0(source: Path, toolkit: Path, tmp_path: Path) -> None:
    done = compiled(source, toolkit, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code.cubin").read_bytes()[18:20] == bytes([190, 0])  # an ELF file's machine: EM_CUDA


def test_what_is_newer_does_not_compile(toolkit: Path, tmp_path: Path) -> None:
    source = tmp_path / "newer.cu"
    for code, message in NEWER.items():
        kernel = f"__global__ void newer(unsigned short* y, float x) {{ {code} }}"
        source.write_text(f"#include <cuda_runtime.h>\n{kernel}\n")
        done = compiled(source, toolkit, tmp_path)
        assert done.returncode != 0, code
        assert message in done.stderr
