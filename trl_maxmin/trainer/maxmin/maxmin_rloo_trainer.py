# SPDX-License-Identifier: Apache-2.0
"""RLOO for the worst-off group."""

from __future__ import annotations

from trl import RLOOTrainer

from .maxmin_rloo_config import MaxMinRLOOConfig
from .trl_policy_mixin import TRLPolicyMixin


class MaxMinRLOOTrainer(TRLPolicyMixin, RLOOTrainer):
    r"""
    Trains one policy for the worst-off group with TRL's RLOO: `max_pi min_k E[u_k] - beta KL(pi || pi_ref)`.

    All else is as in [`MaxMinGRPOTrainer`], whose arguments, attributes and errors it shares.

    Args:
        args ([`MaxMinRLOOConfig`], *optional*): training arguments.

    Example:

    ```python
    trainer = MaxMinRLOOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=MixtureRewardModel.from_pretrained("mixture"),
        args=MaxMinRLOOConfig(output_dir="policy"),
        train_dataset=prompts,
    )
    trainer.train()
    ```
    """

    _tag_names = [*RLOOTrainer._tag_names, "trl-maxmin", "maxmin-rlhf"]
    _name = "MaxMin-RLOO"
    _paper = {"title": "MaxMin-RLHF: Alignment with Diverse Human Preferences", "id": "2402.08925"}
    _config_class = MaxMinRLOOConfig
    _kl_in_reward = True
