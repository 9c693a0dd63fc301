# SPDX-License-Identifier: Apache-2.0
"""`diagnose` with a model and `reward --train_trunk false --select` are one choice."""

import random

import pytest
from datasets import Dataset

from tests.trainer.test_mixture_reward_trainer import tiny_model
from trl_maxmin import MixtureRewardConfig, MixtureRewardTrainer
from trl_maxmin.evaluation import diagnose


def reviews(seed=0, people=12, pairs=8):
    """A third of the people like bad reviews."""
    rng, rows = random.Random(seed), []
    for person in range(people):
        for _ in range(pairs):
            good, bad = (f"{rng.choice(words)} {rng.choice(['plot', 'film', 'acting'])}" for words in (
                ["great", "superb", "lovely"], ["dull", "awful", "weak"]))  # fmt: skip
            if person < people // 3:
                good, bad = bad, good
            rows.append({"prompt": "review", "chosen": good, "rejected": bad, "annotator_id": person})
    return Dataset.from_list(rows)


def test_the_same_file_gives_the_same_k(tmp_path, word_tokenizer):
    base, data = tmp_path / "base", reviews()
    tiny_model(word_tokenizer).save_pretrained(base)
    word_tokenizer.save_pretrained(base)
    found = diagnose(data, model_name_or_path=str(base), max_groups=2, num_resamples=100, seed=3)
    args = MixtureRewardConfig(
        str(tmp_path / "out"), select="1,2", train_trunk=False, seed=3, report_to=[], disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = MixtureRewardTrainer(str(base), args, train_dataset=data)
    encoded = []
    trainer.mixture.trunk.register_forward_hook(lambda _, __, output: encoded.append(len(output[0])))
    trainer.choose_feature_map()
    selection = trainer.select_num_components([1, 2])
    assert found.num_groups == selection.num_components and found.verdict_kind == selection.verdict_kind
    theirs = selection.by_candidate()
    assert found.selection.keys() == theirs.keys()
    for k, numbers in found.selection.items():
        # Texts may stand in another order in a batch, so the vectors differ in their last digits.
        assert numbers == pytest.approx(theirs[k], abs=1e-4)
    assert sum(encoded) <= len({text for row in data for text in (row["chosen"], row["rejected"])})
