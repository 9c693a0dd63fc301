# SPDX-License-Identifier: Apache-2.0
"""Output folders in miniature: real formats, a few numbers in them."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from trl_maxmin import MixtureRewardModel, MixtureRewardModelConfig
from trl_maxmin.run_record import RunRecord


def interval(mean):
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.02}


def make_record(version=0):
    """A record in which every field that cards show is filled."""
    shift = 0.01 * version
    return (
        RunRecord(seed=version, versions={"trl": "1.16.0"})
        .update(
            "reward",
            dataset={"name": "films.jsonl", "num_rows": 300, "num_annotators": 50},
            component_kind="head",
            component_names=["concise", "positive"],
            num_components=2,
            em={"kind": "soft", "n_init": 4},
            curves={"em/lower_bound": [[0, -9.0], [10, -7.5 + shift]]},
            mixing_weights=[0.8, 0.2],
            component_annotators={"concise": 40, "positive": 10},
            component_pairs={"concise": 240, "positive": 60},
            component_heldout_accuracy={"concise": 0.9, "positive": 0.87 + shift},
            component_heldout_pairs={"concise": 80, "positive": 20},
            heldout_accuracy={"mixture": {"concise": 0.9, "positive": 0.85}, "single": {"positive": 0.42}},
            assignment_accuracy=1.0,
            adjusted_rand_index=0.97,
            converged=True,
            selection={
                "mean": {"1": -0.49, "2": -0.24},
                "difference": {"1": 0.25, "2": 0.0},
                "standard_error": {"1": 0.04, "2": 0.0},
            },
            calibration={"temperature": [0.8, 0.9], "utility": "zscore", "scale": [1.5, 0.7]},
        )
        .update(
            "policy",
            name="maxmin",
            algorithm="PPO",
            reward_model="mixture",
            welfare={"rule": "maxmin"},
            training={"learning_rate": 3e-4, "max_steps": 90},
            calibration={"utility": "zscore"},
            curves={
                "maxmin/utility/concise": [[1, 0.1]],
                "maxmin/utility/positive": [[1, 0.2]],
                "maxmin/worst_utility": [[1, -0.1], [2, 0.4 + shift]],
                "objective/kl": [[1, 0.2], [2, 3.5]],
            },
        )
        .update(
            "evaluation",
            groups=["concise", "positive"],
            majority="concise",
            minority="positive",
            num_prompts=100,
            utility="gold",
            gold_utility={
                "reference": {"concise": 0.4, "positive": 0.3},
                "single": {"concise": 0.8, "positive": 0.2},
                "maxmin": {"concise": 0.7, "positive": 0.8},
            },
            win_rate={
                "single": {"concise": interval(0.95), "positive": interval(0.33)},
                "maxmin": {"concise": interval(0.9 + shift), "positive": interval(0.91)},
            },
            samples=[
                {
                    "prompt": "a war film :",
                    "completions": {"reference": "dull", "maxmin": "superb | <b>film</b>"},
                    "utility": {
                        "reference": {"concise": 0.9, "positive": -1.0},
                        "maxmin": {"concise": 0.5, "positive": 1.0},
                    },
                }
            ],
        )
    )


GPT2 = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16, "bos_token_id": 1}
GPT2 |= {"eos_token_id": 2, "pad_token_id": 0}
_WORDS = {"type": "WordLevel", "vocab": {"<pad>": 0, "film": 3}, "unk_token": "<pad>"}
TOKENIZER = json.dumps({"version": "1.0", "added_tokens": [], "model": _WORDS}).encode()
OTHER_TOKENIZER = TOKENIZER.replace(b"film", b"movie")


def make_model(folder, seed=0, **config):
    """A model as `save_pretrained` leaves it: of language, or with `num_labels` a classifier, or a mixture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config.pop("model_type", "gpt2") == "mixture_reward":
            base = GPT2Config(**GPT2, n_inner=8)
            model = MixtureRewardModel(MixtureRewardModelConfig(base_config=base, **config))
        elif config:
            model = GPT2ForSequenceClassification(GPT2Config(**GPT2, n_inner=8, **config))
        else:
            model = GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=8))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    (folder / "training_args.bin").write_bytes(b"\x80\x04 a pickle")
    return folder


def make_adapter(folder, seed=0, base="me/base"):
    """A LoRA adapter of rank 2 as PEFT leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shapes = {"lora_A": (2, 8), "lora_B": (24, 2)}
    save_file(
        {
            f"base_model.model.transformer.h.0.attn.c_attn.{name}.weight": generator.normal(size=shape).astype(
                "float32"
            )
            for name, shape in shapes.items()
        },
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def make_output(folder, version=0):
    """What a run leaves: mixture, two components, three policies (one an adapter), evaluation, figure, record."""
    mixture = {"component_names": ["concise", "positive"], "num_components": 2, "mixing_weights": [0.8, 0.2]}
    make_model(folder / "mixture", 10 + version, model_type="mixture_reward", component_type="head", **mixture)
    for k, name in enumerate(("concise", "positive")):
        make_model(folder / "components" / name, 20 + k + 10 * version, num_labels=1)
    make_model(folder / "policies" / "reference", 30)
    make_model(folder / "policies" / "maxmin", 40 + version)
    record = make_record(version)
    RunRecord(policy=record.policy).save(folder / "policies" / "maxmin")
    (folder / "evaluation").mkdir(exist_ok=True)
    rows = [{"prompt": "a war film :", "policy": "maxmin", "completion": f"superb {version}", "utility_concise": 0.5}]
    (folder / "evaluation" / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "comparison.png").write_bytes(b"\x89PNG\r\n\x1a\n\0" + bytes([version]))
    (folder / "assignments.json").write_text('{"ann": "concise"}')
    record.save(folder)
    return folder


def make_app(folder, version=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(f"print({version})\n")
    (folder / "index.html").write_text(f"<p>{version}</p>\n")
    (folder / "requirements.txt").write_text("gradio\n")
    (folder / ".env").write_text("HF_TOKEN=hf_secretsecret\n")
    return folder
