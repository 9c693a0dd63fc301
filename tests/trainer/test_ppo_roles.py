# SPDX-License-Identifier: Apache-2.0
"""Policy, reference, critic and rewards: nobody is another, everybody can play the part, and something learns."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import brevity, critic_model, gpt2, lora, reading_words, sevens, weights
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer import MaxMinPPOConfig, MaxMinPPOTrainer


def classifier(trunk, labels=1):
    """A sequence classifier on a trunk that somebody else has, too."""
    config = copy.deepcopy(trunk.config)
    config.num_labels, config.pad_token_id = labels, 0
    model = GPT2ForSequenceClassification(config)
    model.transformer = trunk
    return reading_words(model)


class SharedEmbedding:
    """Two models with one embedding table and nothing else in common."""

    @staticmethod
    def join(model, other):
        other.transformer.wte.weight = model.transformer.wte.weight
        return other


def policy_and_reference():
    policy = gpt2()
    return {"model": policy, "ref_model": SharedEmbedding.join(policy, gpt2(1))}


def adapter_and_its_own_base():
    base = gpt2()
    return {"model": get_peft_model(base, lora()), "ref_model": base}


def two_adapters_on_one_base():
    base = gpt2()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = get_peft_model(base, lora())
        return {"model": policy, "ref_model": get_peft_model(base, lora(), adapter_name="other")}


def policy_and_critic():
    policy = gpt2()
    return {"model": policy, "value_model": classifier(policy.transformer)}


def policy_and_reward():
    policy = gpt2()
    return {"model": policy, "reward_model": classifier(policy.transformer)}


def adapted_policy_and_plain_reward():
    base = gpt2()
    return {"model": get_peft_model(base, lora()), "reward_model": [sevens, classifier(base.transformer)]}


def policy_and_mixture():
    policy = gpt2()
    mixture = MixtureRewardModel.from_base(policy, 2, "lora", processing_class=build_word_tokenizer())
    policy.requires_grad_(True)
    return {"model": policy, "reward_model": mixture}


def reference_and_critic():
    reference = gpt2(1)
    return {"ref_model": reference, "value_model": classifier(reference.transformer)}


def reference_and_reward():
    reference = gpt2(1)
    return {"ref_model": reference, "reward_model": classifier(reference.transformer)}


def critic_is_reward():
    model = critic_model(1)
    return {"value_model": model, "reward_model": model}


def critic_with_an_adapter_on_the_reward():
    model = critic_model(1)
    return {"value_model": model, "reward_model": [brevity, model], "peft_config": lora(), "critic": "scalar"}


def critic_and_mixture():
    mixture = MixtureRewardModel.from_base(gpt2(1), 2, "head", processing_class=build_word_tokenizer())
    return {"value_model": classifier(mixture.trunk), "reward_model": mixture}


SHARED = {
    policy_and_reference: ("policy", "reference"),
    adapter_and_its_own_base: ("policy", "reference"),
    two_adapters_on_one_base: ("policy", "reference"),
    policy_and_critic: ("policy", "critic"),
    policy_and_reward: ("policy", "GPT2ForSequenceClassification"),
    adapted_policy_and_plain_reward: ("policy", "GPT2ForSequenceClassification"),
    policy_and_mixture: ("policy", "MixtureRewardModel"),
    reference_and_critic: ("reference", "critic"),
    reference_and_reward: ("reference", "GPT2ForSequenceClassification"),
    critic_is_reward: ("critic", "GPT2ForSequenceClassification"),
    critic_with_an_adapter_on_the_reward: ("critic", "GPT2ForSequenceClassification"),
    critic_and_mixture: ("critic", "MixtureRewardModel"),
}


@pytest.mark.parametrize("roles", SHARED, ids=lambda roles: roles.__name__)
def test_roles_that_share_what_is_trained_are_refused(make, roles):
    first, second = SHARED[roles]
    message = rf"{first}.* and .*{second}.* share the parameter '.*(wte|wpe|lora_A|h\.0).*'.*(Leave|Load)"
    with pytest.raises(ValueError, match=message):
        make(**roles())


@pytest.mark.parametrize("reward", ["function", "mixture", "twice"])
def test_roles_on_one_frozen_base_are_not(make, word_tokenizer, reward):
    base = gpt2()
    policy = get_peft_model(base, lora())
    other = classifier(gpt2(3).transformer)
    rewards = {"function": sevens, "twice": [other, other]}
    mixture = reward == "mixture" and MixtureRewardModel.from_base(base, 2, "lora", processing_class=word_tokenizer)
    trainer = make(model=policy, critic_adapter=True, reward_model=mixture or rewards[reward], max_steps=1)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    adapters = {name.split("lora_B.")[1].split(".")[0] for name in moved if "lora_B" in name}
    assert adapters == {"default", "trl_maxmin_critic"}
    assert all("lora_" in name or "value_head" in name for name in moved)


def test_nothing_to_train_is_an_error(make):
    with pytest.raises(ValueError, match="No parameter of the policy is trainable. Give a `peft_config`"):
        make(model=gpt2().requires_grad_(False))
    adapter = get_peft_model(gpt2(), lora()).requires_grad_(False)
    with pytest.raises(ValueError, match="trainable. Load the adapter with `is_trainable=True`"):
        make(model=adapter)
    base = gpt2()
    mixture = MixtureRewardModel.from_base(base, 2, "lora", processing_class=build_word_tokenizer())
    with pytest.raises(ValueError, match="No parameter of the policy is trainable.*mixture of adapters freezes"):
        make(model=base, reward_model=mixture)


def test_a_frozen_critic_is_a_warning(make):
    with pytest.warns(UserWarning, match="No parameter of `value_model` is trainable"):
        make(value_model=critic_model(1).requires_grad_(False))


def bert(cls, **kwargs):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return cls(BertConfig(vocab_size=36, **sizes, **kwargs))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=36, **sizes))


def mixture():
    return MixtureRewardModel.from_base(gpt2(1), 2, "head")


UNFIT = [
    ({"model": lambda: bert(BertModel)}, r"`model` \(the policy\) must be a decoder.*BertModel.*AutoModelForCausalLM"),
    ({"model": lambda: bert(BertForSequenceClassification)}, "policy.*BertForSequenceClassification"),
    ({"model": lambda: bert(BertLMHeadModel)}, "BertLMHeadModel reads later tokens.*is_decoder=True"),
    ({"model": t5}, "policy.*T5ForConditionalGeneration"),
    ({"model": mixture}, "policy.*MixtureRewardModel"),
    ({"model": lambda: critic_model(1)}, "policy.*GPT2ForSequenceClassification"),
    ({"model": lambda: nn.Linear(2, 2)}, "policy.*Linear"),
    ({"ref_model": t5}, r"`ref_model` \(the reference\) must be.*T5ForConditionalGeneration.*ref_model=None"),
    ({"ref_model": mixture}, "reference.*MixtureRewardModel"),
    ({"ref_model": lambda: critic_model(1)}, "reference.*GPT2ForSequenceClassification"),
    ({"ref_model": lambda: bert(BertLMHeadModel)}, "BertLMHeadModel reads later tokens"),
    ({"ref_model": lambda: gpt2(vocab_size=20)}, r"reference\) knows 20 tokens, but the policy writes 36"),
    ({"value_model": mixture}, r"`value_model` \(the critic\) is a MixtureRewardModel.*every token.*`reward_model`"),
    ({"value_model": t5}, "critic.*T5ForConditionalGeneration.*value_model=None"),
    ({"value_model": gpt2}, "critic.*GPT2LMHeadModel"),
    ({"value_model": lambda: bert(BertForSequenceClassification)}, "critic.*BertForSequenceClassification"),
    ({"processing_class": gpt2}, "`processing_class` is a GPT2LMHeadModel.*order of the arguments"),
    ({"reward_model": lambda: t5()}, "T5ForConditionalGeneration"),
]


@pytest.mark.parametrize(("wrong", "message"), UNFIT)
def test_who_cannot_play_a_part_is_told_so(make, wrong, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(**{name: build() for name, build in wrong.items()})


class TestHalfPrecision:
    def test_a_rate_below_the_resolution_of_the_weights_is_a_warning(self, make):
        model = gpt2().to(torch.bfloat16)
        with pytest.warns(UserWarning, match=r"bfloat16 and learning_rate is 3e-06.*steps of \de-05.*float32"):
            make(model=model, learning_rate=3e-6)

    def test_the_step_it_names_is_the_one_that_changes_weights(self, make):
        """The oracle is the rounding of torch: half of the weights move by such a step, almost none by a tenth."""
        model = gpt2(n_embd=64).to(torch.bfloat16)
        with pytest.warns(UserWarning, match="bfloat16") as caught:
            make(model=model, learning_rate=3e-6)
        text = next(str(w.message) for w in caught if "rounded" in str(w.message))
        step = float(text.split("steps of ")[1].split(" ")[0])
        weight = model.transformer.h[0].mlp.c_fc.weight.detach()
        share = [((weight + s) != weight).float().mean().item() for s in (step / 10, 2 * step)]
        assert share[0] < 0.15 and share[1] > 0.5

    @pytest.mark.parametrize("case", ["float32", "adapter", "large"])
    def test_who_can_follow_is_not_warned(self, make, recwarn, case):
        if case == "float32":
            make(learning_rate=1e-7)
        elif case == "adapter":
            make(model=gpt2().to(torch.bfloat16), peft_config=lora(), learning_rate=1e-6)
        else:
            make(model=gpt2().to(torch.bfloat16), learning_rate=1e-2)
        assert not [w for w in recwarn if "rounded" in str(w.message)]


class Scored(nn.Module):
    """A reward model that is no model of transformers: a trunk under a name, and `score`."""

    base_model_prefix = "body"

    def __init__(self, trunk):
        super().__init__()
        self.body, self.score = trunk, nn.Linear(trunk.config.hidden_size, 1, bias=False)


class TestRewardsAsTrlTookThem:
    """The oracle: what the model itself says of each reply alone, without padding."""

    def rewards(self, make, reward_model):
        trainer = make(reward_model=reward_model)
        ids = [[5, 7, 2], [9, 2], [6, 6, 6, 6]]
        inputs = [{"prompt_ids": [4, 8], "prompt": "the film", "finished": reply[-1] == 2} for reply in ids]
        words = [trainer.processing_class.decode([i for i in reply if i != 2]) for reply in ids]
        return trainer._calculate_rewards(inputs, [row["prompt"] for row in inputs], words, ids), ids

    @torch.no_grad()
    def test_an_adapter_that_is_not_merged(self, make):
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
        model = get_peft_model(critic_model(1), config).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "score" in name:
                nn.init.normal_(parameter)
        expected = [model(torch.tensor([[4, 8, *reply]])).logits.item() for reply in [[5, 7, 2], [9, 2], [6] * 4]]
        rewards, _ = self.rewards(make, model)
        assert rewards.flatten().tolist() == pytest.approx(expected, abs=1e-5)

    @torch.no_grad()
    def test_any_module_with_a_trunk_and_score(self, make):
        model = Scored(gpt2(4).transformer).eval()
        rewards, ids = self.rewards(make, [model, sevens])
        hidden = [model.body(torch.tensor([[4, 8, *reply]])).last_hidden_state[0, -1] for reply in ids]
        expected = [model.score(state).item() for state in hidden]
        assert rewards[:, 0].tolist() == pytest.approx(expected, abs=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("pad", [36, -1, None])
    def test_a_pad_token_that_the_model_cannot_embed(self, make, pad):
        model = critic_model(1).eval()
        expected = [model(torch.tensor([[4, 8, *reply]])).logits.item() for reply in [[5, 7, 2], [9, 2], [6] * 4]]
        model.config.pad_token_id = pad
        rewards, _ = self.rewards(make, model)
        assert rewards.flatten().tolist() == pytest.approx(expected, abs=1e-5)

    def test_virtual_tokens_are_refused(self, make):
        from peft import PromptTuningConfig

        model = get_peft_model(critic_model(1), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
        with pytest.raises(ValueError, match="virtual tokens.*LoRA"):
            make(reward_model=model)


class TestInfiniteRewards:
    def flawed(self, value):
        def shouty(completions, **kwargs):
            return [value if index == 0 else 1.0 for index in range(len(completions))]

        return shouty

    @pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e39])
    @pytest.mark.parametrize("maxmin", [False, True])
    def test_they_are_refused_by_name_and_no_weight_moves(self, make, value, maxmin):
        classes = (MaxMinPPOTrainer, MaxMinPPOConfig) if maxmin else ()
        extra = {"utility": "raw"} if maxmin else {}
        trainer = make(*classes, reward_model=[sevens, self.flawed(value)], **extra)
        before = weights(trainer)
        with pytest.raises(ValueError, match="'shouty' for 1 of 8 replies.*Clip.*None"):
            trainer.train()
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())

    def test_a_model_that_overflows_is_named(self, make):
        model = critic_model(1)
        model.config.name_or_path = "org/loud-reward"
        with torch.no_grad():
            model.transformer.ln_f.weight[0] = 1e3
            model.score.weight.zero_()[0, 0] = 3e38
        with pytest.raises(ValueError, match="'loud-reward' for [1-8] of 8 replies"):
            make(reward_model=model).train()

    def test_calibration_refuses_them_as_well(self, make):
        trainer = make(MaxMinPPOTrainer, MaxMinPPOConfig, reward_model=[sevens, self.flawed(float("inf"))])
        with pytest.raises(ValueError, match="'shouty' for 1 of"):
            trainer.train()

    def test_not_scored_stays_not_scored(self, make):
        trainer = make(reward_model=self.flawed(None))
        trainer.train()
        assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


def test_infinite_rewards_in_grpo_and_rloo(trl_make):
    def shouty(completions, **kwargs):
        return [float("inf")] * len(completions)

    trainer = trl_make(reward_funcs=[sevens, shouty], utility="raw")
    with pytest.raises(ValueError, match="'shouty' for"):
        trainer.train()


@pytest.mark.parametrize("kind", ["adapter", "module"])
def test_grpo_and_rloo_take_the_same_reward_models(trl_make, kind):
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    reward = get_peft_model(critic_model(1), config) if kind == "adapter" else Scored(gpt2(4).transformer)
    trainer = trl_make(reward_funcs=[sevens, reward], utility="raw", max_steps=1)
    trainer.train()
    means = [value for entry in trainer.state.log_history for name, value in entry.items() if name.endswith("/mean")]
    assert len(means) == 2 and all(value == value for value in means)
