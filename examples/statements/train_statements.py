# SPDX-License-Identifier: Apache-2.0
"""Real disagreement from beginning to end: people's votes -> mixture -> a small policy that writes statements.

python examples/statements/train_statements.py --data ccai.pairs.jsonl.gz --policy imdb-gpt2-4m --encoder MINILM \
    --output_dir statements

The rows have `annotator`, `chosen`, `rejected` and `group` (who votes alike, as the source published it). Half of the
people teach: EM finds components in their votes (groups are not read), and one reward serves as control. The other
half judges: one reward for each published group, fitted to their votes alone, so that no person has both taught and
judged. A judge is a model of a group, not the group; its accuracy on its people's held-out votes is in the report.

The policy is fine-tuned until it knows the statements, so that it learns which of them to write. Often these are
people's own sentences: pass `report.json`, which shows a few, on only if the licence of the votes allows it. What each
component prefers, its most typical votes, is in `typical_votes.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardConfig, MixtureRewardTrainer
from trl_maxmin.evaluation import adjusted_rand_index, win_rate
from trl_maxmin.space.groups import describe_groups
from trl_maxmin.trainer.common.sampling import sample_completions, sampling_config, seeded


QUIET = {"report_to": "none", "disable_tqdm": True, "bf16": False, "save_strategy": "no", "logging_steps": 10}


def read_votes(path: str) -> Dataset:
    """Pairs with `annotator`, `chosen`, `rejected`, `group`.

    Raises:
        ValueError: a column is missing, or there are fewer than two groups.
    """
    votes = load_dataset("json", data_files=path, split="train")
    missing = {"annotator", "chosen", "rejected", "group"} - set(votes.column_names)
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(votes.column_names)}.")
    votes = votes.filter(lambda row: row["group"] is not None)
    if len(set(votes["group"])) < 2:
        raise ValueError(f"{path} has fewer than two groups, so there is nobody to compare.")
    rows = {"annotator_id": [str(a) for a in votes["annotator"]], "group": [f"group {g}" for g in votes["group"]]}
    return Dataset.from_dict({"prompt": [""] * len(votes), **{c: votes[c] for c in ("chosen", "rejected")}, **rows})


def split_people(votes: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Votes of one half of the people, and of the other half."""
    people = sorted(set(votes["annotator_id"]))
    teachers = set(np.random.default_rng(seed).permutation(people)[: len(people) // 2].tolist())
    teaches = [annotator in teachers for annotator in votes["annotator_id"]]
    return votes.select(np.flatnonzero(teaches)), votes.select(np.flatnonzero(~np.array(teaches)))


def fit_reward(votes: Dataset, components: int, arguments: argparse.Namespace) -> MixtureRewardTrainer:
    """Heads on the encoder's frozen features; EM does not read the column `group`."""
    args = MixtureRewardConfig(
        output_dir=str(arguments.output_dir / "logs"),
        num_components=components,
        train_trunk=False,
        pooling="mean",
        seed=arguments.seed,
        **QUIET,
    )
    trainer = MixtureRewardTrainer(arguments.encoder, args, train_dataset=votes)
    trainer.train()
    return trainer


def load_reference(votes: Dataset, arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy that writes like people, from `--reference`, where it is made if it is not there.

    Raises:
        ValueError: the policy has no BOS token, behind which statements begin.
    """
    folder = arguments.reference or arguments.output_dir / "reference"
    if not (folder / "tokenizer_config.json").exists():  # written last
        train_reference(votes, folder, arguments)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False), tokenizer


def train_reference(votes: Dataset, folder: Path, arguments: argparse.Namespace) -> None:
    """The given policy, fine-tuned until it knows the statements: what it then learns is which of them to write."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy, trust_remote_code=False)
    if tokenizer.bos_token_id is None:
        raise ValueError(f"The tokenizer of {arguments.policy} has no BOS token, behind which a statement begins.")
    statements = sorted({*votes["chosen"], *votes["rejected"]})
    ids = tokenizer(statements, add_special_tokens=False)["input_ids"]
    # With EOS. Those that the policy has no room for are not taught: cut, they would say something else.
    short = [text for text in ids if len(text) < arguments.max_new_tokens]
    rows = [[tokenizer.bos_token_id, *text, tokenizer.eos_token_id] for text in short]
    args = SFTConfig(
        output_dir=str(arguments.output_dir / "logs"),
        max_steps=arguments.pretrain_steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=20,
        max_length=None,
        gradient_checkpointing=False,
        seed=arguments.seed,
        **QUIET,
    )
    model = AutoModelForCausalLM.from_pretrained(arguments.policy, dtype="float32", trust_remote_code=False)
    data = Dataset.from_dict({"input_ids": rows})
    SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer).train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_policy(name: str, reward: Any, reference: Any, tokenizer: Any, arguments: Any) -> Any:
    """MaxMin-PPO; one component is conventional RLHF on the same utility and KL price."""
    args = MaxMinPPOConfig(
        output_dir=str(arguments.output_dir / "logs"),
        utility="zscore",
        max_steps=arguments.policy_steps,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        kl_coef=arguments.kl_coef,
        cliprange_value=1.0,
        temperature=1.0,
        response_length=arguments.max_new_tokens,
        stop_token="eos",
        missing_eos_penalty=1.0,
        num_reference_completions=256,  # the one prompt that there is
        num_sample_generations=0,
        gradient_checkpointing=False,
        seed=arguments.seed,
        **QUIET,
    )
    trainer = MaxMinPPOTrainer(
        args=args,
        model=copy.deepcopy(reference),
        ref_model=None,
        reward_model=reward,
        processing_class=tokenizer,
        # Nothing is asked: every statement begins behind BOS.
        train_dataset=Dataset.from_dict({"input_ids": [[tokenizer.bos_token_id]] * 256}),
    )
    trainer.train()
    trainer.save_model(str(arguments.output_dir / name))
    return trainer.policy_model


def write_statements(policy: Any, tokenizer: Any, arguments: Any, name: str) -> list[str]:
    """So many statements, as the policy writes them at temperature 1."""
    ids = [[tokenizer.bos_token_id]] * arguments.statements
    with seeded(torch.device("cpu"), arguments.seed, name):
        config = sampling_config(1.0, arguments.max_new_tokens)
        replies = sample_completions(policy, ids, config, tokenizer.pad_token_id, [tokenizer.eos_token_id], 128)
    return tokenizer.batch_decode([tokens for tokens, _ in replies], skip_special_tokens=True)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Pairs with annotator, chosen, rejected, group.")
    parser.add_argument("--policy", required=True, help="A small causal language model with a pad token of its own.")
    parser.add_argument("--encoder", required=True, help="An encoder, frozen, for the rewards.")
    parser.add_argument("--output_dir", type=Path, default=Path("statements"))
    parser.add_argument("--num_components", type=int, default=2)
    parser.add_argument("--reference", type=Path, help="A policy fine-tuned on the statements; made if not there.")
    parser.add_argument("--pretrain_steps", type=int, default=600)
    parser.add_argument("--policy_steps", type=int, default=50)
    parser.add_argument("--kl_coef", type=float, default=0.5)
    parser.add_argument("--max_new_tokens", type=int, default=40)
    parser.add_argument("--statements", type=int, default=1024, help="How many each policy writes for the judges.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    disable_progress_bars()
    votes = read_votes(arguments.data)
    teachers, judges = split_people(votes, arguments.seed)
    mixture, single = (fit_reward(teachers, k, arguments) for k in (arguments.num_components, 1))
    by_group = {
        group: fit_reward(judges.filter(lambda row, group=group: row["group"] == group), 1, arguments)
        for group in sorted(set(votes["group"]))
    }
    group_of = dict(zip(teachers["annotator_id"], teachers["group"], strict=True))
    found = mixture.assignments()
    reference, tokenizer = load_reference(votes, arguments)
    policies = {"reference": reference}
    for name, trainer in (("single", single), ("maxmin", mixture)):
        policies[name] = train_policy(name, trainer.mixture, reference, tokenizer, arguments)
    written = {n: write_statements(p, tokenizer, arguments, n) for n, p in policies.items()}
    scores: dict[str, dict[str, list[float]]] = {}
    for name, texts in written.items():
        nothing = [""] * len(texts)
        scores[name] = {g: judge.mixture.score(nothing, texts).flatten().tolist() for g, judge in by_group.items()}
    components = _components(mixture, teachers, found, group_of)
    typical = {name: facts["examples"] for name, facts in components.items()}
    _write(arguments.output_dir / "typical_votes.json", typical)
    report = {
        "seed": arguments.seed,
        "num_pairs": {"teachers": len(teachers), "judges": len(judges)},
        "ari_with_published_groups": round(
            adjusted_rand_index([found[a] for a in found], [group_of[str(a)] for a in found]), 4
        ),
        "components": {
            name: {k: v for k, v in facts.items() if k != "examples"} for name, facts in components.items()
        },
        "judge_accuracy": {g: round(_accuracy(judge), 4) for g, judge in by_group.items()},
        "win_rate": {
            name: {g: round(win_rate(scores[name][g], scores["reference"][g]).mean, 4) for g in by_group}
            for name in ("single", "maxmin")
        },
        "written": {name: _kinds(texts, votes) for name, texts in written.items()},
        "samples": [
            {name: texts[row] for name, texts in written.items()} for row in range(min(5, arguments.statements))
        ],
    }
    _write(arguments.output_dir / "report.json", report)
    print(json.dumps({name: report[name] for name in ("judge_accuracy", "win_rate")}, indent=1))
    return report


def _kinds(texts: list[str], votes: Dataset) -> dict[str, float]:
    """Of what was written: the share of distinct statements, and the share of those that people voted on."""
    known = {*votes["chosen"], *votes["rejected"]}
    return {
        "distinct": round(len(set(texts)) / len(texts), 4),
        "voted_on": round(sum(text in known for text in texts) / len(texts), 4),
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _components(
    mixture: MixtureRewardTrainer, votes: Dataset, found: dict[str | int, str], group_of: dict[str, str]
) -> dict[str, Any]:
    """Who the components are: people, how many of them each published group has, and their most typical votes."""
    facts = describe_groups(mixture.mixture, votes)
    for name in mixture.mixture.component_names:
        theirs = [group_of[str(annotator)] for annotator, component in found.items() if component == name]
        facts[name]["published_groups"] = {group: theirs.count(group) for group in sorted(set(group_of.values()))}
    return facts


def _accuracy(trainer: MixtureRewardTrainer) -> float:
    return (trainer.heldout_log_likelihood().exp() > 0.5).double().mean().item()


if __name__ == "__main__":
    main()
