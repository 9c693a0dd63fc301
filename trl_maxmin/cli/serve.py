# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin serve`: the rewards of a mixture over HTTP, for trainers of other frameworks."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..models.base import pick_device, place
from ..models.loading import load_config
from ..trainer.maxmin.maxmin_config import MaxMinConfigMixin
from .loading import require_model
from .output_folder import require_writable
from .parser import CommandParser, UsageError


logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class ServeArguments(MaxMinConfigMixin):
    """Options of `trl-maxmin serve`, beside those of the welfare rules.

    Args:
        reward_model (`str`): folder or Hub id of a mixture.
        host (`str`), port (`int`): where to listen.
        token_variable (`str`): environment variable that holds the token.
        state_dir (`str`): folder in which sessions are kept over a restart.
        rollout_size, batch_size, max_body_mb, body_seconds, max_replies, max_waiting, max_sessions, max_requests:
            limits and sizes.
    """

    reward_model: str | None = field(default=None, metadata={"help": "Folder or Hub id of a mixture."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; another one needs a token."})
    port: int = field(default=8008, metadata={"help": "Port to listen on."})
    token_variable: str | None = field(
        default=None, metadata={"help": "Environment variable that holds the token which clients have to send."}
    )
    state_dir: str | None = field(
        default=None, metadata={"help": "Folder in which weights of sessions are kept over a restart."}
    )
    rollout_size: int = field(default=256, metadata={"help": "Replies of a session that decide its next weights."})
    batch_size: int = field(default=64, metadata={"help": "Replies a forward."})
    max_body_mb: int = field(default=16, metadata={"help": "Largest body of a request, in MiB."})
    body_seconds: float = field(default=30.0, metadata={"help": "Within which a body has to arrive."})
    max_replies: int = field(default=4096, metadata={"help": "Replies a request."})
    max_waiting: int = field(default=16384, metadata={"help": "Replies that may wait, of all clients."})
    max_sessions: int = field(default=64, metadata={"help": "Sessions at the same time."})
    max_requests: int = field(default=512, metadata={"help": "Requests at the same time."})


def run(argv: Sequence[str]) -> None:
    """Serve until it is interrupted.

    Args:
        argv (`Sequence[str]`): options of [`ServeArguments`].

    Raises:
        UsageError: no mixture, an open address without a token, or limits that make no sense.
        ValueError: another model than a mixture, a broken one, or FastAPI that is not installed.
        OSError: a model, folder or port that cannot be used.
    """
    parser = CommandParser(
        ServeArguments,
        prog="trl-maxmin serve",
        description="Give the rewards of a mixture over HTTP, for trainers of other frameworks (docs/serve.md).",
        epilog="  trl-maxmin serve --reward_model mixture --welfare mirror --rollout_size 512 --state_dir sessions\n"
        "  curl http://127.0.0.1:8008/v1/score -H 'content-type: application/json' \\\n"
        '      -d \'{"prompts": ["Hi"], "completions": ["Hello!"], "session": "run-1"}\'',
    )
    (arguments,) = parser.parse_args_and_config(list(argv))
    if not arguments.reward_model:
        raise UsageError("--reward_model is required: the folder or Hub id of a mixture.")
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"The server needs {package}: pip install 'trl-maxmin[serve]'.")
    token = _token(arguments)
    require_model(arguments.reward_model, "--reward_model")
    kind = load_config(arguments.reward_model, "--reward_model").model_type
    if kind != "mixture_reward":
        raise ValueError(f"--reward_model {arguments.reward_model} is a {kind}, not a mixture of reward models.")
    if arguments.state_dir:
        require_writable(arguments.state_dir, "--state_dir")
    _serve(arguments, token)


def _token(arguments: ServeArguments) -> str | None:
    if arguments.token_variable is None:
        if arguments.host not in _LOOPBACK:
            raise UsageError(
                f"--host {arguments.host} is open to other machines, and nobody would be asked who they are. Set "
                "--token_variable, or leave --host out."
            )
        return None
    token = os.environ.get(arguments.token_variable)
    if not token:
        raise UsageError(f"--token_variable {arguments.token_variable}: there is no such environment variable.")
    return token


def _serve(arguments: ServeArguments, token: str | None) -> None:
    import uvicorn

    from ..models import MixtureRewardModel
    from ..serve.app import RewardServer, ServeSettings, create_app
    from ..serve.scorer import Scorer

    try:
        settings = ServeSettings(
            max_body=arguments.max_body_mb * 2**20,
            body_seconds=arguments.body_seconds,
            max_replies=arguments.max_replies,
            max_waiting=arguments.max_waiting,
            max_batch=4 * arguments.batch_size,
            max_sessions=arguments.max_sessions,
            max_requests=arguments.max_requests,
            rollout_size=arguments.rollout_size,
            state_dir=Path(arguments.state_dir) if arguments.state_dir else None,
            token=token,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    mixture = MixtureRewardModel.from_pretrained(arguments.reward_model, argument="--reward_model").eval()
    place(mixture, pick_device())
    scorer = Scorer(mixture, arguments.batch_size)
    if not scorer.calibrated and len(scorer.names) > 1:
        logger.warning(
            "The mixture is not calibrated, so rewards of its components cannot be compared. Calibrate each session "
            "(POST /v1/calibrate), or the mixture: `mixture.calibrate`."
        )
    welfare = MaxMinConfigMixin(**{entry.name: getattr(arguments, entry.name) for entry in fields(MaxMinConfigMixin)})
    app = create_app(RewardServer(scorer, welfare, settings))
    if not os.environ.get("TRL_MAXMIN_QUIET"):
        print(f"rewards of {', '.join(scorer.names)} at http://{arguments.host}:{arguments.port} (/docs)", flush=True)
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        limit_concurrency=4 * arguments.max_requests,  # of connections that have not asked anything yet, too
        timeout_graceful_shutdown=10,
        access_log=False,
        log_level="warning",
    )
