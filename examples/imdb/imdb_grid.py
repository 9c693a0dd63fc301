# SPDX-License-Identifier: Apache-2.0
"""One seed of the grid: what its cells share is made once, and a cell that is there is not run again."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imdb_data import load_reviews, prompts
from imdb_gold import GROUPS, GoldUtilities, SentimentOracle
from imdb_options import POLICIES, GridArguments
from imdb_policy import Replies, load_policy, sample, save_policy, start_with_bos
from imdb_report import evaluate, report_rewards, samples
from imdb_stages import Asked, ask_reference, build_reference, collect_preferences, fit_reward, policy_of, train_policy
from rich.console import Console

from trl_maxmin import MixtureRewardModel
from trl_maxmin.trainer.scoring.reference_statistics import RECORD_FILE, ReferenceStatistics


SAMPLES = 3


def cell_path(folder: Path, trainer: str, share: float, policy: str, seed: int) -> Path:
    """File of a cell."""
    return folder / "cells" / f"{trainer}_share{share:.2f}_{policy}_seed{seed}.json"


def read_cell(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A finished cell, or `None`.

    Raises:
        ValueError: it was made with other settings.
    """
    if not path.is_file():
        return None
    cell = json.loads(path.read_text(encoding="utf-8"))
    other = {name: cell["settings"].get(name) for name in settings if cell["settings"].get(name) != settings[name]}
    if other:
        now = {name: settings[name] for name in other}
        raise ValueError(
            f"{path} was made with {other}, and now the settings are {now}. Give another --output_dir, or the "
            "settings of before."
        )
    return cell


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write aside and rename: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def last_kl(log: list[dict[str, Any]]) -> float | None:
    """KL of a reply to the reference in nats, at the end of a log. `None` for GRPO: TRL logs the estimate k3, whose
    mean one token can decide that the policy finds unlikely and the reference does not."""
    kl = [entry["objective/kl"] for entry in log if "objective/kl" in entry]
    return round(float(kl[-1]), 3) if kl else None


def make_reference(arguments: GridArguments, console: Console) -> None:
    """The reference policy of all cells, from `reference_seed`; nothing if it is there."""
    folder = Path(arguments.output_dir) / "reference"
    if (folder / "config.json").is_file():
        return
    reviews = load_reviews(arguments.data_dir)
    rng = np.random.default_rng(arguments.reference_seed)
    aside = folder.with_name("reference.tmp")
    save_policy(*build_reference(arguments, reviews, rng, console), aside)
    aside.rename(folder)


class SeedRun:
    """All cells of one seed.

    Args:
        arguments ([`GridArguments`]): with the seed.
        console (`Console`): where to print.
    """

    def __init__(self, arguments: GridArguments, console: Console) -> None:
        self.arguments, self.console = arguments, console
        self.folder = Path(arguments.output_dir)
        # Each stage has a stream of its own: a share or a policy more does not change what another one draws.
        names = ("replies", "train prompts", "test prompts")
        self.streams = dict(zip(names, np.random.default_rng(arguments.seed).spawn(len(names)), strict=True))

    # -- what all cells of a seed share -------------------------------------------------------------------------------

    @cached_property
    def reviews(self):
        return load_reviews(self.arguments.data_dir)

    @cached_property
    def gold(self) -> GoldUtilities:
        return GoldUtilities(SentimentOracle.fit(self.reviews), self.arguments.max_new_tokens)

    @cached_property
    def loaded(self):
        model, tokenizer = load_policy(str(self.folder / "reference"))
        start_with_bos(tokenizer)
        return model.eval(), tokenizer

    @cached_property
    def asked(self) -> Asked:
        return ask_reference(self.arguments, self.reviews, *self.loaded, self.streams["replies"])

    @cached_property
    def train_prompts(self) -> list[str]:
        texts = self.reviews.for_training
        return prompts(texts, self.loaded[1], self.arguments.train_prompts, self.streams["train prompts"])

    @cached_property
    def test(self) -> tuple[list[str], Replies]:
        """Test prompts, none of which is a training prompt, and the reference's replies to them."""
        count, rng = self.arguments.eval_prompts, self.streams["test prompts"]
        asked = prompts(self.reviews.test, self.loaded[1], count, rng, exclude=self.train_prompts)
        return asked, sample(*self.loaded, asked, self.arguments.max_new_tokens, self.arguments.seed)

    # -- a share ------------------------------------------------------------------------------------------------------

    def rewards(self, share: float) -> tuple[dict[str, MixtureRewardModel], dict[str, Any]]:
        """The single reward and the mixture of a share, and what EM found; from the folder if they are there."""
        folder = self.folder / f"seed{self.arguments.seed}" / f"share{share:.2f}"
        if not (folder / "em.json").is_file():
            self._fit(share, folder)
        models = {name: MixtureRewardModel.from_pretrained(folder / name) for name in ("single", "mixture")}
        return models, json.loads((folder / "em.json").read_text(encoding="utf-8"))

    def _fit(self, share: float, folder: Path) -> None:
        start = time.process_time()
        arguments, (reference, tokenizer) = self.arguments, self.loaded
        arguments.minority_share = share
        rng = np.random.default_rng([arguments.seed, round(1000 * share)])
        data = collect_preferences(arguments, self.gold, self.asked, rng)
        mixture = fit_reward(arguments, reference, tokenizer, data, 2, self.console)
        single = fit_reward(arguments, reference, tokenizer, data, 1, self.console, encoded=mixture)
        em = report_rewards(single, mixture, data)
        em |= {"gold_correlation": round(data.gold_correlation, 4), "gold_noise": data.gold_noise}
        for name, trainer in (("single", single), ("mixture", mixture)):
            trainer.mixture.save_pretrained(folder / name)
        write_json(folder / "em.json", {**em, "cpu_seconds": round(time.process_time() - start, 1)})

    def _statistics(self, share: float, rewards: str) -> tuple[Path, ReferenceStatistics | None]:
        """The reference's replies, scored; policies on the same rewards share them."""
        folder = self.folder / f"seed{self.arguments.seed}" / f"share{share:.2f}" / f"calibration_{rewards}"
        folder = folder.with_name(f"{folder.name}_{self.arguments.trainer}")
        return folder, ReferenceStatistics.load(folder) if (folder / RECORD_FILE).is_file() else None

    # -- a cell -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Every cell of the seed that is not there yet."""
        arguments = self.arguments
        torch.set_float32_matmul_precision(arguments.matmul_precision)
        for share in arguments.shares:
            for policy in arguments.policies:
                path = cell_path(self.folder, arguments.trainer, share, policy, arguments.seed)
                if read_cell(path, arguments.settings()) is None:
                    cell = self._cell_of_another_share(policy) or self.cell(share, policy)
                    write_json(path, {**cell, "minority_share": share})
                    self.console.print(f"wrote {path.name}", highlight=False)

    def _cell_of_another_share(self, policy: str) -> dict[str, Any] | None:
        """The oracle is told what each group wants; how many people want it changes nothing in its training."""
        arguments = self.arguments
        if POLICIES[policy][0] != "gold":
            return None
        paths = (cell_path(self.folder, arguments.trainer, s, policy, arguments.seed) for s in arguments.shares)
        return next((cell for path in paths if (cell := read_cell(path, arguments.settings()))), None)

    def cell(self, share: float, policy: str) -> dict[str, Any]:
        """Train one policy and ask the gold utilities about it."""
        arguments, (reference, tokenizer) = self.arguments, self.loaded
        kind, welfare = POLICIES[policy]
        models, em = self.rewards(share)
        reward = models.get(kind) or self.gold.reward_functions(tokenizer.eos_token_id, em["gold_noise"])
        folder, statistics = self._statistics(share, kind)
        prompts_of_training, (asked, before) = self.train_prompts, self.test
        start, wall = time.process_time(), time.perf_counter()
        name = f"seed{arguments.seed}_share{share:.2f}_{policy}"
        trainer = train_policy(
            arguments,
            name,
            reference,
            tokenizer,
            reward,
            prompts_of_training,
            self.console,
            welfare=welfare,
            statistics=statistics,
        )
        if statistics is None:
            trainer.reference_statistics.save(folder)
        seconds = {"cpu": round(time.process_time() - start, 1), "wall": round(time.perf_counter() - wall, 1)}
        after = sample(policy_of(trainer), tokenizer, asked, arguments.max_new_tokens, arguments.seed + 1)
        found = evaluate(self.gold, asked, {"reference": before, policy: after})
        return {
            "trainer": arguments.trainer,
            "minority_share": share,
            "policy": policy,
            "seed": arguments.seed,
            "groups": list(GROUPS),
            "minority": GROUPS[-1],
            "gold_utility": found["gold_utility"],
            "win_rate": found["win_rate"][policy],
            "replies": found["replies"],
            "num_prompts": found["num_prompts"],
            "kl_last": last_kl(trainer.state.log_history),
            "em": em if kind in models else None,
            "samples": samples(asked, {"reference": before, policy: after}, SAMPLES),
            "training_seconds": seconds,
            "settings": arguments.settings(),
        }
