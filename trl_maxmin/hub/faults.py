# SPDX-License-Identifier: Apache-2.0
"""What to say when the Hub says no: one exception whose message tells what happened and how to go on."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled


T = TypeVar("T")

# huggingface_hub 1 talks through httpx, 2 through httpx2; both make their errors a base of HfHubHTTPError.
_TRANSPORT_ERRORS = tuple(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}|Bearer\s+\S+")
_secrets: set[str] = set()
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access."

#: Status -> (what happened, what to do about it).
STATUS: dict[int, tuple[str, str]] = {
    400: ("the Hub refused the request as malformed", "Correct what its answer names."),
    401: ("the Hub does not know this token, or there is none", _LOG_IN),
    402: ("the Hub asks for payment", "See what the account's plan holds, or use another name before the slash."),
    403: (
        "the token may not write there",
        "Use a token with write access to that namespace, or another name before the slash.",
    ),
    404: (
        "the Hub shows no such repository or revision to this token",
        "Check the spelling, create the branch, or use a token that may see it.",
    ),
    409: ("somebody else changed or created the same thing at the same moment", "Wait until they are done."),
    412: (
        "the repository got a new commit while this push was being prepared, and nothing of theirs was overwritten",
        "Look at that commit, then push again.",
    ),
    413: (
        "a file is larger than the Hub takes this way",
        "Save the model in smaller shards (`save_pretrained(folder, max_shard_size='2GB')`), or install hf_xet.",
    ),
    429: ("the Hub limits how often one may ask", "Wait a few minutes."),
}
#: The same of a Space; a command says it with its own options.
SPACE_402 = "free accounts cannot create a Gradio or Docker Space on cpu-basic"
_SPACE_REMEDY = (
    "Use the hardware zero-a10g (free for two Spaces; the app then needs a @spaces.GPU function), a static Space, or "
    "a PRO account."
)


class HubError(OSError):
    """A push or pull that did not finish.

    Args:
        what (`str`): what happened.
        remedy (`str`): what to do about it.
        doing (`str`): during which step.
        done (`Sequence[str]`): what is complete on the Hub.
        open (`Sequence[str]`): what is not there yet, or is still as it was before.
        command (`str`): what continues the work.
        status (`int`, *optional*): with which the Hub answered.

    Attributes:
        what, remedy, doing, done, open, command, status: as given.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "",
        doing: str = "",
        done: Sequence[str] = (),
        open: Sequence[str] = (),
        command: str = "",
        status: int | None = None,
    ) -> None:
        self.status = status
        self.what, self.remedy, self.doing = without_tokens(what), without_tokens(remedy), doing
        self.done, self.open, self.command = list(done), list(open), command
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [f"{self.doing}: {self.what}." if self.doing else f"{self.what}."]
        parts += [self.remedy] if self.remedy else []
        if self.done or self.open:
            parts.append(f"Complete on the Hub: {', '.join(self.done) or 'nothing yet'}.")
            parts.append(f"Not yet, or as before: {', '.join(self.open) or 'nothing'}.")
        parts += [f"To continue: {self.command}"] if self.command else []
        return " ".join(parts)

    def placed(
        self, done: Sequence[str], open: Sequence[str], command: str, remedies: Mapping[int, str] | None = None
    ) -> HubError:
        """The same error, with where the work stands, and with remedies in the words of the command that was called.

        Args:
            done, open (`Sequence[str]`), command (`str`): as above.
            remedies (`Mapping[int, str]`, *optional*): status -> what to do, options of that command.
        """
        remedy = (remedies or {}).get(self.status or 0, self.remedy)
        error = HubError(self.what, remedy, self.doing, done, open, command or self.command, self.status)
        error.__cause__ = self.__cause__
        return error


class HubInterrupted(KeyboardInterrupt):
    """Ctrl-C during a push or a pull: what is complete, and how to go on.

    Args:
        done (`Sequence[str]`): repositories that are complete.
        open (`Sequence[str]`): the one at work, and those after it.
        command (`str`): what continues the work.
        where (`str`): where they are complete.
    """

    def __init__(self, done: Sequence[str], open: Sequence[str], command: str, where: str = "on the Hub") -> None:
        self.done, self.open, self.command, self.where = list(done), list(open), command, where
        at_work = f" {open[0]} is as before or complete, nothing between." if open else ""
        later = f" As before: {', '.join(open[1:])}." if open[1:] else ""
        super().__init__(
            f"interrupted. Complete {where}: {', '.join(done) or 'nothing yet'}.{at_work}{later} To continue: "
            f"{command}"
        )


def keep_secret(token: str | bool | None) -> None:
    """Remember a token, of whatever form, so that no message shows it."""
    if isinstance(token, str) and len(token) >= 8:
        _secrets.add(token)


def without_tokens(text: str) -> str:
    """The text without the tokens in use, and without anything that looks like a Hub token.

    Example:

    >>> without_tokens("refused hf_abcdEFGH1234")
    'refused hf_***'
    """
    keep_secret(get_token())
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "hf_***")
    return _TOKEN.sub("hf_***", text)


def _mask(error: BaseException) -> None:
    """No error of a chain, and nothing that a traceback prints of it, shows a token that a server echoed."""
    for link in _chain(error):
        link.args = tuple(without_tokens(arg) if isinstance(arg, str) else arg for arg in link.args)
        for name in ("server_message", "strerror", "__notes__"):
            value = getattr(link, name, None)
            if isinstance(value, str):
                setattr(link, name, without_tokens(value))
            elif isinstance(value, list):
                setattr(link, name, [without_tokens(str(entry)) for entry in value])


class _MaskTokens(logging.Filter):
    """Log lines of the Hub's client without tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always keeps the record."""
        text = record.getMessage()
        if (masked := without_tokens(text)) != text:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[1] is not None:
            _mask(record.exc_info[1])
        return True


_MASK = _MaskTokens()
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")


def _watch_logs() -> None:
    # A filter of a logger does not see its children's records, so each gets it.
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.split(".")[0] in _CLIENTS and isinstance(logger, logging.Logger):
            logger.addFilter(_MASK)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what caused it."""
    chain: list[BaseException] = []
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if link is not None and link not in chain:
            chain.append(link)
            waiting += [link.__cause__, link.__context__]
    return chain


def explain(error: BaseException) -> tuple[str, str]:
    """What an error of the Hub's client means.

    Args:
        error (`BaseException`): as raised by huggingface_hub, hf_xet or the network; its causes are looked through.

    Returns:
        `tuple[str, str]`: what happened, and the remedy; neither contains a token.
    """
    chain = _chain(error)
    for link in chain:
        if isinstance(link, OfflineModeIsEnabled):
            return "offline mode is on (HF_HUB_OFFLINE=1), so nothing was sent", "Unset HF_HUB_OFFLINE."
    for link in chain:
        if (status := _status_of(link)) is not None:
            return _explain_status(status, link)
    for link in chain:
        if isinstance(link, (*_TRANSPORT_ERRORS, TimeoutError, LocalEntryNotFoundError)):
            return f"the Hub cannot be reached ({_first_line(link)})", "Check the network and HF_ENDPOINT."
        if isinstance(link, ConnectionError):
            return (
                f"the storage of large files (Xet) refused or was not reached ({_first_line(link)})",
                "Check that the token may write; HF_HUB_DISABLE_XET=1 sends large files another way.",
            )
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"the Hub refused the card ({_first_line(error)})", "Correct the facts that it names."
    return (
        f"the Hub's answer was not understood ({type(error).__name__}: {_first_line(error)})",
        "Something between here and the Hub may answer in its place; check HF_ENDPOINT and proxies.",
    )


def _status_of(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _explain_status(status: int, error: BaseException) -> tuple[str, str]:
    said = getattr(error, "server_message", None) or ""
    said = f" (it said: {_first_line(said)})" if said else ""
    if status in STATUS:
        what, remedy = STATUS[status]
        headers = error.response.headers
        reset = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
        if status == 429 and (wait := headers.get("Retry-After") or (reset and reset[1])):
            remedy = f"Wait {wait} s."
        return f"{status}, {what}{said}", remedy
    if status >= 500:
        return f"{status}, the Hub is in trouble{said}", "Wait; see https://status.huggingface.co."
    return f"{status}, the Hub refused{said}", "See its answer."


def _first_line(error: BaseException | str) -> str:
    return without_tokens((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


def ask(doing: str, call: Callable[[], T]) -> T:
    """Call the Hub's client; whatever it raises becomes a [`HubError`].

    Args:
        doing (`str`): what is being done, for the message.
        call (`Callable`): without arguments.

    Raises:
        HubError: anything but an interruption went wrong.
    """
    _watch_logs()
    try:
        return call()
    except HubError:
        raise
    except Exception as error:
        # Broad on purpose: with a cut or a foreign answer the client raises KeyError, JSON errors and what not.
        what, remedy = explain(error)
        _mask(error)
        status = next((found for link in _chain(error) if (found := _status_of(link)) is not None), None)
        if status == 402 and " space " in f" {doing} ":
            what, remedy = f"{what}: {SPACE_402}", _SPACE_REMEDY
        raise HubError(what, remedy, doing, status=status) from error
