"""Tests must find mistakes made in csrc/cuda: a sample of tools/mutations.py. SEGFUSE_SEED draws another sample."""

import os
import random
from pathlib import Path

import pytest

from environment import DEVICE, SHIM
from mutate import shrunk, try_all
from mutations import EQUIVALENT, PATTERNS, mutations

SAMPLE = 2

pytestmark = pytest.mark.skipif(bool(SHIM) or DEVICE != "cpu", reason="runs test_kernels.py on the shim by itself")


def test_every_pattern_still_matches(tmp_path: Path) -> None:
    found = mutations(shrunk(tmp_path))
    assert set(PATTERNS) == {mutation.pattern for mutation in found}
    keys = [mutation.key for mutation in found]
    assert len(keys) == len(set(keys))
    assert set(EQUIVALENT) <= set(keys)


def test_a_sample_is_killed(tmp_path: Path) -> None:
    meant = [mutation for mutation in mutations(shrunk(tmp_path)) if mutation.key not in EQUIVALENT]
    sample = random.Random(int(os.environ.get("SEGFUSE_SEED", "0"))).sample(meant, SAMPLE)
    verdicts = list(try_all(sample))
    assert [str(mutation) for mutation, verdict in verdicts if not verdict.killed] == []
