# SPDX-License-Identifier: Apache-2.0
"""Cards say what the record says, all of it and no more, and the Hub accepts them."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, SpaceCard

from tests.hub.artefacts import make_record
from tests.hub_cards import card_errors
from trl_maxmin.hub import CardContext, component_card, dataset_card, mixture_card, policy_card, space_card
from trl_maxmin.hub.facts import curve
from trl_maxmin.hub.markdown import clean, code, labels, literal, number, plain, table
from trl_maxmin.run_record import RunRecord


GOLDEN = Path(__file__).resolve().parents[2] / "model_cards"


def renderer():
    spec = importlib.util.spec_from_file_location("render_cards", GOLDEN / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_cards(record):
    context = CardContext("me/film", license="mit", components={"concise": "me/c"}, mixture="me/m", dataset="me/d")
    return {
        "mixture": mixture_card(record, context),
        "component": component_card(record, "positive", context),
        "component adapter": component_card(record, "positive", CardContext("me/f", base_model="o/b"), peft=True),
        "policy": policy_card(record, context),
        "policy adapter": policy_card(record, CardContext("me/f", base_model="o/b"), peft=True),
        "dataset": dataset_card(record, context, {"results": "results.jsonl"}),
        "space": space_card(context, models=["me/m"], datasets=["me/d"]),
    }


def strings(value):
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    return [s for v in value for s in strings(v)] if isinstance(value, list) else [value]


class TestGolden:
    def test_are_what_the_code_renders(self):
        module = renderer()
        for name, text in module.render(module.read_record(GOLDEN)).items():
            assert (GOLDEN / name).read_text() == text, f"{name} is stale: run `make cards` and review the difference"

    @pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.glob("*.md") if p.name != "README.md"))
    def test_every_number_stands_in_the_record(self, name):
        """Numbers of tables and lists, at their printed precision, come from the record; none is invented."""
        record = renderer().read_record(GOLDEN)
        known = {x for x in strings(record.to_dict()) if isinstance(x, int | float) and not isinstance(x, bool)}
        rates = record.evaluation["win_rate"].values()
        means = [[rate["mean"] for rate in by_group.values()] for by_group in rates]
        known |= {max(values) - min(values) for values in means}  # the gap
        known |= {1 - x for x in record.reward["component_heldout_accuracy"].values()}
        counts = record.reward["component_annotators"]
        known |= {count / sum(counts.values()) for count in counts.values()}
        text = (GOLDEN / name).read_text().split("---\n", 2)[2].split("## Citation")[0]
        text = re.sub(r"<!--.*?-->|```.*?```|`[^`]*`|\]\([^)]*\)|95 %", "", text, flags=re.S)
        for shown in re.findall(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w.])", text):
            digits = len(shown.partition(".")[2])
            assert any(f"{x:.{digits}f}" == shown for x in known) or shown == "1", (name, shown)


class TestHub:
    @pytest.mark.parametrize("kind", all_cards(make_record()))
    @pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
    def test_validate(self, hub, kind, full):
        card = all_cards(make_record() if full else RunRecord())[kind]
        card.validate()
        assert hub.log[-1][:2] == ("POST", "/api/validate-yaml") and hub.log[-1][2] == 200
        type = {"dataset": "dataset", "space": "space"}.get(kind, "model")
        assert {"dataset": DatasetCard, "space": SpaceCard}.get(kind, ModelCard) is card.__class__
        assert card_errors(str(card), type) == []

    def test_the_validator_refuses(self):
        assert card_errors("---\nlicense: mine\n---\n", "model")
        assert card_errors("---\nmodel-index:\n- name: a\n  results:\n  - task: {type: x}\n---\n", "model")
        assert card_errors("no block", "space") and card_errors("---\nsdk: cobol\n---\n", "space")
        assert card_errors("---\nbase_model: /home/me\n---\n", "model")


class TestMetadata:
    def test_one_entry_per_group_with_plain_numbers(self):
        data = yaml.safe_load(str(policy_card(make_record(), CardContext("me/film"))).split("---\n")[1])
        (entry,) = data["model-index"]
        assert entry["name"] == "film"
        assert [r["dataset"]["config"] for r in entry["results"]] == ["concise", "positive"]
        rates = {r["dataset"]["config"]: r["metrics"][0] for r in entry["results"]}
        assert rates["positive"]["type"] == "win_rate" and rates["positive"]["value"] == 0.91
        assert rates["concise"]["args"]["interval_95"] == pytest.approx([0.87, 0.92])
        assert all(type(m["value"]) is float for r in entry["results"] for m in r["metrics"])

    @pytest.mark.parametrize("kind", ["component adapter", "policy adapter"])
    def test_adapters(self, kind):
        data = all_cards(make_record())[kind].data.to_dict()
        assert (data["library_name"], data["base_model"], data["base_model_relation"]) == ("peft", "o/b", "adapter")

    def test_models(self):
        data = {kind: card.data.to_dict() for kind, card in all_cards(make_record()).items()}
        assert data["component"]["library_name"] == data["policy"]["library_name"] == "transformers"
        assert data["mixture"]["library_name"] == "trl-maxmin"
        assert data["component"]["pipeline_tag"] == "text-classification"
        assert data["policy"]["pipeline_tag"] == "text-generation"
        assert all({"trl", "trl-maxmin"} <= set(entry["tags"]) for entry in data.values())
        assert "maxmin-rlhf" in data["policy"]["tags"]
        assert "base_model" not in data["policy"] and "base_model_relation" not in data["policy"]

    def test_one_reward_is_not_called_maxmin(self):
        record = make_record()
        del record.policy["curves"]["maxmin/utility/positive"]
        card = policy_card(record, CardContext("me/film"))
        assert "maxmin-rlhf" not in card.data.tags
        assert "conventional RLHF" in card.text and "worst-off group:" not in card.text

    def test_data_sets_of_the_hub_are_linked_and_files_are_not(self):
        record = make_record().update("reward", dataset={"name": "org/films"})
        assert mixture_card(record, CardContext("me/f")).data.datasets == ["org/films"]
        assert "datasets" not in mixture_card(make_record(), CardContext("me/f")).data.to_dict()


class TestText:
    @pytest.mark.parametrize("kind", all_cards(RunRecord()))
    def test_what_is_not_recorded_is_left_out(self, kind):
        text = all_cards(RunRecord())[kind].text
        for word in ("None", "nan", "Undefined", "| - |", "{{", "{%", "()"):
            said = re.sub(r"```.*?```", "", text.split("## Citation")[0], flags=re.S)
            assert word not in said, (kind, word)
        assert "| --- |" not in text.replace("---:", "---"), "an empty table"
        for line in text.split("## Citation")[0].split("```")[::2]:
            assert not re.search(r":\s*(\.|,|$)\s*$", line.replace("\n\n", "\n").split("\n")[-1]), (kind, line)

    def test_facts_of_the_mixture(self):
        text = mixture_card(make_record(), CardContext("me/f", components={"concise": "me/c"})).text
        for fact in (
            "| `positive` | 10 | 0.20 | 0.20 | 60 |",
            "| `positive` | 0.87 | 20 | 0.90 |",
            "[me/c](https://huggingface.co/me/c)",
            "annotators: 50",
            "EM kind: `soft`",
            "-7.5000 nats per annotator",
            "converged: yes",
            "| 2 | -0.2400 | 0.0000 | 0.0000 | yes |",
            "Adjusted Rand index: 0.97",
            "The lowest held-out accuracy here is 0.87, of `positive`",
            "`positive` was learned from 60 pairs",
            "statistical, not identities",
            "@inproceedings{chakraborty2024maxmin",
            "@software{trl_maxmin",
        ):
            assert fact in text, fact

    def test_facts_of_the_policy(self):
        text = policy_card(make_record(), CardContext("me/f", mixture="me/m", figure=True)).text
        for fact in (
            "| `positive` (minority) | 0.33 [0.30, 0.35] | ",
            "0.33 [0.30, 0.35]",
            "0.91 [0.88, 0.93]",
            "| `single` | `positive` | 0.33 [0.30, 0.35] | 0.62 |",
            "3.50 nats per reply",
            "welfare rule: `maxmin`",
            "utility: `zscore`",
            "| 2 | 0.400 |",
            "](comparison.png)",
            "- `maxmin`: `superb | <b>film</b>` (utility: `concise` 0.50, `positive` 1.00)",
            "[me/m](https://huggingface.co/me/m)",
        ):
            assert fact in text, fact

    def test_a_policy_without_evaluation_says_so(self):
        record = RunRecord().update("policy", name="x", algorithm="PPO")
        assert "No evaluation by group was recorded" in policy_card(record, CardContext("me/f")).text

    @pytest.mark.parametrize(
        "payload",
        [
            "<script>alert(1)</script>",
            "a | b",
            "`x` <img src=x onerror=alert(1)>",
            "[a](javascript:x)",
            "x\n\n# H",
            "---",
        ],
    )
    def test_foreign_text_stays_text(self, payload):
        record = make_record().update("evaluation", samples=[{"prompt": payload, "completions": {payload: payload}}])
        record.update("reward", component_names=[payload, "positive"], shares={payload: 0.8})
        record.evaluation["groups"] = [payload, "positive"]
        for card in (policy_card(record, CardContext("me/f")), mixture_card(record, CardContext("me/f"))):
            outside = re.sub(r"<!-- trl-maxmin [^\n]*-->|```.*?```", "", card.text, flags=re.S)
            outside = re.sub(r"`[^`\n]*`", "", outside)
            assert "<script" not in outside and "<img" not in outside and "javascript" not in outside
            assert "\n# H" not in card.text and str(card).count("\n---\n") == 1
            for rows in re.findall(r"(?:^\|.*\n)+", outside, flags=re.M):
                assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}) == 1, rows
            assert card_errors(str(card), "model") == []


@pytest.fixture(scope="module")
def diagnosed():
    """A record with what `diagnose` finds in a planted world, of which one component is named by hand."""
    from tests.evaluation.test_diagnosis import preferences
    from trl_maxmin.evaluation import diagnose

    found = diagnose(preferences(annotators=12, pairs=30), max_groups=2, num_init=1, num_resamples=100)
    source = {"name": "/home/ann/prefs.jsonl", "annotator_column": "who"}
    return make_record().replace("evaluation", **found.run_record_facts(source)), found


class TestDiagnosis:
    def test_a_mixture_says_what_was_found(self, diagnosed):
        record, found = diagnosed
        card = mixture_card(record, CardContext("me/f"))
        assert "## Does one reward suffice for these preferences?" in card.text and not card_errors(str(card), "model")
        assert plain(found.verdict()) in card.text
        for group, facts in found.by_group.items():
            start, gap = f"| `{group}` | {facts['share']:.2f}", facts["gap"]
            row = next(line for line in card.text.splitlines() if line.startswith(start))
            assert f"| {gap['mean']:.2f} [{gap['low']:.2f}, {gap['high']:.2f}] |" in row
        for line in found.assumptions:
            assert f"- {plain(line)}" in card.text, "no number without its assumptions"
        assert "it is a bound and orders nothing" in " ".join(card.text.split())
        assert f"on {found.num_pairs} pairs, 12 annotators, {found.num_prompts} prompts, with" in card.text
        assert "/home/ann" not in str(card)
        assert "Does one reward" not in policy_card(record, CardContext("me/f")).text, "that is the mixture's part"

    def test_a_column_is_explained_where_it_is(self, diagnosed):
        record, found = diagnosed
        without = found.to_dict()
        for own in without["by_group"].values():
            own.pop("mismatch"), own.pop("gap")
        text = mixture_card(make_record().replace("evaluation", diagnostics=without), CardContext("me/f")).text
        assert "`share`" not in text and "`mismatch`" not in text and "`gap`" not in text
        text = mixture_card(record, CardContext("me/f")).text
        assert "`mismatch`: total variation" in text and "`gap`: what the group loses" in text

    def test_a_record_without_one_says_nothing(self):
        assert "Does one reward suffice" not in mixture_card(make_record(), CardContext("me/f")).text

    def test_one_group_has_no_table(self, diagnosed):
        record, found = diagnosed
        one = found.to_dict() | {"num_groups": 1, "verdict": "No: one reward suffices."}
        text = mixture_card(make_record().replace("evaluation", diagnostics=one), CardContext("me/f")).text
        assert "No: one reward suffices." in text and "| mismatch" not in text and "`mismatch`" not in text

    def test_an_older_record_shows_no_bound(self, diagnosed):
        """Its `predicted` came from the most distant pair of groups, for every group."""
        older = diagnosed[1].to_dict() | {"epsilon": 0.3, "predicted_order": ["component_1", "component_0"]}
        older["by_group"] = {
            name: {key: value for key, value in facts.items() if key != "epsilon"}
            for name, facts in older["by_group"].items()
        }
        text = mixture_card(make_record().replace("evaluation", diagnostics=older), CardContext("me/f")).text
        assert "| gap |" in text and "predicted" not in text and "Predicted" not in text

    def test_names_of_groups_stay_text_and_stay_whole(self, diagnosed):
        name = "<img src=x> [a](b) | token_path"
        found = diagnosed[1].to_dict() | {
            "verdict": f"Yes: {name} loses.",
        }
        found["by_group"] = {name: found["by_group"]["component_0"]}
        record = make_record().replace("evaluation", diagnostics=found)
        assert name in record.part("run").evaluation["diagnostics"]["by_group"], "groups keep their names"
        outside = re.sub(r"`[^`\n]*`", "", mixture_card(record, CardContext("me/f")).text)
        assert "<img" not in outside and r"\[a\](b) \|" in outside


class TestPrivacy:
    def test_public_part(self):
        record = make_record().update(
            "reward",
            dataset={"name": "/home/ann/prefs.jsonl", "annotators_lost": ["ann", "bob"]},
            training={"hub_token": "hf_abcdefgh1234", "output_dir": "/home/ann/out", "learning_rate": 0.1},
            base_model="../models/tiny",
            em={"note": "used hf_abcdefgh1234"},
        )
        record.evaluation["win_rate"]["secret_path"] = {"concise": {"mean": 0.5, "low": 0.4, "high": 0.6}}
        text = str(record.part("run").to_dict())
        for private in ("ann", "bob", "hf_abc", "/home", "../models"):
            assert private not in text.replace("annotators", "").replace("annotator", "").replace("annealing", "")
        assert record.part("run").reward["dataset"]["name"] == "./prefs.jsonl"
        assert "secret_path" in record.part("run").evaluation["win_rate"], "policies keep their names"
        assert record.reward["dataset"]["annotators_lost"] == ["ann", "bob"], "the record itself is not changed"

    def test_cards_use_it(self):
        record = make_record().update("reward", dataset={"name": "/home/ann/prefs.jsonl"})
        for kind, card in all_cards(record).items():
            assert "/home" not in str(card), kind


class TestConventions:
    def test_paper_license_and_language(self):
        for kind, card in all_cards(make_record()).items():
            assert "arxiv:2402.08925" in card.data.tags, kind
            assert "(https://arxiv.org/abs/2402.08925)" in card.text
        context = CardContext("me/f", license="mit", language=["en", "de"], datasets=["org/films"])
        data = mixture_card(make_record(), context).data.to_dict()
        assert (data["license"], data["language"], data["datasets"]) == ("mit", ["en", "de"], ["org/films"])

    def test_a_base_that_is_only_here(self):
        record = make_record().update("reward", base_model="/home/ann/tiny").update("policy", base_model="../tiny")
        context = CardContext("me/f")
        for card in (
            mixture_card(record, context),
            component_card(record, "positive", context),
            policy_card(record, context),
        ):
            assert "It started from `tiny`, which is on the machine of its author and not on the Hub" in card.text
            assert "--base_model namespace/name" in card.text and "base_model" not in card.data.to_dict()
        text = policy_card(record, context, peft=True).text
        assert "this adapter does not load without it" in text
        assert "on the machine of its author" not in policy_card(record, CardContext("me/f", base_model="o/b")).text

    def test_welfare_parameters_are_those_of_the_rule(self):
        every = {"welfare_temperature": 0.5, "welfare_step_size": 0.1, "welfare_floor": 0.05}
        for rule, shown, hidden in (
            ("maxmin", ["welfare floor"], ["temperature", "step size"]),
            ("softmin", ["welfare temperature", "welfare floor"], ["step size"]),
            ("mirror", ["welfare step size"], ["temperature"]),
        ):
            record = make_record().update("policy", welfare={"rule": rule, **every})
            text = policy_card(record, CardContext("me/f")).text
            assert all(f"- {word}: " in text for word in shown), rule
            assert not any(f"{word}: " in text for word in hidden), rule

    def test_share_of_annotators_is_of_those_who_were_counted(self):
        """9 of 10, and not the 0.83 that a Dirichlet prior makes of it."""
        record = RunRecord().update(
            "reward", component_names=["a", "b"], mixing_weights=[0.83, 0.17], component_annotators={"a": 9, "b": 1}
        )
        text = mixture_card(record, CardContext("me/f")).text
        assert (
            "| `a` | 9 | 0.90 | 0.83 |" in text
            and "| component | annotators | share of annotators | mixing weight |" in text
        )
        record = RunRecord().update("reward", component_names=["a", "b"], mixing_weights=[0.83, 0.17])
        text = mixture_card(record, CardContext("me/f")).text
        assert "| component | mixing weight |" in text and "share of annotators" not in text

    def test_sentences_about_columns(self):
        record = RunRecord().update("reward", component_names=["a", "b"], component_pairs={"a": 10, "b": 5})
        text = mixture_card(record, CardContext("me/f")).text
        for word in ("share of annotators", "mixing weight", "held-out accuracy`", "temperature"):
            assert word not in text, word

    def test_the_value_head_is_said(self):
        assert "critic lies beside it" in policy_card(make_record(), CardContext("me/f", value_head=True)).text
        assert "critic" not in policy_card(make_record(), CardContext("me/f")).text

    def test_the_tokenizer_of_an_adapter_is_its_base_s_where_it_has_none(self):
        text = policy_card(make_record(), CardContext("me/f", base_model="o/b", tokenizer=False), peft=True).text
        assert 'AutoTokenizer.from_pretrained("o/b")' in text and 'CausalLM.from_pretrained("me/f")' in text


def widest(card):
    """Characters of the widest row of a table, each cell as wide as its longest word."""
    widths = [0]
    for rows in re.findall(r"(?:^\|.*\n?)+", card.text, flags=re.M):
        cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows.strip().splitlines() if "---" not in row]
        columns = zip(*cells, strict=True)
        widths.append(sum(max(max(map(len, cell.split()), default=0) for cell in column) + 3 for column in columns))
    return max(widths)


class TestWidth:
    """700 px hold 84 characters; tables do not break words."""

    @pytest.mark.parametrize("name", ["group {}", "people-who-like-very-long-films-{}", "x" * 80 + "{}"])
    def test_eight_groups_six_policies(self, name):
        groups = [name.format(i) for i in range(8)]
        policies = ["reference", *(f"policy-{i}-of-mine" for i in range(5))]
        rate, each = {"mean": 0.5, "low": 0.4, "high": 0.6}, functools.partial(dict.fromkeys, groups)
        record = RunRecord()
        record.update(
            "reward", component_names=groups, mixing_weights=[0.125] * 8, num_components=8,
            component_annotators=each(1000), component_pairs=each(100000), component_heldout_accuracy=each(0.7),
            component_heldout_pairs=each(10000), calibration={"temperature": [1.0] * 8},
            heldout_accuracy={policy: each(0.5) for policy in policies},
        )  # fmt: skip
        record.update(
            "evaluation", groups=groups, minority=groups[-1],
            gold_utility={p: each(-1.25) for p in policies}, win_rate={p: each(rate) for p in policies[1:]},
            samples=[{"prompt": "p", "completions": dict.fromkeys(policies, "y " * 99),
                      "utility": {p: each(0.5) for p in policies}}],
        )  # fmt: skip
        record.update("policy", name=policies[-1], algorithm="PPO")
        for card in (mixture_card(record, CardContext("me/f")), policy_card(record, CardContext("me/f"))):
            assert 40 < widest(card) <= 84
            shown = [row for row in card.text.splitlines() if row.startswith("|")]
            assert all(sum(f"`{g}" in row for row in shown) >= 1 for g in (labels(groups)[g][1:25] for g in groups))
        text = policy_card(record, CardContext("me/f")).text
        for policy in policies:
            assert text.count(f" `{policy}` |") + text.count(f" `{policy}` (this model) |") >= 1, "a column is lost"


class TestPieces:
    def test_table(self):
        assert table(["a", "b"], []) == ""
        assert table(["a", "b", "c"], [["x", "", "1.0"], ["y", "", ""]]) == (
            "| a | c |\n| --- | ---: |\n| x | 1.0 |\n| y | - |"
        )
        wide = table(["group", *"abcdefgh"], [["`g`", *["0.12 [0.10, 0.14]"] * 8]])
        assert wide.count("| `g` |") == 2 and wide.count("0.12 [0.10, 0.14]") == 8

    def test_code(self):
        assert code("a`b\nc|d") == "`a'b c|d`" and code("") == "(empty)"
        assert table(["x"], [[code("a|b")]]).endswith("| `a\\|b` |")
        assert len(code("x" * 1000)) < 320

    def test_clean(self):
        assert clean("a\u202eb\x00\ud800 é 日本 👩\u200d🚀") == "a\\u202eb\\x00\\ud800 é 日本 👩\u200d🚀"
        assert literal("a\"b```\n'") == '"a\\"b\\u0060\\u0060\\u0060 \'"'

    def test_labels_differ(self):
        names = ["x" * 30 + str(i) + "y" * 20 for i in range(3)]
        assert len(set(labels(names).values())) == 3 and list(labels(["a", "b"]).values()) == ["`a`", "`b`"]

    def test_numbers(self):
        assert [number(x) for x in (1, 1.234, True, None, 1e12, 10**400)] == [
            "1",
            "1.23",
            "",
            "",
            "1e+12",
            "over 1e300",
        ]

    def test_curve(self):
        points = {"u": [[i, i / 10] for i in range(100)]}
        rows = curve(points, "u", "utility").splitlines()[2:]
        assert len(rows) == 8 and rows[0] == "| 0 | 0.000 |" and rows[-1] == "| 99 | 9.900 |"
        assert curve({}, "u", "utility") == ""
