"""Fixtures of all tests. Each test starts from its own fixed random state. Options: support/environment.py."""

import gc
import re
import zlib
from collections.abc import Iterator

import pytest
import torch
from packaging.version import Version  # pytest needs it, too

from environment import DEVICE, LAUNCHED, SEED, SHIM, THIN, cuda_engine
from programs import Programs
from segfuse._core import engines, native
from versions import NEEDS

# On small tensors, threads only cost time. test_engine.py runs the kernels on several.
torch.set_num_threads(1)
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)
if SHIM:
    engines.engines["cpu"] = cuda_engine()
    native._traced.append(cuda_engine().module)


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call of the test runs on the CUDA kernels or their sources built for the CPU. LAUNCHED counts launches."""
    if DEVICE == "cpu":
        monkeypatch.setitem(engines.engines, "cpu", cuda_engine())
        monkeypatch.setattr(native, "_traced", [cuda_engine().module])
    with native.trace() as events:
        yield
    LAUNCHED.update(event.kernel for event in events)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


# With pytest-xdist (-n) all tests of a file run in one process, because they share builds and counts. The longest files
# start first, so that no process is left with one at the end. By seconds of a core; test_shim.py makes what others use.
LONGEST = (
    "test_shim_sanitized.py",
    "test_shim.py",
    "test_gpu_runs.py",
    "test_mutations.py",
    "test_examples.py",
    "test_compile.py",
    "test_kernels.py",
    "test_recipes.py",
    "test_contributing.py",
    "test_neon.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist, config.option.loadscopereorder = "loadfile", False
    if not hasattr(torch.library, "register_vmap"):  # torch before 2.5: torch.vmap takes the operators one by one
        config.addinivalue_line("filterwarnings", "ignore:There is a performance drop:UserWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SEGFUSE_THIN draws tests by a hash: every n-th would be the same reduction. Tests of a later torch must fail."""
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
    gc.freeze()  # the garbage collector would look through thousands of tests each time


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) ^ SEED)
