"""The measurements of speed and memory, in miniature: that they run, and that their ratios are those they name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import base_memory, token_costs
from benchmarks.peak_memory import PeakMemory
from trl_maxmin import MixtureRewardModel


ROOT = Path(__file__).resolve().parents[2]
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read on Linux")


def run(script, *options):
    """A benchmark as printed in its docstring."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, options)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@needs_proc
def test_peak_memory_sees_what_is_held_for_a_moment():
    memory = PeakMemory("cpu")
    memory.reset()
    before = memory.now()
    held = bytearray(os.urandom(2**20)) * 64
    del held
    assert memory.peak() >= before + 63
    memory.reset()
    assert memory.peak() <= before + 32


def test_the_ratio_is_to_one_base_beside_the_activations_of_one_component():
    one = {"one_base": 100.0, "weights": 110.0, "peak": 150.0}
    several = {"one_base": 100.0, "weights": 140.0, "peak": 170.0}
    assert base_memory.summarise(one, several) == {"activations_k1": 40.0, "ratio": 1.3}


@pytest.mark.filterwarnings("ignore")
def test_the_base_carries_the_policy_and_the_rewards_and_no_copy_for_the_reference(tmp_path):
    sizes = base_memory.NUMBERS | {
        "vocabulary": 50, "layers": 1, "width": 32, "inner": 64, "heads": 2, "tokens": 16, "prompt": 8, "batch": 2,
        "rank": 4, "device": "cpu",
    }  # fmt: skip
    torch.manual_seed(0)
    tokenizer = base_memory.word_tokenizer(sizes["vocabulary"])
    base = base_memory.make_base(sizes)
    mixture = MixtureRewardModel.from_base(base, 2, "lora", processing_class=tokenizer)
    trainer = base_memory.step(base, mixture, tokenizer, sizes, str(tmp_path))
    names = {name.partition(".lora_A.")[2].split(".")[0] for name, _ in base.named_parameters() if ".lora_A." in name}
    assert names == {"default", "maxmin_reward_0", "maxmin_reward_1"}
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in base.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(".default." in name for name in moved)


@pytest.mark.parametrize("prompt", ["128", "0"])
def test_base_memory_needs_room_for_a_reply(prompt, capsys):
    with pytest.raises(SystemExit):
        base_memory.main(["--tokens", "128", "--prompt", prompt])
    assert f"from 1 to 127 (--tokens), got {prompt}" in capsys.readouterr().err


@needs_proc
@pytest.mark.slow
@pytest.mark.exhaustive
def test_base_memory_in_miniature(tmp_path):
    out = tmp_path / "memory.json"
    sizes = {"vocabulary": 50, "layers": 2, "width": 32, "inner": 64, "heads": 2, "tokens": 16, "prompt": 8}
    run("base_memory.py", "--out", out, *(text for name, value in sizes.items() for text in (f"--{name}", value)))
    record = json.loads(out.read_text())
    assert list(record["runs"]) == ["score_k1", "score_k4", "ppo_k1", "ppo_k4"]
    assert all(0 < values["weights"] <= values["peak"] for values in record["runs"].values())
    assert bool(record["machine"]["gpu"]) == torch.cuda.is_available()
    assert record["settings"]["tokens"] == 16


class Counted:
    """Memory that says what it is told: 10 of a rollout, 100 more of a forward that training keeps."""

    on_gpu = False
    held = highest = 0

    def hold(self, amount):
        self.held += amount
        self.highest = max(self.highest, self.held)

    def now(self):
        return self.held

    def peak(self):
        return self.highest

    def reset(self):
        self.highest = self.held


class Layer(torch.nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.memory, self.weight = memory, torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.memory.hold(100 if torch.is_grad_enabled() else 10)
        return self.weight * x


@pytest.fixture
def meter(monkeypatch):
    """A meter of `ppo_side.py` on a model of one weight."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ppo_side

    meter = ppo_side.Meter("cpu")
    meter.memory = Counted()
    trainer = SimpleNamespace(model=Layer(meter.memory))
    meter.watch(trainer, SimpleNamespace(base_model=torch.nn.Identity()))
    yield meter, trainer.model
    for name in ("ppo_side", "peak_memory"):
        sys.modules.pop(name, None)


def test_a_rollout_ends_before_the_first_forward_of_the_training(meter):
    meter, model = meter
    for _ in range(2):
        with torch.no_grad():
            model(torch.ones(1))
        for _ in range(3):
            model(torch.ones(1)).backward()
            meter.memory.held -= 100
        meter.memory.held -= 10
        meter.on_step_end(None, None, None)
    assert meter.peaks == {"rollout": [10, 10], "update": [110, 110]}


def test_a_gpu_is_waited_for_before_the_clock_is_read(meter, monkeypatch):
    meter, _ = meter
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    monkeypatch.setattr("time.perf_counter", lambda: events.append("clock") or 1.0)
    meter.lap()
    meter.memory.on_gpu = True
    meter.lap()
    assert events == ["clock", "synchronize", "clock"]


@needs_proc
@pytest.mark.slow
@pytest.mark.exhaustive
def test_ppo_sides_in_half_precision_and_with_checkpointing(tmp_path):
    out = tmp_path / "sides.json"
    run(
        "ppo_vs_trl.py", "--sides", "ours", "k1", "--seeds", 1, "--updates", 3, "--vocabulary", 80, "--layers", 1,
        "--width", 48, "--limit", 16, "--batch", 8, "--micro-batch", 4, "--sft-steps", 5, "--bf16", "--checkpointing",
        "--work", tmp_path / "work", "--out", out,
    )  # fmt: skip
    record = json.loads(out.read_text())
    assert record["settings"]["bf16"] and record["settings"]["checkpointing"]
    for side in record["runs"]:
        # A reply has at most 16 tokens and a prompt from 8 to 16.
        per_episode = side["tokens_per_second"] / side["episodes_per_second"]
        assert 8 < per_episode <= 32
        assert side["optimizer_steps"] == 12


@needs_proc
def test_token_costs_in_miniature(tmp_path):
    out = tmp_path / "costs.json"
    sizes = {"vocabulary": 600, "tokens": 32, "width": 8, "rows": 2, "repeats": 1}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    token_costs.main([*options, "--output", str(out)])
    record = json.loads(out.read_text())
    assert record["without_gradient"]["chunk"] >= 64 and record["settings"]["repeats"] == 1
    for name, sides in {"loss": 2, "without_gradient": 2, "draw": 3}.items():
        seconds = list(record[name]["seconds"].values())
        assert len(seconds) == sides and record[name]["ratio"] == pytest.approx(seconds[1] / seconds[0])
