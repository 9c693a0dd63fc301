# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the tests of the trainers."""

import pytest

from tests.trainer.ppo_helpers import build_ppo_trainer
from tests.trainer.trl_helpers import build_trl_trainer, save_base
from trl_maxmin import MaxMinGRPOTrainer, MaxMinRLOOTrainer


@pytest.fixture
def make(tmp_path, word_tokenizer):
    """Builds a [`PPOTrainer`] on small defaults, see `build_ppo_trainer`."""

    def build(*args, processing_class=word_tokenizer, **kwargs):
        return build_ppo_trainer(kwargs.pop("output_dir", tmp_path / "run"), processing_class, *args, **kwargs)

    return build


@pytest.fixture(params=[MaxMinGRPOTrainer, MaxMinRLOOTrainer], ids=["grpo", "rloo"])
def trl_class(request):
    """MaxMin on each of TRL's trainers."""
    return request.param


@pytest.fixture
def trl_base(tmp_path, word_tokenizer):
    """Folder of a tiny policy."""
    return save_base(tmp_path / "base", word_tokenizer)


@pytest.fixture
def trl_make(tmp_path, trl_base, word_tokenizer, trl_class):
    """Builds a trainer on small defaults, see `build_trl_trainer`."""

    def build(cls=None, processing_class=word_tokenizer, output_dir=None, **kwargs):
        folder = output_dir or tmp_path / "run"
        return build_trl_trainer(cls or trl_class, trl_base, processing_class, folder, **kwargs)

    return build
