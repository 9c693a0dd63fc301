# SPDX-License-Identifier: Apache-2.0
"""A gridworld with two groups of users and vector rewards, and its exact optima by dynamic programming.

```
A . . . . . B      a, A: apples for the majority (4 of 5 users), a worth 1/3 and A, a whole tree, 5/6
. . a S b . .      b, B: berries for the minority (1 of 5 users), each worth 1/3
. . a . b . .      S: start; one move a step, 7 steps an episode; each item is there once
```

The four items near the start take 5 steps and give both groups 2/3. All apples take 6 and give the majority 1.5, and
then no berry is in reach. So the sum over users, and even the plain mean of the two groups, leave the minority with
nothing. The worst group is best off with two items each; no chance between serving the one and the other does as well.
"""

from __future__ import annotations

from functools import cache

import gymnasium as gym
import numpy as np


ROWS, COLUMNS, HORIZON = 3, 7, 7
START = (1, 3)
ITEMS = ((0, 0), (1, 2), (2, 2), (0, 6), (1, 4), (2, 4))
VALUES = np.array([[5 / 6, 0], [1 / 3, 0], [1 / 3, 0], [0, 1 / 3], [0, 1 / 3], [0, 1 / 3]])
GROUPS = ("majority", "minority")
USERS = np.array([4.0, 1.0])
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def move(cell: tuple[int, int], collected: int, action: int) -> tuple[tuple[int, int], int, np.ndarray]:
    """Next cell, items collected (bits), and the reward vector."""
    down, right = MOVES[action]
    cell = (min(max(cell[0] + down, 0), ROWS - 1), min(max(cell[1] + right, 0), COLUMNS - 1))
    if cell in ITEMS and not collected >> ITEMS.index(cell) & 1:
        item = ITEMS.index(cell)
        return cell, collected | 1 << item, VALUES[item]
    return cell, collected, np.zeros(2)


class TwoGroupGrid(gym.Env):
    """The gridworld; `info["vector_reward"]` has one entry a group, the scalar reward is the sum over users."""

    metadata = {"render_modes": []}
    reward_space = gym.spaces.Box(0.0, 5 / 6, shape=(2,), dtype=np.float32)

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, shape=(ROWS * COLUMNS + len(ITEMS) + 1,), dtype=np.float32)
        self.action_space = gym.spaces.Discrete(len(MOVES))

    def _observation(self) -> np.ndarray:
        observation = np.zeros(self.observation_space.shape, dtype=np.float32)
        observation[self.cell[0] * COLUMNS + self.cell[1]] = 1.0
        for item in range(len(ITEMS)):
            observation[ROWS * COLUMNS + item] = self.collected >> item & 1
        observation[-1] = self.step_number / HORIZON
        return observation

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cell, self.collected, self.step_number = START, 0, 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.cell, self.collected, vector = move(self.cell, self.collected, int(action))
        self.step_number += 1
        # The horizon is part of the task and of the observation: nothing comes after it.
        return (
            self._observation(),
            float(USERS @ vector),
            self.step_number == HORIZON,
            False,
            {"vector_reward": vector},
        )


def best_weighted_return(weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The greatest weighted return, and the return of every group under that policy, by backward induction."""

    @cache
    def value(cell: tuple[int, int], collected: int, steps_left: int) -> tuple[float, tuple[float, ...]]:
        if steps_left == 0:
            return 0.0, (0.0, 0.0)
        best = None
        for action in range(len(MOVES)):
            next_cell, now, reward = move(cell, collected, action)
            future, groups = value(next_cell, now, steps_left - 1)
            total = float(weights @ reward) + future
            if best is None or total > best[0] + 1e-12:
                best = (total, tuple(reward + groups))
        return best

    total, groups = value(START, 0, HORIZON)
    return total, np.array(groups)


def best_worst_group_return(tolerance: float = 1e-4) -> float:
    """max over policies of min over groups of the return, exactly: by duality the least of the best weighted returns.

    `min_w max_pi w . V(pi)` over weights on the simplex; the inner maximum is convex in the one weight there is.
    """
    low, high = 0.0, 1.0
    golden = (5**0.5 - 1) / 2
    while high - low > tolerance:
        left, right = high - golden * (high - low), low + golden * (high - low)
        values = [best_weighted_return(np.array([w, 1 - w]))[0] for w in (left, right)]
        low, high = (low, right) if values[0] <= values[1] else (left, high)
    return best_weighted_return(np.array([(low + high) / 2, 1 - (low + high) / 2]))[0]
