# SPDX-License-Identifier: Apache-2.0
"""`diagnose` on worlds whose groups are known."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.evaluation import diagnose, plot_diagnosis
from trl_maxmin.evaluation.diversity import alignment_gap
from trl_maxmin.evaluation.features import principal_features, word_features
from trl_maxmin.functional.em_features import fit_rewards
from trl_maxmin.functional.feature_pairs import FeaturePairs


def preferences(seed=0, share=0.2, annotators=20, pairs=40):
    world = FilmReviewWorld(seed=seed)
    prompts = world.sample_prompts(200, seed=seed)
    replies = list(zip(*(world.sample_reviews(prompts, seed=10 * seed + i) for i in range(3)), strict=True))
    planted = world.annotators(annotators, share, seed=seed)
    return world.collect_preferences(prompts, replies, planted, pairs, seed=seed)


@pytest.fixture(scope="module")
def planted():
    return diagnose(preferences(pairs=60), max_groups=2, num_init=2, num_resamples=200)


@pytest.fixture(scope="module")
def uniform():
    return diagnose(preferences(share=0.0), max_groups=2, num_init=2, num_resamples=200)


def test_one_group_is_one_group(uniform):
    assert uniform.num_groups == 1 and not uniform.curves and uniform.verdict_kind != "groups"
    assert "| 1 | -0." in uniform.to_markdown() and "nats per held-out pair against K = 1" in uniform.verdict()


def votes(wanted, people=40, seed=0):
    """Five statements that a person agrees with, each against six that they do not; `wanted(person, text)` says how
    much a person likes a statement of six words."""
    generator = np.random.default_rng(seed)
    words = "good bad tall short red blue old new fast slow rich poor wet dry hot cold big small calm wild".split()
    texts = [" ".join(generator.permutation(words)[:6]) for _ in range(40)]
    rows = []
    for person in range(people):
        shown = sorted(generator.permutation(texts)[:11], key=lambda text: -wanted(person, text, generator))
        rows += [(a, d, person, f"half {person % 2}") for a in shown[:5] for d in shown[5:]]
    columns = zip(("chosen", "rejected", "annotator_id", "half"), zip(*rows, strict=True), strict=True)
    return Dataset.from_dict({name: list(map(str, column)) for name, column in columns})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group_column", [None, "half"])
def test_votes_by_tossed_coins_hold_no_groups(group_column, seed):
    """Each pair that is held out is implied by the others of the same person, if pairs and not statements are."""
    data = votes(lambda person, text, generator: generator.random(), seed=seed)
    found = diagnose(data, group_column=group_column, max_groups=2, num_init=2, num_resamples=100)
    assert found.num_groups == 1


def test_votes_of_two_groups_hold_two():
    def wanted(person, text, generator):
        return (1 if person % 2 else -1) * ("good" in text) + 0.3 * generator.random()

    found = diagnose(votes(wanted), max_groups=2, num_init=2, num_resamples=100)
    assert found.num_groups == 2


def test_planted_groups_are_found_with_their_shares(planted):
    assert planted.num_groups == 2
    shares = [entry["share"] for entry in planted.by_group.values()]
    assert shares == pytest.approx([0.8, 0.2], abs=0.03)
    assert planted.verdict().startswith(
        "Yes: the data hold 2 groups of annotators (component_0 80 %, component_1 20 %)"
    )


def test_the_minority_loses_more(planted):
    assert planted.measured_order == ["component_1", "component_0"]
    worst, best = (planted.by_group[name] for name in planted.measured_order)
    assert worst["gap"]["low"] > best["gap"]["high"]
    assert worst["accuracy_own"]["mean"] > 0.75 > 0.6 > worst["accuracy_single"]["mean"]


def test_so_it_is_under_the_gold_utilities():
    """The order of the gaps that linear rewards give is that of the gold utilities, which `diagnose` never saw."""
    world, data = FilmReviewWorld(seed=0), preferences(pairs=60)
    features = principal_features(word_features([*data["chosen"], *data["rejected"]]))
    count = len(data)
    number = torch.arange(count)
    table = FeaturePairs(torch.tensor(features), number, number + count, torch.zeros(count).long())
    single = fit_rewards(table, torch.ones(count, 1))[0].numpy()
    gaps = {}
    for group in world.groups:
        gold = np.array([world.gold_utility(group, data[side]) for side in ("chosen", "rejected")])
        gold = gold / gold.std() / 0.25
        judged = np.stack([features[:count] @ single, features[count:] @ single], axis=1)
        gaps[group] = alignment_gap(gold.T, judged).mean()
    assert gaps["positive"] > 2 * gaps["concise"]


def test_curves_fall_with_the_share(planted):
    for points in planted.curves.values():
        shares, gaps = zip(*points, strict=True)
        assert list(shares) == sorted(shares) and list(gaps) == sorted(gaps, reverse=True)


def test_bounds_hold_and_assumptions_are_stated(planted):
    for entry in planted.by_group.values():
        assert 0 < entry["parameter_bound"] <= entry["parameter_distance"]
        assert 0 <= entry["predicted_bound"] <= entry["gap"]["mean"]
        assert 0 < entry["predicted"] == entry["epsilon"] * (1 - entry["share_of_pairs"])
    text = planted.to_markdown()
    for assumption in planted.assumptions:
        assert assumption in text
    assert "Rewards are linear" in text and "|features| <= D" in text


def test_nothing_is_said_of_the_group_in_the_middle():
    """Some want more of what others want less of, and a fifth is indifferent: the single reward costs it least, and
    the margin between the two others is none of its own."""
    generator, words, rows = np.random.default_rng(0), np.array("good fine nice bad poor dull".split()), []
    for person in range(60):
        group = "A" if person < 24 else "B" if person < 48 else "C"
        for i in range(40):
            sides = generator.choice(6, size=(2, 8))
            good = 0.5 * np.where(sides < 3, 1, -1).sum(1)
            chosen = generator.random() > 1 / (1 + np.exp({"A": 1, "B": -1, "C": 0}[group] * (good[0] - good[1])))
            texts = [" ".join(words[side]) for side in sides][:: 1 if chosen else -1]
            rows.append({"annotator_id": person, "group": group, "prompt": f"p{i % 20}"})
            rows[-1] |= {"chosen": texts[0], "rejected": texts[1]}
    found = diagnose(Dataset.from_list(rows), group_column="group", num_resamples=100)
    assert found.num_groups == 3 and found.measured_order[-1] == "C"
    middle = found.by_group.pop("C")
    assert middle["epsilon"] == middle["predicted"] == middle["parameter_bound"] == middle["predicted_bound"] == 0
    for entry in found.by_group.values():
        assert 0.1 < entry["epsilon"] and 0 < entry["parameter_bound"] <= entry["parameter_distance"]
    assert "order is not that of the gaps" in found.to_markdown() and "predicted_order" not in found.to_dict()


def test_assignments_are_as_sure_as_they_say(planted, tmp_path):
    """Of the planted world: nearly everybody is known for sure, by either half of their pairs."""
    found = planted.assignment_calibration
    assert 0 < found["weight"] <= 1 and found["num_annotators"] == planted.num_annotators and not found["says_nothing"]
    assert found["expected"] == pytest.approx(found["observed"], abs=0.08) and found["observed"] > 0.85
    assert sum(entry["num_annotators"] for entry in found["curve"]) <= planted.num_annotators
    text = planted.to_markdown()
    assert f"each pair of an annotator counts {found['weight']:.2f}" in text and "| agreement expected |" in text
    assert plot_diagnosis(planted.to_dict(), tmp_path / "three.png").stat().st_size > 0
    assert diagnose(preferences(), group_column="group", num_resamples=100).assignment_calibration is None


def test_a_handful_is_named(uniform):
    assert uniform.assignment_calibration is None and uniform.below_evidence_floor == []
    data = preferences(share=0.0).remove_columns("group")
    few = [{**row, "group": "few" if i < 20 else "rest"} for i, row in enumerate(data)]
    found = diagnose(Dataset.from_list(few), group_column="group", num_resamples=100)
    assert found.below_evidence_floor == ["few"], "twenty pairs"
    assert (found.by_group["few"]["num_annotators"], found.by_group["few"]["num_pairs"]) == (12, 20)


def test_json_holds_it(planted):
    assert json.loads(json.dumps(planted.to_dict()))["num_groups"] == 2


def test_known_groups_by_their_names():
    found = diagnose(preferences(), group_column="group", num_resamples=200)
    assert found.known and list(found.by_group) == ["concise", "positive"]
    assert [entry["share"] for entry in found.by_group.values()] == pytest.approx([0.8, 0.2])
    assert "2 groups you named (concise 80 %, positive 20 %)" in found.verdict()


def test_known_groups_that_do_not_differ():
    data = preferences(share=0.0)
    half = ["a" if int(name[-1]) % 2 else "b" for name in data["annotator_id"]]
    found = diagnose(
        data.remove_columns("group").add_column("country", half), group_column="country", num_resamples=200
    )
    assert found.num_groups == 1 and found.verdict_kind != "groups"


def test_the_same_seed_gives_the_same_answer(uniform):
    assert diagnose(preferences(share=0.0), max_groups=2, num_init=2, num_resamples=200) == uniform


def test_features_by_hand():
    assert word_features(["Good, good plot"], num_words=2).tolist() == [[2.0, 1.0, 4.0, 15 / 6]]
    messages = [[{"role": "user", "content": "good,"}, {"role": "assistant", "content": "good plot"}]]
    assert word_features(messages, num_words=2).tolist() == [[2.0, 1.0, 4.0, 15 / 6]]


def test_principal_features_keep_distances_up_to_one_scale():
    raw = np.random.default_rng(0).normal(size=(50, 4))
    kept = principal_features(raw)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(50, 1)] for x in (raw, kept)]
    assert distances[1] / distances[0] == pytest.approx(distances[1][0] / distances[0][0])
    assert (kept**2).mean() == pytest.approx(1.0)


def test_a_frozen_model_gives_features(tmp_path, word_tokenizer):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    word_tokenizer.save_pretrained(tmp_path)
    rows = [
        {"prompt": "review", "chosen": f"great {word}", "rejected": f"dull {word}", "annotator_id": i // 8}
        for i, word in enumerate(["plot", "film", "acting", "story"] * 8)
    ]
    found = diagnose(Dataset.from_list(rows), model_name_or_path=str(tmp_path), max_groups=2, num_resamples=100)
    # A card shows this, so not where the model lies on this machine.
    assert found.features == f"the last state of {tmp_path.name}" and found.num_pairs == 32


ROW = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([ROW] * 4, {"max_groups": 1}, "max_groups >= 2"),
        ([ROW] * 4, {"beta": 0.0}, "beta > 0"),
        ([ROW] * 4, {"heldout_fraction": 1.0}, "heldout_fraction in"),
        ([ROW] * 4, {"group_column": "land"}, "no column 'land' of known groups; columns: prompt, chosen, rejected"),
        ([ROW] * 4, {"annotator_column": "who"}, "no column 'who'"),
        ([ROW | {"annotator_id": "a"}] * 4, {"group_column": "annotator_id"}, "names annotators, not groups of them"),
        ([ROW] * 4, {}, "leave no held-out pair"),
        ([{**ROW, "chosen": "", "rejected": " "}] * 4, {}, "holds a word"),
        ([{**ROW, "group": None}, {**ROW, "group": "a"}] * 4, {"group_column": "group"}, "Row 0 has no group"),
        ([{**ROW, "group": "a"}, {**ROW, "group": ""}] * 4, {"group_column": "group"}, r"Row 1 has no group \(''\)"),
        ([{**ROW, "chosen": "ab", "rejected": "AB", "annotator_id": 1}] * 4, {}, "no preference to learn from"),
    ],
)
def test_bad_input_is_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        diagnose(Dataset.from_list(rows), **options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_full_size(seed):
    """50 annotators of 100 pairs: as in the demo, K is right, and so are shares and order."""
    found = diagnose(preferences(seed, annotators=50, pairs=100))
    assert found.num_groups == 2
    assert [entry["share"] for entry in found.by_group.values()] == pytest.approx([0.8, 0.2], abs=0.03)
    assert found.measured_order == ["component_1", "component_0"]
    assert diagnose(preferences(seed, share=0.0, annotators=50, pairs=100)).num_groups == 1


@pytest.mark.parametrize("seed", range(3))
def test_few_annotators_of_one_group_stay_one(seed):
    """360 pairs: under a prior too weak for them, two fits that are shrunk more beat one (0.02 nats a pair)."""
    assert diagnose(preferences(seed, share=0.0, annotators=12, pairs=30), num_resamples=100).num_groups == 1
