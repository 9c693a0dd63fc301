# SPDX-License-Identifier: Apache-2.0
"""Fifty sessions at once, on the models of the embedded world."""

import concurrent.futures
import html
import os
import re
import resource
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from trl_maxmin.space.policies import Policy, Settings, _draw
from trl_maxmin.space.scoring import Studio


gradio_client = pytest.importorskip("gradio_client", reason="Gradio is not installed (pip install trl-maxmin[space])")


def test_the_same_seed_gives_everyone_the_same_answer(run_folder):
    policies = [Policy.load("p", str(run_folder / "policies" / "maxmin")) for _ in range(2)]
    prompt = "war film with dogs and spies :"
    answers = [
        policy.sample(policy.encode(prompt), Settings(1.0, seed, 12), 1)[0]
        for seed in (3, 3, 4)
        for policy in policies
    ]
    assert len({answer.text for answer in answers[:4]}) == 1 and answers[4].text != answers[0].text
    # Other visitors' requests in between change nothing.
    streams = [policies[0].stream(policies[0].encode(prompt), Settings(1.0, seed, 12)) for seed in (3, 9)]
    mixed = [reply.text for pair in zip(*streams, strict=False) for reply in pair[:1]]
    assert mixed[-1] == answers[0].text


def test_greedy_answers_are_those_of_transformers(run_folder):
    policy = Policy.load("p", str(run_folder / "policies" / "single"))
    ids = policy.encode("war film with dogs and spies :")
    expected = policy.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=12, pad_token_id=0
    )[0, len(ids) :]
    *_, reply = policy.stream(ids, Settings(0.0, 0, 12))
    assert reply.ids == expected.tolist()


def test_tokens_are_drawn_from_the_softmax():
    generator, logits = torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, -50.0, 2.0])
    counts = torch.bincount(torch.tensor(_draw(logits.repeat(4000, 1), 2.0, generator)), minlength=4)
    assert counts[2] == 0
    assert (counts / 4000).tolist() == pytest.approx((logits / 2).softmax(-1).tolist(), abs=0.03)


def test_a_missing_model_is_a_sentence_on_the_page(run_folder, tmp_path):
    from trl_maxmin.space.config import SpaceConfig

    policies = {"maxmin": str(run_folder / "policies" / "maxmin"), "gone": str(tmp_path)}
    made = Studio.load(SpaceConfig(policies=policies, mixture=str(tmp_path)))
    assert list(made.policies) == ["maxmin"] and made.mixture is None
    assert [problem.split(" could not be loaded")[0] for problem in made.problems] == [
        "The policy 'gone'",
        "The reward mixture",
    ]


def test_weights_that_are_pickles_are_not_loaded(run_folder, tmp_path):
    model = Policy.load("p", str(run_folder / "policies" / "maxmin"))
    model.model.config.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    torch.save(model.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        Policy.load("p", str(tmp_path))


def rss(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def cpu_seconds(pid):
    """Of a process and all its threads; what the clock would say on a machine that does nothing else."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status_of(url, body):
    """Status of a post; None where the connection was closed while the body was on its way, which HTTP allows."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body), timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError):
        return None


def seconds_of_the_imports():
    """CPU seconds that the libraries of the page take to be imported, without a line of ours."""
    libraries = "import gradio, gradio.routes, datasets, peft, transformers.models.gpt2.modeling_gpt2"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", libraries], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads times from /proc")
def test_the_page_is_up_soon_after_its_imports_and_answers_soon(server):
    """Within ten seconds and three of a quiet core, on which the libraries alone take seven."""
    url, process = server
    up, imports = cpu_seconds(process.pid), seconds_of_the_imports()
    client = gradio_client.Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 300})
    names = ["reference", "single", "maxmin"]
    client.predict("war film with dogs and ghosts :", names, 1.0, 0, 16, False, api_name="/compare")
    answered = cpu_seconds(process.pid) - up
    before = rss(process.pid)
    body = b"x" * (8 << 20)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: status_of(f"{url}/gradio_api/queue/join", body), range(24)))
    print("KiB before and after 24 bodies of 8 MiB", before, rss(process.pid))
    assert set(statuses) <= {413, None} and rss(process.pid) < before + 50_000
    print("CPU seconds until the page is up", up, "of which imports", imports, "and of the first answer", answered)
    assert up < 10 / 7 * imports and answered < 3 / 7 * imports


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_fifty_sessions_two_hundred_requests(server, run_folder):
    url, process = server
    pid = process.pid
    policies = {n: Policy.load(n, str(run_folder / "policies" / n)) for n in ("reference", "single", "maxmin")}
    memory, answered, counting = {}, 0, threading.Lock()

    def session(number):
        nonlocal answered
        client = gradio_client.Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 300})
        results = []
        for turn in range(4):
            seed = 4 * number + turn
            prompt = f"war film with {('dogs', 'spies', 'monks')[seed % 3]} and ghosts :"
            start = time.perf_counter()
            shown = client.predict(prompt, list(policies), 1.0, seed, 16, False, api_name="/compare")
            results.append((seed, prompt, shown[0], time.perf_counter() - start))
            with counting:
                answered += 1
                if answered in (50, 200):
                    memory[answered] = rss(pid)
        return results

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        results = [row for rows in pool.map(session, range(50)) for row in rows]
    assert len(results) == 200
    for seed, prompt, panel, _ in results:
        texts = [html.unescape(text) for text in re.findall(r'<p class="mm-answer"[^>]*>(.*?)</p>', panel, re.S)]
        expected = [
            policy.sample(policy.encode(prompt), Settings(1.0, seed, 16), 1)[0].text for policy in policies.values()
        ]
        assert texts == [text or "<em>(empty answer)</em>" for text in expected]
    print("memory in KiB after requests", memory, "slowest", max(row[-1] for row in results))
    assert memory[200] < 1.1 * memory[50]
