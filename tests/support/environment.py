"""What the environment asks of the tests, and the CUDA engine that follows from it.

SEGFUSE_SEED=n              other random inputs
SEGFUSE_THIN=n              one test of n
SEGFUSE_SHIM=module.so      the CUDA sources, run on the CPU (tools/build_shim.py), take the CPU kernels' place
SEGFUSE_TEST_DEVICE=cuda    every tensor that a test makes is made there
SEGFUSE_REQUIRE_CUDA=1      where the CUDA kernels, or a tool that checks them, are missing, a test fails
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

LAUNCHED: Counter[str] = Counter()  # kernels, by the fixture `cuda_kernels`


@lru_cache(maxsize=1)
def cuda_engine() -> engines.CudaEngine:
    """That of the GPU, or the CUDA sources compiled for the CPU."""
    if DEVICE == "cuda":
        return engines.required_engine(torch.device("cuda:0"))
    from build_shim import build  # pybind11, which it needs, may be missing on a machine with a GPU

    spec = importlib.util.spec_from_file_location("_cuda_shim", SHIM or build(ROOT / "build" / "shim"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return engines.CudaEngine(module)


def leave_out(reason: str) -> NoReturn:
    """A test of the CUDA kernels that cannot run here."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)
