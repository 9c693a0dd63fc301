# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import AutoTokenizer

from trl_maxmin.data.film_reviews import INTENSIFIERS, NEGATIVE_WORDS, POSITIVE_WORDS, SPECIAL_TOKENS, VOCABULARY
from trl_maxmin.data.world import GOLD_UTILITIES, MAX_COMPLETION_LENGTH, FilmReviewWorld


@pytest.fixture(scope="module")
def world():
    return FilmReviewWorld(seed=0)


@pytest.fixture(scope="module")
def reviews(world):
    """2,000 prompts with one review each."""
    prompts = world.sample_prompts(2000, seed=11)
    return prompts, world.sample_reviews(prompts, seed=12)


def win_rate(utility, reference):
    return float(np.mean((utility > reference) + 0.5 * (utility == reference)))


class TestTokenizer:
    def test_special_tokens_are_distinct(self, world):
        tokenizer = world.tokenizer
        ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
        assert len(set(ids)) == 4
        assert 45 <= len(tokenizer) <= 60

    def test_knows_every_word_of_prompts_and_reviews(self, world, reviews):
        ids = world.tokenizer([*reviews[0], *reviews[1]])["input_ids"]
        assert all(world.tokenizer.unk_token_id not in row for row in ids)

    def test_decoding_gives_the_words_back_with_single_spaces(self, world, reviews):
        text = reviews[1][0]
        ids = world.tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert world.tokenizer.decode(ids) == text
        assert world.tokenizer.decode([*ids, world.tokenizer.eos_token_id], skip_special_tokens=True) == text

    def test_adds_no_special_tokens(self, world):
        assert world.tokenizer("superb film")["input_ids"] == world.tokenizer.convert_tokens_to_ids(["superb", "film"])

    def test_text_glued_to_the_prompt_reads_the_same(self, world):
        assert world.tokenizer("twins :superb")["input_ids"] == world.tokenizer("twins : superb")["input_ids"]

    def test_survives_saving(self, world, tmp_path):
        world.tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        text = "horror film with robots and pirates : superb"
        assert loaded(text)["input_ids"] == world.tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
        assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "<eos>")


class TestPrompts:
    def test_splits_are_large_and_share_no_topic(self, world):
        def topics(split):
            return {frozenset(prompt.split()) for prompt in world.prompts(split)}

        assert len(set(world.prompts("train"))) == 540
        assert len(set(world.prompts("eval"))) == 180
        assert not topics("train") & topics("eval")

    def test_prompts_repeat_only_when_used_up(self, world):
        counts = Counter(world.sample_prompts(400, seed=1, split="eval"))
        assert len(counts) == 180
        assert set(counts.values()) == {2, 3}

    def test_same_seed_same_prompts(self, world):
        assert world.sample_prompts(20, seed=3) == FilmReviewWorld(seed=0).sample_prompts(20, seed=3)
        assert world.sample_prompts(20, seed=3) != world.sample_prompts(20, seed=4)
        assert world.sample_prompts(20, seed=3) != FilmReviewWorld(seed=1).sample_prompts(20, seed=3)

    def test_takes_a_generator(self, world):
        first, second = (world.sample_prompts(5, seed=np.random.default_rng(7)) for _ in range(2))
        assert first == second

    def test_unknown_split(self, world):
        with pytest.raises(ValueError, match="unknown split 'test'.*eval.*train"):
            world.sample_prompts(1, split="test")

    def test_negative_number(self, world):
        with pytest.raises(ValueError, match="-1"):
            world.sample_prompts(-1)


class TestReviews:
    def test_lengths(self, reviews):
        lengths = np.array([len(review.split()) for review in reviews[1]])
        assert 13 < lengths.mean() < 16
        assert lengths.min() >= 2
        assert lengths.max() < MAX_COMPLETION_LENGTH  # the end-of-sequence token still fits

    def test_speak_of_the_films_nouns_only(self, reviews):
        from trl_maxmin.data.film_reviews import NOUNS

        for prompt, review in zip(*reviews, strict=True):
            assert set(review.split()) & set(NOUNS) <= set(prompt.split())

    def test_verbs_agree_with_their_subject(self, reviews):
        text = " ".join(reviews[1]).split()
        verbs = {subject: set() for subject in ("robots", "cast")}
        for subject, verb in zip(text, text[1:], strict=False):
            if subject in verbs and verb in ("is", "are", "feel", "feels"):
                verbs[subject].add(verb)
        assert verbs == {"robots": {"are", "feel"}, "cast": {"is", "feels"}}

    def test_same_seed_same_reviews(self, world, reviews):
        assert world.sample_reviews(reviews[0], seed=12) == reviews[1]
        assert world.sample_reviews(reviews[0], seed=13) != reviews[1]


class TestGoldUtilities:
    @pytest.mark.parametrize(
        ("group", "reply", "expected"),
        [
            ("concise", "", 1.0),
            ("concise", "superb film", 1 - 2 / 24),
            ("concise", "dull " * 24, 0.0),
            ("concise", "dull " * 30, 0.0),
            ("positive", "", 0.0),
            ("positive", "the film is about robots", 0.0),
            ("positive", "superb film", 1 / 8),
            ("positive", "very superb film", 2 / 8),
            ("positive", "very very superb film", 2 / 8),
            ("positive", "superb very film", 1 / 8),
            ("positive", "dull film but truly awful cast and great plot", -2 / 8),
            ("positive", "superb " * 9, 1.0),
            ("positive", "dull " * 9, -1.0),
            ("acting", "superb cast and dull hero", 0.5),
            ("acting", "cast " * 7, 1.0),
            ("plain", "superb film", 1.0),
            ("plain", "very truly superb film", 0.5),
            ("plain", "very " * 9, 0.0),
        ],
    )
    def test_hand_worked(self, world, group, reply, expected):
        assert world.gold_utility(group, [reply]) == pytest.approx([expected])

    def test_a_reply_cut_off_is_not_concise(self, world):
        assert world.gold_utility("concise", ["superb", "superb"], finished=[True, False])[1] == 0
        assert world.gold_utility("concise", ["superb"], finished=False).tolist() == [0]
        assert world.gold_utility("positive", ["superb"], finished=False).tolist() == [1 / 8]

    def test_messages_count_as_text(self, world):
        message = [{"role": "assistant", "content": "superb film"}]
        assert world.gold_utility("concise", [message]) == world.gold_utility("concise", ["superb film"])

    @pytest.mark.parametrize("group", sorted(GOLD_UTILITIES))
    def test_bounded_and_not_constant(self, world, reviews, group):
        utility = world.gold_utility(group, reviews[1])
        assert utility.shape == (2000,)
        assert utility.dtype == np.float64
        assert utility.min() >= -1 and utility.max() <= 1
        assert utility.std() > 0.05

    def test_unknown_group(self, world):
        with pytest.raises(ValueError, match="unknown group 'funny'.*concise.*positive"):
            world.gold_utility("funny", ["superb"])

    def test_lengths_differ(self, world):
        with pytest.raises(ValueError, match="1 completions but 2 values"):
            world.gold_utility("concise", ["superb"], finished=[True, False])

    @pytest.mark.parametrize("groups", [(), ("concise", "concise"), ("concise", "funny")])
    def test_bad_groups_of_a_world(self, groups):
        with pytest.raises(ValueError, match="group"):
            FilmReviewWorld(groups=groups)

    def test_reward_functions_follow_trl(self, world):
        functions = world.gold_reward_functions()
        assert [function.__name__ for function in functions] == ["concise", "positive"]
        eos = world.tokenizer.eos_token_id
        call = {"prompts": ["p", "p"], "completions": ["superb film", "superb film"], "trainer_state": None}
        assert functions[0](**call) == pytest.approx([1 - 2 / 24] * 2)
        assert functions[0](**call, completion_ids=[[4, 5, eos], [4, 5]]) == pytest.approx([1 - 2 / 24, 0])
        assert functions[0](**call, finished=[False, True]) == pytest.approx([0, 1 - 2 / 24])
        assert functions[1](**call) == pytest.approx([1 / 8] * 2)

    def test_reward_functions_of_a_third_group(self, world):
        (function,) = world.gold_reward_functions(["acting"])
        assert function(prompts=["p"], completions=["great cast"]) == [0.25]
        with pytest.raises(ValueError, match="unknown group"):
            world.gold_reward_functions(["funny"])


class TestTension:
    """What makes the demo mean something, on the writers' own reviews (the slow test repeats it on the policy)."""

    def test_the_groups_are_in_conflict(self, world, reviews):
        concise, positive = (world.gold_utility(group, reviews[1]) for group in world.groups)
        assert np.corrcoef(concise, positive)[0, 1] < -0.2

    def test_short_and_all_praise_beats_the_writers_on_both(self, world, reviews):
        reply = ["superb great lovely fresh clever"]
        concise, positive = (
            win_rate(world.gold_utility(group, reply), world.gold_utility(group, reviews[1])) for group in world.groups
        )
        assert concise >= 0.97
        assert positive >= 0.85

    @pytest.mark.parametrize("reply", ["", "plot"])
    def test_the_shortest_reply_fails_who_wants_praise(self, world, reviews, reply):
        assert win_rate(world.gold_utility("concise", [reply]), world.gold_utility("concise", reviews[1])) == 1
        assert win_rate(world.gold_utility("positive", [reply]), world.gold_utility("positive", reviews[1])) < 0.3


class TestAnnotators:
    def test_counts_are_exact(self, world):
        planted = world.annotators(50, 0.2, seed=0)
        assert Counter(planted) == {"concise": 40, "positive": 10}
        assert planted != sorted(planted)
        assert planted == world.annotators(50, 0.2, seed=0)
        assert planted != world.annotators(50, 0.2, seed=1)

    def test_share_zero_plants_nobody(self, world):
        assert set(world.annotators(50, 0.0)) == {"concise"}

    def test_three_groups(self):
        world = FilmReviewWorld(groups=("concise", "positive", "acting"))
        assert Counter(world.annotators(50, 0.2)) == {"concise": 30, "positive": 10, "acting": 10}
        assert (world.majority, world.minority) == ("concise", "acting")

    @pytest.mark.parametrize(("number", "share"), [(0, 0.2), (50, 1.0), (50, -0.1)])
    def test_no_majority_left(self, world, number, share):
        with pytest.raises(ValueError, match=f"{number} annotators with a share of {share}"):
            world.annotators(number, share)


class TestPreferences:
    @pytest.fixture(scope="class")
    def replies(self, world):
        prompts = world.sample_prompts(200, seed=21)
        replies = np.array(world.sample_reviews([prompt for prompt in prompts for _ in range(6)], seed=22))
        return prompts, replies.reshape(200, 6).tolist()

    def test_contract(self, world, replies):
        annotators = world.annotators(50, 0.2)
        preferences = world.collect_preferences(*replies, annotators, pairs_per_annotator=20)
        assert preferences.column_names == ["prompt", "chosen", "rejected", "annotator_id", "group"]
        assert len(preferences) == 1000
        by_annotator = Counter(preferences["annotator_id"])
        assert len(by_annotator) == 50 and set(by_annotator.values()) == {20}
        owner = {prompt: set(texts) for prompt, texts in zip(*replies, strict=True)}
        for row in preferences:
            assert row["chosen"] != row["rejected"]
            assert {row["chosen"], row["rejected"]} <= owner[row["prompt"]]
            assert row["group"] == annotators[int(row["annotator_id"].removeprefix("annotator_"))]

    def test_noise_is_bradley_terry(self, world, replies):
        preferences = world.collect_preferences(
            *replies, ["concise", "positive"], pairs_per_annotator=3000, temperature=0.5
        )
        for group in world.groups:
            rows = preferences.filter(lambda row, group=group: row["group"] == group)
            pool = [reply for texts in replies[1] for reply in texts]
            scale = np.std(world.gold_utility(group, pool))
            difference = world.gold_utility(group, rows["chosen"]) - world.gold_utility(group, rows["rejected"])
            size = np.abs(difference) / scale
            # Of pairs z standard deviations apart, sigmoid(z / 0.5) are in the gold order: 0.88 at z = 1.
            for low, high in ((0.3, 0.8), (0.8, 1.2), (1.2, 2.0)):
                near = (size > low) & (size < high)
                if near.sum() > 300:
                    assert np.mean(difference[near] > 0) == pytest.approx(expit(size[near] / 0.5).mean(), abs=0.04)

    def test_default_noise_leaves_planted_preferences_mostly_right(self, world, replies):
        preferences = world.collect_preferences(*replies, ["concise", "positive"], pairs_per_annotator=2000)
        for group in world.groups:
            rows = preferences.filter(lambda row, group=group: row["group"] == group)
            agreement = win_rate(
                world.gold_utility(group, rows["chosen"]), world.gold_utility(group, rows["rejected"])
            )
            assert 0.82 < agreement < 0.92

    def test_without_noise_the_better_reply_wins(self, world, replies):
        preferences = world.collect_preferences(*replies, ["positive"], pairs_per_annotator=300, temperature=1e-6)
        chosen, rejected = (world.gold_utility("positive", preferences[side]) for side in ("chosen", "rejected"))
        assert (chosen >= rejected).all()

    def test_seed(self, world, replies):
        first, again, other = (
            world.collect_preferences(*replies, ["concise"], pairs_per_annotator=30, seed=seed).to_list()
            for seed in (0, 0, 1)
        )
        assert first == again != other

    def test_unfinished_and_repeated_replies_are_not_asked_about(self, world):
        completions = [["superb", "superb", "dull"], ["great", "great", "weak"], ["fresh", "cold", "cold"]]
        finished = [[True, True, False], [True, True, True], [True, True, True]]
        preferences = world.collect_preferences(
            ["a :", "b :", "c :"], completions, ["concise"], pairs_per_annotator=50, finished=finished
        )
        assert set(preferences["prompt"]) == {"b :", "c :"}
        assert {*preferences["chosen"], *preferences["rejected"]} == {"great", "weak", "fresh", "cold"}

    def test_nothing_to_compare(self, world):
        with pytest.raises(ValueError, match="no prompt has two different"):
            world.collect_preferences(["a :"], [["superb", "superb"]], ["concise"])

    @pytest.mark.parametrize(
        "arguments", [{"annotators": []}, {"pairs_per_annotator": 0}, {"temperature": 0.0}, {"temperature": -1.0}]
    )
    def test_bad_numbers(self, world, arguments):
        arguments = {"annotators": ["concise"], **arguments}
        with pytest.raises(ValueError, match="positive temperature"):
            world.collect_preferences(["a :"], [["superb", "dull"]], **arguments)

    def test_bad_lengths(self, world):
        with pytest.raises(ValueError, match="2 prompts but 1"):
            world.collect_preferences(["a :", "b :"], [["superb", "dull"]], ["concise"])
        with pytest.raises(ValueError, match="finished"):
            world.collect_preferences(["a :"], [["superb", "dull"]], ["concise"], finished=[])

    def test_unknown_group(self, world):
        with pytest.raises(ValueError, match="unknown group 'funny'"):
            world.collect_preferences(["a :"], [["superb", "dull"]], ["funny"])


class TestReferencePolicy:
    def test_config(self, world):
        config = world.reference_config()
        assert config.vocab_size == len(world.tokenizer) == len(VOCABULARY)
        assert config.n_positions >= 7 + MAX_COMPLETION_LENGTH
        assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
        assert config.pad_token_id != config.eos_token_id

    def test_training_batch(self, world):
        prompt = "war film with dogs and monks :"
        input_ids, labels = world._language_model_batch([prompt, prompt], ["superb film", "dull"])
        decode = world.tokenizer.convert_ids_to_tokens
        assert decode(input_ids[1].tolist()) == [*prompt.split(), "dull", "<eos>", "<pad>"]
        assert labels[1, :7].tolist() == [-100] * 7
        assert decode(labels[1, 7:9].tolist()) == ["dull", "<eos>"]
        assert labels[1, 9].item() == -100
        assert decode(labels[0, 7:].tolist()) == ["superb", "film", "<eos>"]

    def test_same_seed_same_model_and_no_global_randomness(self, world):
        state = torch.get_rng_state()
        first, again, other = (world.pretrain(steps=3, batch_size=4, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        weights = [model.transformer.h[0].mlp.c_fc.weight for model in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_callback_and_modes(self, world):
        seen = []
        model = world.pretrain(steps=12, batch_size=16, callback=lambda step, loss: seen.append((step, loss)))
        assert [step for step, _ in seen] == list(range(1, 13))
        assert seen[-1][1] < seen[0][1] - 0.3
        assert not model.training
        assert model.generation_config.eos_token_id == world.tokenizer.eos_token_id
        assert model.generation_config.top_k == 0

    @pytest.mark.slow
    def test_pretrained_policy_writes_like_the_writers(self, world):
        model = world.pretrain(seed=0)
        prompts = world.sample_prompts(1000, seed=31, split="eval")
        encoded = world.tokenizer(prompts, return_tensors="pt")
        torch.manual_seed(0)
        with torch.no_grad():
            output = model.generate(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        replies = world.tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        finished = (output == world.tokenizer.eos_token_id).any(dim=1)
        assert finished.float().mean() > 0.99

        concise, positive = (world.gold_utility(group, replies) for group in world.groups)
        assert np.corrcoef(concise, positive)[0, 1] < -0.1
        short_praise, silence = ["superb great lovely fresh clever"], [""]
        assert win_rate(world.gold_utility("concise", short_praise), concise) >= 0.97
        assert win_rate(world.gold_utility("positive", short_praise), positive) >= 0.8
        assert win_rate(world.gold_utility("positive", silence), positive) <= 0.35

        lengths = [len(reply.split()) for reply in replies]
        assert 12.5 < np.mean(lengths) < 16
        # Grammar: a judging word follows each intensifier, and hardly any reply breaks off in the middle of a clause.
        judging = {*POSITIVE_WORDS, *NEGATIVE_WORDS, *INTENSIFIERS}
        followers = [
            after
            for reply in replies
            for before, after in zip(reply.split(), reply.split()[1:], strict=False)
            if before in INTENSIFIERS
        ]
        assert np.mean([word in judging for word in followers]) > 0.98
        assert np.mean([reply.split()[-1] in ("and", "but", "the", "is", "with", "about") for reply in replies]) < 0.03
        assert not any(token in reply for reply in replies for token in SPECIAL_TOKENS)
