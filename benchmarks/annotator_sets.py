# SPDX-License-Identifier: Apache-2.0
"""Real people's preferences: how many components, and how well they predict, by seed.

    python benchmarks/annotator_sets.py --data ../shared/data/polis/bowling_green.pairs.jsonl.gz \\
        --encoder path/to/all-MiniLM-L6-v2 --seeds 0 1 2 3 4 --output docs/results/annotators_bowling_green.json

For each seed it does what this command does, the texts being encoded once for all seeds:

    trl-maxmin reward --dataset_name DATA --annotator_column annotator --model_name_or_path ENCODER \\
        --train_trunk false --pooling mean --select 1,2,3,4 --seed SEED --output_dir OUT

and asks, for each K, about held-out pairs of the same people, about statements of which a person's training pairs say
nothing, about statements that nobody had judged, and, with the chosen K, about new people. A person's pairs share
statements in these sets, so held-out pairs are half known: who preferred A to C and B to D has said something of A, D.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import load_dataset

from trl_maxmin.evaluation import adjusted_rand_index
from trl_maxmin.evaluation.new_annotators import assignment_curve
from trl_maxmin.functional.em import predictive_log_likelihood
from trl_maxmin.functional.em_features import fit_feature_mixture
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.trainer import MixtureRewardConfig, MixtureRewardTrainer


def make_trainer(arguments, rows, seed, folder):
    args = MixtureRewardConfig(
        output_dir=folder,
        annotator_column="annotator",
        train_trunk=False,
        pooling="mean",
        select=arguments.select,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    return MixtureRewardTrainer(arguments.encoder, args, train_dataset=rows)


def accuracy(scores):
    return round((scores.exp() > 0.5).double().mean().item(), 4)


def fit(pairs, people, k, seed):
    return fit_feature_mixture(pairs, people, k, generator=torch.Generator().manual_seed(seed), num_init=8)


def table_of_fits(train, held, people, candidates, seed):
    """Each K, fitted on `train`, on `held`."""
    result = {"num_pairs": len(held)}
    for k in candidates:
        fitted = fit(train, people, k, seed)
        scores = predictive_log_likelihood(
            held.log_likelihood(fitted.weight), fitted.log_responsibilities, held.annotator_index
        )
        result[str(k)] = {"accuracy": accuracy(scores), "log_likelihood": round(scores.mean().item(), 4)}
    return result


def unseen_votes(pairs, people, candidates, seed):
    """A third of each person's statements is kept from that person's training pairs; those of others may hold them.
    Judged are the pairs of which both statements are kept."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(people, len(pairs.features), generator=generator) < 1 / 3
    chosen, rejected = kept[pairs.annotator_index, pairs.chosen], kept[pairs.annotator_index, pairs.rejected]
    return table_of_fits(
        pairs.select(~chosen & ~rejected), pairs.select(chosen & rejected), people, candidates, seed
    )  # fmt: skip


def unseen_statements(pairs, people, candidates, seed):
    """A fifth of the texts is kept from training; judged are the pairs of which both texts are new."""
    generator = torch.Generator().manual_seed(seed)
    new = torch.rand(len(pairs.features), generator=generator) < 0.2
    judged = new[pairs.chosen] & new[pairs.rejected]
    trained = ~new[pairs.chosen] & ~new[pairs.rejected]
    table = table_of_fits(pairs.select(trained), pairs.select(judged), people, candidates, seed)
    return {"num_texts": int(new.sum()), **table}


def unseen_annotators(pairs, people, k, seed):
    """A fifth of the people is kept from training; they are assigned on 0, 1, 2, 4, 8 of their pairs, and judged on
    pairs that share no statement with these."""
    generator = torch.Generator().manual_seed(seed)
    new = torch.rand(people, generator=generator) < 0.2
    theirs = new[pairs.annotator_index]
    fitted = fit(pairs.select(~theirs), people, k, seed)
    held = pairs.select(theirs)
    curve = assignment_curve(
        held.log_likelihood(fitted.weight), held.annotator_index, fitted.mixing_weights, generator=generator,
        sizes=(0, 1, 2, 4, 8), texts=torch.stack([held.chosen, held.rejected], dim=1),
    )  # fmt: skip
    return [
        {"pairs_seen": p.num_seen, "accuracy": round(p.accuracy, 4), "standard_error": round(p.standard_error, 4),
         "log_likelihood": round(p.log_likelihood, 4), "num_annotators": p.num_annotators, "num_pairs": p.num_pairs}
        for p in curve
    ]  # fmt: skip


def everything(trainer):
    """All pairs, those held out as well, over one table of texts."""
    parts = [trainer.feature_pairs(part) for part in (trainer.train_dataset, trainer.eval_dataset)]
    features = parts[-1].features
    joined = [torch.cat([getattr(p, name) for p in parts]) for name in ("chosen", "rejected", "annotator_index")]
    return FeaturePairs(features, *joined)


def familiar_pairs(trainer):
    """Share of the held-out pairs of which the same person judged both statements in training pairs."""
    train, held = (trainer.feature_pairs(part) for part in (trainer.train_dataset, trainer.eval_dataset))
    own = [p.annotator_index.unsqueeze(1) * len(held.features) + torch.stack([p.chosen, p.rejected], 1)
           for p in (train, held)]  # fmt: skip
    return round(torch.isin(own[1], own[0]).all(1).double().mean().item(), 4)


def heldout_table(trainer, candidates, seed):
    """Each K, fitted on the training pairs, on the held-out pairs of the same people."""
    train, held = (trainer.feature_pairs(part) for part in (trainer.train_dataset, trainer.eval_dataset))
    people, table, groups = len(trainer.annotators), {}, {}
    if "group" in trainer.train_dataset.column_names:
        groups = dict(zip(trainer.train_dataset["annotator_index"], trainer.train_dataset["group"], strict=True))
    for k in candidates:
        fitted = fit(train, people, k, seed)
        scores = predictive_log_likelihood(
            held.log_likelihood(fitted.weight), fitted.log_responsibilities, held.annotator_index
        )
        table[str(k)] = {"accuracy": accuracy(scores), "log_likelihood": round(scores.mean().item(), 4)}
        table[str(k)]["mixing_weights"] = [round(w, 3) for w in sorted(fitted.mixing_weights.tolist(), reverse=True)]
        if groups:
            known = [h for h in range(people) if groups.get(h) is not None]
            found = fitted.log_responsibilities.argmax(-1)
            table[str(k)]["ari_with_group"] = round(
                adjusted_rand_index([int(found[h]) for h in known], [groups[h] for h in known]), 4
            )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--select", default="1,2,3,4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = load_dataset("json", data_files=arguments.data, split="train")
    candidates = [int(k) for k in arguments.select.split(",")]
    report, first = {"data": Path(arguments.data).name, "num_pairs": len(rows), "seeds": {}}, None
    for seed in arguments.seeds:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(arguments, rows, seed, folder)
            if first is None:
                first = trainer
            else:
                trainer.share_features(first)
            trainer.train()
            heldout = trainer.heldout_log_likelihood()
        selection, pairs, people = trainer.selection, everything(trainer), len(trainer.annotators)
        report["seeds"][str(seed)] = {
            "verdict": selection.verdict(),
            "heads": "linear" if trainer.mixture.feature_map is None else "kernel",
            "familiar_heldout_pairs": familiar_pairs(trainer),
            "cross_validated_pairs": selection.num_pairs,
            "num_components": selection.num_components,
            "cross_validated": {
                str(k): {
                    "log_likelihood": round(selection.log_likelihood[k], 4),
                    "accuracy": round(selection.accuracy[k], 4),
                    "difference": round(selection.difference[k], 4),
                    "standard_error": round(selection.standard_error[k], 4),
                }
                for k in candidates
            },
            "chosen": {"accuracy": accuracy(heldout), "log_likelihood": round(heldout.mean().item(), 4)},
            "heldout": heldout_table(trainer, candidates, seed),
            "unseen_votes": unseen_votes(pairs, people, candidates, seed),
            "unseen_statements": unseen_statements(pairs, people, candidates, seed),
            "unseen_annotators": unseen_annotators(pairs, people, selection.num_components, seed),
            "num_texts": len(pairs.features),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(json.dumps({seed: report["seeds"][str(seed)]}), flush=True)
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
