# SPDX-License-Identifier: Apache-2.0
"""Configuration of a mixture of reward models."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .limits import MAX_COMPONENTS, require_component_names
from .lora import resolve_lora_config


COMPONENT_TYPES = ("head", "lora", "full")
POOLINGS = ("auto", "mean", "mean_sqrt_len")
MAX_FEATURES = 2**20


class MixtureRewardModelConfig(PreTrainedConfig):
    r"""
    Configuration of a [`MixtureRewardModel`]: K reward components over one base architecture.

    Args:
        base_config (`PreTrainedConfig` or `dict`):
            Configuration of the base model (its `model_type` must be a supported family).
        component_type (`str`, defaults to `"head"`):
            `"head"`: one trunk, K heads, one forward scores all. `"lora"`: one frozen base, K adapters with heads.
            `"full"`: K whole models (the paper's setting).
        num_components (`int`, defaults to `2`):
            K, the number of reward components, up to 1,000. It is not `num_labels`, which stays 1: TRL's reward
            trainer refuses anything else.
        component_names (`list[str]`, *optional*):
            Names of the components, K distinct strings of up to 80 characters without `/`, `\\` and control characters
            (they become folders and parts of Hub ids). Defaults to `component_0`, `component_1`, ...
        mixing_weights (`list[float]`, *optional*):
            Share of annotators that each component describes, on the simplex. Defaults to uniform.
        component_annotators (`list[int]`, *optional*):
            How many annotators each component describes best. Policies are not trained for a component with 0: nobody
            stands behind it. `None`: not known, and every component counts.
        component_pairs (`list[int]`, *optional*):
            How many training pairs these annotators gave. Policies demand a floor of both before a component may be
            the worst-off group.
        evidence_weight (`float`, defaults to `1.0`):
            Weight of an annotator's pairs in their posterior, in (0, 1]:
            `gamma[h, k] proportional to pi_k exp(evidence_weight * L[h, k])`, under the rewards before temperatures
            were divided out. 1: a plain product of likelihoods.
        reward_shift (`list[float]`, *optional*):
            Mean reward of the reference policy's replies per component, Bradley-Terry log-odds. Defaults to zeros.
        reward_scale (`list[float]`, *optional*):
            Spread of the reference policy's rewards within prompts per component, Bradley-Terry log-odds, positive.
            Defaults to ones.
        temperatures (`list[float]`, *optional*):
            Calibration temperatures that were divided out of the heads, for the record. Defaults to ones.
        pooling (`str`, defaults to `"auto"`):
            What the heads read. `"auto"`: what the family's own sequence classifier reads (a decoder's last token, an
            encoder's [CLS]). `"mean"`: the mean over the tokens, the better choice for a frozen encoder.
            `"mean_sqrt_len"`: that mean times the square root of the number of tokens, so that evidence adds up and
            a long text can be surer than a short one. Components with either cannot be exported as plain sequence
            classifiers.
        kernel_features (`int`, defaults to `0`):
            Number of random Fourier features between what is pooled and the heads of `"head"` components, which makes
            the rewards nonlinear in it; even. 0: linear. Such a component cannot be exported either.
        lora (`dict`, *optional*):
            Arguments of the [`~peft.LoraConfig`] of `"lora"` components.
        base_model_name_or_path (`str`, *optional*):
            Hub id or folder of the base of `"lora"` components. `None`: the base is saved beside them, in `base/`.
        base_model_revision (`str`, *optional*):
            Its revision.
        base_quantization (`dict`, *optional*):
            How the base of `"lora"` components was quantised when they were fitted, fields of a `quantization_config`:
            it is loaded so again. `None`: it was not.

    Raises:
        ValueError: unknown `component_type` or `pooling`, K below 1 or above 1,000, `kernel_features` that are odd,
            negative or not of `"head"` components, a list whose length is not K or that holds something else than
            finite numbers, names that repeat or cannot be folders, weights off the simplex, a scale that is not
            positive, numbers of annotators or pairs below 0 or all 0, an `evidence_weight` outside (0, 1].

    Example:

    >>> from transformers import GPT2Config
    >>> config = MixtureRewardModelConfig(base_config=GPT2Config(n_layer=1, n_head=1, n_embd=8), num_components=2)
    >>> config.component_names, config.num_labels
    (['component_0', 'component_1'], 1)
    """

    model_type = "mixture_reward"
    sub_configs = {"base_config": AutoConfig}

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        component_type: str = "head",
        num_components: int = 2,
        component_names: list[str] | None = None,
        mixing_weights: list[float] | None = None,
        reward_shift: list[float] | None = None,
        reward_scale: list[float] | None = None,
        temperatures: list[float] | None = None,
        pooling: str = "auto",
        kernel_features: int = 0,
        lora: dict[str, Any] | None = None,
        base_model_name_or_path: str | None = None,
        base_model_revision: str | None = None,
        base_quantization: dict[str, Any] | None = None,
        component_annotators: list[int] | None = None,
        component_pairs: list[int] | None = None,
        evidence_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_config = base_config if base_config is not None else AutoConfig.for_model("gpt2")
        self.component_type = component_type
        self.num_components = num_components
        # A number that is refused below must not fill the memory first.
        count = num_components if isinstance(num_components, int) and 1 <= num_components <= MAX_COMPONENTS else 1
        self.component_names = component_names or [f"component_{k}" for k in range(count)]
        self.mixing_weights = mixing_weights or [1.0 / count] * count
        self.component_annotators = component_annotators
        self.component_pairs = component_pairs
        self.evidence_weight = evidence_weight
        self.reward_shift = reward_shift or [0.0] * count
        self.reward_scale = reward_scale or [1.0] * count
        self.temperatures = temperatures or [1.0] * count
        self.pooling = pooling
        self.kernel_features = kernel_features
        self.lora = lora
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.base_quantization = base_quantization
        kwargs.pop("num_labels", None)
        kwargs.pop("id2label", None)
        kwargs.pop("label2id", None)
        super().__init__(**kwargs)
        self.num_labels = 1
        self.pad_token_id = self.base_config.pad_token_id
        self._check()

    def _check(self) -> None:
        if self.component_type not in COMPONENT_TYPES:
            raise ValueError(
                f"Unknown component_type {self.component_type!r}. Allowed: {', '.join(map(repr, COMPONENT_TYPES))}."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"Unknown pooling {self.pooling!r}. Allowed: {', '.join(map(repr, POOLINGS))}.")
        width = self.kernel_features
        if not isinstance(width, int) or not 0 <= width <= MAX_FEATURES or width % 2:
            raise ValueError(f"kernel_features must be an even number from 0 to {MAX_FEATURES:,}, got {width!r}.")
        if self.kernel_features and self.component_type != "head":
            raise ValueError(
                f"kernel_features={self.kernel_features} needs component_type='head', whose heads share one trunk; "
                f"got {self.component_type!r}. Set kernel_features=0."
            )
        if not isinstance(self.num_components, int) or not 1 <= self.num_components <= MAX_COMPONENTS:
            raise ValueError(
                f"num_components must be a whole number from 1 to {MAX_COMPONENTS:,}, got {self.num_components!r}."
            )
        self._check_lists()
        if self.component_type == "lora":
            self.lora = resolve_lora_config(self.lora, self.base_config)

    def _check_lists(self) -> None:
        numbers = ["mixing_weights", "reward_shift", "reward_scale", "temperatures"]
        counted = [name for name in ("component_annotators", "component_pairs") if getattr(self, name) is not None]
        numbers += counted
        for name in ("component_names", *numbers):
            entries = getattr(self, name)
            if not isinstance(entries, list | tuple) or len(entries) != self.num_components:
                count = len(entries) if isinstance(entries, list | tuple) else repr(entries)
                raise ValueError(
                    f"{name} has {count} entries, but there are {self.num_components} components. Give one entry per "
                    "component."
                )
            if name in numbers and not all(isinstance(x, Real) and math.isfinite(x) for x in entries):
                raise ValueError(f"{name} must hold finite numbers, got {entries}.")
        require_component_names(self.component_names)
        if len(set(self.component_names)) != self.num_components:
            raise ValueError(f"component_names must be distinct, got {self.component_names}.")
        if min(self.mixing_weights) < 0 or not math.isclose(sum(self.mixing_weights), 1.0, abs_tol=1e-3):
            raise ValueError(f"mixing_weights must be non-negative and sum to 1, got {self.mixing_weights}.")
        for name in counted:
            counts, what = getattr(self, name), "people" if name == "component_annotators" else "pairs"
            if min(counts) < 0 or max(counts) == 0:
                raise ValueError(f"{name} must be numbers of {what}, not all of them 0, got {counts}.")
        if not 0 < self.evidence_weight <= 1:
            raise ValueError(f"evidence_weight must lie in (0, 1], got {self.evidence_weight}; 1 is a plain product.")
        for name in ("reward_scale", "temperatures"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")


AutoConfig.register("mixture_reward", MixtureRewardModelConfig, exist_ok=True)
