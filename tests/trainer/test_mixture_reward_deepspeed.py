# SPDX-License-Identifier: Apache-2.0
"""EM under DeepSpeed: ZeRO-2, which leaves weights whole, learns what one process learns; ZeRO-3 is refused."""

import importlib.util

import pytest
import torch

from tests.launcher import launch


pytestmark = [
    pytest.mark.slow,
    pytest.mark.deepspeed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed (make deepspeed)"),
]

SCRIPT = """
import json, os, sys
from pathlib import Path
out, stage = sys.argv[1], int(sys.argv[2])
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if stage:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)  # accelerate would leave DeepSpeed out
from tests.conftest import build_word_tokenizer
from tests.trainer.test_mixture_reward_trainer import fit

settings = {
    "zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "zero_allow_untrusted_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
if stage:
    import deepspeed
    deepspeed.init_distributed("gloo")
trainer = fit(
    build_word_tokenizer(), Path(out + ".run"), per_device_train_batch_size=16 // world, max_steps=12,
    e_step_interval=4, deepspeed=settings if stage else None,
)
facts = {
    "type": type(trainer.model_wrapped).__name__,
    "log_responsibilities": trainer.em_state.log_responsibilities.exp().tolist(),
    "rewards": trainer.reward_differences(trainer.eval_dataset).tolist(),
}
Path(f"{out}.{rank}").write_text(json.dumps(facts))
"""


def test_zero2_learns_the_mixture_of_one_process(tmp_path):
    (one,) = launch(SCRIPT, 1, tmp_path / "one", "0")
    two = launch(SCRIPT, 2, tmp_path / "two", "2")
    assert two[0] == two[1] and two[0]["type"] == "DeepSpeedEngine"
    for name in ("log_responsibilities", "rewards"):
        torch.testing.assert_close(torch.tensor(one[name]), torch.tensor(two[0][name]), atol=1e-3, rtol=1e-3)


def test_zero3_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="ZeRO-3 divides the weights among the ranks"):
        launch(SCRIPT, 2, tmp_path / "run", "3")
