# SPDX-License-Identifier: Apache-2.0
"""What the package relies on inside TRL, checked on whichever release is installed.

`make seam` runs these on the oldest and on the newest supported releases; the environment says which one it means.
"""

import ast
import importlib.metadata
import inspect
import os
import pkgutil
import textwrap

import pytest
from transformers import Trainer

import trl_maxmin
from trl_maxmin._compat import OVERRIDES


pytestmark = pytest.mark.seam


def reads_after_rewards(function_source: str, attribute: str = "reward_weights") -> tuple[list[int], list[int]]:
    """Lines that read `self.<attribute>`: (before or in, after) the call of `_calculate_rewards`."""
    tree = ast.parse(textwrap.dedent(function_source))

    def is_self_attribute(node: ast.AST, name: str) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and node.attr == name
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        )

    calls = [
        node.end_lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and is_self_attribute(node.func, "_calculate_rewards")
    ]
    if len(calls) != 1:
        raise LookupError(f"expected one call of self._calculate_rewards, found {len(calls)}")
    reads = [
        node.lineno for node in ast.walk(tree) if is_self_attribute(node, attribute) and isinstance(node.ctx, ast.Load)
    ]
    return [line for line in reads if line <= calls[0]], [line for line in reads if line > calls[0]]


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def called_alike(function, expected: str) -> bool:
    """Whether a function has the parameters of the list; more may follow where it says so."""
    names, wanted = parameters(function), expected.split()
    if wanted[-1] == "...":
        return names[: len(wanted) - 1] == wanted[:-1]
    return names == wanted


@pytest.mark.parametrize(
    ("variable", "distribution"),
    [
        ("TRL_MAXMIN_EXPECT_TRL", "trl"),
        ("TRL_MAXMIN_EXPECT_TRANSFORMERS", "transformers"),
        ("TRL_MAXMIN_EXPECT_HUB", "huggingface_hub"),
    ],
)
def test_the_release_under_test_is_the_one_asked_for(variable, distribution):
    expected = os.environ.get(variable)
    if expected is None:
        pytest.skip(f"{variable} is not set")
    module = __import__(distribution)
    assert module.__version__ == expected
    assert importlib.metadata.version(distribution) == expected


HOSTS = ("transformers", "trl", "peft", "accelerate", "huggingface_hub")


def listed(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in OVERRIDES.items() for name in names])
def test_the_host_calls_what_is_overridden_as_the_list_says(path, name):
    expected, found = OVERRIDES[path][name], inspect.getattr_static(listed(path), name)
    if expected is None:
        assert not callable(found)
    else:
        assert called_alike(found, expected)


def our_classes():
    """Every class that a module of the package defines; modules whose optional packages are not there are left out."""
    for info in pkgutil.walk_packages(trl_maxmin.__path__, "trl_maxmin."):
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            assert not error.name.startswith("trl_maxmin")
            continue
        yield from (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == info.name)


def private_overrides(classes, hosts=HOSTS):
    """(our class, name, the host's class whose member it stands before), mixins in front of a host included."""
    found = set()
    for concrete in classes:
        order = concrete.__mro__
        for i, owner in enumerate(order):
            if owner.__module__.partition(".")[0] in hosts:
                continue
            behind = [host for host in order[i + 1 :] if host.__module__.partition(".")[0] in hosts]
            for name in vars(owner):
                if name.startswith("_") and not name.endswith("__"):
                    found.update((owner, name, host) for host in behind if name in vars(host))
    return found


def test_every_private_override_is_listed_and_called_alike():
    """By whichever host redefines it as well: TRL's `_save_checkpoint` has to take what that of transformers takes."""
    known = {listed(path): names for path, names in OVERRIDES.items()}
    used = set()
    for owner, name, host in private_overrides(our_classes()):
        entries = [(base, names[name]) for base, names in known.items() if issubclass(host, base) and name in names]
        assert entries, f"{owner.__qualname__} overrides {host.__qualname__}.{name}, which _compat.OVERRIDES lacks"
        used.update((base, name) for base, _ in entries)
        if entries[0][1] is not None:
            assert called_alike(vars(host)[name], entries[0][1]), f"{host.__qualname__}.{name}"
    listed_private = {(base, name) for base, names in known.items() for name in names if name.startswith("_")}
    assert used == listed_private, "listed, but overridden by nothing"


def test_the_walk_notices_an_override_that_is_not_listed():
    class InFront:
        def _wrap_model(self, model):
            return model

        def _of_our_own(self):
            pass

    class Ours(InFront, Trainer):
        _signature_columns = ()

    found = {(owner.__name__, name, host.__name__) for owner, name, host in private_overrides([Ours])}
    assert found == {("InFront", "_wrap_model", "Trainer")}, "set by the constructor only: no member of the class"


def test_base_classes_exist():
    import transformers
    from trl.trainer.base_config import _BaseConfig
    from trl.trainer.base_trainer import _BaseTrainer

    assert issubclass(_BaseTrainer, transformers.Trainer)
    assert issubclass(_BaseConfig, transformers.TrainingArguments)


@pytest.mark.parametrize("trainer_name", ["GRPOTrainer", "RLOOTrainer"])
class TestRewardSeam:
    @staticmethod
    def trainer(name):
        import trl

        return getattr(trl, name)

    def test_weights_are_read_after_the_rewards_and_not_before(self, trainer_name):
        source = inspect.getsource(self.trainer(trainer_name)._generate_and_score_completions)
        before, after = reads_after_rewards(source)
        assert after, "TRL no longer reads self.reward_weights once the rewards are known"
        assert not before, "TRL reads self.reward_weights before the rewards are known"

    def test_weights_are_an_attribute_set_by_the_constructor(self, trainer_name):
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.trainer(trainer_name).__init__)))
        stores = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == "reward_weights" and isinstance(node.ctx, ast.Store)
        ]
        assert stores


class TestTheCheckItself:
    """The reader of source must notice what it is there for."""

    def test_accepts_the_seam(self):
        source = "def f(self):\n    r = self._calculate_rewards(1)\n    return r * self.reward_weights\n"
        assert reads_after_rewards(source) == ([], [3])

    def test_notices_weights_read_early(self):
        source = "def f(self):\n    w = self.reward_weights\n    r = self._calculate_rewards(1)\n    return r * w\n"
        assert reads_after_rewards(source) == ([2], [])

    def test_notices_weights_passed_into_the_call(self):
        source = "def f(self):\n    return self._calculate_rewards(\n        self.reward_weights,\n    )\n"
        assert reads_after_rewards(source) == ([3], [])

    def test_setting_the_weights_is_not_reading_them(self):
        source = "def f(self):\n    r = self._calculate_rewards(1)\n    self.reward_weights = r\n"
        assert reads_after_rewards(source) == ([], [])

    def test_notices_that_the_call_is_gone(self):
        with pytest.raises(LookupError, match="found 0"):
            reads_after_rewards("def f(self):\n    return self.reward_weights\n")


def test_adapters_are_switched_and_checkpointed_as_the_lora_components_expect():
    import peft.tuners.tuners_utils as tuners
    from transformers import PreTrainedModel

    source = inspect.getsource(tuners.BaseTunerLayer)
    assert "_active_adapter" in source and "_disable_adapters" in source
    assert {"enable", "gradient_checkpointing_func"} <= set(parameters(PreTrainedModel._set_gradient_checkpointing))
    assert "_gradient_checkpointing_func" in inspect.getsource(PreTrainedModel._set_gradient_checkpointing)
