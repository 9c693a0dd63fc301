# SPDX-License-Identifier: Apache-2.0
"""The root module: its log-probabilities against the model's own logits, values, saving."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

from trl_maxmin.trainer.ppo.checkpoint import load_critic, save_critic
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic, check_head
from trl_maxmin.trainer.ppo.policy_adapters import CRITIC_ADAPTER, add_reference_adapter


VOCABULARY = 31
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
FAMILIES = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=16, n_positions=32),
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    "granite": GraniteConfig(**SMALL, logits_scaling=3.0),
    "cohere": CohereConfig(**SMALL, logit_scale=0.25, bos_token_id=1, eos_token_id=2, pad_token_id=0),
}


def build(family="gpt2", seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager")
    # Far from uniform, so that a wrong logit shows.
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    return model.eval()


def batch():
    """Two rows: prompts of 3 and 1 tokens (left padded), replies of 2 and 4 tokens (right padded)."""
    ids = torch.tensor([[5, 6, 7, 8, 2, 0, 0], [0, 0, 9, 10, 11, 12, 13]])
    prompt = torch.tensor([[True, True, True], [False, False, True]])
    reply = torch.tensor([[True, True, False, False], [True, True, True, True]])
    return {
        "input_ids": ids,
        "attention_mask": torch.cat([prompt, reply], 1),
        "completion_mask": reply,
        "completion_ids": ids[:, 3:],
    }


def own_logprobs(model, temperature=1.0):
    """Row by row without any padding, from the model's own logits."""
    rows = [([5, 6, 7], [8, 2]), ([9], [10, 11, 12, 13])]
    result = torch.zeros(2, 4)
    entropy = torch.zeros(2, 4)
    for i, (prompt, reply) in enumerate(rows):
        logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].float() / temperature
        log_all = logits.log_softmax(-1)
        result[i, : len(reply)] = log_all[torch.arange(len(reply)), torch.tensor(reply)]
        entropy[i, : len(reply)] = torch.distributions.Categorical(logits=logits).entropy()
    return result, entropy


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logprobs_are_those_of_the_models_own_logits(family):
    model = build(family)
    expected, entropy = own_logprobs(model, temperature=0.7)
    logprobs, got_entropy, values = PolicyWithCritic(model, 3)(**batch(), temperature=0.7, with_entropy=True)
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(got_entropy, entropy, atol=2e-5, rtol=2e-5)
    assert logprobs.dtype == values.dtype == torch.float32 and values.shape == (2, 4, 3)


@torch.no_grad()
def test_values_are_those_of_the_state_before_each_token():
    model = build()
    root = PolicyWithCritic(model, 2)
    _, entropy, values = root(**batch())
    assert entropy is None
    hidden = model.transformer(torch.tensor([[9, 10, 11, 12, 13]])).last_hidden_state[0, :-1]
    torch.testing.assert_close(values[1], root.value_head(hidden), atol=1e-5, rtol=1e-5)
    assert not values[0, 2:].any()


def test_chunks_change_neither_values_nor_gradients():
    gradients = []
    for size in (4096, 2, 1):
        root = PolicyWithCritic(build(), 2, logits_chunk_size=size)
        logprobs, _, values = root(**batch())
        (logprobs.sum() + values.sum()).backward()
        gradients.append((logprobs.detach(), [p.grad for p in root.parameters()]))
    for logprobs, grads in gradients[1:]:
        torch.testing.assert_close(logprobs, gradients[0][0])
        torch.testing.assert_close(grads, gradients[0][1])


def test_detached_critic_leaves_the_trunk_alone():
    for detach in (False, True):
        root = PolicyWithCritic(build(), 2, critic_detach=detach)
        root(**batch())[2].sum().backward()
        assert (root.policy.transformer.wte.weight.grad is None) == detach
        assert root.value_head.weight.grad.abs().sum() > 0


def test_no_tokens_at_all_is_finite_and_has_a_gradient():
    root = PolicyWithCritic(build(), 2)
    inputs = batch()
    inputs["attention_mask"][:, 3:] = False
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    logprobs, _, values = root(**inputs)
    (logprobs.sum() + values.sum()).backward()
    assert logprobs.tolist() == [[0.0] * 4] * 2
    assert all(torch.isfinite(p.grad).all() for p in root.parameters() if p.grad is not None)


def test_head_starts_small_and_neither_reads_nor_moves_the_random_state():
    model = build()
    torch.manual_seed(1)
    first = PolicyWithCritic(model, 2).value_head.weight
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = PolicyWithCritic(model, 2).value_head
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second.weight) and first.abs().max() < 0.5 and not second.bias.any()


@torch.no_grad()
def test_values_are_float32_where_a_wrapper_has_cast_the_head():
    """DeepSpeed casts every parameter to bfloat16, FSDP2 the gathered ones; the optimizer keeps float32."""
    root = PolicyWithCritic(build().to(torch.bfloat16), 2).to(torch.bfloat16)
    _, _, values = root(**batch())
    hidden = root.policy.transformer(torch.tensor([[9, 10, 11, 12, 13]])).last_hidden_state[0, :-1]
    expected = hidden.double() @ root.value_head.weight.double().T + root.value_head.bias.double()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[1].double(), expected, atol=1e-5, rtol=1e-5)


class TestValueModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_layer=1, n_head=2, n_embd=8, n_positions=32, num_labels=3, pad_token_id=0
    )

    @torch.no_grad()
    def test_its_own_trunk_and_score(self):
        torch.manual_seed(3)
        critic = GPT2ForSequenceClassification(self.config).eval()
        _, _, values = PolicyWithCritic(build(), 3, value_model=critic)(**batch())
        hidden = critic.transformer(torch.tensor([[5, 6, 7, 8, 2]])).last_hidden_state[0, 2:-1]
        torch.testing.assert_close(values[0, :2], critic.score(hidden), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_autocast_does_not_round_its_values(self):
        torch.manual_seed(3)
        critic = GPT2ForSequenceClassification(self.config).eval()
        with torch.autocast("cpu", torch.bfloat16):
            _, _, values = PolicyWithCritic(build(), 3, value_model=critic)(**batch())
            hidden = critic.transformer(torch.tensor([[9, 10, 11, 12, 13]])).last_hidden_state[0, :-1]
        assert values.dtype == torch.float32
        expected = hidden.double() @ critic.score.weight.double().T
        torch.testing.assert_close(values[1].double(), expected, atol=1e-5, rtol=1e-5)

    def test_wrong_number_of_labels(self):
        with pytest.raises(ValueError, match="3 labels, but the critic needs 2"):
            PolicyWithCritic(build(), 2, value_model=GPT2ForSequenceClassification(self.config))

    def test_an_encoder_is_refused(self):
        config = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        with pytest.raises(ValueError, match="`score` layer, got BertForSequenceClassification"):
            PolicyWithCritic(build(), 2, value_model=BertForSequenceClassification(config))

    @pytest.mark.parametrize("adapter", [False, True])
    def test_save_and_load(self, tmp_path, adapter):
        def critic(seed):
            torch.manual_seed(seed)
            model = GPT2ForSequenceClassification(self.config)
            if not adapter:
                return model
            model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], r=2))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_()
            return model

        first = PolicyWithCritic(build(), 3, value_model=critic(0)).eval()
        second = PolicyWithCritic(build(), 3, value_model=critic(0 if not adapter else 5)).eval()
        if adapter:
            second.value_model.get_base_model().load_state_dict(first.value_model.get_base_model().state_dict())
        for parameter in second.value_model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(1.0)
        save_critic(first, tmp_path)
        load_critic(second, tmp_path)
        torch.testing.assert_close(first(**batch())[2], second(**batch())[2])


class TestAdapters:
    @staticmethod
    def lora(seed=0):
        model = get_peft_model(build(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        return model.eval()

    @torch.no_grad()
    def test_lora_policy(self):
        model = self.lora()
        expected, _ = own_logprobs(model)
        torch.testing.assert_close(PolicyWithCritic(model, 1)(**batch())[0], expected, atol=2e-5, rtol=2e-5)

    @torch.no_grad()
    def test_reference_modes(self):
        model = self.lora()
        bare, _ = own_logprobs(build())
        trained, _ = own_logprobs(model)
        name = add_reference_adapter(model)
        root = PolicyWithCritic(model, 1)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B.default" in parameter_name:
                assert parameter.requires_grad
                parameter.data.zero_()
            elif name in parameter_name:
                assert not parameter.requires_grad
        with root.reference_mode(name):
            torch.testing.assert_close(root(**batch())[0], trained, atol=2e-5, rtol=2e-5)
        with root.reference_mode():
            torch.testing.assert_close(root(**batch())[0], bare, atol=2e-5, rtol=2e-5)
        assert model.active_adapter == "default"
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trainable and all(".default." in n for n in trainable)

    @pytest.mark.parametrize("given", [False, True])
    def test_the_reference_freezes_no_adapter(self, given):
        root = self.critic()
        name = add_reference_adapter(root.policy) if given else None
        before = {n for n, p in root.named_parameters() if p.requires_grad}
        assert any(CRITIC_ADAPTER in n for n in before)
        with pytest.raises(RuntimeError, match="inside"), root.reference_mode(name):
            raise RuntimeError("inside")
        assert {n for n, p in root.named_parameters() if p.requires_grad} == before

    def critic(self, seed=0):
        """A root whose critic's adapter differs from the policy's."""
        root = PolicyWithCritic(self.lora(seed), 2, critic_adapter=True)
        torch.manual_seed(seed + 1)
        for name, parameter in root.policy.named_parameters():
            if f"lora_B.{CRITIC_ADAPTER}" in name:
                parameter.data.normal_(std=0.3)
        root.value_head.weight.data.normal_()
        return root

    @torch.no_grad()
    def test_a_critic_adapter_leaves_the_policy_and_reads_its_own_states(self):
        root = self.critic()
        logprobs, _, values = root(**batch())
        expected, _ = own_logprobs(self.lora())
        torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=2e-5)
        root.policy.set_adapter(CRITIC_ADAPTER)
        for row, (prompt, reply) in enumerate([([5, 6, 7], [8, 2]), ([9], [10, 11, 12, 13])]):
            states = root.policy(torch.tensor([prompt + reply]), output_hidden_states=True).hidden_states[-1]
            own = root.value_head(states[0, len(prompt) - 1 : -1])
            torch.testing.assert_close(values[row, : len(reply)], own, atol=2e-5, rtol=2e-5)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_each_loss_moves_its_own_adapter(self, checkpointing):
        """With checkpointing a layer has to be computed again under the adapter it ran with."""
        gradients = []
        for recompute in (False, checkpointing):
            root = self.critic().train()
            if recompute:
                root.activation_checkpointing_enable()
                assert root.is_activation_checkpointing
            logprobs, _, values = root(**batch())
            (logprobs.sum() + values.square().sum()).backward()
            gradients.append({n: p.grad for n, p in root.named_parameters() if p.grad is not None})
        assert {name.split(".")[-2] for name in gradients[0] if "lora" in name} == {"default", CRITIC_ADAPTER}
        assert all("lora" in name or "value_head" in name for name in gradients[0])
        torch.testing.assert_close(gradients[1], gradients[0])
        root = self.critic()
        root(**batch())[2].square().sum().backward()
        assert all(p.grad is None or not p.grad.any() for n, p in root.named_parameters() if ".default." in n)

    def test_a_critic_adapter_is_saved_beside_the_policy(self, tmp_path):
        root, other = self.critic(), self.critic(seed=5)
        save_critic(root, tmp_path)
        other.policy.load_state_dict(
            {n: w for n, w in root.policy.state_dict().items() if CRITIC_ADAPTER not in n}, strict=False
        )
        load_critic(other, tmp_path)
        with torch.no_grad():
            for ours, theirs in zip(root(**batch())[::2], other(**batch())[::2], strict=True):
                assert torch.equal(ours, theirs)
        head_only = tmp_path / "head"
        head_only.mkdir()
        save_critic(PolicyWithCritic(self.lora(), 2), head_only)
        with pytest.raises(FileNotFoundError, match="critic_adapter=False"):
            load_critic(other, head_only)

    def test_a_critic_adapter_needs_an_adapter_and_its_own_checkpointing(self):
        with pytest.raises(ValueError, match="critic_adapter=True needs a policy with an adapter"):
            PolicyWithCritic(build(), 2, critic_adapter=True)
        with pytest.raises(ValueError, match="non-reentrant"):
            self.critic().activation_checkpointing_enable({"use_reentrant": True})

    def test_the_critic_is_not_asked_where_its_values_are_not_used(self):
        root = self.critic()
        root.value_head.forward = None
        assert root(**batch(), with_values=False)[2].shape == (2, 4, 0)

    def test_prompt_learning_is_refused(self):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        with pytest.raises(ValueError, match="LoRA"):
            PolicyWithCritic(get_peft_model(build(), config))


def test_not_a_language_model():
    with pytest.raises(ValueError, match="GPT2Model"):
        PolicyWithCritic(GPT2Model(FAMILIES["gpt2"]))


def test_check_head_notices_an_unknown_family():
    class Doubled(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    torch.manual_seed(0)
    model = Doubled(FAMILIES["gpt2"])
    model.transformer.wte.weight.data.mul_(20)
    with pytest.raises(ValueError, match="Doubled"):
        check_head(model)
    for family in FAMILIES:
        check_head(build(family))


def test_save_and_load_head(tmp_path):
    root, other = PolicyWithCritic(build(), 2), PolicyWithCritic(build(), 2)
    root.value_head.weight.data.fill_(0.25)
    save_critic(root, tmp_path)
    load_critic(other, tmp_path)
    assert torch.equal(other.value_head.weight, root.value_head.weight)


def test_load_without_a_critic(tmp_path):
    with pytest.raises(FileNotFoundError, match="value_head.safetensors is missing"):
        load_critic(PolicyWithCritic(build(), 2), tmp_path)


def test_gradient_checkpointing_is_passed_on_and_changes_no_gradient():
    gradients = []
    for on in (False, True):
        root = PolicyWithCritic(build(), 2).train()
        for module in root.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert not root.is_gradient_checkpointing
        if on:
            root.gradient_checkpointing_enable()
            assert root.is_gradient_checkpointing
        root(**batch())[0].sum().backward()
        gradients.append(root.policy.transformer.wte.weight.grad)
    torch.testing.assert_close(*gradients)
    root.gradient_checkpointing_disable()
    assert not root.is_activation_checkpointing
