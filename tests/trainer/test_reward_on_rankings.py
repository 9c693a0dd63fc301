# SPDX-License-Identifier: Apache-2.0
"""A mixture trained on rankings: planted groups found, the same numbers as pairs for two replies, each reply once."""

from itertools import permutations

import pytest
import torch
from datasets import Dataset

from tests.trainer.test_mixture_reward_trainer import BAD, FILLER, GOOD, config, opposed_groups, tiny_model
from trl_maxmin.data.columns import share_of_familiar_pairs, split_by_text
from trl_maxmin.data.rankings import pairs_to_rankings
from trl_maxmin.functional.ranking import RankedChoices
from trl_maxmin.trainer import MixtureRewardTrainer
from trl_maxmin.trainer.reward import mixture_reward_trainer
from trl_maxmin.trainer.reward.annotated_preferences import (
    DataCollatorForAnnotatedRankings,
    number_rows,
    prepare_rows,
    tokenize_rows,
)
from trl_maxmin.trainer.reward.scored_rows import ScoredRankings


def opposed_rankings(form="ranking", num_annotators=12, rows=12, seed=0, prompt_words=0):
    """Three of twelve rank blame before what is neither, and that before praise; the others the other way round."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words):
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    found = []
    for h in range(num_annotators):
        for _ in range(rows):
            words = [pick(GOOD), pick(FILLER), pick(FILLER), pick(BAD)]
            place = [3, 2, 2, 1] if h < num_annotators // 4 else [1, 2, 2, 3]
            order = torch.randperm(4, generator=generator).tolist()
            replies = [f"{pick(FILLER)} is {words[i]}" for i in order]
            ranks = [place[i] for i in order]
            prompt = " ".join(["review of film", *(pick(FILLER + GOOD + BAD) for _ in range(prompt_words)), ":"])
            row = {"prompt": prompt, "responses": replies, "annotator_id": f"annotator {h}"}
            found.append(row | ({"ranking": ranks} if form == "ranking" else {"choice": ranks.index(1)}))
    return Dataset.from_list(found)


def build(tokenizer, tmp_path, data, eval_dataset=None, **kwargs):
    return MixtureRewardTrainer(
        tiny_model(tokenizer),
        config(tmp_path, **kwargs),
        train_dataset=data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


def found_groups(trainer):
    return [trainer.assignments()[f"annotator {h}"] for h in range(12)]


KINDS = {
    "frozen": {"train_trunk": False},
    "kernel": {"train_trunk": False, "pooling": "mean"},
    "head": {},
    "lora": {"component_type": "lora"},
    "full": {"component_type": "full"},
    "fresh": {"e_step_scores": "fresh", "em": "hard"},
}


@pytest.mark.parametrize("form", ["ranking", "choice"])
@pytest.mark.parametrize("kind", KINDS)
def test_planted_groups_are_recovered(word_tokenizer, tmp_path, kind, form):
    trainer = build(word_tokenizer, tmp_path, opposed_rankings(form), **KINDS[kind])
    trainer.train()
    found = found_groups(trainer)
    assert len(set(found[:3])) == 1 and len(set(found[3:])) == 1 and found[0] != found[3]
    facts = trainer.final_facts
    assert min(facts["component_heldout_accuracy"].values()) > 0.9
    assert min(facts["component_heldout_tau"].values()) > 0.8 and set(facts) >= {"evidence_weight", "converged"}
    assert sum(facts["component_heldout_pairs"].values()) == len(trainer.eval_dataset)
    assert all(0 < temperature < 100 for temperature in trainer.mixture.config.temperatures)
    if trainer.args.train_trunk:
        found = trainer.evaluate()
        assert found["eval_accuracy"] > 0.9
        # Of the set, as the posterior of each annotator would have it.
        people = torch.tensor(trainer.eval_dataset["annotator_index"][:])
        weights, scored = trainer._responsibilities(people).log(), trainer.scored(trainer.eval_dataset)
        right, tau = scored.of_mixture(weights, scored.log_likelihood())
        assert found["eval_kendall_tau"] == pytest.approx(tau.mean().item(), abs=1e-5) and tau.mean() > 0.7
        assert found["eval_accuracy"] == pytest.approx(right.mean().item(), abs=1e-5)


def as_rankings(monkeypatch):
    """Rankings of two are kept as such, where the trainer would take them for pairs."""
    monkeypatch.setattr(
        mixture_reward_trainer, "prepare_rows", lambda *args, ranked=None, **kw: prepare_rows(*args, ranked=True, **kw)
    )


@pytest.mark.parametrize("kind", ["frozen", "head", "lora", "full"])
def test_rankings_of_two_are_pairs(word_tokenizer, tmp_path, monkeypatch, kind):
    """Twice: as the trainer takes them, to the bit; and through all that rankings of more take, to rounding. Weights
    are float64: batches are summed in other orders, which three steps in float32 make 1e-6 of, by the processor."""
    rows = list(opposed_groups())
    for row in rows[::5]:  # mistakes, without which no temperature is sure enough
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    pairs = Dataset.from_list(rows).add_column("margin", [0.1 * (row % 3) for row in range(192)])
    settings = KINDS[kind] | {"max_steps": 3, "optim": "sgd", "learning_rate": 0.01}
    trainers = [build(word_tokenizer, tmp_path, pairs, **settings)]
    trainers.append(build(word_tokenizer, tmp_path, pairs_to_rankings(pairs), **settings))
    as_rankings(monkeypatch)
    trainers.append(build(word_tokenizer, tmp_path, pairs, **settings))
    assert "responses" in trainers[2].train_dataset.column_names
    assert "chosen" in trainers[1].train_dataset.column_names
    for trainer in trainers:
        trainer.mixture.double()
        trainer.train()
    one, same, ranked = trainers
    assert torch.equal(one.posterior().probabilities, same.posterior().probabilities)
    torch.testing.assert_close(ranked.posterior().probabilities, one.posterior().probabilities, atol=1e-6, rtol=1e-6)
    for a, b, c in zip(*(trainer.mixture.parameters() for trainer in trainers), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, a, atol=1e-5, rtol=1e-5)
    assert ranked.mixture.config.evidence_weight == pytest.approx(one.mixture.config.evidence_weight, rel=1e-6)
    assert ranked.mixture.config.temperatures == pytest.approx(one.mixture.config.temperatures, rel=1e-5)
    torch.testing.assert_close(ranked.heldout_log_likelihood(), one.heldout_log_likelihood(), atol=2e-6, rtol=1e-6)
    a, b = (trainer.final_facts["component_heldout_accuracy"] for trainer in (one, ranked))
    assert a == pytest.approx(b)


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_the_same_loss_and_gradients_as_pairs(word_tokenizer, tmp_path, kind):
    data = opposed_groups().add_column("margin", [0.1 * (row % 3) for row in range(192)])
    trainer = build(word_tokenizer, tmp_path, data, center_rewards_coefficient=0.01, **KINDS[kind])
    trainer.mixture.double()  # so that rounding does not depend on the processor
    rows = trainer.train_dataset.select(range(12))
    ranked = number_rows(
        tokenize_rows(prepare_rows(pairs_to_rankings(rows.select_columns(list(data.column_names))), "annotator_id",
                                   ranked=True), word_tokenizer),
        trainer.annotators, "train",
    )  # fmt: skip
    batches = [trainer.data_collator([rows[i] for i in range(12)])]
    batches.append(DataCollatorForAnnotatedRankings(word_tokenizer.pad_token_id)([ranked[i] for i in range(12)]))
    trainer.em_state.log_responsibilities = (
        torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).log_softmax(1).double()
    )
    with torch.no_grad():
        for parameter in trainer.mixture.parameters():
            parameter.add_(0.01)
    results = []
    for batch in batches:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        grads = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
        results.append((loss, grads, trainer.em_state.scores[:12].clone()))
    (loss, grads, scores), (other_loss, other_grads, other_scores) = results
    torch.testing.assert_close(other_loss, loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(other_scores, scores, atol=1e-6, rtol=1e-6)
    assert len(grads) == len(other_grads) > 0 and max(grad.abs().max() for grad in grads) > 1e-3
    for a, b in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_loss_by_enumeration(word_tokenizer, tmp_path):
    """Of rankings of three and of four with ties, partial, one choice: all orders that agree, weighed by hand."""
    replies = ["the is great", "plot is dull", "film is the", "story is weak"]
    ranks = [[1, 2, 3, 3], [None, 1, None, None], [2, 1, 1], [1, None, 2, None]]
    data = Dataset.from_list(
        [{"responses": replies[: len(r)], "ranking": r, "annotator_id": n} for n, r in enumerate(ranks)]
    )
    trainer = build(word_tokenizer, tmp_path, data, heldout_fraction=0.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    assert len(batch["input_ids"]) == 4, "distinct replies of the batch"
    trainer.mixture.eval()
    rewards = trainer.mixture(batch["input_ids"], batch["attention_mask"]).rewards.double()
    expected = []
    for row in range(4):
        place = [5 if rank is None else rank for rank in ranks[row]]
        total = torch.zeros(2, dtype=torch.float64)
        for order in permutations(range(len(place))):
            if [place[i] for i in order] != sorted(place):
                continue
            own = rewards[batch["responses"][row, list(order)]].exp()
            total = total + (own / own.flip(0).cumsum(0).flip(0)).prod(0)
        expected.append(total.log())
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss.double(), -torch.stack(expected).mean(), atol=1e-6, rtol=1e-6)


def test_a_batch_holds_each_reply_once(word_tokenizer):
    ids = [[5, 6, 7], [5, 6], [8], [9, 9, 9, 9, 9]]
    rows = [
        {"response_ids": ids, "ranking": [None, 1, None, None], "annotator_index": 0, "pair_index": 0},
        {"response_ids": [ids[2], ids[0]], "ranking": [1, 2], "annotator_index": 1, "pair_index": 1},
    ]
    batch = DataCollatorForAnnotatedRankings(0, pad_to_multiple_of=4)(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 8)
    assert batch["attention_mask"].sum(1).tolist() == [3, 2, 1, 5]
    assert batch["responses"].tolist() == [[0, 1, 2, 3], [2, 0, -1, -1]]
    assert batch["ranks"].tolist() == [[0, 1, 0, 0], [1, 2, 0, 0]]


@pytest.mark.parametrize("train_trunk", [False, True])
def test_a_best_of_four_costs_four_encodings(word_tokenizer, tmp_path, train_trunk):
    """Of replies that are all different; cut into pairs it would be up to twelve."""
    words = [f"{a} {b} {c} is {d}" for a in FILLER for b in FILLER for c in FILLER for d in (GOOD[0], BAD[0])]
    rows = [{"responses": words[4 * n : 4 * n + 4], "choice": n % 4, "annotator_id": n % 4} for n in range(32)]
    trainer = build(
        word_tokenizer, tmp_path, Dataset.from_list(rows), heldout_fraction=0.0, train_trunk=train_trunk,
        max_steps=2, per_device_train_batch_size=16, **({"n_init": 0} if train_trunk else {}),
    )  # fmt: skip
    seen = []
    trainer.mixture.trunk.register_forward_hook(lambda _, __, output: seen.append(len(output[0])))
    if train_trunk:
        trainer.train()
        assert seen == [64, 64], "sixteen rankings a step"
    else:
        trainer.train()
        trainer.scored(trainer.train_dataset)
        assert sum(seen) == 128


def test_k_is_chosen_on_rankings(word_tokenizer, tmp_path):
    trainer = build(
        word_tokenizer,
        tmp_path,
        opposed_rankings(prompt_words=5),
        train_trunk=False,
        num_components="auto",
        select="1,2",
        pooling="mean",
    )
    trainer.train()
    assert trainer.selection.num_components == 2 == trainer.mixture.num_components


def test_an_interrupted_run_goes_on(word_tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}
    whole = build(word_tokenizer, tmp_path, opposed_rankings(), **settings)
    whole.train()
    resumed = build(word_tokenizer, tmp_path, opposed_rankings(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for a, b in zip(resumed.mixture.parameters(), whole.mixture.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class TestOtherRows:
    def test_held_out_pairs_stand_beside_rankings(self, word_tokenizer, tmp_path):
        trainer = build(
            word_tokenizer,
            tmp_path,
            opposed_rankings(),
            opposed_groups(pairs=4),
            train_trunk=False,
            heldout_fraction=0.0,
        )
        trainer.train()
        assert min(trainer.final_facts["component_heldout_accuracy"].values()) > 0.9

    def test_rankings_beside_pairs_are_refused(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="training data are pairs, and these rows rank up to 4 replies. Cut them"):
            build(word_tokenizer, tmp_path, opposed_groups(), opposed_rankings(rows=2), heldout_fraction=0.0)

    def test_replies_that_are_one_text_as_tokens_are_left_out(self, word_tokenizer, caplog):
        rows = [
            {"responses": ["zzz", "qqq", "xxx"], "choice": 0, "annotator_id": 0},
            {"responses": ["zzz", "great", "xxx"], "choice": 0, "annotator_id": 0},
        ]
        kept = tokenize_rows(prepare_rows(Dataset.from_list(rows), "annotator_id"), word_tokenizer)
        assert kept["responses"] == [["zzz", "great", "xxx"]]

    def test_pairs_have_no_rankings_differences(self, word_tokenizer, tmp_path):
        trainer = build(word_tokenizer, tmp_path, opposed_rankings())
        with pytest.raises(ValueError, match="no chosen and rejected"):
            trainer.reward_differences(trainer.train_dataset)

    def test_too_long_and_too_new(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="Every ranking of the train data is longer than max_length=3"):
            build(word_tokenizer, tmp_path, opposed_rankings(), max_length=3)


class TestScoredRankings:
    """By hand: two components, a best of three, a ranking of three with a tie at the end, one of two."""

    rewards = torch.tensor([[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]])
    choices = RankedChoices(
        torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, -1]]),
        torch.tensor([[0, 1, 0], [1, 2, 2], [2, 1, 0]]),
        torch.tensor([0, 1, -1]),
    )

    def test_accuracy_and_tau(self):
        scored = ScoredRankings(self.rewards, self.choices)
        assert scored.accuracy.tolist() == [[0, 1], [0, 1], [1, 0]]
        assert scored.tau.tolist() == [[0, 1], [0, 1], [1, -1]]
        assert scored.by_chance()[0] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)

    def test_the_ends(self):
        scored = ScoredRankings(self.rewards, self.choices)
        assert [side.tolist() for side in scored.ends()] == [[1, 0, 1], [2, 2, 0]]
        assert scored.contrast.tolist() == [[1, 2], [-1, 3], [2, -1]]

    @pytest.mark.parametrize("weight", [0.9, 0.5, 0.1])
    def test_the_mixture(self, weight):
        scored = ScoredRankings(self.rewards, self.choices)
        weights = torch.tensor([weight, 1 - weight]).expand(3, 2).double()
        right, tau = scored.of_mixture(weights.log(), scored.log_likelihood())
        for row in range(3):
            texts = [t for t in self.choices.responses[row].tolist() if t >= 0]
            chance = (self.rewards[texts].double().softmax(0) * weights[0]).sum(1)
            ranks = [4 if rank == 0 else rank for rank in self.choices.ranks[row].tolist()[: len(texts)]]
            assert right[row] == (ranks[int(chance.argmax())] == min(ranks))
            signs = [
                1.0 if chance[i] > chance[j] else -1.0
                for i in range(len(texts)) for j in range(len(texts)) if ranks[i] < ranks[j]
            ]  # fmt: skip
            assert tau[row].item() == pytest.approx(sum(signs) / len(signs))


def test_texts_are_held_out_of_rankings_as_well(word_tokenizer, tmp_path):
    """Where most replies stand in several rankings; no ranking is lost and nobody loses all of theirs."""
    texts = [f"{a} {b}" for a in FILLER + GOOD + BAD for b in FILLER + GOOD + BAD]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row in range(400):
        count = 2 + row % 3
        own = torch.randperm(len(texts), generator=generator)[:count].tolist()
        rows.append({"responses": [texts[i] for i in own], "choice": 0, "annotator_id": row % 20})
    train, held = split_by_text(Dataset.from_list(rows), 0.3, 0)
    assert len(train) + len(held) == 400 and 60 < len(held) < 180
    assert set(train["annotator_id"]) == set(range(20))
    known = {text for own in train["responses"] for text in own}
    assert all(any(text not in known for text in own) for own in held["responses"])
    assert share_of_familiar_pairs(train, train) == 1.0
    trainer = build(word_tokenizer, tmp_path, Dataset.from_list(rows), max_steps=1, n_init=0)
    flags = trainer._known_texts(trainer.eval_dataset)
    for row, own in zip(flags.tolist(), trainer.eval_dataset["responses"], strict=True):
        seen = [text in {t for o in trainer.train_dataset["responses"] for t in o} for text in own]
        assert (any(row), all(row)) == (any(seen), all(seen))
