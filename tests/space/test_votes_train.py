# SPDX-License-Identifier: Apache-2.0
"""The loop closes: `trl-maxmin reward` trains on the file of the page's votes as it is."""

import json
from types import SimpleNamespace

import pytest
from transformers import AutoModel

from trl_maxmin.cli import main
from trl_maxmin.space.config import SpaceConfig


pytestmark = pytest.mark.slow


def test_votes_of_the_page_train_a_mixture(run_folder, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="Gradio is not installed (pip install trl-maxmin[space])")
    from trl_maxmin.space.scoring import Studio
    from trl_maxmin.space.votes import Ballot
    from trl_maxmin.space.wiring import Handlers

    monkeypatch.chdir(tmp_path)
    config = SpaceConfig(run=str(run_folder), max_new_tokens=8, baseline_replies=4, requests_per_minute=1000)
    studio = Studio.load(config)
    for policy in studio.policies.values():
        policy.stop |= set(range(0, policy.model.config.vocab_size, 4))  # they have not learned to end by themselves
    handlers = Handlers(studio, Ballot("votes"))
    expected = 0
    # Two kinds of visitors: some like the longest answer, some the shortest; some say which group they are of.
    for visitor in range(6):
        request = SimpleNamespace(session_hash=str(visitor))
        for turn in range(3):
            prompt = f"war film with {('dogs', 'spies', 'monks')[turn]} and ghosts :"
            blind = bool(turn % 2)
            *_, shown = handlers.compare(prompt, list(config.policies), 1.0, visitor, 8, blind, request)
            offered = [value for _, value in shown[3]["choices"]]
            answers = handlers.visits.shown(str(visitor)).answers
            lengths = [len(answer.text) for answer in answers]
            choice = lengths.index(max(lengths) if visitor % 2 else min(lengths))
            group = ("a", "b", "", None, "nobody's", "a")[visitor]
            message = handlers.vote(offered[choice], group, request)[2]
            assert "Thank you" in message or "All answers are the same" in message
            whole = [answer.text for answer in answers if answer.finished and answers[choice].finished]
            expected += sum(text != answers[choice].text for text in whole)
    rows = [json.loads(line) for line in (tmp_path / "votes" / "votes.jsonl").read_text().splitlines()]
    assert len(rows) == expected > 18 and {row["group"] for row in rows} == {"a", "b", ""}
    assert len({row["annotator_id"] for row in rows}) == 6 and {row["blind"] for row in rows} == {True, False}

    words = ["reward", "--dataset_name", "votes/votes.jsonl", "--model_name_or_path"]
    words += [str(run_folder / "policies" / "reference"), "--num_components", "2", "--output_dir", "mixture2"]
    words += ["--group_column", "group"]
    words += ["--max_steps", "4", "--per_device_train_batch_size", "8", "--report_to", "none", "--save_strategy", "no"]
    assert main(words) == 0
    mixture = AutoModel.from_pretrained(tmp_path / "mixture2")
    assert mixture.num_components == 2
    assigned = json.loads((tmp_path / "mixture2" / "assignments.json").read_text())
    assert {row["annotator_id"] for row in rows} <= set(json.dumps(assigned).replace('"', " ").split())
