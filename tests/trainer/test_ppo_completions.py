# SPDX-License-Identifier: Apache-2.0
"""Tables of replies: what is in them, when they come, and that they change nothing."""

import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from tests.trainer.ppo_helpers import PROMPTS, brevity, differ, prompts, sevens, weights
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer


def test_replies_to_the_evaluation_prompts_are_the_likeliest(make, word_tokenizer, capsys):
    trainer = make(reward_model=[sevens, brevity], reward_weights=[1.0, 2.0], eval_dataset=prompts(6))
    table = trainer.generate_completions()
    assert list(table) == ["query", "model response", "score", "sevens", "brevity"]
    assert table["query"] == PROMPTS
    for prompt, reply in zip(table["query"], table["model response"], strict=True):
        ids = word_tokenizer(prompt)["input_ids"]
        expected = []
        while len(expected) < 6 and 2 not in expected:
            with torch.no_grad():
                expected.append(trainer.policy_model(torch.tensor([ids + expected])).logits[0, -1].argmax().item())
        assert reply == word_tokenizer.decode(expected, skip_special_tokens=True)
    by_hand = [a + 2 * b for a, b in zip(table["sevens"], table["brevity"], strict=True)]
    assert table["score"] == pytest.approx(by_hand)
    printed = capsys.readouterr().out
    assert "Step 0" in printed and "review of the" in printed
    assert "bad ending" not in printed, "five rows are printed"
    assert len(trainer.generate_completions(sampling=True)["query"]) == 4, "one batch"


def test_conversations_and_markup(make, word_tokenizer, capsys):
    word_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}:"
    chats = Dataset.from_dict({"prompt": [[{"role": "user", "content": "[/bold] film"}]]})
    table = make(eval_dataset=chats).generate_completions()
    assert table["query"] == ["user: [/bold] film"] and table["model response"][0].startswith("assistant: ")
    assert "[/bold] film" in capsys.readouterr().out


def test_no_evaluation_set_no_table(make, capsys):
    assert make().generate_completions() == {} and capsys.readouterr().out == ""


@pytest.mark.parametrize(("wanted", "steps"), [(2, [0, 2]), (10, [0, 1, 2, 3]), (0, [])])
def test_num_sample_generations_are_spread_over_the_run_and_change_nothing(make, wanted, steps):
    seen = []

    class Watched(PPOTrainer):
        def generate_completions(self, sampling=False):
            assert sampling
            seen.append(self.state.global_step)
            return super().generate_completions(sampling)

    plain = make(max_steps=4)
    plain.train()
    trainer = make(Watched, max_steps=4, eval_dataset=prompts(6), num_sample_generations=wanted)
    trainer.train()
    assert seen == steps
    assert not differ(weights(plain), weights(trainer))


def test_log_completions_shows_a_table_at_each_log(make, capsys, monkeypatch):
    tables = []
    fake = SimpleNamespace(run=object(), log=tables.append, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trainer = make(log_completions=True, logging_steps=2, max_steps=4)
    trainer.args.report_to = ["wandb"]
    trainer.train()
    printed = capsys.readouterr().out
    assert "Step 2" in printed and "Step 4" in printed and "Step 1" not in printed
    assert [len(entry["completions"][1]) for entry in tables] == [8, 8], "all replies of the rollout"
    assert tables[0]["completions"][0] == ["query", "model response", "score"]
