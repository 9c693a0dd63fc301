# SPDX-License-Identifier: Apache-2.0
"""Per-group evaluation of any set of policies: replies, scores, judges, and the results with intervals."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from ..data.tokenization import Prompt, plain_messages, same_vocabulary
from ..distributed import gather_objects, on_main
from ..functional.group_floor import has_evidence
from ..functional.utility import MIN_REFERENCE_COMPLETIONS
from ..models import MixtureRewardModel
from ..models.loading import load_pretrained, load_tokenizer
from ..trainer.scoring.reference_statistics import ReferenceStatistics
from ..trainer.scoring.sources import RewardBatch, RewardSource, build_reward_source
from .generation import Replies, Sampling, diversity_of_replies, generate_replies, reply_logprobs
from .judges import PairwiseJudge, judge_pairs
from .results import GroupScores, summarise


@dataclass
class Policy:
    """A policy to be evaluated: a name that is loaded when its turn comes, a loaded model, or replies it has given.

    Args:
        source (`str`, `(model, tokenizer)` or [`Replies`]): local folder or Hub id (adapters included), a pair, or
            cached generations.
        load_kwargs (`dict`, *optional*): passed to `from_pretrained`, such as `dtype` and `revision`.
    """

    source: Any
    load_kwargs: dict[str, Any] = field(default_factory=dict)

    def load(self, device: torch.device) -> tuple[Any, Any]:
        """The model in evaluation mode on `device`, and its tokenizer."""
        if not isinstance(self.source, str):
            model, tokenizer = self.source
        else:
            where = {key: self.load_kwargs[key] for key in ("revision", "token") if key in self.load_kwargs}
            tokenizer = load_tokenizer(self.source, "`policies`", **where)
            model = load_pretrained(AutoModelForCausalLM, self.source, argument="`policies`", **self.load_kwargs)
        return model.to(device).eval(), tokenizer


@dataclass
class Evaluation:
    """What [`evaluate_policies`] returns.

    Args:
        results (`dict`): see `docs/evaluation.md`.
        replies (`dict[str, Replies]`): of every policy, in the order of the rows of `scores`.
        scores ([`GroupScores`]): what every group thinks of every reply.
        gold_utility (`dict[str, dict[str, float]]`): policy -> known group -> mean utility in its own unit.
    """

    results: dict[str, Any]
    replies: dict[str, Replies]
    scores: GroupScores
    gold_utility: dict[str, dict[str, float]]

    def samples(self, count: int = 4) -> list[dict[str, Any]]:
        """The first replies of every policy to the first different prompts, as the run record holds them."""
        anyone = next(iter(self.replies.values()))
        rows = list(
            {repr(plain_messages(prompt)): row for row, prompt in reversed(list(enumerate(anyone.prompts)))}.values()
        )[::-1]
        return [
            {
                "prompt": prompt if isinstance(prompt := anyone.prompts[row], str) else prompt[-1]["content"],
                "completions": {name: own.completions[row] for name, own in self.replies.items()},
            }
            for row in sorted(rows)[:count]
        ]

    def run_record_facts(self) -> dict[str, Any]:
        """Facts for `RunRecord.update("evaluation", ...)`."""
        win_rate: dict[str, dict[str, Any]] = {}
        for name, entry in self.results["policies"].items():
            for group, measures in entry["by_group"].items():
                if "win_rate" in measures:
                    win_rate.setdefault(name, {})[group] = measures["win_rate"]
        return {
            "groups": list(self.results["groups"]),
            "num_prompts": self.results["num_prompts"],
            "utility": "zscore",
            "results": self.results,
            "samples": self.samples(),
            **({"win_rate": win_rate} if win_rate else {}),
            **({"gold_utility": self.gold_utility} if self.gold_utility else {}),
        }


def evaluate_policies(
    policies: Mapping[str, Policy | Any],
    prompts: Sequence[Prompt] | None = None,
    *,
    reference: str,
    reward_model: Any = None,
    gold: Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]] | None = None,
    judges: Mapping[str, PairwiseJudge] | None = None,
    weights: Mapping[str, float] | None = None,
    sampling: Sampling | None = None,
    accelerator: Accelerator | None = None,
    compare: Sequence[tuple[str, str]] | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure policies on the same prompts for every group.

    Args:
        policies (`Mapping`): name -> [`Policy`], or what a policy is made from: a folder or Hub id, a pair
            `(model, tokenizer)`, or [`Replies`]. The reference is one of them.
        prompts (`Sequence` of P texts or messages, *optional*): needed unless all policies are replies.
        reference (`str`): name of the policy that the others are compared with.
        reward_model (*optional*): a mixture, a reward model, reward functions or a list: its components are groups.
        gold (`Mapping` or `Sequence` of functions, *optional*): known groups: name -> reward function of TRL's
            convention, called as `f(prompts=, completions=, completion_ids=, finished=)`.
        judges (`Mapping[str, PairwiseJudge]`, *optional*): criterion -> who compares.
        weights (`Mapping[str, float]`, *optional*): share of groups; a mixture's own are known.
        sampling ([`Sampling`], *optional*): how replies are sampled.
        accelerator ([`~accelerate.Accelerator`], *optional*): ranks share the work; all return the same results.
        compare (`Sequence[(str, str)]`, *optional*): policy and baseline of the paired differences. Default: all.
        num_resamples, level: see [`summarise`].
        progress (`Callable[[str, int, int], None]`, *optional*): called with what is being done, how much of it is
            done on this rank and how much there is.

    Raises:
        ValueError: a reference that is no policy, nobody to judge, groups named twice, no prompts where they are
            needed, or replies to other prompts than the policies'.
    """
    accelerator = accelerator or Accelerator()
    sampling = sampling or Sampling()
    plan = {name: given if isinstance(given, Policy) else Policy(given) for name, given in policies.items()}
    if not isinstance(gold, Mapping):
        gold = {function.__name__: function for function in gold or ()}
    if reference not in plan:
        raise ValueError(f"The reference {reference!r} is none of the policies {list(plan)}; name one of them.")
    if reward_model is None and not gold and not judges:
        raise ValueError("Nobody to ask: give reward_model (components), gold (known groups) or judges (criteria).")
    to_generate = [name for name, policy in plan.items() if not isinstance(policy.source, Replies)]
    if to_generate and not prompts:
        raise ValueError(f"Prompts are needed to sample replies of {to_generate}.")
    report = progress or (lambda title, done, total: None)
    replies: dict[str, Replies] = {}
    facts: dict[str, dict[str, Any]] = {}
    tokenizers: dict[str, Any] = {}
    reference_model = None
    for name in [reference, *(name for name in plan if name != reference)]:
        if isinstance(plan[name].source, Replies):
            replies[name] = plan[name].source
            facts[name] = _reply_facts(replies[name])
            continue
        model, tokenizers[name] = plan[name].load(accelerator.device)
        if name == reference:
            reference_model = model
        share = -(-len(prompts) * sampling.num_completions // accelerator.num_processes)
        counter = _Counter(report, f"replies of {name}", share)
        # The reference has luck of its own, apart from that of the policies that are to beat it.
        stream = "reference" if name == reference else "policy"
        replies[name] = generate_replies(model, tokenizers[name], prompts, sampling, accelerator, stream, counter)
        facts[name] = _reply_facts(replies[name])
        comparable = reference_model is not None and same_vocabulary(tokenizers[reference], tokenizers[name])
        if name != reference and comparable and sampling.temperature > 0:
            facts[name] = {"kl": _kl(model, reference_model, replies[name], sampling, accelerator)} | facts[name]
        if name != reference:
            del model
    replies = {name: replies[name] for name in plan}
    for name, own in replies.items():
        if own.prompts != replies[reference].prompts:
            raise ValueError(
                f"The replies of {name!r} answer other prompts than those of {reference!r}; give every policy the "
                "same prompts in the same order (`read_completions` sorts cached ones)."
            )
    judges, given = judges or {}, {"component": reward_model, "gold": gold}
    scores, gold_utility = _score(
        replies, tokenizers, reference, given, judges, weights, sampling, accelerator, report
    )
    scores.replies = facts
    counts = _ask_judges(scores, replies, reference, judges, accelerator, report)
    results = summarise(scores, num_resamples, level, sampling.seed, compare)
    return Evaluation(results | ({"judges": counts} if counts else {}), replies, scores, gold_utility)


class _Counter:
    def __init__(self, report: Callable[[str, int, int], None], title: str, total: int) -> None:
        self.report, self.title, self.total, self.done = report, title, total, 0
        report(title, 0, total)

    def __call__(self, count: int) -> None:
        self.done += count
        self.report(self.title, self.done, self.total)


def _reply_facts(replies: Replies) -> dict[str, Any]:
    return {
        "length": replies.lengths(),
        "finished": float(np.mean(replies.finished)),
        **diversity_of_replies(replies.completions),
    }


def _kl(model: Any, reference: Any, replies: Replies, sampling: Sampling, accelerator: Accelerator) -> np.ndarray:
    """Log-ratio of each reply under the policy that gave it and under the reference (N,): its mean is the KL."""
    rows = list(range(accelerator.process_index, len(replies), accelerator.num_processes))
    chosen = [replies.prompt_ids[row] for row in rows], [replies.completion_ids[row] for row in rows]
    ours = reply_logprobs(model, *chosen, sampling.temperature, sampling.batch_size)
    theirs = reply_logprobs(reference, *chosen, sampling.temperature, sampling.batch_size)
    found = dict(gather_objects(accelerator, list(zip(rows, (ours - theirs).tolist(), strict=True))))
    return np.array([found[row] for row in range(len(replies))])


def _score(
    replies: dict[str, Replies],
    tokenizers: Mapping[str, Any],
    reference: str,
    given: Mapping[str, Any],
    judges: Mapping[str, PairwiseJudge],
    weights: Mapping[str, float] | None,
    sampling: Sampling,
    accelerator: Accelerator,
    report: Callable[[str, int, int], None],
) -> tuple[GroupScores, dict[str, dict[str, float]]]:
    """What components and known groups think of every reply, and the latter's utility in its own unit."""
    groups: dict[str, str] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in replies}
    keys = [repr(plain_messages(prompt)) for prompt in replies[reference].prompts]
    gold_utility: dict[str, dict[str, float]] = {}
    weights, below = dict(weights or {}), list[str]()
    for kind, rewards in given.items():
        if rewards is None or rewards == {}:
            continue
        functions = [*rewards.values()] if kind == "gold" else rewards
        raw: dict[str, np.ndarray] = {}
        for number, (name, own) in enumerate(replies.items()):
            report(f"scores ({kind})", number, len(replies))
            source = build_reward_source(functions, tokenizers.get(name), list(rewards) if kind == "gold" else None)
            raw[name] = score_replies(source.to(accelerator.device), own, accelerator, sampling)
        report(f"scores ({kind})", len(replies), len(replies))
        if taken := sorted(set(source.names) & set(groups)):
            # A component that stands for a known group often carries its name.
            source.names = [f"{name} ({kind})" if name in taken else name for name in source.names]
        groups |= dict.fromkeys(source.names, kind)
        if kind == "gold":
            gold_utility = {
                name: dict(zip(source.names, np.nanmean(values, axis=0).tolist(), strict=True))
                for name, values in raw.items()
            }
        elif source.mixing_weights is not None:
            weights = dict(zip(source.names, source.mixing_weights.tolist(), strict=True)) | weights
        enough = has_evidence(source.num_annotators, source.num_pairs)
        below += [] if enough is None else [name for name, has in zip(source.names, enough, strict=True) if not has]
        known = rewards.reward_scale[source.components].tolist() if isinstance(rewards, MixtureRewardModel) else None
        utilities_of = standardise(raw, keys, reference, known, replies[reference].finished, source.names)
        for name, values in utilities_of.items():
            columns[name].append(values)
    utilities = {
        name: np.concatenate([*own, np.full((len(keys), len(judges)), np.nan)], axis=1)
        for name, own in columns.items()
    }
    groups |= dict.fromkeys(judges, "judge")
    weights = {group: weight for group, weight in weights.items() if group in groups}
    return GroupScores(groups, utilities, keys, reference, weights=weights, below_floor=below), gold_utility


def score_replies(source: RewardSource, replies: Replies, accelerator: Accelerator, sampling: Sampling) -> np.ndarray:
    """Rewards of replies, scored by all ranks together.

    Args:
        source ([`RewardSource`]): on this rank's device.
        replies ([`Replies`]): N of them.
        accelerator ([`~accelerate.Accelerator`]): the ranks.
        sampling ([`Sampling`]): its `batch_size` and `chat_template_kwargs`.

    Returns:
        `np.ndarray` of shape `(N, K)`, float64; NaN: not scored.
    """
    rows = list(range(accelerator.process_index, len(replies), accelerator.num_processes))
    scored: list[tuple[int, list[float]]] = []
    for start in range(0, len(rows), 8 * sampling.batch_size):
        part = rows[start : start + 8 * sampling.batch_size]
        prompts = [replies.prompts[row] for row in part]
        batch = RewardBatch(
            prompts=prompts,
            completions=[
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, (replies.completions[row] for row in part), strict=True)
            ],
            prompt_ids=None if replies.prompt_ids is None else [replies.prompt_ids[row] for row in part],
            completion_ids=None if replies.completion_ids is None else [replies.completion_ids[row] for row in part],
            finished=[replies.finished[row] for row in part],
            columns={"finished": [replies.finished[row] for row in part]},
            chat_template_kwargs=sampling.chat_template_kwargs,
        )
        scored += zip(part, source(batch).cpu().double().tolist(), strict=True)
    found = dict(gather_objects(accelerator, scored))
    return np.array([found[row] for row in range(len(replies))], dtype=np.float64).reshape(len(replies), -1)


def standardise(
    rewards: Mapping[str, np.ndarray],
    prompts: Sequence[Any],
    reference: str,
    known_scale: list[float] | None = None,
    finished: Sequence[bool] | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Utilities that can be compared between groups, measured as the trainers do ([`ReferenceStatistics`]).

    Args:
        rewards (`Mapping[str, np.ndarray]`, each `(N, G)`): of every policy, the reference included.
        prompts (`Sequence` of N hashable values): prompt of each row.
        reference (`str`): its mean reward on a prompt is the zero, its spread within prompts the unit.
        known_scale (`list[float]`, *optional*): a calibrated mixture's spread, used where there are fewer than four
            replies a prompt to measure it.
        finished (`Sequence[bool]` of N, *optional*): whether each reply of the reference ended by itself; truncated
            ones do not count where most did.
        groups (`Sequence[str]` of G, *optional*): their names, for warnings.

    Returns:
        `dict[str, np.ndarray]`: of every policy, `(N, G)`. Where neither spread is known, with a warning, the unit is
        the reference's spread over all replies. A group that is constant keeps 1.
    """
    base = torch.from_numpy(rewards[reference])
    scale = None
    if max(Counter(prompts).values()) < MIN_REFERENCE_COMPLETIONS:
        if known_scale is not None and any(value != 1.0 for value in known_scale):
            scale = torch.tensor(known_scale)
        else:
            warnings.warn(
                f"Fewer than {MIN_REFERENCE_COMPLETIONS} replies a prompt: utilities are divided by the reference's "
                "spread over all prompts, which mixes the difficulty of prompts into it. Raise num_completions.",
                stacklevel=2,
            )
            spread = torch.from_numpy(np.nanstd(rewards[reference], axis=0))
            scale = torch.where(spread > 1e-6 * base.abs().nan_to_num().amax(0), spread, 1.0)
    names = list(groups or map(str, range(base.shape[1])))
    flags = None if finished is None else torch.tensor(finished)
    statistics = ReferenceStatistics.from_rewards(names, list(prompts), base, finished=flags, scale=scale)
    return {
        name: statistics.utilities(torch.from_numpy(values), list(prompts)).double().numpy()
        for name, values in rewards.items()
    }


def _ask_judges(
    scores: GroupScores,
    replies: Mapping[str, Replies],
    reference: str,
    judges: Mapping[str, PairwiseJudge],
    accelerator: Accelerator,
    report: Callable[[str, int, int], None],
) -> dict[str, dict[str, int]]:
    """Fill the outcomes of the judged criteria; the main rank asks, since endpoints do not get faster by ranks."""
    counts: dict[str, dict[str, int]] = {}
    base = replies[reference]
    for criterion, judge in judges.items():
        column = list(scores.groups).index(criterion)
        for number, (name, own) in enumerate(replies.items()):
            report(f"judge: {criterion}", number + 1, len(replies))
            if name == reference:
                continue
            ask = partial(judge_pairs, judge, own.prompts, own.completions, base.completions)
            judged = on_main(accelerator, ask)
            scores.outcomes[name][:, column] = judged.outcomes
            sums = counts.setdefault(criterion, dict.fromkeys(judged.counts, 0))
            counts[criterion] = {key: sums[key] + value for key, value in judged.counts.items()}
    return counts
