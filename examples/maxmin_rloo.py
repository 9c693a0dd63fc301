# SPDX-License-Identifier: Apache-2.0
# /// script
# dependencies = ["trl-maxmin"]
# ///
r"""
Train one policy for the worst-off group with MaxMin-RLOO, on a mixture of rewards (see mixture_reward.py).

One GPU:

accelerate launch --num_processes 1 examples/maxmin_rloo.py \
    --dataset_name prompts.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --reward_model mixture \
    --output_dir policy

Several GPUs:

accelerate launch --config_file examples/accelerate_configs/ddp.yaml --num_processes 4 examples/maxmin_rloo.py \
    --dataset_name prompts.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --reward_model mixture \
    --welfare mirror \
    --output_dir policy

The rows have a `prompt` (text or messages). `--reward_model` may also be several one-label reward models, separated by
commas: one a group. `--use_peft` trains an adapter. Every option: --help.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config

from trl_maxmin import MaxMinRLOOConfig, MaxMinRLOOTrainer
from trl_maxmin.cli.io import read_dataset
from trl_maxmin.cli.loading import init_options, quantization_options
from trl_maxmin.cli.output_folder import prepare_output_folder
from trl_maxmin.cli.parser import CommandParser
from trl_maxmin.cli.policy import PolicyArguments, load_reward_models


def main(script_args: PolicyArguments, training_args: MaxMinRLOOConfig, model_args: ModelConfig) -> None:
    train_dataset, eval_dataset = read_dataset(script_args)
    overwrite, resume = script_args.overwrite_output_dir, training_args.resume_from_checkpoint
    checkpoint = prepare_output_folder("rloo", training_args.output_dir, overwrite, resume)

    ################
    # Policy, tokenizer and rewards
    ################
    name, options = model_args.model_name_or_path, init_options(model_args, training_args.model_init_kwargs)
    options |= quantization_options(model_args)
    training_args.model_init_kwargs = None
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision, trust_remote_code=False)
    policy = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **options)
    rewards = load_reward_models(script_args.reward_model)

    ################
    # Training
    ################
    trainer = MaxMinRLOOTrainer(
        args=training_args,
        model=policy,
        reward_funcs=rewards,
        processing_class=tokenizer,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset if training_args.eval_strategy != "no" else None,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Utilities: {trainer.welfare_state.utility_average.tolist()}")
    trainer.accelerator.print(f"Weights of {trainer.component_names}: {trainer.reward_weights.tolist()}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    parser = CommandParser((PolicyArguments, MaxMinRLOOConfig, ModelConfig), prog="maxmin_rloo.py", command="rloo")
    main(*parser.parse_args_and_config(sys.argv[1:]))
