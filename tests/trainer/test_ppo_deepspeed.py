# SPDX-License-Identifier: Apache-2.0
"""PPO under DeepSpeed ZeRO-2 and ZeRO-3 on two processes without a GPU, against one process without DeepSpeed.

DeepSpeed is no dependency: these run where it is installed (`make deepspeed`).
"""

import importlib.util

import pytest

from tests.launcher import launch


pytestmark = [
    pytest.mark.slow,
    pytest.mark.deepspeed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed (make deepspeed)"),
]

SCRIPT = """
import json, os, sys, torch
from pathlib import Path
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.pop("ACCELERATE_USE_CPU", None)  # accelerate would leave DeepSpeed out
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl_maxmin.trainer.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo_trainer import PPOTrainer

torch.set_num_threads(1)
out, stage, world, reference, resume, init = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:7]
backend = Tokenizer(WordLevel({f"w{i}": i for i in range(20)}, unk_token="w3"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w3")

def sevens(completion_ids, **kwargs):
    return [sum(t % 3 == 0 for t in ids) / len(ids) for ids in completion_ids]

def brevity(completion_ids, **kwargs):
    return [-len(ids) / 8 for ids in completion_ids]

deepspeed = {
    "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
    "gradient_clipping": "auto", "zero_allow_untrusted_optimizer": True, "zero_force_ds_cpu_optimizer": False,
}
args = PPOConfig(
    output_dir=out + "-run", report_to=[], disable_tqdm=True, per_device_train_batch_size=2, use_cpu=True,
    gradient_accumulation_steps=4 // world, max_steps=4, learning_rate=0.05, response_length=6, temperature=1.0,
    gradient_checkpointing=False, save_strategy="steps", save_steps=2, logging_steps=1, optim="sgd", seed=3,
    lr_scheduler_type="constant", generation_kwargs={"do_sample": False}, whiten_rewards=True, vf_coef=1.0,
    per_device_eval_batch_size=2, deepspeed=deepspeed if stage else None,
)
if stage:
    import deepspeed as engine
    engine.init_distributed("gloo")

def load():
    return AutoModelForCausalLM.from_pretrained(init)

data = Dataset.from_dict({"input_ids": [[3 + i % 15, 4 + i % 7] + [5] * (i % 3) for i in range(16)]})
trainer = PPOTrainer(
    args, tokenizer, load(), ref_model=load() if reference == "given" else None, reward_model=[sevens, brevity],
    train_dataset=data, eval_dataset=data.select(range(5)),
)
before = trainer.evaluate()["eval_objective/scores"] if resume == "evaluate" else None
trainer.train(resume_from_checkpoint=f"{out}-run/checkpoint-2" if resume == "resume" else None)
names = ("loss", "objective/kl", "objective/scores", "val/ratio", "rewards/brevity/mean")
curves = {name: [e[name] for e in trainer.state.log_history if name in e] for name in names}
evaluation = {"before": before} if before is not None else {}
evaluation |= {k: v for k, v in trainer.evaluate().items() if "second" not in k and "runtime" not in k}
trainer.save_model(out + "-final")
weights = None
if trainer.args.process_index == 0:
    from safetensors.torch import load_file
    weights = {k: v.flatten().tolist() for k, v in load_file(out + "-final/model.safetensors").items()}
result = {"type": type(trainer.model_wrapped).__name__, "curves": curves, "evaluation": evaluation, "weights": weights}
Path(out + f".{trainer.args.process_index}").write_text(json.dumps(result))
"""


@pytest.fixture
def init(tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_layer=1, n_head=2, n_embd=16, n_positions=32, eos_token_id=2, bos_token_id=1, pad_token_id=0
    )
    model = GPT2LMHeadModel(config)
    model.lm_head.weight.data.mul_(8)
    model.save_pretrained(tmp_path / "init")
    return str(tmp_path / "init")


def same(first, second):
    for name, values in second["curves"].items():
        assert first["curves"][name] == pytest.approx(values, abs=1e-4), name
    assert first["evaluation"] == pytest.approx(second["evaluation"], abs=1e-4)
    for name, values in second["weights"].items():
        assert first["weights"][name] == pytest.approx(values, abs=1e-4), name


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_on_two_processes_is_one_process_without_it_and_resumes(tmp_path, init, stage):
    (alone,) = launch(SCRIPT, 1, tmp_path / "one" / "run", "0", "1", "given", "-", init)
    two = tmp_path / "two" / "run"
    sharded, _ = launch(SCRIPT, 2, two, str(stage), "2", "given", "-", init)
    assert sharded["type"] == "DeepSpeedEngine"
    assert len(alone["curves"]["loss"]) == 4
    same(sharded, alone)
    resumed, _ = launch(SCRIPT, 2, two, str(stage), "2", "given", "resume", init)
    same(resumed, alone)


def test_a_policy_in_shards_is_evaluated_before_it_trains(tmp_path, init):
    (alone,) = launch(SCRIPT, 1, tmp_path / "one" / "run", "0", "1", "given", "evaluate", init)
    sharded, _ = launch(SCRIPT, 2, tmp_path / "two" / "run", "3", "2", "given", "evaluate", init)
    assert sharded["evaluation"]["before"] is not None
    same(sharded, alone)


def test_a_policy_in_shards_needs_its_reference(tmp_path, init):
    with pytest.raises(AssertionError, match="Load the reference as well"):
        launch(SCRIPT, 2, tmp_path / "run", "3", "2", "missing", "-", init)
