# SPDX-License-Identifier: Apache-2.0
"""Best-of-n by welfare: sample n replies a prompt, and choose by one weight vector for the whole set of prompts.

The baseline of every table: it trains nothing, and pays with n times the sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator

from ..data.tokenization import Prompt, plain_messages
from ..evaluation.evaluator import score_replies
from ..evaluation.generation import Replies, Sampling, encode_prompts, generate_replies
from ..functional.best_of import BestOf, best_of_n
from ..functional.utility import MIN_REFERENCE_COMPLETIONS
from ..trainer.maxmin.maxmin_config import MaxMinConfigMixin, resolve_utility
from ..trainer.maxmin.welfare import Welfare, groups_with_evidence
from ..trainer.scoring.reference_statistics import ReferenceStatistics
from ..trainer.scoring.sources import build_reward_source, refuse_infinite


#: Rules that [`best_of_n`] solves by itself.
_SOLVED = ("maxmin", "mirror")


@dataclass
class BestOfPolicy:
    """Replies that a rule chose, as if they were a policy's.

    Args:
        replies ([`Replies`]): `num_completions` to each prompt, in the order of the prompts.
        found ([`BestOf`]): weights, utilities and cost.
        names (`list[str]`): K names of the components.
    """

    replies: Replies
    found: BestOf
    names: list[str]

    def facts(self) -> dict[str, Any]:
        """Plain numbers: `kl` (nats), `utility` and `weight` by component, and `bound` where it is known."""
        named = {"utility": self.found.utilities, "weight": self.found.weights}
        tables = {
            what: {name: value for name, value in zip(self.names, values.tolist(), strict=True) if value == value}
            for what, values in named.items()
            if values is not None
        }
        return {"kl": self.found.kl, **tables, **({} if self.found.bound is None else {"bound": self.found.bound})}


@dataclass
class BestOfN:
    """Samples n replies a prompt, scores them for every component, and chooses for the set of prompts.

    Utilities are those of the trainers and of evaluation: rewards measured against replies of the reference policy to
    the same prompt ([`ReferenceStatistics`]). Prompts are worked on in parts of `sampling.batch_size`; of all
    candidates only texts and rewards are kept.

    Args:
        policy (`(model, tokenizer)`): who is sampled from; the model on this rank's device.
        reward_model: as [`build_reward_source`] takes it: a mixture, a reward model, functions, or a list of these.
        num_candidates (`int`, defaults to 16): n.
        settings ([`MaxMinConfigMixin`]): the utility, and what the welfare rules read.
        sampling ([`Sampling`]): `num_completions` is the number of replies that are CHOSEN for each prompt, each among
            n of its own.
        reference (`(model, tokenizer)` or [`Replies`], *optional*): whom utilities are measured against: a policy, or
            replies that it has given, to the prompts that will be asked. Default: the policy itself.
        accelerator ([`~accelerate.Accelerator`], *optional*): ranks share the work; all return the same.

    Raises:
        ValueError: fewer than one candidate, or a reward that is none.

    Example:

    ```python
    best_of = BestOfN((model, tokenizer), mixture, num_candidates=16)
    chosen = best_of.run(prompts, rules=["maxmin", "utilitarian"])
    chosen["maxmin"].replies.completions
    ```
    """

    policy: tuple[Any, Any]
    reward_model: Any
    num_candidates: int = 16
    settings: MaxMinConfigMixin = field(default_factory=MaxMinConfigMixin)
    sampling: Sampling = field(default_factory=Sampling)
    reference: tuple[Any, Any] | Replies | None = None
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {self.num_candidates}.")
        if self.num_candidates > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"temperature is 0 (greedy), so the {self.num_candidates} candidates would be one; set it above 0."
            )
        self.accelerator = self.accelerator or Accelerator()
        self.source = build_reward_source(self.reward_model, self.policy[1]).to(self.accelerator.device)
        self.reference_replies: Replies | None = None
        self.statistics: ReferenceStatistics | None = None

    @property
    def names(self) -> list[str]:
        """K names of the components."""
        return self.source.names

    def run(
        self,
        prompts: Sequence[Prompt],
        rules: Sequence[str] = ("maxmin",),
        progress: Callable[[str, int, int], None] | None = None,
    ) -> dict[str, BestOfPolicy]:
        """Choose `sampling.num_completions` replies to each prompt by every rule, among the same candidates.

        Afterwards `reference_replies` are the replies that utilities were measured against, `num_completions` a
        prompt, and `statistics` what they are worth.

        Args:
            prompts (`Sequence` of P texts or messages): the set that the rule speaks of.
            rules (`Sequence[str]`): names of welfare rules, or `"sample_min"`.
            progress (`Callable`, *optional*): called with what is being done, how much is done, and how much there is.

        Returns:
            `dict[str, BestOfPolicy]`: by rule.

        Raises:
            ValueError: no prompts, one that is empty or too long, reference replies to other prompts, an unknown rule,
                an infinite reward, or a prompt none of whose candidates was scored.
        """
        if not prompts:
            raise ValueError("There are no prompts to answer; give at least one.")
        checked = [replace(self.settings, welfare=rule) for rule in rules]  # refuses unknown names before sampling
        encode_prompts(*self.policy, prompts, self.sampling)
        count, report = self.sampling.num_completions, progress or (lambda *_: None)
        candidates, rewards = self._sample(self.policy, prompts, self.num_candidates * count, "candidates", report)
        utilities = self._utilities(prompts, candidates, rewards, report)
        grouped = utilities.view(len(prompts) * count, self.num_candidates, -1)
        chosen = {}
        for rule, settings in zip(rules, checked, strict=True):
            found = choose(grouped, settings, self.source)
            rows = [row * self.num_candidates + int(reply) for row, reply in enumerate(found.choice)]
            chosen[rule] = BestOfPolicy(_take(candidates, rows), found, self.names)
        return chosen

    def _sample(
        self,
        who: tuple[Any, Any],
        prompts: Sequence[Prompt],
        count: int,
        title: str,
        report: Callable[[str, int, int], None],
    ) -> tuple[Replies, torch.Tensor]:
        """`count` replies to each prompt as text, and their rewards `(P x count, K)`, part by part."""
        kept, rewards = Replies([], [], []), []
        sampling = replace(self.sampling, num_completions=count)
        source = self.source
        if who is not self.policy:
            source = build_reward_source(self.reward_model, who[1]).to(self.accelerator.device)
        for start in range(0, len(prompts), sampling.batch_size):
            part = prompts[start : start + sampling.batch_size]
            replies = generate_replies(*who, part, sampling, self.accelerator, f"best-of {title} {start}")
            rewards.append(torch.from_numpy(score_replies(source, replies, self.accelerator, sampling)))
            kept.prompts += replies.prompts
            kept.completions += replies.completions
            kept.finished += replies.finished
            report(title, min(start + len(part), len(prompts)), len(prompts))
        result = torch.cat(rewards)
        refuse_infinite(result, self.names)
        return kept, result

    def _utilities(
        self,
        prompts: Sequence[Prompt],
        candidates: Replies,
        rewards: torch.Tensor,
        report: Callable[[str, int, int], None],
    ) -> torch.Tensor:
        """Utilities of the candidates; samples and scores the reference."""
        kind = resolve_utility(self.settings.utility, len(self.names))
        own, count = self.reference is None, self.sampling.num_completions
        keys = [repr(plain_messages(prompt)) for prompt in candidates.prompts]
        if isinstance(self.reference, Replies):
            reference, worth = self.reference, self._score_given(self.reference, set(keys))
        else:
            # The candidates of the reference itself measure it; others need enough replies for a spread.
            enough = own and self.num_candidates * count >= MIN_REFERENCE_COMPLETIONS
            width = count if enough or kind == "raw" else max(count, self.settings.num_reference_completions)
            who = self.policy if own else self.reference
            reference, worth = self._sample(who, prompts, width, "reference", report)
            first = [row for row in range(len(reference)) if row % width < count]
            self.reference_replies = _take(reference, first)
        if isinstance(self.reference, Replies):
            self.reference_replies = reference
        if kind == "raw":
            return rewards
        known = [repr(plain_messages(prompt)) for prompt in reference.prompts]
        finished = list(reference.finished)
        if own:
            known, worth, finished = known + keys, torch.cat([worth, rewards]), finished + candidates.finished
        self.statistics = ReferenceStatistics.from_rewards(self.names, known, worth, finished=torch.tensor(finished))
        return self.statistics.utilities(rewards, keys, kind)

    def _score_given(self, replies: Replies, keys: set[str]) -> torch.Tensor:
        given = {repr(plain_messages(prompt)) for prompt in replies.prompts}
        if missing := sorted(keys - given):
            raise ValueError(
                f"The reference has no replies to {len(missing)} of the prompts, such as {missing[0]}; give replies "
                "to the same prompts, or a reference that can be sampled."
            )
        return torch.from_numpy(score_replies(self.source, replies, self.accelerator, self.sampling))


def choose(utilities: torch.Tensor, settings: MaxMinConfigMixin, source: Any) -> BestOf:
    """Choose among scored candidates by the rule of `settings.welfare`.

    As in training, a component that stands on too few people or pairs has no weight ([`groups_with_evidence`]).

    Args:
        utilities (`torch.Tensor` of shape `(P, n, K)`): NaN: not scored.
        settings ([`MaxMinConfigMixin`]): the rule and what it reads.
        source ([`RewardSource`]): where the columns come from.

    Returns:
        [`BestOf`]

    Raises:
        ValueError: as [`best_of_n`] and [`Welfare`].
    """
    enough, rule = groups_with_evidence(settings, source), settings.welfare
    if rule != "regret":
        return best_of_n(utilities, _follow(rule, settings, source, enough), **_limits(rule, settings, enough))
    best = None if settings.best_utilities is None else torch.tensor(settings.best_utilities, dtype=torch.float64)
    of_regrets = settings.regret_rule
    follow = _follow(of_regrets, settings, source, enough)
    return best_of_n(utilities, "regret", best=best, regret_rule=follow, **_limits(of_regrets, settings, enough))


def _limits(rule: str, settings: MaxMinConfigMixin, enough: torch.Tensor | None) -> dict[str, Any]:
    # Rules that are followed step by step have the floor in their weights already.
    floor = settings.welfare_floor if rule in _SOLVED else 0.0
    return {"floor": floor, "among": None if rule == "mixing" else enough}


def _follow(rule: str, settings: MaxMinConfigMixin, source: Any, enough: torch.Tensor | None) -> Any:
    """A rule as [`best_of_n`] takes it: by name where it is solved exactly, else the trainers' own rule at work."""
    if rule in (*_SOLVED, "sample_min"):
        return rule
    settings = replace(settings, welfare=rule, welfare_window=1)

    def weigh(group_utilities: torch.Tensor) -> torch.Tensor:
        welfare = Welfare(settings, source.names, source.mixing_weights, enough=enough)
        welfare.update(group_utilities)
        return welfare.weights.double()

    return weigh


def _take(replies: Replies, rows: Sequence[int]) -> Replies:
    return Replies(*([getattr(replies, name)[row] for row in rows] for name in ("prompts", "completions", "finished")))
