# SPDX-License-Identifier: Apache-2.0
"""PPO under DeepSpeed ZeRO-2 and ZeRO-3 on two processes without a GPU, against the same run without DeepSpeed.

DeepSpeed is no dependency: these run where it is installed (`make deepspeed`).
"""

import importlib.util
import json

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
out, options = sys.argv[1], json.loads(sys.argv[2])
stage, world, mode, folder = options["stage"], options["world"], options["mode"], options["folder"]
if stage:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)  # accelerate would leave DeepSpeed out
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardModel
from trl_maxmin.trainer.ppo.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer
from trl_maxmin.trainer.scoring.callables import load_reward_model

torch.set_num_threads(1)
backend = Tokenizer(WordLevel({f"w{i}": i for i in range(20)}, unk_token="w3"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w3")

def sevens(completion_ids, **kwargs):
    return [sum(t % 3 == 0 for t in ids) / len(ids) for ids in completion_ids]

def brevity(completion_ids, **kwargs):
    return [-len(ids) / 8 for ids in completion_ids]

deepspeed = {
    # Nothing is kept whole for being small: everything here is.
    "zero_optimization": {
        "stage": stage, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0,
    },
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
    "gradient_clipping": "auto", "zero_allow_untrusted_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": "auto"},
}
settings = dict(
    output_dir=out + "-run", report_to=[], disable_tqdm=True, per_device_train_batch_size=2, use_cpu=True,
    gradient_accumulation_steps=4 // world, max_steps=4, learning_rate=0.05, response_length=6, temperature=1.0,
    gradient_checkpointing=False, save_strategy="steps", save_steps=2, logging_steps=1, optim="sgd", seed=3,
    lr_scheduler_type="constant", generation_kwargs={"do_sample": False}, whiten_rewards=True, vf_coef=1.0,
    per_device_eval_batch_size=2, deepspeed=deepspeed if stage else None,
)
classes = (MaxMinPPOTrainer, MaxMinPPOConfig) if options["maxmin"] else (PPOTrainer, PPOConfig)
args = classes[1](**settings | options["settings"])
if stage:
    import deepspeed as engine
    engine.init_distributed("gloo")

def load():
    return AutoModelForCausalLM.from_pretrained(folder)

rewards = [sevens, brevity]
if options["models"]:
    rewards = [MixtureRewardModel.from_pretrained(f"{folder}/{kind}") for kind in ("head", "lora", "full")]
    rewards += [load_reward_model(f"{folder}/classifier")[0]]
    rewards += [AutoModelForSequenceClassification.from_pretrained(f"{folder}/classifier")]
peft_config = None
if options["adapter"]:
    peft_config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
data = Dataset.from_dict({"input_ids": [[3 + i % 15, 4 + i % 7] + [5] * (i % 3) for i in range(16)]})
trainer = classes[0](
    args, tokenizer, load(), ref_model=load() if options["reference"] else None, reward_model=rewards,
    train_dataset=data, eval_dataset=data.select(range(5)), peft_config=peft_config,
)
before = trainer.evaluate()["eval_objective/scores"] if mode == "evaluate" else None
table = sorted(set(trainer.generate_completions()["model response"])) if mode == "evaluate" else None
trainer.train(resume_from_checkpoint=f"{out}-run/checkpoint-2" if mode == "resume" else None)
names = {name for e in trainer.state.log_history for name in e if name.startswith("rewards/")}
names |= {"loss", "objective/kl", "objective/scores", "val/ratio"}
curves = {name: [e[name] for e in trainer.state.log_history if name in e] for name in sorted(names)}
evaluation = {"before": before} if before is not None else {}
evaluation |= {k: v for k, v in trainer.evaluate().items() if "second" not in k and "runtime" not in k}
trainer.save_model(out + "-final")
weights = None
if trainer.args.process_index == 0:
    from safetensors.torch import load_file
    weights = {
        k: v.flatten().tolist() for file in sorted(Path(out + "-final").glob("*.safetensors"))
        for k, v in load_file(file).items()
    }
statistics = getattr(trainer, "reference_statistics", None)
result = {
    "type": type(trainer.model_wrapped).__name__, "curves": curves, "evaluation": evaluation, "weights": weights,
    "table": table, "fingerprint": statistics and statistics.policy_fingerprint,
}
Path(out + f".{trainer.args.process_index}").write_text(json.dumps(result))
"""


def run(
    out, folder, stage=0, world=1, mode="-", reference=True, models=False, adapter=False, maxmin=False, **settings
):
    options = {"stage": stage, "world": world, "mode": mode, "folder": folder, "reference": reference}
    options |= {"models": models, "adapter": adapter, "maxmin": maxmin, "settings": settings}
    return launch(SCRIPT, world, out / "run", json.dumps(options))[0]


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


@pytest.fixture
def rewards(init):
    """Reward models beside the policy, none of whose weights is a fresh one."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    from trl_maxmin import MixtureRewardModel

    config = GPT2Config.from_pretrained(init, num_labels=1)
    models = {
        kind: MixtureRewardModel.from_base(GPT2ForSequenceClassification(config), 2, kind)
        for kind in ("head", "lora", "full")
    }
    models["classifier"] = GPT2ForSequenceClassification(config)
    for seed, (kind, model) in enumerate(models.items()):
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "score" in name:
                parameter.data.normal_()
        model.save_pretrained(f"{init}/{kind}")
    # The policy's, as `SCRIPT` makes it: without one no reward model reads its ids.
    backend = Tokenizer(WordLevel({f"w{i}": i for i in range(20)}, unk_token="w3"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w3")
    for kind in models:
        words.save_pretrained(f"{init}/{kind}")
    return init


def same(first, second, **tolerance):
    tolerance = {"abs": 1e-4} | tolerance
    assert first["curves"].keys() == second["curves"].keys()
    for name, values in second["curves"].items():
        assert first["curves"][name] == pytest.approx(values, **tolerance), name
    assert first["evaluation"] == pytest.approx(second["evaluation"], **tolerance)
    for name, values in second["weights"].items():
        assert first["weights"][name] == pytest.approx(values, **tolerance), name
    assert first["table"] == second["table"] and first["fingerprint"] == second["fingerprint"]


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_on_two_processes_is_one_process_without_it_and_resumes(tmp_path, init, stage):
    alone = run(tmp_path / "one", init)
    # Ranks have different numbers of tokens, and so of chunks, each of which asks for the head.
    settings = {"gradient_checkpointing": True, "logits_chunk_size": 3}
    sharded = run(tmp_path / "two", init, stage, 2, **settings)
    assert sharded["type"] == "DeepSpeedEngine"
    assert len(alone["curves"]["loss"]) == 4
    same(sharded, alone)
    resumed = run(tmp_path / "two", init, stage, 2, "resume", **settings)
    same(resumed, alone)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_policy_is_evaluated_before_it_trains(tmp_path, init, stage):
    alone = run(tmp_path / "one", init, mode="evaluate")
    sharded = run(tmp_path / "two", init, stage, 2, "evaluate")
    assert sharded["evaluation"]["before"] is not None and sharded["table"]
    same(sharded, alone)


def test_a_policy_in_shards_needs_its_reference(tmp_path, init):
    with pytest.raises(AssertionError, match="Load the reference as well"):
        run(tmp_path, init, 3, 2, reference=False)


def test_reward_models_are_whole_beside_a_policy_in_shards(tmp_path, rewards):
    """Mixtures of all kinds, a classifier of our loader, and one that was loaded in shards."""
    alone = run(tmp_path / "one", rewards, models=True)
    assert sum(name.endswith("/mean") for name in alone["curves"]) == 8
    same(run(tmp_path / "two", rewards, 3, 2, models=True), alone)


@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": True, "logits_chunk_size": 3}, {"critic_adapter": True}],
    ids=["checkpointing", "critic adapter"],
)
def test_an_adapter_on_a_base_in_shards_is_calibrated_and_trained(tmp_path, init, settings):
    """Against DDP, whose two ranks sample the same reference replies."""
    settings |= {"adapter": True, "maxmin": True, "reference": False, "generation_kwargs": None, "learning_rate": 0.5}
    whole = run(tmp_path / "ddp", init, 0, 2, **settings)
    sharded = run(tmp_path / "zero", init, 3, 2, **settings)
    assert any("lora_B" in name and max(map(abs, values)) > 1e-3 for name, values in whole["weights"].items())
    same(sharded, whole)


def test_checkpointing_of_a_critic_adapter_is_refused_in_shards(tmp_path, init):
    settings = {"adapter": True, "reference": False, "gradient_checkpointing": True, "critic_adapter": True}
    with pytest.raises(AssertionError, match="reentrant checkpointing.*gradient_checkpointing=False"):
        run(tmp_path, init, 3, 2, **settings)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_bfloat16_in_shards_is_bfloat16_whole(tmp_path, init, adapter):
    """The critic's head and adapters are made outside the shards, and trained with them."""
    settings = {"bf16": True, "adapter": adapter, "reference": not adapter, "learning_rate": 1e-2}
    whole = run(tmp_path / "whole", init, 2, 2, **settings)
    sharded = run(tmp_path / "shards", init, 3, 2, **settings)
    assert whole["curves"]["objective/kl"][0] == pytest.approx(0, abs=1e-6)
    same(whole, sharded, abs=2**-7)
