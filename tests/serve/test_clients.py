# SPDX-License-Identifier: Apache-2.0
"""The clients of examples/serve as their frameworks call them, over loopback.

The shapes are those of the frameworks' sources: OpenRLHF `openrlhf/utils/remote_rm_utils.py`, verl
`verl/experimental/reward_loop/reward_manager/naive.py` and `verl/workers/reward_manager/batch.py`, LlamaFactory
`llamafactory/train/ppo/ppo_utils.py`, ms-swift `examples/train/grpo/plugin/gsm8k/gsm8k_plugin.py`.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
import yaml

from tests.serve.helpers import mixture, reward_server, served


EXAMPLES = Path(__file__).parents[2] / "examples" / "serve"
TOKEN = "a-token-of-some-length"
CHAT = [{"role": "user", "content": "good film"}]


@pytest.fixture(scope="module")
def model():
    return mixture(["brief", "warm"])


@pytest.fixture(scope="module")
def port(model):
    with served(reward_server(model)) as port:
        yield port


def client(name, monkeypatch, port, token=None):
    monkeypatch.setenv("MAXMIN_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MAXMIN_SESSION", name)
    monkeypatch.setenv("MAXMIN_TOKEN", token) if token else monkeypatch.delenv("MAXMIN_TOKEN", raising=False)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def means(model, prompts, replies):
    """Equal weights, since no rollout is complete."""
    return model.score(prompts, replies).double().mean(dim=1).tolist()


QUERIES = ["the film is great <eos>", "a movie dull <eos> <eos>"]
SPLIT = ["the film is", "a movie"], ["great", "dull"]


def test_openrlhf_url(model, port):
    """As `request_api_wrapper` posts and reads."""
    data = {"query": QUERIES, "prompts": SPLIT[0], "labels": ["", ""]}
    answer = requests.post(
        f"http://127.0.0.1:{port}/get_reward?session=o", json=data, headers={"Content-Type": "application/json"}
    )
    answer.raise_for_status()
    found = answer.json()
    assert torch.tensor(found["rewards"]).tolist() == pytest.approx(means(model, *SPLIT), abs=1e-5)
    assert found["scores"] == found["rewards"]
    assert set(found["extra_logs"]) == {"utility_brief", "utility_warm"}
    assert requests.get(f"http://127.0.0.1:{port}/v1/sessions/o").json()["replies_of_the_next_rollout"] == 2
    # Older releases send the query alone.
    alone = requests.post(f"http://127.0.0.1:{port}/get_reward", json={"query": QUERIES}).json()
    assert alone["rewards"] == pytest.approx(found["rewards"])
    wrong = requests.post(f"http://127.0.0.1:{port}/get_reward", json=data | {"prompts": ["one"]})
    assert wrong.status_code == 422 and "2 texts and 1 prompts" in wrong.json()["error"]


def test_openrlhf_reward_function(model, port, monkeypatch):
    found = client("openrlhf_reward_func", monkeypatch, port).reward_func(QUERIES, SPLIT[0], ["", ""])
    assert found["rewards"].tolist() == pytest.approx(means(model, *SPLIT), abs=1e-5)
    assert found["extra_logs"]["utility_warm"].shape == (2,)


def test_verl(model, port, monkeypatch):
    module = client("verl_reward", monkeypatch, port)
    expected = means(model, *SPLIT)
    found = module.compute_score(
        data_source="films", solution_str="great", ground_truth="", extra_info={"prompt": SPLIT[0][0], "num_turns": 1}
    )
    assert found["score"] == pytest.approx(expected[0], abs=1e-5) and {"utility_brief", "utility_warm"} < set(found)
    # The batch manager hands arrays; messages come out of parquet as arrays of dicts.
    batch = module.compute_score_batched(
        data_sources=np.array(["films", "films"], dtype=object),
        solution_strs=SPLIT[1],
        ground_truths=["", ""],
        extra_infos=np.array([{"prompt": SPLIT[0][0]}, {"prompt": SPLIT[0][1]}], dtype=object),
    )
    assert [entry["score"] for entry in batch] == pytest.approx(expected, abs=1e-5)
    chat = module.compute_score("films", "very good", "", {"prompt": np.array(CHAT, dtype=object)})
    wanted = means(model, [CHAT], [[{"role": "assistant", "content": "very good"}]])
    assert chat["score"] == pytest.approx(wanted[0], abs=1e-5)
    with pytest.raises(KeyError, match="row 0 has no 'prompt'"):
        module.compute_score("films", "great", "", {})


def test_llamafactory(model, port):
    """As `get_rewards_from_server` posts and reads, at the address of the example."""
    recipe = yaml.safe_load((EXAMPLES / "llamafactory.yaml").read_text())
    assert recipe["reward_model_type"] == "api"
    url = recipe["reward_model"].replace("8008", str(port))
    payload = {"model": "model", "messages": QUERIES}
    response = requests.post(url, json=payload, headers={"Content-Type": "application/json"})
    rewards = torch.Tensor(json.loads(response.text)["scores"])
    assert rewards.tolist() == pytest.approx(means(model, *SPLIT), abs=1e-5)


@pytest.mark.parametrize("place", ["swift.rewards", "swift.plugin"])
def test_swift(model, port, monkeypatch, place):
    swift = types.ModuleType(place)
    swift.ORM, swift.orms = type("ORM", (), {}), {}
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    for name in ("swift.rewards", "swift.plugin"):
        monkeypatch.setitem(sys.modules, name, swift if name == place else None)
    client("swift_plugin", monkeypatch, port)
    reward = swift.orms["maxmin"]()
    wanted = means(model, [CHAT], [[{"role": "assistant", "content": "very good"}]])
    messages = [[*CHAT, {"role": "assistant", "content": "very good"}]]
    assert reward(["very good"], messages=messages, solution=[""]) == pytest.approx(wanted, abs=1e-5)
    assert reward(["very good"], messages=[CHAT]) == pytest.approx(wanted, abs=1e-5)
    cut = reward(["very good"], messages=[CHAT], is_truncated=[True])
    assert abs(cut[0] - wanted[0]) > 1e-4


@pytest.mark.parametrize("name", ["openrlhf_reward_func", "verl_reward"])
def test_clients_send_their_token_and_say_what_was_refused(model, monkeypatch, name):
    with served(reward_server(model, token=TOKEN)) as port:
        asked = client(name, monkeypatch, port, TOKEN).ask("/v1/score", {"texts": QUERIES})
        assert len(asked["rewards"]) == 2
        with pytest.raises(RuntimeError, match="401 .*A token is needed"):
            client(name, monkeypatch, port).ask("/v1/score", {"texts": QUERIES})
        with pytest.raises(RuntimeError, match="422 .*Give either"):
            client(name, monkeypatch, port, TOKEN).ask("/v1/score", {})


def test_a_client_waits_for_a_server_that_is_not_there(model, monkeypatch):
    module, slept = client("verl_reward", monkeypatch, 1), []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    with pytest.raises(OSError):
        module.ask("/v1/score", {}, tries=3)
    assert slept == [1.0, 1.0]
