# SPDX-License-Identifier: Apache-2.0
"""What must not depend on how a step is cut, and what must follow the trunk: batches, features, settings, tokens."""

import logging
import random

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.conftest import WORDS, build_word_tokenizer
from tests.trainer.test_mixture_reward_trainer import config, fit, opposed_groups, tiny_model
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer import MixtureRewardTrainer
from trl_maxmin.trainer.common.atomic_checkpoint import is_complete_checkpoint


FROZEN = {"train_trunk": False}


def noise(pairs=61, annotators=8, seed=0, **columns):
    """Pairs without any order, of texts of different length; 61 of them fill no batch evenly."""
    generator = random.Random(seed)
    rows = [
        {
            "prompt": "review :",
            "chosen": " ".join(generator.choices(WORDS, k=generator.randint(1, 6))),
            "rejected": " ".join(generator.choices(WORDS, k=generator.randint(1, 6))),
            "annotator_id": f"a{i % annotators}",
            **{name: value(i) for name, value in columns.items()},
        }
        for i in range(pairs)
    ]
    return Dataset.from_list(rows)


def trainer_on(tokenizer, tmp_path, model=None, data=None, eval_dataset=None, **kwargs):
    return MixtureRewardTrainer(
        model or tiny_model(tokenizer),
        config(tmp_path, **kwargs),
        train_dataset=noise() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.seam),  # the host divides by the number of micro-batches
        {"e_step_interval": 1},
        {"e_step_interval": 1, "n_init": 0},
        {"e_step_interval": 2, "e_step_scores": "fresh"},
        {"e_step_interval": 1, "em": "hard", "component_type": "full"},
        {"component_type": "lora", "e_step_interval": 1, "center_rewards_coefficient": 0.1},
    ],
    ids=["defaults", "each step", "no starts", "fresh", "hard full", "lora centred"],
)
def test_accumulation_changes_nothing(word_tokenizer, tmp_path, options):
    """Eight pairs at once, or two and two; the last step of an epoch has five, so a micro-batch of one among them."""
    data = noise(margin=lambda i: 0.1 * (i % 3))
    found = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = fit(
            word_tokenizer, tmp_path, data=data, heldout_fraction=0, max_steps=10, logging_steps=2, optim="sgd",
            learning_rate=1e-2, lr_scheduler_type="constant", max_grad_norm=1e9, calibrate_temperature=False,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, **options,
        )  # fmt: skip
        trained = torch.cat([p.detach().flatten() for p in trainer.mixture.parameters()])
        found.append((trained, trainer.em_state, trainer.state.log_history))
    (weights, state, history), (other_weights, other_state, other_history) = found
    torch.testing.assert_close(other_weights, weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(other_state.scores, state.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        other_state.log_responsibilities.exp(), state.log_responsibilities.exp(), atol=1e-5, rtol=0
    )
    # An epoch is counted in micro-batches by the host, and so is not quite the same.
    timing = ("epoch", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    for entry, other in zip(history, other_history, strict=True):
        entry, other = ({k: v for k, v in e.items() if k not in timing} for e in (entry, other))
        assert other == pytest.approx(entry, abs=1e-4)


def test_the_logged_mean_is_over_pairs(word_tokenizer, tmp_path):
    """With the weights held still, evaluations of the same pairs in unlike batches agree with a mean by hand."""
    trainer = trainer_on(word_tokenizer, tmp_path, heldout_fraction=0.3, learning_rate=0.0, num_components=1)
    results = []
    for size in (1, 5, 64):
        trainer.args.per_device_eval_batch_size = size
        results.append(trainer.evaluate())
    by_hand = trainer.heldout_log_likelihood()
    for result in results:
        assert result["eval_predictive_log_likelihood"] == pytest.approx(by_hand.mean().item(), abs=1e-5)
        assert result["eval_accuracy"] == pytest.approx((by_hand.exp() > 0.5).double().mean().item())


class TestNothingIsLostAfterTheFit:
    """A component may describe nobody, or, with a trained trunk, only people of whom no pair is held out."""

    @pytest.mark.parametrize(
        ("options", "column", "frozen"),
        [
            ({"em": "hard", "num_components": 4}, None, False),
            ({"em": "hard", "num_components": 4}, None, True),
            ({"num_components": 2}, "known", False),
        ],
        ids=["nobody", "nobody, frozen", "single pairs"],
    )
    def test_temperature_one_with_a_warning(self, word_tokenizer, tmp_path, caplog, frozen, options, column):
        rows = opposed_groups(share=0.0, num_annotators=8, pairs=6).to_list()
        rows = [row | {"known": "many"} for row in rows]
        rows += [row | {"known": "few", "annotator_id": f"single {i}"} for i, row in enumerate(rows[:5])]
        options = options | ({"group_column": column} if column else {}) | (FROZEN if frozen else {})
        with caplog.at_level(logging.WARNING):
            trainer = fit(word_tokenizer, tmp_path, data=Dataset.from_list(rows), max_steps=8, **options)
        bare = ["few"] if column else [
            name for k, name in enumerate(trainer.mixture.component_names)
            if trainer.mixture.config.component_annotators[k] == 0
        ]  # fmt: skip
        assert bare
        temperatures = dict(zip(trainer.mixture.component_names, trainer.mixture.config.temperatures, strict=True))
        assert all(temperatures[name] == 1.0 for name in bare)
        assert any(temperature != 1.0 for temperature in temperatures.values())
        assert f"{', '.join(bare)} got the temperature 1" in caplog.text

    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("fault", ["fit_temperatures", "component_heldout"])
    def test_the_fit_is_on_disk_before_anything_optional(
        self, word_tokenizer, tmp_path, monkeypatch, caplog, frozen, fault
    ):
        saved = {}

        def fail(*args):
            saved["mixture"] = MixtureRewardModel.from_pretrained(tmp_path)
            saved["checkpoints"] = [is_complete_checkpoint(folder) for folder in tmp_path.glob("checkpoint-*")]
            raise RuntimeError("the disk is full")

        monkeypatch.setattr(f"trl_maxmin.trainer.reward.mixture_reward_trainer.{fault}", fail)
        options = FROZEN if frozen else {"max_steps": 4}
        with caplog.at_level(logging.WARNING):
            trainer = fit(word_tokenizer, tmp_path, save_strategy="steps", **options)
        assert "RuntimeError: the disk is full" in caplog.text and str(tmp_path) in caplog.text
        assert saved["checkpoints"] == ([] if frozen else [True])
        texts = ["review of film :"] * 2, ["film is great", "film is dull"]
        temperature = torch.tensor(trainer.mixture.config.temperatures)
        torch.testing.assert_close(saved["mixture"].score(*texts) / temperature, trainer.mixture.score(*texts))
        assert sorted(saved["mixture"].config.component_annotators) == [3, 9]
        # What is on disk in the end is what the trainer holds.
        again = MixtureRewardModel.from_pretrained(tmp_path)
        torch.testing.assert_close(again.score(*texts), trainer.mixture.score(*texts))

    def test_without_held_out_pairs_the_log_says_that_nothing_was_calibrated(self, word_tokenizer, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            trainer = fit(word_tokenizer, tmp_path, heldout_fraction=0, max_steps=2)
        assert "temperatures of the components stay 1" in caplog.text and "heldout_fraction" in caplog.text
        assert trainer.mixture.config.temperatures == [1.0, 1.0]

    def test_save_strategy_no_writes_nothing(self, word_tokenizer, tmp_path):
        fit(word_tokenizer, tmp_path / "run", max_steps=2)
        assert not list((tmp_path / "run").rglob("*.safetensors"))


class TestHardOnAFrozenTrunk:
    def test_everybody_is_where_they_are_likeliest(self, word_tokenizer, tmp_path):
        trainer = fit(word_tokenizer, tmp_path, data=noise(200, 30), em="hard", num_components=3, **FROZEN)
        found = trainer.em_state.log_responsibilities.exp()
        assert sorted(found.unique().tolist()) == [0.0, 1.0] and (found.sum(1) == 1).all()
        sums = torch.zeros(30, 3, dtype=torch.float64)
        sums.index_add_(0, trainer.em_state.annotator_index, trainer.em_state.scores.double())
        own = sums.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
        assert (own >= sums.amax(1) - 1e-6).all()

    def test_planted_groups_are_recovered(self, word_tokenizer, tmp_path):
        trainer = fit(word_tokenizer, tmp_path, em="hard", **FROZEN)
        found = trainer.em_state.log_responsibilities.argmax(1)
        assert len(set(found[:3].tolist())) == 1 == len(set(found[3:].tolist())) and found[0] != found[3]
        assert sorted(trainer.mixture.config.mixing_weights) == pytest.approx([0.25, 0.75])

    def test_known_annotators_stay(self, word_tokenizer, tmp_path):
        data = opposed_groups().map(lambda row: {"known": "b" if row["annotator_id"] == "annotator 7" else None})
        trainer = fit(word_tokenizer, tmp_path, data=data, em="hard", group_column="known", **FROZEN)
        assert trainer.em_state.log_responsibilities.exp()[7].tolist() == [1.0, 0.0]


class TestFeaturesFollowTheTrunk:
    def encoded_anew(self, trainer, dataset):
        """The vectors by the model's own forward, text by text."""
        ids = dict.fromkeys(tuple(ids) for side in ("chosen_ids", "rejected_ids") for ids in dataset[side])
        trainer.mixture.eval()
        with torch.no_grad():
            return torch.cat([trainer.mixture.trunk_features(torch.tensor([text])) for text in ids])

    def assert_fresh(self, trainer):
        pairs, anew = trainer.feature_pairs(trainer.train_dataset), self.encoded_anew(trainer, trainer.train_dataset)
        assert sorted(pairs.features.sum(1).tolist()) == pytest.approx(sorted(anew.sum(1).tolist()), abs=1e-4)
        return pairs.features

    @pytest.mark.parametrize("kind", ["head", "lora", "full"])
    def test_after_training(self, word_tokenizer, tmp_path, kind):
        trainer = trainer_on(word_tokenizer, tmp_path, heldout_fraction=0, component_type=kind, max_steps=10)
        before = self.assert_fresh(trainer)
        trainer.train()
        # Adapters leave the base as it was.
        assert torch.equal(self.assert_fresh(trainer), before) == (kind == "lora")

    def test_after_a_checkpoint_was_loaded_and_after_new_weights_by_hand(self, word_tokenizer, tmp_path):
        fit(word_tokenizer, tmp_path, data=noise(), save_strategy="steps", save_steps=5, max_steps=5)
        trainer = trainer_on(word_tokenizer, tmp_path, heldout_fraction=0)
        before = self.assert_fresh(trainer)
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-5"))
        loaded = self.assert_fresh(trainer)
        assert not torch.allclose(before, loaded)
        for parameter in trainer.mixture.trunk.parameters():
            parameter.data = parameter.data * 1.1  # as engines do that keep weights in a buffer of their own
        assert not torch.allclose(self.assert_fresh(trainer), loaded)

    def test_not_after_components_were_dropped(self, word_tokenizer, tmp_path):
        trainer = trainer_on(word_tokenizer, tmp_path, num_components=3, **FROZEN)
        before = trainer.feature_pairs(trainer.train_dataset).features
        seen = []
        trainer.mixture.trunk.register_forward_hook(lambda _, __, output: seen.append(1))
        trainer.mixture.keep_components(2)
        assert torch.equal(trainer.feature_pairs(trainer.train_dataset).features, before) and not seen

    def test_shared_only_on_the_same_trunk(self, word_tokenizer, tmp_path):
        first, second = (trainer_on(word_tokenizer, tmp_path, **FROZEN) for _ in range(2))
        first.train()
        second.share_features(first)
        seen = []
        second.mixture.trunk.register_forward_hook(lambda _, __, output: seen.append(1))
        second.train()
        assert not seen
        other = trainer_on(word_tokenizer, tmp_path, model=tiny_model(word_tokenizer, seed=1), **FROZEN)
        with pytest.raises(ValueError, match="trunk of other weights"):
            other.share_features(first)
        pooled = trainer_on(word_tokenizer, tmp_path, pooling="mean", kernel_features=0, **FROZEN)
        with pytest.raises(ValueError, match="pools in another way"):
            pooled.share_features(first)


class TestSettingsWithoutEffectAreRefused:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            (FROZEN | {"annealing_start": 0.5}, "annealing_start=0.5"),
            (FROZEN | {"annealing_steps": 3}, "annealing_steps=3"),
            (FROZEN | {"e_step_interval": 3}, "e_step_interval=3"),
            (FROZEN | {"e_step_scores": "fresh"}, "e_step_scores='fresh'"),
            (FROZEN | {"n_init": 0}, "n_init=0"),
            (FROZEN | {"em": "hard", "dirichlet_concentration": 1.0}, "dirichlet_concentration=1.0"),
            ({"em": "hard", "annealing_start": 0.5}, "annealing_start=0.5"),
            ({"em": "hard", "annealing_steps": 0}, "annealing_steps=0"),
            ({"em": "hard", "n_init": 0, "dirichlet_concentration": 3.0}, "dirichlet_concentration=3.0"),
            ({"n_init": 0, "init_steps": 10}, "init_steps=10"),
            ({"n_init": 0, "prior_scale": 1.0}, "prior_scale=1.0"),
        ],
    )
    def test_by_the_config(self, tmp_path, settings, named):
        with pytest.raises(ValueError, match=f"{named} would have no effect with .*Leave it out"):
            config(tmp_path, **settings)

    def test_what_has_an_effect_passes(self, tmp_path):
        assert config(tmp_path, **FROZEN).init_steps == 48 and config(tmp_path).init_steps == 48
        for settings in (
            FROZEN | {"em": "hard", "init_steps": 10, "prior_scale": 1.0},
            {"em": "hard", "dirichlet_concentration": 3.0},
            {"n_init": 0, "prior_scale": 1.0, "select": "1,2"},
        ):
            config(tmp_path, **settings)
        with pytest.raises(ValueError, match="annealing_steps must be 0 or more, got -1"):
            config(tmp_path, annealing_steps=-1)

    def test_init_steps_reach_a_frozen_trunk(self, word_tokenizer, tmp_path):
        short, long = (fit(word_tokenizer, tmp_path, data=noise(), init_steps=n, **FROZEN) for n in (1, 40))
        assert not torch.equal(short.em_state.scores, long.em_state.scores)

    def test_the_hosts_loop_is_named_in_the_log_once(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            config(tmp_path, center_rewards_coefficient=0.1, **FROZEN)
        assert "max_steps, learning_rate, per_device_train_batch_size, center_rewards" in caplog.text
        assert len(caplog.records) == 1
        caplog.clear()
        config(tmp_path)
        assert not caplog.records

    def test_beside_a_mixture_that_is_given(self, word_tokenizer, tmp_path):
        def refused(message, mixture=None, **kwargs):
            mixture = mixture or MixtureRewardModel.from_base(
                tiny_model(word_tokenizer), 3, kwargs.pop("kind", "head"), processing_class=word_tokenizer
            )
            with pytest.raises(ValueError, match=message):
                trainer_on(word_tokenizer, tmp_path, model=mixture, **kwargs)

        refused("num_components=4 would shape .* has num_components=3", num_components=4)
        refused("num_components='auto'", select="1,2")
        refused("component_type='full'", component_type="full")
        refused("pooling='mean'", pooling="mean")
        refused("train_trunk=False fits heads on one trunk", kind="lora", **FROZEN)
        kernel = MixtureRewardModel.from_base(
            tiny_model(word_tokenizer), 2, processing_class=word_tokenizer, pooling="mean", kernel_features=8
        )
        refused("kernel_features=8, which are fitted to a frozen trunk", mixture=kernel)

    def test_two_ways_to_hold_out(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="heldout_fraction=0.25 holds out.*eval_dataset"):
            trainer_on(word_tokenizer, tmp_path, eval_dataset=noise(seed=1))
        assert trainer_on(word_tokenizer, tmp_path, eval_dataset=noise(seed=1), heldout_fraction=0).eval_dataset
        with pytest.raises(TypeError, match=r"datasets.Dataset.*got dict"):
            trainer_on(word_tokenizer, tmp_path, eval_dataset={"test": noise()}, heldout_fraction=0)

    def test_resuming(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="fitted in one go"):
            trainer_on(word_tokenizer, tmp_path, **FROZEN).train(resume_from_checkpoint=True)
        fit(word_tokenizer, tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
        (tmp_path / "checkpoint-2" / "em_state.safetensors").unlink()
        with pytest.raises(ValueError, match=r"checkpoint-2 holds no em_state.safetensors"):
            fit(word_tokenizer, tmp_path, resume=str(tmp_path / "checkpoint-2"), max_steps=4)

    def test_groups_by_the_annotators_own_column(self, tmp_path):
        for column, annotators in (("annotator_id", "annotator_id"), ("who", "who"), ("annotator_id", "who")):
            with pytest.raises(ValueError, match=f"group_column='{column}' names annotators"):
                config(tmp_path, group_column=column, annotator_column=annotators)

    def test_known_groups_are_kept_by_every_candidate_of_k(self, word_tokenizer, tmp_path):
        data, options = opposed_groups(), {"group_column": "group", **FROZEN}
        with pytest.raises(ValueError, match="2 groups for 1 components.*smallest candidate of select"):
            trainer_on(word_tokenizer, tmp_path, data=data, select="1,2,3", **options)
        trainer = fit(word_tokenizer, tmp_path, data=data, select="2,3", **options)
        assert trainer.mixture.component_names == ["blame", "praise"]
        assert trainer.em_state.log_responsibilities.argmax(1).tolist() == [0] * 3 + [1] * 9


class TestTokens:
    def test_ids_that_the_base_does_not_embed_are_refused(self, tmp_path):
        base, chat = build_word_tokenizer(), build_word_tokenizer()
        chat.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
        data = opposed_groups()
        trainer_on(chat, tmp_path, model=tiny_model(base), data=data)  # tokens that no text uses do no harm
        data = data.map(lambda row: {"prompt": "<|user|> film <|assistant|>"})
        given = MixtureRewardModel.from_base(tiny_model(base), 2, processing_class=base)
        tiny_model(base).save_pretrained(tmp_path / "base")
        for model in (tiny_model(base), given, str(tmp_path / "base")):
            with pytest.raises(ValueError, match=r"Row 0 uses the token '<\|assistant\|>' with id 37.*embeds 36"):
                trainer_on(chat, tmp_path, model=model, data=data)
        taught = tiny_model(base)
        taught.resize_token_embeddings(len(chat))
        trainer_on(chat, tmp_path, model=taught, data=data)

    def test_the_callers_arguments_stay_as_they_are(self, word_tokenizer, tmp_path):
        tiny_model(word_tokenizer).save_pretrained(tmp_path / "base")
        args = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
        for _ in range(2):
            trainer = MixtureRewardTrainer(
                str(tmp_path / "base"), args, train_dataset=noise(), processing_class=word_tokenizer
            )
            assert trainer.mixture.dtype == torch.bfloat16
        assert args.model_init_kwargs == {"dtype": "bfloat16"}

    def test_padding_to_a_multiple(self, word_tokenizer, tmp_path):
        trainer = trainer_on(word_tokenizer, tmp_path, pad_to_multiple_of=16)
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["input_ids"].shape[1] % 16 == 0

    def test_evaluation_data_are_checked_too(self, word_tokenizer, tmp_path):
        trainer = trainer_on(word_tokenizer, tmp_path)
        with pytest.raises(ValueError, match="Row 0 has no annotator"):
            trainer.evaluate(noise().map(lambda row: {"annotator_id": "NaN"}))


def test_callbacks_hear_of_a_frozen_trunk(word_tokenizer, tmp_path):
    heard = []

    class Listener(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            heard.append("begin")

        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append(sorted(logs))

        def on_train_end(self, *args, **kwargs):
            heard.append("end")

    fit(word_tokenizer, tmp_path, callbacks=[Listener()], **FROZEN)
    assert heard[0] == "begin" and heard[-1] == "end" and {"log_likelihood", "train_loss"} <= set(heard[1])
