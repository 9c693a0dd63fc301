# SPDX-License-Identifier: Apache-2.0
"""The E-step's bookkeeping at scale: cached scores in, responsibilities and mixing weights out.

    python benchmarks/e_step_scale.py                      # 10 million pairs, 1 million annotators, K = 8
    python benchmarks/e_step_scale.py --num_pairs 100000 --num_annotators 10000 --output e_step_scale.json

Prints seconds and the peak memory of the process, the scores themselves (320 MB at full size) included.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
from peak_memory import machine

from trl_maxmin.trainer.reward.em_state import EMState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pairs", type=int, default=10_000_000)
    parser.add_argument("--num_annotators", type=int, default=1_000_000)
    parser.add_argument("--num_components", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(arguments.num_annotators, (arguments.num_pairs,), generator=generator)
    state = EMState(index, arguments.num_annotators, arguments.num_components)
    # Filled a part at a time, as training does, so that the peak is the bookkeeping's own.
    for start in range(0, arguments.num_pairs, 1_000_000):
        rows = torch.arange(start, min(start + 1_000_000, arguments.num_pairs))
        state.record(rows, -torch.rand(len(rows), arguments.num_components, generator=generator))
    seconds, cpu_seconds = [], []
    for beta in (0.2, 1.0, 1.0):
        began, cpu_began = time.perf_counter(), time.process_time()
        result = state.e_step(beta)
        seconds.append(round(time.perf_counter() - began, 2))
        cpu_seconds.append(round(time.process_time() - cpu_began, 2))
    total = state.log_responsibilities.exp().sum().item()
    assert abs(total - arguments.num_annotators) < 1e-3 * arguments.num_annotators, "rows must sum to 1"
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report = {**settings, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": round(peak, 2), **result}
    print(json.dumps(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
