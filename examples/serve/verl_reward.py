# SPDX-License-Identifier: Apache-2.0
"""Max-min rewards for verl: a custom reward function.

    python -m verl.trainer.main_ppo custom_reward_function.path=verl_reward.py \\
        custom_reward_function.name=compute_score ...

or, with one request a batch, `reward_model.reward_manager=batch` and the name `compute_score_batched`.
The prompt comes from `extra_info["prompt"]` (text or messages): put it there when the data set is made. verl decodes
replies without special tokens, so each counts as finished unless `extra_info["finished"]` says otherwise.

Environment: MAXMIN_URL, MAXMIN_SESSION, MAXMIN_TOKEN.
"""

import json
import os
import time
import urllib.error
import urllib.request


URL = os.environ.get("MAXMIN_URL", "http://127.0.0.1:8008")
SESSION = os.environ.get("MAXMIN_SESSION", "verl")
TOKEN = os.environ.get("MAXMIN_TOKEN")


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """One reply: its reward, and its utility for each component."""
    return compute_score_batched([data_source], [solution_str], [ground_truth], [extra_info], **kwargs)[0]


def compute_score_batched(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
    """A batch of replies, likewise."""
    extra = [dict(info or {}) for info in extra_infos]
    if missing := [row for row, info in enumerate(extra) if "prompt" not in info]:
        raise KeyError(f"extra_info of row {missing[0]} has no 'prompt'; put it there when the data set is made.")
    body = {
        "prompts": [as_plain(info["prompt"]) for info in extra],
        "completions": list(solution_strs),
        "finished": [bool(info.get("finished", True)) for info in extra],
        "session": SESSION,
    }
    found = ask("/v1/score", body)
    named = [dict(zip(found["components"], row, strict=True)) for row in found["utilities"]]
    return [
        {"score": reward, **{f"utility_{name}": value for name, value in row.items()}}
        for reward, row in zip(found["rewards"], named, strict=True)
    ]


def as_plain(prompt):
    """Messages come out of parquet as arrays."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def ask(path, body, tries=60):
    """POST; waits as long as the server says where it is busy or starts again."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {TOKEN}"} if TOKEN else {})
    for left in reversed(range(tries)):
        request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or not left:
                raise RuntimeError(f"{URL}{path}: {error.code} {error.read().decode(errors='replace')}") from error
            seconds = float(error.headers.get("Retry-After") or 1)
        except (urllib.error.URLError, ConnectionError):
            if not left:
                raise
            seconds = 1.0
        time.sleep(seconds)
