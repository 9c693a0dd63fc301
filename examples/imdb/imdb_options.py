# SPDX-License-Identifier: Apache-2.0
"""Options of the example."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_POLICY = "../shared/models/imdb-gpt2-4m"
CHOICES = {
    "trainer": ("ppo", "grpo"),
    "utility": ("zscore", "win_rate"),
    "matmul_precision": ("highest", "high", "medium"),
}


def find_folder(name: str) -> Path | None:
    """A folder by its path from the working directory or from the repository; `None` if there is none."""
    return next((path for path in (Path(name), REPOSITORY / name) if path.is_dir()), None)


def option(default, text: str):
    """A field with its help."""
    return field(default=default, metadata={"help": text})


def option_list(default: list, text: str):
    """A field of several values with its help."""
    return field(default_factory=lambda: list(default), metadata={"help": text})


@dataclass
class ImdbArguments:
    """The defaults are the short configuration of `docs/reproduction.md`."""

    data_dir: str = option(
        "../shared/data/imdb", "Folder with the IMDb reviews, or a Hub id such as stanfordnlp/imdb."
    )
    policy: str | None = option(
        None,
        f"Folder or Hub id of a small causal language model to start from; 'none' trains one from scratch. Default: "
        f"{DEFAULT_POLICY} where it exists.",
    )
    output_dir: str = option("imdb-maxmin", "Folder for everything the example writes.")
    seed: int = option(0, "Everything follows from it.")
    batch_size: int = option(64, "Openings, pairs or replies in a step.")
    max_new_tokens: int = option(48, "Length limit of a reply, in tokens.")

    vocab_size: int = option(4096, "From scratch: size of the byte-level BPE vocabulary.")
    width: int = option(256, "From scratch: width of GPT-2.")
    layers: int = option(4, "From scratch: its layers.")
    heads: int = option(8, "From scratch: its attention heads.")
    pretrain_steps: int | None = option(
        None, "Steps on openings of reviews. Default: 100 from a given policy, 2000 from scratch."
    )
    pretrain_learning_rate: float | None = option(
        None, "Their peak learning rate. Default: 3e-4, or 1e-3 from scratch."
    )

    num_annotators: int = option(50, "People who compare replies.")
    minority_share: float = option(0.2, "Share of them who want positive reviews; the others want short ones.")
    preference_prompts: int = option(2500, "Training prompts whose replies are compared.")
    replies_per_prompt: int = option(4, "Replies of the reference policy to each of them.")
    pairs: int = option(300, "Pairs of each annotator to learn from.")
    heldout_pairs: int = option(40, "Further pairs of each annotator, on other prompts, to measure on.")

    train_trunk: bool = option(True, "Train the trunk of the rewards; false: heads on its features.")
    reward_layers: int | None = option(
        None, "Blocks of the policy that the rewards read, from the first; 0: its embeddings; default: all."
    )
    pooling: str = option("auto", "What the heads read: 'auto' (the last token), 'mean' or 'mean_sqrt_len'.")
    kernel_features: int = option(0, "Random Fourier features between a frozen trunk and its heads; 0: linear.")
    prior_scale: float = option(9.0, "Log-odds of a pair under the prior on heads on a frozen trunk (deviation).")
    reward_steps: int = option(200, "Steps of each reward training, where the trunk is trained.")
    reward_learning_rate: float = option(5e-4, "Its peak learning rate.")

    trainer: str = option("ppo", "Algorithm of the policies: 'ppo' or 'grpo'.")
    train_prompts: int = option(384, "Prompts of the policies' training.")
    reference_completions: int = option(4, "Reference replies per prompt that utilities are measured against.")
    policy_steps: int = option(50, "Rollouts of each policy.")
    ppo_epochs: int = option(4, "PPO's passes over a rollout.")
    policy_learning_rate: float = option(1e-4, "Peak learning rate of the policies.")
    utility: str = option("zscore", "Scale on which groups are compared: 'zscore' or 'win_rate'.")
    kl_coef: float = option(0.05, "What a nat of KL to the reference costs, in units of that scale.")
    welfare: str = option("maxmin", "Welfare rule of the MaxMin policy.")
    welfare_step_size: float = option(0.1, "Step size of the rule 'mirror'.")
    oracle: bool = option(False, "Also train max-min on the gold utilities, the ceiling.")
    eval_prompts: int = option(1000, "Prompts from the test split, one reply each.")
    matmul_precision: str = option(
        "highest", "Of float32 products: 'highest', or 'medium' (bfloat16 inside, where the processor has it)."
    )

    def __post_init__(self) -> None:
        if not 0 < self.minority_share < 1:
            raise ValueError(f"minority_share must lie in (0, 1), got {self.minority_share}.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")

    @property
    def policy_folder(self) -> Path | str | None:
        """Where the given policy is; `None`: train one from scratch."""
        if self.policy == "none":
            return None
        if self.policy is None:
            return find_folder(DEFAULT_POLICY)
        return find_folder(self.policy) or self.policy

    @property
    def pretraining(self) -> tuple[int, float]:
        """Steps and peak learning rate on openings of reviews.

        Raises:
            ValueError: no steps, and no policy to start from.
        """
        if self.pretrain_steps == 0 and self.policy_folder is None:
            raise ValueError(
                f"pretrain_steps=0 takes the policy as it is, but there is none at {self.policy or DEFAULT_POLICY}. "
                "Give --policy FOLDER_OR_HUB_ID, or --pretrain_steps 2000 to train one from scratch."
            )
        steps, rate = (2000, 1e-3) if self.policy_folder is None else (100, 3e-4)
        return (
            steps if self.pretrain_steps is None else self.pretrain_steps,
            rate if self.pretrain_learning_rate is None else self.pretrain_learning_rate,
        )


POLICIES = {
    # Which rewards, and which welfare rule.
    "single": ("single", "maxmin"),
    "maxmin": ("mixture", "maxmin"),
    "mirror": ("mixture", "mirror"),
    "sample_min": ("mixture", "sample_min"),
    "utilitarian": ("mixture", "utilitarian"),
    "oracle": ("gold", "maxmin"),
}
# What may differ between the cells of a grid, or does not change them.
NOT_SETTINGS = ("data_dir", "policy", "output_dir", "seed", "minority_share", "trainer", "oracle", "welfare")


@dataclass
class GridArguments(ImdbArguments):
    """A grid of shares, policies and seeds; a cell that is there is not run again."""

    shares: list[float] = option_list([0.2], "Minority shares.")
    policies: list[str] = option_list(["single", "maxmin"], f"Out of {', '.join(POLICIES)}.")
    seeds: list[int] = option_list([0, 1], "Each draws annotators, preferences, EM, training and test prompts anew.")
    processes: int = option(2, "Seeds that run at the same time, each on one thread.")
    reference_seed: int = option(0, "Of the reference policy, which all cells share.")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.policies if name not in POLICIES]
        if unknown or not self.policies:
            raise ValueError(f"policies must be some of {', '.join(POLICIES)}, got {self.policies}.")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares must lie in (0, 1), got {self.shares}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be given, each once, got {self.seeds}.")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}.")

    def settings(self) -> dict[str, Any]:
        """What must be equal for cells to be compared."""
        names = [f.name for f in fields(ImdbArguments) if f.name not in NOT_SETTINGS]
        return {name: getattr(self, name) for name in names} | {"reference_seed": self.reference_seed}
