# SPDX-License-Identifier: Apache-2.0
"""The list of names: what is on it, what is not, and that no link is followed."""

import json
import re
from pathlib import Path

import pytest
import transformers

from tests.hub.artefacts import make_adapter, make_app, make_model, make_output, make_record
from tests.hub.leaks import FORBIDDEN
from trl_maxmin.cli.output_folder import EVALUATION_FILES
from trl_maxmin.hub import PushOptions, plan_output_folder
from trl_maxmin.hub.contents import (
    TOKENIZER,
    critic_files,
    is_model_name,
    is_stale_in_model,
    is_stale_in_space,
    mixture_files,
    model_files,
)
from trl_maxmin.hub.evaluation_files import (
    DATASET_NAMES,
    evaluation_files,
    public_evaluation,
    public_groups,
    public_report,
)
from trl_maxmin.hub.local_paths import for_publication, without_local
from trl_maxmin.hub.plan import model_contents, plan_policy
from trl_maxmin.hub.plan_app import plan_space
from trl_maxmin.run_record import RunRecord


def shards(folder, names, listed=None):
    """A model in shards; what is in them does not matter here."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    for name in names:
        (folder / name).write_bytes(b"x")
    weight_map = {f"weight.{number}": name for number, name in enumerate(names if listed is None else listed)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


TWO = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class TestModel:
    def test_shards_are_those_that_the_index_names(self, tmp_path):
        shards(tmp_path, [*TWO, "model-00001-of-00003.safetensors"], TWO)
        assert set(model_files(tmp_path)) == {*TWO, "model.safetensors.index.json", "config.json"}

    def test_one_file_comes_before_an_index(self, tmp_path):
        make_model(tmp_path)
        shards(tmp_path, TWO)
        assert not {*TWO, "model.safetensors.index.json"} & set(model_files(tmp_path))

    def test_adapters_may_have_shards(self, tmp_path):
        names = [name.replace("model", "adapter_model") for name in TWO]
        shards(tmp_path, names)
        (tmp_path / "model.safetensors.index.json").rename(tmp_path / "adapter_model.safetensors.index.json")
        assert set(names) < set(model_files(tmp_path))

    @pytest.mark.parametrize(
        ("listed", "message"),
        [
            (["model-00001-of-00002.safetensors", "model-00002-of-00003.safetensors"], "shards of two sets"),
            ([*TWO, "em_state.safetensors"], "em_state.safetensors, .*shards are called model-00001-of-00002"),
            (["../secret.safetensors"], "names ../secret.safetensors; shards are called"),
            (["adapter_model-00001-of-00001.safetensors"], "shards are called model-"),
            ([], "names no shard"),
            ([None], "is no index of weights .TypeError"),
            (["model-00001-of-00001.safetensors"], "model-00001-of-00001.safetensors, which is missing"),
        ],
    )
    def test_an_index_that_does_not_fit(self, tmp_path, listed, message):
        with pytest.raises(ValueError, match=message):
            model_files(shards(tmp_path, [*TWO, "model-00002-of-00003.safetensors", "em_state.safetensors"], listed))

    @pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "[" * 100_000])
    def test_an_index_that_is_none(self, tmp_path, text):
        shards(tmp_path, TWO)
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(
            ValueError, match="index.json (is no index of weights|is no JSON|holds a list|has brackets)"
        ):
            model_files(tmp_path)

    def test_templates_by_name(self, tmp_path):
        templates = make_model(tmp_path) / "additional_chat_templates"
        templates.mkdir()
        for name in ("tool_use.jinja", "notes.md", ".hidden.jinja", "a.b.jinja", "tool_use.jinja.bak"):
            (templates / name).write_text("x")
        assert [n for n in model_files(tmp_path) if "/" in n] == ["additional_chat_templates/tool_use.jinja"]

    def test_every_tokenizer_of_transformers(self):
        """Read from the source of the release that is installed."""
        names = set()
        for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
            names |= set(re.findall(r'"\w+_file": "([^"/{}]+\.\w+)"', path.read_text(encoding="utf-8")))
        assert len(names) > 15 and names <= set(TOKENIZER)

    def test_the_critic(self, tmp_path):
        make_model(tmp_path)
        with pytest.raises(
            ValueError, match="holds no critic .value_head.safetensors, value_model/.*save_critic=True"
        ):
            critic_files(tmp_path)
        with pytest.raises(ValueError, match="holds no critic"):
            plan_policy(tmp_path, "me/p", "p", RunRecord(), PushOptions(value_head=True))
        for where in ("", "/adapter", "/trl_maxmin_critic"):
            make_model(tmp_path / f"value_model{where}")
            assert f"value_model{where}/model.safetensors" in critic_files(tmp_path)
        assert all(map(is_model_name, critic_files(tmp_path)))
        assert not set(critic_files(tmp_path)) & set(model_files(tmp_path))

    def test_names_in_a_repository(self):
        good = ["model.safetensors", TWO[0], "base/config.json", "README.md", "run_record.json", "comparison.png"]
        good += [
            "value_head.safetensors",
            "value_model/adapter/adapter_config.json",
            "additional_chat_templates/a.jinja",
        ]
        assert all(map(is_model_name, good))
        bad = ["deep/model.safetensors", "base/base/config.json", "base/README.md", "../model.safetensors", "base/"]
        bad += ["model-1-of-2.safetensors", "additional_chat_templates/../a.jinja", "MODEL.safetensors", ""]
        bad += [*(FORBIDDEN - {TWO[0], "value_head.safetensors"}), "model.safetensors\n"]
        assert not [name for name in bad if is_model_name(name)]

    def test_what_a_push_removes(self):
        stale = [
            "model.safetensors",
            TWO[1],
            "pytorch_model-00001-of-00002.bin",
            "em_state.safetensors",
            "optimizer.pt",
        ]
        assert all(map(is_stale_in_model, stale))
        kept = ["README.md", "run_record.json", "mine.txt", "data/em_state.safetensors", ".gitattributes"]
        assert not any(map(is_stale_in_model, kept))
        assert is_stale_in_space("trl_maxmin-0.1-py3-none-any.whl") and is_stale_in_space("run/mixture/x.json")
        assert not is_stale_in_space("app.py") and not is_stale_in_space("runs/x")


class TestLinks:
    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "added_tokens.json"])
    @pytest.mark.parametrize("target", ["outside", "beside", "nowhere"])
    def test_of_a_listed_name(self, tmp_path, name, target):
        folder = make_model(tmp_path / "model")
        (tmp_path / "outside").write_text("a secret")
        (folder / "beside").write_text("a secret")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to({"outside": "../outside", "beside": "beside", "nowhere": "nowhere"}[target])
        with pytest.raises(ValueError, match=f"model/{name} is a link .to .*Put the file itself there"):
            model_files(folder)

    @pytest.mark.parametrize(
        "name", ["mixture", "components", "components/concise", "policies", "policies/maxmin", "evaluation"]
    )
    def test_of_a_folder(self, tmp_path, name):
        run = make_output(tmp_path / "run")
        (run / name).rename(tmp_path / "elsewhere")
        (run / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=f"run/{name} is a link"):
            plan_output_folder(run, "me/film", dataset=True)

    @pytest.mark.parametrize("name", ["base", "value_model", "additional_chat_templates"])
    def test_below_a_model(self, tmp_path, name):
        folder = make_model(tmp_path / "model")
        (folder / name).symlink_to(make_model(tmp_path / "elsewhere"))
        with pytest.raises(ValueError, match=f"{name} is a link"):
            critic_files(folder) if name == "value_model" else mixture_files(folder)

    @pytest.mark.parametrize("name", ["comparison.png", "evaluation/completions.jsonl", "evaluation/win_rate.png"])
    def test_of_a_figure_or_data(self, tmp_path, name):
        run = make_output(tmp_path / "run")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to("/etc/hostname")
        with pytest.raises(ValueError, match="is a link .to /etc/hostname"):
            plan_output_folder(run, "me/film", dataset=True)

    @pytest.mark.parametrize("name", ["app.py", "README.md", "lib/more.py"])
    def test_of_an_app(self, tmp_path, name):
        (make_app(tmp_path) / "lib").mkdir()
        (tmp_path / "lib" / "more.py").write_text("x")
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to("/etc/hostname")
        with pytest.raises(ValueError, match="is a link"):
            plan_space(tmp_path, "me/s", PushOptions(space_files=("lib/more.py",)), models=[])

    def test_of_another_name_is_no_matter(self, tmp_path):
        folder = make_model(tmp_path / "model")
        (folder / "notes").symlink_to("/etc")
        (folder / "pytorch_model.bin").symlink_to("/etc/hostname")
        assert "notes" not in model_files(folder)

    def test_the_folder_itself_and_the_way_to_it(self, tmp_path):
        make_model(tmp_path / "there" / "model")
        (tmp_path / "here").symlink_to(tmp_path / "there")
        (tmp_path / "link").symlink_to(tmp_path / "here" / "model")
        assert model_files(tmp_path / "here" / "model").keys() == model_files(tmp_path / "link").keys()

    def test_a_hard_link_is_a_file(self, tmp_path):
        folder = make_model(tmp_path)
        (folder / "vocab.json").hardlink_to(folder / "tokenizer.json")
        assert "vocab.json" in model_files(folder)

    def test_a_snapshot_of_the_cache(self, tmp_path):
        """Files of the Hub's cache are links to the blobs beside the snapshot; to anything else they are links."""
        repo = tmp_path / "models--me--film"
        make_model(repo / "blobs")
        snapshot = repo / "snapshots" / "0a1b2c"
        snapshot.mkdir(parents=True)
        for path in (repo / "blobs").iterdir():
            (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
        assert "model.safetensors" in model_files(snapshot)
        (tmp_path / "link").symlink_to(snapshot)
        assert "model.safetensors" in model_files(tmp_path / "link")
        (snapshot / "vocab.json").symlink_to("/etc/hostname")
        with pytest.raises(ValueError, match="vocab.json is a link"):
            model_files(snapshot)

    def test_a_name_that_is_no_file(self, tmp_path):
        import os

        folder = make_model(tmp_path)
        os.mkfifo(folder / "vocab.json")
        (folder / "merges.txt").mkdir()
        assert not {"vocab.json", "merges.txt"} & set(model_files(folder))


class TestPaths:
    def test_a_file_without_paths_stays_as_it_is(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text('{"b":1,\n"a": [1.0, 2]}')
        assert for_publication(path) is path
        path.write_text('{"b":1, "_name_or_path": "/home/ann/x"}')
        assert json.loads(for_publication(path)) == {"b": 1} and "ann" in path.read_text()

    @pytest.mark.parametrize(
        "value",
        [
            {"_name_or_path": "gpt2"},
            {"a": {"b": [{"name_or_path": "/x"}]}},
            {"base_model_name_or_path": "/home/ann/base"},
            {"tokenizer_name_or_path": "runs/of/mine"},
            {"vocab_file": "x"},
            {"cache_dir": "x"},
            {"anything": "/home/ann"},
            {"anything": "C:\\Users\\ann"},
            {"anything": "~/ann"},
            {"anything": "file:///home"},
            {"anything": "\\\\server\\share"},
            {"use_auth_token": "abc"},
            {"is_local": True},
        ],
    )
    def test_what_goes(self, value):
        assert without_local(value) in ({}, {"a": {"b": [{}]}})

    @pytest.mark.parametrize(
        "value",
        [
            {"base_model_name_or_path": "me/base"},
            {"eos_token": "/home/ann", "pad_token": {"content": "</s>"}},
            {"added_tokens_decoder": {"3": {"content": "/home/ann/"}}},
            {"chat_template": "/usr/share/{{ x }}"},
            {"target_modules": ["q_proj", ".*/x"], "rope": {"factor": 1.5, "none": None, "flag": True}},
            {"use_token_file": False, "_attn_implementation": "sdpa", "url": "https://huggingface.co/x"},
            {"component_names": ["/home/x/y"]},
        ],
    )
    def test_what_stays(self, value):
        assert without_local(value) == value

    def test_tokens_are_masked(self):
        assert without_local({"note": ["by hf_abcdefgh1234"]}) == {"note": ["by hf_***"]}

    @pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\x80"])
    def test_a_configuration_that_is_none(self, tmp_path, text):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="config.json (is no JSON|holds a .* not an object|has brackets)"):
            for_publication(tmp_path / "config.json")

    def test_the_critics_base_is_replaced_too(self, tmp_path):
        make_adapter(tmp_path, base="/home/ann/base")
        make_adapter(tmp_path / "value_model" / "adapter", base="/home/ann/base")
        model = model_contents(tmp_path, "The policy", "org/base", value_head=True)
        for name in ("adapter_config.json", "value_model/adapter/adapter_config.json"):
            assert json.loads(model.files[name])["base_model_name_or_path"] == "org/base"


ROW = {"policy": "a", "prompt": "x", "completion": "y", "finished": True, "utility_concise": 0.5}
RESULTS = {"format_version": 1, "groups": {"g": "gold"}, "policies": {"a": {"by_group": {}, "aggregates": {}}}}
GROUP = {"annotators": 4, "pairs": 9, "pair_share": 0.4}


class TestEvaluation:
    def test_every_file_of_the_command_is_known(self):
        assert set(EVALUATION_FILES) - set(DATASET_NAMES) == {"evaluation.md"}, "the card says what it says"

    def test_by_name(self, tmp_path):
        from datasets import Dataset

        Dataset.from_list([{k: v for k, v in ROW.items() if k != "utility_concise"}]).to_parquet(
            tmp_path / "completions.parquet"
        )
        (tmp_path / "completions.jsonl").write_text(json.dumps(ROW) + "\n")
        (tmp_path / "evaluation.json").write_text(json.dumps(RESULTS))
        for name in ("win_rate.png", "pareto.png", "private.png"):
            (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
        for name in ("notes.jsonl", "people.csv", "run_record.json", "diagnosis.json", "evaluation.md"):
            (tmp_path / name).write_text("{}")
        names = {"completions.parquet", "completions.jsonl", "evaluation.json", "win_rate.png", "pareto.png"}
        assert set(evaluation_files(tmp_path)) == names

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (ROW | {"annotator_id": "ann"}, "it has annotator_id.*Annotator ids .* are not published"),
            (ROW | {"posterior": [0.1]}, "it has posterior"),
            ({"policy": "a", "prompt": "x"}, "it lacks completion"),
            (ROW | {"prompt": [{"role": "user", "content": "x", "annotator": "ann"}]}, "prompt is"),
            (ROW | {"utility_concise": "ann"}, "utility_concise is 'ann'"),
            (ROW | {"utility_concise": {"ann": 1}}, "utility_concise is"),
            (ROW | {"finished": "ann"}, "finished is"),
            (ROW | {"policy": ["ann"]}, "policy is"),
            (["ann"], "a line holds list"),
        ],
    )
    def test_rows_of_others(self, tmp_path, row, message):
        (tmp_path / "completions.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=f"completions.jsonl is not what this package writes.*{message}"):
            evaluation_files(tmp_path)

    @pytest.mark.parametrize("name", ["completions.jsonl", "completions.parquet", "evaluation.json", "win_rate.png"])
    @pytest.mark.parametrize("content", [b"{", b"\x80\x81", b"[" * 100_000])
    def test_files_of_others(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not what this package writes"):
            evaluation_files(tmp_path)

    def test_conversations(self, tmp_path):
        row = ROW | {"prompt": [{"role": "user", "content": "x"}], "utility_concise": None}
        (tmp_path / "completions.jsonl").write_text(json.dumps(row) + "\n")
        assert "completions.jsonl" in evaluation_files(tmp_path)

    @pytest.mark.parametrize("more", [{"annotators": {"ann": 1}}, {"policies": {"a": {"posterior": 1}}}, []])
    def test_results_of_others(self, tmp_path, more):
        (tmp_path / "evaluation.json").write_text(json.dumps(RESULTS | more if isinstance(more, dict) else more))
        with pytest.raises(ValueError, match="evaluation.json is not what this package writes"):
            public_evaluation(tmp_path / "evaluation.json")

    def test_a_report_gives_its_results_by_group(self, tmp_path):
        record = make_record().evaluation
        shown = {name: record[name] for name in ("groups", "minority", "win_rate", "gold_utility", "num_prompts")}
        private = {"em": {"assignments": {"ann": 1}}, "output_dir": "/home/ann", "samples": ["ann"]}
        (tmp_path / "report.json").write_text(json.dumps(shown | private))
        assert json.loads(public_report(tmp_path / "report.json")) == shown

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"g": GROUP | {"annotator_ids": ["ann"]}}, "g has annotator_ids"),
            ({"g": GROUP | {"annotators": ["ann"]}}, "annotators of g is"),
            ({"g": GROUP | {"examples": [{"prompt": "a", "chosen": "b"}]}}, "an example of g is"),
            ({"g": GROUP | {"examples": [{"prompt": "a", "chosen": "b", "rejected": {"by": "ann"}}]}}, "an example"),
            ({"g": GROUP | {"examples": ["ann"]}}, "an example of g is"),
            ({"g": "ann"}, "g is 'ann'"),
            (["ann"], "it holds a list"),
        ],
    )
    def test_facts_about_single_people(self, tmp_path, facts, message):
        (tmp_path / "groups.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=f"groups.json is not what this package writes.*{message}"):
            public_groups(tmp_path / "groups.json")


class TestApp:
    def test_files_by_name(self, tmp_path):
        app = make_app(tmp_path / "app")
        (app / "lib").mkdir()
        for name in ("helper.py", "lib/more.py", "notes.md", "keys.json", "votes.jsonl"):
            (app / name).write_text("x")
        usual = {"app.py", "index.html", "requirements.txt", "README.md"}
        assert set(plan_space(app, "me/s", PushOptions(), models=[]).files) == usual
        options = PushOptions(space_files=("helper.py", "lib/more.py"))
        assert set(plan_space(app, "me/s", options, models=[]).files) == {*usual, *options.space_files}
        plan = plan_output_folder(make_output(tmp_path / "run"), "me/film", options, dataset=True, space=app)
        assert [name for name in plan.left_out if "/" in name] == ["app/keys.json", "app/notes.md", "app/votes.jsonl"]

    @pytest.mark.parametrize("name", ["gone.py", "../secret", "/etc/hostname"])
    def test_a_named_file_is_below_the_folder(self, tmp_path, name):
        (tmp_path / "secret").write_text("x")
        with pytest.raises(ValueError, match=f"There is no file '{name}' below .*app"):
            plan_space(make_app(tmp_path / "app"), "me/s", PushOptions(space_files=(name,)), models=[])
