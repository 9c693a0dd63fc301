# SPDX-License-Identifier: Apache-2.0
"""Publishing what was trained, and getting it back: cards, repositories, collections, clear words when it fails."""

from .cards import CardContext, component_card, dataset_card, mixture_card, policy_card, space_card
from .collection import publish_collection
from .faults import HubError, HubInterrupted
from .output import OutputPlan, plan_output_folder
from .plan import PushOptions
from .pull import Pulled, pull, pull_repo
from .push import Published, RepoPlan, publish, publish_repo


__all__ = [
    "CardContext",
    "HubError",
    "HubInterrupted",
    "OutputPlan",
    "Published",
    "Pulled",
    "PushOptions",
    "RepoPlan",
    "component_card",
    "dataset_card",
    "mixture_card",
    "plan_output_folder",
    "policy_card",
    "publish",
    "publish_collection",
    "publish_repo",
    "pull",
    "pull_repo",
    "space_card",
]
