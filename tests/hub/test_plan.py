# SPDX-License-Identifier: Apache-2.0
"""Which files of which folder go where."""

import json

import pytest

from tests.hub.artefacts import make_adapter, make_app, make_model, make_output, make_record
from trl_maxmin.hub import PushOptions, plan_output_folder
from trl_maxmin.hub.contents import model_files
from trl_maxmin.hub.files import digests, is_hub_id, slug
from trl_maxmin.hub.output import plan_single_model
from trl_maxmin.hub.plan import (
    plan_component,
    plan_dataset,
    plan_mixture,
    plan_policy,
    result_rows,
)
from trl_maxmin.hub.plan_app import plan_space
from trl_maxmin.run_record import RunRecord


def by_id(plan):
    return {repo.repo_id.removeprefix("me/film-"): repo for repo in plan.repos}


class TestOutputFolder:
    def test_everything(self, tmp_path):
        plan = plan_output_folder(make_output(tmp_path), "me/film", PushOptions(private=True), dataset=True)
        assert list(by_id(plan)) == [
            "policy-reference", "reward-concise", "reward-positive", "mixture", "evaluation", "policy-maxmin",
        ]  # fmt: skip
        assert plan.left_out == ["assignments.json"] and (plan.namespace, plan.title) == ("me", "film")
        assert all(repo.private for repo in plan.repos)
        everything = {name for repo in plan.repos for name in repo.files}
        assert not {"training_args.bin", "assignments.json"} & everything
        made = {"README.md", "run_record.json", "results.jsonl"}
        assert set(by_id(plan)["evaluation"].files) == made | {"completions.jsonl"}

    def test_nothing_names_what_comes_later(self, tmp_path):
        plan = plan_output_folder(
            make_output(tmp_path / "out"), "me/film", dataset=True, space=make_app(tmp_path / "app")
        )
        for number, repo in enumerate(plan.repos):
            card = repo.files["README.md"].decode()
            for later in plan.repos[number + 1 :]:
                assert later.repo_id not in card, f"{repo.repo_id} names {later.repo_id}"

    def test_links(self, tmp_path):
        repos = by_id(plan_output_folder(make_output(tmp_path), "me/film", dataset=True))
        assert "me/film-reward-concise" in repos["mixture"].files["README.md"].decode()
        card = repos["policy-maxmin"].files["README.md"].decode()
        for name in ("me/film-mixture", "me/film-evaluation", "base_model: me/film-policy-reference"):
            assert name in card

    def test_a_policy_trained_on_something_else_does_not_link_the_mixture(self, tmp_path):
        folder = make_output(tmp_path)
        RunRecord().update("policy", name="maxmin", algorithm="PPO", reward_model="gold utilities").save(
            folder / "policies" / "maxmin"
        )
        card = by_id(plan_output_folder(folder, "me/film"))["policy-maxmin"].files["README.md"].decode()
        assert "with the rewards of `gold utilities`" in card and "me/film-mixture" not in card

    def test_the_folder_may_be_a_mixture(self, tmp_path):
        make_model(tmp_path, model_type="mixture_reward", component_names=["a"], num_components=1)
        make_model(tmp_path / "components" / "a")
        assert list(by_id(plan_output_folder(tmp_path, "me/film"))) == ["reward-a", "mixture"]

    def test_the_folder_may_be_a_policy(self, tmp_path):
        make_adapter(tmp_path, base="org/base")
        make_record().save(tmp_path)
        (repo,) = plan_output_folder(tmp_path, "me/film").repos
        assert (repo.repo_id, repo.kind) == ("me/film-policy-maxmin", "policy")
        assert "base_model_relation: adapter" in repo.files["README.md"].decode()

    def test_a_reference_on_the_hub_is_in_the_collection(self, tmp_path):
        folder = make_output(tmp_path)
        RunRecord.update_file(folder, "reward", base_model="org/base")
        assert plan_output_folder(folder, "me/film").extra == [("org/base", "model", "base model")]

    @pytest.mark.parametrize(
        ("prepare", "message"),
        [
            (lambda f: f / "missing", "There is no folder"),
            (lambda f: f, "holds nothing to push"),
        ],
    )
    def test_errors(self, tmp_path, prepare, message):
        with pytest.raises(ValueError, match=message):
            plan_output_folder(prepare(tmp_path), "me/film")

    def test_names_that_collide(self, tmp_path):
        make_model(tmp_path / "components" / "a b")
        make_model(tmp_path / "components" / "a-b", 1)
        with pytest.raises(ValueError, match="'a b' and component 'a-b' would both go to me/film-reward-a-b"):
            plan_output_folder(tmp_path, "me/film")

    def test_an_id_without_a_namespace(self, tmp_path):
        with pytest.raises(ValueError, match="'film' is not a full repository id. Write it as `namespace/name`"):
            plan_output_folder(make_output(tmp_path), "film")


class TestSingleModel:
    def test_exactly_this_id(self, tmp_path):
        plan = plan_single_model(make_adapter(tmp_path, base="org/base"), "me/exactly")
        assert [repo.repo_id for repo in plan.repos] == ["me/exactly"]
        folder = make_output(tmp_path / "out")
        assert plan_single_model(folder / "mixture", "me/m").repos[0].kind == "mixture"

    def test_no_model(self, tmp_path):
        with pytest.raises(ValueError, match="neither a mixture nor a policy. Leave --exact out"):
            plan_single_model(make_output(tmp_path), "me/x")


class TestBase:
    def test_a_path_is_replaced_or_refused(self, tmp_path):
        folder = make_adapter(tmp_path, base="/home/me/base")
        with pytest.raises(
            ValueError, match="'c' is an adapter of '/home/me/base', which is not on the Hub.*base_model"
        ):
            plan_component(folder, "me/c", "c", RunRecord(), PushOptions())
        plan = plan_component(folder, "me/c", "c", RunRecord(), PushOptions(base_model="org/base"))
        assert json.loads(plan.files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "/home/me/base"
        assert "/home" not in plan.files["README.md"].decode()

    def test_the_reference_beside_it_stands_in_for_a_path_only(self, tmp_path):
        folder = make_adapter(tmp_path, base="/home/me/base")
        plan = plan_policy(folder, "me/p", "p", RunRecord(), PushOptions(), fallback_base="me/reference")
        assert json.loads(plan.files["adapter_config.json"])["base_model_name_or_path"] == "me/reference"
        folder = make_adapter(tmp_path, base="org/base")
        plan = plan_policy(folder, "me/p", "p", RunRecord(), PushOptions(), fallback_base="me/reference")
        assert "base_model: org/base" in plan.files["README.md"].decode()

    def test_adapters_in_a_mixture(self, tmp_path):
        mixture = {"component_names": ["a", "b"], "num_components": 2, "component_type": "lora"}
        make_model(tmp_path, model_type="mixture_reward", base_model_name_or_path="/home/me/base", **mixture)
        with pytest.raises(ValueError, match="The mixture is an adapter of '/home/me/base'"):
            plan_mixture(tmp_path, "me/m", RunRecord(), PushOptions())
        plan = plan_mixture(tmp_path, "me/m", RunRecord(), PushOptions(base_model="org/base"))
        assert json.loads(plan.files["config.json"])["base_model_name_or_path"] == "org/base"

    def test_a_base_that_has_no_name_goes_along(self, tmp_path):
        make_model(tmp_path, model_type="mixture_reward", component_names=["a"], num_components=1)
        make_model(tmp_path / "base")
        files = plan_mixture(tmp_path, "me/m", RunRecord(), PushOptions()).files
        assert {"base/config.json", "base/model.safetensors"} < set(files) and "base/training_args.bin" not in files


class TestDataset:
    def test_results(self):
        rows = result_rows(make_record())
        assert len(rows) == 6 and len({tuple(row) for row in rows}) == 1
        assert {"policy": "single", "group": "positive"}.items() <= rows[3].items() and rows[3]["win_rate"] == 0.33

    def test_nothing_evaluated(self, tmp_path):
        with pytest.raises(ValueError, match="no results by group.*Evaluate first"):
            plan_dataset(tmp_path, "me/d", RunRecord(), PushOptions(), None)

    @pytest.mark.parametrize("form", ["jsonl", "parquet"])
    def test_annotators_are_refused(self, tmp_path, form):
        rows = {"policy": ["a"], "prompt": ["x"], "completion": ["y"], "annotator_id": ["ann"]}
        if form == "parquet":
            from datasets import Dataset

            Dataset.from_dict(rows).to_parquet(tmp_path / "completions.parquet")
        else:
            row = {name: values[0] for name, values in rows.items()}
            (tmp_path / "completions.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=f"completions.{form} is not what this package writes.*has annotator_id"):
            plan_dataset(tmp_path, "me/d", make_record(), PushOptions(), None)


class TestSpace:
    def test_own_front_matter_wins(self, tmp_path):
        (make_app(tmp_path) / "README.md").write_text("---\ntitle: Mine\nsdk_version: 6.31.0\ntags: [a]\n---\n")
        plan = plan_space(tmp_path, "me/s", PushOptions(), models=["me/m"])
        card = plan.files["README.md"].decode()
        assert "title: Mine" in card and "sdk_version: 6.31.0" in card and "- me/m" in card and "- trl-maxmin" in card
        assert set(plan.files) == {"README.md", "app.py", "index.html", "requirements.txt"}

    def test_no_app(self, tmp_path):
        with pytest.raises(ValueError, match="has no app.py, so it is not an app"):
            plan_space(tmp_path, "me/s", PushOptions(), models=[])


class TestFiles:
    def test_pickles_only(self, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
        with pytest.raises(ValueError, match=r"only pickled files \(pytorch_model.bin\).*save_pretrained"):
            model_files(tmp_path)

    def test_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="holds no weights"):
            model_files(tmp_path)
        with pytest.raises(ValueError, match="There is no folder"):
            model_files(tmp_path / "x")

    def test_weights_without_configuration(self, tmp_path):
        make_model(tmp_path)
        (tmp_path / "config.json").unlink()
        with pytest.raises(ValueError, match="neither config.json nor adapter_config.json"):
            model_files(tmp_path)

    def test_digests_of_a_file_and_of_its_bytes(self, tmp_path):
        (tmp_path / "x").write_bytes(b"abc" * 5)
        assert digests(tmp_path / "x") == digests(b"abc" * 5)
        # https://git-scm.com/book: `echo 'test content' | git hash-object --stdin`
        assert digests(b"test content\n")[0] == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"

    @pytest.mark.parametrize("name", ["!!!", "..."])
    def test_no_slug(self, name):
        with pytest.raises(ValueError, match="no letter or digit"):
            slug(name)

    def test_hub_ids(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert not is_hub_id("org/name"), "a folder of this name is here"
        assert is_hub_id("org/other") and not is_hub_id("gpt2") and not is_hub_id("./x") and not is_hub_id("a/b c")
