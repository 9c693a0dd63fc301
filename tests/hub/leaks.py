# SPDX-License-Identifier: Apache-2.0
"""What must not leave, put everywhere; and what has left, read back from our own Hub: all commits, all objects."""

import io
import json
import zipfile

import numpy as np
from safetensors.numpy import save_file


MARK = "LEAK-5c1e"
HOME = "/home/ann-5c1e"
TOKEN = "hf_leakLeakLeak5c1e"
ANNOTATOR = "annotator-5c1e"
MARKS = (MARK, "ann-5c1e", "leakLeakLeak5c1e", ANNOTATOR)

#: Names that no commit may hold, whatever is in them.
PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "extra.bin")
TENSORS = (
    "em_state.safetensors", "reference_statistics.safetensors", "value_head.safetensors", "scores.safetensors",
    "my-model.safetensors", "model.safetensors.part.safetensors", "model-00001-of-00002.safetensors",
)  # fmt: skip
TEXTS = (
    "trainer_state.json", "reference_statistics.json", "welfare_state.json", "ppo_state.json", "assignments.json",
    "annotators.json", "posteriors.json", "selection.json", "scores.json", "notes.json", "keys.json", "wandb.json",
    "notes.txt", "NOTES.md", "evaluation.md", "diagnosis.json", "diagnosis.md", ".env", ".netrc", "id_rsa",
    "people.csv", "people.jsonl", "people.yaml", "notes.model", "private.png", "secret.jinja", "script.py",
    "config.json.bak", "Config.json", "model.safetensors.bak", "tokenizer_config.json~",
)  # fmt: skip
FORBIDDEN = {*PICKLES, *TENSORS, *TEXTS, "link.txt", "link.safetensors"}


def plant(folder, value_head=True):
    """The forbidden files, and links to a secret outside, in a folder and in every folder below it."""
    secret = folder.parent / f"secret-{folder.name}"
    secret.write_text(f"{MARK} of another folder")
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    for place in folders:
        _plant_here(place, secret, value_head)
    deeper = folder / "deeper" / "checkpoint-3"
    deeper.mkdir(parents=True, exist_ok=True)
    _plant_here(deeper, secret, value_head)
    (deeper / "config.json").write_text(json.dumps({"model_type": "gpt2", "note": MARK}))
    for path in [path for path in folder.rglob("*.json") if path.name in CONFIGS and not path.is_symlink()]:
        plant_paths(path)


CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")


#: A card that somebody else or another tool wrote: of its metadata some is kept, of its text nothing.
README = f"""---
license: mit
base_model: {HOME}/base
datasets: [{HOME}/prefs.jsonl, me/prefs]
tags: [films]
adapter_of: {MARK}
---

# Notes
{MARK} {TOKEN} {HOME}/x
"""


def _plant_here(place, secret, value_head):
    if not (place / "README.md").exists():
        (place / "README.md").write_text(README)
    for name in (*PICKLES, *TEXTS):
        if not (place / name).exists():  # on a disk that tells Config.json from config.json
            (place / name).write_bytes(f"\x80 {MARK} {ANNOTATOR} {TOKEN} {HOME}/x".encode("latin-1"))
    for name in TENSORS:
        if not (place / name).exists() and (value_head or name != "value_head.safetensors"):
            save_file({"posterior": np.ones((2, 2), np.float32)}, place / name, {"format": "pt", "note": MARK})
    for name in ("link.txt", "link.safetensors"):
        if not (place / name).is_symlink():
            (place / name).symlink_to(secret)


def plant_paths(path):
    """Where things lay, in every place of a configuration where it is written."""
    config = json.loads(path.read_text())
    base = {name: value for name, value in config.items() if name == "base_model_name_or_path"}
    config |= {"_name_or_path": f"{HOME}/model", "name_or_path": f"{HOME}/model", "tokenizer_file": f"{HOME}/t.json"}
    if path.name != "tokenizer_config.json":  # transformers takes every ..._token there for a word of the vocabulary
        config |= {"use_auth_token": TOKEN}
    config |= {"made_by": f"somebody with {TOKEN}", "cache_dir": "cache-ann-5c1e"}
    config["more"] = {"deeper": [{"_name_or_path": f"{HOME}/base", "base_model_name_or_path": f"{HOME}/base"}]}
    if isinstance(config.get("base_config"), dict):
        config["base_config"] |= {"_name_or_path": f"{HOME}/base"}
    path.write_text(json.dumps(config | base))


def plant_record(record):
    """Paths, tokens and names of people in a run record, where a run leaves them."""
    for stage in ("reward", "policy"):
        dataset = {"name": f"{HOME}/prefs.jsonl", "annotators_lost": [ANNOTATOR]}
        training = {"output_dir": f"{HOME}/out", "hub_token": TOKEN, "run_name": f"with {TOKEN}"}
        record.update(stage, base_model=f"{HOME}/base", dataset=dataset, training=training)
    return record.update("policy", reward_model=f"{HOME}/mixture").update(
        "evaluation", dataset={"name": f"{HOME}/prompts.jsonl"}
    )


def everything_sent(server):
    """(where, name, content) of every file of every commit, of files in wheels, and of every stored object."""
    for (type, id), repo in server.store.repos.items():
        for branch, commits in repo.branches.items():
            for number, commit in enumerate(commits):
                for name, blob in commit.files.items():
                    where = f"{type} {id}, {branch}, commit {number} ({commit.title})"
                    yield where, name, blob.data
                    if name.endswith(".whl"):
                        with zipfile.ZipFile(io.BytesIO(blob.data)) as wheel:
                            yield from ((f"{where}, {name}", inner, wheel.read(inner)) for inner in wheel.namelist())
                yield f"{type} {id}, {branch}", "title", f"{commit.title} {commit.message}".encode()
    for oid, data in server.store.objects.items():
        yield "storage", oid, data
    for slug, collection in server.store.collections.items():
        yield "collections", slug, json.dumps(collection).encode()


def leaks(server, *marks, names=FORBIDDEN):
    """What was sent and should not have been, as text; empty where all is well. How much was read comes first."""
    found, count = [], 0
    for where, name, content in everything_sent(server):
        count += 1
        if name.split("/")[-1] in names or "deeper" in name.split("/"):
            found.append(f"{where}: {name}")
        found += [
            f"{where}: {name} holds {mark}" for mark in (*MARKS, *map(str, marks)) if mark.encode() in (content or b"")
        ]
    assert count > 0, "nothing was sent, so nothing was tested"
    return found
