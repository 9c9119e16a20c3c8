"""The case table on the CUDA sources under sanitizers. Not in test_shim.py, so that both files run at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from build_shim import build
from environment import DEVICE, ROOT, SEED, SHIM
from mutate import FILES, shrunk
from shim_runs import HOSTILE, MORE, PLACES, VALUES, run, run_tests

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="runs the other tests on the shim by itself")


def test_the_case_table_under_sanitizers(tmp_path: Path) -> None:
    """AddressSanitizer and UBSan abort at their first report. Chunks are small here, so all loops have several rounds.

    A share of the table, to save time. SEGFUSE_SEED draws another share.
    """
    module = build(ROOT / "build" / "shim", sanitize=True, csrc=shrunk(tmp_path))
    assert b"__asan_report_load4" in module.read_bytes()
    libraries = [f"lib{name}.so" for name in ("asan", "ubsan", "stdc++")]  # Python is not linked to them
    environment = {
        "SEGFUSE_SHIM": str(module),
        "SEGFUSE_SEED": str(SEED + 1),
        "LD_PRELOAD": " ".join(run(["g++", f"-print-file-name={name}"]).strip() for name in libraries),
        "ASAN_OPTIONS": "detect_leaks=0:intercept_tls_get_addr=0",  # the latter is slow
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    with ThreadPoolExecutor(2) as pool:
        own = pool.submit(run_tests, FILES, SEGFUSE_THIN="12", **environment)
        rest = pool.submit(run_tests, (*VALUES, *PLACES, *MORE, *HOSTILE), SEGFUSE_THIN="32", **environment)
        own.result(), rest.result()
