"""Losses over ranks, by torch.distributed (gloo) in processes of their own; the bodies stand in ranks.py."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import segfuse
from environment import DEVICE, ROOT, SHIM

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
    pytest.mark.skipif(DEVICE != "cpu" or SHIM is not None, reason="processes on the CPU"),
]


def run(folder: Path, world: int, body: str, *arguments: object) -> None:
    """All ranks; if one fails, the others are not waited for."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "ranks.py"), body]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(world):
        with (folder / f"said{rank}").open("w") as said:
            arguments_of = [*command, str(rank), str(world), str(folder), *map(repr, arguments)]
            processes.append(subprocess.Popen(arguments_of, stdout=said, stderr=said, env=environment))
    try:
        deadline = time.monotonic() + 240
        while any(p.poll() is None for p in processes):
            if time.monotonic() > deadline:
                pytest.fail("no end in 240 seconds")
            if any(p.returncode for p in processes):
                break
            time.sleep(0.05)
        codes = [p.poll() for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    failed = [*sorted(folder.glob("failed*")), *sorted(folder.glob("said*"))]
    if any(codes):
        pytest.fail("\n".join(path.read_text() for path in failed), pytrace=False)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_batches_over_ranks(tmp_path: Path, world: int) -> None:
    """Of unequal sizes, one of them empty."""
    run(tmp_path, world, "equal_to_one_process", "batch", [2, 0, 3, 1])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_volume_over_ranks(tmp_path: Path, world: int) -> None:
    run(tmp_path, world, "equal_to_one_process", "space", [])


@pytest.mark.parametrize(
    "body",
    [
        "nothing_valid_anywhere",
        "one_rank_is_none",
        "reductions_without_a_whole",
        "samples_on_one_rank_alone",
        "ddp_training",
        "dtensors",
        "compiled",
        "streamed_metrics",
        "tiles_over_ranks",
    ],
)
def test_two_ranks(tmp_path: Path, body: str) -> None:
    run(tmp_path, 2, body)


def test_three_ranks_of_dtensors(tmp_path: Path) -> None:
    run(tmp_path, 3, "dtensors")


def test_mistakes() -> None:
    with pytest.raises(TypeError, match="process_group must be a process group"):
        segfuse.DiceLoss("binary", process_group=3)
    with pytest.raises(ValueError, match=r"shard must be one of 'batch', 'space'; got 'depth'"):
        segfuse.DiceLoss("binary", shard="depth")
    with pytest.raises(ValueError, match="shard='space' and CrossEntropyLoss was given shard='batch'"):
        segfuse.DiceLoss("multiclass", shard="space") + segfuse.CrossEntropyLoss(shard="batch")
    loss = segfuse.DiceLoss("binary", process_group="0")
    x, t = torch.zeros(1, 4, requires_grad=True), torch.ones(1, 4)
    with pytest.raises(RuntimeError, match=r"process_group '0': torch\.distributed is not initialized"):
        loss(x, t)
    assert pickle.loads(pickle.dumps(loss)).data == {"process_group": "0"}


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own
def test_only_the_first_derivative(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        loss = segfuse.DiceLoss("binary", process_group=torch.distributed.group.WORLD)
        x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
        value = loss(x, torch.ones(2, 7))
        with pytest.raises(NotImplementedError, match="only the first derivative"):
            torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(NotImplementedError, match="only the first derivative"):
            torch.func.jvp(lambda x: loss(x, torch.ones(2, 7)), (x,), (x,))
    finally:
        torch.distributed.destroy_process_group()
