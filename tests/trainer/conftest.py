# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the tests of the trainers."""

import pytest

from tests.trainer.ppo_helpers import build_ppo_trainer


@pytest.fixture
def make(tmp_path, word_tokenizer):
    """Builds a [`PPOTrainer`] on small defaults, see `build_ppo_trainer`."""

    def build(*args, processing_class=word_tokenizer, **kwargs):
        return build_ppo_trainer(kwargs.pop("output_dir", tmp_path / "run"), processing_class, *args, **kwargs)

    return build
