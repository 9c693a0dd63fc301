# SPDX-License-Identifier: Apache-2.0
"""Where GPUs are lent by the call, what needs one runs in another process: everything is copied on its way."""

import copy
import inspect
import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.space.fakes import studio
from trl_maxmin.space.run_data import RunData


gradio = pytest.importorskip("gradio", reason="Gradio is not installed (pip install trl-maxmin[space])")
REQUEST = SimpleNamespace(session_hash="s")


def lent(calls, failing=None):
    """The contract of `spaces.GPU`: arguments and results pickled, only `gr.Error` gets through, state is lost."""

    def copied(value):
        return pickle.loads(pickle.dumps(value))

    def elsewhere(method):
        """The method of a copy of its object, as the other process has it; models and locks are left as they are."""
        own = vars(method.__self__)
        kept = [own["_lock"], own["mixture"], *own["policies"].values()]
        return getattr(copy.deepcopy(method.__self__, {id(value): value for value in kept}), method.__name__)

    def gpu(duration=None):
        def decorate(function):
            def begin(args):
                calls.append((function.__name__, duration))
                if failing is not None:
                    raise failing
                return copied(args)

            def result(step):
                try:
                    return copied(step())
                except StopIteration:
                    raise
                except Exception as error:
                    raise error if isinstance(error, gradio.Error) else gradio.Error(type(error).__name__) from error

            def generate(*args):
                args = begin(args)
                steps = elsewhere(function)(*args)
                while True:
                    try:
                        yield result(lambda: next(steps))
                    except StopIteration:
                        return

            def call(*args):
                args = begin(args)
                return result(lambda: elsewhere(function)(*args))

            return generate if inspect.isgeneratorfunction(function) else call

        return decorate

    module = ModuleType("spaces")
    module.GPU = gpu
    return module


@pytest.fixture
def handlers(monkeypatch):
    from trl_maxmin.space.wiring import Handlers

    def make(failing=None):
        calls = []
        monkeypatch.setitem(sys.modules, "spaces", lent(calls, failing))
        made = studio(run=RunData(replies={"p": [("maxmin", "a" * n, True) for n in (1, 2, 3)]}))
        return Handlers(made, None), calls

    return make


def compare(handlers, prompt, length=5):
    return list(handlers.compare(prompt, ["reference", "single", "maxmin"], 1.0, 0, length, False, REQUEST))


def test_answers_and_utilities_come_back(handlers):
    made, calls = handlers()
    *_, last = compare(made, "q")
    assert "answer 0 to q" in last[0] and "worst-off" in last[0] and "Compared with" in last[1]
    assert "q" not in made.studio._baselines  # what the other process remembers is not here
    assert calls == [("compare", 60)]


def test_what_is_refused_takes_no_gpu_and_keeps_its_words(handlers):
    made, calls = handlers()
    (refused,) = compare(made, "x" * 2000)
    assert "2,000 characters; please shorten it" in refused[2] and calls == []


def test_a_used_up_share_is_said_in_the_words_of_the_space(handlers):
    made, _ = handlers(failing=gradio.Error("You have exceeded your GPU quota."))
    (refused,) = compare(made, "p")
    assert "You have exceeded your GPU quota. Please try again." in refused[2]
    made, _ = handlers(failing=RuntimeError("inner secrets"))
    (refused,) = compare(made, "p")
    assert "Something went wrong on our side" in refused[2] and "inner" not in refused[2]


def test_recorded_answers_are_scored_in_one_call_for_all_groups_and_kept(handlers):
    made, calls = handlers()
    first, again = made.fill_groups(REQUEST), made.fill_groups(REQUEST)
    assert first == again and "Best for long" in first[0] and "Best for short" in first[1]
    assert calls == [("score_recorded", 120)]


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        (gradio.Error("You have exceeded your GPU quota."), "You have exceeded your GPU quota. Please try again."),
        (RuntimeError("inner secrets"), "Something went wrong on our side, sorry. Please try again."),
    ],
)
def test_why_recorded_answers_are_not_scored_is_said_and_asked_again_in_a_minute(handlers, failing, words):
    made, calls = handlers(failing)
    now = [0.0]
    made.scorings.clock = lambda: now[0]
    pages = made.fill_groups(REQUEST)
    assert len(pages) == 2 and all(words in page and "inner" not in page for page in pages)
    # More clicks on the tab ask for no GPU and leave the sentence there; other visitors have a share of their own.
    now[0] = 59.0
    assert made.fill_groups(REQUEST) == [gradio.skip()] * 2 and len(calls) == 1
    made.fill_groups(SimpleNamespace(session_hash="another"))
    now[0] = 60.0
    made.fill_groups(REQUEST)
    assert calls == [("score_recorded", 120)] * 3
