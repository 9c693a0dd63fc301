"""The Tulu2 recipe from beginning to end, with a tiny Llama and generated comparisons; its page's memory table."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trl_maxmin.cli import main
from trl_maxmin.cli.estimate import EstimateArguments, estimate_memory
from trl_maxmin.trainer.scoring.callables import load_reward_model


RECIPE = Path(__file__).resolve().parents[2] / "examples" / "recipes" / "tulu2"
# What a machine without a GPU changes, beside the model id.
CPU = ["--model_name_or_path", "base", "--dtype", "float32", "--bf16", "false", "--use_cpu", "true"]
CPU += ["--disable_tqdm", "true", "--gradient_checkpointing", "false", "--save_strategy", "no"]


def prepare(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    runpy.run_path(str(RECIPE / "prepare.py"), run_name="__main__")


@pytest.fixture
def comparisons(tmp_path):
    """P2B wants more said, P2A less; one file is a JSON list, one has lines with another line separator in a reply."""
    texts = ["superb", "the film is superb and the plot is great"]
    rows = [{"prompt": f"review {i} :", "chosen": texts[1], "rejected": texts[0]} for i in range(12)]
    (tmp_path / "P2B.json").write_text(json.dumps(rows))
    rows = [{"prompt": f"review {i} :", "chosen": texts[0] + "\u2028", "rejected": texts[1]} for i in range(12)]
    (tmp_path / "P2A.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return [tmp_path / "P2B.json", tmp_path / "P2A.jsonl"]


def test_annotators_keep_the_ratio(comparisons, tmp_path, monkeypatch):
    out = tmp_path / "data"
    prepare(monkeypatch, "--comparisons", *comparisons, "--ratio", "10:1", "--pairs", "5", "--output_dir", out)
    rows = [json.loads(line) for line in (out / "preferences.jsonl").read_text().split("\n") if line]
    people = {row["annotator_id"]: row["group"] for row in rows}
    assert len(rows) == 44 * 5 and sorted(people.values()) == ["P2A"] * 4 + ["P2B"] * 40
    assert all(row["prompt"].startswith("<|user|>\nreview ") for row in rows)
    # Nobody gets a comparison twice.
    assert len({(row["annotator_id"], row["prompt"]) for row in rows}) == len(rows)
    assert len((out / "prompts.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ratio", "ten"], "MAJORITY:MINORITY"),
        (["--ratio", "6:1"], "multiple of 7"),
        (["--pairs", "13"], "fewer than --pairs 13"),
    ],
)
def test_prepare_refuses(comparisons, tmp_path, monkeypatch, options, message):
    with pytest.raises(SystemExit, match=message):
        prepare(monkeypatch, "--comparisons", *comparisons, "--output_dir", tmp_path / "data", *options)


def test_prepare_names_missing_columns(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x", "chosen": "y"}\n')
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with pytest.raises(SystemExit, match="missing: rejected"):
        prepare(monkeypatch, "--comparisons", *files, "--output_dir", tmp_path / "data")
    rows = [json.dumps({"prompt": "x", "chosen": "y", "rejected": "z"}) + "\n"]
    files[0].write_text("".join(rows))
    with pytest.raises(SystemExit, match="different names"):
        prepare(monkeypatch, "--comparisons", files[0], files[0], "--output_dir", tmp_path / "data")


def save_base(folder, tokenizer, width):
    """A tiny Llama in place of the recipe's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_recipe_from_beginning_to_end(comparisons, tmp_path, word_tokenizer, monkeypatch):
    save_base(tmp_path / "base", word_tokenizer, 16)
    monkeypatch.chdir(tmp_path)
    options = ["--ratio", "2:1", "--annotators", "6", "--pairs", "8", "--output_dir", tmp_path]
    prepare(monkeypatch, "--comparisons", *comparisons, *options)
    for config_file, components, folder in (("reward_qlora", 2, "mixture"), ("reward_lora", 1, "single")):
        reward = ["reward", "--config", str(RECIPE / f"{config_file}.yaml"), "--dataset_name", "preferences.jsonl"]
        reward += ["--num_components", str(components), "--output_dir", folder, "--max_steps", "2"]
        assert main([*reward, "--load_in_4bit", "false", *CPU]) == 0
        assert AutoModel.from_pretrained(folder).num_components == components
    small = ["--max_steps", "1", "--response_length", "6", "--per_device_train_batch_size", "2"]
    small += ["--gradient_accumulation_steps", "1", "--load_in_4bit", "false"]
    for config_file, rewards in (("ppo_qlora", "mixture"), ("ppo_zero3", "single"), ("ppo_fsdp2", "mixture")):
        ppo = ["ppo", "--config", str(RECIPE / f"{config_file}.yaml"), "--dataset_name", "prompts.jsonl"]
        ppo += ["--reward_model", rewards, "--output_dir", config_file]
        assert main([*ppo, *CPU, *small]) == 0
        assert (tmp_path / config_file / "run_record.json").is_file()
    assert (tmp_path / "ppo_qlora" / "adapter_config.json").is_file()
    AutoModelForCausalLM.from_pretrained(tmp_path / "ppo_zero3")


@pytest.mark.slow
def test_recipe_in_four_bits(comparisons, tmp_path, word_tokenizer, monkeypatch):
    """The files for one GPU as they are; bitsandbytes has kernels for a CPU."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install bitsandbytes)")
    save_base(tmp_path / "base", word_tokenizer, 64)
    monkeypatch.chdir(tmp_path)
    options = ["--ratio", "2:1", "--annotators", "6", "--pairs", "8", "--output_dir", tmp_path]
    prepare(monkeypatch, "--comparisons", *comparisons, *options)
    reward = ["reward", "--config", str(RECIPE / "reward_qlora.yaml"), "--dataset_name", "preferences.jsonl"]
    assert main([*reward, "--output_dir", "mixture", "--max_steps", "2", *CPU]) == 0
    mixture = load_reward_model("mixture")
    for module in (mixture.trunk.layers[0].mlp.up_proj, mixture.trunk.layers[0].self_attn.q_proj.base_layer):
        assert isinstance(module, bitsandbytes.nn.Linear4bit)
    ppo = ["ppo", "--config", str(RECIPE / "ppo_qlora.yaml"), "--dataset_name", "prompts.jsonl"]
    ppo += ["--reward_model", "mixture", "--output_dir", "policy", "--max_steps", "1", "--response_length", "6"]
    ppo += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    assert main([*ppo, *CPU]) == 0
    assert (tmp_path / "policy" / "adapter_config.json").is_file()


def test_launch_lines_name_files_that_are_there():
    for path in RECIPE.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert f"examples/recipes/tulu2/{path.name}" in text
        assert yaml.safe_load(text)
        for word in text.split():
            if word.startswith("examples/"):
                assert (RECIPE.parents[2] / word).is_file(), word


def test_memory_table_is_the_estimates():
    page = (RECIPE / "README.md").read_text(encoding="utf-8")
    llama_7b = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000)
    names = {
        "rewards, K = 2 adapters on one base": "rewards, lora",
        "scoring: one base, two adapters": "scoring: one base, K adapters or heads",
        "MaxMin-PPO of an adapter (reference: the base) by the command, the mixture on a base of its own": (
            "MaxMin-PPO, a base for policy and reference, one for K adapters"
        ),
        "the same from Python, everything on one base": "MaxMin-PPO, one base for all",
    }
    for column, dtype in enumerate(("bfloat16", "int4"), start=2):
        sizes = EstimateArguments(dtype=dtype, batch_size=4, sequence_length=1024, lora_r=16)
        found = {item.name: item.total / 1e9 for item in estimate_memory(sizes, llama_7b)}
        for row, name in names.items():
            (line,) = [line for line in page.splitlines() if line.startswith(f"| {row} |")]
            assert float(line.split("|")[column]) == pytest.approx(found[name], abs=0.051)


def test_memory_under_fsdp2_is_the_arithmetic_on_the_page():
    page = (RECIPE / "README.md").read_text(encoding="utf-8")
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    block, rest = (
        sum(p.numel() for p in part) / 1e9
        for part in (
            model.model.layers[0].parameters(),
            (p for name, p in model.named_parameters() if ".layers." not in name),
        )
    )
    everything = sum(p.numel() for p in model.parameters()) / 1e9
    expected = {
        # bfloat16 weights, and gradients in bfloat16 and float32
        "two blocks gathered": 2 * 2 * block + 2 * block + 4 * block,
        "embeddings and head": (2 + 2 + 4) * rest,
        "in shards": 16 * everything / 8,
        "reference, a whole": 2 * everything,
        "mixture, whole": 14.1,  # the estimate's, tested above
    }
    rows = {name: float(line.split("|")[3]) for name in expected for line in page.splitlines() if f"| {name}" in line}
    assert rows == pytest.approx(expected, abs=0.051)
    (together,) = [line for line in page.splitlines() if line.startswith("| together")]
    assert float(together.split("|")[3]) == pytest.approx(sum(rows.values()))
    assert f"| {16 * everything:.1f} / N |" in page and f"\n{4 * everything:.1f} GB in float32" in page
