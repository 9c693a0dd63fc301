# SPDX-License-Identifier: Apache-2.0
# /// script
# dependencies = ["trl-maxmin"]
# ///
r"""
Train one policy for the worst-off group from preferences alone, by group-robust DPO.

One GPU, groups as a mixture describes the annotators (see mixture_reward.py):

accelerate launch --num_processes 1 examples/maxmin_dpo.py \
    --dataset_name preferences.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --assignments mixture \
    --output_dir policy

Several GPUs, groups that the data name:

accelerate launch --config_file examples/accelerate_configs/ddp.yaml --num_processes 4 examples/maxmin_dpo.py \
    --dataset_name preferences.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --group_column group \
    --output_dir policy

The rows are preferences (`prompt`, `chosen`, `rejected`) or rankings, as text or messages. `--use_peft` trains an
adapter. Every option: --help.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config

from trl_maxmin import MaxMinDPOConfig, MaxMinDPOTrainer
from trl_maxmin.cli.dpo import DPOArguments
from trl_maxmin.cli.io import read_dataset
from trl_maxmin.cli.loading import init_options, quantization_options
from trl_maxmin.cli.output_folder import prepare_output_folder
from trl_maxmin.cli.parser import CommandParser


def main(script_args: DPOArguments, training_args: MaxMinDPOConfig, model_args: ModelConfig) -> None:
    train_dataset, eval_dataset = read_dataset(
        script_args, [training_args.annotator_column, training_args.group_column]
    )
    overwrite, resume = script_args.overwrite_output_dir, training_args.resume_from_checkpoint
    checkpoint = prepare_output_folder("dpo", training_args.output_dir, overwrite, resume)

    ################
    # Policy and tokenizer
    ################
    name, options = model_args.model_name_or_path, init_options(model_args, training_args.model_init_kwargs)
    options |= quantization_options(model_args)
    training_args.model_init_kwargs = None
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision, trust_remote_code=False)
    policy = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **options)

    ################
    # Training
    ################
    trainer = MaxMinDPOTrainer(
        model=policy,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset if training_args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        assignments=script_args.assignments,
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Losses: {(-trainer.welfare_state.utility_average).tolist()}")
    trainer.accelerator.print(f"Weights of {trainer.group_names}: {trainer.welfare.weights.tolist()}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    parser = CommandParser((DPOArguments, MaxMinDPOConfig, ModelConfig), prog="maxmin_dpo.py", command="dpo")
    main(*parser.parse_args_and_config(sys.argv[1:]))
