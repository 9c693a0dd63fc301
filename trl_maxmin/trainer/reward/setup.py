# SPDX-License-Identifier: Apache-2.0
"""Before a mixture is trained: it is built, and what would have no effect, or cannot work, is refused."""

from __future__ import annotations

import torch
from accelerate.logging import get_logger
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ...models import MixtureRewardModel
from ...models.base import forked_rng
from .heads import KERNEL_FEATURES
from .mixture_reward_config import MixtureRewardConfig


logger = get_logger(__name__)


def build_mixture(
    model: MixtureRewardModel | PreTrainedModel | str,
    args: MixtureRewardConfig,
    num_components: int,
    processing_class: PreTrainedTokenizerBase | None,
    peft_config: PeftConfig | None,
) -> MixtureRewardModel:
    """The mixture that is trained, with its tokenizer: the one that is given, or a new one on a base.

    Args:
        model, args, processing_class, peft_config: as given to [`MixtureRewardTrainer`].
        num_components (`int`): K of a new one.

    Raises:
        ValueError: a `peft_config` that nothing would read, or no tokenizer.
    """
    given = isinstance(model, MixtureRewardModel)
    if peft_config is not None and (given or args.component_type != "lora"):
        raise ValueError(
            "`peft_config` is for components that this trainer builds with component_type='lora'; here "
            f"component_type={args.component_type!r} and the model is a {type(model).__name__}. Leave it out."
        )
    if given:
        if processing_class is not None:
            model.attach_tokenizer(processing_class)
    else:
        # The new heads come from the global generator; the design wants them from the seed alone.
        with forked_rng(torch.device("cpu") if isinstance(model, str) else model.device, args.seed):
            model = MixtureRewardModel.from_base(
                model,
                num_components,
                args.component_type,
                processing_class=processing_class,
                pooling=args.pooling,
                kernel_features=KERNEL_FEATURES if args.kernel_features is None else args.kernel_features,
                peft_config=peft_config,
                **(args.model_init_kwargs or {} if isinstance(model, str) else {}),
            )
    if model.processing_class is None:
        raise ValueError("The mixture has no tokenizer. Pass `processing_class`.")
    return model


def require_effect(
    args: MixtureRewardConfig, model: MixtureRewardModel | PreTrainedModel | str, eval_dataset: Dataset | None
) -> None:
    """Refuse settings that the model or the data given would drop without a word.

    Args:
        args, model, eval_dataset: as given to [`MixtureRewardTrainer`].

    Raises:
        TypeError: an `eval_dataset` that is no `Dataset`.
        ValueError: settings of a new mixture beside a given one of another kind; `heldout_fraction` beside held-out
            pairs.
    """
    if eval_dataset is not None and args.heldout_fraction and args.changed("heldout_fraction"):
        raise ValueError(
            f"heldout_fraction={args.heldout_fraction} holds out a part of the training pairs only where no "
            "`eval_dataset` is given, and here there is one. Leave one of the two out."
        )
    if args.pad_token is not None:
        raise ValueError(
            f"pad_token={args.pad_token!r}: a mixture pools by a pad token of its own, apart from EOS. Leave it out."
        )
    if not isinstance(model, MixtureRewardModel):
        return
    config = model.config
    fields = ("component_type", "pooling", "kernel_features", "num_components")
    asked = {name: value for name, value in args.changed(*fields).items() if value}
    if other := {name: value for name, value in asked.items() if value != getattr(config, name)}:
        has = ", ".join(f"{name}={getattr(config, name)!r}" for name in other)
        raise ValueError(
            f"{', '.join(f'{name}={value!r}' for name, value in other.items())} would shape a new mixture, but the "
            f"one that is given has {has}. Leave them out, or give its base model instead."
        )
    if not args.train_trunk and config.component_type != "head":
        raise ValueError(
            f"train_trunk=False fits heads on one trunk, but the mixture that is given is of "
            f"component_type={config.component_type!r}. Leave train_trunk out, or give a mixture of heads."
        )
    if args.train_trunk and config.kernel_features:
        raise ValueError(
            f"The mixture that is given has kernel_features={config.kernel_features}, which are fitted to a frozen "
            "trunk. Add train_trunk=False (--train_trunk false)."
        )


def require_whole_weights(args: MixtureRewardConfig) -> None:
    """EM scores pairs whenever it needs to, each rank its own share: weights have to be whole on every rank.

    Args:
        args ([`MixtureRewardConfig`]): training arguments.

    Raises:
        ValueError: DeepSpeed ZeRO-3 or FSDP.
    """
    if is_deepspeed_zero3_enabled():
        strategy = "DeepSpeed ZeRO-3"
    elif args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        strategy = "FSDP"
    else:
        return
    raise ValueError(
        f"{strategy} divides the weights among the ranks, but a mixture of rewards is trained whole on each: ranks "
        "score different numbers of pairs. Use DDP (`--accelerate_config multi_gpu`) or ZeRO-2. Where the base does "
        "not fit one GPU, train adapters on a base in 4 bits: component_type='lora' with --load_in_4bit."
    )
