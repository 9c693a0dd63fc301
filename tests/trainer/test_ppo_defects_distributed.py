# SPDX-License-Identifier: Apache-2.0
"""The rows of the list of TRL 1.12's defects that take two processes: C16, C20, C21, C23; gloo on loopback."""

import numpy as np
import pytest

from tests.launcher import launch


pytestmark = pytest.mark.seam


TRAINING = """
import json, os, sys, torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl_maxmin.trainer.ppo.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer

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


WHITENING = """
import json, sys, torch
from pathlib import Path
from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import GivenReplies, brevity, build_ppo_trainer, gpt2, sevens

torch.set_num_threads(1)
out, world, whiten_rewards = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
trainer = build_ppo_trainer(
    out + "-run", build_word_tokenizer(), GivenReplies, reward_model=[sevens, brevity], ref_model=gpt2(seed=4),
    gradient_accumulation_steps=4 // world, per_device_train_batch_size=1, whiten_rewards=whiten_rewards, use_cpu=True,
)
rank = trainer.accelerator.process_index
size = 4 // world
GivenReplies.replies = GivenReplies.replies[rank * size : (rank + 1) * size]
rollout = trainer._rollout([{"input_ids": [5 + row, 9]} for row in range(rank * size, (rank + 1) * size)])
trainer._score(rollout)
rewards, weights = trainer._aggregate(rollout)
trainer._advantages(rollout, rewards, weights)
result = {
    "rewards": [row[mask].tolist() for row, mask in zip(rewards @ weights, rollout.completion_mask)],
    "advantages": [row[mask].tolist() for row, mask in zip(rollout.advantages, rollout.completion_mask)],
}
Path(f"{out}.{rank}").write_text(json.dumps(result))
"""


SHARDED = """
import json, sys, torch
from pathlib import Path
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from transformers import LlamaConfig, LlamaForCausalLM
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic
from trl_maxmin.trainer.common.sampling import sample_completions, sampling_config

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, out = dist.get_rank(), sys.argv[1]

def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )
    return PolicyWithCritic(LlamaForCausalLM(config), 2, logits_chunk_size=3)

def step(root, rows, scale):
    optimizer = torch.optim.SGD(root.parameters(), lr=0.5)
    prompt, reply = torch.arange(3, 11).reshape(4, 2)[rows], torch.arange(11, 27).reshape(4, 4)[rows]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)[rows]
    logprobs, _, values = root(
        torch.cat([prompt, reply], 1), torch.cat([torch.ones_like(prompt, dtype=torch.bool), mask], 1), mask, reply
    )
    ((logprobs.sum() + values.square().sum()) * scale).backward()
    optimizer.step()
    return logprobs.detach()

whole, sharded = build(), build()
mesh = init_device_mesh("cpu", (2,))
for layer in sharded.policy.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
register_fsdp_forward_method(sharded, "generate")
local = slice(2 * rank, 2 * rank + 2)
expected = step(whole, slice(0, 4), 0.1)[local]
got = step(sharded, local, 0.2)  # the mean over two ranks of twice the sum
after = dict(whole.named_parameters())
greedy = sampling_config(1.0, 5, {"do_sample": False})
replies = [sample_completions(root, [[5, 6], [7]], greedy, 0, [2], 2) for root in (whole, sharded)]
sharded.reshard()  # the root of FSDP2 stays whole after a forward without backward
result = {
    "logprobs": (got - expected).abs().max().item(),
    "sharded": all(type(p).__name__ == "DTensor" for p in sharded.parameters()),
    "moved": (after["value_head.weight"] - build().value_head.weight).abs().max().item(),
    "weights": max((p.full_tensor() - after[name]).abs().max().item() for name, p in sharded.named_parameters()),
    "replies": replies[0] == replies[1],
}
Path(f"{out}.{rank}").write_text(json.dumps(result))
"""


MIXED = """
import json, sys, torch, transformers.trainer
from pathlib import Path
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import SIZE, brevity, build_ppo_trainer, history, sevens
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer

torch.set_num_threads(1)
out, kind = sys.argv[1], sys.argv[2]

class Sharding(Accelerator):
    "accelerate leaves FSDP out on a CPU; what it does on a GPU, on the CPU."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT",
            reshard_after_forward=True, cpu_ram_efficient_loading=False,
        )
        plugin.set_mixed_precision(self.mixed_precision)
        self.state.fsdp_plugin = plugin
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP

if kind == "fsdp2":
    transformers.trainer.Accelerator = Sharding

class Spy(PPOTrainer):
    seen = []
    def _ppo_loss(self, logprobs, values, batch):
        now = (logprobs, values, logprobs - batch["logprobs"])
        self.seen.append([t.detach()[batch["loss_mask"]].flatten() for t in now])
        return super()._ppo_loss(logprobs, values, batch)

def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
    )
    return LlamaForCausalLM(config)

def build():
    return build_ppo_trainer(
        out + "-run", build_word_tokenizer(), Spy, model=llama(), reward_model=[sevens, brevity], use_cpu=True,
        bf16=True, learning_rate=1e-3, per_device_train_batch_size=2, max_steps=4, save_strategy="steps", save_steps=2,
        generation_kwargs={"do_sample": False}, seed=3,
    )

trainer = build()
trainer.train()
trainer.save_model(out + "-final")
if kind == "fsdp2":
    resumed = build()
    resumed.train(resume_from_checkpoint=f"{out}-run/checkpoint-2")
    resumed.save_model(out + "-again")
logprobs, values, change = (torch.cat(parts) for parts in zip(*Spy.seen[:2]))  # before the first step
parameters = list(trainer.model_wrapped.parameters())
result = {
    "type": type(trainer.model_wrapped).__name__,
    "dtypes": [str(logprobs.dtype), str(values.dtype)],
    "rounded": [(t == t.bfloat16().float()).float().mean().item() for t in (logprobs, values)],
    "logprobs": logprobs.tolist(), "values": values.tolist(),
    "change": change.abs().max().item(), "loss": history(trainer, "loss"),
    "sharded": all(type(p).__name__ == "DTensor" and p.dtype == torch.float32 for p in parameters),
}
if trainer.args.process_index == 0:
    start = llama().state_dict()
    names = ("final", "again") if kind == "fsdp2" else ("final",)
    files = [load_file(f"{out}-{name}/model.safetensors") for name in names]
    moves = [torch.cat([(file[name] - start[name]).flatten() for name in sorted(file)]) for file in files]
    result["move"], result["resumed"] = moves[0].tolist(), len(moves) == 2 and torch.equal(*moves)
Path(f"{out}.{trainer.args.process_index}").write_text(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_c16_whitening_is_over_all_ranks(tmp_path, whiten_rewards):
    """Rank 0 holds replies of 3 and 6 tokens, rank 1 of 1 and 2: the means over ranks are not the mean over tokens."""
    (alone,) = launch(WHITENING, 1, tmp_path / "one" / "run", "1", str(whiten_rewards))
    parts = launch(WHITENING, 2, tmp_path / "two" / "run", "2", str(whiten_rewards))
    for name in ("rewards", "advantages"):
        together = [row for part in parts for row in part[name]]
        assert [len(row) for row in together] == [3, 6, 1, 2]
        np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone[name]), atol=1e-4)
    tokens = np.concatenate([np.concatenate(part["advantages"]) for part in parts])
    assert tokens.mean() == pytest.approx(0.0, abs=1e-5) and tokens.var(ddof=1) == pytest.approx(1.0, abs=1e-4)
    if whiten_rewards:
        tokens = np.concatenate([np.concatenate(part["rewards"]) for part in parts])
        assert tokens.var(ddof=1) == pytest.approx(1.0, abs=1e-4)


def two_processes_are_one(tmp_path, kind):
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


@pytest.mark.slow
def test_c20_two_processes_train_save_reload_and_resume(tmp_path):
    two_processes_are_one(tmp_path, "full")


@pytest.mark.slow
def test_c21_two_processes_train_save_reload_and_resume_an_adapter(tmp_path):
    two_processes_are_one(tmp_path, "lora")


@pytest.mark.slow
def test_c23_a_root_sharded_by_fsdp2_steps_like_a_whole_one(tmp_path):
    """accelerate ignores FSDP on a CPU, so `fully_shard` itself: one forward of the root, backward, step, generate."""
    for result in launch(SHARDED, 2, tmp_path / "run"):
        assert result["sharded"] and result["replies"]
        assert result["logprobs"] < 1e-5 and result["weights"] < 1e-5
        assert result["moved"] > 1e-2


@pytest.mark.slow
def test_c23_fsdp2_in_mixed_precision_trains_like_ddp_under_autocast(tmp_path):
    """The whole trainer on accelerate's own FSDP2 with bf16. Near -3.5 bfloat16 rounds by up to 2**-7."""
    results = {kind: launch(MIXED, 2, tmp_path / kind / "run", kind) for kind in ("ddp", "fsdp2")}
    for ddp, fsdp2 in zip(results["ddp"], results["fsdp2"], strict=True):
        assert ddp["type"] == "DistributedDataParallel" and fsdp2["type"] == "FSDPPolicyWithCritic"
        assert fsdp2["sharded"]
        assert fsdp2["dtypes"] == ["torch.float32"] * 2 and max(fsdp2["rounded"]) < 0.2
        assert fsdp2["change"] < 1e-5, "rollout and training see the same policy"
        assert fsdp2["logprobs"] == pytest.approx(ddp["logprobs"], abs=2**-9)
        assert fsdp2["values"] == pytest.approx(ddp["values"], abs=2**-8)
        assert fsdp2["loss"] == pytest.approx(ddp["loss"], abs=2e-2)
    ddp, fsdp2 = (np.array(results[kind][0]["move"]) for kind in ("ddp", "fsdp2"))
    assert np.linalg.norm(fsdp2 - ddp) < 0.1 * np.linalg.norm(ddp)
    assert results["fsdp2"][0]["resumed"], "a resumed run is the run"
