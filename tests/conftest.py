"""Shared fixtures: every test starts from the same random state.

SEGFUSE_SEED=n              other random inputs
SEGFUSE_THIN=n              one test of n
SEGFUSE_SHIM=module.so      the CUDA sources, run on the CPU (tests/shim/build.py), take the CPU kernels' place
SEGFUSE_TEST_DEVICE=cuda    every tensor that a test makes is made there
SEGFUSE_REQUIRE_CUDA=1      where the CUDA kernels, or a tool that checks them, are missing, a test fails
"""

import gc
import importlib.util
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from packaging.version import Version  # pytest needs it, too

from segfuse import _kernels, _native
from versions import NEEDS

ROOT = Path(__file__).parents[1]
DEVICE = os.environ.get("SEGFUSE_TEST_DEVICE", "cpu")
SHIM = os.environ.get("SEGFUSE_SHIM")
SEED = int(os.environ.get("SEGFUSE_SEED", "0"))
THIN = int(os.environ.get("SEGFUSE_THIN", "1"))
REQUIRED = os.environ.get("SEGFUSE_REQUIRE_CUDA") == "1"

# On small tensors the oracle spends its time waking threads; test_engine.py runs the kernels on several.
torch.set_num_threads(1)
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)


@lru_cache(maxsize=1)
def cuda_engine() -> _kernels.CudaEngine:
    """That of the GPU, or the CUDA sources compiled for the CPU."""
    if DEVICE == "cuda":
        return _kernels.required_engine(torch.device("cuda:0"))
    sys.path.insert(0, str(ROOT / "tests" / "shim"))
    from build import build

    spec = importlib.util.spec_from_file_location("_cuda_shim", SHIM or build(ROOT / "build" / "shim"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return _kernels.CudaEngine(module)


LAUNCHED: Counter[str] = Counter()


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CUDA kernels, or their sources, run every call of the test; LAUNCHED counts them."""
    if DEVICE == "cpu":
        monkeypatch.setitem(_kernels.engines, "cpu", cuda_engine())
        monkeypatch.setattr(_native, "_traced", [cuda_engine().module])
    with _native.trace() as events:
        yield
    LAUNCHED.update(event.kernel for event in events)


def leave_out(reason: str) -> NoReturn:
    """A test of the CUDA kernels that cannot run here."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


if SHIM:
    _kernels.engines["cpu"] = cuda_engine()
    _native._traced.append(cuda_engine().module)


# With pytest-xdist (-n) a file stays together, for its tests share builds and counts; the longest start first.
LONGEST = ("test_shim.py", "test_shim_sanitized.py", "test_mutations.py", "test_cuda.py", "test_gpu_runs.py")


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist, config.option.loadscopereorder = "loadfile", False
    if not hasattr(torch.library, "register_vmap"):  # torch before 2.5: torch.vmap takes the operators one by one
        config.addinivalue_line("filterwarnings", "ignore:There is a performance drop:UserWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests are drawn, since every n-th would be the same reduction each time; what torch lacks must fail."""
    for item in items:
        for pattern, (oldest, reason) in NEEDS.items():
            if re.search(pattern, item.nodeid) and Version(torch.__version__) < Version(oldest):
                item.add_marker(pytest.mark.xfail(reason=f"needs torch >= {oldest}: {reason}"))
    chance = {item: zlib.crc32(f"{SEED} {item.nodeid}".encode()) % THIN for item in items}
    config.hook.pytest_deselected(items=[item for item in items if chance[item]])
    items[:] = [item for item in items if not chance[item]]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests, which the collector need not look through again and again


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) ^ SEED)
