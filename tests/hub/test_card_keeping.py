# SPDX-License-Identifier: Apache-2.0
"""A card and a record survive: what was pulled and is pushed is what is there, and what people add stays."""

import json
import logging

import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from transformers import pipeline

from tests.hub.artefacts import make_output, make_record
from tests.hub_cards import card_errors
from tests.trainer.ppo_helpers import gpt2
from trl_maxmin import MixtureRewardModel
from trl_maxmin.hub import (
    CardContext,
    HubError,
    PushOptions,
    mixture_card,
    plan_output_folder,
    policy_card,
    publish,
    pull,
)
from trl_maxmin.hub.card_keeping import _SECTION, is_edited, keep, what_is_lost
from trl_maxmin.hub.cards import card_files
from trl_maxmin.hub.collection import collection_items, publish_collection
from trl_maxmin.hub.output import plan_single_model
from trl_maxmin.run_record import RunRecord


def push(folder, base="me/film", **options):
    done = publish(plan_output_folder(folder, base, PushOptions(**options), dataset=True).repos)
    publish_collection(*base.split("/"), collection_items(done))
    return [published.status for published in done]


def stored(hub, base="me/film"):
    """(repository, file) -> bytes of everything on the Hub."""
    return {
        (repo_id.removeprefix(base), name): blob.data
        for (_, repo_id), repo in hub.store.repos.items()
        for name, blob in repo.commit("main").files.items()
        if repo_id.startswith(base)
    }


def edit(hub, repo_id, change, repo_type="model"):
    readme = hub.store.repos[repo_type, repo_id].commit("main").files["README.md"].data.decode()
    changed = change(readme)
    assert changed != readme
    operations = [CommitOperationAdd("README.md", changed.encode())]
    HfApi().create_commit(repo_id, operations, commit_message="by hand", repo_type=repo_type)
    return changed


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


class TestPullThenPush:
    def test_a_whole_run(self, hub, tmp_path):
        make_output(tmp_path / "out")
        push(tmp_path / "out", license="mit", language=["en"], datasets=("org/films",))
        before = stored(hub)
        pull("me/film", tmp_path / "in")
        hub.log.clear()
        assert set(push(tmp_path / "in")) == {"unchanged"} and stored(hub) == before
        assert not [path for method, path, _ in hub.log if method == "POST" and "/items" not in path]
        texts = [data for (_, name), data in before.items() if name == "README.md"]
        assert len(texts) == 6 and all(front(text.decode())["license"] == "mit" for text in texts)
        assert b"org/films" in before["-mixture", "README.md"]

    def test_to_other_names(self, hub, tmp_path):
        """The same cards, records and figures, but for the names of the repositories."""
        make_output(tmp_path / "out")
        push(tmp_path / "out", license="mit")
        pull("me/film", tmp_path / "in")
        push(tmp_path / "in", "me/other")
        old, new = stored(hub), stored(hub, "me/other")
        assert old.keys() == new.keys() and len(old) > 20
        for key, data in old.items():
            if key[1] == "README.md":  # the marks hold a digest of the text
                strip = lambda text: _SECTION.sub(lambda m: m["body"], text)  # noqa: E731
                assert strip(new[key].decode()) == strip(data.decode()).replace("film-", "other-").replace(
                    "# film", "# other"
                ), key
            else:
                assert new[key] == data.replace(b"me/film", b"me/other"), key

    @pytest.mark.parametrize("name", ["mixture", "policy-maxmin", "policy-reference"])
    def test_one_repository(self, hub, tmp_path, name):
        """Nothing of the run lies beside it, and its links are in its record."""
        make_output(tmp_path / "out")
        push(tmp_path / "out", license="mit", base_model="org/base")
        pull(f"me/film-{name}", tmp_path / "in")
        (published,) = publish(plan_single_model(tmp_path / "in", f"me/film-{name}").repos)
        assert published.status == "unchanged"

    def test_links_are_of_the_record(self, hub, tmp_path):
        make_output(tmp_path / "out")
        push(tmp_path / "out")
        (entry,) = pull("me/film-policy-maxmin", tmp_path / "in")
        record = RunRecord.load(entry.folder)
        assert record.kind == "policy" and record.links == {
            "base_model": "me/film-policy-reference", "mixture": "me/film-mixture", "dataset": "me/film-evaluation"
        }  # fmt: skip

    def test_a_new_evaluation_wins_over_the_pulled_one(self, hub, tmp_path):
        make_output(tmp_path / "out")
        push(tmp_path / "out")
        pull("me/film", tmp_path / "in")
        utility = {"reference": {"concise": 0.1}, "maxmin": {"concise": 0.77}}
        RunRecord().update("evaluation", groups=["concise"], gold_utility=utility).save(tmp_path / "in")
        push(tmp_path / "in")
        files = hub.store.repos["model", "me/film-policy-maxmin"].commit("main").files
        assert b"| `concise` | 0.10 | 0.77 |" in files["README.md"].data
        assert RunRecord.from_dict(json.loads(files["run_record.json"].data)).policy["algorithm"] == "PPO"


class TestParts:
    def test_each_repository_has_its_own(self, hub, tmp_path):
        make_output(tmp_path / "out")
        push(tmp_path / "out")
        files = stored(hub)
        records = {repo: json.loads(data) for (repo, name), data in files.items() if name == "run_record.json"}
        stages = {repo: sorted(set(record) & {"reward", "policy", "evaluation"}) for repo, record in records.items()}
        assert stages == {
            "-mixture": ["reward"], "-reward-concise": ["reward"], "-reward-positive": ["reward"],
            "-policy-maxmin": ["evaluation", "policy"], "-policy-reference": ["evaluation", "policy"],
            "-evaluation": ["evaluation"],
        }  # fmt: skip
        assert records["-reward-positive"]["reward"]["component_pairs"] == {"positive": 60}
        assert records["-policy-reference"]["policy"] == {"name": "reference"}
        assert {record["kind"] for record in records.values()} == {"mixture", "component", "policy", "dataset"}


class TestWhatPeopleWrite:
    def test_on_the_hub(self, hub, tmp_path):
        """Licence, tags and text that somebody adds there survive a push from the machine that knows none of them."""
        make_output(tmp_path / "out")
        push(tmp_path / "out")

        def change(text):
            text = text.replace("tags:\n", "license: mit\nlanguage: en\nthumbnail: a.png\ntags:\n- mine\n")
            return (
                text.replace("<!-- trl-maxmin ", "Read me first.\n\n<!-- trl-maxmin ", 1) + "\n## Thanks\n\nTo all.\n"
            )

        edit(hub, "me/film-mixture", change)
        push(make_output(tmp_path / "out", version=1))
        text = hub.store.repos["model", "me/film-mixture"].commit("main").files["README.md"].data.decode()
        data = front(text)
        assert (data["license"], data["language"], data["thumbnail"]) == ("mit", "en", "a.png")
        assert data["tags"][-1] == "mine" and data["tags"].count("trl") == 1
        assert text.index("Read me first.") < text.index("# film-mixture") < text.index("## Thanks")
        assert "0.88" in text, "the numbers are the new ones"
        assert card_errors(text, "model") == []
        before = stored(hub)
        assert set(push(tmp_path / "out")) == {"unchanged"} and stored(hub) == before

    def test_given_anew_wins(self, hub, tmp_path):
        make_output(tmp_path / "out")
        push(tmp_path / "out", license="mit")
        push(tmp_path / "out", license="apache-2.0")
        push(tmp_path / "out")
        text = hub.store.repos["model", "me/film-mixture"].commit("main").files["README.md"].data.decode()
        assert front(text)["license"] == "apache-2.0"

    def test_between_the_marks_is_said(self, hub, tmp_path, caplog):
        make_output(tmp_path / "out")
        push(tmp_path / "out")
        edit(hub, "me/film-mixture", lambda text: text.replace("learned from people", "learnt from folk"))
        with caplog.at_level(logging.WARNING):
            push(tmp_path / "out")
        assert "README.md of me/film-mixture: it was changed between its marks" in caplog.text
        assert "It stays in the history, at commit" in caplog.text
        caplog.clear()
        pull("me/film", tmp_path / "in")
        readme = tmp_path / "in" / "mixture" / "README.md"
        readme.write_text(readme.read_text().replace("learned from people", "learnt from folk"))
        edited = readme.read_text()
        with caplog.at_level(logging.WARNING):
            assert set(push(tmp_path / "in")) == {"unchanged"}
        assert f"{readme}: it was changed between its marks" in caplog.text and readme.read_text() == edited

    def test_somebody_else_s_card(self, hub, tmp_path, caplog):
        """Of a card that is not ours, such as PEFT's with a path for its base, what people state is kept."""
        HfApi().create_repo("me/film-mixture")
        block = "license: mit\nbase_model: o/x\ntags:\n- base_model:/home/ann/x\ndatasets:\n- a/b"
        card = f"---\n{block}\n---\n# Hi"
        operations = [CommitOperationAdd("README.md", card.encode())]
        HfApi().create_commit("me/film-mixture", operations, commit_message="by hand")
        make_output(tmp_path / "out")
        with caplog.at_level(logging.WARNING):
            push(tmp_path / "out")
        text = hub.store.repos["model", "me/film-mixture"].commit("main").files["README.md"].data.decode()
        assert front(text)["license"] == "mit" and front(text)["datasets"] == ["a/b"]
        assert (
            "/home" not in text
            and "o/x" not in text
            and "# Hi" not in text
            and "it was not made by this package" in caplog.text
        )


class TestFromPretrained:
    """A mixture takes record and card from beside the files that it was loaded from."""

    @pytest.fixture
    def mixture(self, hub, word_tokenizer):
        torch.manual_seed(0)
        gpt2().push_to_hub("me/base")
        word_tokenizer.push_to_hub("me/base")
        mixture = MixtureRewardModel.from_base("me/base", 2, "head", ["concise", "positive"])
        mixture.push_to_hub("me/mixture", record=make_record(), license="mit")
        return mixture

    def test_of_the_hub(self, hub, mixture, tmp_path):
        loaded = MixtureRewardModel.from_pretrained("me/mixture")
        assert loaded.push_to_hub("me/mixture").status == "unchanged"
        loaded.push_to_hub("me/copy")
        text = hub.store.repos["model", "me/copy"].commit("main").files["README.md"].data.decode()
        assert "| `positive` | 0.87 | 20 | 0.90 |" in text and front(text)["license"] == "mit"
        loaded.push_components_to_hub("me/copy-{name}")
        text = hub.store.repos["model", "me/copy-positive"].commit("main").files["README.md"].data.decode()
        assert "| `positive` | 0.87 | 20 | 0.90 |" in text and "`concise`" in text

    def test_of_the_commit_that_was_loaded(self, hub, mixture):
        loaded = MixtureRewardModel.from_pretrained("me/mixture")
        mixture.push_to_hub("me/mixture", record=make_record(version=3))
        loaded.push_to_hub("me/copy")
        record = json.loads(hub.store.repos["model", "me/copy"].commit("main").files["run_record.json"].data)
        assert record["seed"] == 0

    def test_of_a_folder(self, hub, mixture, tmp_path):
        pull("me/mixture", tmp_path)
        assert MixtureRewardModel.from_pretrained(tmp_path).push_to_hub("me/mixture").status == "unchanged"

    def test_of_a_repository_without_a_record(self, hub, mixture):
        HfApi().delete_file("run_record.json", "me/mixture")
        HfApi().delete_file("README.md", "me/mixture")
        MixtureRewardModel.from_pretrained("me/mixture").push_to_hub("me/copy")
        text = hub.store.repos["model", "me/copy"].commit("main").files["README.md"].data.decode()
        assert "| `positive` | 0.50 |" in text and "held-out accuracy`" not in text

    def test_when_the_hub_does_not_answer(self, hub, mixture):
        loaded = MixtureRewardModel.from_pretrained("me/mixture")
        hub.inject(503, path="resolve", lasting=True)
        with pytest.raises(HubError, match="Reading README.md of me/mixture"):
            loaded.push_to_hub("me/copy")
        assert ("model", "me/copy") not in hub.store.repos

    def test_the_label_of_a_component_is_its_name(self, hub, mixture, tmp_path):
        mixture.save_component("positive", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["id2label"] == {"0": "positive"} and config["label2id"] == {"positive": 0}
        (said,) = pipeline("text-classification", str(tmp_path), function_to_apply="none")("the film")
        assert said["label"] == "positive"


class TestKeep:
    card = str(mixture_card(make_record(), CardContext("me/f")))

    def test_twice_changes_nothing(self):
        earlier = "---\nlicense: mit\n---\nAbove\n" + self.card.split("---\n", 2)[2] + "Below"
        once = keep(self.card, earlier)
        assert keep(self.card, once) == once == keep(once, once) == keep(once, None)
        assert "Above" in once and once.endswith("Below\n")

    def test_line_ends_of_other_systems(self):
        earlier = self.card.replace("\n", "\r\n") + "Below\r\n"
        assert not is_edited(earlier) and keep(self.card, earlier).endswith("Below\n")

    def test_a_data_set_or_base_that_is_no_longer_true_is_not_kept(self):
        """They came from the record, not from a person."""
        record = make_record().update("reward", dataset={"name": "org/films"}, base_model="org/base")
        earlier = str(mixture_card(record, CardContext("me/f")))
        assert front(earlier)["datasets"] == ["org/films"] and front(earlier)["base_model"] == "org/base"
        now = front(keep(self.card, earlier))
        assert not {"datasets", "base_model", "base_model_relation"} & set(now)
        given = str(mixture_card(make_record(), CardContext("me/f", base_model="o/b", datasets=["a/b"])))
        now = front(keep(self.card, given))
        assert (now["datasets"], now["base_model"], now["base_model_relation"]) == (["a/b"], "o/b", "finetune")

    @pytest.mark.parametrize(
        "block",
        [
            "license: [",
            "a: &a [*a]",
            "!!python/object/apply:os.system [id]",
            "- 1",
            "license: {a: b}\nlanguage: 3",
            "base_model: /home/ann/model\ndatasets: [/home/ann/data]",
            "license: hf_abcdefgh1234",
        ],
    )
    def test_metadata_that_nobody_can_read(self, block):
        earlier = f"---\n{block}\n---\n" + self.card.split("---\n", 2)[2]
        text = keep(self.card, earlier)
        assert "/home" not in text and "hf_abc" not in text and isinstance(front(text), dict)

    def test_tokens_in_what_people_wrote(self):
        text = keep(self.card, self.card + "\nmine: hf_abcdefgh1234\n")
        assert text.endswith("mine: hf_***\n")

    def test_an_enormous_one_is_ignored(self):
        assert keep(self.card, self.card + "x" * 2**20) == self.card

    def test_what_is_lost(self):
        assert what_is_lost(self.card) is None and what_is_lost("---\nlicense: mit\n---\n") is None
        assert "not made by this package" in what_is_lost("# Mine")

    def test_files_are_a_function_of_what_they_say(self):
        record = make_record().update("policy", base_model="/home/ann/x", dataset={"name": "a/b/c.jsonl"})
        context = CardContext("me/f", license="mit", tags=["t"], mixture="me/m", dataset="me/d", figure=True)
        once = card_files("policy", "maxmin", record, context)
        part = RunRecord.from_dict(json.loads(once["run_record.json"]))
        again = card_files(
            "policy", "maxmin", part, CardContext("me/f", figure=True), earlier=once["README.md"].decode()
        )
        assert again == once and "me/m" in policy_card(part, CardContext("me/f")).text
