# SPDX-License-Identifier: Apache-2.0
"""Group-robust DPO on a tiny policy, against TRL's own DPO and against steps worked by hand."""

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from tests.conftest import build_word_tokenizer
from tests.trainer.dpo_helpers import build_dpo, first_batch, gradients, preferences
from tests.trainer.ppo_helpers import gpt2
from tests.trainer.trl_helpers import save_base
from trl_maxmin import MaxMinDPOConfig, MaxMinDPOTrainer
from trl_maxmin.trainer.maxmin.welfare import WELFARE_STATE_FILE


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), build_word_tokenizer())


@pytest.fixture
def make(tmp_path, base, word_tokenizer):
    def build(cls=MaxMinDPOTrainer, output_dir=None, **kwargs):
        return build_dpo(base, word_tokenizer, output_dir or tmp_path / "run", cls, **kwargs)

    return build


def moved(seed=7):
    """A policy that differs from its reference, which is read from the folder."""
    return gpt2(seed=seed)


def of_group(dataset, group):
    return dataset.filter(lambda row: row["group"] == group)


def close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n} {m}")


def with_reference(make, cls, **kwargs):
    return make(cls, model=moved(), ref_model=gpt2(), **kwargs)


@pytest.mark.seam
class TestSameAsTRL:
    """One group, or weights that are the shares: the loss and its gradient are those of `trl.DPOTrainer`."""

    @pytest.mark.parametrize(
        "loss",
        [
            {"loss_type": "sigmoid"},
            {"loss_type": "ipo"},
            {"loss_type": "exo_pair", "label_smoothing": 1e-3},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
            {"loss_type": "sigmoid", "f_divergence_type": "js_divergence", "ld_alpha": 0.5},
            {"loss_type": "apo_zero", "use_weighting": True},
        ],
        ids=lambda loss: "-".join(map(str, loss.values())),
    )
    def test_loss_and_gradient(self, make, loss):
        data = preferences(8)
        plain = with_reference(make, DPOTrainer, train_dataset=data, **loss)
        expected, by_parameter = gradients(plain, first_batch(plain))
        assert any(gradient.abs().max() > 1e-4 for gradient in by_parameter.values())
        one_group = data.map(lambda row: {"group": "all"})
        for settings in ({"train_dataset": one_group}, {"train_dataset": data, "welfare": "mixing"}):
            trainer = with_reference(make, MaxMinDPOTrainer, **settings, **loss)
            found, own = gradients(trainer, first_batch(trainer))
            assert found.item() == pytest.approx(expected.item(), abs=1e-6)
            close(own, by_parameter)

    def test_groups_of_one_size_with_equal_weights(self, make):
        data = preferences(8, few=0.5)
        plain = with_reference(make, DPOTrainer, train_dataset=data)
        trainer = with_reference(make, MaxMinDPOTrainer, train_dataset=data, welfare="utilitarian")
        expected, by_parameter = gradients(plain, first_batch(plain))
        found, own = gradients(trainer, first_batch(trainer))
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)
        close(own, by_parameter)

    def test_a_run_to_the_last_bit(self, make, tmp_path):
        data = preferences(16)
        plain = make(DPOTrainer, output_dir=tmp_path / "plain", train_dataset=data, max_steps=3)
        trainer = make(output_dir=tmp_path / "own", train_dataset=data, max_steps=3, welfare="mixing")
        plain.train()
        trainer.train()
        for (name, own), (_, expected) in zip(
            trainer.model.named_parameters(), plain.model.named_parameters(), strict=True
        ):
            assert torch.allclose(own, expected, atol=1e-7), name
        for found, wanted in zip(trainer.state.log_history, plain.state.log_history, strict=True):
            for name in ("loss", "rewards/margins", "logps/chosen", "num_tokens", "entropy"):
                if name in wanted:
                    assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name

    def test_an_adapter_as_trl_does(self, make):
        adapter = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
        data = preferences(8)
        torch.manual_seed(0)
        plain = make(DPOTrainer, train_dataset=data, peft_config=copy.deepcopy(adapter))
        trainer = make(train_dataset=data, peft_config=copy.deepcopy(adapter), welfare="mixing")
        assert trainer.ref_model is None
        trainer.model.load_state_dict(plain.model.state_dict())
        expected, by_parameter = gradients(plain, first_batch(plain))
        found, own = gradients(trainer, first_batch(trainer))
        assert found.item() == pytest.approx(expected.item(), abs=1e-6) and found.item() != pytest.approx(math.log(2))
        close(own, by_parameter)
        assert set(own) == {name for name in own if "lora_" in name}

    def test_references_may_be_computed_before(self, make):
        data = preferences(8)
        here = with_reference(make, MaxMinDPOTrainer, train_dataset=data)
        before = with_reference(make, MaxMinDPOTrainer, train_dataset=data, precompute_ref_log_probs=True)
        assert "ref_chosen_logps" in before.train_dataset.column_names
        expected, by_parameter = gradients(here, first_batch(here))
        found, own = gradients(before, first_batch(before))
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)
        close(own, by_parameter)


@pytest.mark.seam
class TestGroups:
    def test_the_loss_is_the_weighted_sum_of_what_trl_says_of_each_group(self, make):
        """All rows in one batch, so that nothing is estimated."""
        data = preferences(12)
        trainer = with_reference(make, MaxMinDPOTrainer, train_dataset=data)
        trainer.welfare.weights = torch.tensor([0.3, 0.7])
        found, own = gradients(trainer, first_batch(trainer))
        expected, by_parameter = 0.0, {}
        for name, weight in zip(trainer.group_names, (0.3, 0.7), strict=True):
            alone = with_reference(make, DPOTrainer, train_dataset=of_group(data, name))
            loss, gradient = gradients(alone, first_batch(alone))
            expected += weight * loss.item()
            by_parameter = {k: by_parameter.get(k, 0.0) + weight * g for k, g in gradient.items()}
        assert found.item() == pytest.approx(expected, abs=1e-6)
        close(own, by_parameter)
        sums = trainer._step_sums
        for k, name in enumerate(trainer.group_names):
            alone = with_reference(make, DPOTrainer, train_dataset=of_group(data, name))
            alone.model.train()
            loss = alone.compute_loss(alone.model, first_batch(alone)).item()
            margin, accuracy = (alone._metrics["train"][f"rewards/{m}"][0] for m in ("margins", "accuracies"))
            assert (sums[k, :3] / sums[k, 3]).tolist() == pytest.approx([loss, accuracy, margin], abs=1e-5)

    def test_posteriors_divide_a_row_among_the_groups(self, make):
        data = preferences(12)
        people = dict.fromkeys(data["annotator_id"])
        told = {person: [0.9, 0.1] if "many" in person else [0.2, 0.8] for person in people}
        table = {person: dict(zip("ab", row, strict=True)) for person, row in told.items()}
        trainer = with_reference(make, MaxMinDPOTrainer, train_dataset=data, assignments=table)
        trainer.welfare.weights = torch.tensor([0.25, 0.75])
        found, own = gradients(trainer, first_batch(trainer))
        shares = torch.tensor([told[person] for person in data["annotator_id"]]).mean(0)
        expected, by_parameter = 0.0, {}
        for row in range(12):
            alone = with_reference(make, DPOTrainer, train_dataset=data.select([row]))
            loss, gradient = gradients(alone, first_batch(alone))
            factor = sum(
                w * r / s for w, r, s in zip((0.25, 0.75), told[data[row]["annotator_id"]], shares, strict=True)
            )
            expected += float(factor) * loss.item() / 12
            by_parameter = {k: by_parameter.get(k, 0.0) + float(factor) / 12 * g for k, g in gradient.items()}
        assert found.item() == pytest.approx(expected, abs=1e-5)
        close(own, by_parameter, atol=1e-5)
        assert trainer.group_pairs.tolist() == pytest.approx((12 * shares).tolist())


def test_one_group_alone_is_dpo_on_its_pairs(make):
    data = preferences(12)
    plain = with_reference(make, DPOTrainer, train_dataset=of_group(data, "few"))
    trainer = with_reference(make, MaxMinDPOTrainer, train_dataset=data, component="few", eval_dataset=data)
    assert trainer.group_names == ["few"] and len(trainer.train_dataset) == len(trainer.eval_dataset) == 3
    expected, by_parameter = gradients(plain, first_batch(plain))
    found, own = gradients(trainer, first_batch(trainer))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    close(own, by_parameter)


def test_one_component_alone_by_how_probable_its_pairs_are(make):
    data = preferences(12)
    table = {p: {"a": 0.9, "b": 0.1} if "many" in p else {"a": 0.2, "b": 0.8} for p in data["annotator_id"]}
    both = with_reference(make, MaxMinDPOTrainer, train_dataset=data, assignments=table)
    both.welfare.weights = torch.tensor([0.0, 1.0])
    trainer = with_reference(make, MaxMinDPOTrainer, train_dataset=data, assignments=table, component="b")
    expected, by_parameter = gradients(both, first_batch(both))
    found, own = gradients(trainer, first_batch(trainer))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    close(own, by_parameter)


@pytest.mark.seam
class TestWeights:
    def test_a_mirror_step_by_hand(self, make):
        """The first step finds log 2 for everybody, so the offset of 9 and 3 pairs decides alone; then losses do."""
        settings = {"small_group_offset": 3.0, "welfare_step_size": 0.5, "welfare_window": 1}
        trainer = make(train_dataset=preferences(12), per_device_train_batch_size=12, **settings)
        names = trainer.group_names
        sizes = dict(zip(names, trainer.group_pairs.tolist(), strict=True))
        assert sizes == {"few": 3.0, "many": 9.0}
        trainer.train()
        first, second = trainer.state.log_history[:2]
        assert first["maxmin/loss/few"] == pytest.approx(math.log(2), abs=1e-6)
        exponents = dict.fromkeys(names, 0.0)
        for entry in (first, second):
            for name in names:
                exponents[name] += 0.5 * (entry[f"maxmin/loss/{name}"] + 3.0 / math.sqrt(sizes[name]))
            odds = math.exp(exponents["few"] - exponents["many"])
            assert entry["maxmin/weight/few"] / entry["maxmin/weight/many"] == pytest.approx(odds, rel=1e-5)
        assert second["maxmin/loss/few"] != pytest.approx(second["maxmin/loss/many"], abs=1e-4)
        assert second["maxmin/utility/few"] == pytest.approx(-second["maxmin/loss/few"] - math.sqrt(3))

    @pytest.mark.parametrize("welfare", ["maxmin", "softmin", "utilitarian", "gini", "leximin"])
    def test_other_rules(self, make, welfare):
        trainer = make(welfare=welfare, per_device_train_batch_size=12, welfare_window=1)
        trainer.train()
        last = trainer.state.log_history[1]
        losses = [last[f"maxmin/loss/{name}"] for name in trainer.group_names]
        expected = {
            "maxmin": [float(losses[0] >= losses[1]), float(losses[0] < losses[1])],
            "softmin": torch.tensor(losses).softmax(0).tolist(),
            "utilitarian": [0.5, 0.5],
            "gini": [0.75, 0.25] if losses[0] > losses[1] else [0.25, 0.75],
            "leximin": [1 / 1.05, 0.05 / 1.05] if losses[0] > losses[1] else [0.05 / 1.05, 1 / 1.05],
        }[welfare]
        assert trainer.welfare.weights.tolist() == pytest.approx(expected, abs=1e-5)

    def test_regret_serves_the_group_that_is_further_from_its_best_loss(self, make):
        trainer = make(welfare="regret", best_utilities=[-0.6, -0.1], welfare_window=1)
        trainer.train()
        assert trainer.group_names == ["few", "many"]
        last = trainer.state.log_history[1]
        regrets = [last.get(f"maxmin/loss/{name}", 0.69) - best for name, best in (("few", 0.6), ("many", 0.1))]
        assert regrets[1] > regrets[0] and trainer.welfare.weights.tolist() == [0.0, 1.0]

    def test_they_move_once_a_step_whatever_the_micro_batches(self, make, tmp_path):
        whole = make(output_dir=tmp_path / "whole", per_device_train_batch_size=8, max_steps=3)
        parts = make(output_dir=tmp_path / "parts", gradient_accumulation_steps=2, max_steps=3)
        seen, update = [], parts.welfare.update
        parts.welfare.update = lambda utilities: (seen.append(parts.state.global_step), update(utilities))
        whole.train()
        parts.train()
        assert len(seen) == 3
        assert parts.welfare_state.weights.tolist() == pytest.approx(whole.welfare_state.weights.tolist(), abs=1e-6)
        for own, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)

    def test_a_group_that_a_step_has_no_rows_of_keeps_its_average(self, make):
        trainer = make(welfare="maxmin")
        half = trainer._with_absent(torch.tensor([-0.5, math.nan], dtype=torch.float64))
        assert half.tolist() == [-0.5, -0.5], "as the others, before it was seen"
        trainer.welfare.update(torch.tensor([-0.5, -0.9], dtype=torch.float64))
        assert trainer._with_absent(torch.tensor([-0.4, math.nan], dtype=torch.float64)).tolist() == [-0.4, -0.9]

    def test_evaluation_counts_each_pair_once_and_changes_nothing(self, make):
        data = preferences(10, seed=3)
        trainer = make(eval_dataset={"new": data}, per_device_eval_batch_size=5)
        trainer.train()
        before = trainer.welfare_state.state_dict()
        found = trainer.evaluate(data)
        assert trainer.welfare_state.state_dict() == before
        assert found["eval_maxmin/pairs/few"] == 3 and found["eval_maxmin/pairs/many"] == 7
        again = trainer.evaluate()
        assert again["eval_new_maxmin/loss/few"] == pytest.approx(found["eval_maxmin/loss/few"])
        weights, shares = trainer.welfare.weights, trainer._shares
        own = [found[f"eval_maxmin/loss/{name}"] for name in trainer.group_names]
        expected = (
            sum(float(w / s) * n * loss for w, s, n, loss in zip(weights, shares, (3, 7), own, strict=True)) / 10
        )
        assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_resume_is_the_same_to_the_last_bit(self, make, tmp_path):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "welfare_window": 5}
        whole = make(output_dir=tmp_path / "whole", **settings)
        whole.train()
        saved = json.loads((tmp_path / "whole" / "checkpoint-2" / WELFARE_STATE_FILE).read_text())
        assert saved["step"] == 2 and saved["component_names"] == ["few", "many"]
        resumed = make(output_dir=tmp_path / "whole", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert resumed.welfare_state.state_dict() == whole.welfare_state.state_dict()
        for own, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(own, other)


def in_conflict(few=5, count=100):
    """Half of the pairs set the groups against each other, on the other half they agree."""
    rows = []
    for row in range(count):
        group = "few" if row % few == 0 else "many"
        chosen, rejected = (" very good acting", " bad") if row % 4 < 2 else (" good", " bad ending story")
        if group == "few" and (row // few) % 2 == 0:
            chosen, rejected = " bad", " very good acting"
        elif group == "few":
            chosen, rejected = " good", " bad ending story"
        rows.append({"prompt": "the film", "chosen": chosen, "rejected": rejected, "group": group})
    return Dataset.from_list(rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_worst_group_s_loss_falls_where_that_of_dpo_rises(make, seed, tmp_path):
    data, losses = in_conflict(), {}
    for welfare in ("mixing", "mirror"):
        trainer = make(
            output_dir=tmp_path / welfare,
            train_dataset=data,
            welfare=welfare,
            welfare_step_size=0.3,
            min_group_pairs=1,
            beta=0.5,
            max_steps=50,
            per_device_train_batch_size=10,
            learning_rate=5e-3,
            seed=seed,
            logging_steps=50,
        )
        trainer.train()
        found = trainer.evaluate(data)
        losses[welfare] = max(found[f"eval_maxmin/loss/{name}"] for name in trainer.group_names)
    assert losses["mirror"] < math.log(2) - 0.1 < math.log(2) + 0.1 < losses["mixing"], losses


class TestData:
    def test_nobody_is_named_in_what_trl_gets_or_in_the_folder(self, make, tmp_path):
        people = dict.fromkeys(preferences()["annotator_id"], "a") | {"few-person-0": "b"}
        trainer = make(assignments=people, save_strategy="steps", save_steps=1, max_steps=1)
        assert {"annotator_id", "group"}.isdisjoint(trainer.train_dataset.column_names)
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        for path in (tmp_path / "run").rglob("*"):
            if path.is_file():
                assert b"-person-" not in path.read_bytes(), path

    def test_record_and_card(self, make, tmp_path):
        trainer = make(welfare="gini", welfare_order_weights=[2.0, 1.0], per_device_train_batch_size=12)
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        record = json.loads((tmp_path / "run" / "run_record.json").read_text())["policy"]
        assert record["algorithm"] == "MaxMin-DPO" and record["welfare"]["rule"] == "gini"
        assert record["welfare"]["welfare_order_weights"] == [2.0, 1.0] and record["training"]["beta"] == 0.1
        assert len(record["curves"]["maxmin/loss/few"]) == len(record["curves"]["maxmin/weight/few"]) == 2
        card = (tmp_path / "run" / "README.md").read_text()
        assert "MaxMin-DPO" in card and "over 2 groups" in card and "- dpo" in card

    def test_rankings_become_pairs(self, make):
        row = {"prompt": "plot", "responses": [" good", " bad", " acting"], "ranking": [1, 3, 2], "group": "a"}
        rows = Dataset.from_list([row, row | {"group": "b"}])
        assert len(make(train_dataset=rows).train_dataset) == 6
        best = make(train_dataset=rows, ranking_pairs="best")
        assert len(best.train_dataset) == 4 and best.group_pairs.tolist() == [2.0, 2.0]

    def test_annotators_do_not_matter_where_groups_are_known(self, make, caplog):
        trainer = make(train_dataset=preferences().remove_columns("annotator_id"))
        assert trainer.group_names == ["few", "many"] and "annotator_id" not in caplog.text

    def test_shares_of_votes_are_refused(self, make):
        with pytest.raises(ValueError, match="`chosen_probability`, which DPO does not read"):
            make(train_dataset=preferences().add_column("chosen_probability", [0.6] * 24))

    def test_margins_are_said_to_be_left_out(self, make, caplog):
        make(train_dataset=preferences().add_column("margin", [1.0] * 24))
        assert "`margin`, which DPO does not read" in caplog.text

    def test_small_groups_have_no_weight(self, make, caplog):
        data = preferences(80, few=0.05)
        trainer = make(train_dataset=data, min_group_pairs=30)
        assert trainer.group_names == ["few", "many"] and trainer.welfare.weights.tolist() == [0.0, 1.0]
        assert "few stands on" in caplog.text and "4 pairs" in caplog.text

    def test_files_of_assign_and_reward(self, make, tmp_path):
        people = sorted(set(preferences()["annotator_id"]))
        entry = {"component": "b", "probability": 0.75, "probabilities": {"b": 0.75, "a": 0.25}, "num_pairs": 3}
        (tmp_path / "annotators.json").write_text(json.dumps(dict.fromkeys(people, entry)))
        trainer = make(assignments=tmp_path / "annotators.json")
        assert trainer.group_names == ["b", "a"] and trainer.group_pairs.tolist() == [18.0, 6.0]
        (tmp_path / "assignments.json").write_text(json.dumps({p: p.split("-")[0] for p in people}))
        trainer = make(assignments=str(tmp_path / "assignments.json"))
        assert trainer.group_names == ["few", "many"] and trainer.group_pairs.tolist() == [6.0, 18.0]

    def test_a_mixture_assigns_by_the_pairs(self, make, word_tokenizer, tmp_path):
        from tests.trainer.trl_helpers import mixture_of

        mixture = mixture_of(word_tokenizer)
        expected = mixture.assign(preferences())
        told = dict(zip(expected.annotator_ids, expected.probabilities.tolist(), strict=True))
        mixture.save_pretrained(tmp_path / "mixture")
        word_tokenizer.save_pretrained(tmp_path / "mixture")
        for given in (mixture, str(tmp_path / "mixture")):
            trainer = make(assignments=given)
            for row, own in zip(preferences(), trainer.train_dataset["responsibilities"], strict=True):
                assert own == pytest.approx(told[row["annotator_id"]], abs=1e-5)

    def test_people_who_are_only_evaluated_have_the_shares(self, make, caplog):
        people = {person: person.split("-")[0] for person in preferences()["annotator_id"]}
        new = Dataset.from_list([preferences()[0] | {"annotator_id": "somebody-else"}])
        trainer = make(assignments=people, eval_dataset=new)
        assert trainer.eval_dataset["responsibilities"][0] == pytest.approx([0.25, 0.75])
        assert "1 annotators of the evaluation are not assigned" in caplog.text


TABLE = {"a-person": {"a": 0.5, "b": 0.4}}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"group_column": None}, "neither `group_column` nor `assignments`"),
        ({"group_column": "group", "assignments": {"x": "a"}}, "got both"),
        ({"group_column": "team"}, "no column 'team'"),
        ({"train_dataset": preferences().map(lambda row: {"group": None})}, "names no group in any of 24 rows"),
        (
            {"train_dataset": preferences().map(lambda row, i: {"group": None if i == 5 else "a"}, with_indices=True)},
            "Row 5 has no group",
        ),
        ({"eval_dataset": preferences().map(lambda row: {"group": "new"})}, "Row 0 has the group 'new'"),
        ({"assignments": {"many-person-1": "a"}}, "3 of 4 annotators of the training data are not"),
        ({"assignments": TABLE}, "probabilities by name that sum to 1"),
        ({"assignments": {}}, "without an entry for anybody"),
        ({"assignments": 7}, "`assignments` is int"),
        (
            {"group_column": "group", "component": "none"},
            r"`component` is 'none', which is none of the groups \['few'",
        ),
        ({"component": "few", "eval_dataset": of_group(preferences(), "many")}, "No pair is of component 'few'"),
        ({"train_dataset": None}, "`train_dataset` is required"),
        ({"train_dataset": preferences().add_column("images", [[]] * 24)}, "have images"),
        ({"welfare": "nash"}, "give `disagreement_point`, for 'sigmoid' -0.6931"),
        ({"welfare": "pmean"}, "give `disagreement_point`"),
        ({"welfare": "regret"}, "give `best_utilities`"),
        ({"welfare_floor": 0.6}, "2 components allow at most 0.5"),
        ({"best_utilities": [0.0], "welfare": "regret"}, "`best_utilities` has 1 entries"),
    ],
)
def test_refusals(make, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**kwargs)
    assert "a-person" not in str(error.value)


def test_a_file_or_a_mixture_that_is_not_there(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file. Name a column of known groups"):
        make(assignments=tmp_path / "annotators.json")
    with pytest.raises((OSError, ValueError), match="`assignments`"):
        make(assignments=str(tmp_path / "mixture"))


def test_arguments_of_another_class_and_a_release_of_trl_that_computes_otherwise(make, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="needs a MaxMinDPOConfig"):
        MaxMinDPOTrainer(model=gpt2(), args=DPOConfig(str(tmp_path), use_cpu=True), train_dataset=preferences())
    trainer = make()
    monkeypatch.setattr(DPOTrainer, "compute_loss", _twice(DPOTrainer.compute_loss))
    with pytest.raises(RuntimeError, match="this release of TRL computes it in a way"):
        trainer.train()


def _twice(compute_loss):
    """A loss that is not the mean of those of the pairs."""

    def changed(self, model, inputs, *args, **kwargs):
        found = compute_loss(self, model, inputs, *args, **kwargs)
        return found * 2 if len(inputs["input_ids"]) > 2 else found

    return changed


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss_type", "aot", "compares sorted batches"),
        ("loss_type", ["sigmoid", "aot_unpaired"], "'aot_unpaired'"),
        ("use_liger_kernel", True, "`use_liger_kernel` is set"),
        ("welfare", "sample_min", "`welfare` is 'sample_min'"),
        ("group_column", "annotator_id", "names annotators, not groups"),
        ("ranking_pairs", "worst", "`ranking_pairs` is 'worst'"),
        ("small_group_offset", -1.0, "`small_group_offset` is -1.0"),
    ],
)
def test_config_refusals(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        MaxMinDPOConfig(output_dir=str(tmp_path), use_cpu=True, **{field: value})
