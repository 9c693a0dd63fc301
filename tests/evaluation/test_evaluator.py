# SPDX-License-Identifier: Apache-2.0
"""Evaluation of tiny policies: against definitions, from names, models and cached generations."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin.evaluation import Replies, Sampling, evaluate_policies, read_completions, write_completions
from trl_maxmin.evaluation.evaluator import standardise
from trl_maxmin.evaluation.generation import generate_replies, reply_logprobs
from trl_maxmin.run_record import RunRecord


def tiny(tokenizer, seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24, eos_token_id=2, bos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def brevity(completions, **kwargs):
    return [-float(len(text.split())) for text in completions]


def praise(completions, finished, **kwargs):
    return [text.split().count("great") - 0.5 * (not ended) for text, ended in zip(completions, finished, strict=True)]


PROMPTS = ["review of the film :", "the plot", "very good story", "review of the film :", "awful", "the acting is"]
SAMPLING = Sampling(max_new_tokens=8, num_completions=4, batch_size=4)


@pytest.fixture(scope="module")
def evaluation():
    from tests.conftest import build_word_tokenizer

    tokenizer = build_word_tokenizer()
    policies = {name: (tiny(tokenizer, seed), tokenizer) for seed, name in enumerate(("reference", "a", "b"))}
    calls = []
    found = evaluate_policies(
        policies,
        PROMPTS,
        reference="reference",
        gold=[brevity, praise],
        weights={"brevity": 0.7, "praise": 0.3},
        sampling=SAMPLING,
        num_resamples=200,
        progress=lambda *call: calls.append(call),
    )
    return found, policies, tokenizer, calls


def test_every_measure_of_every_policy(evaluation):
    found, *_ = evaluation
    assert found.results["num_prompts"] == 5 and found.results["num_replies"] == 24  # one prompt is there twice
    for name in ("a", "b"):
        entry = found.results["policies"][name]
        assert set(entry["by_group"]["praise"]) == {"utility", "win_rate", "rank"}
        assert set(entry["aggregates"]["gold"]["win_rate"]) >= {"group_min", "difference", "mean", "weighted_mean"}
        assert set(entry["replies"]) == {"kl", "length", "finished", "distinct_1", "distinct_2", "unique"}
        assert entry["replies"]["kl"]["mean"] > 0
    assert "kl" not in found.results["policies"]["reference"]["replies"]
    assert found.results["policies"]["reference"]["by_group"]["brevity"]["utility"]["mean"] == pytest.approx(0)


def test_gold_utilities_and_win_rates_by_hand(evaluation):
    found, *_ = evaluation
    ours, base = found.replies["a"].completions, found.replies["reference"].completions
    assert found.gold_utility["a"]["brevity"] == pytest.approx(np.mean(brevity(ours)))
    outcomes = np.sign(np.array(brevity(ours)) - brevity(base)) / 2 + 0.5
    assert found.results["policies"]["a"]["by_group"]["brevity"]["win_rate"]["mean"] == pytest.approx(outcomes.mean())
    lengths = [len(ids) for ids in found.replies["a"].completion_ids]
    assert found.results["policies"]["a"]["replies"]["length"]["mean"] == pytest.approx(np.mean(lengths))


def test_progress_reaches_its_end(evaluation):
    calls = evaluation[3]
    assert calls[0] == ("replies of reference", 0, 24) and ("replies of b", 24, 24) in calls


def test_the_same_seed_gives_the_same_replies_and_policies_share_their_luck(evaluation):
    found, policies, tokenizer, _ = evaluation
    again = generate_replies(*policies["a"], PROMPTS, SAMPLING, Accelerator())
    assert again == found.replies["a"]
    assert found.replies["a"].completions != found.replies["b"].completions
    first = found.replies["a"].completions
    assert first[0:4] != first[12:16]  # the same prompt, another row, other luck


def test_kl_is_the_mean_log_ratio_of_whole_replies(evaluation):
    """Against a forward pass of one reply at a time, without padding."""
    found, policies, *_ = evaluation
    replies, ratios = found.replies["b"], []
    for prompt, reply in zip(replies.prompt_ids, replies.completion_ids, strict=True):
        ids = torch.tensor([prompt + reply])
        sums = []
        for name in ("b", "reference"):
            logits = policies[name][0](ids).logits[0, len(prompt) - 1 : -1]
            sums.append(logits.log_softmax(-1)[range(len(reply)), reply].sum().item())
        ratios.append(sums[0] - sums[1])
    assert found.results["policies"]["b"]["replies"]["kl"]["mean"] == pytest.approx(np.mean(ratios), abs=1e-4)


def test_logprobs_of_all_replies_of_one_token_sum_to_one(evaluation):
    _, policies, tokenizer, _ = evaluation
    size = len(tokenizer)
    found = reply_logprobs(policies["a"][0], [[5, 6]] * size, [[i] for i in range(size)], temperature=0.7)
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-5)


def test_cached_generations_give_the_same_results(evaluation, tmp_path):
    found, *_ = evaluation
    write_completions(found.replies).to_parquet(tmp_path / "c.parquet")
    shuffled = Dataset.from_parquet(str(tmp_path / "c.parquet"), cache_dir=str(tmp_path)).sort("policy")
    cached = read_completions(shuffled)
    again = evaluate_policies(cached, reference="reference", gold=[brevity, praise], num_resamples=200)
    for name in ("a", "b"):
        # Rows of the prompt that is there twice are sorted together, so that other replies meet.
        ours = found.results["policies"][name]["by_group"]["brevity"]["utility"]["mean"]
        theirs = again.results["policies"][name]["by_group"]["brevity"]["utility"]["mean"]
        assert ours == pytest.approx(theirs)
    assert again.gold_utility["a"] == pytest.approx(found.gold_utility["a"])


def test_the_run_record_takes_it(evaluation):
    facts = evaluation[0].run_record_facts()
    record = RunRecord().update("evaluation", **facts).validate()
    assert len(record.evaluation["samples"]) == 4 and set(record.evaluation["win_rate"]) == {"a", "b"}
    assert record.evaluation["samples"][0]["prompt"] == PROMPTS[0]


def test_components_of_a_mixture_with_their_shares_and_a_judge(word_tokenizer):
    from trl_maxmin.models import MixtureRewardModel

    mixture = MixtureRewardModel.from_base(tiny(word_tokenizer, 7), 2, processing_class=word_tokenizer)
    mixture.config.mixing_weights = [0.9, 0.1]

    class Longer:
        def judge(self, prompts, completions, shuffle_order=True):
            return [0 if len(a) > len(b) else 1 if len(b) > len(a) else -1 for a, b in completions]

    replies = {
        "reference": Replies(["p", "q"] * 4, ["good", "bad"] * 4, [True] * 8),
        "a": Replies(["p", "q"] * 4, ["very good", "bad"] * 4, [True, False] * 4),
    }
    found = evaluate_policies(replies, reference="reference", reward_model=mixture, judges={"longer": Longer()})
    names = mixture.component_names
    assert found.results["groups"] == {names[0]: "component", names[1]: "component", "longer": "judge"}
    assert found.results["weights"] == {names[0]: 0.9, names[1]: 0.1}
    assert found.results["judges"] == {"longer": {"judged": 4, "ties": 0, "inconsistent": 0, "failed": 4}}
    assert found.results["policies"]["a"]["by_group"]["longer"]["win_rate"]["mean"] == 1.0
    raw = mixture.score(["p", "q"], ["very good", "bad"], finished=[True, False]) - mixture.score(
        ["p", "q"], ["good", "bad"]
    )
    gain = found.results["policies"]["a"]["by_group"][names[0]]["utility"]["mean"]
    assert math.copysign(1, gain) == math.copysign(1, raw[:, 0].mean().item())


def test_a_component_of_a_handful_of_people_is_never_the_worst_group(word_tokenizer):
    from trl_maxmin.models import MixtureRewardModel

    mixture = MixtureRewardModel.from_base(tiny(word_tokenizer, 7), 2, processing_class=word_tokenizer)
    replies = {"reference": Replies(["p", "q"] * 4, ["good", "bad"] * 4, [True] * 8)}
    replies["a"] = Replies(["p", "q"] * 4, ["very good", "bad"] * 4, [True, False] * 4)
    for few in (0, 1):
        mixture.config.component_annotators = [3 if k == few else 323 for k in range(2)]
        mixture.config.component_pairs = [90 if k == few else 9000 for k in range(2)]
        found = evaluate_policies(replies, reference="reference", reward_model=mixture).results
        assert found["below_evidence_floor"] == [mixture.component_names[few]]
        worst = found["policies"]["a"]["worst_group"]["component"]
        assert worst == dict.fromkeys(worst, mixture.component_names[1 - few])


def test_a_component_without_people_is_no_group(word_tokenizer):
    """Columns, shares and scales of the others stay theirs."""
    from trl_maxmin.models import MixtureRewardModel

    mixture = MixtureRewardModel.from_base(tiny(word_tokenizer, 7), 3, processing_class=word_tokenizer)
    mixture.config.mixing_weights, mixture.config.reward_scale = [0.6, 0.1, 0.3], [1.0, 5.0, 2.0]
    # Too few replies a prompt for a spread, so that the mixture's own scales are used.
    replies = {"reference": Replies(["p", "q"], ["good", "bad"], [True] * 2)}
    replies["a"] = Replies(["p", "q"], ["very good", "very bad"], [True] * 2)
    every = evaluate_policies(replies, reference="reference", reward_model=mixture).results
    mixture.config.component_annotators = [6, 0, 3]
    with pytest.warns(UserWarning, match="component_1 of the mixture describes no annotator"):
        found = evaluate_policies(replies, reference="reference", reward_model=mixture).results
    assert list(found["groups"]) == ["component_0", "component_2"]
    assert found["weights"] == pytest.approx({"component_0": 2 / 3, "component_2": 1 / 3})
    assert "below_evidence_floor" not in found  # 3 of 9 people are many
    for name in found["groups"]:
        assert found["policies"]["a"]["by_group"][name] == every["policies"]["a"]["by_group"][name]


class TestStandardise:
    def test_by_hand(self):
        """Two prompts of four reference replies: spread within prompts 2 / sqrt(3), whatever their levels."""
        base = np.array([[0.0], [2.0], [0.0], [2.0], [10.0], [12.0], [10.0], [12.0]])
        prompts = ["p"] * 4 + ["q"] * 4
        found = standardise({"ref": base, "x": base + 3}, prompts, "ref")
        assert found["x"].mean() == pytest.approx(3 / (2 / 3**0.5))
        assert found["ref"].mean() == pytest.approx(0)

    def test_few_replies_use_the_calibrated_scale(self):
        rewards = {"ref": np.zeros((4, 1)), "x": np.ones((4, 1))}
        assert standardise(rewards, range(4), "ref", [4.0])["x"].tolist() == [[0.25]] * 4

    def test_few_replies_without_a_scale_warn(self):
        rewards = {"ref": np.array([[0.0], [2.0]]), "x": np.array([[1.0], [3.0]])}
        with pytest.warns(UserWarning, match="Raise num_completions"):
            assert standardise(rewards, range(2), "ref")["x"].tolist() == [[1.0], [1.0]]

    @pytest.mark.filterwarnings("ignore:Fewer than")
    def test_a_constant_group_is_not_divided_by_nothing(self):
        assert standardise({"ref": np.ones((4, 1))}, range(4), "ref")["ref"].tolist() == [[0.0]] * 4


R1 = Replies(["p", "q"], ["a", "b"], [True, True])
R2 = Replies(["p", "z"], ["a", "b"], [True, True])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate_policies({"a": R1}, reference="b", gold=[brevity]), "'b' is none of the policies"),
        (lambda: evaluate_policies({"a": R1}, reference="a"), "Nobody to ask"),
        (lambda: evaluate_policies({"a": "folder"}, reference="a", gold=[brevity]), "Prompts are needed"),
        (
            lambda: evaluate_policies({"a": R1, "b": R2}, reference="a", gold=[brevity]),
            "replies of 'b' answer other prompts",
        ),
        (lambda: Sampling(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (lambda: Sampling(temperature=-1), "temperature must not be negative"),
        (lambda: read_completions(Dataset.from_list([{"prompt": "p"}])), "columns policy, prompt and completion"),
        (
            lambda: read_completions(Dataset.from_list([
                {"policy": "a", "prompt": "p", "completion": "x"}, {"policy": "b", "prompt": "q", "completion": "x"}
            ])),
            "have other prompts",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_prompt_that_does_not_fit_is_named(word_tokenizer):
    model = tiny(word_tokenizer, 0)
    with pytest.raises(ValueError, match="Prompt 1 has 20 tokens, which with max_new_tokens=8 exceeds"):
        generate_replies(model, word_tokenizer, ["good", "good " * 20], SAMPLING, Accelerator())
    cut = Sampling(max_new_tokens=8, max_prompt_length=5)
    assert len(generate_replies(model, word_tokenizer, ["good " * 20], cut, Accelerator()).prompt_ids[0]) == 5
    with pytest.raises(ValueError, match="Prompt 0 is empty"):
        generate_replies(model, word_tokenizer, [""], SAMPLING, Accelerator())
