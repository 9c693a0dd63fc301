# SPDX-License-Identifier: Apache-2.0
"""The HTTP endpoints: docs/serve.md is their contract, `/docs` and `/openapi.json` their machine-readable form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from .. import __version__
from ..door import Door
from ..trainer.maxmin.maxmin_config import MaxMinConfigMixin
from ..trainer.maxmin.welfare import groups_with_evidence
from .batching import Busy, ScoringQueue
from .scorer import Scorer, Unusable
from .sessions import Session, SessionError, Sessions, TooManySessions, Weighed


logger = logging.getLogger(__name__)

#: Status that a client which went away before its answer would have got; only the log sees it.
_GONE = 499


@dataclass
class ServeSettings:
    """Limits of a server.

    Args:
        max_body (`int`): bytes of a request's body.
        body_seconds (`float`): within which it has to arrive.
        max_replies (`int`): of a request.
        max_waiting (`int`): replies that may wait to be scored, of all clients.
        max_batch (`int`): replies that are scored together.
        max_sessions (`int`), max_requests (`int`): at the same time.
        rollout_size (`int`): replies that decide the next weights of a session.
        state_dir (`Path`, *optional*): where sessions are kept over a restart.
        token (`str`, *optional*): what clients have to send.

    Raises:
        ValueError: a limit below 1, or an empty token.
    """

    max_body: int = 16 * 2**20
    body_seconds: float = 30.0
    max_replies: int = 4096
    max_waiting: int = 16_384
    max_batch: int = 256
    max_sessions: int = 64
    max_requests: int = 512
    rollout_size: int = 256
    state_dir: Path | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        names = (
            "max_body body_seconds max_replies max_waiting max_batch max_sessions max_requests rollout_size".split()
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.token is not None and len(self.token) < 16:
            raise ValueError(f"The token has {len(self.token)} characters; give one of at least 16, from a generator.")


Text = Annotated[StrictStr, Field(max_length=1_000_000)]
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
SessionName = Annotated[str | None, Query(description="The run, whose weights these replies count towards.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScoreRequest(_Body):
    """Replies to be scored: prompts with completions, or whole texts."""

    prompts: list[Text | Messages] | None = Field(None, description="Texts or messages, one a reply.")
    completions: list[Text | Messages] | None = Field(None, description="Replies without special tokens.")
    finished: list[StrictBool] | None = Field(None, description="Whether each ended by itself. Default: all.")
    texts: list[Text] | None = Field(
        None, description="Instead: prompt and reply in one, special tokens written out, EOS where the reply finished."
    )
    session: StrictStr | None = Field(None, description="The run. Without one replies are weighed equally.")
    count: StrictBool = Field(True, description="Whether these replies count towards the session's next weights.")
    whole: StrictBool = Field(
        False,
        description="These replies are a rollout of their own: they decide the weights that they are weighed by.",
    )


class ScoreReply(BaseModel):
    """Rewards of the replies."""

    components: list[str] = Field(description="K names.")
    utilities: list[list[float]] = Field(description="(N, K), comparable between components where calibrated.")
    rewards: list[float] = Field(description="N: the sum over components of weight times utility.")
    weights: list[float] = Field(description="K weights that were used; they sum to 1.")
    step: int = Field(description="Rollouts of the session that have decided weights so far.")
    calibration: str = Field(description="session, stored or none: what the utilities are measured against.")


class CalibrateRequest(_Body):
    """Replies of the policy that training starts from, at least four to some prompts."""

    session: StrictStr
    prompts: list[Text | Messages]
    completions: list[Text | Messages]
    finished: list[StrictBool] | None = None


class OpenRLHFRequest(BaseModel):
    """What OpenRLHF posts to its remote reward URL."""

    query: list[Text] = Field(description="Prompts and replies in one text.")
    prompts: list[Text] | None = None
    labels: list[Any] | None = None


class LlamaFactoryRequest(BaseModel):
    """What LlamaFactory posts where `reward_model_type: api`."""

    messages: list[Text] = Field(description="Prompts and replies in one text.")
    model: str | None = None


class _Refused(Exception):
    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class RewardServer:
    """What the endpoints call.

    Args:
        scorer ([`Scorer`]): the mixture.
        welfare ([`MaxMinConfigMixin`]): the rule of the sessions.
        settings ([`ServeSettings`]): the limits.
    """

    def __init__(self, scorer: Scorer, welfare: MaxMinConfigMixin, settings: ServeSettings) -> None:
        self.scorer, self.settings, self.welfare = scorer, settings, welfare
        source = scorer.source
        self.sessions = Sessions(
            welfare,
            scorer.names,
            source.mixing_weights,
            groups_with_evidence(welfare, source),
            settings.rollout_size,
            settings.state_dir,
            settings.max_sessions,
        )
        self._equal = Session(self.sessions.new_welfare(), settings.rollout_size)
        self.queue = ScoringQueue(scorer.score, settings.max_batch, settings.max_waiting)

    async def rewards(self, rows: list[list[int]], client: str, request: Request) -> torch.Tensor:
        """Rewards `(N, K)`; does not go on for a client that has gone."""
        try:
            future = self.queue.submit(rows, client)
        except Busy as busy:
            raise _Refused(429 if busy.alone else 503, f"{busy} Try again later.", busy.retry_after) from busy
        waiting = asyncio.wrap_future(future)
        while not waiting.done():
            await asyncio.wait([waiting], timeout=1.0)
            if not waiting.done() and await request.is_disconnected():
                waiting.cancel()
                raise _Refused(_GONE, "The client has gone.")
        return waiting.result()

    def encode(self, body: ScoreRequest) -> tuple[list[list[int]], list[Any]]:
        """Ids and prompts of a request.

        Raises:
            Unusable: neither or both forms, lists of different lengths, too many replies, or what cannot be read.
        """
        if (body.texts is None) == (body.completions is None):
            raise Unusable("Give either `prompts` with `completions`, or `texts`.")
        if body.texts is not None:
            if body.prompts is not None or body.finished is not None:
                raise Unusable("`texts` hold prompt and end themselves; leave `prompts` and `finished` out.")
            self.require_count(len(body.texts))
            return self.scorer.encode_whole(body.texts), [None] * len(body.texts)
        prompts, finished = self._aligned(body.prompts, body.completions, body.finished)
        return self.scorer.encode(prompts, body.completions, finished), prompts

    def require_count(self, count: int) -> None:
        """Raise where a request has no or too many replies."""
        if not 0 < count <= self.settings.max_replies:
            raise Unusable(f"There are {count} replies; give 1 to {self.settings.max_replies} a request.")

    def _aligned(
        self, prompts: list[Any] | None, completions: Sequence[Any], finished: list[bool] | None
    ) -> tuple[list[Any], list[bool]]:
        count = len(completions)
        self.require_count(count)
        for name, values in (("prompts", prompts), ("finished", finished)):
            if len(values if values is not None else completions) != count or (name == "prompts" and values is None):
                given = "none" if values is None else len(values)
                raise Unusable(f"There are {count} completions and {given} {name}; give one each.")
        return prompts, finished if finished is not None else [True] * count

    async def weigh(
        self, rows: list[list[int]], prompts: list[Any], session: str | None, request: Request, **how: bool
    ) -> tuple[Weighed, str]:
        """Score, measure and weigh; and what the utilities are measured against."""
        own = self._equal if session is None else self.sessions.get(session)
        rewards = await self.rewards(rows, session or _address(request), request)
        utilities = self.scorer.utilities(rewards, prompts, own.statistics)
        count = how.get("count", True) and session is not None
        found = own.weigh(utilities, how.get("whole", False)) if count else own.peek(utilities)
        stored = "stored" if self.scorer.calibrated else "none"
        return found, "session" if own.statistics is not None else stored

    async def calibrate(self, body: CalibrateRequest, request: Request) -> dict[str, Any]:
        """Measure the reference's replies for a session."""
        prompts, finished = self._aligned(body.prompts, body.completions, body.finished)
        rows = await asyncio.to_thread(self.scorer.encode, prompts, body.completions, finished)
        session = self.sessions.get(body.session)
        rewards = await self.rewards(rows, body.session, request)
        statistics = self.scorer.measure(rewards, prompts, finished)
        session.calibrate(statistics, self.sessions.new_welfare())
        return {"prompts": len(statistics.prompt_keys), "scale": statistics.scale.tolist()}

    def info(self) -> dict[str, Any]:
        """What a client may want to know before it asks."""
        limits = ("max_body", "body_seconds", "max_replies", "max_waiting", "max_sessions", "max_requests")
        return {
            "version": __version__,
            "components": self.scorer.names,
            "calibration": "stored" if self.scorer.calibrated else "none",
            "welfare": self.welfare.welfare,
            "rollout_size": self.settings.rollout_size,
            "context": self.scorer.context,
            "limits": {name: getattr(self.settings, name) for name in limits},
        }


def create_app(server: RewardServer) -> Any:
    """The ASGI application of a server.

    Args:
        server ([`RewardServer`]): with its queue running.

    Returns:
        [`Door`] in front of a `FastAPI`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.queue.close)

    app = FastAPI(
        title="trl-maxmin rewards",
        version=__version__,
        description="K utilities of replies, and their welfare-weighted sum. The contract: docs/serve.md.",
        lifespan=lifespan,
    )
    _answer_errors(app)
    _add_endpoints(app, server)
    _add_shapes(app, server)
    settings = server.settings
    return Door(app, settings.max_body, settings.body_seconds, settings.max_requests, settings.token)


def _add_endpoints(app: FastAPI, server: RewardServer) -> None:
    @app.get("/health", summary="Whether the server scores")
    async def health() -> JSONResponse:
        alive = server.queue.alive
        return JSONResponse(
            {"status": "ok" if alive else "failed", "waiting": server.queue.waiting}, 200 if alive else 500
        )

    @app.get("/v1/info", summary="Components, welfare rule and limits")
    async def info() -> dict[str, Any]:
        return server.info()

    @app.post("/v1/score", summary="Utilities and rewards of replies")
    async def score(body: ScoreRequest, request: Request) -> ScoreReply:
        if body.whole and not body.count:
            raise Unusable("`whole` decides weights and `count: false` must not; leave one of them out.")
        rows, prompts = await asyncio.to_thread(server.encode, body)
        found, calibration = await server.weigh(
            rows, prompts, body.session, request, count=body.count, whole=body.whole
        )
        return ScoreReply(
            components=server.scorer.names,
            utilities=found.utilities.tolist(),
            rewards=found.rewards.tolist(),
            weights=found.weights.tolist(),
            step=found.step,
            calibration=calibration,
        )

    @app.post("/v1/calibrate", summary="Measure a session's utilities against the reference policy's replies")
    async def calibrate(body: CalibrateRequest, request: Request) -> dict[str, Any]:
        return await server.calibrate(body, request)

    @app.get("/v1/sessions/{name}", summary="Weights of a session")
    async def session(name: str) -> dict[str, Any]:
        found = server.sessions.find(name)
        if found is None:
            raise _Refused(404, f"There is no session {name[:80]!r}.")
        return found.facts()

    @app.delete("/v1/sessions/{name}", summary="Forget a session")
    async def end(name: str) -> dict[str, bool]:
        if not server.sessions.end(name):
            raise _Refused(404, f"There is no session {name[:80]!r}.")
        return {"ended": True}


def _add_shapes(app: FastAPI, server: RewardServer) -> None:
    """The endpoints in the words of other frameworks."""

    async def whole_texts(
        texts: list[str], prompts: list[str] | None, session: str | None, request: Request
    ) -> Weighed:
        server.require_count(len(texts))
        if prompts is not None and len(prompts) != len(texts):
            raise Unusable(f"There are {len(texts)} texts and {len(prompts)} prompts; give one each.")
        rows = await asyncio.to_thread(server.scorer.encode_whole, texts)
        return (await server.weigh(rows, prompts or [None] * len(texts), session, request))[0]

    @app.post("/get_reward", summary="OpenRLHF: the remote reward URL")
    async def openrlhf(body: OpenRLHFRequest, request: Request, session: SessionName = None) -> dict[str, Any]:
        found = await whole_texts(body.query, body.prompts, session, request)
        rewards = found.rewards.tolist()
        columns = zip(server.scorer.names, found.utilities.T.tolist(), strict=True)
        logs = {f"utility_{name}": column for name, column in columns}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    @app.post("/llamafactory", summary="LlamaFactory: reward_model_type api")
    async def llamafactory(
        body: LlamaFactoryRequest, request: Request, session: SessionName = None
    ) -> dict[str, list[float]]:
        return {"scores": (await whole_texts(body.messages, None, session, request)).rewards.tolist()}


def _answer_errors(app: FastAPI) -> None:
    """Every error is `{"error": "a sentence"}`."""

    def answer(status: int, message: str, retry_after: int | None = None) -> JSONResponse:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        more = len(error.errors()) - 1
        return answer(422, f"{where}: {first['msg']}" + (f" (and {more} more)" if more else "") + ". See /docs.")

    @app.exception_handler(Unusable)
    @app.exception_handler(SessionError)
    async def unusable(_: Request, error: Exception) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(TooManySessions)
    async def too_many(_: Request, error: Exception) -> JSONResponse:
        return answer(429, str(error), 60)

    @app.exception_handler(_Refused)
    async def refused(_: Request, error: _Refused) -> JSONResponse:
        return answer(error.status, str(error), error.retry_after)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: Any) -> JSONResponse:
        known = "POST /v1/score, /v1/calibrate, /get_reward, /llamafactory; GET /health, /v1/info, /docs"
        return answer(
            error.status_code, f"{request.method} {request.url.path[:80]} is not served. There are: {known}."
        )

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        logger.exception("a request failed", exc_info=error)
        return answer(500, "Scoring failed; the server's log says why.")


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
