# SPDX-License-Identifier: Apache-2.0
"""Max-min rewards for OpenRLHF: pass this file where the trainer takes a reward function.

    python -m openrlhf.cli.train_ppo_ray --remote_rm_url openrlhf_reward_func.py ...

(`--reward.remote_url` in releases with dotted options). Without a token the server's URL does as well:

    --remote_rm_url "http://127.0.0.1:8008/get_reward?session=run-1"

Environment: MAXMIN_URL, MAXMIN_SESSION, MAXMIN_TOKEN.
"""

import json
import os
import time
import urllib.error
import urllib.request

import torch


URL = os.environ.get("MAXMIN_URL", "http://127.0.0.1:8008")
SESSION = os.environ.get("MAXMIN_SESSION", "openrlhf")
TOKEN = os.environ.get("MAXMIN_TOKEN")


def reward_func(queries, prompts, labels, **kwargs):
    """Rewards of `queries` (prompt and reply in one text, special tokens written out)."""
    found = ask("/v1/score", {"texts": list(queries), "session": SESSION})
    rewards = torch.tensor(found["rewards"])
    columns = torch.tensor(found["utilities"]).T
    logs = {f"utility_{name}": column for name, column in zip(found["components"], columns, strict=True)}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


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
