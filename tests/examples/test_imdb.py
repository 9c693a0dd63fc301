"""The IMDb example in miniature, on reviews made up here, and its error where there are no data."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_maxmin import MixtureRewardModel
from trl_maxmin.run_record import RunRecord


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "imdb"
OPENERS = "the this that our my his her one another every some any".split()
NOUNS = "film movie plot cast story music ending hero scene song actor script".split()
PRAISE, BLAME = "superb lovely great moving".split(), "awful dull bad boring".split()


@pytest.fixture
def example(monkeypatch):
    """The example's modules, importable as they are for the script itself."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    before = set(sys.modules)
    import train_imdb

    yield train_imdb
    for name in set(sys.modules) - before:
        if name.startswith(("imdb_", "train_imdb")):
            del sys.modules[name]


def made_up_review(rng: np.random.Generator, label: str) -> str:
    sentences = []
    for _ in range(rng.integers(1, 4)):
        subject = f"{rng.choice(OPENERS)} {rng.choice(NOUNS)} and {rng.choice(OPENERS)} {rng.choice(NOUNS)}"
        sentences.append(f"{subject} were {rng.choice(PRAISE if label == 'pos' else BLAME)}.")
    # A tag, and a line separator that is no end of a line in JSON lines.
    return "<br />".join(sentences) + "\u2028"


@pytest.fixture
def data_dir(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"split": split, "label": label, "text": made_up_review(rng, label)}
        for split, count in (("train", 150), ("test", 60))
        for label in ("pos", "neg")
        for _ in range(count)
    ]
    folder = tmp_path / "reviews"
    folder.mkdir()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "tiny_labelled.jsonl").write_text(lines, encoding="utf-8")
    unlabelled = [json.dumps({"text": made_up_review(rng, "pos")}, ensure_ascii=False) for _ in range(20)]
    (folder / "tiny_unsup.jsonl").write_text("\n".join(unlabelled), encoding="utf-8")
    return folder


def miniature(data_dir: Path, output_dir: Path, **options) -> list[str]:
    settings = {
        "data_dir": data_dir,
        "output_dir": output_dir,
        "policy": "none",
        "vocab_size": 330,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "max_new_tokens": 24,
        "pretrain_steps": 60,
        "pretrain_learning_rate": 1e-2,
        "batch_size": 16,
        "num_annotators": 10,
        "preference_prompts": 60,
        "pairs": 6,
        "heldout_pairs": 2,
        "reward_steps": 2,
        "train_prompts": 20,
        "policy_steps": 2,
        "eval_prompts": 20,
        **options,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_whole_script_in_miniature(example, data_dir, tmp_path):
    output = tmp_path / "out"
    example.main(miniature(data_dir, output, oracle=True))

    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["groups"] == ["concise", "positive"] and report["minority"] == "positive"
    assert report["sentiment_accuracy"] > 0.9  # the made-up reviews name their label
    assert set(report["gold_utility"]) == {"reference", "single", "maxmin", "oracle"}
    assert set(report["win_rate"]) == {"single", "maxmin", "oracle"}
    for by_group in report["win_rate"].values():
        assert all(0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1 for rate in by_group.values())
    assert set(report["em"]["heldout_accuracy"]) == {"mixture", "single"}
    assert math.isclose(sum(report["em"]["mixing_weights"]), 1, abs_tol=1e-3)
    assert report["num_prompts"] == 20
    assert (output / "comparison.png").stat().st_size > 10_000

    record = RunRecord.load(output)
    assert record.evaluation["win_rate"] == report["win_rate"]
    assert record.policy["curves"]["maxmin/worst_utility"][-1][0] == 2
    mixture = MixtureRewardModel.from_pretrained(output / "mixture")
    assert mixture.component_names == report["em"]["component_names"] and "concise" in mixture.component_names
    policy = AutoModelForCausalLM.from_pretrained(output / "policies" / "maxmin")
    tokenizer = AutoTokenizer.from_pretrained(output / "policies" / "maxmin")
    # The saved tokenizer puts BOS in front, as the policy was trained.
    assert tokenizer("the film")["input_ids"][0] == tokenizer.bos_token_id == policy.config.bos_token_id


def test_given_policy_is_taken(example, data_dir, tmp_path):
    import imdb_data
    import imdb_options
    import imdb_policy
    import imdb_stages
    from rich.console import Console

    tokenizer = imdb_policy.train_tokenizer(["the film was superb"] * 50, 300)
    given = imdb_policy.new_policy(tokenizer, 32, 1, 2, seed=3)
    imdb_policy.save_policy(given, tokenizer, tmp_path / "policy")
    arguments = imdb_options.ImdbArguments(policy=str(tmp_path / "policy"), pretrain_steps=0)
    reviews = imdb_data.load_reviews(str(data_dir))
    model, _ = imdb_stages.build_reference(arguments, reviews, np.random.default_rng(0), Console())
    for name, parameter in given.named_parameters():
        assert model.get_parameter(name).equal(parameter)


def test_reward_reads_the_first_blocks(example):
    import imdb_policy
    import imdb_stages

    tokenizer = imdb_policy.train_tokenizer(["the film was superb"] * 50, 300)
    policy = imdb_policy.new_policy(tokenizer, 32, 3, 2, seed=3).eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        states = policy.transformer(ids, output_hidden_states=True).hidden_states
        for count in (0, 1, 2):
            shorter = imdb_stages.first_blocks(policy, count)
            expected = policy.transformer.ln_f(states[count])
            torch.testing.assert_close(shorter.transformer(ids).last_hidden_state, expected)
    assert shorter.config.n_layer == 2 and policy.config.n_layer == 3 == len(policy.transformer.h)
    assert imdb_stages.first_blocks(policy, None).config.n_layer == 3
    for count in (-1, 4):
        with pytest.raises(ValueError, match=f"reward_layers must lie in 0 ... 3, .*got {count}"):
            imdb_stages.first_blocks(policy, count)


def test_missing_data_name_the_set_and_the_option(example, tmp_path, capsys):
    with pytest.raises(SystemExit, match="stanfordnlp/imdb.*--data_dir") as error:
        example.main(miniature(tmp_path / "nowhere" / "imdb", tmp_path / "out"))
    assert error.value.code != 0
    assert not (tmp_path / "out").exists()


def test_folder_without_reviews(example, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="labelled.*--data_dir stanfordnlp/imdb"):
        example.main(miniature(tmp_path / "empty", tmp_path / "out"))


def test_hub_ids_go_to_the_hub(example, monkeypatch):
    import imdb_data

    rows = [{"text": "A film.<br />Good", "label": 1}, {"text": "Bad", "label": 0}]
    splits = {"train": rows, "test": rows[:1], "unsupervised": [{"text": "So so", "label": -1}]}
    asked = []
    monkeypatch.setattr(imdb_data, "load_dataset", lambda name: asked.append(name) or splits)
    reviews = imdb_data.load_reviews("stanfordnlp/imdb")
    assert asked == ["stanfordnlp/imdb"]
    assert reviews.train == ["A film. Good", "Bad"] and reviews.train_labels == [1, 0]
    assert reviews.for_training == ["A film. Good", "Bad", "So so"]


def test_lines_end_at_newlines_only(example, data_dir):
    import imdb_data

    reviews = imdb_data.load_reviews(str(data_dir))
    assert (len(reviews.train), len(reviews.test), len(reviews.unlabelled)) == (300, 120, 20)
    assert sum(reviews.train_labels) == 150


def test_openings_end_with_sentences(example):
    import imdb_data
    import imdb_policy

    text = "The film was superb. I loved it! But the music was bad and the ending even worse."
    tokenizer = imdb_policy.train_tokenizer([text] * 20, 330)
    rng = np.random.default_rng(0)
    limit = len(tokenizer("The film was superb. I loved it!")["input_ids"])
    found = {tokenizer.decode(ids) for _ in range(20) for ids in imdb_data.openings([text], tokenizer, limit, rng)}
    assert found == {"The film was superb.", "The film was superb. I loved it!"}
    assert imdb_data.openings([text], tokenizer, 2, rng) == []


def test_annotators_follow_their_groups_wish(example):
    import imdb_gold
    from imdb_policy import Replies

    replies = Replies(["short", "a long and great reply", "cut"], [1, 5, 9], [True, True, False])
    utilities = {"concise": np.array([0.9, 0.5, 0.1]), "positive": np.array([0.2, 0.9, 0.9])}
    pairs = imdb_gold.compare(["p"] * 3, replies, utilities, ["concise", "positive"], 200, np.random.default_rng(0))
    won = {group: [] for group in imdb_gold.GROUPS}
    for row in pairs:
        assert "cut" not in (row["chosen"], row["rejected"])
        won[row["group"]].append(row["chosen"] == "short")
    # The two differ by sqrt(2) spreads, at a temperature of a quarter spread: log-odds of 4 sqrt(2).
    expected = 1 / (1 + math.exp(-4 * math.sqrt(2)))
    assert abs(np.mean(won["concise"]) - expected) < 0.03
    assert abs(np.mean(won["positive"]) - (1 - expected)) < 0.03


def test_gold_rewards_are_the_log_odds_of_the_annotators(example):
    """So that on the scale of win rates the ceiling means what a learned reward means."""
    import imdb_gold
    from imdb_policy import Replies

    replies = Replies(["short", "longer", "cut"], [1, 5, 9], [True, True, False])
    utilities = {"concise": np.array([0.9, 0.5, 0.1])}
    noise = imdb_gold.gold_noise(["p"] * 3, replies, utilities)
    # Spread within the prompt, over the replies that ended: 0.4 / sqrt(2); a quarter of it is one unit of log-odds.
    assert noise == {"concise": pytest.approx(0.25 * 0.4 / math.sqrt(2))}
    gold = imdb_gold.GoldUtilities(lambda texts: np.full(len(texts), 0.5), limit=10)
    concise, positive = gold.reward_functions(2, {"concise": 0.1, "positive": 0.25})
    ids = [[5, 2], [5, 6, 7, 8, 2]]
    assert concise(["p", "p"], ["a", "b"], ids) == pytest.approx([9.0, 6.0])
    assert positive(["p", "p"], ["a", "b"], ids) == pytest.approx([2.0, 2.0])


def test_peak_memory_of_a_gpu_is_reported_where_there_is_one(example, monkeypatch):
    import imdb_report

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(imdb_report.peak_memory_mb()) == ["peak_rss_mb"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert imdb_report.peak_memory_mb()["peak_gpu_mb"] == 3.0


@pytest.mark.parametrize(("name", "value"), [("minority_share", 0.0), ("utility", "raw"), ("trainer", "dpo")])
def test_options_are_checked(example, name, value):
    import imdb_options

    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        imdb_options.ImdbArguments(**{name: value})


def test_an_untrained_policy_is_no_reference(example, data_dir, tmp_path):
    argv = ["--data_dir", str(data_dir), "--policy", "none", "--pretrain_steps", "0", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="pretrain_steps=0 .*there is none at none.*--pretrain_steps 2000"):
        example.main(argv)
