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
from pathlib import Path
out = sys.argv[1]
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
facts = {}
for name, data, options in (
    ("frozen", opposed_rankings(rows=8), {"train_trunk": False}),
    ("trained", opposed_rankings(rows=8), {"e_step_interval": 4}),
    ("shares", shared(), {"num_components": 1}),
):
    trainer = fit(
        build_word_tokenizer(), Path(out + name), data, per_device_train_batch_size=16 // world, max_steps=8,
        optim="sgd", learning_rate=0.05, **options,
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
