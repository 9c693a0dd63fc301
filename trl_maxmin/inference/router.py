# SPDX-License-Identifier: Apache-2.0
"""Which policy answers whom: from a few of a person's choices to the policy of their component, or to the policy for
all where that is not sure enough.

Nothing here is written or sent: annotator ids and posteriors stay in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from ..data.columns import ANNOTATOR_COLUMN
from ..models.base import pick_device
from ..models.loading import add_adapter, load_config, load_pretrained, load_tokenizer
from ..models.modeling_mixture_reward import MixtureRewardModel
from ..reading import read_json_object


#: Of the posterior. At 0.8 routing pays where a wrong policy costs at most four times what the right one gains.
THRESHOLD = 0.8

Source = str | tuple[PreTrainedModel, PreTrainedTokenizerBase]


class Route(NamedTuple):
    """Where a person goes.

    Args:
        annotator_id (`str` or `int`): who.
        component (`str` or `None`): whose policy answers; `None`: the policy for all.
        best (`str`): the most probable component, whether or not it is sure enough.
        probability (`float`): of `best`, the smaller of its posterior with the components' shares as prior and with
            equal ones.
        num_pairs (`int`): how many choices it rests on.
    """

    annotator_id: str | int
    component: str | None
    best: str
    probability: float
    num_pairs: int


def break_even(gain: float, loss: float) -> float:
    """The posterior from which a component's own policy is expected to serve a person better than the policy for all.

    With probability p the person belongs to the component and gains; otherwise they lose. Both are worth the same at
    `p gain = (1 - p) loss`.

    Args:
        gain (`float`): utility of the own policy minus that of the policy for all, for people of the component.
        loss (`float`): utility of the policy for all minus that of this policy, for the people it serves worst.

    Returns:
        `float`: in [0, 1]; 1 (never) where there is nothing to gain, 0 where there is nothing to lose.

    Example:

    >>> break_even(0.5, 2.0), break_even(0.5, -0.1), break_even(-0.1, 0.5)
    (0.8, 0.0, 1.0)
    """
    if gain <= 0:
        return 1.0
    return max(loss, 0.0) / (gain + max(loss, 0.0))


def thresholds_from(
    results: Mapping[str, Any], policies: Mapping[str, str], fallback: str, measure: str = "utility"
) -> dict[str, float]:
    """A threshold for each component from what `trl-maxmin evaluate` measured, see [`break_even`].

    Args:
        results (`dict`): of `evaluation.json`.
        policies (`Mapping[str, str]`): component -> name of its own policy there.
        fallback (`str`): name of the policy for all.
        measure (`str`): `"utility"` or `"win_rate"`.

    Returns:
        `dict[str, float]`: component -> posterior from which on its policy is used. The loss is that of the group that
        the policy serves worst, so nobody is expected to lose by being taken for somebody else.

    Raises:
        ValueError: a policy or a component that was not measured.

    Example:

    >>> group = lambda value: {"utility": {"mean": value}}
    >>> table = {"own": {"by_group": {"a": group(2.0), "b": group(-1.0)}},
    ...          "all": {"by_group": {"a": group(1.0), "b": group(1.0)}}}
    >>> thresholds_from({"policies": table}, {"a": "own"}, "all")
    {'a': 0.667}
    """
    table, kinds = results.get("policies", {}), results.get("groups", {})
    names = [fallback, *policies.values()]
    if missing := [name for name in names if name not in table]:
        raise ValueError(f"The evaluation has no policy {missing[0]!r}; it has {', '.join(table)}.")
    means = {
        name: {group: entry[measure]["mean"] for group, entry in table[name]["by_group"].items() if measure in entry}
        for name in names
    }
    found = {}
    for component, name in policies.items():
        if component not in means[name] or component not in means[fallback]:
            groups = ", ".join(means[name]) or "none"
            raise ValueError(f"The evaluation did not measure the {measure} of {component!r}; groups: {groups}.")
        kind = kinds.get(component)
        others = [group for group in means[name] if group != component and kinds.get(group) == kind]
        loss = max((means[fallback][group] - means[name][group] for group in others), default=0.0)
        found[component] = break_even(means[name][component] - means[fallback][component], loss)
    return found


@dataclass
class PolicyRouter:
    """Picks, for a person, the policy of the component that describes them, or the policy for all.

    A person is routed where the posterior of one component reaches its threshold, under two priors: the shares of the
    components, and equal shares. The second keeps a majority's prior from deciding: people of whom nothing is known
    would otherwise get the majority's policy. Posteriors are those of [`~MixtureRewardModel.assign`], as sure as they
    should be by the mixture's `evidence_weight`.

    Args:
        mixture ([`MixtureRewardModel`]): who belongs where; with its tokenizer.
        policies (`Mapping[str, str or (model, tokenizer)]`): component -> its policy: a folder or Hub id, or a loaded
            pair. LoRA adapters of one base are put on one copy of it and switched. A component without a policy gets
            the policy for all.
        fallback (`str` or `(model, tokenizer)`): the policy for all, for instance MaxMin's.
        threshold (`float` or `Mapping[str, float]`): posterior from which on a component's own policy is used, for
            instance of [`thresholds_from`]; 0.8 by default.
        min_pairs (`int`): choices below which everybody gets the policy for all.
        dtype (`str`, *optional*): of the policies' weights.
        device (`str`, *optional*): where policies that are loaded go; the accelerator where there is one.

    Raises:
        ValueError: a component that the mixture does not have, a threshold outside [0, 1].

    Example:

    ```python
    router = PolicyRouter(mixture, {"brief": "policy-brief", "warm": "policy-warm"}, fallback="policy-maxmin")
    route = router.route_one([{"prompt": "Hi", "chosen": "Hello.", "rejected": "Hello to you, my dear friend!"}])
    model, tokenizer = router.policy(route.component)
    ```
    """

    mixture: MixtureRewardModel
    policies: Mapping[str, Source]
    fallback: Source
    threshold: float | Mapping[str, float] = THRESHOLD
    min_pairs: int = 1
    dtype: str | None = None
    device: str | None = None
    _bases: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = field(default_factory=dict, repr=False)
    _adapters: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        described = [self.mixture.component_names[k] for k in self.mixture.described_components]
        limits = self.threshold if isinstance(self.threshold, Mapping) else {}
        for name in (*self.policies, *limits):
            if name not in described:
                raise ValueError(f"The mixture has no component {name!r} that describes anybody: {described}.")
        for value in limits.values() if limits else [self.threshold]:
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"threshold is {value}, but must be in [0, 1]; 1 routes nobody who can be doubted.")
        if self.min_pairs < 1:
            raise ValueError(f"min_pairs is {self.min_pairs}, but must be at least 1: nothing is known without one.")
        for source in (*self.policies.values(), self.fallback):
            if isinstance(source, str):
                load_config(source, "`policies`")

    def route(
        self, preferences: Dataset, annotator_column: str = ANNOTATOR_COLUMN, batch_size: int = 64
    ) -> list[Route]:
        """Where the people go whose choices these are.

        Args:
            preferences (`Dataset`): pairs or rankings with an annotator column, as for
                [`~MixtureRewardModel.assign`].
            annotator_column (`str`): who chose.
            batch_size (`int`): sequences per forward.

        Returns:
            `list[Route]`: one a person, in order of first appearance.

        Raises:
            ValueError: as [`~MixtureRewardModel.assign`].
        """
        found = self.mixture.assign(preferences, annotator_column=annotator_column, batch_size=batch_size)
        posterior = found.probabilities
        evidence = posterior / self.mixture.mixing_weights.to(posterior).clamp_min(torch.finfo(posterior.dtype).tiny)
        equal = evidence / evidence.sum(dim=1, keepdim=True)
        sure = torch.minimum(posterior, equal)
        names, routes = self.mixture.component_names, []
        counts = found.num_pairs.tolist()
        for who, row, best, count in zip(found.annotator_ids, sure.tolist(), found.best.tolist(), counts, strict=True):
            name = names[best]
            reached = row[best] >= self._threshold(name) and count >= self.min_pairs and name in self.policies
            routes.append(Route(who, name if reached else None, name, row[best], count))
        return routes

    def route_one(self, pairs: Sequence[Mapping[str, Any]]) -> Route:
        """Where one person goes.

        Args:
            pairs (`Sequence[dict]`): their choices, with the columns `prompt`, `chosen` and `rejected`; none is
                allowed: the policy for all then.

        Returns:
            [`Route`]: with the `annotator_id` 0.

        Raises:
            ValueError: as [`~MixtureRewardModel.assign`].
        """
        if not pairs:
            shares = self.mixture.mixing_weights
            best = int(shares.argmax())
            sure = min(shares[best].item(), 1.0 / len(shares))
            return Route(0, None, self.mixture.component_names[best], sure, 0)
        return self.route(Dataset.from_list([{**pair, ANNOTATOR_COLUMN: 0} for pair in pairs]))[0]

    def policy(self, component: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The policy of a component, or (`None`) the one for all; loaded when it is first asked for.

        Adapters on one base share it: the model that is returned has this policy's adapter on until the next call, so
        answer before asking for another. Not for several threads at the same time.

        Args:
            component (`str`, *optional*): of [`Route`].

        Returns:
            `(model, tokenizer)`: in evaluation mode.

        Raises:
            ValueError: no policy of that name, or weights that are not whole.
            OSError: a Hub id that cannot be reached.
        """
        if component is not None and component not in self.policies:
            raise ValueError(f"There is no policy of {component!r}; there are {', '.join(self.policies)}.")
        source = self.fallback if component is None else self.policies[component]
        if not isinstance(source, str):
            return source
        base = _base_of(source)
        if base is None:
            # A whole model may also be the base of adapters, which are off for it.
            model, tokenizer = self._load(source)
            if getattr(model, "peft_config", None):
                model.disable_adapters()
            return model, tokenizer
        return self._with_adapter(source, base)

    def _with_adapter(self, source: str, base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = self._load(base, source)
        if source not in self._adapters:
            name = f"policy_{len(self._adapters)}"
            add_adapter(model, source, "`policies`", name)
            self._adapters[source] = name
        model.enable_adapters()
        model.set_adapter(self._adapters[source])
        return model.eval(), load_tokenizer(source, "`policies`", optional=True) or tokenizer

    def _load(self, name: str, adapter: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if name not in self._bases:
            options = {"dtype": self.dtype} if self.dtype else {}
            model = load_pretrained(AutoModelForCausalLM, name, argument="`policies`", **options).eval()
            tokenizer = load_tokenizer(name, "`policies`", optional=adapter is not None)
            model.to(self.device or pick_device())
            self._bases[name] = model, tokenizer or load_tokenizer(adapter or name, "`policies`")
        return self._bases[name]

    def _threshold(self, component: str) -> float:
        if isinstance(self.threshold, Mapping):
            return self.threshold.get(component, THRESHOLD)
        return self.threshold


def _base_of(source: str) -> str | None:
    """Base of an adapter, `None` of a whole model."""
    file = find_adapter_config_file(source)
    if file is None or (Path(source) / "config.json").is_file():
        return None
    base = read_json_object(Path(file)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"The adapter {source} names no base (`base_model_name_or_path` of adapter_config.json).")
    return base
