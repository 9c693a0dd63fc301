# SPDX-License-Identifier: Apache-2.0
# /// script
# dependencies = ["trl-maxmin"]
# ///
r"""
A welfare rule of one's own: keep the majority above a floor, then help the minority.

A rule is one function from the group utilities `(K,)` to weights `(K,)`; the trainer projects what it returns on the
simplex. Here the first component of the mixture is the majority, and utilities are in spreads of the reference
policy's replies (0 is the reference). Below `--majority_floor` the majority counts, above it the worst-off of the
others.

One GPU:

accelerate launch --num_processes 1 examples/custom_welfare.py \
    --dataset_name prompts.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --reward_model mixture \
    --majority_floor 0.5 \
    --output_dir policy

Several GPUs:

accelerate launch --config_file examples/accelerate_configs/ddp.yaml --num_processes 4 examples/custom_welfare.py \
    --dataset_name prompts.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --reward_model mixture \
    --majority_floor 0.5 \
    --output_dir policy
"""

import sys
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config

from trl_maxmin import MaxMinGRPOConfig, MaxMinGRPOTrainer
from trl_maxmin.cli.io import read_dataset
from trl_maxmin.cli.loading import init_options, quantization_options
from trl_maxmin.cli.output_folder import prepare_output_folder
from trl_maxmin.cli.parser import CommandParser
from trl_maxmin.cli.policy import PolicyArguments, load_reward_models


@dataclass
class Arguments(PolicyArguments):
    majority_floor: float = field(default=0.5, metadata={"help": "Utility that the majority keeps."})
    softness: float = field(default=0.1, metadata={"help": "Width of the transition around the floor, in utility."})


def keep_the_majority_above(floor: float, softness: float = 0.1):
    """A rule for K components of which the first is the majority.

    In between the weight changes smoothly, so that the policy settles near the floor instead of jumping about it.
    """

    def rule(utilities: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros_like(utilities)
        # A NaN utility means that nothing was scored: that component gets no weight whatever is returned for it.
        weights[0] = torch.sigmoid((floor - utilities[0].nan_to_num(floor)) / softness)
        others = utilities[1:].nan_to_num(torch.inf)
        weights[1 + int(others.argmin())] = 1.0 - weights[0]
        return weights

    return rule


def main(script_args: Arguments, training_args: MaxMinGRPOConfig, model_args: ModelConfig) -> None:
    train_dataset, _ = read_dataset(script_args)
    overwrite, resume = script_args.overwrite_output_dir, training_args.resume_from_checkpoint
    checkpoint = prepare_output_folder("grpo", training_args.output_dir, overwrite, resume)
    name, options = model_args.model_name_or_path, init_options(model_args, training_args.model_init_kwargs)
    options |= quantization_options(model_args)
    training_args.model_init_kwargs = None
    trainer = MaxMinGRPOTrainer(
        args=training_args,
        model=AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **options),
        processing_class=AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=False
        ),
        reward_funcs=load_reward_models(script_args.reward_model),
        train_dataset=train_dataset,
        peft_config=get_peft_config(model_args),
        welfare_function=keep_the_majority_above(script_args.majority_floor, script_args.softness),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Utilities: {trainer.welfare_state.utility_average.tolist()}")


if __name__ == "__main__":
    types = (Arguments, MaxMinGRPOConfig, ModelConfig)
    main(*CommandParser(types, prog="custom_welfare.py", command="grpo").parse_args_and_config(sys.argv[1:]))
