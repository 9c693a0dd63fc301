# SPDX-License-Identifier: Apache-2.0
"""The experiments on IMDb as a grid: minority shares x policies x seeds, one small file a cell.

python examples/imdb/run_grid.py --config examples/recipes/imdb/small.yaml --output_dir imdb-small
python examples/imdb/report_grid.py --cells imdb-small/cells

Interrupted, the same command goes on with the cells that are missing. Every seed is a process of one thread;
`--processes` of them run at a time. See README.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from imdb_grid import SeedRun, cell_path, make_reference, read_cell
from imdb_options import GridArguments
from rich.console import Console
from train_imdb import be_quiet
from trl import TrlParser


def work(arguments: GridArguments, console: Console) -> None:
    """One seed, in this process."""
    (arguments.seed,) = arguments.seeds
    SeedRun(arguments, console).run()


def start_workers(argv: Sequence[str], seeds: Sequence[int], processes: int) -> int:
    """A process for every seed, so many at a time; the number of those that failed."""
    waiting, running, failed = list(seeds), {}, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                seed = waiting.pop(0)
                command = [sys.executable, __file__, *argv, "--seeds", str(seed), "--processes", "1"]
                running[seed] = subprocess.Popen(command, env={**environment, "IMDB_GRID_WORKER": "1"})
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                failed += running.pop(seed).returncode != 0
            time.sleep(0.2)
    finally:
        # Interrupted: no worker goes on by itself.
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options (TRL's parser: `--config FILE.yaml` works too) and run."""
    argv = list(sys.argv[1:] if argv is None else argv)
    be_quiet()
    (arguments,) = TrlParser((GridArguments,)).parse_args_and_config(argv)
    try:
        if os.environ.get("IMDB_GRID_WORKER"):
            work(arguments, Console(width=120))
            return
        folder, start = Path(arguments.output_dir), time.perf_counter()
        paths = [
            cell_path(folder, arguments.trainer, share, policy, seed)
            for seed in arguments.seeds
            for share in arguments.shares
            for policy in arguments.policies
        ]
        missing = [path for path in paths if read_cell(path, arguments.settings()) is None]
        print(f"{len(paths)} cells, {len(paths) - len(missing)} of them are there.", flush=True)
        if not missing:
            return
        make_reference(arguments, Console(width=120))
        failed = start_workers(argv, arguments.seeds, arguments.processes)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"run_grid.py: {error}")
    except KeyboardInterrupt:
        if not os.environ.get("IMDB_GRID_WORKER"):
            print("\nrun_grid.py: interrupted; finished cells are kept, the same command goes on.", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(f"run_grid.py: {failed} of {len(arguments.seeds)} seeds failed, see above; the same command goes on.")


if __name__ == "__main__":
    main()
