# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures shared by all tests.

The environment is set here, at import, because huggingface_hub and tokenizers read it when they are imported.
"""

import gc
import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

#: Where tests compute. On a machine with GPUs, too, that is the CPU unless it says otherwise.
TEST_DEVICE = os.environ.get("TRL_MAXMIN_TEST_DEVICE", "cpu")
if TEST_DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import TrainingArguments  # noqa: E402


torch.set_num_threads(1)


def _compute_elsewhere(cls: type = TrainingArguments) -> None:
    """Let trainers of tests that say `use_cpu` compute on the device of `TRL_MAXMIN_TEST_DEVICE`."""
    settle = cls.__post_init__

    def elsewhere(self):
        self.use_cpu = False
        settle(self)

    cls.__post_init__ = elsewhere


if TEST_DEVICE != "cpu":
    _compute_elsewhere()

WORDS = (
    "the a film movie story acting plot ending is was feels great superb lovely dull awful weak "
    "very rather and but review of prompt good bad long short : . user assistant"
).split()


def build_word_tokenizer(pad_token: str | None = "<pad>", reverse: bool = False):
    """A word-level tokenizer with distinct <pad>, <bos>, <eos> and <unk>; text is split on white space. With `reverse`
    every word has another id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
    words = words[::-1] if reverse else words
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad_token, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def pytest_collection_modifyitems(items):
    if not os.environ.get("TRL_MAXMIN_EXHAUSTIVE"):
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: make test-all"))


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage():
    """`Trainer.train` collects garbage, and goes over every object of the imported libraries each time: two fifths of
    the time of a test that trains. Frozen ones are left out; what a test makes is collected as ever."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device():
    """Where tests compute: `TRL_MAXMIN_TEST_DEVICE`, the CPU by default."""
    return torch.device(TEST_DEVICE)


@pytest.fixture
def word_tokenizer():
    """A new tiny tokenizer for each test, so that a test may change its sides or special tokens."""
    return build_word_tokenizer()


@pytest.fixture
def word_tokenizer_without_pad():
    """The same words, but no pad token is set."""
    return build_word_tokenizer(pad_token=None)
