# SPDX-License-Identifier: Apache-2.0
"""Group-robust DPO in two processes: one weight for both, and the run of one process."""

import pytest

from tests.launcher import launch
from tests.trainer.trl_helpers import save_base


SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
from tests.conftest import build_word_tokenizer
from tests.trainer.dpo_helpers import build_dpo, preferences

out, base, folder = sys.argv[1:4]
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
tokenizer = build_word_tokenizer()
settings = dict(max_steps=4, welfare_step_size=1.0, welfare_window=3, small_group_offset=0.5, min_group_pairs=1,
                save_strategy="steps", save_steps=2, per_device_train_batch_size=8 // world,
                per_device_eval_batch_size=4 // world,
                gradient_accumulation_steps=2, train_dataset=preferences(48), max_grad_norm=1e9)

def run(**kwargs):
    trainer = build_dpo(base, tokenizer, folder, **settings)
    trainer.train(**kwargs)
    return trainer

trainer = run()
found = trainer.evaluate(preferences(11, seed=5))
keys = [f"{name}/{group}" for name in ("maxmin/loss", "maxmin/pairs", "maxmin/margin") for group in ("few", "many")]
report = {
    "weights": [[entry[f"maxmin/weight/{g}"] for g in ("few", "many")] for entry in trainer.state.log_history[:4]],
    "losses": [[entry[f"maxmin/loss/{g}"] for g in ("few", "many")] for entry in trainer.state.log_history[:4]],
    "policy": [p.double().sum().item() for p in trainer.model.parameters()],
    "evaluation": {key: found[f"eval_{key}"] for key in keys},
    "state": trainer.welfare_state.state_dict(),
}
resumed = run(resume_from_checkpoint=f"{folder}/checkpoint-2")
report["resumed"] = [p.double().sum().item() for p in resumed.model.parameters()]
report["resumed_state"] = resumed.welfare_state.state_dict()
open(f"{out}.{rank}", "w").write(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path, word_tokenizer):
    base = save_base(tmp_path / "base", word_tokenizer)
    (alone,) = launch(SCRIPT, 1, tmp_path / "one", str(base), str(tmp_path / "run-one"))
    first, second = launch(SCRIPT, 2, tmp_path / "two", str(base), str(tmp_path / "run-two"))
    assert first == second, "what ranks must agree on, to the last bit"
    for weights, expected in zip(first["weights"] + first["losses"], alone["weights"] + alone["losses"], strict=True):
        assert weights == pytest.approx(expected, abs=1e-5)
    assert first["policy"] == pytest.approx(alone["policy"], abs=1e-4)
    assert first["evaluation"] == pytest.approx(alone["evaluation"], abs=1e-4)
    assert first["evaluation"]["maxmin/pairs/few"] + first["evaluation"]["maxmin/pairs/many"] == 11
    for report in (alone, first):
        assert report["resumed"] == report["policy"] and report["resumed_state"] == report["state"]
        assert len({tuple(weights) for weights in report["weights"]}) == 4, "they move"
