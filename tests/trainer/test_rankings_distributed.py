# SPDX-License-Identifier: Apache-2.0
"""Two processes learn from rankings what one learns, on the trained and on the frozen trunk; vote shares likewise."""

import pytest
import torch

from tests.launcher import launch


SCRIPT = """
import json, os, sys
import torch
from tests.conftest import build_word_tokenizer
from tests.trainer.test_mixture_reward_trainer import fit
from tests.trainer.test_reward_on_rankings import opposed_rankings
from tests.trainer.test_vote_shares import shared
from datasets import Dataset
from pathlib import Path
out = sys.argv[1]
rankings = list(opposed_rankings(rows=8))
for row in rankings[::4]:  # mistakes, without which no temperature is sure enough
    row["ranking"] = [4 - rank for rank in row["ranking"]]
rankings = Dataset.from_list(rankings)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
facts = {}
for name, data, options in (
    ("frozen", rankings, {"train_trunk": False}),
    ("trained", rankings, {"e_step_interval": 4}),
    # Nobody gave two of them, so others are held out.
    ("shares", shared(), {"num_components": 1, "heldout_fraction": 0.0, "eval_dataset": shared(seed=1)}),
):
    trainer = fit(
        build_word_tokenizer(), Path(out + name), data, per_device_train_batch_size=16 // world, max_steps=6,
        optim="sgd", learning_rate=0.01, **options,
    )
    scored = trainer.scored(trainer.eval_dataset)
    facts[name] = {
        "posterior": trainer.posterior().probabilities.tolist(),
        "fit": scored.log_likelihood().tolist(),
        "accuracy": list(trainer.final_facts["component_heldout_accuracy"].values()),
        "tau": list(trainer.final_facts.get("component_heldout_tau", {}).values()),
        "temperatures": trainer.mixture.config.temperatures,
        "evaluated": trainer.evaluate()["eval_loss"],
    }
Path(f"{out}.{rank}").write_text(json.dumps(facts))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    (one,) = launch(SCRIPT, 1, tmp_path / "one")
    two = launch(SCRIPT, 2, tmp_path / "two")
    assert two[0] == two[1]
    for name, facts in one.items():
        assert len(facts["tau"]) == (0 if name == "shares" else 2) and facts["fit"], name
        for what, values in facts.items():
            found = torch.tensor(two[0][name][what])
            torch.testing.assert_close(torch.tensor(values), found, atol=1e-4, rtol=1e-3, msg=f"{name} {what}")
