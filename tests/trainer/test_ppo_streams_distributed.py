# SPDX-License-Identifier: Apache-2.0
"""Streams of prompts on two processes: what each rank trains on, and where a resumed run goes on."""

import pytest

from tests.launcher import launch


STREAM = """
import json, sys, torch
from pathlib import Path
from datasets import IterableDataset
from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import gpt2
from trl_maxmin.trainer.ppo.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer

torch.set_num_threads(1)
out, world, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seen = []

def record(prompts, completion_ids, number, **columns):
    seen.extend(number)
    return [float(len(ids)) for ids in completion_ids]

def rows():
    for number in range(24):
        yield {"input_ids": [5 + number % 7, 9], "number": number}

args = PPOConfig(
    output_dir=out + "-run", report_to=[], disable_tqdm=True, use_cpu=True, per_device_train_batch_size=1,
    gradient_accumulation_steps=4 // world, max_steps=4, save_steps=2, logging_steps=1, learning_rate=0.01,
    response_length=4, temperature=1.0, gradient_checkpointing=False, optim="sgd", num_sample_generations=0,
    generation_kwargs={"do_sample": False}, seed=3,
)

def build():
    return PPOTrainer(
        args, build_word_tokenizer(), gpt2(), reward_model=record, train_dataset=IterableDataset.from_generator(rows)
    )

trainer = build()
trainer.train()
first, seen = seen, []
weights = {k: v.flatten().tolist() for k, v in trainer._root.state_dict().items()}
resumed = build()
resumed.train(resume_from_checkpoint=f"{out}-run/checkpoint-2")
again = {k: v.flatten().tolist() for k, v in resumed._root.state_dict().items()}
result = {"first": first, "resumed": seen, "weights": weights, "again": again}
Path(f"{out}.{trainer.args.process_index}").write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_ranks_share_a_stream_and_a_resumed_run_goes_on_where_it_stopped(tmp_path):
    (alone,) = launch(STREAM, 1, tmp_path / "one" / "run", "1", "4")
    ranks = launch(STREAM, 2, tmp_path / "two" / "run", "2", "4")
    assert alone["first"] == list(range(16)) and alone["resumed"] == list(range(8, 16))
    for rollout in range(4):
        of_ranks = [part["first"][2 * rollout : 2 * rollout + 2] for part in ranks]
        assert sorted(sum(of_ranks, [])) == list(range(4 * rollout, 4 * rollout + 4))
    for part in (alone, *ranks):
        assert part["resumed"] == part["first"][len(part["first"]) // 2 :]
        for name, values in part["weights"].items():
            assert part["again"][name] == pytest.approx(values, abs=1e-6), name
            assert values == pytest.approx(alone["weights"][name], abs=1e-4), name
