# SPDX-License-Identifier: Apache-2.0
"""Contract of the mixture: shapes, pooling, save and load, one component as a plain model, text and ids alike."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    T5Config,
)

from tests.families import DECODERS, ENCODERS
from trl_maxmin.data.tokenization import encode_prompt
from trl_maxmin.models import MixtureRewardModel, MixtureRewardModelConfig
from trl_maxmin.models.base import context_length
from trl_maxmin.models.families import get_linear
from trl_maxmin.models.scoring import pool_last_token


SMALL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
BERT_LIKE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE,
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64},
    "modernbert": BERT_LIKE | {"cls_token_id": 1, "sep_token_id": 2},
}


def base_config(model_type):
    return AutoConfig.for_model(model_type, **SMALL, **SIZES.get(model_type, LLAMA_LIKE))


def make(model_type="gpt2", component_type="head", num_components=3, **kwargs):
    torch.manual_seed(0)
    config = MixtureRewardModelConfig(
        base_config=base_config(model_type), component_type=component_type, num_components=num_components, **kwargs
    )
    model = MixtureRewardModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # fresh adapters change nothing; the components must differ
                parameter.normal_(std=0.1)
    return model


def batch():
    """Two right-padded rows of 6 and 4 tokens; the pad id occurs nowhere else."""
    ids = torch.tensor([[1, 5, 9, 7, 3, 2], [1, 8, 6, 2, 0, 0]])
    return ids, (ids != 0).long()


@pytest.mark.parametrize(
    ("model_type", "component_type", "kernel_features"),
    [
        *((family, kind, 0) for family in ("gpt2", "roberta") for kind in ("head", "lora", "full")),
        ("gpt2", "head", 32),
    ],
)
@torch.no_grad()
def test_heads_do_not_round_under_autocast(model_type, component_type, kernel_features):
    """What the trunk gives is bfloat16; the reward is the float64 product of it and the head, to float32."""
    model = make(model_type, component_type, kernel_features=kernel_features)
    for component in model.components:
        get_linear(component).weight.mul_(100)
    with torch.autocast("cpu", torch.bfloat16):
        rewards, features = model(*batch()).rewards, model.features(*batch())
    rows = torch.cat([get_linear(component).weight for component in model.components]).double()
    bias = [get_linear(component).bias for component in model.components]
    expected = (features.double() * rows).sum(-1) + (0 if bias[0] is None else torch.cat(bias))
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards.double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_heads_of_a_half_precision_mixture_do_not_round():
    model = make("llama").to(torch.bfloat16)
    hidden = model.trunk(*batch()).last_hidden_state[[0, 1], [5, 3]]
    expected = hidden.double() @ get_linear(model.components[0]).weight.double().T
    rewards = model(*batch()).rewards
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("component_type", ["head", "lora", "full"])
@pytest.mark.parametrize("model_type", [*DECODERS, *ENCODERS])
class TestEveryFamily:
    def test_component_equals_its_column(self, model_type, component_type):
        model = make(model_type, component_type)
        ids, mask = batch()
        rewards = model(ids, mask).rewards
        assert rewards.shape == (2, 3)
        for k in range(3):
            plain = model.component(k).eval()
            assert plain.config.num_labels == 1
            torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits[:, 0], rewards[:, k])

    def test_padding_changes_nothing(self, model_type, component_type):
        model = make(model_type, component_type)
        ids, mask = batch()
        alone = model(ids[1:, :4], mask[1:, :4]).rewards
        torch.testing.assert_close(model(ids, mask).rewards[1:], alone, atol=1e-5, rtol=1e-4)

    def test_save_and_load_give_equal_scores(self, model_type, component_type, tmp_path):
        model = make(model_type, component_type, component_names=["a", "b", "c"])
        model.save_pretrained(tmp_path)
        ids, mask = batch()
        for loader in (MixtureRewardModel, AutoModel):
            loaded = loader.from_pretrained(tmp_path).eval()
            assert loaded.component_names == ["a", "b", "c"]
            torch.testing.assert_close(loaded(ids, mask).rewards, model(ids, mask).rewards)

    def test_component_loads_without_this_package(self, model_type, component_type, tmp_path):
        model = make(model_type, component_type)
        model.save_component(1, tmp_path)
        loader = (
            AutoPeftModelForSequenceClassification if component_type == "lora" else AutoModelForSequenceClassification
        )
        plain = loader.from_pretrained(tmp_path).eval()
        ids, mask = batch()
        torch.testing.assert_close(
            plain(input_ids=ids, attention_mask=mask).logits[:, 0], model(ids, mask).rewards[:, 1]
        )

    def test_scale_heads_divides_every_reward(self, model_type, component_type):
        model = make(model_type, component_type)
        with torch.no_grad():
            for component in model.components:
                bias = get_linear(component).bias
                if bias is not None:
                    bias.fill_(0.3)
        ids, mask = batch()
        before = model(ids, mask).rewards
        model.scale_heads([1.0, 2.0, 0.5])
        torch.testing.assert_close(model(ids, mask).rewards, before / torch.tensor([1.0, 2.0, 0.5]))
        assert model.config.temperatures == [1.0, 2.0, 0.5]


def test_left_padding_changes_nothing_for_a_decoder():
    model = make("gpt2")
    ids, mask = batch()
    left = torch.tensor([[0, 0, 1, 8, 6, 2]])
    torch.testing.assert_close(
        model(left, torch.tensor([[0, 0, 1, 1, 1, 1]])).rewards, model(ids, mask).rewards[1:], atol=1e-5, rtol=1e-4
    )


def test_pooling_follows_the_mask_not_the_pad_id():
    """EOS equal to the pad token is still read when the mask says that it is real."""
    hidden = torch.arange(8.0).reshape(1, 4, 2)
    assert pool_last_token(hidden, torch.tensor([[1, 1, 1, 0]])).tolist() == [[4.0, 5.0]]
    model = make("gpt2")
    model.config.pad_token_id = 2
    ids = torch.tensor([[1, 5, 2, 2]])
    with_eos = model(ids, torch.tensor([[1, 1, 1, 0]])).rewards
    without_eos = model(ids, torch.tensor([[1, 1, 0, 0]])).rewards
    torch.testing.assert_close(with_eos, model(ids[:, :3]).rewards, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(with_eos, without_eos)


def test_logits_raises_with_the_remedy():
    ids, mask = batch()
    with pytest.raises(AttributeError, match="reward_functions"):
        _ = make()(ids, mask).logits


def test_head_kind_is_one_forward_of_one_trunk():
    model = make("gpt2", "head", num_components=8)
    calls = []
    model.components[0].transformer.register_forward_hook(lambda *_: calls.append(1))
    model(*batch())
    assert calls == [1]


def test_from_base_takes_over_the_trunk(tmp_path, word_tokenizer):
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0)
    )
    language_model.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    for source in (language_model, str(tmp_path)):
        for component_type in ("head", "full"):
            mixture = MixtureRewardModel.from_base(source, 2, component_type, processing_class=None)
            for component in mixture.components:
                torch.testing.assert_close(component.transformer.wte.weight, language_model.transformer.wte.weight)
                torch.testing.assert_close(
                    component.transformer.h[0].attn.c_attn.weight, language_model.transformer.h[0].attn.c_attn.weight
                )
    assert mixture.processing_class is not None


class TestTokenizer:
    def test_pad_less_tokenizer_gets_a_pad_token_of_its_own(self, word_tokenizer, tmp_path):
        tokenizer = copy.deepcopy(word_tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
        size = len(tokenizer)
        config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        torch.manual_seed(0)
        mixture = MixtureRewardModel.from_base(AutoModelForCausalLM.from_config(config), 2, processing_class=tokenizer)
        own = mixture.processing_class
        assert tokenizer.pad_token == tokenizer.eos_token, "the user's tokenizer must not be changed"
        assert own.pad_token_id not in (None, own.eos_token_id)
        assert mixture.get_input_embeddings().num_embeddings >= len(own) > size
        words = [t for t in own.get_vocab() if t not in own.all_special_tokens][:6]
        prompts, replies = [" ".join(words[:2])] * 2, [words[3], " ".join(words[2:6])]
        scores = mixture.score(prompts, replies)
        mixture.save_component(0, tmp_path)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        texts = [f"{p} {r} {own.eos_token}" for p, r in zip(prompts, replies, strict=True)]
        with torch.no_grad():
            logits = plain(**loaded(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits
        torch.testing.assert_close(logits[:, 0], scores[:, 0], atol=1e-5, rtol=1e-4)

    def test_text_and_ids_score_the_same(self, word_tokenizer):
        mixture = self._mixture(word_tokenizer)
        words = [t for t in word_tokenizer.get_vocab() if t not in word_tokenizer.all_special_tokens]
        prompts = [" ".join(words[:3]), words[1]]
        replies = [" ".join(words[2:4]), " ".join(words[:5])]
        own = mixture.processing_class
        prompt_ids = [encode_prompt(own, p) for p in prompts]
        finished = [True, False]
        completion_ids = [
            own(r, add_special_tokens=False)["input_ids"] + ([own.eos_token_id] if f else [])
            for r, f in zip(replies, finished, strict=True)
        ]
        by_text = mixture.score(prompts, replies, finished=finished)
        by_ids = mixture.score(prompt_ids=prompt_ids, completion_ids=completion_ids)
        torch.testing.assert_close(by_text, by_ids)
        assert not torch.allclose(by_text, mixture.score(prompts, replies, finished=True)), "EOS must matter"

    def test_order_and_batch_size_do_not_matter(self, word_tokenizer):
        mixture = self._mixture(word_tokenizer)
        generator = torch.Generator().manual_seed(0)
        ids = [torch.randint(4, 12, (n,), generator=generator).tolist() for n in (7, 1, 4, 9, 2)]
        together = mixture.score(prompt_ids=[[1]] * 5, completion_ids=ids, batch_size=5)
        one_by_one = torch.cat([mixture.score(prompt_ids=[[1]], completion_ids=[i]) for i in ids])
        torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-4)

    def test_reward_functions_share_one_forward(self, word_tokenizer):
        mixture = self._mixture(word_tokenizer)
        calls = []
        mixture.register_forward_hook(lambda *_: calls.append(1))
        functions = mixture.reward_functions()
        assert [f.__name__ for f in functions] == mixture.component_names
        words = [t for t in word_tokenizer.get_vocab() if t not in word_tokenizer.all_special_tokens]
        prompts, completions = [words[0]] * 2, [words[1], words[2]]
        columns = [f(prompts=prompts, completions=completions, extra=[1, 2]) for f in functions]
        assert calls == [1]
        torch.testing.assert_close(torch.tensor(columns).T, mixture.score(prompts, completions))
        functions[0](prompts=prompts, completions=completions[::-1])
        assert len(calls) == 3, "another batch is another forward"

    @staticmethod
    def _mixture(tokenizer):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
        mixture = MixtureRewardModel.from_base(AutoModelForCausalLM.from_config(config), 2, processing_class=tokenizer)
        with torch.no_grad():  # random heads of a fresh model are nearly zero; make the numbers visible
            get_linear(mixture.components[0]).weight.mul_(50)
        return mixture


def test_assign_new_annotators(word_tokenizer):
    mixture = TestTokenizer._mixture(word_tokenizer)
    # Sorted: the order of `get_vocab` changes from process to process.
    words = sorted(t for t in word_tokenizer.get_vocab() if t not in word_tokenizer.all_special_tokens)
    pairs = [(words[i], words[j]) for i in range(6) for j in range(6) if i != j]
    scores = {w: mixture.score([""], [w])[0] for w in words[:6]}
    rows = []
    for k, who in enumerate(["likes-first", "likes-second"]):
        for a, b in pairs:
            chosen, rejected = (a, b) if scores[a][k] > scores[b][k] else (b, a)
            rows.append({"prompt": "", "chosen": chosen, "rejected": rejected, "annotator_id": who})
    posterior = mixture.assign(Dataset.from_list(rows))
    assert posterior.annotator_ids == ("likes-first", "likes-second")
    torch.testing.assert_close(posterior.probabilities.sum(-1), torch.ones(2, dtype=torch.float64))
    assert posterior.probabilities.argmax(-1).tolist() == [0, 1]
    # By the definition: pi_k exp(alpha L_k), under the rewards before their temperatures were divided out.
    mixture.config.evidence_weight = 0.25
    mixture.scale_heads([2.0, 4.0])
    tempered = mixture.assign(Dataset.from_list(rows)).probabilities
    for k in range(2):
        own = rows[k * len(pairs) : (k + 1) * len(pairs)]
        difference = torch.stack([scores[row["chosen"]] - scores[row["rejected"]] for row in own]).double()
        evidence = -torch.log1p((-difference).exp()).sum(0)
        weight = mixture.mixing_weights * (0.25 * (evidence - evidence.max())).exp()
        torch.testing.assert_close(tempered[k], weight / weight.sum(), atol=1e-5, rtol=1e-5)


class TestCalibration:
    def test_shift_and_scale_by_hand_and_saved(self, word_tokenizer, tmp_path):
        mixture = TestTokenizer._mixture(word_tokenizer)
        words = [t for t in word_tokenizer.get_vocab() if t not in word_tokenizer.all_special_tokens]
        prompts, replies = words[:2], [words[2:6], words[6:10]]
        rewards = np.array(
            [[mixture.score([p], [r])[0].tolist() for r in rs] for p, rs in zip(prompts, replies, strict=True)]
        )
        mixture.calibrate(prompts, replies)
        np.testing.assert_allclose(mixture.reward_shift, rewards.mean((0, 1)), rtol=1e-4, atol=1e-4)
        within = [rewards[i].std(axis=0, ddof=1) ** 2 for i in range(2)]
        np.testing.assert_allclose(mixture.reward_scale, np.sqrt(np.mean(within, axis=0)), rtol=1e-4)
        mixture.save_pretrained(tmp_path)
        loaded = MixtureRewardModel.from_pretrained(tmp_path)
        assert loaded.config.reward_scale == mixture.config.reward_scale

    def test_too_few_or_ragged_replies_are_refused(self, word_tokenizer):
        mixture = TestTokenizer._mixture(word_tokenizer)
        with pytest.raises(ValueError, match="same number of replies"):
            mixture.calibrate(["film", "plot"], [["great"] * 4, ["great"] * 3])
        with pytest.raises(ValueError, match="4"):
            mixture.calibrate(["film"], [["great", "dull", "weak"]])


class TestErrors:
    def test_unknown_family_names_those_supported(self):
        with pytest.raises(ValueError, match="'t5'.*gpt2.*modernbert"):
            MixtureRewardModel(MixtureRewardModelConfig(base_config=T5Config()))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"component_type": "lorra"}, "lorra.*head.*full"),
            ({"num_components": 0}, "from 1 to 1,000, got 0"),
            ({"component_names": ["a"]}, "1 entries.*2 components"),
            ({"component_names": ["a", "a"]}, "distinct"),
            ({"mixing_weights": [0.7, 0.7]}, "sum to 1"),
            ({"reward_scale": [1.0, -1.0]}, "reward_scale must be positive"),
            ({"component_annotators": [3]}, "component_annotators has 1 entries.*2 components"),
            ({"component_annotators": [3, -1]}, r"numbers of people.*\[3, -1\]"),
            ({"component_annotators": [0, 0]}, r"not all of them 0, got \[0, 0\]"),
            ({"component_pairs": [5]}, "component_pairs has 1 entries.*2 components"),
            ({"component_pairs": [5, -1]}, r"numbers of pairs.*\[5, -1\]"),
            ({"evidence_weight": 0.0}, r"evidence_weight must lie in \(0, 1\], got 0.0"),
            ({"evidence_weight": 1.5}, r"evidence_weight must lie in \(0, 1\], got 1.5"),
        ],
    )
    def test_config(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            MixtureRewardModelConfig(base_config=base_config("gpt2"), **kwargs)

    def test_component(self):
        with pytest.raises(ValueError, match="no component 7.*component_2"):
            make().component(7)
        with pytest.raises(ValueError, match="no component 'x'"):
            make().component("x")

    def test_score(self, word_tokenizer):
        model = make()
        with pytest.raises(ValueError, match="either"):
            model.score(["a"])
        with pytest.raises(ValueError, match="needs a tokenizer"):
            model.score(["a"], ["b"])
        with pytest.raises(ValueError, match="70 tokens.*1 to 64"):
            model.score(prompt_ids=[[3] * 60], completion_ids=[[4] * 10])

    def test_scale_heads(self):
        with pytest.raises(ValueError, match="3 positive temperatures"):
            make().scale_heads([1.0])

    def test_messages_need_a_chat_template(self, word_tokenizer):
        mixture = TestTokenizer._mixture(word_tokenizer)
        with pytest.raises(ValueError, match="chat template"):
            mixture.score([[{"role": "user", "content": "a"}]], ["b"])


def test_context_length_of_roberta_leaves_room_for_its_padding_index():
    assert context_length(base_config("roberta")) == 63
    assert context_length(base_config("bert")) == 64
