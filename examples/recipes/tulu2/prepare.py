# SPDX-License-Identifier: Apache-2.0
r"""Comparisons by criterion -> preferences of annotators with hidden groups, and prompts.

python examples/recipes/tulu2/prepare.py --comparisons P1A.jsonl P1B.jsonl --ratio 10:1 \
    --output_dir tulu2-p1

Each file holds the comparisons of one group, the majority's first: rows with `prompt`, `chosen` and `rejected`,
such as those that Personalized Soups (arXiv 2310.11564) publishes, or that a judge made by that criterion. Annotators
are dealt pairs of their own group's file. Everybody compares the same number of pairs, so that the single reward and
the mixture see the same data at the same ratio. The Tulu prompt format is put around every prompt.

Writes `preferences.jsonl` (`prompt`, `chosen`, `rejected`, `annotator_id`, and `group` for evaluation only: the
trainer does not read it unless told to) and `prompts.jsonl`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np


TULU = "<|user|>\n{prompt}\n<|assistant|>\n"


def read(path: Path) -> list[dict]:
    """Rows of a JSON list or of JSON lines, with the columns that are needed."""
    text = path.read_text(encoding="utf-8")
    # Not splitlines(): replies may hold other line separators than a newline.
    lines = [line for line in text.split("\n") if line.strip()]
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    missing = {"prompt", "chosen", "rejected"} - set(rows[0] if rows else {})
    if missing:
        raise ValueError(f"{path} needs rows with prompt, chosen and rejected; missing: {', '.join(sorted(missing))}.")
    return rows


def annotators_of(ratio: str, count: int) -> tuple[int, int]:
    """How many annotators each group has: `10:1` and 44 are 40 and 4."""
    try:
        first, second = (int(part) for part in ratio.split(":"))
    except ValueError:
        raise ValueError(f"--ratio must read MAJORITY:MINORITY, such as 10:1, got {ratio!r}.") from None
    if min(first, second) < 1 or count % (first + second):
        raise ValueError(f"--annotators must be a multiple of {first + second} for --ratio {ratio}, got {count}.")
    return count * first // (first + second), count * second // (first + second)


def deal(
    groups: dict[str, list[dict]], sizes: tuple[int, int], pairs: int, rng: np.random.Generator
) -> Iterator[dict]:
    """Each annotator's pairs, without repetition within a person."""
    number = 0
    for (name, rows), size in zip(groups.items(), sizes, strict=True):
        if len(rows) < pairs:
            raise ValueError(f"{name} has {len(rows)} comparisons, fewer than --pairs {pairs} of one annotator.")
        for _ in range(size):
            for row in rng.choice(len(rows), size=pairs, replace=False):
                taken = rows[row]
                yield {
                    "prompt": TULU.format(prompt=taken["prompt"]),
                    "chosen": taken["chosen"],
                    "rejected": taken["rejected"],
                    "annotator_id": f"annotator_{number:03d}",
                    "group": name,
                }
            number += 1


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=Path, nargs=2, required=True, help="Files of majority and minority.")
    parser.add_argument("--ratio", default="10:1", help="Annotators of the majority to those of the minority.")
    parser.add_argument("--annotators", type=int, default=44, help="A multiple of the ratio's sum.")
    parser.add_argument("--pairs", type=int, default=75, help="Comparisons a person.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        groups = {path.stem: read(path) for path in arguments.comparisons}
        if len(groups) < 2:
            raise ValueError("The two files of --comparisons need different names: they name the groups.")
        sizes = annotators_of(arguments.ratio, arguments.annotators)
        rng = np.random.default_rng(arguments.seed)
        rows = list(deal(groups, sizes, arguments.pairs, rng))
    except ValueError as error:
        sys.exit(f"prepare.py: {error}")
    order = rng.permutation(len(rows))
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("preferences", [rows[i] for i in order]),
        ("prompts", [{"prompt": prompt} for prompt in prompts]),
    ):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (arguments.output_dir / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(rows)} pairs of {sum(sizes)} annotators ({sizes[0]}:{sizes[1]}), {len(prompts)} prompts.")


if __name__ == "__main__":
    main()
