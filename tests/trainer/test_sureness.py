# SPDX-License-Identifier: Apache-2.0
"""How sure a fitted mixture is: of who somebody is, and of texts that its rewards do not know."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.trainer.test_mixture_reward_trainer import BAD, FILLER, GOOD, fit, opposed_groups
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.run_record import RunRecord


def votes(people=30, each=12, seed=0):
    """Sixty texts, each liked by everybody as much as chance has it: one text says nothing of another."""
    rng = np.random.default_rng(seed)
    words = [*GOOD, *BAD, *FILLER]
    texts = [" ".join(rng.permutation(words)[:5]) for _ in range(60)]
    liked = dict(zip(texts, rng.normal(size=60), strict=True))
    rows = []
    for who in range(people):
        for _ in range(each):
            pair = sorted(rng.choice(texts, 2, replace=False).tolist(), key=lambda text: -liked[text])
            rows.append({"prompt": "p", "chosen": pair[0], "rejected": pair[1], "annotator_id": f"annotator {who}"})
    return Dataset.from_list(rows)


@pytest.fixture
def frozen(word_tokenizer, tmp_path):
    return fit(word_tokenizer, tmp_path, train_trunk=False, save_strategy="epoch")


def test_the_weight_and_the_counts_travel_with_the_mixture(frozen):
    loaded = MixtureRewardModel.from_pretrained(frozen.args.output_dir)
    assert 0 < loaded.config.evidence_weight <= 1
    assert sorted(loaded.config.component_annotators) == [3, 9]
    pairs = torch.bincount(frozen.em_state.annotator_index).tolist()
    assert sum(loaded.config.component_pairs) == len(frozen.train_dataset) == sum(pairs)
    few = loaded.config.component_annotators.index(3)
    assert loaded.config.component_pairs[few] == sum(pairs[h] for h in range(12) if h < 3)
    stage, facts = frozen._record_facts()
    record = RunRecord().update(stage, **facts).reward
    assert record["evidence_weight"] == loaded.config.evidence_weight
    found = record["assignment_calibration"]
    assert found["num_annotators"] == 12 and found["expected"] == pytest.approx(found["observed"], abs=0.1)


def test_assignments_of_the_run_and_of_new_people_agree(frozen):
    """The same pairs, once as training pairs and once as those of somebody new."""
    mixture = frozen.mixture
    mixture.attach_tokenizer(frozen.processing_class)
    new = mixture.assign(frozen.train_dataset.select_columns(["prompt", "chosen", "rejected", "annotator_id"]))
    assert new.annotator_ids == frozen.annotators.annotator_ids
    assert new.best.tolist() == frozen.em_state.log_responsibilities.argmax(-1).tolist()


def test_temperatures_do_not_enter_who_somebody_is(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path, train_trunk=False)
    before = trainer.posterior().probabilities
    trainer.mixture.scale_heads([3.0, 0.5])
    torch.testing.assert_close(trainer.posterior().probabilities, before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_posterior_by_hand(frozen, weight):
    state = frozen.em_state
    kept = state.evidence_weight, state.log_responsibilities
    state.weigh(weight)
    scores, annotators = state.evidence()
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    found, counts = state.posterior(*none)
    for h in range(12):
        own = scores[annotators == h].double().sum(0)
        expected = state.mixing_weights * (weight * (own - own.max())).exp()
        torch.testing.assert_close(found[h], expected / expected.sum(), atol=1e-6, rtol=1e-5)
        assert counts[h] == (annotators == h).sum()
    state.evidence_weight, state.log_responsibilities = kept


def test_heads_on_a_frozen_trunk_are_calibrated_on_texts_they_do_not_know(word_tokenizer, tmp_path, caplog):
    """All people agree about every text, so heads that know a text are right to be sure of it; of another text they
    know nothing, and that is what a policy will write."""
    trainer = fit(word_tokenizer, tmp_path, data=votes(), num_components=1, train_trunk=False, heldout_fraction=0.2)
    (temperature,) = trainer.mixture.config.temperatures
    assert temperature > 2
    raw = fit(
        word_tokenizer, tmp_path, data=votes(), num_components=1, train_trunk=False, heldout_fraction=0.2,
        calibrate_temperature=False,
    )  # fmt: skip
    # The held-out pairs are of texts that the training pairs hold: there the rewards stay as sure as they were.
    torch.testing.assert_close(trainer.heldout_log_likelihood(), raw.heldout_log_likelihood(), atol=1e-4, rtol=1e-4)
    differences = trainer.reward_differences(trainer.eval_dataset)
    torch.testing.assert_close(
        differences * temperature, raw.reward_differences(raw.eval_dataset), atol=1e-3, rtol=1e-3
    )


def test_a_trained_trunk_gets_its_held_out_pairs_by_texts(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path, data=votes(), num_components=1, max_steps=4, heldout_fraction=0.2)
    known = trainer._known_texts(trainer.eval_dataset)
    assert not known.all(1).any() and 0.1 < len(known) / (len(known) + len(trainer.train_dataset)) < 0.3
    assert trainer.mixture.config.temperatures != [1.0]


def test_what_was_given_is_calibrated_anew(word_tokenizer, tmp_path):
    first = fit(word_tokenizer, tmp_path / "a", train_trunk=False).mixture
    first.scale_heads([50.0, 50.0])
    first.config.evidence_weight = 0.2
    again = fit(
        word_tokenizer, tmp_path / "b", model=first, train_trunk=False, calibrate_temperature=False
    )  # the heads are fitted anew, so the old temperatures say nothing
    assert again.mixture.config.temperatures == [1.0, 1.0]


def test_people_who_cannot_be_halved_count_whole(word_tokenizer, tmp_path, caplog):
    data = opposed_groups(pairs=2).select(range(0, 24, 2))  # a pair of each
    with caplog.at_level(logging.INFO):
        trainer = fit(word_tokenizer, tmp_path, data=data, train_trunk=False, heldout_fraction=0)
    assert trainer.mixture.config.evidence_weight == 1.0
    assert trainer.final_facts["assignment_calibration"] is None
