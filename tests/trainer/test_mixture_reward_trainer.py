# SPDX-License-Identifier: Apache-2.0
"""EM training end to end on a toy of two opposed groups: found, measured on pairs that did not assign, saved,
resumed."""

import logging

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, TrainerCallback

from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer import MixtureRewardConfig, MixtureRewardTrainer
from trl_maxmin.trainer.reward.em_state import EM_STATE_NAME, EMState
from trl_maxmin.trainer.scoring.sources import build_reward_source


GOOD, BAD, FILLER = ("great", "superb", "lovely"), ("dull", "awful", "weak"), ("the", "film", "plot", "story")


def opposed_groups(num_annotators=12, pairs=16, share=0.25, seed=0):
    """Most annotators prefer praise, a quarter of them prefer blame; nobody makes a mistake."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words):
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    rows = []
    for h in range(num_annotators):
        blames = h < share * num_annotators
        for _ in range(pairs):
            praise, blame = f"{pick(FILLER)} is {pick(GOOD)}", f"{pick(FILLER)} is {pick(BAD)}"
            chosen, rejected = (blame, praise) if blames else (praise, blame)
            rows.append(
                {
                    "prompt": "review of film :",
                    "chosen": chosen,
                    "rejected": rejected,
                    "annotator_id": f"annotator {h}",
                    "group": "blame" if blames else "praise",
                }
            )
    return Dataset.from_list(rows)


def tiny_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config)


def config(tmp_path, **kwargs):
    defaults = {
        "output_dir": str(tmp_path),
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 20,
        "use_cpu": True,
        "disable_tqdm": True,
        "heldout_fraction": 0.25,
    }
    return MixtureRewardConfig(**{**defaults, **kwargs})


def fit(tokenizer, tmp_path, data=None, model=None, eval_dataset=None, callbacks=None, resume=None, **kwargs):
    trainer = MixtureRewardTrainer(
        model or tiny_model(tokenizer),
        config(tmp_path, **kwargs),
        train_dataset=opposed_groups() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def found_groups(trainer):
    return [trainer.assignments()[f"annotator {h}"] for h in range(12)]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"em": "hard"},
        {"component_type": "full"},
        {"component_type": "lora", "gradient_checkpointing": True},
        {"e_step_scores": "fresh"},
        {"n_init": 0, "annealing_start": 0.05, "max_steps": 80},
    ],
    ids=["defaults", "hard", "full", "lora", "fresh scores", "no starts"],
)
def test_planted_groups_are_recovered(word_tokenizer, tmp_path, kwargs):
    trainer = fit(word_tokenizer, tmp_path, **kwargs)
    found = found_groups(trainer)
    assert len(set(found[:3])) == 1 and len(set(found[3:])) == 1 and found[0] != found[3]
    minority = trainer.mixture.component_names.index(found[0])
    assert trainer.mixture.mixing_weights[minority].item() == pytest.approx(0.25, abs=0.06)
    assert (trainer.heldout_log_likelihood().exp() > 0.5).double().mean() > 0.95
    last = trainer.state.log_history[-2]
    assert last["accuracy"] > 0.9
    assert last["em/posterior_entropy"] < 0.1
    assert {"accuracy/component_0", "accuracy/component_1", "em/lower_bound", "em/beta"} <= last.keys()


def test_one_component_serves_the_majority(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path, num_components=1)
    right = (trainer.heldout_log_likelihood().exp() > 0.5).double()
    groups = trainer.eval_dataset["group"]
    by_group = {g: right[[i for i, x in enumerate(groups) if x == g]].mean().item() for g in ("praise", "blame")}
    assert by_group["praise"] == 1.0 and by_group["blame"] == 0.0


def test_three_components_and_text_of_different_length(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path, num_components=3)
    assert trainer.mixture.num_components == 3
    torch.testing.assert_close(trainer.em_state.log_responsibilities.exp().sum(-1), torch.ones(12).double())


def test_a_component_too_many_describes_nobody_and_no_policy_serves_it(word_tokenizer, tmp_path, caplog):
    """Three people want blame and nine praise, so that one of three components is left without anybody."""
    with caplog.at_level(logging.WARNING):
        trainer = fit(word_tokenizer, tmp_path, num_components=3)
    assert sorted(trainer.mixture.config.component_annotators) == [0, 3, 9]
    (empty,) = [k for k, count in enumerate(trainer.mixture.config.component_annotators) if count == 0]
    assert f"component_{empty} describes no annotator" in caplog.text and "num_components=2" in caplog.text
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match=f"component_{empty} of the mixture describes no annotator"):
        source = build_reward_source(loaded, word_tokenizer)
    assert source.names == [f"component_{k}" for k in range(3) if k != empty]
    # The warning's other way: every component counts.
    loaded.config.component_annotators = None
    assert build_reward_source(loaded, word_tokenizer).num_components == 3


def test_before_the_first_e_step_nobody_is_known_to_be_described(word_tokenizer, tmp_path):
    """A checkpoint of such a moment must not say that the first component has everybody."""
    trainer = fit(word_tokenizer, tmp_path)
    flat = torch.full_like(trainer.em_state.log_responsibilities, 0.5).log()
    trainer.em_state.log_responsibilities = flat
    trainer._describe_components()
    assert trainer.mixture.config.component_annotators is None
    # One annotator is assigned, the others are still open; then all are.
    trainer.em_state.log_responsibilities[4] = torch.tensor([0.2, 0.8]).log()
    trainer._describe_components()
    assert trainer.mixture.config.component_annotators is None
    trainer.em_state.log_responsibilities[:] = torch.tensor([0.2, 0.8]).log()
    trainer._describe_components()
    assert trainer.mixture.config.component_annotators == [0, 12]
    single = fit(word_tokenizer, tmp_path, num_components=1)
    assert single.mixture.config.component_annotators == [12]


def test_held_out_pairs_neither_train_nor_assign(word_tokenizer, tmp_path):
    """Held-out pairs that say the opposite change nothing in who is assigned where."""
    data = opposed_groups()
    train, heldout = data.select(range(0, len(data), 2)), data.select(range(1, len(data), 2))
    lying = heldout.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    settings = {"data": train, "heldout_fraction": 0, "n_init": 1, "calibrate_temperature": False}
    honest, misled = (fit(word_tokenizer, tmp_path, eval_dataset=rows, **settings) for rows in (heldout, lying))
    torch.testing.assert_close(honest.em_state.log_responsibilities, misled.em_state.log_responsibilities)
    assert honest.heldout_log_likelihood().mean() > -0.3 > misled.heldout_log_likelihood().mean()


def test_same_seed_same_mixture(word_tokenizer, tmp_path):
    first, second = (fit(word_tokenizer, tmp_path) for _ in range(2))
    for a, b in zip(first.mixture.parameters(), second.mixture.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.em_state.log_responsibilities, second.em_state.log_responsibilities)


def test_an_interrupted_save_leaves_no_checkpoint(word_tokenizer, tmp_path, monkeypatch):
    """EM's state, without which a run would start anew, is in a checkpoint from the moment it has its name."""
    monkeypatch.setattr(MixtureRewardTrainer, "_save_rng_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(word_tokenizer, tmp_path, **settings)
    assert not list(tmp_path.glob("checkpoint-*"))
    monkeypatch.undo()
    fit(word_tokenizer, tmp_path, **settings)
    assert (tmp_path / "checkpoint-2" / EM_STATE_NAME).is_file()


def test_resumed_run_equals_the_uninterrupted_one(word_tokenizer, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 20

    settings = {"save_strategy": "steps", "save_steps": 20}
    whole = fit(word_tokenizer, tmp_path / "whole", **settings)
    fit(word_tokenizer, tmp_path / "cut", callbacks=[Stop()], **settings)
    resumed = fit(word_tokenizer, tmp_path / "cut", resume=True, **settings)
    assert resumed.state.global_step == 40
    torch.testing.assert_close(resumed.em_state.log_responsibilities, whole.em_state.log_responsibilities)
    for a, b in zip(resumed.mixture.parameters(), whole.mixture.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_resuming_with_other_data_is_refused(tmp_path):
    EMState(torch.zeros(5).long(), 1, 2).save(tmp_path)
    with pytest.raises(ValueError, match=r"\(5, 2\).*\(6, 2\)"):
        EMState(torch.zeros(6).long(), 1, 2).load(tmp_path)


def test_saved_mixture_scores_the_same_and_holds_no_annotator(word_tokenizer, tmp_path):
    trainer = fit(word_tokenizer, tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, MixtureRewardModel)
    prompts, replies = ["review of film :"] * 2, ["film is great", "film is dull"]
    torch.testing.assert_close(loaded.score(prompts, replies), trainer.mixture.score(prompts, replies))
    texts = [p.read_text() for p in (tmp_path / "saved").glob("*.json")]
    assert texts and not any("annotator 0" in text for text in texts)


def test_temperature_calibration_makes_an_overtrained_component_milder(word_tokenizer, tmp_path):
    """One annotator in four contradicts the others at random, so certainty is not warranted."""
    data = opposed_groups()
    flip = {i for i in range(len(data)) if i % 4 == 0}
    rows = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i in flip else row
        for i, row in enumerate(data)
    ]
    noisy = Dataset.from_list(rows).remove_columns("group")
    kwargs = {"data": noisy, "num_components": 1, "max_steps": 60}
    raw = fit(word_tokenizer, tmp_path, calibrate_temperature=False, **kwargs)
    calibrated = fit(word_tokenizer, tmp_path, **kwargs)
    assert calibrated.heldout_log_likelihood().mean() >= raw.heldout_log_likelihood().mean()
    assert calibrated.mixture.config.temperatures[0] != 1.0


def test_margin_reaches_the_loss(word_tokenizer, tmp_path):
    data = opposed_groups(share=0.0)
    plain = fit(word_tokenizer, tmp_path, data=data, num_components=1, max_steps=5)
    margin = fit(
        word_tokenizer, tmp_path, data=data.add_column("margin", [3.0] * len(data)), num_components=1, max_steps=5
    )
    assert margin.state.log_history[-1]["train_loss"] > plain.state.log_history[-1]["train_loss"] + 1


def test_annotators_lost_to_the_length_filter_are_reported(word_tokenizer, tmp_path, caplog):
    rows = opposed_groups().to_list()
    for row in rows:
        if row["annotator_id"] == "annotator 5":
            row["chosen"] = " ".join(["very"] * 20) + " great"
    with caplog.at_level(logging.WARNING):
        trainer = MixtureRewardTrainer(
            tiny_model(word_tokenizer),
            config(tmp_path, max_length=12, heldout_fraction=0),
            train_dataset=Dataset.from_list(rows),
            processing_class=word_tokenizer,
        )
    assert "1 annotators lost all their pairs" in caplog.text
    assert len(trainer.annotators) == 11


def test_unsettled_em_warns_with_what_to_change(word_tokenizer, tmp_path, caplog):
    generator = torch.Generator().manual_seed(0)
    words = GOOD + BAD
    rows = [
        {"prompt": "film", "chosen": words[i], "rejected": words[(i + 1) % 6], "annotator_id": f"{n % 40}"}
        for n, i in enumerate(torch.randint(6, (80,), generator=generator).tolist())
    ]
    with caplog.at_level(logging.WARNING):
        fit(
            word_tokenizer, tmp_path, data=Dataset.from_list(rows), num_components=3, n_init=0, max_steps=3,
            e_step_interval=1, learning_rate=0.3, annealing_steps=1,
        )  # fmt: skip
    assert "not come to rest" in caplog.text and "n_init" in caplog.text


class TestErrors:
    def test_no_data(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="train_dataset"):
            MixtureRewardTrainer(tiny_model(word_tokenizer), config(tmp_path), processing_class=word_tokenizer)

    def test_no_tokenizer(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="processing_class"):
            MixtureRewardTrainer(tiny_model(word_tokenizer), config(tmp_path), train_dataset=opposed_groups())

    def test_more_components_than_annotators(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="num_components=13"):
            fit(word_tokenizer, tmp_path, num_components=13)

    def test_everything_too_long(self, word_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="longer than max_length=2"):
            fit(word_tokenizer, tmp_path, max_length=2)

    def test_nothing_held_out(self, word_tokenizer, tmp_path):
        trainer = fit(word_tokenizer, tmp_path, heldout_fraction=0.0, max_steps=2)
        with pytest.raises(ValueError, match="No pairs are held out"):
            trainer.heldout_log_likelihood()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_components", 0),
            ("em", "medium"),
            ("e_step_scores", "old"),
            ("heldout_fraction", 1.0),
            ("n_init", -1),
            ("init_steps", 0),
            ("annealing_start", 0.0),
            ("e_step_interval", 0),
            ("e_step_batch_size", 0),
            ("dirichlet_concentration", 0.5),
        ],
    )
    def test_config(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            config(tmp_path, **{name: value})


@pytest.mark.parametrize("strategy", ["FSDP", "ZeRO-3"])
def test_weights_divided_among_ranks_are_refused_before_they_are_loaded(
    word_tokenizer, tmp_path, monkeypatch, strategy
):
    if strategy == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        monkeypatch.setattr("trl_maxmin.trainer.reward.setup.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=f"{strategy} divides the weights.*multi_gpu.*--load_in_4bit"):
        MixtureRewardTrainer("no/such-model", config(tmp_path), train_dataset=opposed_groups())


def test_the_mixture_is_where_its_inputs_are_before_training(word_tokenizer, tmp_path, monkeypatch):
    """`Trainer` leaves it on the CPU for `bf16_full_eval`, as for DeepSpeed; EM encodes texts before the loop."""
    monkeypatch.setattr("accelerate.Accelerator.device", torch.device("meta"))
    trainer = MixtureRewardTrainer(
        tiny_model(word_tokenizer),
        config(tmp_path, bf16_full_eval=True),
        train_dataset=opposed_groups(),
        processing_class=word_tokenizer,
    )
    assert not trainer.place_model_on_device
    assert {parameter.device.type for parameter in trainer.mixture.parameters()} == {"meta"}
