# SPDX-License-Identifier: Apache-2.0
"""Sampling, scoring and choosing; the command, and its result in `evaluate`'s table."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin.cli import main
from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.evaluation.generation import Replies, Sampling, read_completions
from trl_maxmin.inference import BestOfN
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer.maxmin.maxmin_config import MaxMinConfigMixin


SAMPLING = Sampling(max_new_tokens=6, num_completions=2, batch_size=3)


@pytest.fixture(scope="module")
def world():
    return FilmReviewWorld(seed=0)


@pytest.fixture(scope="module")
def policy(world):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(world.tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=48, eos_token_id=2, bos_token_id=1
    )
    return GPT2LMHeadModel(config).eval(), world.tokenizer


def brief(completions, **kwargs):
    return [-float(len(text.split())) for text in completions]


def wordy(completions, **kwargs):
    return [float(len(text.split())) for text in completions]


def varied(completions, **kwargs):
    return [float(len(set(text.split()))) for text in completions]


@pytest.fixture(scope="module")
def chosen(world, policy):
    best_of = BestOfN(policy, [brief, varied], num_candidates=8, sampling=SAMPLING)
    return best_of, best_of.run(world.sample_prompts(7), ["maxmin", "utilitarian", "sample_min"])


def test_one_weight_vector_serves_the_worst_group_better(chosen):
    best_of, found = chosen
    worst = {rule: own.found.utilities.min().item() for rule, own in found.items()}
    assert worst["maxmin"] >= worst["utilitarian"] and worst["maxmin"] >= worst["sample_min"]
    assert worst["maxmin"] > 0.1, "above the reference, whose utilities have mean 0"
    facts = found["maxmin"].facts()
    assert set(facts) == {"kl", "utility", "weight", "bound"} and set(facts["weight"]) == {"brief", "varied"}
    assert facts["kl"] == pytest.approx(torch.tensor(8.0).log().item() - 7 / 8)
    assert found["sample_min"].facts().keys() == {"kl", "utility"}


@pytest.mark.parametrize("rule", ["softmin", "nash", "pmean", "gini", "leximin", "regret"])
def test_every_rule_of_the_trainers_chooses(world, policy, rule):
    settings = MaxMinConfigMixin(regret_rule="softmin")
    best_of = BestOfN(policy, [brief, varied], 4, settings, replace(SAMPLING, num_completions=1))
    found = best_of.run(world.sample_prompts(6), [rule])[rule].found
    assert found.weights.sum().item() == pytest.approx(1.0) and found.utilities.isfinite().all()


def test_utilities_are_those_of_the_replies(chosen):
    """By the definition: rewards over the candidates' and the reference's own spread, prompt by prompt."""
    best_of, found = chosen
    replies, statistics = found["maxmin"].replies, best_of.statistics
    assert len(replies) == 14 and replies.prompts[0] == replies.prompts[1]
    rewards = torch.tensor([brief(replies.completions), varied(replies.completions)], dtype=torch.float64).T
    keys = [repr(prompt) for prompt in replies.prompts]
    table = {key: statistics.rewards[row] for row, key in enumerate(statistics.prompt_keys)}
    zero = torch.stack([table[key].nanmean(dim=0) for key in keys])
    expected = ((rewards - zero) / statistics.scale).mean(dim=0)
    torch.testing.assert_close(found["maxmin"].found.utilities, expected, rtol=1e-6, atol=1e-6)
    # 8 x 2 candidates and 2 replies of the reference itself measure each prompt.
    assert statistics.rewards.shape == (7, 18, 2)


def test_the_same_seed_gives_the_same_replies_and_parts_have_their_own_luck(world, policy, chosen):
    prompts = world.sample_prompts(7)
    again = BestOfN(policy, [brief, varied], num_candidates=8, sampling=SAMPLING).run(prompts)
    assert again["maxmin"].replies == chosen[1]["maxmin"].replies
    twice = BestOfN(policy, [brief, varied], num_candidates=4, sampling=replace(SAMPLING, batch_size=1))
    twice.run([prompts[0], prompts[1]])
    # The same prompt in two parts of one: other replies.
    same = BestOfN(policy, wordy, num_candidates=2, sampling=replace(SAMPLING, batch_size=1, num_completions=4))
    found = same.run([prompts[0], prompts[0]])["maxmin"].replies
    assert found.completions[:4] != found.completions[4:]


@pytest.mark.parametrize("backend", ["generate", "continuous_batching"])
def test_backends_choose_longer_replies_for_who_likes_them(world, policy, backend):
    sampling = replace(SAMPLING, generation_backend=backend)
    best_of = BestOfN(policy, wordy, num_candidates=6, sampling=sampling)
    found = best_of.run(world.sample_prompts(3))["maxmin"]
    mean = sum(wordy(best_of.reference_replies.completions)) / len(best_of.reference_replies)
    assert sum(wordy(found.replies.completions)) / len(found.replies) > mean
    # One component: raw rewards, of which each prompt takes the largest.
    assert best_of.statistics is None and found.found.weights.tolist() == [1.0]


def test_a_reference_that_is_another_policy_or_has_answered(world, policy):
    prompts = world.sample_prompts(3)
    torch.manual_seed(1)
    other = GPT2LMHeadModel(policy[0].config).eval(), world.tokenizer
    settings = MaxMinConfigMixin(num_reference_completions=5)
    best_of = BestOfN(policy, [brief, varied], 4, settings, SAMPLING, reference=other)
    best_of.run(prompts)
    assert best_of.statistics.rewards.shape == (3, 5, 2) and len(best_of.reference_replies) == 6
    given = Replies([p for p in prompts for _ in range(4)], ["a film", "the film is good"] * 6, [True] * 12)
    best_of = BestOfN(policy, [brief, varied], 4, settings, replace(SAMPLING, num_completions=4), reference=given)
    best_of.run(prompts)
    assert best_of.statistics.shift.tolist() == [-3.0, 3.0] and best_of.reference_replies is given
    with pytest.raises(ValueError, match="The reference has no replies to 1 of the prompts"):
        best_of.run([*prompts, "another prompt"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"sampling": replace(SAMPLING, temperature=0)}, "the 16 candidates would be one"),
        ({"reward_model": 3}, "A reward of type int"),
    ],
)
def test_refused_before_anything_is_sampled(policy, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        BestOfN(policy, **({"reward_model": brief} | options))


def test_refused_when_asked(policy):
    best_of = BestOfN(policy, brief, 2, sampling=SAMPLING)
    with pytest.raises(ValueError, match="There are no prompts"):
        best_of.run([])
    with pytest.raises(ValueError, match="`welfare` is 'nicest'"):
        best_of.run(["film"], ["nicest"])
    with pytest.raises(ValueError, match="exceeds the model's context of 48"):
        best_of.run(["film " * 60])


@pytest.fixture(scope="module")
def saved(world, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best-of")
    policy[0].save_pretrained(folder / "base")
    world.tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(2)
    MixtureRewardModel.from_base(str(folder / "base"), 2, component_names=["one", "two"]).save_pretrained(
        folder / "mixture"
    )
    Dataset.from_dict({"prompt": world.sample_prompts(6)}).to_json(folder / "prompts.jsonl")
    return folder


@pytest.mark.slow
def test_the_command_and_evaluate(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    argv = ["best-of", "--policy", "base", "--reward_model", "mixture", "--num_candidates", "4"]
    few = ["--max_new_tokens", "6", "--num_completions", "4"]
    data = ["--dataset_name", "prompts.jsonl", "--output_dir", "out"]
    assert main([*argv, *few, *data, "--also", "utilitarian"]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "wrote out/: completions.parquet, best_of.json" in text and "best-of-4-utilitarian" in text
    report = json.loads((saved / "out" / "best_of.json").read_text())
    assert report["num_candidates"] == 4 and report["num_replies"] == 24
    worst = {name: min(entry["utility"].values()) for name, entry in report["policies"].items()}
    assert worst["best-of-4-maxmin"] >= worst["best-of-4-utilitarian"]
    rows = read_completions(Dataset.from_parquet("out/completions.parquet"))
    assert list(rows) == ["reference", "best-of-4-maxmin", "best-of-4-utilitarian"]
    measure = ["--reference", "reference", "--reward_model", "mixture", "--num_resamples", "200"]
    assert main(["evaluate", "--completions", "out/completions.parquet", *measure, "--output_dir", "e"]) == 0
    results = json.loads((saved / "e" / "evaluation.json").read_text())
    by_group = results["policies"]["best-of-4-maxmin"]["by_group"]
    assert min(by_group[group]["utility"]["mean"] for group in ("one", "two")) > 0.3
    # A row more in a table that is there.
    more = ["--completions", "out/completions.parquet", "--reference", "reference", "--output_dir", "more"]
    assert main([*argv, *more, "--max_new_tokens", "6", "--name", "mine", "--welfare", "softmin"]) == 0
    rows = read_completions(Dataset.from_parquet("more/completions.parquet"))
    assert list(rows)[-1] == "mine" and len(rows) == 4 and len(rows["mine"]) == 24
    capsys.readouterr()
    assert main([*argv, *more]) == 2
    assert "has a policy 'best-of-4-maxmin' already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--reward_model", "mixture"], "--policy required"),
        (["--policy", "base"], "--reward_model required"),
        (["--completions", "c.parquet"], "--completions needs --reference"),
        (["--also", "nicest"], "--also nicest is unknown"),
        (["--also", "maxmin"], "name one twice"),
        (["--name", "a", "b"], "--name needs 1 different names"),
        (["--name", "reference"], "--name needs 1 different names"),
        (["--welfare", "nicest"], "`welfare` is 'nicest'"),
        (["--chat_template_kwargs", "[1]"], "must be a JSON object"),
    ],
)
def test_wrong_calls(saved, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(saved)
    both = [] if argv[0] in ("--reward_model", "--policy") else ["--policy", "base", "--reward_model", "mixture"]
    assert main(["best-of", *both, *argv]) == 2
    assert message in capsys.readouterr().err


def test_wrong_files(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    rows = [{"policy": "a", "prompt": prompt, "completion": "film"} for prompt in ("x", "x", "y")]
    Dataset.from_list(rows).to_json("uneven.jsonl")
    base = ["best-of", "--policy", "base", "--reward_model", "mixture", "--completions", "uneven.jsonl"]
    assert main([*base, "--reference", "a"]) == 1
    assert "more replies to some prompts than to others" in capsys.readouterr().err
    assert main([*base, "--reference", "b"]) == 1
    assert "--reference b: none of the policies a" in capsys.readouterr().err
