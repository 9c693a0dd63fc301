# SPDX-License-Identifier: Apache-2.0
"""What is loaded was in its file: folders broken in every way a disk, a copy or a wrong word breaks them."""

import json
import logging
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
)

from tests.conftest import build_word_tokenizer
from tests.families import DECODERS, ENCODERS
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.models.loading import (
    load_config,
    load_pretrained,
    load_tokenizer,
    read_tensors,
    require_finite,
    require_model_folder,
    require_tensors,
)


SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
OTHER_NAMES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
}


def small_config(model_type, **kwargs):
    more = {"num_key_value_heads": 1, "head_dim": 8} if model_type in DECODERS else {}
    return AutoConfig.for_model(model_type, **{**SMALL, **more, **OTHER_NAMES.get(model_type, {}), **kwargs})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with intact tiny models: a policy, a reward model, their adapters."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    policy = GPT2LMHeadModel(small_config("gpt2"))
    reward = AutoModelForSequenceClassification.from_config(small_config("gpt2", num_labels=1))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    policy.save_pretrained(root / "shards", max_shard_size="10KB")
    for name, base, auto, task in (
        ("policy-adapter", "policy", AutoModelForCausalLM, TaskType.CAUSAL_LM),
        ("reward-adapter", "policy", AutoModelForSequenceClassification, TaskType.SEQ_CLS),
    ):
        model = auto.from_pretrained(root / base, num_labels=1)
        model = get_peft_model(model, LoraConfig(task_type=task, target_modules=["c_attn"], fan_in_fan_out=True))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def change(edit, file="model.safetensors"):
    """An edit of the tensors of a file, as an edit of its folder."""

    def apply(folder):
        tensors = load_file(folder / file)
        edit(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return apply


def put(key, value):
    return change(lambda tensors: tensors[key].view(-1).__setitem__(0, value))


def cut(file, size):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def remove(*files):
    return lambda folder: [path.unlink() for file in files for path in folder.glob(file)]


def reconfigure(**fields):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return apply


WTE, BIAS = "transformer.wte.weight", "transformer.h.0.attn.c_attn.bias"
LORA = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
in_adapter = {"file": "adapter_model.safetensors"}

#: what is broken, the folder it starts from, the edit, words of the message beside the argument
BROKEN = [
    ("a key is gone", "reward", change(lambda t: t.pop(BIAS)), ["model.safetensors", "missing", BIAS]),
    ("the head is gone", "reward", change(lambda t: t.pop("score.weight")), ["missing: score.weight"]),
    ("a key is renamed", "reward", change(lambda t: t.update(other=t.pop(BIAS))), ["missing", BIAS]),
    ("a key is resized", "reward", change(lambda t: t.update({BIAS: t[BIAS][:5]})), [BIAS, "(5,) instead of (48,)"]),
    (
        "two rows for one label",
        "reward",
        change(lambda t: t.update({"score.weight": torch.zeros(2, 16)})),
        ["score.weight (2, 16) instead of (1, 16)"],
    ),
    ("NaN", "reward", put("score.weight", float("nan")), ["NaN or infinite", "score.weight"]),
    ("infinite", "reward", put(WTE, -float("inf")), ["NaN or infinite", WTE]),
    ("cut off", "reward", cut("model.safetensors", 2000), ["model.safetensors", "cut off or damaged"]),
    ("no bytes", "reward", cut("model.safetensors", 0), ["model.safetensors", "it is empty"]),
    ("no weights", "reward", remove("model.safetensors"), ["holds no weights", "model.safetensors"]),
    ("no configuration", "reward", remove("config.json"), ["holds no model", "config.json"]),
    ("half a configuration", "reward", cut("config.json", 40), ["config.json", "is no JSON"]),
    ("an empty folder", "reward", remove("*"), ["holds no model"]),
    ("fewer layers than the file", "reward", reconfigure(n_layer=1), ["not part of it", "transformer.h.1."]),
    ("more layers than the file", "reward", reconfigure(n_layer=3), ["missing", "transformer.h.2."]),
    ("an unknown type", "reward", reconfigure(model_type="no-such"), ["no-such"]),
    ("a policy", "policy", lambda folder: None, ["GPT2ForSequenceClassification", "missing: score.weight"]),
    ("a shard is gone", "shards", remove("model-00002*"), ["model-00002", "is missing"]),
    (
        "an adapter's key is gone",
        "reward-adapter",
        change(lambda t: t.pop(LORA), **in_adapter),
        ["adapter_model.safetensors", "missing", "h.0.attn.c_attn.lora_A"],
    ),
    (
        "an adapter's head is gone",
        "reward-adapter",
        change(lambda t: t.pop("base_model.model.score.weight"), **in_adapter),
        ["score"],
    ),
    (
        "an adapter of more layers",
        "reward-adapter",
        change(lambda t: t.update({LORA.replace("h.0", "h.7"): t[LORA].clone()}), **in_adapter),
        ["not part of it", "h.7.attn"],
    ),
    (
        "an adapter of another width",
        "reward-adapter",
        change(lambda t: t.update({LORA: torch.zeros(8, 3)}), **in_adapter),
        ["h.0.attn.c_attn.lora_A", "(8, 3) instead of (8, 16)"],
    ),
    (
        "an adapter with NaN",
        "reward-adapter",
        change(lambda t: t[LORA].fill_(float("nan")), **in_adapter),
        ["NaN or infinite", "h.0.attn.c_attn.lora_A"],
    ),
    ("an adapter without weights", "reward-adapter", remove("adapter_model*"), ["holds no weights", "adapter_model"]),
    (
        "an adapter whose base is gone",
        "reward-adapter",
        lambda folder: change_json(folder / "adapter_config.json", base_model_name_or_path="/no/base"),
        ["base of", "no folder /no/base"],
    ),
]


def change_json(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.seam
@pytest.mark.parametrize(("source", "edit", "words"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_reward_model_is_refused(saved, tmp_path, source, edit, words):
    folder = tmp_path / "model"
    shutil.copytree(saved / source, folder)
    edit(folder)
    with pytest.raises(ValueError) as caught:
        load_pretrained(AutoModelForSequenceClassification, folder, argument="--reward_model", num_labels=1)
    message = str(caught.value)
    assert message.startswith("--reward_model") and str(folder) in message
    for word in words:
        assert word in message
    assert len(message) < 700 and "\n" not in message


@pytest.mark.parametrize("source", ["reward", "reward-adapter"])
def test_a_reward_model_is_no_policy(saved, source):
    """Its embeddings serve as output of a language model, so that nothing is missing."""
    with pytest.raises(ValueError, match="--model_name_or_path.*score"):
        load_pretrained(AutoModelForCausalLM, saved / source, argument="--model_name_or_path")


@pytest.mark.parametrize("word", ["/nowhere/model", "./model", "../model", "a/b/c", "~/model", "C:\\model", "model/"])
@pytest.mark.parametrize("load", [load_config, load_tokenizer, require_model_folder])
def test_a_path_that_does_not_exist(load, word):
    with pytest.raises(ValueError, match=r"--policies: there is no folder"):
        load(word, "--policies")


def test_an_id_that_the_hub_does_not_have():
    with pytest.raises(OSError, match="--reward_model: there is no folder out/mixture, and on the Hub"):
        load_config("out/mixture", "--reward_model")
    with pytest.raises(OSError, match="--reward_model: there is no folder mixture"):
        load_pretrained(AutoModelForCausalLM, "mixture", argument="--reward_model")


def test_a_file_and_the_folder_above(saved):
    with pytest.raises(ValueError, match="is a file; give the folder"):
        require_model_folder(saved / "policy" / "config.json", "`model`")
    with pytest.raises(ValueError, match="Did you mean .*policy"):
        require_model_folder(saved, "`model`")


@pytest.mark.parametrize("files", [("tokenizer*",), ("tokenizer.json",)])
def test_a_folder_without_its_tokenizer(saved, tmp_path, files):
    """transformers makes an empty GPT-2 tokenizer of one word where there are no files."""
    shutil.copytree(saved / "policy", tmp_path / "policy")
    remove(*files)(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"--model_name_or_path: .*policy"):
        load_tokenizer(tmp_path / "policy", "--model_name_or_path")
    cut("tokenizer.json", 100)(shutil.copytree(saved / "policy", tmp_path / "cut"))
    with pytest.raises(ValueError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path / "cut", "--model_name_or_path")


def test_code_of_a_repository_is_never_run(saved, tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code=True is refused.*never runs code"):
        load_pretrained(AutoModelForCausalLM, saved / "policy", argument="`model`", trust_remote_code=True)
    shutil.copytree(saved / "policy", tmp_path / "policy")
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    reconfigure(model_type="own", auto_map=auto_map)(tmp_path / "policy")
    with pytest.raises(ValueError, match="custom code"):
        load_config(tmp_path / "policy", "`model`")


class Silence(logging.Handler):
    """Inside, neither transformers nor Python warns."""

    def emit(self, record):
        raise AssertionError(record.getMessage())

    def __enter__(self):
        self.setLevel(logging.WARNING)
        logging.getLogger("transformers").addHandler(self)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("error", UserWarning)

    def __exit__(self, *error):
        self.caught.__exit__(*error)
        logging.getLogger("transformers").removeHandler(self)


@pytest.mark.parametrize("model_type", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_intact_classifiers_load_in_silence(tmp_path, model_type, dtype):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(small_config(model_type, num_labels=1)).to(dtype)
    model.save_pretrained(tmp_path)
    with Silence():
        again = load_pretrained(AutoModelForSequenceClassification, tmp_path, argument="`model`", num_labels=1)
    assert again.dtype == dtype
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", DECODERS)
def test_intact_policies_load_in_silence(tmp_path, model_type, tied):
    model = AutoModelForCausalLM.from_config(small_config(model_type, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "policy")
    # What PPO keeps beside a policy, and TRL's old value heads inside.
    save_file({"weight": torch.full((1,), torch.nan)}, tmp_path / "policy" / "value_head.safetensors")
    change(lambda tensors: tensors.update({"v_head.summary.weight": torch.zeros(1, 16)}))(tmp_path / "policy")
    with Silence():
        again = load_pretrained(AutoModelForCausalLM, tmp_path / "policy", argument="`model`")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_old_buffers_and_a_trunk_alone(tmp_path):
    model = AutoModelForSequenceClassification.from_config(small_config("bert", num_labels=1))
    model.save_pretrained(tmp_path / "bert")
    old = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    change(lambda tensors: tensors.update(old))(tmp_path / "bert")
    with Silence():
        load_pretrained(AutoModelForSequenceClassification, tmp_path / "bert", argument="`model`", num_labels=1)
        load_pretrained(AutoModel, tmp_path / "bert", argument="`model`")
    # The checkpoint of GPT-2 itself has no prefix and no head, but the masks of an old release.
    policy = GPT2LMHeadModel(small_config("gpt2"))
    policy.transformer.save_pretrained(tmp_path / "gpt2")
    change(lambda tensors: tensors.update({"h.0.attn.bias": torch.ones(1, 1, 4, 4)}))(tmp_path / "gpt2")
    with Silence():
        again = load_pretrained(AutoModelForCausalLM, tmp_path / "gpt2", argument="`model`")
    assert torch.equal(again.lm_head.weight, policy.lm_head.weight)


@pytest.mark.seam
@pytest.mark.parametrize(
    ("name", "auto"),
    [("policy-adapter", AutoModelForCausalLM), ("reward-adapter", AutoModelForSequenceClassification)],
)
def test_an_adapter_is_the_model_that_peft_loads(saved, name, auto):
    with Silence():
        ours = load_pretrained(auto, saved / name, argument="`model`", num_labels=1)
    ids = torch.tensor([[4, 5, 6]])
    base = auto.from_pretrained(saved / "policy", num_labels=1)
    with torch.no_grad():
        without = base(ids).logits
        theirs = PeftModel.from_pretrained(base, saved / name).eval()(ids).logits
        torch.testing.assert_close(ours(ids).logits, theirs)
    assert (theirs - without).abs().max() > 0.1


def test_a_folder_of_two_runs(saved, tmp_path):
    shutil.copytree(saved / "policy", tmp_path / "policy")
    shutil.copytree(saved / "policy-adapter", tmp_path / "policy", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="`model`: .*policy holds a whole model and an adapter"):
        load_pretrained(AutoModelForCausalLM, tmp_path / "policy", argument="`model`")


def test_what_the_caller_makes_new_may_be_missing(saved):
    model = load_pretrained(
        AutoModelForSequenceClassification, saved / "reward", argument="`model`", new=r"^score\.", num_labels=3
    )
    assert model.score.out_features == 3


def test_tensors_of_a_file(tmp_path):
    expected = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    file = str(tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="`x`: .*head.safetensors is missing"):
        read_tensors(file, "`x`")
    save_file(expected, file)
    require_tensors(expected, read_tensors(file, "`x`"), "`x`", file)
    for found, words in (
        ({"weight": torch.zeros(2, 3)}, "missing: bias"),
        (expected | {"more": torch.zeros(1)}, "not part of it: more"),
        (expected | {"bias": torch.zeros(3)}, r"of another shape: bias \(3,\) instead of \(2,\)"),
        (expected | {"bias": torch.tensor([0.0, torch.inf])}, "NaN or infinite: bias"),
    ):
        with pytest.raises(ValueError, match=f"`x`: .*head.safetensors.*{words}"):
            require_tensors(expected, found, "`x`", file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_every_dtype_is_looked_at(dtype):
    require_finite([("ok", torch.ones(3, 3, dtype=dtype)), ("none", torch.zeros(0, dtype=dtype))], "`x`", "f")
    require_finite([("large", torch.full((9,), torch.finfo(dtype).max, dtype=dtype))], "`x`", "f")
    with pytest.raises(ValueError, match="bad"):
        require_finite([("bad", torch.tensor([1.0, torch.nan, 2.0]).to(dtype))], "`x`", "f")
    require_finite([("codes", torch.ones(3, dtype=torch.uint8)), ("meta", torch.ones(3, device="meta"))], "`x`", "f")


# -- mixtures ---------------------------------------------------------------------------------------------------------

KINDS = ("head", "lora", "full")


@pytest.fixture(scope="module")
def mixtures(saved, tmp_path_factory):
    """A mixture of each kind; of LoRA components also one whose base is saved beside them."""
    root = tmp_path_factory.mktemp("mixtures")
    for kind in KINDS:
        torch.manual_seed(0)
        MixtureRewardModel.from_base(saved / "policy", 3, kind).save_pretrained(root / kind)
    base = AutoModelForCausalLM.from_pretrained(saved / "policy")
    MixtureRewardModel.from_base(base, 3, "lora", processing_class=build_word_tokenizer()).save_pretrained(
        root / "own"
    )
    return root


def first(tensors, *parts):
    return next(key for key in tensors if all(part in key for part in parts))


#: what is broken, of which mixture, the edit, words of the message
BROKEN_MIXTURES = [
    *(
        (f"{what} ({kind})", kind, edit, words)
        for kind in KINDS
        for what, edit, words in (
            ("a head is gone", change(lambda t: t.pop(first(t, "score.weight"))), ["missing", "score.weight"]),
            ("a weight too many", change(lambda t: t.update(extra=torch.zeros(1))), ["not part of it", "extra"]),
            (
                "rows of another K",
                change(lambda t: t.update({first(t, "score.weight"): torch.zeros(2, 16)})),
                ["score.weight (2, 16) instead of"],
            ),
            ("NaN", change(lambda t: t[first(t, "score.weight")].fill_(float("nan"))), ["NaN or infinite"]),
            ("cut off", cut("model.safetensors", 500), ["model.safetensors", "cut off or damaged"]),
            ("no bytes", cut("model.safetensors", 0), ["model.safetensors", "it is empty"]),
            ("no weights", remove("model.safetensors"), ["holds no weights"]),
            ("half a tokenizer", cut("tokenizer.json", 50), ["no tokenizer can be read"]),
        )
    ),
    ("a trunk's key is gone", "head", change(lambda t: t.pop(first(t, "c_attn.bias"))), ["missing", "c_attn.bias"]),
    ("K of another run", "full", reconfigure(**{"num_components": 2, "component_names": ["a", "b"],
     "mixing_weights": [0.5, 0.5], "reward_shift": [0, 0], "reward_scale": [1, 1], "temperatures": [1, 1]}),
     ["not part of it", "components.2."]),
    ("an adapter is gone", "lora", change(lambda t: t.pop(first(t, "maxmin_reward_1"))), ["missing", "reward_1"]),
    (
        "an adapter of another rank",
        "lora",
        change(lambda t: t.update({first(t, "lora_A.maxmin_reward_1"): torch.zeros(2, 16)})),
        ["lora_A.maxmin_reward_1", "(2, 16) instead of (8, 16)"],
    ),
    ("its base is gone", "lora", reconfigure(base_model_name_or_path="/no/base"), ["base of", "no folder /no/base"]),
    ("the base beside it is gone", "own", lambda folder: shutil.rmtree(folder / "base"), ["base of", "base"]),
    (
        "the base beside it lacks a key",
        "own",
        change(lambda t: t.pop(BIAS), file="base/model.safetensors"),
        ["base of", "base/model.safetensors", BIAS],
    ),
    ("a policy", "lora", reconfigure(model_type="gpt2"), ["not a mixture of reward models", "trl-maxmin reward"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "edit", "words"), [row[1:] for row in BROKEN_MIXTURES], ids=[row[0] for row in BROKEN_MIXTURES]
)
def test_a_broken_mixture_is_refused(mixtures, tmp_path, source, edit, words):
    folder = tmp_path / "mixture"
    shutil.copytree(mixtures / source, folder)
    edit(folder)
    for load, name in (
        (MixtureRewardModel.from_pretrained, "`pretrained_model_name_or_path`"),
        (lambda where: MixtureRewardModel.from_pretrained(where, argument="--mixture"), "--mixture"),
    ):
        with pytest.raises(ValueError) as caught:
            load(folder)
        message = str(caught.value)
        assert message.startswith(name) and str(folder) in message and "\n" not in message
        for word in words:
            assert word in message


@pytest.mark.parametrize("source", ["policy", "reward", "policy-adapter"])
def test_what_is_no_mixture(saved, source):
    with pytest.raises(ValueError, match="--reward_model: .* is a GPT2.*, not a mixture of reward models"):
        MixtureRewardModel.from_pretrained(saved / source, argument="--reward_model")


@pytest.mark.seam
@pytest.mark.parametrize("source", [*KINDS, "own"])
def test_an_intact_mixture_loads_in_silence(mixtures, source):
    with Silence():
        mixture = MixtureRewardModel.from_pretrained(mixtures / source)
        again, found = AutoModel.from_pretrained(mixtures / source, output_loading_info=True)
    weights = load_file(mixtures / source / "model.safetensors")
    assert weights and all(torch.equal(tensor, mixture.state_dict()[key]) for key, tensor in weights.items())
    assert isinstance(again, MixtureRewardModel) and not any(found.values())
    assert mixture.processing_class.eos_token_id == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", [*DECODERS, *ENCODERS])
def test_every_family_is_built_and_loaded_in_silence(tmp_path, model_type, kind):
    """Of a language model: what an encoder has in front of its head is new, and nothing to speak of."""
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    auto = AutoModelForCausalLM if model_type in DECODERS else AutoModelForMaskedLM
    auto.from_config(small_config(model_type)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    ids = torch.tensor([[4, 5, 6, 2]])
    with Silence():
        mixture = MixtureRewardModel.from_base(tmp_path / "base", 2, kind).eval()
        mixture.save_pretrained(tmp_path / "mixture")
        again = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    torch.testing.assert_close(again(ids).rewards, mixture(ids).rewards)


def test_a_mixture_without_a_tokenizer_is_complete(mixtures, tmp_path):
    shutil.copytree(mixtures / "head", tmp_path / "mixture")
    remove("tokenizer*", "special_tokens_map.json")(tmp_path / "mixture")
    mixture = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    assert mixture.processing_class is None
    with pytest.raises(ValueError, match="needs a tokenizer"):
        mixture.score(["the film"], ["great"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_is_never_random(saved, tmp_path, kind):
    policy = AutoModelForCausalLM.from_pretrained(saved / "policy")
    adapted = PeftModel.from_pretrained(policy, saved / "policy-adapter")
    with pytest.raises(ValueError, match="got a PeftModelForCausalLM.*merge_and_unload"):
        MixtureRewardModel.from_base(adapted, 2, kind)
    if kind != "lora":  # which sits beside a policy's adapter on purpose
        with pytest.raises(ValueError, match="got a GPT2LMHeadModel with adapters"):
            MixtureRewardModel.from_base(adapted.get_base_model(), 2, kind)
    policy = AutoModelForCausalLM.from_pretrained(saved / "policy")
    policy.transformer.wte.weight.data[3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite: transformer.wte.weight"):
        MixtureRewardModel.from_base(policy, 2, kind)
    shutil.copytree(saved / "policy", tmp_path / "policy")
    change(lambda tensors: tensors.pop(BIAS))(tmp_path / "policy")
    with pytest.raises(ValueError, match="`model`: .*missing: .*c_attn.bias"):
        MixtureRewardModel.from_base(tmp_path / "policy", 2, kind)
    with pytest.raises(ValueError, match="trust_remote_code=True is refused"):
        MixtureRewardModel.from_base(saved / "policy", 2, kind, trust_remote_code=True)


def test_a_trunk_of_another_shape_in_memory(saved):
    policy = AutoModelForCausalLM.from_pretrained(saved / "policy")
    policy.transformer.h.append(policy.transformer.h[0])
    with pytest.raises(ValueError, match="does not hold the trunk of a gpt2: h.2"):
        MixtureRewardModel.from_base(policy, 2)
