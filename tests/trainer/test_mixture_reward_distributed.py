# SPDX-License-Identifier: Apache-2.0
"""Two processes learn the mixture that one learns, on the trained and on the frozen trunk."""

import pytest
import torch

from tests.launcher import launch


SCRIPT = """
import json, os, sys
import torch
from tests.conftest import build_word_tokenizer
from tests.trainer.test_mixture_reward_trainer import fit, opposed_groups
from pathlib import Path
out, frozen = sys.argv[1], sys.argv[2] == "frozen"
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
options = {"train_trunk": False, "select": "1,2"} if frozen else {"e_step_interval": 4}
trainer = fit(
    build_word_tokenizer(), Path(out + ".run"), per_device_train_batch_size=16 // world, max_steps=12, **options,
)
facts = {
    "log_responsibilities": trainer.em_state.log_responsibilities.exp().tolist(),
    "rewards": trainer.reward_differences(trainer.eval_dataset).tolist(),
    "components": trainer.mixture.num_components,
}
Path(f"{out}.{rank}").write_text(json.dumps(facts))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_two_processes_give_what_one_gives(tmp_path, kind):
    (one,) = launch(SCRIPT, 1, tmp_path / "one", kind)
    two = launch(SCRIPT, 2, tmp_path / "two", kind)
    assert two[0] == two[1] and one["components"] == two[0]["components"]
    for name in ("log_responsibilities", "rewards"):
        torch.testing.assert_close(torch.tensor(one[name]), torch.tensor(two[0][name]), atol=1e-3, rtol=1e-3)
