# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin serve` under load: is every answer right, and what does HTTP cost beside a bare forward?

Two parts, with the server in a process of its own, one thread for its forwards:

- *speed*: clients score replies at K = 8; the same sequences go through `mixture.score` alone before, tokenised, in
  batches of the same size. By the wall clock, and by the server's processor time, which other programs on the machine
  and the clients (which share its cores) do not change.
- *trouble*: so many clients at the same time, among them some that send rubbish, some whose bodies come byte by byte,
  some that never finish or hang up; in the midst of it the server is killed and started again. Every answer is
  compared with the mixture's own.

    python benchmarks/serve_load.py --output serve_load.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl_maxmin.models import MixtureRewardModel


K, WORDS, BATCH = 8, 2000, 64


def build_mixture(layers: int, width: int) -> MixtureRewardModel:
    """K heads on a small decoder with random weights, calibrated with made-up numbers."""
    torch.manual_seed(0)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(WORDS))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    sizes = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "n_positions": 128}
    base = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **sizes))
    mixture = MixtureRewardModel.from_base(base, K, processing_class=tokenizer).eval()
    mixture.config.reward_shift, mixture.config.reward_scale = [0.1 * k for k in range(K)], [1.0 + k for k in range(K)]
    return mixture


class Pool:
    """Replies with their right answers."""

    def __init__(self, mixture: MixtureRewardModel, size: int) -> None:
        draw = random.Random(0)
        self.prompts = [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(6, 24))) for _ in range(size)]
        self.replies = [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(8, 80))) for _ in range(size)]
        rewards = mixture.score(self.prompts, self.replies, batch_size=BATCH).double()
        self.utilities = (rewards - mixture.reward_shift.double()) / mixture.reward_scale.double()
        tokenizer = mixture.processing_class
        self.ids = [
            tokenizer(f"{prompt} {reply} <eos>").input_ids
            for prompt, reply in zip(self.prompts, self.replies, strict=True)
        ]

    def body(self, rows: list[int], session: str | None) -> bytes:
        texts = {"prompts": [self.prompts[i] for i in rows], "completions": [self.replies[i] for i in rows]}
        return json.dumps(texts | ({"session": session} if session else {})).encode()

    def is_right(self, rows: list[int], found: dict) -> bool:
        utilities = torch.tensor(found["utilities"], dtype=torch.float64)
        weights = torch.tensor(found["weights"], dtype=torch.float64)
        rewards = torch.tensor(found["rewards"], dtype=torch.float64)
        own = torch.allclose(utilities, self.utilities[rows], atol=1e-4)
        return own and torch.allclose(rewards, utilities @ weights, atol=1e-4) and abs(weights.sum() - 1) < 1e-4


class Server:
    """The command in a process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.start()

    def start(self) -> None:
        options = f"--reward_model {self.folder / 'mixture'} --state_dir {self.folder / 'sessions'} --port {self.port}"
        options += f" --body_seconds 3 --max_body_mb 1 --rollout_size 64 --batch_size {BATCH} --quiet"
        code = "import sys; from trl_maxmin.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
        self.process = subprocess.Popen([sys.executable, "-c", code, "serve", *options.split()], env=environment)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the server did not come up (exit status {self.process.poll()})")

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict, float]:
        """Status, answer, and how long to wait where it is busy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            # Above its last limit uvicorn answers by itself, without JSON.
            found = json.loads(text) if answer.getheader("Content-Type") == "application/json" else {}
            return answer.status, found, float(answer.getheader("Retry-After") or 0)
        finally:
            connection.close()

    def persist(self, method: str, path: str, body: bytes, outcomes: Counter) -> dict:
        """As a trainer's client: again where the server is busy or gone."""
        while True:
            try:
                status, found, wait = self.ask(method, path, body)
            except (OSError, http.client.HTTPException):
                outcomes["again: no connection"] += 1
                time.sleep(0.2)
                continue
            if status not in (429, 503):
                return found | {"status": status}
            outcomes[f"again: {status}"] += 1
            time.sleep(wait or 1)

    def seconds(self) -> float:
        """Processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait()


def in_threads(count: int, work) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_speed(server: Server, pool: Pool, mixture: MixtureRewardModel, options: argparse.Namespace) -> dict:
    draw = random.Random(1)
    size = len(pool.ids)
    requests = [[draw.randrange(size) for _ in range(options.speed_replies)] for _ in range(options.speed_requests)]
    rows = [row for request in requests for row in request]
    sequences = [pool.ids[row] for row in rows]
    mixture.score(prompt_ids=[[]] * BATCH, completion_ids=sequences[:BATCH], batch_size=BATCH)
    wall, processor = time.perf_counter(), time.process_time()
    for start in range(0, len(sequences), 4 * BATCH):
        part = sequences[start : start + 4 * BATCH]
        mixture.score(prompt_ids=[[]] * len(part), completion_ids=part, batch_size=BATCH)
    bare = time.perf_counter() - wall, time.process_time() - processor
    todo, lock, outcomes = iter(requests), threading.Lock(), Counter()

    def client(_: int) -> None:
        while True:
            with lock:
                request = next(todo, None)
            if request is None:
                return
            found = server.persist("POST", "/v1/score", pool.body(request, None), outcomes)
            outcomes["right" if found["status"] == 200 and pool.is_right(request, found) else "wrong"] += 1

    wall, processor = time.perf_counter(), server.seconds()
    in_threads(options.clients, client)
    served = time.perf_counter() - wall, server.seconds() - processor
    return {
        "replies": len(rows),
        "mean_tokens": sum(map(len, sequences)) / len(sequences),
        "answers": dict(outcomes),
        "bare_replies_per_second": len(rows) / bare[0],
        "served_replies_per_second": len(rows) / served[0],
        "ratio_wall": bare[0] / served[0],
        "bare_processor_seconds": bare[1],
        "server_processor_seconds": served[1],
        "ratio_processor": bare[1] / served[1],
    }


BAD = (
    (b"{", 422),
    (b'{"texts": 3}', 422),
    (b'{"texts": ["w1"], "session": "../../x"}', 422),
    (b'{"texts": [""]}', 422),
    (json.dumps({"texts": ["w1 " * 500]}).encode(), 422),
    (b'{"texts": ["\\ud800"]}', 422),
    (b"x" * (2 * 2**20), 413),
)


def make_trouble(server: Server, pool: Pool, options: argparse.Namespace) -> dict:
    draw, lock, outcomes = random.Random(2), threading.Lock(), Counter()
    todo = iter(range(options.requests))
    done = threading.Event()

    def client(number: int) -> None:
        own = random.Random(number)
        while True:
            with lock:
                index = next(todo, None)
            if index is None:
                return
            if index == options.requests // 2:
                server.kill()
                outcomes["kills"] += 1
                server.start()
            if index % 10 == 9:
                body, expected = BAD[own.randrange(len(BAD))]
                _expect(server, body, expected, outcomes)
                continue
            rows = [own.randrange(len(pool.ids)) for _ in range(options.replies)]
            found = server.persist("POST", "/v1/score", pool.body(rows, f"run-{number % 5}"), outcomes)
            outcomes["right" if found["status"] == 200 and pool.is_right(rows, found) else "wrong"] += 1

    def slow(number: int) -> None:
        """Byte by byte, or half a body and nothing more, or gone before the answer."""
        while not done.is_set():
            rows = [draw.randrange(len(pool.ids))]
            try:
                outcomes[_send_slowly(server.port, pool, rows, number % 3)] += 1
            except OSError:
                outcomes["slow: no connection"] += 1
                time.sleep(0.2)

    slow_ones = [threading.Thread(target=slow, args=(number,)) for number in range(6)]
    for thread in slow_ones:
        thread.start()
    in_threads(options.clients, client)
    done.set()
    for thread in slow_ones:
        thread.join()
    sessions = [server.ask("GET", f"/v1/sessions/run-{number}")[1] for number in range(5)]
    healthy = server.ask("GET", "/health")
    return {
        "clients": options.clients,
        "requests": options.requests,
        "outcomes": dict(sorted(outcomes.items())),
        "rollouts_of_sessions": [session["step"] for session in sessions],
        "healthy_afterwards": healthy[0] == 200 and healthy[1]["waiting"] == 0,
    }


def _expect(server: Server, body: bytes, expected: int, outcomes: Counter) -> None:
    while True:
        try:
            status, found, _ = server.ask("POST", "/v1/score", body)
        except (OSError, http.client.HTTPException):
            # Started again just now, or: the answer to what is too large may find the line closed.
            if expected == 413 and server.process.poll() is None:
                outcomes["refused"] += 1
                return
            time.sleep(0.2)
            continue
        if status == 503:
            time.sleep(1)
            continue
        outcomes["refused" if status == expected and "error" in found else "wrong"] += 1
        return


def _send_slowly(port: int, pool: Pool, rows: list[int], how: int) -> str:
    body = pool.body(rows, None)
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(head.encode())
        if how == 0:
            for start in range(0, len(body), 64):
                line.sendall(body[start : start + 64])
                time.sleep(0.02)
            answer = http.client.HTTPResponse(line)
            answer.begin()
            text = answer.read()
            if answer.status != 200:
                return f"slow: {answer.status}"
            return "slow: right" if pool.is_right(rows, json.loads(text)) else "wrong"
        line.sendall(body[: len(body) // 2])
        if how == 1:
            time.sleep(0.05)
            return "slow: hung up"
        status = line.recv(4096).split(b"\r\n")[0]
        return "slow: 408" if b" 408 " in status else "slow: no connection" if not status else "wrong"


def run(options: argparse.Namespace) -> dict:
    """Both parts; the numbers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mixture = build_mixture(options.layers, options.width)
        mixture.save_pretrained(Path(folder) / "mixture")
        pool = Pool(mixture, options.pool)
        server = Server(Path(folder))
        try:
            found = {
                "model": {"layers": options.layers, "width": options.width, "components": K},
                "speed": measure_speed(server, pool, mixture, options),
                "trouble": make_trouble(server, pool, options),
            }
        finally:
            server.kill(signal.SIGTERM)
    speed, trouble = found["speed"], found["trouble"]["outcomes"]
    found["wrong_answers"] = speed["answers"].get("wrong", 0) + trouble.get("wrong", 0)
    return found


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--replies", type=int, default=2, help="a request")
    parser.add_argument("--speed_requests", type=int, default=100)
    parser.add_argument("--speed_replies", type=int, default=16, help="a request")
    parser.add_argument("--pool", type=int, default=512, help="different replies")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(argv)
    found = run(options)
    text = json.dumps(found, indent=2) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)
    return found


if __name__ == "__main__":
    main()
