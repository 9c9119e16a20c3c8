"""Instructions per pixel of the CPU kernels. They are counted one by one, so a busy machine does not change the result.

    python tools/instructions.py

A child process runs one forward and backward of each of two sizes and is stopped at every instruction of the native
module. The cost of a pixel is the difference of the counts, divided by the difference of the pixels. Only on Linux on
x86. The count shows what makes the kernels slower: a vector that passes through memory, a scalar loop, a second
exponential.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import segfuse
from segfuse import _C
from segfuse._core import native

STEPPER = r"""
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
// Lets a stopped child run to its next stop, and counts its instructions between two addresses. A repeated string
// instruction counts once. Without addresses nothing is counted. -1: the child has ended.
long run(int pid, unsigned long from, unsigned long to) {
  long steps = 0;
  unsigned long last = 0;
  for (;;) {
    int status;
    if (ptrace(to ? PTRACE_SINGLESTEP : PTRACE_CONT, pid, 0, 0)) return -1;
    if (waitpid(pid, &status, 0) < 0 || !WIFSTOPPED(status)) return -1;
    if (WSTOPSIG(status) == SIGSTOP) return steps;
    const unsigned long at = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), 0);
    if (at != last && from <= at && at < to) ++steps;
    last = at;
  }
}
"""


@dataclass(frozen=True)
class Case:
    """A loss, and the logits and targets that it is given.

    budget: by instruction set, the most instructions per pixel of the forward and of the backward. About a tenth more
    than the code that GCC 12 makes.
    """

    loss: Callable[[], segfuse.Loss]
    classes: int
    budget: dict[str, tuple[float, float]]
    dtype: torch.dtype = torch.float32
    target: torch.dtype = torch.int64
    memory_format: torch.memory_format = torch.contiguous_format
    scheme: str = "two_pass"

    def inputs(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of ``64 * rows`` pixels, and labels."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn((1, self.classes, rows, 64), generator=generator)
        labels = torch.randint(0, max(self.classes, 2), (1, rows, 64), generator=generator)
        labels = labels.unsqueeze(1) if self.classes == 1 else labels
        leaf = logits.to(self.dtype).to(memory_format=self.memory_format)
        return leaf.requires_grad_(), labels.to(self.target)


CASES = {
    "dice_bce": Case(
        lambda: segfuse.DiceBCELoss("binary"),
        1,
        {"baseline": (39, 25), "avx2": (11.2, 7.5), "avx512": (4.3, 3.1)},
        target=torch.float32,
    ),
    "dice_bce, bfloat16 and uint8": Case(
        lambda: segfuse.DiceBCELoss("binary"),
        1,
        {"baseline": (40, 36), "avx2": (13, 12), "avx512": (5.5, 5.2)},
        torch.bfloat16,
        torch.uint8,
    ),
    "focal": Case(
        lambda: segfuse.FocalLoss("binary"),
        1,
        {"baseline": (37, 41), "avx2": (10.7, 12.9), "avx512": (4, 5.2)},
        target=torch.float32,
    ),
    "ce, 19 classes, the gradient in the forward": Case(
        segfuse.CrossEntropyLoss,
        19,
        {"baseline": (427, 0.5), "avx2": (127, 0.5), "avx512": (48, 0.5)},
        scheme="gradient_in_forward",
    ),
    "dice_bce, probabilities kept": Case(
        lambda: segfuse.DiceBCELoss("binary"),
        1,
        {"baseline": (41, 13.4), "avx2": (12.8, 4.4), "avx512": (4.8, 2)},
        target=torch.float32,
        scheme="automatic",
    ),
    "dice_ce, 4 classes": Case(segfuse.DiceCELoss, 4, {"baseline": (160, 190), "avx2": (50, 57), "avx512": (18.5, 23)}),
    "dice_ce, 4 classes, powers kept": Case(
        segfuse.DiceCELoss, 4, {"baseline": (165, 139), "avx2": (52, 43), "avx512": (19.5, 18)}, scheme="automatic"
    ),
    "dice_ce, 19 classes, powers kept": Case(
        segfuse.DiceCELoss, 19, {"baseline": (454, 335), "avx2": (135, 104), "avx512": (51, 44)}, scheme="automatic"
    ),
    "dice_ce, 19 classes": Case(
        segfuse.DiceCELoss, 19, {"baseline": (424, 536), "avx2": (126, 160), "avx512": (47, 63)}
    ),
    "dice_ce, 19 classes, channels_last": Case(
        segfuse.DiceCELoss,
        19,
        {"baseline": (482, 643), "avx2": (161, 220), "avx512": (77, 121)},
        memory_format=torch.channels_last,
    ),
}


@cache
def _stepper() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "stepper.c", Path(folder) / "stepper.so"
        source.write_text(STEPPER)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        run = ctypes.CDLL(str(library)).run
    run.argtypes, run.restype = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong], ctypes.c_long
    return run


def _code() -> tuple[int, int]:
    """The addresses of the native module's instructions, in this process and in its children."""
    (line,) = (s for s in Path("/proc/self/maps").read_text().splitlines() if " r-xp " in s and s.endswith(_C.__file__))
    first, end = line.split()[0].split("-")
    return int(first, 16), int(end, 16)


def _child(inputs: list[tuple[torch.Tensor, torch.Tensor]], loss: segfuse.Loss) -> None:
    """Calls everything once; then again, with a stop before and after each native call."""

    def marked(native: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGSTOP)
            result = native(*arguments)
            os.kill(os.getpid(), signal.SIGSTOP)
            return result

        return call

    for logits, target in inputs:
        torch.autograd.grad(loss(logits, target), logits)
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    _C.forward, _C.backward = marked(_C.forward), marked(_C.backward)
    for logits, target in inputs:
        torch.autograd.grad(loss(logits, target), logits)


def per_pixel(case: Case, instruction_set: str) -> tuple[float, float]:
    """Instructions per pixel of the forward and of the backward."""
    run, rows = _stepper(), (1, 1 + max(3, 24 // case.classes))
    inputs, threads, processors = [case.inputs(n) for n in rows], torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    # To stop a child that runs on another processor takes four times as long.
    os.sched_setaffinity(0, {ctypes.CDLL(None).sched_getcpu()})
    try:
        with native.instruction_set(instruction_set):
            pid = os.fork()
            if pid == 0:
                try:
                    with native.scheme(case.scheme):
                        _child(inputs, case.loss())
                finally:
                    os._exit(0)
        os.waitpid(pid, 0)  # at the first mark
        counts, code = [], _code()
        for _ in range(2 * len(rows)):
            counts.append(run(pid, *code))
            run(pid, 0, 0)
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, processors)
    assert min(counts) > 0, f"the child could not be traced: {counts}"
    forward, backward = counts[2] - counts[0], counts[3] - counts[1]
    return forward / (64 * (rows[1] - rows[0])), backward / (64 * (rows[1] - rows[0]))


def main() -> int:
    for name, case in CASES.items():
        for instruction_set in set(_C.instruction_sets()) & case.budget.keys():
            forward, backward = per_pixel(case, instruction_set)
            print(f"{instruction_set:9} {name:42} {forward:7.2f} {backward:7.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
