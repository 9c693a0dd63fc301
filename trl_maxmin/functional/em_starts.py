# SPDX-License-Identifier: Apache-2.0
"""Where EM begins: starts that differ, and how many different partitions they ended in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


_HARD = 2.0  # log-odds by which a start prefers the component of its partition
_KINDS = ("clusters", "annealed", "partition", "clusters", "clusters", "annealed", "partition", "annealed")
_TEMPERATURES = (0.02, 0.2, 0.05, 0.5)  # first inverse temperatures of the annealed starts, in turns


def propose_starts(
    gradients: Tensor, num_components: int, num_starts: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Responsibilities of starts of three kinds, in turns, and the inverse temperatures they begin with.

    Clusters: k-means of the annotators by what their pairs would change of the single reward, in its leading
    directions, from the centres of k-means++. Annealed: next to nothing is decided, and the first temperature is high.
    Partition: every annotator is dealt to one component at random.

    Args:
        gradients (`Tensor` of shape `(H, R)`): of the single reward, by annotator.
        num_components (`int`): K.
        num_starts (`int`): S.
        generator (`torch.Generator`): on the CPU.

    Returns:
        `Tensor` of shape `(S, H, K)`, log responsibilities, and `(S,)`, inverse temperatures in (0, 1].

    Example:

    >>> starts, betas = propose_starts(torch.randn(6, 3), 2, 4, torch.Generator().manual_seed(0))
    >>> starts.shape, betas.tolist()[1]
    (torch.Size([4, 6, 2]), 0.019999999552965164)
    """
    people = len(gradients)
    leading = _leading(gradients)
    starts, betas = [], []
    for number in range(num_starts):
        kind, turn = _KINDS[number % len(_KINDS)], number // 2
        if kind == "annealed":
            noise = torch.randn(people, num_components, generator=generator)
            betas.append(_TEMPERATURES[turn % len(_TEMPERATURES)])
            starts.append(2 * noise)
            continue
        if kind == "clusters":
            # In few directions at first; in more of them every time.
            width = max(1, num_components - 1) * 2 ** (turn % 4)
            labels = _k_means(leading[:, :width], num_components, generator)
        else:
            labels = torch.arange(people)[torch.randperm(people, generator=generator)] % num_components
        betas.append(0.5)
        starts.append(_HARD * F.one_hot(labels, num_components).float())
    return torch.log_softmax(torch.stack(starts).double(), dim=-1), torch.tensor(betas)


def _leading(gradients: Tensor) -> Tensor:
    """`(H, min(H, R))`: annotators in the principal directions of their gradients, the first the widest."""
    if gradients.shape[0] <= gradients.shape[1]:
        values, vectors = torch.linalg.eigh((gradients @ gradients.T).double())
        return (vectors * values.clamp(min=0).sqrt()).flip(1).float()
    return (gradients @ torch.linalg.eigh((gradients.T @ gradients).double())[1].float()).flip(1)


def _k_means(points: Tensor, num_clusters: int, generator: torch.Generator, num_steps: int = 10) -> Tensor:
    """Cluster `(H,)` of each point `(H, R)`, from the centres of k-means++ (Arthur and Vassilvitskii, 2007)."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < num_clusters:
        far = torch.cdist(points, centres).amin(1).square() + 1e-12
        centres = torch.cat([centres, points[torch.multinomial(far, 1, generator=generator)]])
    for _ in range(num_steps):
        labels = torch.cdist(points, centres).argmin(1)
        mine = F.one_hot(labels, num_clusters).to(points)
        size = mine.sum(0).unsqueeze(1)
        centres = torch.where(size > 0, mine.T @ points / size.clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(1)


def distinct_partitions(labels: Tensor, tolerance: float = 0.05) -> int:
    """How many partitions there are among labels `(S, H)`, whatever the components are called.

    Args:
        labels (`Tensor` of shape `(S, H)`): component of each annotator.
        tolerance (`float`): two partitions are the same where so few annotators would have to move.

    Example:

    >>> distinct_partitions(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]))
    2
    """
    found: list[Tensor] = []
    for one in labels:
        if not any(_moved(one, other) <= tolerance for other in found):
            found.append(one)
    return len(found)


def _moved(one: Tensor, other: Tensor) -> float:
    """Share of annotators outside the largest overlaps, seen from either side."""
    size = int(max(one.max(), other.max())) + 1
    table = torch.bincount(one * size + other, minlength=size * size).view(size, size)
    return 1.0 - min(table.amax(0).sum().item(), table.amax(1).sum().item()) / len(one)
