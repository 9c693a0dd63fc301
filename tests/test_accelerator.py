# SPDX-License-Identifier: Apache-2.0
"""What a machine with an accelerator would meet, seen without one."""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import build_word_tokenizer
from tests.launcher import launch
from tests.trainer.ppo_helpers import gpt2, lora
from trl_maxmin import MixtureRewardConfig, MixtureRewardModel
from trl_maxmin.data.tokenization import same_vocabulary
from trl_maxmin.distributed import on_main
from trl_maxmin.evaluation.generation import reply_logprobs
from trl_maxmin.models.base import forked_rng, pick_device, weight_hash
from trl_maxmin.trainer.maxmin.calibration import weights_digest
from trl_maxmin.trainer.ppo.policy_adapters import add_critic_adapter
from trl_maxmin.trainer.ppo.setup import refuse_engine_scheduler
from trl_maxmin.trainer.reward.setup import build_mixture


CPU = torch.device("cpu")


class Largest(TorchDispatchMode):
    """The largest number of entries of a tensor that is made, by its type."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.sizes[tensor.dtype] = max(self.sizes.get(tensor.dtype, 0), tensor.numel())
        return out


@pytest.fixture
def eight_gpus(monkeypatch):
    """A machine that says it has eight GPUs, and fails where one of them is touched."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    touched = mock.Mock(side_effect=AssertionError("a GPU was touched"))
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all", "init"):
        monkeypatch.setattr(torch.cuda, name, touched)
    return touched


def test_what_is_drawn_on_the_cpu_touches_no_gpu(request, word_tokenizer):
    from peft import get_peft_model

    model, policy = gpt2(), get_peft_model(gpt2(), lora())
    args = MixtureRewardConfig(output_dir="x", use_cpu=True, bf16=False)
    before = torch.get_rng_state()
    eight_gpus = request.getfixturevalue("eight_gpus")
    with mock.patch.object(torch, "manual_seed", eight_gpus):
        build_mixture(model, args, 2, word_tokenizer, None)
        add_critic_adapter(policy)
        with forked_rng(CPU, 3):
            torch.rand(1)
    assert not eight_gpus.called
    assert torch.equal(before, torch.get_rng_state())


def test_a_forked_stream_depends_on_its_seed_alone():
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(3)
        with forked_rng(CPU, seed):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), drawn[0]), "the stream of `torch.manual_seed`"


def test_the_accelerator_is_chosen_where_there_is_one(monkeypatch):
    assert pick_device("meta") == torch.device("meta")
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device().type == "cuda"


@pytest.fixture
def mixture(tmp_path, word_tokenizer):
    made = MixtureRewardModel.from_base(gpt2(), 2, processing_class=word_tokenizer)
    made.save_pretrained(tmp_path / "mixture")
    word_tokenizer.save_pretrained(tmp_path / "mixture")
    row = '{"prompt": "review of", "chosen": "good film", "rejected": "bad plot", "annotator_id": "a"}\n'
    (tmp_path / "pairs.jsonl").write_text(row * 4)
    return tmp_path


def test_assign_and_the_space_score_on_the_accelerator(mixture, monkeypatch):
    import trl_maxmin.models.base as base
    from trl_maxmin.cli import assign, main, space
    from trl_maxmin.space.scoring import _load_mixture

    placed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(assign, "place", lambda model, device: placed.append(device.type))
    monkeypatch.chdir(mixture)
    assert main(["assign", "--reward_model", "mixture", "--dataset_name", "pairs.jsonl"]) == 0
    monkeypatch.setattr(base, "place", lambda model, device: placed.append(device.type))
    config = SimpleNamespace(mixture="mixture", record=str(mixture), device=None)
    space._describe(config, "pairs.jsonl")
    assert placed == ["cuda", "cuda"]
    moved = []
    monkeypatch.setattr(MixtureRewardModel, "to", lambda self, device: moved.append(device.type))
    _load_mixture(config)
    assert moved == ["cuda"]


def test_log_probabilities_are_exact_and_never_hold_all_logits():
    vocabulary, rows, reply = 5000, 8, 200
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_layer=1, n_head=2, n_embd=8, n_positions=300)
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(vocabulary, (3 + 7 * i,), generator=generator).tolist() for i in range(rows)]
    replies = [torch.randint(vocabulary, (reply - i,), generator=generator).tolist() for i in range(rows)]
    with Largest() as largest, mock.patch("trl_maxmin.trainer.ppo.policy.CACHED_LOGITS", 150 * vocabulary):
        found = reply_logprobs(model, prompts, replies, 0.7, rows)
    assert largest.sizes[torch.float32] <= 151 * vocabulary < rows * reply * vocabulary / 10
    for row in range(rows):
        ids = torch.tensor([prompts[row] + replies[row]])
        with torch.no_grad():
            expected = (model(ids).logits[0, len(prompts[row]) - 1 : -1].double() / 0.7).log_softmax(-1)
        expected = expected.gather(-1, torch.tensor(replies[row])[:, None]).sum().item()
        assert found[row] == pytest.approx(expected, rel=1e-5)


def test_an_encoder_has_no_log_probabilities_of_replies():
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(ValueError, match="head|decoder"):
        reply_logprobs(BertLMHeadModel(config).eval(), [[5]], [[6]])


class TestFingerprint:
    def test_no_copy_of_a_weight_is_made(self):
        weight = torch.randn(64, 64)
        with Largest() as largest:
            weights_digest([("w", torch.nn.Parameter(weight))])
        assert max(size for dtype, size in largest.sizes.items() if dtype != weight.dtype) == 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8])
    def test_any_change_shows_and_no_order_of_adding_up(self, dtype):
        weight = (torch.randn(257, 3, generator=torch.Generator().manual_seed(0)) * 3).abs().to(dtype)
        assert weight_hash(weight) == weight_hash(weight.T.contiguous().T) == weight_hash(weight.flip(0))
        changed = weight.clone()
        changed[5, 1] = changed[5, 1].float() + 1
        assert weight_hash(changed) != weight_hash(weight)

    def test_a_device_that_cannot_gives_what_the_cpu_gives(self, monkeypatch):
        weight, hash_tensor, calls = torch.randn(8), torch.hash_tensor, []

        def refuse_first(tensor):
            calls.append(tensor)
            if len(calls) == 1:
                raise NotImplementedError("not on this device")
            return hash_tensor(tensor)

        expected = weight_hash(weight)
        monkeypatch.setattr(torch, "hash_tensor", refuse_first)
        assert weight_hash(weight) == expected and len(calls) == 2


def test_vocabularies_are_compared_once_and_again_when_they_change():
    first, second = build_word_tokenizer(), build_word_tokenizer()
    assert same_vocabulary(first, second)
    with mock.patch.object(type(first), "get_vocab", side_effect=AssertionError("compared again")):
        assert same_vocabulary(first, second)
    second.add_tokens(["brand-new"])
    assert not same_vocabulary(first, second)
    first.add_tokens(["brand-new"])
    assert same_vocabulary(first, second)


def test_a_scheduler_of_deepspeed_is_refused():
    def accelerator(**config):
        return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=config)))

    refuse_engine_scheduler(accelerator(zero_optimization={"stage": 2}))
    refuse_engine_scheduler(SimpleNamespace(state=SimpleNamespace()))
    with pytest.raises(ValueError, match=r"`scheduler: \{'type': 'WarmupLR'\}`.*lr_scheduler_type"):
        refuse_engine_scheduler(accelerator(scheduler={"type": "WarmupLR"}))


# The time limit of the ranks' own group is a twentieth of a second, and the main process works for much longer.
JUDGE = """
import json, sys, time
from datetime import timedelta
import numpy as np, torch, torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.distributed_c10d import _set_pg_timeout
from trl_maxmin.distributed import on_main
from trl_maxmin.evaluation.judges import judge_pairs

accelerator = Accelerator(cpu=True)
dist.barrier()
_set_pg_timeout(timedelta(milliseconds=50), dist.group.WORLD)
calls = []

class Slow:
    def judge(self, prompts, completions, shuffle_order=True):
        calls.append(1)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            torch.randn(64, 64) @ torch.randn(64, 64)
        return [0 if len(a) > len(b) else 1 for a, b in completions]

def fail():
    raise ValueError("the judge refused")

judged = on_main(accelerator, lambda: judge_pairs(Slow(), ["p"] * 2, ["abc", "a"], ["ab", "ab"]))
try:
    on_main(accelerator, fail)
    error = None
except Exception as problem:
    error = f"{type(problem).__name__}: {problem}"
_set_pg_timeout(timedelta(seconds=60), dist.group.WORLD)
result = {"outcomes": judged.outcomes.tolist(), "counts": judged.counts, "calls": len(calls), "error": error}
open(f"{sys.argv[1]}.{accelerator.process_index}", "w").write(json.dumps(result))
"""


@pytest.mark.slow
def test_ranks_wait_for_a_judge_longer_than_their_group_waits(tmp_path):
    main, other = launch(JUDGE, 2, tmp_path / "out")
    assert main["outcomes"] == other["outcomes"] == [1.0, 0.0] and main["counts"] == other["counts"]
    assert (main["calls"], other["calls"]) == (1, 0)
    assert main["error"] == "ValueError: the judge refused"
    assert other["error"] == "RuntimeError: The main process failed: ValueError: the judge refused"


def test_one_process_asks_itself():
    assert on_main(SimpleNamespace(num_processes=1), lambda: np.arange(2)).tolist() == [0, 1]


def test_tests_run_on_the_cpu_by_default_and_on_the_device_that_is_named(device):
    """The device of this run, and in a process of its own one that is named."""
    if "TRL_MAXMIN_TEST_DEVICE" not in os.environ:
        assert (device.type, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cpu", "-1")
    code = "import os, tests.conftest as c, torch; print(c.TEST_DEVICE, os.environ.get('CUDA_VISIBLE_DEVICES'))"
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "TRL_MAXMIN_TEST_DEVICE": "meta"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "meta None", run.stderr
    assert torch.zeros(1, device=device).device.type == device.type
