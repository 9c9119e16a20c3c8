"""Fills the cache of torch.compile (TORCHINDUCTOR_CACHE_DIR) with the code that the table of run.py will need.

    python bench/warm.py [--device cuda] [--cases REGEX] [--share 1/4]

A case takes ten seconds and more, nearly all on one core. So start several processes, each with a share.
"""

from __future__ import annotations

import argparse
import re
import time

import torch
from harness import Contender, under_autocast
from peers import peers_of

from cases import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases WORKLOAD/LOSS/DTYPE/TARGET that match")
    parser.add_argument("--share", default="1/1", help="1/4 is the first of four shares")
    parser.add_argument("--shrink", type=int, default=1, help="divide the spatial sizes by this, to try the program")
    options = parser.parse_args()
    number, count = map(int, options.share.split("/"))
    chosen = [case for case in table(options.device, options.shrink) if re.search(options.cases, case.name)]
    for case in chosen[number - 1 :: count]:
        begin = time.monotonic()
        *_, compiled = peers_of(case.loss, case.classes, len(case.shape) - 2, packages=False)
        sets = [case.inputs(options.device, 0)]
        assert compiled.loss is not None
        Contender("compile", under_autocast(compiled.loss, options.device, sets[0][0].dtype), sets).result()
        print(f"{case.name}: {time.monotonic() - begin:.1f} s", flush=True)
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
