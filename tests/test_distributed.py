# SPDX-License-Identifier: Apache-2.0
"""Gathering and reducing, with one process and with two gloo processes on loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from trl_maxmin.distributed import (
    accumulate,
    backward,
    gather_objects,
    gather_rows,
    local_slice,
    mean_over_ranks,
    rows_per_rank,
    sum_over_ranks,
)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_one_process_gathers_itself(accelerator):
    rows = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    assert rows_per_rank(accelerator, 3) == [3]
    assert local_slice(accelerator, [3]) == slice(0, 3)
    for result in (gather_rows(accelerator, rows), sum_over_ranks(accelerator, rows)):
        assert torch.equal(result, rows) and not result.requires_grad
    assert torch.equal(mean_over_ranks(accelerator, rows), rows)
    assert gather_objects(accelerator, ["a", [1]]) == ["a", [1]]


def test_accumulate_says_when_gradients_are_shared_and_restores(accelerator):
    model = torch.nn.Linear(2, 1)
    state = accelerator.gradient_state
    state._set_sync_gradients(True)
    for is_last in (False, True):
        with accumulate(accelerator, model, is_last):
            assert state.sync_gradients == is_last
            backward(accelerator, model(torch.ones(1, 2)).sum())
        assert state.sync_gradients
    with pytest.raises(RuntimeError, match="inside"), accumulate(accelerator, model, False):
        raise RuntimeError("inside")
    assert state.sync_gradients
    assert model.weight.grad.tolist() == [[2.0, 2.0]]


COLLECTIVES = """
import json, os, sys, torch
from accelerate import Accelerator
from trl_maxmin.distributed import accumulate, gather_objects, gather_rows, local_slice, mean_over_ranks
from trl_maxmin.distributed import rows_per_rank, sum_over_ranks

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
rows = torch.arange(4.0 * rank, 4.0 * rank + 2 * (2 - rank)).reshape(2 - rank, 2)  # rank 0 has two rows, rank 1 one
counts = rows_per_rank(accelerator, len(rows))
model = accelerator.prepare(torch.nn.Linear(2, 1, bias=False))
with torch.no_grad():
    model.module.weight.zero_()
gradients = []
for is_last in (False, True):
    with accumulate(accelerator, model, is_last):
        accelerator.backward(model(torch.full((1, 2), rank + 1.0)).sum())
    gradients.append(model.module.weight.grad[0, 0].item())
result = {
    "type": str(accelerator.distributed_type),
    "rows": gather_rows(accelerator, rows).tolist(),
    "empty": gather_rows(accelerator, rows[: 1 - rank]).tolist(),
    "counts": counts,
    "slice": gather_rows(accelerator, rows)[local_slice(accelerator, counts)].tolist() == rows.tolist(),
    "sum": sum_over_ranks(accelerator, torch.tensor([1.0 + rank])).tolist(),
    "mean": mean_over_ranks(accelerator, torch.tensor([1.0 + rank])).tolist(),
    "objects": gather_objects(accelerator, [f"r{rank}"] * (rank + 1)),
    "gradients": gradients,
}
open(sys.argv[1] + f".{rank}", "w").write(json.dumps(result))
"""


TRAINING = """
import json, os, sys, torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl_maxmin.trainer.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo_trainer import PPOTrainer

torch.set_num_threads(1)
out, kind, world = sys.argv[1], sys.argv[2], int(sys.argv[3])
backend = Tokenizer(WordLevel({f"w{i}": i for i in range(20)}, unk_token="w3"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w3")

def sevens(completion_ids, **kwargs):
    return [sum(t % 3 == 0 for t in ids) / len(ids) for ids in completion_ids]

def brevity(completion_ids, **kwargs):
    return [-len(ids) / 8 for ids in completion_ids]

def build(**kwargs):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_layer=1, n_head=2, n_embd=16, n_positions=32, eos_token_id=2))
    model.lm_head.weight.data.mul_(8)
    args = PPOConfig(
        output_dir=out + "-run", report_to=[], disable_tqdm=True, per_device_train_batch_size=2, use_cpu=True,
        gradient_accumulation_steps=4 // world, max_steps=4, learning_rate=0.05, response_length=6, temperature=1.0,
        gradient_checkpointing=False, save_strategy="steps", save_steps=2, logging_steps=1, optim="sgd",
        generation_kwargs={"do_sample": False}, whiten_rewards=True, vf_coef=1.0, per_device_eval_batch_size=2,
        seed=3, **kwargs
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    data = Dataset.from_dict({"input_ids": [[3 + i % 15, 4 + i % 7] + [5] * (i % 3) for i in range(16)]})
    return PPOTrainer(
        args, tokenizer, model, reward_model=[sevens, brevity], train_dataset=data, eval_dataset=data.select(range(5)),
        peft_config=adapter if kind == "lora" else None,
    )

trainer = build()
trainer.train()
names = ("loss", "objective/kl", "objective/scores", "completions/mean_length", "val/ratio", "rewards/brevity/mean")
curves = {name: [e[name] for e in trainer.state.log_history if name in e] for name in names}
evaluation = {k: v for k, v in trainer.evaluate().items() if "second" not in k and "runtime" not in k}
weights = {k: v.flatten().tolist() for k, v in trainer._root.state_dict().items()}
resumed = build()
resumed.train(resume_from_checkpoint=f"{out}-run/checkpoint-2")
again = {k: v.flatten().tolist() for k, v in resumed._root.state_dict().items()}
assert again == weights, "the resumed run differs"
kind_of = type(trainer.model_wrapped).__name__
result = {"type": kind_of, "curves": curves, "evaluation": evaluation, "weights": weights}
open(out + f".{trainer.args.process_index}", "w").write(json.dumps(result))
"""


def launch(script, world, out, *arguments):
    """Run a script in `world` processes and return what each wrote."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".py")
    file.write_text(script)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, str(file), str(out), *arguments]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]


@pytest.mark.slow
def test_two_processes_gather_and_reduce(tmp_path):
    results = launch(COLLECTIVES, 2, tmp_path / "collectives")
    for result in results:
        assert result["type"] == "DistributedType.MULTI_CPU"
        assert result["rows"] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert result["empty"] == [[0.0, 1.0]]
        assert result["counts"] == [2, 1] and result["slice"]
        assert result["sum"] == [3.0] and result["mean"] == [1.5]
        assert result["objects"] == ["r0", "r1", "r1"]
    # Not shared after the first micro-batch; after the second the mean over ranks of 2 * (rank + 1).
    assert [result["gradients"][0] for result in results] == [1.0, 2.0]
    assert [result["gradients"][1] for result in results] == [3.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_ppo_with_two_processes_is_that_with_one(tmp_path, kind):
    """The same global batch, greedy replies: the same curves, weights and evaluation; and a resumed run likewise."""
    (alone,) = launch(TRAINING, 1, tmp_path / "one" / "run", kind, "1")
    first, second = launch(TRAINING, 2, tmp_path / "two" / "run", kind, "2")
    assert first["type"] == "DistributedDataParallel"
    assert first["weights"] == second["weights"]
    for name, values in alone["curves"].items():
        assert len(values) == 4
        assert first["curves"][name] == pytest.approx(values, abs=1e-4), name
    assert first["evaluation"] == pytest.approx(alone["evaluation"], abs=1e-4)
    for name, values in alone["weights"].items():
        assert first["weights"][name] == pytest.approx(values, abs=1e-4), name
