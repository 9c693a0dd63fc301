# SPDX-License-Identifier: Apache-2.0
"""Which tokenizer reads for a reward model; pairs that are one as tokens; a pad token that was added."""

import logging

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, GPT2ForSequenceClassification

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import critic_model, gpt2
from trl_maxmin import MixtureRewardConfig, MixtureRewardModel, MixtureRewardTrainer
from trl_maxmin.evaluation.diagnosis import diagnose
from trl_maxmin.trainer.scoring.sources import RewardBatch, build_reward_source


def batch(tokenizer):
    text = ["great superb", "dull", "very good"]
    return RewardBatch(
        prompts=["the film"] * 3,
        completions=text,
        prompt_ids=[tokenizer("the film")["input_ids"]] * 3,
        completion_ids=[tokenizer(reply)["input_ids"] + [tokenizer.eos_token_id] for reply in text],
        finished=[True] * 3,
    )


def test_a_reward_model_reads_by_the_tokenizer_it_was_saved_with(tmp_path, word_tokenizer):
    """Both vocabularies have one size; every word has another id."""
    own = build_word_tokenizer(reverse=True)
    critic_model(1).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    found = build_reward_source(model, word_tokenizer)(batch(word_tokenizer))
    ids = [own(f"the film {text}")["input_ids"] + [own.eos_token_id] for text in batch(own).completions]
    expected = torch.cat([model.score(model.transformer(torch.tensor([row])).last_hidden_state[:, -1]) for row in ids])
    torch.testing.assert_close(found, expected.detach())


def test_without_one_the_pair_is_demanded(tmp_path, word_tokenizer):
    """Of a model that was loaded from nowhere, from a folder without a tokenizer, and by a name that nobody answers
    for; the policy's ids would have given numbers, too."""
    critic_model(1).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    gone = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    gone.config.name_or_path = str(tmp_path / "moved")
    bare = GPT2ForSequenceClassification(critic_model(1).config)
    mixture = MixtureRewardModel.from_base(gpt2(), 2)
    for nameless, where in ((model, "in '"), (gone, "moved"), (bare, "from nowhere"), (mixture, "from nowhere")):
        with pytest.raises(ValueError, match=f"{type(nameless).__name__} came without.*{where}.*Pass the pair"):
            build_reward_source([nameless], word_tokenizer)
        pair = nameless, word_tokenizer
        assert build_reward_source(pair, word_tokenizer)(batch(word_tokenizer)).isfinite().all()


PAIRS = {
    "prompt": ["the film"] * 6,
    "chosen": ["good", "unheard", "great", "superb", "very good", "good"],
    "rejected": ["dull", "unseen", "weak", "dull", "bad", "weak"],
    "annotator_id": list("aabbcc"),
}


def test_pairs_that_are_equal_once_tokenised_are_ties(tmp_path, word_tokenizer, caplog):
    """Both words are unknown to the tokenizer."""
    caplog.set_level(logging.WARNING)
    dataset = Dataset.from_dict(PAIRS)
    args = MixtureRewardConfig(
        output_dir=str(tmp_path), num_components=2, use_cpu=True, bf16=False, report_to=[], heldout_fraction=0.0
    )
    base = gpt2(vocab_size=len(word_tokenizer))
    trainer = MixtureRewardTrainer(model=base, args=args, processing_class=word_tokenizer, train_dataset=dataset)
    assert len(trainer.train_dataset) == 5 and "Dropped 1 of 6 pairs" in caplog.text
    caplog.clear()
    posterior = trainer.mixture.assign(dataset)
    assert posterior.num_pairs.tolist() == [1, 2, 2] and "once they are tokenised" in caplog.text
    with pytest.raises(ValueError, match="In all 1 rows"):
        trainer.mixture.assign(dataset.select([1]))


def test_a_diagnosis_says_which_pairs_read_alike(caplog):
    caplog.set_level(logging.WARNING)
    generator = torch.Generator().manual_seed(0)
    words = ["good", "great", "dull", "weak", "long", "superb"]
    rows = [torch.randperm(6, generator=generator).tolist() for _ in range(80)]
    sides = {"chosen": [f"{words[a]} {words[b]}" for a, b, *_ in rows]}
    sides["rejected"] = [f"{words[c]} {words[d]}" for _, _, c, d, *_ in rows]
    sides["chosen"][7], sides["rejected"][7] = "good dull", "dull good"  # one text as counts of words
    names = [f"p{row % 10}" for row in range(80)]
    groups = [["x", "y"][row % 2] for row in range(80)]
    diagnose(Dataset.from_dict(sides | {"annotator_id": names, "group": groups}), group_column="group")
    assert "Dropped 1 of 80 pairs" in caplog.text


@pytest.mark.parametrize("pad", [None, "<eos>"])
@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_an_added_pad_token_is_saved_with_its_row(kind, pad, tmp_path, word_tokenizer):
    word_tokenizer.pad_token = pad
    gpt2(vocab_size=len(word_tokenizer)).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    mixture = MixtureRewardModel.from_base(tmp_path / "base", 2, kind).eval()
    assert len(mixture.processing_class) == len(word_tokenizer) + 1
    mixture.save_pretrained(tmp_path / "mixture")
    again = MixtureRewardModel.from_pretrained(tmp_path / "mixture").eval()
    said = ["the film"] * 2, ["good", "very good but dull"]
    torch.testing.assert_close(again.score(*said), mixture.score(*said))
    if kind != "lora":
        mixture.component(1).save_pretrained(tmp_path / "component")
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "component")
