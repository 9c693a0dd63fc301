# SPDX-License-Identifier: Apache-2.0
"""What this package does on a GPU, in ten minutes and without a network: `make gpu-proof`.

    PYTHONPATH=. python benchmarks/gpu_proof.py                              # everything, results in docs/results/gpu
    PYTHONPATH=. python benchmarks/gpu_proof.py --only memory_7b             # one step
    PYTHONPATH=. python benchmarks/gpu_proof.py --device cpu --tiny --out F  # a dry run of the same steps, on a CPU

Each step is a program of this folder (or the tests) in a process of its own, with a limit of time; it writes one JSON
file. `steps.json` says how each ended, and `tables.md` is made from the files that are there. A step that fails does
not stop the others; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.peak_memory import machine


ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/functional", "tests/models", "tests/evaluation", "tests/trainer", "tests/cli/test_reward_and_ppo.py")


@dataclass
class Step:
    """One program of the proof.

    Args:
        title (`str`): of its table.
        limit (`int`): seconds after which it is stopped.
        command (`list[str]`): for a GPU, without the interpreter; `OUT` stands for the result's file.
        tiny (`list[str]`): what is added to the command, or replaces its options, for a dry run.
    """

    title: str
    limit: int
    command: list[str]
    tiny: list[str] = field(default_factory=list)


_ONE_B = ["--layers", "18", "--width", "2048"]
_PPO = ["--device", "cuda", "--bf16", "--checkpointing", *_ONE_B, "--limit", "256", "--seeds", "1", "--updates", "2"]
_TINY_PPO = ["--device", "cpu", "--vocabulary", "80", "--layers", "1", "--width", "48", "--limit", "8", "--batch", "4"]
_TINY_PPO += ["--micro-batch", "4", "--sft-steps", "2", "--updates", "2", "--threads", "1", "--work", "OUT.work"]
_TINY_BASE = "cpu --vocabulary 50 --layers 1 --width 32 --inner 64 --heads 2 --tokens 16 --prompt 8 --batch 2 --rank 4"

STEPS = {
    "commands": Step(
        "Every command, bfloat16", 100,
        ["benchmarks/gpu_commands.py", "--device", "cuda", "--out", "OUT"],
        ["--device", "cpu", "--width", "16", "--layers", "1", "--steps", "1", "--only", "reward, heads", "ppo"],
    ),
    "tests": Step(
        "Tests on the device", 160,
        [
            "-m", "pytest", "-q", "-n", "8", "-p", "no:cacheprovider", "-m", "not slow", *TESTS,
            "--ignore-glob=*distributed*", "--ignore-glob=*deepspeed*", "--junitxml=OUT.xml",
        ],
        ["tests/functional/test_head_logprobs.py", "--junitxml=OUT.xml"],
    ),
    "memory_7b": Step(
        "One base of 7 B parameters for policy and rewards", 70,
        ["benchmarks/base_memory.py", "--device", "cuda", "--out", "OUT"],
        ["--device", *_TINY_BASE.split()],
    ),
    "ppo_1b": Step(
        "PPO against TRL 1.12, about 1 B parameters", 130,
        ["benchmarks/ppo_vs_trl.py", *_PPO, "--sft-steps", "60", "--out", "OUT"],
        [*_TINY_PPO, "--seeds", "1", "--sides", "k1", "ours"],
    ),
    "k4_1b": Step(
        "Four components against one, about 1 B parameters", 70,
        ["benchmarks/ppo_vs_trl.py", *_PPO, "--sft-steps", "60", "--sides", "k1", "k4", "--out", "OUT"],
        [*_TINY_PPO, "--seeds", "1"],
    ),
    "backends_1b": Step(
        "generate against continuous batching, about 1 B parameters", 70,
        [
            "benchmarks/generation_backends.py", "--device", "cuda", "--bf16", *_ONE_B, "--batch_size", "512",
            "--pairs", "1", "--sizes", "512x512x0", "512x512x120", "--out", "OUT",
        ],
        ["--device", "cpu", "--layers", "1", "--width", "32", "--batch_size", "4", "--sizes", "4x6x0"],
    ),
}  # fmt: skip


def arguments_of(step: Step, out: Path, tiny: bool) -> list[str]:
    """The words of a step's command, its result in `out`."""
    words = list(step.command)
    if tiny:
        # A module's options are its own; a program's later options win over earlier ones.
        words = [*words[:3], *step.tiny] if words[0] == "-m" else [w for w in words if w not in _SWITCHES] + step.tiny
    return [word.replace("OUT", str(out)) for word in words]


_SWITCHES = ("--bf16", "--checkpointing")


def run_step(name: str, folder: Path, device: str, tiny: bool) -> dict:
    """Run one step; its status (124: it ran out of time) and seconds. A dry run may take as long as it likes."""
    step, out = STEPS[name], folder / f"{name}.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "TRL_MAXMIN_TEST_DEVICE": device,
    }  # fmt: skip
    start = time.perf_counter()
    with open(folder / f"{name}.log", "w") as log:
        try:
            command = [sys.executable, *arguments_of(step, out, tiny)]
            status = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=None if tiny else step.limit,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    counts = folder / f"{name}.json.xml"
    if counts.is_file():
        out.write_text(json.dumps({"machine": machine(), "device": device, **read_counts(counts)}, indent=2) + "\n")
        counts.unlink()
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "limit": step.limit}


def read_counts(path: Path) -> dict:
    """How many tests ran, failed and were skipped, and which failed, from pytest's XML."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    failed = [
        f"{case.get('classname')}::{case.get('name')}" for case in suite if len(case) and case[0].tag != "skipped"
    ]
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    return counts | {"failed": failed}


def rows_of(name: str, record: dict) -> list[tuple[str, str]]:
    """What a step's file says, as rows of a table."""
    if name == "commands":
        return [(f"`{who}`", f"{one['seconds']:.0f} s") for who, one in record["commands"].items()]
    if name == "tests":
        return [(count, str(record[count])) for count in ("tests", "failures", "errors", "skipped")]
    if name == "memory_7b":
        return [
            (f"{stage}, K = 4 against one base", f"{one['ratio']:.3f}") for stage, one in record["summary"].items()
        ]
    if name == "backends_1b":
        return [
            (f"{row['prompts']} x {row['limit']}, mean {row['mean'] or 'the limit'}", f"{row['ratio']:.2f}")
            for row in record["rows"]
        ]
    first, second = record["settings"]["sides"]
    names = ("episodes_per_second", "tokens_per_second", "peak_rollout_mib", "peak_update_mib")
    return [(f"{what}, {second} / {first}", f"{record['summary'][f'{what}_ratio']:.2f}") for what in names]


def tables(folder: Path) -> str:
    """Markdown of all results in a folder."""
    steps = json.loads((folder / "steps.json").read_text())
    parts = [f"Made by `make gpu-proof` on {steps['machine']['gpu'] or 'a CPU (dry run)'}.\n"]
    for name, step in STEPS.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        ended = steps["steps"].get(name)
        note = "" if ended is None else f" ({ended['seconds']:.0f} s, status {ended['status']})"
        rows = rows_of(name, json.loads(path.read_text()))
        lines = [f"## {step.title}{note}", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Run the steps one after another, then make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a dry run")
    parser.add_argument("--only", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "gpu")
    settings = parser.parse_args(argv)
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("No GPU is visible to torch. A dry run: --device cpu --tiny --out FOLDER.", file=sys.stderr)
        return 1
    if settings.device == "cpu" and not settings.tiny:
        print("The sizes are a GPU's: with --device cpu give --tiny.", file=sys.stderr)
        return 1
    folder = settings.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record: dict = {"machine": machine(), "device": settings.device, "tiny": settings.tiny, "steps": {}}
    for name in settings.only:
        record["steps"][name] = run_step(name, folder, settings.device, settings.tiny)
        print(name, record["steps"][name], flush=True)
        (folder / "steps.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "tables.md").write_text(tables(folder))
    return int(any(step["status"] for step in record["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
