# SPDX-License-Identifier: Apache-2.0
"""Where TRL 1.12's PPO failed, hung or wasted memory: C19 to C34 of the list of its defects, as tests of ours. Those
that take two processes are in `test_ppo_defects_distributed.py`."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
)

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import (
    PROMPTS,
    SIZE,
    GivenReplies,
    brevity,
    critic_model,
    differ,
    gpt2,
    history,
    lora,
    prompts,
    sevens,
    unpadded_log_all,
    weights,
)
from trl_maxmin.models import MixtureRewardModel


pytestmark = pytest.mark.seam


def adapted_critic(labels=2):
    critic = get_peft_model(critic_model(labels), LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], r=2))
    assert 0 < sum(p.numel() for p in critic.parameters() if p.requires_grad) < critic_model(labels).num_parameters()
    return critic


@pytest.mark.parametrize("kind", ["head", "lora", "value_model", "lora_value_model"])
def test_c19_resumed_run_is_the_uninterrupted_one(make, kind):
    def settings():
        extra = {
            "head": {},
            "lora": {"peft_config": lora()},
            "value_model": {"value_model": critic_model(2)},
            "lora_value_model": {"value_model": adapted_critic()},
        }[kind]
        common = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "adaptive_kl": True, "kl_horizon": 50.0}
        return common | {"num_mini_batches": 2, "kl_target": 0.01} | extra

    trainer = make(**settings())
    trainer.train()
    expected, losses = weights(trainer), history(trainer, "loss")
    for step in (2, 4):
        torch.manual_seed(100 + step)
        resumed = make(**settings())
        resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{step}")
        assert not differ(expected, weights(resumed))
        assert history(resumed, "loss") == losses
        assert resumed.kl_coef == trainer.kl_coef != 0.05


@pytest.mark.parametrize("kind", ["head", "lora", "value_model"])
def test_c22_saves_what_accelerate_gathered(make, tmp_path, monkeypatch, kind):
    """Where weights are sharded (FSDP, ZeRO-3) the module's own are pieces: the files hold the gathered ones."""
    extra = {"head": {}, "lora": {"peft_config": lora()}, "value_model": {"value_model": critic_model(1)}}[kind]
    trainer = make(max_steps=1, **extra)
    trainer.train()
    gathered = {name: tensor + 1.0 for name, tensor in trainer._root.state_dict().items()}
    plugin = type("Plugin", (), {"state_dict_type": "FULL_STATE_DICT"})()
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", lambda model: gathered)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)
    model_before = trainer.model
    trainer.save_model(str(tmp_path / "saved"))
    assert trainer.model is model_before
    if kind == "lora":
        saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        assert saved
        for name, tensor in saved.items():
            twin = "policy." + name.replace(".weight", ".default.weight")
            assert torch.equal(tensor, gathered[twin])
    else:
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
        for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"):
            assert torch.equal(saved[name], gathered["policy." + name])
    if kind == "value_model":
        saved = load_file(tmp_path / "saved" / "value_model" / "model.safetensors")
        assert torch.equal(saved["score.weight"], gathered["value_model.score.weight"])
    else:
        saved = load_file(tmp_path / "saved" / "value_head.safetensors")
        assert torch.equal(saved["weight"], gathered["value_head.weight"])


def test_c24_evaluate_works_and_leaves_the_training_alone(make):
    runs = []
    for evaluated in (True, False):
        trainer = make(
            eval_dataset=prompts(6), eval_strategy="steps" if evaluated else "no", eval_steps=1, num_mini_batches=2
        )
        trainer.train()
        runs.append((weights(trainer), trainer.reward_weights))
    assert not differ(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    metrics = trainer.evaluate()
    clock = {name: value for name, value in metrics.items() if "second" in name or "runtime" in name}
    assert metrics == pytest.approx(trainer.evaluate() | clock)
    assert metrics["eval_rewards/sevens/mean"] == pytest.approx(metrics["eval_objective/scores"])
    assert {"eval_objective/kl", "eval_completions/mean_length"} <= metrics.keys()


def test_c25_fewer_prompts_than_a_rollout_raise_before_training(make):
    with pytest.raises(ValueError, match="7 prompts, but one rollout takes 8"):
        make(train_dataset=prompts(7))


def test_c26_a_callback_stops(make):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer = make(callbacks=[Stop()], max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("rows", [3, 6])
def test_c27_evaluates_and_logs_as_asked_the_ragged_last_batch_included(make, rows):
    """Fewer rows than a batch of 4, and a batch and a half: every row is scored once at every evaluation."""
    scored = []

    def record(group, completion_ids, **kwargs):
        scored.append(list(group))
        return [0.0] * len(group)

    evaluation = Dataset.from_dict({"prompt": PROMPTS[:rows], "group": [f"e{i}" for i in range(rows)]})
    trainer = make(
        reward_model=record, eval_dataset=evaluation, eval_strategy="steps", eval_steps=2, logging_steps=3,
        max_steps=6, num_sample_generations=0,
    )  # fmt: skip
    trainer.train()
    evaluated = [groups for groups in scored if groups[0].startswith("e")]
    assert [sorted(groups) for groups in evaluated] == [[f"e{i}" for i in range(rows)]] * 3
    steps = [(entry["step"], "eval_objective/kl" in entry) for entry in trainer.state.log_history]
    assert steps[:-1] == [(2, True), (3, False), (4, True), (6, False), (6, True)]


class TestC28:
    """Text, messages, streams and other columns."""

    def test_c28_columns_and_ids_reach_the_reward_function(self, make, word_tokenizer):
        seen = []

        def record(prompts, completions, completion_ids, group, annotator_id, **kwargs):
            assert annotator_id == [f"who-{name}" for name in group]
            for prompt, completion, ids, name in zip(prompts, completions, completion_ids, group, strict=True):
                index = int(name[1:])
                assert prompt == PROMPTS[index % len(PROMPTS)]
                assert completion == word_tokenizer.decode(ids, skip_special_tokens=True)
                assert 2 not in ids[:-1]
                seen.append(index)
            return [0.0] * len(prompts)

        data = prompts()
        data = data.add_column("annotator_id", [f"who-{name}" for name in data["group"]])
        make(reward_model=record, max_steps=3, train_dataset=data).train()
        assert sorted(seen) == list(range(24))

    def test_c28_conversations(self, make, word_tokenizer):
        word_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}:"
        chats = [[{"role": "user", "content": text}] for text in PROMPTS[:4] * 2]
        user, colon = word_tokenizer.convert_tokens_to_ids(["user", ":"])

        def reward(prompts, completions, prompt_ids=None, **kwargs):
            assert prompts[0][0]["role"] == "user" and completions[0][0]["role"] == "assistant"
            return [0.5] * len(prompts)

        trainer = make(train_dataset=Dataset.from_dict({"prompt": chats}), reward_model=reward, max_steps=1)
        rollout = trainer._rollout([{"prompt": chats[0]}])
        assert rollout.prompt_ids == [[user, *word_tokenizer(PROMPTS[0])["input_ids"], colon]]
        trainer.train()
        assert history(trainer, "objective/scores") == [0.5]

    def test_c28_stream_of_prompts(self, make):
        trainer = make(train_dataset=prompts(20).to_iterable_dataset(), max_steps=3)
        trainer.train()
        assert trainer.state.global_step == 3 and history(trainer, "episode") == [8, 16, 24]


class TestC29:
    """Rewards of any make; the replies are given, so that every score can be worked out from plain calls."""

    rows = [{"prompt": text} for text in PROMPTS[:4]]

    def scores(self, make, reward_model):
        trainer = make(GivenReplies, reward_model=reward_model, max_steps=1)
        rollout = trainer._rollout(self.rows)
        trainer._score(rollout)
        trainer.train()
        assert torch.isfinite(torch.tensor(history(trainer, "loss"))).all()
        return rollout.scores

    @staticmethod
    def words(tokenizer, row):
        """Words of the given reply, without what is special; whether it finished."""
        ids, finished = GivenReplies.replies[row]
        return tokenizer.convert_ids_to_tokens([token for token in ids if token > 3]), finished

    def test_c29_an_encoder(self, make, word_tokenizer):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=SIZE, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            num_labels=1, pad_token_id=0,
        )  # fmt: skip
        encoder = BertForSequenceClassification(config).eval()
        scores = self.scores(make, (encoder, build_word_tokenizer()))
        for row in range(4):
            words, finished = self.words(word_tokenizer, row)
            ids = word_tokenizer.convert_tokens_to_ids(PROMPTS[row].split() + words) + [2] * finished
            with torch.no_grad():
                assert scores[row].item() == pytest.approx(encoder(torch.tensor([ids])).logits.item(), abs=1e-5)

    def test_c29_another_tokenizer(self, make, word_tokenizer):
        """The same words under other ids: what the reward model reads is the text."""
        foreign = build_word_tokenizer(reverse=True)
        assert foreign.convert_tokens_to_ids("film") != word_tokenizer.convert_tokens_to_ids("film")
        model = critic_model(1).eval()
        scores = self.scores(make, (model, foreign))
        for row in range(4):
            words, finished = self.words(word_tokenizer, row)
            ids = foreign.convert_tokens_to_ids(PROMPTS[row].split() + words) + [foreign.eos_token_id] * finished
            with torch.no_grad():
                expected = model.score(model.transformer(torch.tensor([ids])).last_hidden_state[0, -1]).item()
            assert scores[row].item() == pytest.approx(expected, abs=1e-5)

    def test_c29_a_mixture_has_a_column_for_each_component(self, make, word_tokenizer):
        torch.manual_seed(0)
        mixture = MixtureRewardModel.from_base(gpt2(), 3, processing_class=word_tokenizer)
        scores = self.scores(make, mixture)
        expected = mixture.score(
            prompt_ids=[word_tokenizer(text)["input_ids"] for text in PROMPTS[:4]],
            completion_ids=[ids for ids, _ in GivenReplies.replies],
        )
        assert scores.shape == (4, 3)
        torch.testing.assert_close(scores, expected)

    def test_c29_functions_plain_and_asynchronous_in_a_list(self, make):
        async def slow(completion_ids, **kwargs):
            return [float(len(ids)) for ids in completion_ids]

        assert self.scores(make, [slow, brevity])[:, 0].tolist() == [3, 6, 1, 2]

    @pytest.mark.parametrize(("labels", "channels"), [(1, 1), (2, 2)])
    def test_c29_a_value_model_of_one_label_or_of_all_channels(self, make, labels, channels):
        critic = critic_model(labels)
        before = critic.score.weight.detach().clone()
        trainer = make(value_model=critic)
        assert trainer._rollout(self.rows).values.shape[-1] == channels
        trainer.train()
        assert not torch.equal(before, critic.score.weight)

    def test_c29_no_value_model_puts_the_critic_on_the_policys_trunk(self, make):
        trainer = make(reward_model=[sevens, brevity])
        rollout = trainer._rollout(self.rows)
        hidden = trainer.policy_model.transformer(torch.tensor([rollout.prompt_ids[0] + rollout.completion_ids[0]]))
        expected = trainer._root.value_head(hidden.last_hidden_state[0, len(rollout.prompt_ids[0]) - 1 : -1])
        torch.testing.assert_close(rollout.values[0, : len(expected)], expected.detach(), atol=1e-5, rtol=1e-5)


def test_c30_a_peft_value_model(make):
    critic = adapted_critic()
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    trainer = make(value_model=critic)
    rollout = trainer._rollout([{"prompt": "the film"}])
    with torch.no_grad():
        model, ids = critic.get_base_model(), rollout.prompt_ids[0] + rollout.completion_ids[0]
        hidden = model.transformer(torch.tensor([ids])).last_hidden_state[0, len(rollout.prompt_ids[0]) - 1 : -1]
        torch.testing.assert_close(rollout.values[0], model.score(hidden), atol=1e-5, rtol=1e-5)
    trainer.train()
    moved = {name for name, tensor in critic.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("lora_" in name for name in moved) and any("score.modules_to_save" in name for name in moved)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)


class LargestLogits(TorchDispatchMode):
    """Rows of the largest tensor over the vocabulary that any operation returned, weights and their gradients (of
    `width` rows) apart."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.vocabulary, self.width, self.rows = vocabulary, width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape:
                rows = tensor.numel() // self.vocabulary
                self.rows = max(self.rows, rows if rows != self.width else 0)
        return out


class TestC31:
    """A vocabulary of 5003, 16 replies of 12 tokens, chunks of 4 tokens."""

    size, rows = 5003, [{"input_ids": [5, 6]}] * 16

    def trainer(self, make):
        model = gpt2(vocab_size=self.size, n_embd=22)
        return make(model=model, response_length=12, stop_token_id=1, logits_chunk_size=4)

    def test_c31_no_rollout_keeps_scores_over_the_vocabulary(self, make):
        trainer = self.trainer(make)
        with LargestLogits(self.size, 22) as largest:
            rollout = trainer._rollout(self.rows)
        assert rollout.completion_mask.sum() > 150
        assert largest.rows == 16, "one step of sampling; the 16 x 12 steps together would be 192"
        assert not any(torch.is_tensor(value) and self.size in value.shape for value in vars(rollout).values())
        with LargestLogits(self.size, 22) as largest:
            trainer._forward_rollout(rollout)
        assert largest.rows == 4

    def test_c31_no_update_keeps_them_either(self, make):
        trainer = self.trainer(make)
        rollout = trainer._rollout(self.rows)
        trainer._score(rollout)
        trainer._advantages(rollout, *trainer._aggregate(rollout))
        with LargestLogits(self.size, 22) as largest:
            trainer._backward_minibatch(rollout, list(range(4)), 48)
        assert largest.rows == 4


def test_c32_only_the_last_hidden_state_is_asked_for(make):
    trainer = make(value_model=critic_model(1))
    outputs = []
    for model in (trainer._root.policy, trainer._root.value_model, trainer.reference.policy):
        model.transformer.register_forward_hook(lambda m, i, output: outputs.append(output))
    trainer.train()
    assert len(outputs) > 10
    assert all(output.hidden_states is None and output.attentions is None for output in outputs)


def test_c33_entropy_comes_in_chunks_and_is_that_of_the_distribution(make):
    trainer = make(logits_chunk_size=3, temperature=0.7)
    rollout = trainer._rollout([{"prompt": text} for text in PROMPTS])
    for i, (prompt, reply) in enumerate(zip(rollout.prompt_ids, rollout.completion_ids, strict=True)):
        logits = unpadded_log_all(trainer.policy_model, prompt, reply) / 0.7
        expected = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(rollout.entropy[i, : len(reply)], expected, atol=1e-5, rtol=1e-5)
    calls = []
    trainer._root.policy.lm_head.register_forward_hook(lambda m, inputs, o: calls.append(inputs[0].shape[0]))
    trainer._forward_rollout(rollout)
    assert max(calls) == 3
    # The update needs no entropy.
    assert trainer._forward(trainer._root, rollout.micro_batch([0, 1]))[1] is None


class TestC34:
    """Under `peft_config` adapters and a head are trained, and the reference costs no copy."""

    @staticmethod
    def trainable(trainer):
        return {name for name, parameter in trainer._root.named_parameters() if parameter.requires_grad}

    def test_c34_head_and_adapter(self, make):
        trainer = make(peft_config=lora())
        assert trainer.reference is None
        names = self.trainable(trainer)
        assert all("lora_" in name or name.startswith("value_head.") for name in names)
        assert any("lora_" in name for name in names) and "value_head.weight" in names
        rollout = trainer._rollout([{"prompt": text} for text in PROMPTS])
        bare = gpt2()
        for i, (prompt, reply) in enumerate(zip(rollout.prompt_ids, rollout.completion_ids, strict=True)):
            expected = unpadded_log_all(bare, prompt, reply)[torch.arange(len(reply)), reply]
            torch.testing.assert_close(rollout.ref_logprobs[i, : len(reply)], expected, atol=1e-5, rtol=1e-5)

    def test_c34_a_value_model_gets_an_adapter_of_its_own(self, make, tmp_path):
        trainer = make(peft_config=lora(), value_model=critic_model(1))
        names = {name for name in self.trainable(trainer) if name.startswith("value_model.")}
        assert any("lora_" in name for name in names)
        assert all("lora_" in name or "score.modules_to_save" in name for name in names)
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        record = json.loads((tmp_path / "saved" / "value_model" / "adapter" / "adapter_config.json").read_text())
        assert record["task_type"] == "SEQ_CLS"

    def test_c34_a_value_model_that_the_adapter_does_not_fit_says_so(self, make):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=SIZE, n_layer=1, n_head=2, n_embd=8, n_positions=32, num_labels=1, pad_token_id=0
        )
        critic = GPT2ForSequenceClassification(config)
        adapter = lora()
        adapter.target_modules = {"lm_head"}
        with pytest.warns(UserWarning, match="trained in full"):
            trainer = make(peft_config=adapter, value_model=critic)
        assert "value_model.transformer.wte.weight" in self.trainable(trainer)
