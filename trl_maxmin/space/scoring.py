# SPDX-License-Identifier: Apache-2.0
"""Everything the buttons compute: answers side by side, their utility for every group, and the line in words."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..functional.utility import MIN_REFERENCE_COMPLETIONS, zscore_utility
from ..models import MixtureRewardModel
from ..models.base import pick_device
from ..models.loading import load_tokenizer
from ..trainer.scoring.batch import RewardBatch
from ..trainer.scoring.models import MixtureReward
from ..trainer.scoring.reference_statistics import ReferenceStatistics, truncated_are_left_out
from .config import MAX_POLICIES, SpaceConfig
from .limits import Refused, check_request
from .policies import Policy, Settings, as_prompt, load_or_explain
from .run_data import RunData


logger = logging.getLogger(__name__)

_CALIBRATION_PROMPTS = 8
_CACHED_PROMPTS = 256
_POOL_PROMPTS = 16
NAMES = {"reference": "Reference", "single": "Single reward", "maxmin": "MaxMin", "oracle": "MaxMin on gold utilities"}
"""How the page calls the policies of a run; other policies are called by their own names."""

Scored = dict[str, list[tuple[str, str, dict[str, float]]]]
"""Policy -> [(prompt, answer, group -> utility), ...]."""


@dataclass(frozen=True)
class Scale:
    """What the numbers of utilities mean.

    Args:
        zero (`str`, *optional*): `prompt`, the mean of the reference policy's answers to the prompt; `stored`, the
            mean that the mixture was calibrated with; `None`, none that the groups have in common.
        unit (`bool`): whether 1 is a standard deviation of the reference policy's answers; otherwise it is 1 of the
            learned rewards, in log-odds.

    Example:

    >>> Scale(None, False).words
    'Scale: the learned rewards as they are, in log-odds. Groups have no zero in common, so compare policies only.'
    """

    zero: str | None = "prompt"
    unit: bool = True

    @property
    def words(self) -> str:
        """The caption."""
        if self.zero is None:
            return (
                "Scale: the learned rewards as they are, in log-odds. Groups have no zero in common, so compare "
                "policies only."
            )
        zero, those = {
            "prompt": ("the reference policy's answers to this prompt", "its answers"),
            "stored": ("the answers that the reward mixture was calibrated on", "those answers"),
        }[self.zero]
        unit = f"one standard deviation of {those}" if self.unit else "one log-odds of the learned rewards"
        return f"Scale: 0 is what {zero} get on average, 1 is {unit}; the same scale for all policies and groups."


@dataclass(frozen=True)
class Answer:
    """One policy's answer.

    Args:
        policy (`str`): its name.
        text (`str`): so far, as the model wrote it (not escaped).
        finished (`bool`): whether it ended by itself.
        done (`bool`): whether nothing will follow.
        utilities (`dict[str, float]`, *optional*): group -> utility. `None` while it is written, without a mixture, or
            where the zero is not known.
        scale ([`Scale`]): what those numbers mean.
        left_out (`tuple[str, ...]`): groups whose utility is no finite number.
        ids (`tuple[int, ...]`): its tokens in the policy's vocabulary; empty where only the text is known.
    """

    policy: str
    text: str
    finished: bool = False
    done: bool = False
    utilities: dict[str, float] | None = None
    scale: Scale = Scale()
    left_out: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def worst_group(self) -> str | None:
        """The group that this answer serves least; `None` where groups cannot be compared."""
        if not self.utilities or len(self.utilities) < 2 or self.left_out or self.scale.zero is None:
            return None
        return min(self.utilities, key=lambda group: self.utilities[group])


def label(policy: str) -> str:
    """How the page calls a policy.

    Example:

    >>> label("maxmin"), label("me/mine")
    ('MaxMin', 'me/mine')
    """
    return NAMES.get(policy, policy)


def describe_difference(difference: float, unit: bool = True) -> str:
    """A difference of utilities in words: below 0.05 equal, below 0.3 slightly, from 1.5 much.

    Args:
        difference (`float`): of two utilities.
        unit (`bool`): whether they are in standard deviations; otherwise nobody knows what is much.

    Example:

    >>> describe_difference(0.8), describe_difference(-0.1), describe_difference(0.01), describe_difference(-2)
    ('better', 'slightly worse', 'about equal', 'much worse')
    """
    if abs(difference) < 0.05:
        return "about equal"
    much = "much " if abs(difference) >= 1.5 else "slightly " if abs(difference) < 0.3 else ""
    return (much if unit else "") + ("better" if difference > 0 else "worse")


def compare_words(answers: Sequence[Answer]) -> list[tuple[str, str, float]]:
    """What the featured policy's answer is to each group, against the baseline's.

    Args:
        answers (`Sequence[Answer]`): finished, with utilities.

    Returns:
        `list` of (group, words, difference), the largest gain first; empty where there is nothing to compare. See
        [`featured`] for which two policies.
    """
    pair = featured([answer.policy for answer in answers])
    by_name = {answer.policy: answer for answer in answers}
    if pair is None or any(by_name[name].utilities is None for name in pair):
        return []
    ours, theirs = (by_name[name].utilities or {} for name in pair)
    rows = [(group, ours[group] - theirs[group]) for group in ours if group in theirs]
    rows.sort(key=lambda row: -row[1])
    return [(group, describe_difference(value, by_name[pair[0]].scale.unit), value) for group, value in rows]


def featured(names: Sequence[str]) -> tuple[str, str] | None:
    """Policy and baseline of the line in words: MaxMin (or the last one) against the single reward (or the first).

    Example:

    >>> featured(["reference", "single", "maxmin"]), featured(["reference", "mine"]), featured(["maxmin"])
    (('maxmin', 'single'), ('mine', 'reference'), None)
    """
    if len(names) < 2:
        return None
    ours = "maxmin" if "maxmin" in names else names[-1]
    others = [name for name in names if name != ours]
    return ours, "single" if "single" in others else others[0]


class Studio:
    """Models and results of one Space, loaded once; every method may be called from several threads.

    Args:
        config ([`SpaceConfig`]): what to show.
        policies (`dict[str, Policy]`): loaded policies.
        mixture ([`MixtureRewardModel`], *optional*): loaded mixture, with its tokenizer.
        run ([`RunData`], *optional*): results of the run.
        problems (`Sequence[str]`, *optional*): sentences for the page about what could not be loaded.
    """

    def __init__(
        self,
        config: SpaceConfig,
        policies: Mapping[str, Policy],
        mixture: Any = None,
        run: RunData | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.policies = dict(policies)
        self.mixture = mixture
        self.run = run or RunData()
        self.problems = list(problems)
        self.prompts = list(dict.fromkeys(config.prompts or self.run.prompts))
        # Prompt -> rewards (M, G) of the reference policy's answers to it, and whether each finished (M,).
        self._baselines: OrderedDict[str, tuple[torch.Tensor, torch.Tensor] | None] = OrderedDict()
        self._lock = threading.Lock()
        self._sources: dict[str, MixtureReward] = {}
        self.recorded: Scored | None = None
        # Of the reference policy's answers to the first prompts: the unit of the utilities.
        self._measured: ReferenceStatistics | None = None
        self._drops_truncated: bool | None = None

    @classmethod
    def load(cls, config: SpaceConfig) -> Studio:
        """Load all that the settings name; what cannot be loaded becomes a sentence on the page.

        Raises:
            ValueError: the settings name nothing.
        """
        config.check()
        problems: list[str] = []
        policies, mixture = {}, None
        for name, source in config.policies.items():
            load = partial(Policy.load, name, source, config.dtype, config.device, config.chat_template_kwargs)
            if (policy := load_or_explain(f"The policy {name!r}", source, problems, load)) is not None:
                policies[name] = policy
        if config.mixture is not None:
            load = partial(_load_mixture, config)
            mixture = load_or_explain("The reward mixture", config.mixture, problems, load)
        run, unread = RunData.load(config)
        studio = cls(config, policies, mixture, run, problems + unread)
        studio.prepare()
        return studio

    @property
    def groups(self) -> list[str]:
        """Names of the mixture's components that describe anybody; they stand for the groups."""
        if self.mixture is None:
            return []
        return [self.mixture.component_names[k] for k in self.mixture.described_components]

    @property
    def max_length(self) -> int:
        """Longest answer that can be asked for, in tokens: half of the smallest context at most."""
        contexts = [policy.context for policy in self.policies.values() if policy.context]
        return max(1, min([self.config.max_new_tokens, *(context // 2 for context in contexts)]))

    def prepare(self) -> None:
        """Find the unit of the utilities: the spread of the reference policy's answers, as the trainers measure it,
        or else the one that the mixture was calibrated with."""
        enough = self.config.baseline_replies >= MIN_REFERENCE_COMPLETIONS
        if not (enough and self._has_baseline and self.prompts):
            return
        try:
            self._measure()
        except Exception:  # whatever the models raise, the page must come up
            logger.exception("the scale of the utilities could not be measured")
        if self._measured is None and not self._calibrated:
            self.problems.append(
                "The spread of the reference policy's answers could not be measured, so utilities are in the "
                "units of the learned rewards."
            )

    def _measure(self) -> None:
        """Leaves `None` where no prompt's answers can be scored."""
        found = {prompt: self._baseline(prompt) for prompt in self.prompts[:_CALIBRATION_PROMPTS]}
        scored = {prompt: own for prompt, own in found.items() if own is not None and own[0].isfinite().all()}
        if scored:
            keys = [prompt for prompt, (rewards, _) in scored.items() for _ in range(len(rewards))]
            rewards, finished = (torch.cat(parts) for parts in zip(*scored.values(), strict=True))
            self._drops_truncated = truncated_are_left_out(finished)
            self._measured = ReferenceStatistics.from_rewards(self.groups, keys, rewards, finished=finished)

    @property
    def _calibrated(self) -> bool:
        return bool((self.mixture.reward_shift != 0).any() or (self.mixture.reward_scale != 1).any())

    @property
    def _has_baseline(self) -> bool:
        """Whether the zero is that of the reference policy's answers to each prompt."""
        return self.mixture is not None and self._reference is not None and self.config.baseline_replies > 0

    @property
    def scale(self) -> Scale:
        """What the numbers of utilities mean on this page."""
        zero = "prompt" if self._has_baseline else "stored" if self._calibrated else None
        return Scale(zero, self._measured is not None or self._calibrated)

    @property
    def _reference(self) -> Policy | None:
        return self.policies.get(self.config.reference)

    def random_prompt(self, other_than: str = "") -> str:
        """One of the evaluation's prompts; empty where there are none."""
        others = [prompt for prompt in self.prompts if prompt != other_than] or self.prompts
        return random.choice(others) if others else ""

    def compare(self, prompt: str, names: Sequence[str], settings: Settings) -> Iterator[list[Answer]]:
        """Answers side by side, growing; the last state has the utilities.

        Args:
            prompt (`str`): the visitor's.
            names (`Sequence[str]`): two to four policies.
            settings ([`Settings`]): temperature, seed and length.

        Yields:
            `list[Answer]`, in the order of `names`.

        Raises:
            Refused: with a sentence for the visitor; before anything is computed.
        """
        encoded = self.check(prompt, names, settings)
        names = list(encoded)
        streams = {name: self.policies[name].stream(ids, settings) for name, ids in encoded.items()}
        answers = {name: Answer(name, "") for name in names}
        while streams:
            for name in list(streams):
                reply = next(streams[name])
                answers[name] = Answer(name, reply.text, reply.finished, reply.done, ids=tuple(reply.ids))
                if reply.done:
                    streams.pop(name).close()
            yield list(answers.values())
        yield self.with_utilities(prompt, list(answers.values()))

    def check(self, prompt: str, names: Sequence[str], settings: Settings) -> dict[str, list[int]]:
        """Whether a request may be answered; nothing here needs a GPU.

        Returns:
            `dict[str, list[int]]`: policy -> token ids of the prompt, in the order of the page.

        Raises:
            Refused: with a sentence for the visitor.
        """
        check_request(prompt, settings, self.config.max_prompt_characters, self.max_length)
        length = int(settings.length)
        names = [name for name in self.policies if name in set(names)]
        if not min(2, len(self.policies)) <= len(names) <= MAX_POLICIES or not names:
            raise Refused(f"Please choose two to {MAX_POLICIES} policies.")
        encoded = {name: self._encode(name, prompt, length) for name in names}
        if self._has_baseline and self.config.reference not in encoded:
            self._encode(self.config.reference, prompt, length)  # it answers too, for the zero
        return encoded

    def _encode(self, name: str, prompt: str, length: int) -> list[int]:
        policy = self.policies[name]
        ids = policy.encode(prompt)
        room = (policy.context or 10**9) - length
        if not ids:
            raise Refused("Please write a prompt with at least one word that the models know.")
        if len(ids) > room:
            raise Refused(
                f"This prompt has {len(ids)} tokens; with answers of {length} tokens the models here read at most "
                f"{room}. Please shorten the prompt, or the answers."
            )
        return ids

    def with_utilities(self, prompt: str, answers: Sequence[Answer]) -> list[Answer]:
        """The answers with their utility for every group.

        Unchanged where there is no mixture, and where it cannot read the answers or those that set the zero.
        """
        if self.mixture is None:
            return list(answers)
        rewards = self._rewards(prompt, answers)
        utilities = None if rewards is None else self._utilities(prompt, rewards)
        if utilities is None:
            return list(answers)
        scored = []
        for answer, row in zip(answers, utilities.tolist(), strict=True):
            found = dict(zip(self.groups, row, strict=True))
            numbers = {group: value for group, value in found.items() if math.isfinite(value)}
            left_out = tuple(group for group in found if group not in numbers)
            scored.append(replace(answer, utilities=numbers, scale=self.scale, left_out=left_out))
        return scored

    def _utilities(self, prompt: str, rewards: torch.Tensor) -> torch.Tensor | None:
        """`(N, G)` from rewards `(N, G)`; `None` where the answers that set the zero cannot be scored."""
        groups = self.mixture.described_components
        stored = self.mixture.reward_shift[groups], self.mixture.reward_scale[groups]
        if not self._has_baseline:
            return zscore_utility(rewards, *stored)
        found = self._baseline(prompt)
        if found is None:
            return None
        replies, finished = found
        drops = truncated_are_left_out(finished) if self._drops_truncated is None else self._drops_truncated
        if drops:
            replies = torch.where(finished.unsqueeze(1), replies, torch.nan)
        shift, scale = (replies.nanmean(0), stored[1])
        if self._measured is not None:
            shift, scale = self._measured.shift, self._measured.scale
        statistics = ReferenceStatistics(self.groups, [prompt], replies.unsqueeze(0), shift, scale)
        return statistics.utilities(rewards, [prompt] * len(rewards))

    def _rewards(self, prompt: str, answers: Sequence[Answer]) -> torch.Tensor | None:
        """`(N, G)` for the groups, or `None` where the prompt is too long for the reward model."""
        columns: dict[int, torch.Tensor] = {}
        try:
            for name in dict.fromkeys(answer.policy for answer in answers):
                rows = [row for row, answer in enumerate(answers) if answer.policy == name]
                rewards = self._scored(prompt, name, [answers[row] for row in rows])
                columns |= zip(rows, rewards.cpu(), strict=True)
        except ValueError:
            return None
        return torch.stack([columns[row] for row in range(len(answers))])

    def _scored(self, prompt: str, name: str, answers: Sequence[Answer]) -> torch.Tensor:
        """Rewards of one policy's answers, by the tokens that it wrote where they are known."""
        policy = self.policies.get(name)
        if name not in self._sources:
            self._sources[name] = MixtureReward(self.mixture, policy.tokenizer if policy else None)
        source, count = self._sources[name], len(answers)
        by_ids = policy is not None and source.reads_ids and all(answer.ids for answer in answers)
        return source(
            RewardBatch(
                prompts=[policy.as_prompt(prompt) if by_ids else as_prompt(self.mixture.processing_class, prompt)]
                * count,
                completions=[answer.text for answer in answers],
                prompt_ids=[policy.encode(prompt)] * count if by_ids else None,
                completion_ids=[list(answer.ids) for answer in answers] if by_ids else None,
                finished=[answer.finished for answer in answers],
                chat_template_kwargs=self.config.chat_template_kwargs,
            )
        )

    def _baseline(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rewards `(M, G)` of the reference policy's answers to a prompt and whether each finished `(M,)`, remembered
        for the last prompts.

        `None` where prompt and answers are longer than the reference policy or the reward model reads.
        """
        with self._lock:
            if prompt in self._baselines:
                self._baselines.move_to_end(prompt)
                return self._baselines[prompt]
        reference = self._reference
        assert reference is not None
        ids = reference.encode(prompt)
        length = min(self.max_length, (reference.context or 10**9) - len(ids))
        found = None
        if ids and length > 0:
            settings = Settings(temperature=1.0, seed=0, length=length)
            replies = reference.sample(ids, settings, self.config.baseline_replies)
            name = self.config.reference
            rewards = self._rewards(prompt, [Answer(name, r.text, r.finished, ids=tuple(r.ids)) for r in replies])
            if rewards is not None:
                found = rewards, torch.tensor([reply.finished for reply in replies])
        with self._lock:
            self._baselines[prompt] = found
            while len(self._baselines) > _CACHED_PROMPTS:
                self._baselines.popitem(last=False)
        return found

    def extremes(self, group: str) -> dict[str, tuple[list[tuple], list[tuple]]]:
        """Of each policy's recorded answers, the best and the worst for a group.

        Returns:
            `dict`: policy -> (best, worst), each a list of (prompt, answer, utility), the most extreme first; answers
            of one policy are on one side only.
        """
        if self.mixture is None or group not in self.groups or not self.run.replies:
            return {}
        if self.recorded is None:
            self.recorded = self.score_recorded()
        result = {}
        for policy, rows in self.recorded.items():
            known = ((p, text, values[group]) for p, text, values in rows if group in values)
            ranked = sorted(known, key=lambda row: -row[2])
            if ranked:
                own = min(3, max(1, len(ranked) // 2))
                result[policy] = (ranked[:own], ranked[::-1][:own] if len(ranked) > 1 else [])
        return result

    def score_recorded(self) -> Scored:
        """Utilities of the recorded answers to the first prompts; empty without a mixture."""
        found: Scored = {}
        for prompt in list(self.run.replies)[:_POOL_PROMPTS] if self.mixture is not None else []:
            answers = [Answer(p, text, finished) for p, text, finished in self.run.replies[prompt]]
            for answer in self.with_utilities(prompt, answers):
                if answer.utilities is not None:
                    found.setdefault(answer.policy, []).append((prompt, answer.text, answer.utilities))
        return {name: found[name] for name in [*self.policies, *found] if name in found}


def _load_mixture(config: SpaceConfig) -> Any:
    load_tokenizer(config.mixture, "mixture")
    mixture = MixtureRewardModel.from_pretrained(config.mixture, use_safetensors=True, argument="mixture")
    return mixture.eval().requires_grad_(False).to(pick_device(config.device))
