# SPDX-License-Identifier: Apache-2.0
"""Repositories as no push of ours makes them: damaged on the way, of two models, or made to do harm."""

import json
import struct

import numpy as np
from safetensors.numpy import load, save

from tests.hub.artefacts import make_adapter, make_model


def header_only(header, data=b"", length=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def edit_json(name, **changes):
    def edit(files):
        config = json.loads(files[name])
        for path, value in changes.items():
            *above, key = path.split("__")
            place = config
            for part in above:
                place = place[part]
            if value is None:
                del place[key]
            else:
                place[key] = value
        files[name] = json.dumps(config).encode()

    return edit


def replace(name, content):
    def edit(files):
        files[name] = content

    return edit


def remove(*names):
    def edit(files):
        for name in names:
            del files[name]

    return edit


def edit_tensors(change, name="model.safetensors"):
    def edit(files):
        tensors = load(files[name])
        change(tensors)
        files[name] = save(tensors, {"format": "pt"})

    return edit


def cut(name, to):
    def edit(files):
        files[name] = files[name][:to]

    return edit


def shards(files, second=True, index=True, name="model-00002-of-00002.safetensors", stranger=False):
    """The weights in two files and their index, with something wrong."""
    tensors = load(files.pop("model.safetensors"))
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    names = ["model-00001-of-00002.safetensors", name]
    files[names[0]] = save(parts[0])
    if second:
        files["model-00002-of-00002.safetensors"] = save(parts[1])
    if stranger:
        files["model-00003-of-00003.safetensors"] = save(parts[1])
    if index:
        places = {key: place for place, part in zip(names, parts, strict=True) for key in part}
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": places}).encode()


def nan(key):
    def change(tensors):
        tensors[key] = tensors[key].copy()
        tensors[key].flat[0] = np.nan

    return change


def infinite(tensors):
    nan("components.0.score.weight")(tensors)
    tensors["components.0.score.weight"].flat[0] = np.inf


def keep_heads(tensors):
    for key in [key for key in tensors if "score" not in key]:
        del tensors[key]


def one_row_more(tensors):
    head = tensors["components.0.score.weight"]
    tensors["components.0.score.weight"] = np.concatenate([head, head[:1]])


def narrow(tensors):
    tensors["components.0.score.weight"] = tensors["components.0.score.weight"][:, :4].copy()


def drop(part):
    def change(tensors):
        for key in [key for key in tensors if part in key]:
            del tensors[key]

    return change


def other_rank(tensors):
    for key in tensors:
        if "lora_B" in key:
            tensors[key] = np.zeros((24, 3), np.float32)


def add(name, content=b"x"):
    def edit(files):
        files[name] = content

    return edit


DEEP = b"[" * 100_000
DEEP_CONFIG = b'{"model_type": ' + b'{"a": ' * 100_000
CODE = b"import pathlib; pathlib.Path('executed').write_text('x')\n"

#: name -> (kind of model, what is done to its files, words of the refusal, whether from_pretrained has to refuse too)
BROKEN = {
    "no trunk": ("mixture", edit_tensors(keep_heads), "model.safetensors.*missing: .*transformer", True),
    "a layer less": ("mixture", edit_tensors(drop("attn.c_attn")), "model.safetensors.*missing.*c_attn", True),
    "a head row more": ("mixture", edit_tensors(one_row_more), r"score.weight \(3, 8\) instead of \(2, 8\)", True),
    "a narrow head": ("mixture", edit_tensors(narrow), r"score.weight \(2, 4\) instead of \(2, 8\)", True),
    "K does not fit": (
        "mixture",
        edit_json("config.json", num_components=3),
        "config.json.*entries.*3 components",
        True,
    ),
    "NaN head": ("mixture", edit_tensors(nan("components.0.score.weight")), "model.safetensors.*NaN.*score", True),
    "infinite head": ("mixture", edit_tensors(infinite), "model.safetensors.*infinite.*score", True),
    "NaN temperature": (
        "mixture",
        edit_json("config.json", temperatures=[1.0, float("nan")]),
        "config.json.*temperatures",
        True,
    ),
    "a trillion components": (
        "mixture",
        edit_json("config.json", num_components=10**12, component_names=None, mixing_weights=None),
        "config.json.*num_components",
        True,
    ),
    "ten million layers": (
        "mixture",
        edit_json("config.json", base_config__n_layer=10**7),
        "config.json.*n_layer is 10000000",
        True,
    ),
    "layers that are not there": (
        "policy",
        edit_json("config.json", n_layer=900),
        "config.json.* describes 900 layers",
        True,
    ),
    "negative vocabulary": ("policy", edit_json("config.json", vocab_size=-1), "config.json.*vocab_size is -1", True),
    "a larger vocabulary": (
        "policy",
        edit_json("config.json", vocab_size=2000),
        r"wte.weight \(20, 8\) instead of \(2000, 8\)",
        True,
    ),
    "a trillion labels": (
        "component",
        edit_json("config.json", num_labels=10**12, id2label=None),
        "config.json.*num_labels",
        True,
    ),
    "two labels, one row": (
        "component",
        edit_json("config.json", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
        r"score.weight \(1, 8\) instead of \(2, 8\)",
        True,
    ),
    "a name that is a path": (
        "mixture",
        edit_json("config.json", component_names=["concise", "../../x"]),
        "config.json.*component_names.*'../../x'",
        True,
    ),
    "a name that is two dots": (
        "mixture",
        edit_json("config.json", component_names=["concise", ".."]),
        "config.json.*component_names",
        True,
    ),
    "a name for a terminal": (
        "mixture",
        edit_json("config.json", component_names=["concise", "\x1b[2Jx"]),
        r"config.json.*component_names.*x1b",
        True,
    ),
    "a name twice": ("mixture", edit_json("config.json", component_names=["x", "x"]), "config.json.*distinct", True),
    "another type": ("mixture", edit_json("config.json", model_type="quux"), "config.json.*quux", True),
    "no type": (
        "policy",
        edit_json("config.json", model_type=None),
        "config.json.*model_type|quux|Unrecognized model",
        True,
    ),
    "0 bytes": ("policy", replace("model.safetensors", b""), "model.safetensors.*empty", True),
    "cut off": ("policy", cut("model.safetensors", 900), "model.safetensors.*cut off or damaged", True),
    "cut off in the data": ("policy", cut("model.safetensors", -4), "model.safetensors.*cut off or damaged", True),
    "header of 2**63": (
        "policy",
        replace("model.safetensors", header_only({}, length=2**63)),
        "model.safetensors.*header would have",
        True,
    ),
    "header no JSON": ("policy", replace("model.safetensors", header_only(b"{]")), "model.safetensors.*no JSON", True),
    "header too deep": (
        "policy",
        replace("model.safetensors", header_only(DEEP)),
        "model.safetensors.*brackets",
        True,
    ),
    "overlapping": (
        "policy",
        replace("model.safetensors", header_only({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12)),
        "model.safetensors.*overlaps",
        True,
    ),
    "a gap": (
        "policy",
        replace("model.safetensors", header_only({"a": tensor(0, 8), "b": tensor(12, 20)}, b"\0" * 20)),
        "model.safetensors.*gap",
        True,
    ),
    "beyond the end": (
        "policy",
        replace("model.safetensors", header_only({"a": tensor(0, 2**40, (2**38,))}, b"\0" * 8)),
        "model.safetensors.*end at byte",
        True,
    ),
    "wrong dtype": (
        "policy",
        replace("model.safetensors", header_only({"a": tensor(0, 8, (2,), "F64")}, b"\0" * 8)),
        "model.safetensors.*F64 of shape",
        True,
    ),
    "unknown dtype": (
        "policy",
        replace("model.safetensors", header_only({"a": tensor(0, 8, (2,), "PICKLE")}, b"\0" * 8)),
        "model.safetensors.*known dtype",
        True,
    ),
    "a tensor twice": (
        "policy",
        replace(
            "model.safetensors",
            header_only(b'{"a": %s, "a": %s}' % ((json.dumps(tensor(0, 8)).encode(),) * 2), b"\0" * 8),
        ),
        "model.safetensors.*twice",
        True,
    ),
    "a shard missing": ("policy", lambda files: shards(files, second=False), "missing", True),
    "an index missing": (
        "policy",
        lambda files: shards(files, index=False),
        "model.safetensors.index.json is missing|holds no weights|not appear to have a file named",
        True,
    ),
    "an index that leads out": (
        "policy",
        lambda files: shards(files, name="../x.safetensors"),
        "model.safetensors.index.json.*x.safetensors",
        True,
    ),
    "a shard that nobody names": (
        "policy",
        lambda files: shards(files, stranger=True),
        "model-00003-of-00003.safetensors",
        False,
    ),
    "configuration no JSON": ("policy", cut("config.json", 40), "config.json is no JSON", True),
    "configuration too deep": ("policy", replace("config.json", DEEP_CONFIG), "config.json.*brackets", True),
    "configuration too large": (
        "policy",
        replace("config.json", b'{"a": "' + b"x" * 17 * 2**20 + b'"}'),
        "config.json has .* bytes; up to",
        True,
    ),
    "configuration not UTF-8": (
        "policy",
        replace("config.json", b'{"a": "\xff\xfe"}'),
        "config.json is no JSON",
        True,
    ),
    "configuration no object": ("policy", replace("config.json", b"[1]"), "config.json holds a list", True),
    "no configuration": ("policy", remove("config.json"), "config.json", True),
    "code of its own": (
        "policy",
        lambda files: (
            edit_json("config.json", auto_map={"AutoModel": "modeling.Evil"}, model_type="evil")(files),
            add("modeling.py", CODE)(files),
        ),
        "config.json.*modeling.Evil|model type .evil",
        True,
    ),
    "code beside a known type": (
        "policy",
        lambda files: (
            edit_json("config.json", auto_map={"AutoModel": "modeling.Evil"})(files),
            add("modeling.py", CODE)(files),
        ),
        "config.json names code beside it",
        False,
    ),
    "pickles only": (
        "policy",
        lambda files: (add("pytorch_model.bin", b"\x80\x04cos\nsystem\n")(files), remove("model.safetensors")(files)),
        "pytorch_model.bin",
        False,
    ),
    "half of LoRA": (
        "adapter",
        edit_tensors(drop("lora_B"), "adapter_model.safetensors"),
        "adapter_model.safetensors.*without .*lora_B",
        False,
    ),
    "two ranks": (
        "adapter",
        edit_tensors(other_rank, "adapter_model.safetensors"),
        "adapter_model.safetensors.*r=2",
        False,
    ),
    "an adapter of nothing": (
        "adapter",
        edit_json("adapter_config.json", peft_type="EXEC"),
        "adapter_config.json.*EXEC",
        False,
    ),
    "rank of a billion": ("adapter", edit_json("adapter_config.json", r=10**9), "adapter_config.json: r is", False),
    "adapter and model": (
        "adapter",
        add("model.safetensors", header_only({"a": tensor(0, 8)}, b"\0" * 8)),
        "model.safetensors does not belong",
        False,
    ),
    "a foreign tokenizer": (
        "policy",
        replace("tokenizer.json", json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 4000}}}).encode()),
        "tokenizer.json.*'b' has id 4,000.*20 rows",
        False,
    ),
    "tokenizer too deep": ("policy", replace("tokenizer.json", DEEP), "tokenizer.json.*brackets", False),
    "record too deep": ("mixture", replace("run_record.json", DEEP), "run_record.json.*brackets", False),
    "a name with ..": ("policy", add("base/../../planted.json"), "'base/../../planted.json' is no name", False),
    "an absolute name": ("policy", add("/tmp/planted.json"), "'/tmp/planted.json' is no name", False),
    "a name of Windows": ("policy", add("base\\..\\planted.json"), "is no name of a file", False),
    "a name that Windows reserves": (
        "policy",
        add("additional_chat_templates/con.jinja"),
        "is no name of a file",
        False,
    ),
    "a name for the terminal": ("policy", add("\x1b]0;x\x07.py"), r"x1b.*is no name", False),
    "names that differ in case": (
        "policy",
        lambda files: (
            add("additional_chat_templates/a.jinja")(files),
            add("additional_chat_templates/A.jinja")(files),
        ),
        "differ in case alone",
        False,
    ),
}


def make_files(kind, folder):
    """The files of an intact repository of a kind."""
    if kind == "mixture":
        make_model(folder, 1, model_type="mixture_reward", component_names=["concise", "positive"], num_components=2)
    elif kind == "adapter":
        make_adapter(folder)
    else:
        make_model(folder, 1, **({"num_labels": 1} if kind == "component" else {}))
    (folder / "training_args.bin").unlink(missing_ok=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
