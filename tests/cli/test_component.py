# SPDX-License-Identifier: Apache-2.0
"""`--component NAME`: a policy for one group, with a record that says so."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from trl_maxmin import MixtureRewardModel
from trl_maxmin.cli import main
from trl_maxmin.run_record import RunRecord


COMMON = "--use_cpu true --bf16 false --gradient_checkpointing false --report_to none --save_strategy no".split()
COMMON += "--disable_tqdm true --max_steps 1 --num_reference_completions 4 --output_dir out".split()
SIZES = {
    "ppo": "--per_device_train_batch_size 4 --response_length 4".split(),
    "grpo": "--per_device_train_batch_size 4 --num_generations 2 --max_completion_length 4".split(),
    "rloo": "--per_device_train_batch_size 4 --num_generations 2 --max_completion_length 4".split(),
}
NEEDED = "--dataset_name prompts.jsonl --model_name_or_path base --reward_model mixture".split()


@pytest.fixture
def folder(tmp_path, word_tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    mixture = MixtureRewardModel.from_base(str(tmp_path / "base"), 3, component_names=["brief", "warm", "nobody"])
    mixture.config.component_annotators, mixture.config.component_pairs = [40, 10, 0], [400, 100, 0]
    mixture.save_pretrained(tmp_path / "mixture")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ["film", "movie"] * 4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command", ["ppo", pytest.param("grpo", marks=pytest.mark.slow), pytest.param("rloo", marks=pytest.mark.slow)]
)
def test_one_component_is_trained_for(folder, command):
    assert main([command, *NEEDED, *COMMON, *SIZES[command], "--component", "warm"]) == 0
    AutoModelForCausalLM.from_pretrained("out")
    policy = RunRecord.load("out").policy
    assert policy["component"] == "warm" and policy["reward_model"].endswith("mixture")
    assert policy["calibration"] == {"utility": "zscore"}, "its own calibration, where one reward alone would be raw"
    groups = {name.split("/")[-1] for name in policy["curves"] if name.startswith("maxmin/utility/")}
    assert groups == {"warm"}
    card = (folder / "out" / "README.md").read_text()
    assert "for one group alone: on the reward of the component `warm`" in card
    assert RunRecord.load("out").part("policy").policy["component"] == "warm"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--component", "kind"], "--component kind: the components of mixture are brief, warm."),
        (["--component", "nobody"], "--component nobody: the components of mixture are brief, warm."),
        (["--component", "warm", "--welfare", "mirror"], "--welfare mirror is refused: it weighs components"),
        (["--component", "warm", "--reward_model", "mixture,mixture"], "--component warm is of a mixture"),
    ],
)
def test_wrong_calls(folder, capsys, argv, message):
    assert main(["ppo", *NEEDED, *COMMON, *SIZES["ppo"], *argv]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out" / "config.json").exists()
