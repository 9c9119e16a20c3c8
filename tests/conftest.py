"""Shared fixtures: every test starts from the same random state.

    SEGFUSE_SEED=n              other random inputs
    SEGFUSE_SHIM=module.so      the CUDA sources, run on the CPU (tests/shim/build.py), take the CPU kernels' place
    SEGFUSE_TEST_DEVICE=cuda    every tensor that a test makes is made there
"""

import importlib.util
import os
import zlib

import pytest
import torch

from segfuse import _kernels, _native

# On small tensors the oracle spends its time waking threads; test_engine.py runs the kernels on several.
torch.set_num_threads(1)

if path := os.environ.get("SEGFUSE_SHIM"):
    spec = importlib.util.spec_from_file_location("_cuda_shim", path)
    shim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shim)
    _kernels.engines["cpu"] = _kernels.CudaEngine(shim)
    _native._traced.append(shim)
if device := os.environ.get("SEGFUSE_TEST_DEVICE"):
    torch.set_default_device(device)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) ^ int(os.environ.get("SEGFUSE_SEED", "0")))
