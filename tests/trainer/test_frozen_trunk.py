# SPDX-License-Identifier: Apache-2.0
"""Heads on cached features, the choice of K, known groups: on the toy of two opposed groups."""

import json
import math

import pytest
import torch
from datasets import Dataset

from tests.trainer.test_mixture_reward_trainer import config, fit, found_groups, opposed_groups, tiny_model
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.num_components import decide
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer import MixtureRewardTrainer
from trl_maxmin.trainer.reward.component_selection import ComponentSelection
from trl_maxmin.trainer.reward.heads import fit_feature_map


FROZEN = {"train_trunk": False, "pooling": "mean"}


@pytest.mark.parametrize("pooling", ["auto", "mean", "mean_sqrt_len"])
def test_planted_groups_are_recovered_without_touching_the_trunk(word_tokenizer, tmp_path, pooling):
    base = tiny_model(word_tokenizer)
    before = {name: tensor.clone() for name, tensor in base.transformer.state_dict().items()}
    trainer = fit(word_tokenizer, tmp_path, model=base, train_trunk=False, pooling=pooling)
    found = found_groups(trainer)
    assert len(set(found[:3])) == 1 and len(set(found[3:])) == 1 and found[0] != found[3]
    assert (trainer.heldout_log_likelihood().exp() > 0.5).double().mean() > 0.95
    for name, tensor in trainer.mixture.trunk.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_each_text_is_encoded_once(word_tokenizer, tmp_path):
    trainer = MixtureRewardTrainer(
        tiny_model(word_tokenizer), config(tmp_path, **FROZEN), train_dataset=opposed_groups(),
        processing_class=word_tokenizer,
    )  # fmt: skip
    seen = []
    trainer.mixture.trunk.register_forward_hook(lambda _, __, output: seen.append(len(output[0])))
    trainer.train()
    trainer.heldout_log_likelihood()
    texts = {(row["prompt"], row[side]) for row in opposed_groups() for side in ("chosen", "rejected")}
    assert sum(seen) == len(texts) < len(opposed_groups())


def test_cached_rewards_are_those_of_the_model(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path, **FROZEN)
    rows = trainer.eval_dataset
    cached = trainer.reward_differences(rows)
    mixture = trainer.mixture
    scores = mixture.score(list(rows["prompt"]) * 2, list(rows["chosen"]) + list(rows["rejected"]))
    torch.testing.assert_close(cached, scores[: len(rows)] - scores[len(rows) :], atol=1e-4, rtol=1e-3)


def test_kernel_features_are_chosen_where_nothing_is_exported_anyway(tmp_path):
    assert config(tmp_path, **FROZEN).kernel_features is None
    assert config(tmp_path, train_trunk=False).kernel_features == config(tmp_path, pooling="mean").kernel_features == 0


@pytest.mark.parametrize("better", ["linear", "kernel"])
def test_heads_are_what_predicts_better(word_tokenizer, better):
    """Vectors put in by hand: a reward along one axis, or a reward of the neighbourhood that no axis shows."""
    mixture = MixtureRewardModel.from_base(
        tiny_model(word_tokenizer), 1, processing_class=word_tokenizer, pooling="mean", kernel_features=2048
    )
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(60, 32, generator=generator)
    if better == "linear":
        reward = 2 * texts[:, 0]
    else:
        texts[:, 2:] = 0  # twelve clusters in a plane, good and bad in turns
        texts = texts[:12].repeat_interleave(5, 0) + 0.05 * texts
        reward = 4 * (torch.arange(60) // 5 % 2).float()
    first, second = torch.randint(60, (2, 800), generator=generator)
    prefer = torch.rand(800, generator=generator) < torch.sigmoid(reward[first] - reward[second])
    chosen, rejected = torch.where(prefer, first, second), torch.where(prefer, second, first)
    pairs = FeaturePairs(texts, chosen, rejected, torch.arange(800) % 12)
    fit_feature_map(mixture, pairs, 12, seed=0, choose=True)
    assert (mixture.feature_map is None) == (better == "linear")
    assert mixture.config.kernel_features == (0 if better == "linear" else 2048)
    width = mixture.components[0].score.in_features
    assert width == mixture.map_features(mixture.trunk_features(torch.tensor([[5, 6]]))).shape[-1]


def test_kernel_features_come_back_from_disk(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path, kernel_features=64, **FROZEN)
    assert trainer.mixture.feature_map.center.abs().max() > 0, "fitted to the texts"
    trainer.save_model(str(tmp_path / "saved"))
    loaded = MixtureRewardModel.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert loaded.feature_map.frequencies.dtype == torch.float32, "a phase needs more than eight bits"
    loaded = MixtureRewardModel.from_pretrained(tmp_path / "saved")
    texts = ["review of a film :"] * 2, ["superb", "dull"]
    torch.testing.assert_close(loaded.score(*texts), trainer.mixture.score(*texts))
    with pytest.raises(ValueError, match="kernel_features=64 cannot be exported"):
        loaded.component(0)


class TestSelection:
    @pytest.mark.parametrize("kind", ["head", "lora", "full"])
    def test_two_groups_are_found(self, word_tokenizer, tmp_path, kind):
        trainer = fit(word_tokenizer, tmp_path, num_components="auto", select="1,2,3", component_type=kind)
        assert trainer.selection.num_components == 2 == trainer.mixture.num_components
        assert trainer.selection.verdict().startswith("K = 2:")
        assert trainer.em_state.log_responsibilities.shape == (12, 2)
        trainer.save_model(str(tmp_path / "saved"))
        assert MixtureRewardModel.from_pretrained(tmp_path / "saved").num_components == 2

    def test_one_group_is_no_evidence(self, word_tokenizer, tmp_path):
        data = opposed_groups(share=0.0)
        trainer = fit(word_tokenizer, tmp_path, data=data, select="1,2", **FROZEN)
        assert trainer.mixture.num_components == 1
        assert trainer.selection.verdict_kind != "groups" and trainer.selection.verdict().startswith("K = 1: ")

    def test_an_interrupted_run_keeps_its_choice(self, word_tokenizer, tmp_path):
        settings = {"select": "1,2", "save_strategy": "steps", "save_steps": 5, "max_steps": 10}
        whole = fit(word_tokenizer, tmp_path, **settings)
        resumed = fit(word_tokenizer, tmp_path, resume=str(tmp_path / "checkpoint-5"), **settings)
        assert resumed.mixture.num_components == whole.mixture.num_components == 2
        for a, b in zip(resumed.mixture.parameters(), whole.mixture.parameters(), strict=True):
            torch.testing.assert_close(a, b)

    def test_by_hand_and_on_disk(self, tmp_path):
        good, bad = math.log(0.8), math.log(0.4)
        scores = {1: torch.full((8,), bad), 2: torch.full((8,), good)}
        scores[2][0] = bad
        selection = ComponentSelection.of(decide(scores, torch.arange(8) // 2))
        assert selection.num_components == 2 and selection.accuracy == {1: 0.0, 2: 7 / 8}
        selection.save(tmp_path)
        facts = json.loads((tmp_path / "selection.json").read_text())
        assert facts["num_annotators"] == 4 and facts["verdict"].startswith("K = 2")
        assert (tmp_path / "selection.png").read_bytes()[:4] == b"\x89PNG"
        assert [row[0] for row in selection.rows()] == ["1", "2 *"]

    def test_pairs_that_could_not_be_held_out_do_not_count(self):
        nan = float("nan")
        scores = {1: torch.tensor([-0.9, nan, -0.9, nan]), 2: torch.tensor([-0.1, nan, -0.2, -9.0])}
        selection = ComponentSelection.of(decide(scores, torch.tensor([0, 0, 1, 2])))
        assert selection.num_components == 2 and selection.num_pairs == 2 and selection.num_annotators == 2
        assert selection.log_likelihood == pytest.approx({1: -0.9, 2: -0.15})
        with pytest.raises(ValueError, match="Of 4 pairs 2 can be held out, of fewer than 2 annotators"):
            ComponentSelection.of(decide(scores, torch.zeros(4).long()))

    def test_the_smaller_of_two_that_cannot_be_told_apart(self):
        scores = {1: torch.tensor([-0.5, -0.5, -0.5, -0.5]), 2: torch.tensor([-0.1, -0.8, -0.1, -0.8])}
        selection = ComponentSelection.of(decide(scores, torch.arange(4)))
        assert selection.best == 2 and selection.num_components == 1
        assert selection.verdict_kind == "cannot_tell" and "times as many annotators" in selection.verdict()

    def test_what_predicts_less_than_a_coin_says_so_first(self):
        scores = {1: torch.tensor([-0.9, -0.8, -0.9, -0.8]), 2: torch.tensor([-0.7, -1.0, -0.9, -0.9])}
        selection = ComponentSelection.of(decide(scores, torch.arange(4)))
        words = selection.verdict()
        assert words.startswith("Of new pairs even the best, K = 1, predicts less than a coin does: -0.8500 nats")
        assert selection.verdict_kind == "cannot_tell" and "0.6931" in words


class TestKnownGroups:
    def test_known_annotators_keep_their_group_and_name_it(self, word_tokenizer, tmp_path):
        rows = opposed_groups().to_list()
        for row in rows:
            # Two of the minority and three of the majority are known; one of them is known wrongly.
            number = int(row["annotator_id"].split()[1])
            row["known"] = {0: "b", 1: "b", 3: "p", 4: "p", 5: "b"}.get(number)
        for settings in (FROZEN, {}):
            trainer = fit(word_tokenizer, tmp_path, data=Dataset.from_list(rows), group_column="known", **settings)
            assert trainer.mixture.component_names == ["b", "p"]
            found = found_groups(trainer)
            assert found[:3] == ["b"] * 3 and found[5] == "b"
            assert found[3:5] == ["p"] * 2 and found[6:] == ["p"] * 6

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("nobody", None, "no column 'nobody'"),
            ("known", lambda i: "xy"[i % 2], "two groups"),
            ("known", lambda i: "xyz"[i // 16 % 3], "3 groups for 2 components"),
            ("known", lambda i: None, "0 groups"),
        ],
    )
    def test_errors(self, word_tokenizer, tmp_path, column, values, message):
        data = opposed_groups()
        if values is not None:
            data = data.add_column("known", [values(i) for i in range(len(data))])
        with pytest.raises(ValueError, match=message):
            fit(word_tokenizer, tmp_path, data=data, group_column=column)


class TestErrors:
    @pytest.mark.parametrize("select", ["two", "0,1", ""])
    def test_candidates(self, tmp_path, select):
        with pytest.raises(ValueError, match="select must be whole numbers"):
            config(tmp_path, select=select)

    def test_words_for_numbers(self, tmp_path):
        with pytest.raises(ValueError, match="'auto' or a whole number.*'many'"):
            config(tmp_path, num_components="many")

    def test_only_heads_share_a_frozen_trunk(self, tmp_path):
        with pytest.raises(ValueError, match="train_trunk must be true with component_type='full'"):
            config(tmp_path, train_trunk=False, component_type="full")

    def test_ridge_and_pooling(self, tmp_path):
        with pytest.raises(ValueError, match="prior_scale must be 'auto' or positive, got 0"):
            config(tmp_path, prior_scale=0)
        with pytest.raises(ValueError, match="pooling must be .*'max'"):
            config(tmp_path, pooling="max")

    @pytest.mark.parametrize("count", [-2, 3])
    def test_kernel_features(self, tmp_path, count):
        with pytest.raises(ValueError, match=f"kernel_features must be an even number of at least 0, got {count}"):
            config(tmp_path, kernel_features=count, **FROZEN)
        with pytest.raises(ValueError, match="kernel_features=8 is for heads on a frozen trunk. Add train_trunk"):
            config(tmp_path, kernel_features=8)

    def test_more_candidates_than_annotators(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="num_components=13"):
            fit(word_tokenizer, tmp_path, select="1,13")

    def test_keep_components(self, word_tokenizer):
        mixture = MixtureRewardModel.from_base(tiny_model(word_tokenizer), 2, processing_class=word_tokenizer)
        with pytest.raises(ValueError, match="Cannot keep 3 of 2"):
            mixture.keep_components(3)
