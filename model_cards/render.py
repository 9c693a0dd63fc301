# SPDX-License-Identifier: Apache-2.0
"""Render the cards of this folder from the run record beside it: `make cards`."""

from __future__ import annotations

from pathlib import Path

from trl_maxmin.hub.cards import (
    CardContext,
    component_card,
    dataset_card,
    mixture_card,
    policy_card,
    read_record,
    space_card,
)
from trl_maxmin.run_record import RunRecord


HERE = Path(__file__).resolve().parent


def render(record: RunRecord) -> dict[str, str]:
    """File name -> card, as `trl-maxmin push maxmin-demo --repo_id me/film --dataset` makes them."""
    names = record.reward["component_names"]
    components = {name: f"me/film-reward-{name}" for name in names}
    mixture, dataset, base = "me/film-mixture", "me/film-evaluation", "me/film-policy-reference"
    policy = CardContext("me/film-policy-maxmin", base_model=base, mixture=mixture, dataset=dataset, figure=True)
    configs = {"results": "results.jsonl", "completions": "completions.jsonl"}
    models = [*components.values(), mixture, base, "me/film-policy-maxmin"]
    cards = {
        "mixture.md": mixture_card(record, CardContext(mixture, components=components)),
        "policy.md": policy_card(record, policy),
        "policy_adapter.md": policy_card(record, policy, peft=True),
        "dataset.md": dataset_card(record, CardContext(dataset, mixture=mixture), configs),
        "space.md": space_card(
            CardContext("me/film-space"),
            models=models,
            datasets=[dataset],
            groups=record.evaluation["groups"],
            front_matter={"sdk_version": "6.31.0"},
        ),
        "component.md": component_card(record, names[-1], CardContext(components[names[-1]])),
        "component_adapter.md": component_card(
            record, names[-1], CardContext(components[names[-1]], base_model=base), peft=True
        ),
    }
    return {name: str(card) for name, card in cards.items()}


def main() -> None:
    """Write them."""
    for name, text in render(read_record(HERE)).items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(f"model_cards/{name}")


if __name__ == "__main__":
    main()
