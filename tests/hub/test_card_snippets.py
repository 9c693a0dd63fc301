# SPDX-License-Identifier: Apache-2.0
"""Every program that a card prints runs, as it is printed, in a fresh process, and says something."""

import re

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.conftest import build_word_tokenizer
from tests.hub.artefacts import make_app, make_record
from tests.hub.test_round_trip import base_model, push_everything, run_fresh
from tests.hub_server import HubServer, client_of
from trl_maxmin.hub import PushOptions, publish
from trl_maxmin.hub.plan import plan_dataset, plan_policy
from trl_maxmin.hub.plan_app import plan_space
from trl_maxmin.run_record import RunRecord


pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """The Hub with every kind of repository, and the card of each."""
    with HubServer(xet=False) as server, client_of(server, tmp_path_factory.mktemp("cache")):
        push_everything(tmp_path_factory.mktemp("policies"))
        folder = tmp_path_factory.mktemp("more")
        tokenizer = build_word_tokenizer()
        for name in ("reference", "chat"):
            base_model("decoder").save_pretrained(folder / name)
            tokenizer.chat_template = TEMPLATE if name == "chat" else None
            tokenizer.save_pretrained(folder / name)
        bare = get_peft_model(
            AutoModelForCausalLM.from_pretrained("me/base-decoder"), LoraConfig(target_modules=["q_proj"])
        )
        bare.save_pretrained(folder / "bare")
        plans = [
            plan_policy(folder / "reference", "me/reference", "reference", RunRecord(), PushOptions(), kind="base"),
            plan_policy(folder / "chat", "me/chat", "chat", RunRecord(), PushOptions()),
            plan_policy(folder / "bare", "me/bare", "bare", RunRecord(), PushOptions()),  # its base has the tokenizer
            plan_dataset(None, "me/evaluation", make_record(), PushOptions(private=True), None),
            plan_space(make_app(folder / "app"), "me/space", PushOptions(space_sdk="static"), models=["me/chat"]),
        ]
        publish(plans)
        found = {
            repo_id: repo.commit("main").files["README.md"].data.decode()
            for (_, repo_id), repo in server.store.repos.items()
            if "<!-- trl-maxmin " in repo.commit("main").files["README.md"].data.decode()
        }
        yield server, found


def snippets(card):
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S)


def test_every_kind_is_here_and_prints_one(cards):
    _, found = cards
    kinds = {"reference", "chat", "bare", "policy-full", "policy-adapter", "evaluation", "space"}
    for kind in ("head", "lora", "full"):
        kinds |= {f"{kind}-{base}{end}" for base in ("decoder", "encoder") for end in ("", "-concise", "-positive")}
    assert set(found) == {f"me/{kind}" for kind in kinds}
    for repo_id, card in found.items():
        assert len(snippets(card)) == (repo_id != "me/space"), repo_id
        assert "```" not in re.sub(r"```(python|bibtex)\n.*?\n```", "", card, flags=re.S), "a block of another kind"


def test_all_of_them_run(cards, tmp_path):
    server, found = cards
    programs = {repo_id: snippets(card)[0] for repo_id, card in found.items() if snippets(card)}
    values = run_fresh(
        server,
        tmp_path,
        f"""
        import contextlib, io, json, traceback

        said = {{}}
        for repo_id, program in {programs!r}.items():
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    exec(compile(program, repo_id, "exec"), {{"__name__": "__main__"}})
            except Exception:
                out.write("failed: " + traceback.format_exc())
            said[repo_id] = out.getvalue()
        print(json.dumps(said))
        """,
    )
    assert set(values) == set(programs) and len(values) == 24
    for repo_id, said in values.items():
        assert said.strip() and "failed: " not in said, f"{repo_id}: {said}"
    assert re.fullmatch(r"\{'concise': -?[\d.e-]+, 'positive': -?[\d.e-]+\}\n", values["me/lora-encoder"])
    assert re.fullmatch(r"reward: -?[\d.e-]+\n", values["me/lora-decoder-positive"])
    assert values["me/chat"].startswith("reply: ") and values["me/bare"].startswith("reply: ")
    assert "'win_rate'" in values["me/evaluation"]
