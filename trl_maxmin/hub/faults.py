# SPDX-License-Identifier: Apache-2.0
"""What to say when the Hub says no: one exception whose message tells what happened and how to go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    402: (
        "the Hub asks for payment: free accounts cannot create a Gradio or Docker Space on cpu-basic",
        "Use --space_hardware zero-a10g (free for two Spaces; the app then needs a @spaces.GPU function), a static "
        "Space (--space_sdk static), or a PRO account.",
    ),
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
        "Save the model in smaller shards (max_shard_size), or install hf_xet for large files.",
    ),
    429: ("the Hub limits how often one may ask", "Wait a few minutes."),
}


class HubError(OSError):
    """A push or pull that did not finish.

    Args:
        what (`str`): what happened.
        remedy (`str`): what to do about it.
        doing (`str`): during which step.
        done (`Sequence[str]`): what is complete on the Hub.
        open (`Sequence[str]`): what is not there yet, or is still as it was before.
        command (`str`): what continues the work.

    Attributes:
        what, remedy, doing, done, open, command: as given.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "",
        doing: str = "",
        done: Sequence[str] = (),
        open: Sequence[str] = (),
        command: str = "",
    ) -> None:
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

    def placed(self, done: Sequence[str], open: Sequence[str], command: str) -> HubError:
        """The same error, with where the work stands."""
        error = HubError(self.what, self.remedy, self.doing, done, open, command or self.command)
        error.__cause__ = self.__cause__
        return error


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
    for secret in _secrets:
        text = text.replace(secret, "hf_***")
    return _TOKEN.sub("hf_***", text)


def explain(error: BaseException) -> tuple[str, str]:
    """What an error of the Hub's client means.

    Args:
        error (`BaseException`): as raised by huggingface_hub, hf_xet or the network; its causes are looked through.

    Returns:
        `tuple[str, str]`: what happened, and the remedy; neither contains a token.
    """
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for link in chain:
        if isinstance(link, OfflineModeIsEnabled):
            return "offline mode is on (HF_HUB_OFFLINE=1), so nothing was sent", "Unset HF_HUB_OFFLINE."
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
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
    try:
        return call()
    except HubError:
        raise
    except Exception as error:
        # Broad on purpose: with a cut or a foreign answer the client raises KeyError, JSON errors and what not.
        raise HubError(*explain(error), doing=doing) from error
