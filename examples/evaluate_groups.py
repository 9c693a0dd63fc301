# SPDX-License-Identifier: Apache-2.0
# /// script
# dependencies = ["trl-maxmin"]
# ///
r"""
How often does each group prefer a policy's reply to the reference's? One reply of each to every prompt, scored by the
components of a mixture (or by one reward model a group), with 95 % intervals.

One GPU:

accelerate launch --num_processes 1 examples/evaluate_groups.py \
    --dataset_name prompts.jsonl \
    --model_name_or_path policy \
    --reference_model Qwen/Qwen3-0.6B \
    --reward_model mixture \
    --output_file groups.json

Several GPUs:

accelerate launch --config_file examples/accelerate_configs/ddp.yaml --num_processes 4 examples/evaluate_groups.py \
    --dataset_name prompts.jsonl \
    --model_name_or_path policy \
    --reference_model Qwen/Qwen3-0.6B \
    --reward_model mixture \
    --output_file groups.json

The judge is the mixture that trained the policy: a policy may exploit it. Judge by rewards it has not seen if you can.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, TrlParser

from trl_maxmin.cli.io import print_table, read_dataset
from trl_maxmin.cli.policy import PolicyArguments, load_reward_models
from trl_maxmin.data.tokenization import encode_prompt
from trl_maxmin.evaluation import by_group, group_min
from trl_maxmin.trainer.common.sampling import resolve_stop_tokens, sample_completions, sampling_config, seeded
from trl_maxmin.trainer.scoring.sources import RewardBatch, build_reward_source


@dataclass
class EvaluationArguments(PolicyArguments):
    reference_model: str | None = field(default=None, metadata={"help": "Folder or Hub id of the reference policy."})
    output_file: str = field(default="groups.json", metadata={"help": "Where the win rates go."})
    max_new_tokens: int = field(default=256, metadata={"help": "Length limit of a reply."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of both policies."})
    batch_size: int = field(default=16, metadata={"help": "Replies generated together."})
    seed: int = field(default=0, metadata={"help": "Seed of the replies."})


def scores(name: str, prompts: list, args: EvaluationArguments, source, accelerator: Accelerator, dtype) -> list:
    """Rewards (N, K), as lists, of one reply of the policy of that name to each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    policy = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
    policy = policy.to(accelerator.device).eval()
    prompt_ids, stop = (
        [encode_prompt(tokenizer, p) for p in prompts],
        resolve_stop_tokens(None, None, policy, tokenizer),
    )
    with seeded(accelerator.device, args.seed, name, accelerator.process_index):
        config = sampling_config(args.temperature, args.max_new_tokens)
        replies = sample_completions(policy, prompt_ids, config, stop[0], stop, args.batch_size)
    texts = tokenizer.batch_decode([ids for ids, _ in replies], skip_special_tokens=True)
    turn = {"role": "assistant"}
    texts = [t if isinstance(p, str) else [turn | {"content": t}] for p, t in zip(prompts, texts, strict=True)]
    finished = [ended for _, ended in replies]
    return source(RewardBatch(prompts=prompts, completions=texts, finished=finished)).tolist() if prompts else []


def main(args: EvaluationArguments, model_args: ModelConfig) -> None:
    accelerator = Accelerator()
    train, test = read_dataset(args)
    prompts = list((test or train)["prompt"])
    source = build_reward_source(load_reward_models(args.reward_model)).to(accelerator.device)
    mine = prompts[accelerator.process_index :: accelerator.num_processes]
    names = (model_args.model_name_or_path, args.reference_model)
    policy, reference = (
        gather_object(scores(name, mine, args, source, accelerator, model_args.dtype)) for name in names
    )
    asked = gather_object([json.dumps(prompt) for prompt in mine])
    if accelerator.is_main_process:
        utilities = [dict(zip(source.names, zip(*rows, strict=True), strict=True)) for rows in (policy, reference)]
        rates = by_group(*utilities, clusters=asked)
        rows = [[name, f"{r.mean:.3f}", f"[{r.low:.3f}, {r.high:.3f}]"] for name, r in rates.items()]
        print_table(f"Win rate over {len(asked)} prompts", ["group", "win rate", "95 %"], rows)
        report = {"groups": {name: r.to_dict() for name, r in rates.items()}, "worst": group_min(rates)}
        Path(args.output_file).write_text(json.dumps(report | {"num_prompts": len(asked)}, indent=2) + "\n")


if __name__ == "__main__":
    main(*TrlParser((EvaluationArguments, ModelConfig)).parse_args_and_config())
