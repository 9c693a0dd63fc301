# SPDX-License-Identifier: Apache-2.0
"""Max-min rewards for ms-swift: a reward plugin.

    swift rlhf --rlhf_type grpo --external_plugins swift_plugin.py --reward_funcs maxmin ...

Environment: MAXMIN_URL, MAXMIN_SESSION, MAXMIN_TOKEN.
"""

import json
import os
import time
import urllib.error
import urllib.request


try:
    from swift.rewards import ORM, orms
except ImportError:  # before ms-swift 4
    from swift.plugin import ORM, orms


URL = os.environ.get("MAXMIN_URL", "http://127.0.0.1:8008")
SESSION = os.environ.get("MAXMIN_SESSION", "swift")
TOKEN = os.environ.get("MAXMIN_TOKEN")


class MaxMinReward(ORM):
    """What the worst-off group's weights make of each reply."""

    def __call__(self, completions, **kwargs) -> list[float]:
        """Rewards of replies; `messages` of each row are its prompt, with or without the reply at their end."""
        prompts = [list(messages) for messages in kwargs["messages"]]
        prompts = [turns[:-1] if turns[-1]["role"] == "assistant" else turns for turns in prompts]
        plain = [[{"role": turn["role"], "content": turn["content"]} for turn in turns] for turns in prompts]
        body = {"prompts": plain, "completions": list(completions), "session": SESSION}
        if "is_truncated" in kwargs:
            body["finished"] = [not truncated for truncated in kwargs["is_truncated"]]
        return ask("/v1/score", body)["rewards"]


orms["maxmin"] = MaxMinReward


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
