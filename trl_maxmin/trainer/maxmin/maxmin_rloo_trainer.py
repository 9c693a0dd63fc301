# SPDX-License-Identifier: Apache-2.0
"""RLOO for the worst-off group."""

from __future__ import annotations

from trl import RLOOTrainer

from .maxmin_rloo_config import MaxMinRLOOConfig
from .trl_policy_mixin import TRLPolicyMixin


class MaxMinRLOOTrainer(TRLPolicyMixin, RLOOTrainer):
    r"""
    Trains one policy for the worst-off group with TRL's RLOO: `max_pi min_k E[u_k] - beta KL(pi || pi_ref)`.

    At every generation the group utilities `U_k` are the means of the utilities over the replies of all ranks, the
    welfare rule turns them into weights, and TRL takes its steps on `sum_k w_k u_k`. Nothing else of the algorithm is
    changed, so vLLM, PEFT, Liger and every other option work as they do there. Before anything is learned, replies of
    the reference policy to the prompts are sampled and scored once, so that utilities can be compared.

    Source: Algorithm 1 of [MaxMin-RLHF](https://arxiv.org/abs/2402.08925), which uses PPO.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): the policy. With `beta > 0` TRL loads the reference from the
            name that the policy was loaded by.
        reward_funcs: a [`MixtureRewardModel`]; or one reward for each group, as a list or as a dict by name: functions
            in TRL's convention, one-label models, pairs `(model, tokenizer)`, folders or Hub ids. The K columns of a
            mixture share one forward. Tokenizers of policy and reward models may differ.
        args ([`MaxMinRLOOConfig`], *optional*): training arguments.
        train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers: as in TRL's
            `RLOOTrainer`.
        welfare_function (`Callable`, *optional*): a rule of your own, utilities `(K,)` to weights `(K,)`, in place of
            `args.welfare`; its result is projected on the simplex.
        reference_statistics ([`ReferenceStatistics`], *optional*): of an earlier run on this reference policy and
            these prompts; the trainer then does not sample its own, and warns if they do not match.
        **kwargs: the host's other arguments (`peft_config`, `quantization_config`, ...).

    Attributes:
        reward_weights (`torch.Tensor` of shape `(K,)`): in use, set anew at every generation.
        welfare_state ([`WelfareState`]): weights and averages, saved in every checkpoint.
        reference_statistics ([`ReferenceStatistics`] or `None`): what utilities are measured against.

    Raises:
        ValueError: no rewards; a floor above 1 / K; `welfare="mixing"` without mixing weights; what the host refuses.
        TypeError: `args` of another class, or a reward that cannot score replies.

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
