# SPDX-License-Identifier: Apache-2.0
import asyncio
import functools
import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from trl_maxmin.models import MixtureRewardModel, MixtureRewardModelConfig
from trl_maxmin.trainer.scoring.sources import (
    CallableReward,
    MixtureReward,
    RewardBatch,
    RewardSource,
    SequenceClassificationReward,
    StackedReward,
    build_reward_source,
    unique_names,
)


EOS = 2


@pytest.fixture
def tokenizer(word_tokenizer):
    return word_tokenizer


def gpt2(num_labels=1, vocab_size=64, **kwargs):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16, n_positions=24, num_labels=num_labels, **kwargs
    )
    return GPT2ForSequenceClassification(config).eval()


def mixture(tokenizer, num_components=2):
    torch.manual_seed(0)
    base = GPT2Config(vocab_size=64, n_layer=1, n_head=2, n_embd=16, n_positions=24, pad_token_id=0)
    model = MixtureRewardModel(
        MixtureRewardModelConfig(base_config=base, num_components=num_components, component_names=["short", "kind"])
    ).eval()
    model.attach_tokenizer(tokenizer)
    return model


def test_a_component_without_people_has_no_column(tokenizer):
    model = mixture(tokenizer)
    model.config.mixing_weights = [0.75, 0.25]
    both = MixtureReward(model, tokenizer)
    model.config.component_annotators = [0, 5]
    with pytest.warns(UserWarning, match="short of the mixture describes no annotator.*1 of 2.*num_components=1"):
        one = MixtureReward(model, tokenizer)
    assert one.names == ["kind"] and one.num_components == 1 and one.mixing_weights.tolist() == [1.0]
    prompts, completions, prompt_ids, completion_ids, finished = text_batch(tokenizer)
    for batch in (
        RewardBatch(prompts=prompts, completions=completions, finished=finished),
        RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids, finished=finished),
    ):
        torch.testing.assert_close(one(batch), both(batch)[:, 1:])


def shifted(tokenizer):
    """The same words under other ids: `<eos>` first."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<pad>", "<unk>", *[word for word in tokenizer.get_vocab() if not word.startswith("<")]]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def text_batch(tokenizer, finished=(True, False, True)):
    prompts = ["the film is", "a movie", "the plot of the film is very"]
    completions = ["superb", "rather dull and long", "weak but good"]
    prompt_ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    completion_ids = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in completions]
    completion_ids = [ids + [EOS] * ended for ids, ended in zip(completion_ids, finished, strict=True)]
    return prompts, completions, prompt_ids, completion_ids, list(finished)


def reward_of_one(model, ids):
    """The model's own forward on a single sequence without padding: nothing to infer."""
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, 0].item()


class TestSequenceClassification:
    @pytest.mark.parametrize("pad_token_id", [None, 0, EOS])
    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_reads_the_last_token_of_the_reply_whatever_the_pad_token(self, tokenizer, family, pad_token_id):
        if family == "gpt2":
            model = gpt2(pad_token_id=pad_token_id)
        else:
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=32,
                num_labels=1,
                pad_token_id=pad_token_id,
            )
            model = LlamaForSequenceClassification(config).eval()
        _, _, prompt_ids, completion_ids, _ = text_batch(tokenizer)
        rewards = SequenceClassificationReward(model)(
            RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids)
        )
        assert rewards.shape == (3, 1) and rewards.dtype == torch.float32 and not rewards.requires_grad
        expected = [reward_of_one(model, p + c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
        assert rewards.flatten().tolist() == pytest.approx(expected, abs=1e-5)

    def test_the_stop_token_counts(self, tokenizer):
        prompts, completions, *_ = text_batch(tokenizer)
        source = SequenceClassificationReward(gpt2(), processing_class=tokenizer)
        ended = source(RewardBatch(prompts=prompts, completions=completions, finished=[True] * 3))
        cut = source(RewardBatch(prompts=prompts, completions=completions, finished=[False] * 3))
        assert (ended - cut).abs().min() > 1e-6

    def test_batching_and_order_change_nothing(self, tokenizer):
        _, _, prompt_ids, completion_ids, _ = text_batch(tokenizer)
        batch = RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids)
        together = SequenceClassificationReward(gpt2(), batch_size=8)(batch)
        one_by_one = SequenceClassificationReward(gpt2(), batch_size=1)(batch)
        torch.testing.assert_close(together, one_by_one, atol=1e-6, rtol=1e-5)

    def test_ids_and_text_give_the_same_reward(self, tokenizer):
        prompts, completions, prompt_ids, completion_ids, finished = text_batch(tokenizer)
        source = SequenceClassificationReward(gpt2(), tokenizer, tokenizer)
        from_ids = source(RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids))
        from_text = source(RewardBatch(prompts=prompts, completions=completions, finished=finished))
        torch.testing.assert_close(from_ids, from_text)

    def test_foreign_tokenizer_reads_the_text_again(self, tokenizer):
        foreign = shifted(tokenizer)
        prompts, completions, prompt_ids, completion_ids, finished = text_batch(tokenizer)
        model = gpt2()
        source = build_reward_source((model, foreign), policy_tokenizer=tokenizer)
        rewards = source(RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids))
        eos = foreign.eos_token_id
        sequences = [
            foreign(p)["input_ids"] + foreign(c)["input_ids"] + [eos] * ended
            for p, c, ended in zip(prompts, completions, finished, strict=True)
        ]
        assert rewards.flatten().tolist() == pytest.approx([reward_of_one(model, ids) for ids in sequences], abs=1e-5)

    def test_encoder_reads_through_its_own_pooling(self, tokenizer):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32, num_labels=1, pad_token_id=0,
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
        prompts, completions, _, _, finished = text_batch(tokenizer)
        rewards = build_reward_source((model, tokenizer))(RewardBatch(prompts=prompts, completions=completions))
        for row in range(3):
            ids = tokenizer(f"{prompts[row]} {completions[row]}")["input_ids"] + [EOS]
            with torch.no_grad():
                alone = model(torch.tensor([ids])).logits.item()
            assert rewards[row, 0].item() == pytest.approx(alone, abs=1e-5)

    def test_dropout_is_off_and_the_mode_comes_back(self, tokenizer):
        _, _, prompt_ids, completion_ids, _ = text_batch(tokenizer)
        batch = RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids)
        model = gpt2().train()
        source = SequenceClassificationReward(model)
        torch.testing.assert_close(source(batch), source(batch))
        assert model.training

    def test_no_replies(self):
        source = SequenceClassificationReward(gpt2())
        assert source(RewardBatch(prompt_ids=[], completion_ids=[])).shape == (0, 1)

    def test_name_comes_from_where_the_model_was_loaded(self):
        model = gpt2()
        assert build_reward_source(model).names == ["reward"]
        model.config.name_or_path = "some-org/judge"
        assert build_reward_source(model).names == ["judge"]

    @pytest.mark.parametrize(
        ("prompt_ids", "completion_ids", "message"),
        [
            ([[]], [[]], "has 0 tokens"),
            ([[5] * 20], [[6] * 10], "has 30 tokens"),
            ([[5]], [[64]], r"token id 64.*ids below 64"),
        ],
    )
    def test_unreadable_replies(self, prompt_ids, completion_ids, message):
        with pytest.raises(ValueError, match=message):
            SequenceClassificationReward(gpt2())(RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids))

    def test_text_without_a_tokenizer(self):
        with pytest.raises(ValueError, match="no tokenizer"):
            SequenceClassificationReward(gpt2())(RewardBatch(prompts=["a"], completions=["film"]))

    def test_several_labels_and_encoder_decoders_are_refused(self):
        with pytest.raises(ValueError, match="3 labels"):
            build_reward_source(gpt2(num_labels=3))
        config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, num_labels=1)
        with pytest.raises(ValueError, match="encoder-decoder"):
            build_reward_source(T5ForSequenceClassification(config))


class TestMixture:
    def test_ids_text_and_components_agree(self, tokenizer):
        model = mixture(tokenizer)
        prompts, completions, prompt_ids, completion_ids, finished = text_batch(tokenizer)
        source = build_reward_source(model, policy_tokenizer=tokenizer)
        assert source.names == ["short", "kind"]
        from_ids = source(RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids))
        from_text = source(RewardBatch(prompts=prompts, completions=completions, finished=finished))
        torch.testing.assert_close(from_ids, from_text)
        for k in range(2):
            one = model.component(k)
            expected = [reward_of_one(one, p + c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
            assert from_ids[:, k].tolist() == pytest.approx(expected, abs=1e-5)

    def test_foreign_policy_is_decoded(self, tokenizer):
        model, foreign = mixture(tokenizer), shifted(tokenizer)
        prompts, completions, _, _, finished = text_batch(tokenizer)
        prompt_ids = [foreign(p)["input_ids"] for p in prompts]
        completion_ids = [
            foreign(c)["input_ids"] + [foreign.eos_token_id] * ended
            for c, ended in zip(completions, finished, strict=True)
        ]
        source = build_reward_source(model, policy_tokenizer=foreign)
        decoded = source(RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids))
        expected = model.score(prompts, completions, finished=finished)
        torch.testing.assert_close(decoded, expected)

    def test_carries_mixing_weights(self, tokenizer):
        torch.testing.assert_close(
            build_reward_source(mixture(tokenizer)).mixing_weights, torch.tensor([0.5, 0.5], dtype=torch.float64)
        )
        assert build_reward_source(len_reward).mixing_weights is None


def len_reward(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions]


def some_none(completions, **kwargs):
    return [None if "dull" in text else 1 for text in completions]


async def slow(prompts, completions, completion_ids, **kwargs):
    await asyncio.sleep(0)
    return [2.0] * len(completions)


class AsyncJudge:
    async def __call__(self, prompts, completions, **kwargs):
        return [3.0] * len(completions)


class TestCallable:
    BATCH = RewardBatch(prompts=["a", "b"], completions=["xx", "dull"], columns={"group": ["g", "h"]})

    def test_none_is_nan(self):
        rewards = CallableReward(some_none)(self.BATCH)
        assert rewards[0].item() == 1.0 and math.isnan(rewards[1].item())

    def test_columns_and_ids_are_passed(self):
        seen = {}

        def spy(**kwargs):
            seen.update(kwargs)
            return [0.0, 0.0]

        CallableReward(spy)(self.BATCH)
        assert seen["group"] == ["g", "h"] and seen["completions"] == ["xx", "dull"] and seen["prompts"] == ["a", "b"]
        assert "completion_ids" in seen

    def test_text_is_decoded_where_there_are_only_ids(self, tokenizer):
        _, completions, prompt_ids, completion_ids, _ = text_batch(tokenizer)
        batch = RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids)
        rewards = CallableReward(len_reward, tokenizer)(batch)
        assert rewards.flatten().tolist() == [len(text) for text in completions]

    def test_tensor_results_and_async_functions(self):
        assert CallableReward(lambda **kw: torch.tensor([1.0, 2.0]))(self.BATCH).flatten().tolist() == [1.0, 2.0]
        assert CallableReward(slow)(self.BATCH).flatten().tolist() == [2.0, 2.0]
        assert CallableReward(AsyncJudge())(self.BATCH).flatten().tolist() == [3.0, 3.0]

    def test_async_function_inside_a_running_loop(self):
        async def notebook_cell():
            return CallableReward(slow)(self.BATCH)

        assert asyncio.run(notebook_cell()).flatten().tolist() == [2.0, 2.0]

    def test_names(self):
        assert CallableReward(len_reward).names == ["len_reward"]
        assert CallableReward(functools.partial(len_reward, extra=1)).names == ["len_reward"]
        assert CallableReward(AsyncJudge()).names == ["AsyncJudge"]
        assert CallableReward(len_reward, name="length").names == ["length"]

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            ([1.0], "'broken' returned 1 values for 2 replies"),
            (1.0, "'broken' returned 1.0 for 2 replies"),
            ([[1.0, 2.0], [3.0, 4.0]], "not a number"),
            (["good", "bad"], "not a number"),
        ],
    )
    def test_wrong_results(self, result, message):
        def broken(**kwargs):
            return result

        with pytest.raises(ValueError, match=message):
            CallableReward(broken)(self.BATCH)

    def test_text_that_cannot_be_had(self):
        with pytest.raises(ValueError, match="the tokenizer of the policy is unknown"):
            CallableReward(len_reward)(RewardBatch(prompt_ids=[[1]], completion_ids=[[2]]))
        with pytest.raises(ValueError, match="`prompts` is None.*there are no ids"):
            CallableReward(len_reward)(RewardBatch(completions=["a"]))


class TestStacked:
    def test_columns_side_by_side(self, tokenizer):
        prompts, completions, *_ = text_batch(tokenizer)
        batch = RewardBatch(prompts=prompts, completions=completions)
        model = mixture(tokenizer)
        source = build_reward_source([len_reward, model, slow, some_none], policy_tokenizer=tokenizer)
        assert source.names == ["len_reward", "short", "kind", "slow", "some_none"]
        rewards = source(batch)
        assert rewards.shape == (3, 5)
        torch.testing.assert_close(rewards[:, 1:3], model.score(prompts, completions))
        assert rewards[:, 0].tolist() == [len(text) for text in completions]
        assert rewards[:, 3].tolist() == [2.0] * 3
        assert rewards[:, 4].isnan().tolist() == [False, True, False]

    def test_async_functions_wait_together(self):
        running, peak = [], []

        def judge(number):
            async def reward(completions, **kwargs):
                running.append(number)
                await asyncio.sleep(0)
                peak.append(len(running))
                running.remove(number)
                return [float(number)] * len(completions)

            return reward

        source = StackedReward([CallableReward(judge(1)), CallableReward(judge(2))])
        rewards = source(RewardBatch(prompts=["a"], completions=["b"]))
        assert rewards.tolist() == [[1.0, 2.0]] and max(peak) == 2
        assert source.names == ["reward", "reward_2"]

    def test_to_reaches_every_source(self):
        source = build_reward_source([len_reward, gpt2()])
        assert source.to("cpu") is source
        assert source.sources[0].device == torch.device("cpu")

    def test_empty_list(self):
        with pytest.raises(ValueError, match="empty"):
            build_reward_source([])
        with pytest.raises(ValueError, match="empty"):
            StackedReward([])


class TestBuild:
    def test_a_source_passes_through_and_a_list_of_one_is_that_one(self):
        source = CallableReward(len_reward)
        assert build_reward_source(source) is source
        assert isinstance(build_reward_source([len_reward]), CallableReward)

    def test_kinds(self, tokenizer):
        assert isinstance(build_reward_source(mixture(tokenizer)), MixtureReward)
        assert isinstance(build_reward_source(gpt2()), SequenceClassificationReward)
        assert all(isinstance(build_reward_source(r), RewardSource) for r in (len_reward, AsyncJudge()))

    def test_names_can_be_given(self):
        assert build_reward_source([len_reward, slow], names=["a", "b"]).names == ["a", "b"]

    @pytest.mark.parametrize("names", [["a"], ["a", "a"]])
    def test_wrong_names(self, names):
        with pytest.raises(ValueError, match="2 unique names"):
            build_reward_source([len_reward, slow], names=names)

    @pytest.mark.parametrize("thing", ["org/model", 3, None, torch.nn.Linear(1, 1), dict, (len_reward, "x")])
    def test_what_cannot_score(self, thing):
        with pytest.raises(TypeError, match="cannot score replies"):
            build_reward_source(thing)

    def test_unique_names_never_collide(self):
        assert unique_names(["a", "a", "a_2", "a"]) == ["a", "a_2", "a_2_2", "a_3"]


class TestBatch:
    def test_length(self):
        assert len(RewardBatch(completion_ids=[[1], [2]])) == 2

    def test_finished_is_read_from_the_ids(self, tokenizer):
        _, completions, prompt_ids, completion_ids, finished = text_batch(tokenizer)
        batch = RewardBatch(prompt_ids=prompt_ids, completion_ids=completion_ids)
        assert batch.as_text(tokenizer)[1:] == (completions, finished)
        assert RewardBatch(prompts=["a"], completions=["b"]).as_text(None) == (["a"], ["b"], [True])

    def test_refusals(self):
        with pytest.raises(ValueError, match="both are None"):
            RewardBatch(prompts=["a"])
        with pytest.raises(ValueError, match=r"lengths are \{'prompts': 1, 'completions': 2\}"):
            RewardBatch(prompts=["a"], completions=["b", "c"])
        with pytest.raises(ValueError, match="columns"):
            RewardBatch(completions=["b", "c"], columns={"group": ["x"]})
