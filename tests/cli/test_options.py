# SPDX-License-Identifier: Apache-2.0
"""Every option that a command lists is read by somebody, or refused with the reason."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest
import transformers
import trl
from transformers import TrainingArguments

import trl_maxmin
from trl_maxmin.cli import main
from trl_maxmin.cli.main import commands, module_of
from trl_maxmin.cli.options import REFUSED, never_taken, refusal
from trl_maxmin.cli.parser import CommandParser
from trl_maxmin.trainer.maxmin.maxmin_config import MaxMinConfigMixin


CLI = Path(inspect.getfile(CommandParser)).parent
ROOMS = {
    "reward": ["reward"],
    "ppo": ["ppo", "maxmin"],
    "grpo": ["maxmin"],
    "rloo": ["maxmin"],
    "dpo": ["dpo", "maxmin"],
}
TRAINERS = {
    "reward": trl_maxmin.MixtureRewardTrainer,
    "ppo": trl_maxmin.MaxMinPPOTrainer,
    "grpo": trl_maxmin.MaxMinGRPOTrainer,
    "rloo": trl_maxmin.MaxMinRLOOTrainer,
    "dpo": trl_maxmin.MaxMinDPOTrainer,
}
PARSED = [name for name in commands() if name not in ("space", "env", "completion")]


def names_read(files):
    """Attributes that are read, and texts such as those of `getattr`, in source files."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(node.value.split()) if len(node.value) < 400 else set()
    return found


def own_files(command):
    """The module of a command and what it imports of its package, but the table of refusals and the parser."""
    todo, done = [CLI / f"{module_of(command)}.py"], set()
    while todo:
        file = todo.pop()
        if file in done:
            continue
        done.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module not in (None, "options", "parser"):
                todo.append(CLI / f"{node.module}.py")
    return done


def host_files(command, config):
    """Modules of the classes of trainer and arguments, of their rooms, and of the hosts' parts that get them whole."""
    classes = {*TRAINERS[command].__mro__, *config.__mro__} - {object}
    files = {inspect.getsourcefile(kind) for kind in classes}
    for room in [*ROOMS[command], "common"]:
        files |= set((Path(trl_maxmin.__file__).parent / "trainer" / room).glob("*.py"))
    host = Path(transformers.__file__).parent
    files |= {*host.glob("trainer*.py"), host / "training_args.py", *(host / "integrations").glob("*.py")}
    files |= {Path(trl.__file__).parent / "trainer" / "callbacks.py"}
    return {str(file) for file in files}


@pytest.fixture
def dataclasses_of(monkeypatch, capsys):
    """The dataclasses that a command's parser is made of."""

    def find(command):
        seen, init = [], CommandParser.__init__

        def record(self, types=None, *args, **kwargs):
            seen.extend(types if isinstance(types, (list, tuple)) else [types])
            init(self, types, *args, **kwargs)

        monkeypatch.setattr(CommandParser, "__init__", record)
        with pytest.raises(SystemExit):
            main([command, "--help_all"])
        return seen, capsys.readouterr().out

    return find


@pytest.mark.parametrize("command", PARSED)
def test_nothing_is_dropped(command, dataclasses_of):
    kinds, text = dataclasses_of(command)
    refused = {name for entry in REFUSED.get(command, ()) for name in entry.options.split()}
    own, dropped = names_read(own_files(command)) | names_read([trl.trainer.utils.__file__]), []
    for kind in kinds:
        read = own
        if issubclass(kind, TrainingArguments):
            read = own | names_read(host_files(command, kind))
        elif issubclass(kind, MaxMinConfigMixin):
            read = own | names_read((Path(trl_maxmin.__file__).parent / "trainer" / "maxmin").glob("*.py"))
        dropped += [f.name for f in dataclasses.fields(kind) if f.init and f.name not in read | refused]
    # Of the parser itself: refused for all commands.
    assert set(dropped) <= {"trust_remote_code"}
    assert refused <= {f.name for kind in kinds for f in dataclasses.fields(kind)}, "the table names what there is"
    assert not {f"--{name}" for name in never_taken(command)} & set(text.split()), "not listed"


def test_space_reads_its_options():
    from trl_maxmin.cli.space import parser

    options = {action.dest for action in parser()._actions} - {"help"}
    assert options <= names_read([CLI / "space.py"])
    assert {name for entry in REFUSED["space"] for name in entry.options.split()} <= options


def test_a_field_that_nobody_reads_is_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("@dataclass\nclass A:\n    unread: int = 1\n    seen: int = 2\n\nprint(args.seen)\n")
    assert "seen" in names_read([file]) and "unread" not in names_read([file])


POLICY = ["--dataset_name", "d.jsonl", "--model_name_or_path", "m", "--reward_model", "r", "--output_dir", "o"]
REWARD = ["--dataset_name", "d.jsonl", "--model_name_or_path", "m", "--output_dir", "o"]
BEST_OF = ["--policy", "p", "--reward_model", "m", "--completions", "c.jsonl", "--reference", "a"]
EVALUATE = ["--completions", "c.jsonl", "--reference", "a", "--gold", "world:positive"]


@pytest.mark.parametrize(
    ("command", "argv", "option"),
    [
        *(
            (command, [*POLICY, *words], words[0])
            for command in ("ppo", "grpo", "rloo")
            for words in (
                ["--dataset_streaming", "true"],
                ["--ignore_bias_buffers"],
                ["--load_in_4bit"],
                ["--lora_r", "4"],
                ["--bnb_4bit_quant_type", "fp4", "--use_peft"],
                ["--lora_target_modules", "q_proj"],
                ["--do_train"],
                ["--label_smoothing_factor", "0.1"],
            )
        ),
        ("ppo", [*POLICY, "--sft_model_path", "EleutherAI/pythia-160m"], "--sft_model_path"),
        ("ppo", [*POLICY, "--reward_model_path=x"], "--reward_model_path"),
        ("ppo", [*POLICY, "--batch_size", "4"], "--batch_size"),
        ("ppo", [*POLICY, "--world_size", "2"], "--world_size"),
        ("reward", [*REWARD, "--use_peft"], "--use_peft"),
        ("reward", [*REWARD, "--lora_r", "8"], "--lora_r"),
        ("reward", [*REWARD, "--load_in_8bit"], "--load_in_8bit"),
        ("reward", [*REWARD, "--pad_token", "<pad>"], "--pad_token"),
        ("reward", [*REWARD, "--component_type", "lora", "--lora_task_type", "SEQ_CLS"], "--lora_task_type"),
        ("reward", [*REWARD, "--train_trunk", "false", "--resume_from_checkpoint", "true"], "--resume_from"),
        ("assign", ["--reward_model", "m", "--dataset_name", "d", "--seed", "0"], "--seed"),
        (
            "assign",
            ["--reward_model", "m", "--dataset_name", "d", "--dataset_test_split", "t"],
            "--dataset_test_split",
        ),
        ("diagnose", ["--dataset_name", "d", "--batch_size", "4"], "--batch_size"),
        ("evaluate", [*EVALUATE, "--temperature", "0.5"], "--temperature"),
        ("evaluate", [*EVALUATE, "--judge_key_variable", "KEY"], "--judge_key_variable"),
        ("best-of", ["--policy", "p", "--reward_model", "m", "--welfare_window", "4"], "--welfare_window"),
        ("best-of", [*BEST_OF, "--dataset_name", "d"], "--dataset_name"),
        ("push", ["run", "--repo_id", "me/x", "--space_hardware", "zero-a10g"], "--space_hardware"),
        ("push", ["run", "--repo_id", "me/x", "--exact", "--dataset"], "--dataset"),
        ("space", ["--run", "r", "--push", "me/x", "--port", "7861"], "--port"),
        ("space", ["--run", "r", "--hardware", "zero-a10g"], "--hardware"),
    ],
)
def test_without_an_effect_is_refused(command, argv, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([command, *argv]) == 2
    error = capsys.readouterr().err.strip()
    assert f"{option}" in error and "is refused: " in error and len(error.splitlines()) == 1
    assert error.count(". ") >= 1, "the reason, and the next step"


def test_a_recipe_is_looked_at_as_well(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("dataset_streaming: true\n")
    assert main(["diagnose", "--config", str(tmp_path / "r.yaml"), "--dataset_name", "d"]) == 2
    assert "--dataset_streaming True is refused" in capsys.readouterr().err
    # What says what holds anyway is no fault.
    assert refusal("diagnose", ["dataset_streaming"], {"dataset_streaming": False}) is None


def test_what_is_taken_reaches_from_pretrained(monkeypatch):
    from trl import ModelConfig

    from trl_maxmin.cli.loading import init_options

    model = ModelConfig("m", model_revision="v1", dtype="bfloat16", attn_implementation="eager")
    assert init_options(model, {"use_cache": False}) == {
        "revision": "v1",
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        "use_cache": False,
    }
    with pytest.raises(ValueError, match="JSON object"):
        init_options(model, "use_cache")
