"""Environment variables of the tests, and the CUDA engine that they choose.

SEGFUSE_SEED=n              other random inputs
SEGFUSE_THIN=n              one test in n
SEGFUSE_SHIM=module.so      the CUDA sources, built for the CPU (tools/build_shim.py), replace the CPU kernels
SEGFUSE_TEST_DEVICE=cuda    the device on which tests make their tensors
SEGFUSE_REQUIRE_CUDA=1      a test fails, and is not skipped, if the CUDA kernels or a tool for them are missing
"""

import importlib.util
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from segfuse._core import engines

ROOT = Path(__file__).parents[2]
DEVICE = os.environ.get("SEGFUSE_TEST_DEVICE", "cpu")
SHIM = os.environ.get("SEGFUSE_SHIM")
SEED = int(os.environ.get("SEGFUSE_SEED", "0"))
THIN = int(os.environ.get("SEGFUSE_THIN", "1"))
REQUIRED = os.environ.get("SEGFUSE_REQUIRE_CUDA") == "1"

LAUNCHED: Counter[str] = Counter()  # launches of each kernel, counted by the fixture `cuda_kernels`


@lru_cache(maxsize=1)
def cuda_engine() -> engines.CudaEngine:
    """The kernels of the GPU, or the CUDA sources built for the CPU."""
    if DEVICE == "cuda":
        return engines.required_engine(torch.device("cuda:0"))
    from build_shim import build  # needs pybind11, which a machine with a GPU may not have

    spec = importlib.util.spec_from_file_location("_cuda_shim", SHIM or build(ROOT / "build" / "shim"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return engines.CudaEngine(module)


def leave_out(reason: str) -> NoReturn:
    """Skips a test of the CUDA kernels; fails with SEGFUSE_REQUIRE_CUDA=1."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)
