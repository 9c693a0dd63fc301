# SPDX-License-Identifier: Apache-2.0
"""Push here, load in fresh processes with empty caches: by this package, and by people who do not have it.

Every kind of component on a decoder and on an encoder, both kinds of policy, through Xet.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from tests.conftest import build_word_tokenizer
from tests.hub.artefacts import make_record
from tests.hub_server import HubServer, client_of
from trl_maxmin import MixtureRewardModel
from trl_maxmin.hub import PushOptions, publish
from trl_maxmin.hub.plan import plan_dataset, plan_policy, result_rows
from trl_maxmin.run_record import RunRecord


TEXTS = ["the film feels great <eos>", "review of a very dull story with awful acting <eos>", "good ending"]
ROOT = Path(__file__).resolve().parents[2]
KINDS = [(kind, base) for kind in ("head", "full", "lora") for base in ("decoder", "encoder")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with HubServer(xet=True) as server:
        yield server


def base_model(kind):
    torch.manual_seed(0)
    if kind == "decoder":
        config = LlamaConfig(
            vocab_size=36, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config)
    config = BertConfig(
        vocab_size=36, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return AutoModel.from_config(config)


def randomise(model, words=("lora_B", "score", "classifier")):
    """New heads and adapters start alike or at zero; components must differ for a test of which is which."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in words):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture(scope="module")
def pushed(server, tmp_path_factory):
    """Pushes everything from this process; what is read back later is read in a fresh one."""
    with client_of(server, tmp_path_factory.mktemp("cache")):
        return push_everything(tmp_path_factory.mktemp("policies"))


def push_everything(folder):
    """The base models, every kind of mixture and policy; returns what they say."""
    tokenizer = build_word_tokenizer()
    expected = {"mixture": {}, "policy": {}}
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    for name in ("decoder", "encoder"):
        model = base_model(name)
        model.push_to_hub(f"me/base-{name}")
        tokenizer.push_to_hub(f"me/base-{name}")
    for kind, base in KINDS:
        mixture = MixtureRewardModel.from_base(f"me/base-{base}", 2, kind, ["concise", "positive"]).eval()
        randomise(mixture)
        mixture.config.reward_scale, mixture.config.mixing_weights = [1.5, 0.5], [0.8, 0.2]
        with torch.no_grad():
            rewards = mixture(**inputs).rewards
        assert (rewards[:, 0] - rewards[:, 1]).abs().min() > 1e-3
        expected["mixture"][f"{kind}-{base}"] = rewards.tolist()
        mixture.push_to_hub(f"me/{kind}-{base}", private=True)
        mixture.push_components_to_hub(f"me/{kind}-{base}-{{name}}", private=True)
    for kind in ("full", "adapter"):
        policy = AutoModelForCausalLM.from_pretrained("me/base-decoder")
        if kind == "adapter":
            policy = get_peft_model(policy, LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"]))
        randomise(policy, ("lora_B",) if kind == "adapter" else ("lm_head",))
        policy.eval().save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
        with torch.no_grad():
            expected["policy"][kind] = policy(**inputs).logits[ids["attention_mask"].bool()].tolist()
        publish([plan_policy(folder / kind, f"me/policy-{kind}", kind, RunRecord(), PushOptions(private=True))])
    publish([plan_dataset(None, "me/evaluation", make_record(), PushOptions(private=True), None)])
    return expected


def run_fresh(server, tmp_path, code):
    """A new interpreter, an empty cache, the values it prints as JSON in its last line."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    env = server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    env["PYTHONPATH"] = str(ROOT)
    run = subprocess.run([sys.executable, script], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def assert_equal(value, expected):
    torch.testing.assert_close(torch.tensor(value), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_this_package_in_a_fresh_process(server, pushed, tmp_path):
    values = run_fresh(
        server,
        tmp_path,
        f"""
        import json, torch
        from transformers import AutoModel
        from trl_maxmin import MixtureRewardModel

        texts, values = {TEXTS!r}, {{}}
        for name in {[f"{kind}-{base}" for kind, base in KINDS]!r}:
            mixture = MixtureRewardModel.from_pretrained("me/" + name).eval()
            assert mixture.component_names == ["concise", "positive"] and mixture.config.reward_scale == [1.5, 0.5]
            ids = mixture.processing_class(texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                values[name] = mixture(ids["input_ids"], ids["attention_mask"]).rewards.tolist()
        assert type(AutoModel.from_pretrained("me/head-decoder")).__name__ == "MixtureRewardModel"
        print(json.dumps(values))
        """,
    )
    for name, rewards in pushed["mixture"].items():
        assert_equal(values[name], rewards)


def test_strangers(server, pushed, tmp_path):
    """transformers, PEFT and TRL, in a process that has never imported this package."""
    values = run_fresh(
        server,
        tmp_path,
        f"""
        import json, sys, torch
        from datasets import Dataset, load_dataset
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
        from transformers import (
            AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, logging, pipeline,
        )
        from trl import GRPOConfig, GRPOTrainer

        texts, values = {TEXTS!r}, {{"pipeline": {{}}, "auto": {{}}, "peft": {{}}, "policy": {{}}}}
        logging.set_verbosity_error()

        def inputs(tokenizer):
            ids = tokenizer(texts, padding=True, return_tensors="pt")
            return {{"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}}

        for base in ("decoder", "encoder"):
            for kind in ("head", "full"):
                for name in ("concise", "positive"):
                    repo = f"me/{{kind}}-{{base}}-{{name}}"
                    tokenizer = AutoTokenizer.from_pretrained(repo)
                    assert tokenizer.pad_token != tokenizer.eos_token
                    model = AutoModelForSequenceClassification.from_pretrained(repo).eval()
                    with torch.no_grad():
                        values["auto"][repo] = model(**inputs(tokenizer)).logits[:, 0].tolist()
                    classify = pipeline("text-classification", repo, function_to_apply="none", batch_size=3)
                    values["pipeline"][repo] = [entry["score"] for entry in classify(texts)]
            for name in ("concise", "positive"):
                repo = f"me/lora-{{base}}-{{name}}"
                tokenizer = AutoTokenizer.from_pretrained(repo)
                plain = AutoModelForSequenceClassification.from_pretrained(
                    "me/base-" + base, num_labels=1, pad_token_id=tokenizer.pad_token_id
                )
                model = PeftModel.from_pretrained(plain, repo).eval()
                with torch.no_grad():
                    values["peft"][repo] = model(**inputs(tokenizer)).logits[:, 0].tolist()
                auto = AutoPeftModelForSequenceClassification.from_pretrained(repo, num_labels=1)
                assert auto.peft_config["default"].base_model_name_or_path == "me/base-" + base

        for kind in ("full", "adapter"):
            repo = f"me/policy-{{kind}}"
            loader = AutoModelForCausalLM if kind == "full" else AutoPeftModelForCausalLM
            ids = inputs(AutoTokenizer.from_pretrained(repo))
            with torch.no_grad():
                logits = loader.from_pretrained(repo).eval()(**ids).logits
            values["policy"][kind] = logits[ids["attention_mask"].bool()].tolist()

        trainer = GRPOTrainer(
            model="me/policy-full",
            reward_funcs="me/head-decoder-concise",
            args=GRPOConfig(
                output_dir="grpo", max_steps=1, per_device_train_batch_size=4, num_generations=4, report_to=[],
                max_completion_length=4, use_cpu=True, bf16=False, save_strategy="no", logging_steps=1,
            ),
            train_dataset=Dataset.from_dict({{"prompt": ["the film", "review of"] * 4}}),
        )
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
        values["grpo"] = logged[0]["reward"]
        values["dataset"] = load_dataset("me/evaluation", "results", split="test").to_list()
        assert not [name for name in sys.modules if name.split(".")[0] == "trl_maxmin"]
        print(json.dumps(values))
        """,
    )
    for kind, base in KINDS:
        for k, name in enumerate(("concise", "positive")):
            repo, column = f"me/{kind}-{base}-{name}", [row[k] for row in pushed["mixture"][f"{kind}-{base}"]]
            for way in ("peft",) if kind == "lora" else ("auto", "pipeline"):
                assert_equal(values[way][repo], column)
    for kind, logits in pushed["policy"].items():
        assert_equal(values["policy"][kind], logits)
    assert values["dataset"] == result_rows(make_record())
    assert isinstance(values["grpo"], float) and values["grpo"] == values["grpo"]


def test_components_are_single_label_models(server, pushed):
    config = json.loads(
        server.store.repos["model", "me/head-encoder-concise"].commit("main").files["config.json"].data
    )
    assert config["model_type"] == "bert" and len(config.get("id2label", {0: ""})) == 1
    model = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=1, num_hidden_layers=1))
    assert config["architectures"] == [type(model).__name__]
