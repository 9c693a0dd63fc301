# SPDX-License-Identifier: Apache-2.0
"""The example scripts, in small, as their docstrings launch them: one process and two."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.launcher import launch
from tests.trainer.ppo_helpers import PROMPTS, gpt2
from tests.trainer.trl_helpers import mixture_of


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = [
    "mixture_reward",
    "maxmin_ppo",
    "maxmin_grpo",
    "maxmin_rloo",
    "maxmin_dpo",
    "evaluate_groups",
    "custom_welfare",
]
#: Of what each trains by, one on two processes in `make test`; all in `make test-all`.
TWICE = ["mixture_reward", "maxmin_ppo", "maxmin_dpo", "evaluate_groups"]
ALSO = [pytest.param(name, marks=pytest.mark.exhaustive) for name in SCRIPTS if name not in TWICE]
QUIET = ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none"]
QUIET += ["--save_strategy", "no", "--disable_tqdm", "true", "--logging_steps", "1", "--max_steps", "2"]
POLICY = ["--dataset_name", "prompts.jsonl", "--model_name_or_path", "base", "--reward_model", "mixture"]
GROUPS = ["--per_device_train_batch_size", "4", "--num_generations", "2", "--max_completion_length", "6"]
OPTIONS = {
    "mixture_reward": ["--dataset_name", "preferences.jsonl", "--model_name_or_path", "base", "--output_dir", "out"]
    + ["--per_device_train_batch_size", "8", "--learning_rate", "1e-3", *QUIET],
    "maxmin_ppo": [*POLICY, "--output_dir", "out", "--per_device_train_batch_size", "4", "--response_length", "6"]
    + ["--num_reference_completions", "4", *QUIET],
    "maxmin_grpo": [*POLICY, "--output_dir", "out", "--num_reference_completions", "4", *GROUPS, *QUIET],
    "maxmin_rloo": [*POLICY, "--output_dir", "out", "--num_reference_completions", "4", *GROUPS, *QUIET],
    "maxmin_dpo": ["--dataset_name", "preferences.jsonl", "--model_name_or_path", "base", "--assignments", "mixture"]
    + ["--output_dir", "out", "--per_device_train_batch_size", "4", *QUIET],
    "custom_welfare": [*POLICY, "--output_dir", "out", "--num_reference_completions", "4", *GROUPS, *QUIET],
    "evaluate_groups": [*POLICY, "--reference_model", "other", "--max_new_tokens", "6", "--output_file", "out.json"],
}


@pytest.fixture
def folder(tmp_path, word_tokenizer, monkeypatch):
    """Policies, a mixture, preferences and prompts such as a user has; the working directory is their folder."""
    for name, seed in (("base", 0), ("other", 1)):
        gpt2(seed=seed, vocab_size=len(word_tokenizer)).save_pretrained(tmp_path / name)
        word_tokenizer.save_pretrained(tmp_path / name)
    mixture_of(word_tokenizer).save_pretrained(tmp_path / "mixture")
    rows = [
        {"prompt": "review :", "chosen": "great" if h else "dull", "rejected": "dull" if h else "great"}
        | {"annotator_id": f"a{h}"}
        for h in range(4)
        for _ in range(8)
    ]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"prompt": prompt} for prompt in PROMPTS * 4]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(name, folder):
    if name == "mixture_reward":
        mixture = AutoModel.from_pretrained(folder / "out")
        assert mixture.num_components == 2 and mixture.processing_class is not None
    elif name == "evaluate_groups":
        report = json.loads((folder / "out.json").read_text())
        assert report["num_prompts"] == 24 and report["groups"].keys() == {"component_0", "component_1"}
        assert report["worst"] == min(rate["mean"] for rate in report["groups"].values())
        for rate in report["groups"].values():
            assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    else:
        policy = AutoModelForCausalLM.from_pretrained(folder / "out")
        AutoTokenizer.from_pretrained(folder / "out")
        before = AutoModelForCausalLM.from_pretrained(folder / "base").state_dict()
        assert any(not torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize("name", SCRIPTS)
def test_on_one_process(name, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *OPTIONS[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    check(name, folder)


SCRIPT = """
import json, os, runpy, sys
import torch
torch.set_num_threads(1)
out, script = sys.argv[1], sys.argv[2]
sys.argv = [script, *sys.argv[3:]]
names = runpy.run_path(script, run_name="__main__")
import accelerate
state = accelerate.PartialState()
open(f"{out}.{state.process_index}", "w").write(json.dumps({"world": state.num_processes}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TWICE, *ALSO])
def test_on_two_processes(name, folder):
    ranks = launch(SCRIPT, 2, folder / "ranks" / name, str(EXAMPLES / f"{name}.py"), *OPTIONS[name])
    assert [rank["world"] for rank in ranks] == [2, 2]
    check(name, folder)


@pytest.mark.parametrize("name", SCRIPTS)
def test_they_are_short_and_say_how_they_are_launched(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 100
    assert re.search(r"^# /// script\n# dependencies = \[.*trl-maxmin.*\]\n# ///$", text, re.MULTILINE)
    docstring = ast.get_docstring(ast.parse(text))
    commands = [line for line in docstring.splitlines() if line.startswith("accelerate launch")]
    assert len(commands) == 2 and "--num_processes 1" in commands[0] and "--num_processes 4" in commands[1]
    config = re.search(r"--config_file (\S+)", commands[1]).group(1)
    assert (EXAMPLES.parent / config).is_file() and all(f"examples/{name}.py" in command for command in commands)


class TestConstrainedRule:
    """The custom rule: keep the majority above a floor, then help the minority."""

    @pytest.fixture(scope="class")
    def rule(self):
        return runpy.run_path(str(EXAMPLES / "custom_welfare.py"))["keep_the_majority_above"](0.5, softness=0.1)

    def test_below_the_floor_the_majority_counts(self, rule):
        assert rule(torch.tensor([-1.0, -9.0])).tolist() == pytest.approx([1.0, 0.0], abs=1e-5)

    def test_above_it_the_worst_off_of_the_others(self, rule):
        assert rule(torch.tensor([2.0, 3.0, -1.0])).tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-5)

    def test_at_the_floor_they_share(self, rule):
        assert rule(torch.tensor([0.5, 0.0])).tolist() == pytest.approx([0.5, 0.5])

    def test_an_unscored_component_gets_none_of_the_weight(self, rule):
        nan = float("nan")
        assert rule(torch.tensor([2.0, nan, 1.0])).tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-5)
        assert torch.isfinite(rule(torch.tensor([nan, 0.0]))).all()
