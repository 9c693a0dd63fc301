# SPDX-License-Identifier: Apache-2.0
r"""
What MaxMin costs on top of TRL's trainer with the same reward forwards: its own time inside the step.

Not the difference of two runs, which would be noise: in one run the time between entering and leaving the seam is
taken, less the host's reward computation inside it, and divided by the time of the training step around it. The policy
is the embedded world's GPT-2 (3 layers, width 96), so a step is short and the share is an upper bound for real models.
Processor time, so that other programs on the machine do not count. The calibration, once in a run, is left out and
given by itself.

python benchmarks/mixin_overhead.py --trainer grpo
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peak_memory import machine
from transformers import GPT2LMHeadModel, PrinterCallback
from transformers.utils import logging as transformers_logging

from trl_maxmin import (
    MaxMinGRPOConfig,
    MaxMinGRPOTrainer,
    MaxMinRLOOConfig,
    MaxMinRLOOTrainer,
    MixtureRewardModel,
)
from trl_maxmin.data.world import MAX_COMPLETION_LENGTH, FilmReviewWorld


TRAINERS = {"grpo": (MaxMinGRPOTrainer, MaxMinGRPOConfig), "rloo": (MaxMinRLOOTrainer, MaxMinRLOOConfig)}


def timed(trainer_class: type) -> type:
    class Timed(trainer_class):
        """Adds up processor time: other programs on the machine do not count."""

        inside = host = calibration = 0.0

        def _calculate_rewards(self, *args):
            start = time.process_time()
            result = super()._calculate_rewards(*args)
            self.inside += time.process_time() - start
            return result

        def _raw_rewards(self, *args):
            start = time.process_time()
            result = super()._raw_rewards(*args)
            self.host += time.process_time() - start
            return result

        def calibrate(self, refresh=False):
            start, host = time.process_time(), self.host
            super().calibrate(refresh)
            # Scoring the reference replies is not part of a step either.
            self.calibration += time.process_time() - start
            self.host = host

        def training_step(self, *args, **kwargs):
            self.inside = self.host = self.calibration = 0.0
            start = time.process_time()
            loss = super().training_step(*args, **kwargs)
            own = self.inside - self.host - self.calibration
            self.record.append((own, time.process_time() - start - self.calibration, self.calibration))
            return loss

    return Timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=tuple(TRAINERS), default="grpo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--replies", type=int, default=96)
    parser.add_argument("--utility", default="zscore")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    world = FilmReviewWorld(seed=0)
    trainer_class, config_class = TRAINERS[options.trainer]
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(world.reference_config()).save_pretrained(Path(folder) / "policy")
        policy = GPT2LMHeadModel.from_pretrained(Path(folder) / "policy")
        args = config_class(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=options.replies, num_generations=8,
            max_completion_length=MAX_COMPLETION_LENGTH, utility=options.utility, report_to="none", use_cpu=True,
            bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
            logging_steps=options.steps,
        )  # fmt: skip
        trainer = timed(trainer_class)(
            model=policy,
            reward_funcs=MixtureRewardModel.from_base(policy, 2, processing_class=world.tokenizer),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": world.sample_prompts(192)}),
            processing_class=world.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.record = []
        trainer.train()
    own, step, _ = zip(*trainer.record[1:], strict=True)
    report = {
        "trainer": options.trainer,
        "utility": options.utility,
        "replies": options.replies,
        "steps": len(own),
        "own_seconds": round(statistics.median(own), 5),
        "step_seconds": round(statistics.median(step), 4),
        "share": round(sum(own) / sum(step), 5),
        "calibration_seconds": round(trainer.record[0][2], 2),
    }
    print(json.dumps(report))
    if options.output:
        options.output.write_text(json.dumps(report | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
