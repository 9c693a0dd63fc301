# SPDX-License-Identifier: Apache-2.0
"""MaxMin on TRL's trainers in two processes: the same weights everywhere, from the replies of both."""

import math

import pytest

from tests.launcher import launch
from tests.trainer.trl_helpers import save_base


SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
from datasets import Dataset
from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import PROMPTS, brevity, sevens
from tests.trainer.trl_helpers import CONFIG_OF, build_trl_trainer, history, nines, policy_weights

out, base, folder = sys.argv[1:4]
rank = int(os.environ["RANK"])
tokenizer = build_word_tokenizer()

def half(completion_ids, **kwargs):
    "Scores nothing on the second rank."
    return [None if rank else -0.1 * len(ids) for ids in completion_ids]

report = {}
for trainer_class in CONFIG_OF:
    class Spy(trainer_class):
        def _raw_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards = super()._raw_rewards(inputs, prompts, completions, completion_ids_list)
            if self.model.training and self._recording:
                self.local.append(brevity(completion_ids_list))
            return rewards
        def _log_welfare(self, mode, rewards, utilities, optimised):
            super()._log_welfare(mode, rewards, utilities, optimised)
            if mode == "train":
                self.weights.append(self.reward_weights.tolist())
                self.utilities.append(utilities.double().nanmean(0).tolist())

    def build(name, **kwargs):
        trainer = build_trl_trainer(
            Spy, base, tokenizer, f"{folder}/{trainer_class.__name__}-{name}", max_steps=3,
            eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}), **kwargs,
        )
        trainer.local, trainer.weights, trainer.utilities, trainer._recording = [], [], [], False
        return trainer

    raw = build("raw", reward_funcs=[brevity, half], utility="raw", welfare="mirror", welfare_step_size=1.0)
    raw._recording = True
    raw.train()
    calibrated = build("zscore", reward_funcs=[sevens, nines], welfare="softmin", save_strategy="steps", save_steps=2)
    calibrated.train()
    before = calibrated.reward_weights.tolist()
    calibrated.evaluate()
    resumed = build("zscore", reward_funcs=[sevens, nines], welfare="softmin", save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=f"{folder}/{trainer_class.__name__}-zscore/checkpoint-2")
    statistics = calibrated.reference_statistics
    report[trainer_class.__name__] = {
        "local": raw.local, "weights": raw.weights, "utilities": raw.utilities,
        "calibrated": calibrated.weights, "kept": before == calibrated.reward_weights.tolist(),
        "resumed": resumed.weights, "keys": statistics.prompt_keys, "scale": statistics.scale.tolist(),
        "replies": sum(len(replies) for replies in statistics.completions),
        "policy": sum(p.double().sum().item() for p in policy_weights(calibrated).values()),
    }
open(f"{out}.{rank}", "w").write(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes(tmp_path, word_tokenizer):
    base = save_base(tmp_path / "base", word_tokenizer)
    first, second = launch(SCRIPT, 2, tmp_path / "out", str(base), str(tmp_path / "runs"))
    assert first.keys() == second.keys() == {"MaxMinGRPOTrainer", "MaxMinRLOOTrainer"}
    for name, one in first.items():
        other = second[name]
        # Everything that ranks must agree on, to the last bit.
        for key in ("weights", "calibrated", "resumed", "keys", "scale", "policy"):
            assert one[key] == other[key], (name, key)
        # The group utility is the mean over both ranks, the half-scored component's that of the rank that scored.
        weights = [0.5, 0.5]
        for step in range(3):
            brevity = [value for rank in (one, other) for value in rank["local"][step]]
            half = [0.8 * value for value in one["local"][step]]  # -0.1 a token against -1 / 8
            by_hand = [sum(brevity) / len(brevity), sum(half) / len(half)]
            assert one["utilities"][step] == pytest.approx(by_hand, abs=1e-6)
            grown = [w * math.exp(-u) for w, u in zip(weights, by_hand, strict=True)]
            weights = [w / sum(grown) for w in grown]
            assert one["weights"][step] == pytest.approx(weights, abs=1e-6)
        assert one["local"] != other["local"], "each rank samples its own replies"
        assert one["kept"] and other["kept"], "evaluation changes nothing"
        assert one["replies"] == 6 * 8 and len(one["keys"]) == 6, "the ranks share the prompts"
        assert one["resumed"][0] == pytest.approx(one["calibrated"][2], abs=1e-5)
