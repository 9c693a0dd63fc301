# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin diagnose`: do these preferences need more than one reward?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from trl import ScriptArguments

from ..evaluation.diagnosis import diagnose
from ..evaluation.plots import plot_diagnosis
from ..models.configuration_mixture_reward import POOLINGS
from ..run_record import RUN_RECORD_NAME, RunRecord
from ..trainer.common.recording import recorded
from .io import read_dataset
from .loading import require_model
from .output_folder import require_writable
from .parser import QUIET_VARIABLE, CommandParser


@dataclass
class DiagnoseArguments(ScriptArguments):
    """Options of `trl-maxmin diagnose`.

    Args:
        output_dir (`str`): folder for `diagnosis.json`, `diagnosis.md` and `diagnosis.png`, and of the run record that
            takes the result; give the folder of a run to add it to that run's record.
        annotator_column (`str`): the column that names the annotator.
        group_column (`str`): groups that are known.
        max_groups (`int`): largest number of groups that is tried.
        model_name_or_path (`str`): frozen model whose last state the rewards are linear in.
        heldout_fraction (`float`): share of each annotator's pairs that only measures.
        beta (`float`): KL coefficient of the alignment gaps.
        pooling (`str`): what rewards read of the model's states, as in `trl-maxmin reward`.
        batch_size (`int`): sequences of a forward of the model.
        seed (`int`): of splits, restarts and resamples.
    """

    output_dir: str = field(
        default="diagnosis",
        metadata={
            "help": "Folder for diagnosis.json, diagnosis.md and diagnosis.png. Where it is the folder of a run, its "
            "run_record.json takes the result, for cards and Space."
        },
    )
    annotator_column: str = field(default="annotator_id", metadata={"help": "The column that names the annotator."})
    group_column: str | None = field(
        default=None, metadata={"help": "A column of known groups, instead of groups found by annotator."}
    )
    max_groups: int = field(default=3, metadata={"help": "Largest number of groups that is tried."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Frozen model whose last state rewards are linear in; without one, counts of words."},
    )
    heldout_fraction: float = field(
        default=0.3, metadata={"help": "Share of each annotator's pairs that only measures."}
    )
    beta: float = field(default=1.0, metadata={"help": "KL coefficient of the alignment gaps."})
    pooling: str = field(
        default="auto",
        metadata={
            "help": "What rewards read of the model's states, as in `trl-maxmin reward`.",
            "choices": list(POOLINGS),
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Sequences of a forward of the model."})
    seed: int = field(default=0, metadata={"help": "Of splits, restarts and resamples."})


def run(argv: Sequence[str]) -> None:
    """Answer in words, numbers and a figure.

    Args:
        argv (`Sequence[str]`): options of [`DiagnoseArguments`].

    Raises:
        ValueError: data or options that [`diagnose`] refuses.
    """
    parser = CommandParser(
        DiagnoseArguments,
        prog="trl-maxmin diagnose",
        description="Do my preferences hold groups that one reward cannot serve? Seconds, before any training.",
        epilog="  trl-maxmin diagnose --dataset_name preferences.jsonl\n"
        "  trl-maxmin diagnose --dataset_name preferences.jsonl --group_column country \\\n"
        "      --model_name_or_path Qwen/Qwen3-0.6B",
    )
    (arguments,) = parser.parse_args_and_config(list(argv))
    train, _ = read_dataset(arguments, [arguments.annotator_column, arguments.group_column])
    if arguments.model_name_or_path:
        require_model(arguments.model_name_or_path, "--model_name_or_path")
    folder = Path(arguments.output_dir)
    require_writable(folder)
    with Console(stderr=True, quiet=bool(os.environ.get(QUIET_VARIABLE))).status(
        "fitting rewards for one, two and more groups"
    ):
        found = diagnose(
            train,
            annotator_column=arguments.annotator_column,
            group_column=arguments.group_column,
            max_groups=arguments.max_groups,
            model_name_or_path=arguments.model_name_or_path,
            heldout_fraction=arguments.heldout_fraction,
            beta=arguments.beta,
            seed=arguments.seed,
            **(
                {"batch_size": arguments.batch_size, "pooling": arguments.pooling}
                if arguments.model_name_or_path
                else {}
            ),
        )
    (folder / "diagnosis.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "diagnosis.md").write_text(found.to_markdown(), encoding="utf-8")
    plot_diagnosis(found.to_dict(), folder / "diagnosis.png")
    source = {"name": recorded(arguments.dataset_name), "config": arguments.dataset_config}
    source |= {"split": arguments.dataset_train_split, "annotator_column": arguments.annotator_column}
    RunRecord.update_file(folder, "evaluation", replace=True, **found.run_record_facts(source))
    console = Console()
    console.print(
        Markdown(found.to_markdown()) if console.is_terminal else found.to_markdown(),
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    print(f"wrote {folder}/: diagnosis.json, diagnosis.md, diagnosis.png, {RUN_RECORD_NAME}")
