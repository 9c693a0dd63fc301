# SPDX-License-Identifier: Apache-2.0
# /// script
# dependencies = ["trl-maxmin"]
# ///
r"""
Learn a mixture of reward models by EM, from preferences with annotator ids. Nobody has to know the groups.

One GPU:

accelerate launch --num_processes 1 examples/mixture_reward.py \
    --dataset_name preferences.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --num_components 2 \
    --output_dir mixture

Several GPUs:

accelerate launch --config_file examples/accelerate_configs/ddp.yaml --num_processes 4 examples/mixture_reward.py \
    --dataset_name preferences.jsonl \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --num_components 2 \
    --output_dir mixture

The rows have `prompt`, `chosen`, `rejected` and `annotator_id`. Where there is a `test` split it is measured on. Every
option: --help.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from trl_maxmin import MixtureRewardConfig, MixtureRewardTrainer
from trl_maxmin.cli.io import print_table, read_dataset
from trl_maxmin.cli.loading import init_options, quantization_options
from trl_maxmin.cli.output_folder import prepare_output_folder
from trl_maxmin.cli.parser import CommandParser
from trl_maxmin.cli.reward import RewardArguments, lora_config


def main(script_args: RewardArguments, training_args: MixtureRewardConfig, model_args: ModelConfig) -> None:
    train_dataset, eval_dataset = read_dataset(script_args)
    overwrite, resume = script_args.overwrite_output_dir, training_args.resume_from_checkpoint
    checkpoint = prepare_output_folder("reward", training_args.output_dir, overwrite, resume)

    ################
    # Model and tokenizer
    ################
    name, options = model_args.model_name_or_path, init_options(model_args, training_args.model_init_kwargs)
    options |= quantization_options(model_args)
    training_args.model_init_kwargs = None
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **options)

    ################
    # Training
    ################
    trainer = MixtureRewardTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=lora_config(model_args) if training_args.component_type == "lora" else None,
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    ################
    # Saving: the mixture, and who was assigned to which component
    ################
    trainer.save_model(training_args.output_dir)
    mixture = trainer.mixture
    assignments = trainer.assignments()  # all processes share the work
    if trainer.accelerator.is_main_process:
        shares = zip(mixture.component_names, mixture.mixing_weights.tolist(), strict=True)
        print_table("Components", ["component", "share"], [[name, f"{share:.2f}"] for name, share in shares])
        for annotator, component in list(assignments.items())[:10]:
            print(f"  {annotator}: {component}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    types = (RewardArguments, MixtureRewardConfig, ModelConfig)
    main(*CommandParser(types, prog="mixture_reward.py", command="reward").parse_args_and_config(sys.argv[1:]))
