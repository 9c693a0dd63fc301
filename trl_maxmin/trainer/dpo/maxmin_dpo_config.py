# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MaxMinDPOTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass

from trl import DPOConfig

from ...data.columns import ANNOTATOR_COLUMN, require_group_column
from ...data.rankings import CUTS
from ...functional.welfare import WELFARE_RULES
from ..common.config_help import help_from_docstring
from ..maxmin.maxmin_config import WelfareConfigMixin


#: Losses of TRL that sort the rows of a batch, so that no row has a loss of its own.
SORTED_LOSSES = ("aot", "aot_unpaired")


@help_from_docstring
@dataclass
class MaxMinDPOConfig(WelfareConfigMixin, DPOConfig):
    """
    Configuration of [`MaxMinDPOTrainer`]: the fields of TRL's `DPOConfig`, and those of [`WelfareConfigMixin`] that
    say whose loss counts. The utility of a group is minus its loss; a rollout is an optimizer step here.

    > Parameters that say who is in which group

    Args:
        group_column (`str`, *optional*):
            Column of known groups. Give it, or assignments of annotators to components.
        annotator_column (`str`, *optional*, defaults to `"annotator_id"`):
            Column that names the annotator.
        component (`str`, *optional*):
            Train for this group alone, on its pairs: a policy for one group. Its `maxmin/loss/<group>` is what
            `"regret"` compares with.
        ranking_pairs (`str`, *optional*, defaults to `"all"`):
            How rankings become pairs: `"all"`, each two replies whose order is told; `"best"`, the best against each
            other.

    > Parameters that control the loss of a group

    Args:
        small_group_offset (`float`, *optional*, defaults to 0.0):
            C of the offset C / sqrt(n) that is added to the loss of a group of n pairs before weights are decided.

    > Parameters whose defaults differ from those of the other MaxMin trainers

    Args:
        welfare (`str`, *optional*, defaults to `"mirror"`):
            The step of arXiv 2405.20304. `"sample_min"` is not offered: a pair has one loss.
        welfare_window (`int`, *optional*, defaults to 10):
            Losses of groups are averaged exponentially over about this many optimizer steps: a batch holds few rows of
            a small group, or none.

    Raises:
        `ValueError`: a loss that sorts a batch, `use_liger_kernel`, or a value that makes no sense.

    Example:

    >>> config = MaxMinDPOConfig(output_dir="policy", group_column="group", report_to="none", use_cpu=True)
    >>> config.welfare, config.loss_type
    ('mirror', ['sigmoid'])
    """

    welfare: str = "mirror"
    welfare_window: int = 10
    group_column: str | None = None
    annotator_column: str = ANNOTATOR_COLUMN
    component: str | None = None
    ranking_pairs: str = "all"
    small_group_offset: float = 0.0

    _welfare_choices = WELFARE_RULES

    def __post_init__(self) -> None:
        super().__post_init__()
        found = [name for name in SORTED_LOSSES if name in self.loss_type]
        if found:
            raise ValueError(
                f"`loss_type` has {found[0]!r}, which compares sorted batches, so that no pair and no group has a "
                "loss of its own; choose another, such as 'sigmoid' or 'ipo'."
            )
        if self.use_liger_kernel:
            raise ValueError(
                "`use_liger_kernel` is set, and Liger's fused DPO gives one loss for a whole batch, not one for each "
                "group; leave it out."
            )
        require_group_column(self.group_column, self.annotator_column)
        if self.ranking_pairs not in CUTS:
            allowed = ", ".join(map(repr, CUTS))
            raise ValueError(f"`ranking_pairs` is {self.ranking_pairs!r}, which is unknown; choose one of {allowed}.")
        self._require(
            ("small_group_offset", 0.0 <= self.small_group_offset < float("inf"), "finite and not negative"),
        )
