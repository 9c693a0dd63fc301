# SPDX-License-Identifier: Apache-2.0
"""A second EOS ends a reply on the oldest host, too."""

import inspect

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.trainer.trl_helpers import build_trl_trainer


pytestmark = pytest.mark.seam
SECOND = 9


@pytest.fixture
def make(trl_class, trl_base, word_tokenizer, tmp_path):
    def build(**kwargs):
        model = AutoModelForCausalLM.from_pretrained(trl_base)
        model.generation_config.eos_token_id = [word_tokenizer.eos_token_id, SECOND]
        with torch.no_grad():  # which is what the policy says most
            model.transformer.wte.weight[SECOND] += 3 * model.transformer.ln_f.weight.new_ones(16)
            model.transformer.ln_f.bias += 0.5
        return build_trl_trainer(trl_class, trl_base, word_tokenizer, tmp_path, model=model, max_steps=1, **kwargs)

    return build


def test_it_ends_replies_in_training_calibration_and_evaluation(make, word_tokenizer):
    trainer = make(eval_dataset=Dataset.from_dict({"prompt": ["the film", "plot"] * 4}))
    seen = []
    host = trainer._raw_rewards

    def spy(inputs, prompts, completions, completion_ids_list):
        seen.extend(completion_ids_list)
        return host(inputs, prompts, completions, completion_ids_list)

    trainer._raw_rewards = spy
    trainer.train()
    metrics = trainer.evaluate()
    assert trainer.stop_token_ids == [word_tokenizer.eos_token_id, SECOND]
    ended = [ids for ids in seen if SECOND in ids]
    assert len(ended) > len(seen) / 2
    assert all(ids.index(SECOND) == len(ids) - 1 for ids in ended), "nothing follows it, and padding least of all"
    assert metrics["eval_completions/clipped_ratio"] < 0.5
    kept = trainer.accelerator.unwrap_model(trainer.model).generation_config.eos_token_id
    assert kept == [word_tokenizer.eos_token_id, SECOND], "the saved policy stops there as well"


def test_a_host_that_knows_one_eos_refuses_to_mask_by_it(make, trl_class):
    if "self.eos_token_ids" in inspect.getsource(
        next(c for c in trl_class.__mro__ if c.__module__.startswith("trl.")).__init__
    ):
        make(mask_truncated_completions=True).train()
    else:
        with pytest.raises(ValueError, match="Update TRL"):
            make(mask_truncated_completions=True)
