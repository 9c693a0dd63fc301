# SPDX-License-Identifier: Apache-2.0
"""`diagnose` on rankings: groups are found, measured by top-1 and tau, and what would have been seen is simulated."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from trl_maxmin.data.rankings import pairs_to_rankings, rankings_to_pairs
from trl_maxmin.evaluation import diagnose
from trl_maxmin.functional.feature_rankings import FeatureRankings
from trl_maxmin.functional.num_components import choose_components
from trl_maxmin.functional.planted import plant_two_groups
from trl_maxmin.functional.ranking import RankedChoices
from trl_maxmin.run_record import RunRecord


WORDS = ("great", "dull", "long", "odd", "warm", "loud")


def rankings(groups=2, people=40, rows=8, seed=0, size=3, choice=False, scale=1.2):
    """People count good words, each group by weights of its own, plus Gumbel noise."""
    generator = np.random.default_rng(seed)
    weights = scale * generator.normal(size=(groups, len(WORDS)))
    found = []
    for who in range(people):
        for row in range(rows):
            counts = generator.integers(0, 3, (size, len(WORDS)))
            counts[:, 0] += (counts.sum(1) == 0).astype(int)
            value = counts @ weights[who % groups] + generator.gumbel(size=size)
            replies = [" ".join(w for w, n in zip(WORDS, own, strict=True) for _ in range(n)) for own in counts]
            ranks = (-value).argsort().argsort() + 1
            own = {"choice": int(ranks.argmin())} if choice else {"ranking": ranks.tolist()}
            found.append({"prompt": f"p{row}", "responses": replies, "annotator_id": f"a{who}"} | own)
    return Dataset.from_list(found)


@pytest.fixture(scope="module")
def two():
    return diagnose(rankings(), max_groups=2, num_init=2, num_resamples=100)


def test_groups_are_found_and_measured(two):
    assert two.verdict_kind == "groups" and two.num_groups == 2 and two.unit == "ranking" and two.num_pairs == 320
    for facts in two.by_group.values():
        assert facts["num_annotators"] == 20 and facts["num_pairs"] == 160
        assert facts["accuracy_own"]["mean"] > facts["accuracy_single"]["mean"] + 0.05
        assert facts["tau_own"]["mean"] > facts["tau_single"]["mean"] + 0.05
        assert facts["accuracy_own"]["low"] <= facts["accuracy_own"]["mean"] <= facts["accuracy_own"]["high"]
        assert facts["gap"]["mean"] > 0 and facts["mismatch"]["mean"] > 0
    assert two.diversity[0][1] > 0.2 and two.assignment_calibration["observed"] > 0.8


def test_in_words_and_in_the_record(two, tmp_path):
    text = two.to_markdown()
    for words in ("320 rankings of 40 annotators", "nats a ranking", "tau_own", "per held-out ranking", "s rankings"):
        assert words in text, words
    assert "pair of an annotator" not in text and "each ranking of an annotator counts" in text
    RunRecord.update_file(tmp_path, "evaluation", replace=True, **two.run_record_facts())
    kept = json.loads((tmp_path / "run_record.json").read_text())["evaluation"]["diagnostics"]
    assert kept["unit"] == "ranking" and kept["by_group"]["component_0"]["tau_own"]["mean"] > 0


@pytest.mark.slow
def test_known_groups(two):
    data = rankings(rows=5)
    data = data.add_column("land", ["ab"[int(who[1:]) % 2] for who in data["annotator_id"]])
    known = diagnose(data, group_column="land", num_resamples=100)
    assert known.known and known.verdict_kind == "groups" and set(known.by_group) == {"a", "b"}
    found = sorted(facts["accuracy_own"]["mean"] for facts in two.by_group.values())
    assert sorted(facts["accuracy_own"]["mean"] for facts in known.by_group.values()) == pytest.approx(found, abs=0.1)


def test_rankings_of_two_are_pairs():
    pairs = rankings_to_pairs(rankings(people=10, size=2))
    one, other = (diagnose(data, max_groups=2, num_init=1, num_resamples=100)
                  for data in (pairs, pairs_to_rankings(pairs)))  # fmt: skip
    assert one.to_dict() == other.to_dict() and one.unit == "pair"


@pytest.mark.slow
def test_a_frozen_model_reads_them(tmp_path, word_tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    word_tokenizer.save_pretrained(tmp_path)
    rows = [
        {"prompt": "review", "responses": [f"great {a}", f"dull {a}", f"the {b}"][: 2 + i % 2], "choice": 0,
         "annotator_id": i // 8}
        for i, (a, b) in enumerate([("plot", "film"), ("film", "plot"), ("story", "film")] * 16)
    ]  # fmt: skip
    found = diagnose(
        Dataset.from_list(rows), model_name_or_path=str(tmp_path), max_groups=2, num_init=1, num_resamples=100,
        pooling="mean",
    )  # fmt: skip
    assert found.num_pairs == 48 and found.unit == "ranking"


def test_what_reads_alike_and_what_is_refused():
    rows = [{"responses": ["a b", "b a", "A B"], "choice": 0, "annotator_id": n % 2} for n in range(4)]
    with pytest.raises(ValueError, match="no preference to learn from"):
        diagnose(Dataset.from_list(rows))
    rows = [{"responses": ["a", "b", "c"], "choice": 0, "annotator_id": n} for n in range(4)]
    with pytest.raises(ValueError, match="4 rankings of 4 annotators leave no held-out ranking"):
        diagnose(Dataset.from_list(rows))


def table(people=60, choices=4, size=4, groups=1, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(120, 4, generator=generator)
    weight = spread * torch.randn(groups, 4, generator=generator)
    owner = torch.arange(people).repeat_interleave(choices)
    texts = torch.stack([torch.randperm(120, generator=generator)[: choices * size] for _ in range(people)])
    shown = RankedChoices(texts.view(-1, size), torch.arange(1, size + 1).expand(len(owner), size), owner)
    noise = -torch.rand(len(owner), size, generator=generator).log().neg().log()
    rewards = (features @ weight.T)[shown.responses, (owner % groups).unsqueeze(1)]
    return FeatureRankings(features, shown.drawn(rewards, noise)), weight


def test_rankings_are_drawn_by_luces_rule():
    """Shares of the best of three and of a full order against the rule by hand; padding stays padding."""
    count, rewards = 20_000, torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    responses = torch.tensor([[2, 0, 1]]).repeat(count, 1)
    generator = torch.Generator().manual_seed(0)
    noise = -torch.rand(count, 3, generator=generator, dtype=torch.float64).log().neg().log()
    full = RankedChoices(responses, torch.tensor([[3, 1, 2]]).repeat(count, 1), torch.zeros(count).long())
    drawn = full.drawn(rewards[responses], noise)
    order = drawn.responses.gather(1, drawn.ranks.argsort(1))
    first = (order[:, 0] == 0).double().mean().item()
    both = ((order[:, 0] == 0) & (order[:, 1] == 1)).double().mean().item()
    share = rewards.softmax(0)[0].item()
    assert first == pytest.approx(share, abs=0.01)
    assert both == pytest.approx(share * rewards[1:].softmax(0)[0].item(), abs=0.01)
    best = RankedChoices(responses, torch.tensor([[0, 0, 1]]).repeat(count, 1), torch.zeros(count).long())
    again = best.drawn(rewards[responses], noise)
    assert torch.equal(again.responses[:, 0], order[:, 0]) and {block.sizes for block in again.blocks} == {(1, 2)}
    flipped = RankedChoices(responses.flip(1), torch.tensor([[1, 2, 3]]).repeat(count, 1), torch.zeros(count).long())
    assert torch.equal(flipped.drawn(rewards[responses.flip(1)], noise).responses, drawn.responses), "who was first"
    short = RankedChoices(torch.tensor([[5, 3, -1]]), torch.tensor([[1, 2, 9]]), torch.tensor([0]))
    kept = short.drawn(torch.tensor([[0.0, 50.0, 99.0]]), torch.zeros(1, 3))
    assert kept.responses.tolist() == [[3, 5, -1]] and kept.blocks[0].sizes == (1, 1)


@pytest.mark.parametrize("best_only", [False, True])
def test_planted_groups_are_worth_what_they_should_be(best_only):
    """Measured anew with what the true rewards say: each placed by all other rankings of theirs."""
    rankings, weight = table(people=300, choices=6)
    if best_only:
        choices = rankings.choices
        best = RankedChoices(choices.responses, (choices.ranks == 1).long(), choices.annotator_index)
        rankings = FeatureRankings(rankings.features, best)
    small = torch.arange(300) % 2 == 0
    planted = plant_two_groups(rankings, weight[0], small, 0.1, torch.Generator().manual_seed(0))
    assert len(planted) == len(rankings) and torch.equal(planted.annotator_index, rankings.annotator_index)
    shown = [of.choices.responses.sort(1).values for of in (planted, rankings)]
    assert torch.equal(*shown), "the same replies"
    assert {b.sizes for b in planted.choices.blocks} == {b.sizes for b in rankings.choices.blocks}
    # The difference of the groups is in the data: fitted apart, the small group's reward is another one.
    from trl_maxmin.functional.em_features import fit_rewards

    owns = torch.stack([~small, small], 1)[planted.annotator_index].double()
    one, two = fit_rewards(planted, owns, 8.0)
    likelihood = planted.log_likelihood(torch.stack([one, two]))
    sums = torch.zeros(300, 2, dtype=torch.float64).index_add_(0, planted.annotator_index, likelihood)
    posterior = (sums[planted.annotator_index] - likelihood).log_softmax(1)
    half = torch.full((2,), 0.5, dtype=torch.float64).log()
    gained = ((posterior + likelihood).logsumexp(1) - (half + likelihood).logsumexp(1)).mean().item()
    assert gained == pytest.approx(0.1, abs=0.04)


@pytest.mark.slow
def test_one_reward_suffices_for_rankings_of_one_mind():
    rankings, _ = table(people=150, choices=8)
    options = {"num_init": 2, "num_steps": 12, "num_final_steps": 6, "num_final_folds": 3, "prior_scale": 2.0}
    choice = choose_components(rankings, 150, (1, 2), seed=0, **options)
    assert choice.unit == "ranking" and choice.chance == pytest.approx(-np.log(24))
    assert choice.verdict_kind == "one" and choice.simulated
    assert min(gain for gain, _ in choice.simulated.values()) > choice.gain[2]
