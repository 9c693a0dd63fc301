# SPDX-License-Identifier: Apache-2.0
"""Prompts, sampling and the rollout buffer."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from trl import SFTConfig, SFTTrainer

from trl_maxmin.models.base import context_length
from trl_maxmin.trainer.common.sampling import (
    cut_at_stop,
    pad,
    resolve_stop_tokens,
    sample_completions,
    sampling_config,
    seeded,
    stream_seed,
)
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic
from trl_maxmin.trainer.ppo.prompts import PromptReader, rows_from_batch
from trl_maxmin.trainer.ppo.rollout import Rollout


CPU = torch.device("cpu")


def policy(seed=0, size=36, **kwargs):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_layer=1, n_head=2, n_embd=16, n_positions=32, bos_token_id=1, eos_token_id=2)
    )


class TestPromptReader:
    def test_tokens_text_and_messages(self, word_tokenizer):
        reader = PromptReader(word_tokenizer)
        film = word_tokenizer.convert_tokens_to_ids(["the", "film"])
        assert reader({"input_ids": [7, 8, 9]}) == [7, 8, 9]
        assert reader({"input_ids": torch.tensor([0, 7, 8]), "attention_mask": torch.tensor([0, 1, 1])}) == [7, 8]
        assert reader({"prompt": "the film"}) == film
        word_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{% endfor %} :"
        user, colon = word_tokenizer.convert_tokens_to_ids(["user", ":"])
        assert reader({"prompt": [{"role": "user", "content": "the film"}]}) == [user, *film, colon]

    def test_left_truncation(self, word_tokenizer):
        reader = PromptReader(word_tokenizer, max_prompt_length=2, response_length=4, context_length=6)
        assert reader({"input_ids": [5, 6, 7, 8]}) == [7, 8]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"text": "x"}, "Row 1 of the training set has the columns .'text'.*`prompt`"),
            ({"input_ids": []}, "Row 1 of the training set has an empty prompt"),
            ({"input_ids": [5] * 5}, "5 tokens.*response_length=4.*context of 8.*at most 4"),
        ],
    )
    def test_bad_rows_are_named(self, word_tokenizer, row, message):
        reader = PromptReader(word_tokenizer, response_length=4, context_length=8)
        with pytest.raises(ValueError, match=message):
            reader.check([{"input_ids": [5, 5, 5, 5]}, row])

    def test_messages_without_a_template(self, word_tokenizer):
        with pytest.raises(ValueError, match="chat template"):
            PromptReader(word_tokenizer)({"prompt": [{"role": "user", "content": "the film"}]})


def test_context_length():
    assert context_length(policy()) == 32


def test_rows_from_a_users_collator():
    columns = {"input_ids": torch.tensor([[0, 5], [6, 7]]), "attention_mask": torch.tensor([[0, 1], [1, 1]])}
    assert rows_from_batch(columns | {"group": ["a", "b"]}) == [
        {"input_ids": [0, 5], "attention_mask": [0, 1], "group": "a"},
        {"input_ids": [6, 7], "attention_mask": [1, 1], "group": "b"},
    ]
    assert rows_from_batch([{"prompt": "x"}]) == [{"prompt": "x"}]


class TestStopTokens:
    def test_ladder(self, word_tokenizer):
        model = policy()
        assert resolve_stop_tokens(None, 7, model, word_tokenizer) == [7]
        assert resolve_stop_tokens(None, 0, model, word_tokenizer) == [0]
        assert resolve_stop_tokens(None, None, model, word_tokenizer) == [2]
        model.generation_config.eos_token_id = [2, 9]
        assert resolve_stop_tokens(None, None, model, word_tokenizer) == [2, 9]
        assert resolve_stop_tokens("eos", None, model, word_tokenizer) == [word_tokenizer.eos_token_id]
        model.generation_config.eos_token_id = None
        assert resolve_stop_tokens(None, None, model, word_tokenizer) == [word_tokenizer.eos_token_id]
        word_tokenizer.eos_token = None
        assert resolve_stop_tokens(None, None, model, word_tokenizer) == []

    def test_eos_that_does_not_exist(self, word_tokenizer):
        word_tokenizer.eos_token = None
        with pytest.raises(ValueError, match="stop_token_id"):
            resolve_stop_tokens("eos", None, policy(), word_tokenizer)

    def test_cut(self):
        assert cut_at_stop([5, 9, 2, 9], [2, 9]) == ([5, 9], True)
        assert cut_at_stop([2], [2]) == ([2], True)
        assert cut_at_stop([], [2]) == ([], False)


class TestSampling:
    prompts = [[5, 6, 7], [8], [9, 10]]

    def test_greedy_replies_are_the_models_argmax_whatever_the_batch(self):
        """Left padding and the order of the batches change nothing."""
        model = policy().eval()
        expected = []
        for prompt in self.prompts:
            ids = list(prompt)
            for _ in range(6):
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
                if ids[-1] == 2:
                    break
            expected.append((ids[len(prompt) :], ids[-1] == 2))
        config = sampling_config(1.0, 6, {"do_sample": False})
        for batch_size in (1, 2, 3):
            assert sample_completions(model, self.prompts, config, 0, [2], batch_size) == expected

    def test_a_copy_of_a_fine_tuned_model_samples_from_its_own_weights(self, word_tokenizer, tmp_path):
        """`SFTTrainer` leaves a forward on its model that a copy shares, weights of the original included."""
        args = SFTConfig(tmp_path, max_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
        data = Dataset.from_dict({"input_ids": [[5, 6, 7, 8]] * 8})
        original = policy()
        SFTTrainer(original, args, train_dataset=data, processing_class=word_tokenizer).train()
        root = PolicyWithCritic(copy.deepcopy(original))
        root.policy.lm_head.weight.data.normal_(generator=torch.Generator().manual_seed(3))
        fresh = GPT2LMHeadModel(original.config)
        fresh.load_state_dict(root.policy.state_dict())
        config = sampling_config(1.0, 6, {"do_sample": False})
        replies = sample_completions(root, self.prompts, config, 0, [2], 3)
        assert replies == sample_completions(fresh, self.prompts, config, 0, [2], 3)
        assert replies != sample_completions(original, self.prompts, config, 0, [2], 3)

    def test_samples_follow_the_models_distribution(self):
        model = policy().eval()
        model.lm_head.weight.data.mul_(20)
        config = sampling_config(0.8, 1)
        with seeded(CPU, 0):
            replies = sample_completions(model, [[5, 6]] * 6000, config, 0, [2], 6000)
        counts = torch.bincount(torch.tensor([ids[0] for ids, _ in replies]), minlength=36) / 6000
        expected = (model(torch.tensor([[5, 6]])).logits[0, -1] / 0.8).softmax(-1)
        assert (counts - expected).abs().max() < 0.03

    def test_the_models_own_settings_play_no_part_and_stay(self):
        model, twin = policy(), policy()
        model.generation_config.update(repetition_penalty=5.0, min_p=0.9, suppress_tokens=[5, 6], num_beams=3)
        before = model.generation_config.to_dict()
        results = []
        for candidate in (model, twin):
            candidate.train()
            with seeded(CPU, 1):
                results.append(sample_completions(candidate, self.prompts, sampling_config(1.0, 8), 0, [2], 2))
            assert candidate.training
        assert results[0] == results[1]
        assert model.generation_config.to_dict() == before

    def test_root_and_adapter_sample_like_the_model(self):
        wrapped = get_peft_model(policy(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2))
        candidates = [policy(), PolicyWithCritic(policy(), 2), wrapped, PolicyWithCritic(wrapped, 2)]
        results = []
        for model in candidates:
            with seeded(CPU, 1):
                results.append(sample_completions(model, self.prompts, sampling_config(1.0, 8), 0, [2], 3))
        assert results[1:] == results[:-1]

    def test_no_stop_token_runs_to_the_limit(self):
        replies = sample_completions(policy(), self.prompts, sampling_config(1.0, 5), 0, [], 3)
        assert [(len(ids), finished) for ids, finished in replies] == [(5, False)] * 3

    def test_seeded_leaves_the_global_state(self):
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        with seeded(CPU, "a", 1):
            first = torch.rand(3)
        with seeded(CPU, "a", 1):
            assert torch.equal(torch.rand(3), first)
        with seeded(CPU, "a", 2):
            assert not torch.equal(torch.rand(3), first)
        assert torch.equal(torch.rand(2), expected)
        assert stream_seed(1, 23) != stream_seed(12, 3)


class TestRollout:
    def build(self, tokenizer, pad_token_id=0):
        rows = [{"prompt": "the film", "group": "a"}, {"input_ids": [5], "group": "b"}, {"input_ids": [6, 7, 8]}]
        replies = [([9, 2], True), ([10, 11, 12], False), ([], False)]
        ids = [PromptReader(tokenizer)(row) for row in rows]
        return Rollout.build(rows, ids, replies, tokenizer, pad_token_id, CPU)

    def test_layout(self, word_tokenizer):
        rollout = self.build(word_tokenizer, pad_token_id=2)
        film = word_tokenizer.convert_tokens_to_ids(["the", "film"])
        assert rollout.input_ids.tolist() == [[2, *film, 9, 2, 2], [2, 2, 5, 10, 11, 12], [6, 7, 8, 2, 2, 2]]
        assert rollout.completion_mask.tolist() == [[True, True, False], [True, True, True], [False] * 3]
        assert rollout.attention_mask[0].tolist() == [False, True, True, True, True, False]
        assert rollout.finished.tolist() == [True, False, False]
        assert rollout.inputs[0] == {"prompt": "the film", "group": "a", "prompt_ids": film, "finished": True}
        assert rollout.prompts[0] == "the film" and isinstance(rollout.prompts[1], str)
        assert rollout.completions[0] == word_tokenizer.decode([9])

    def test_messages_are_answered_with_messages(self, word_tokenizer):
        prompt = [{"role": "user", "content": "the film"}]
        rollout = Rollout.build([{"prompt": prompt}], [[5]], [([9, 2], True)], word_tokenizer, 0, CPU)
        assert rollout.completions == [[{"role": "assistant", "content": word_tokenizer.decode([9])}]]

    def test_micro_batches_are_trimmed_on_both_sides(self, word_tokenizer):
        rollout = self.build(word_tokenizer)
        rollout.values = torch.arange(18.0).reshape(3, 3, 2)
        batch = rollout.micro_batch([0])
        assert batch["input_ids"].tolist() == [[*rollout.prompt_ids[0], 9, 2]]
        assert batch["completion_ids"].tolist() == [[9, 2]] and batch["attention_mask"].all()
        assert batch["values"].shape == (1, 2, 2) and "advantages" not in batch
        both = rollout.micro_batch([1, 0])
        assert both["completion_ids"].tolist() == [[10, 11, 12], [9, 2, 0]]
        assert both["finished"].tolist() == [False, True]

    def test_results_come_back_in_the_order_of_the_rows(self, word_tokenizer):
        rollout = self.build(word_tokenizer)
        for size in (1, 2, 3):
            ids, nothing = rollout.map_rows(lambda batch: (batch["completion_ids"].float(), None), size)
            assert ids.masked_fill(~rollout.completion_mask, 0).tolist() == [[9, 2, 0], [10, 11, 12], [0, 0, 0]]
            assert nothing is None
        assert rollout.by_length() == [2, 0, 1]

    def test_all_replies_empty(self, word_tokenizer):
        rollout = Rollout.build([{"input_ids": [5]}] * 2, [[5], [5]], [([], False)] * 2, word_tokenizer, 0, CPU)
        assert rollout.completion_mask.shape == (2, 0)
        assert rollout.micro_batch([0, 1])["completion_ids"].shape == (2, 0)

    def test_padding_of_nothing(self):
        ids, mask = pad([[], []], 0, CPU, left=False)
        assert ids.shape == mask.shape == (2, 0)
