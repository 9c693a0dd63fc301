# SPDX-License-Identifier: Apache-2.0
"""MaxMin beyond language models: one summed reward against max-min, with PPO from stable-baselines3.

    pip install -r examples/general_rl/requirements.txt
    python examples/general_rl/train_general_rl.py --env gridworld --output_dir general_rl

PPO maximises `w . r`; after every rollout a welfare rule of `trl_maxmin.functional` turns the groups' returns into the
weights `w` of the next. With `--welfare sum` the weights never change.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gridworld import GROUPS, USERS, TwoGroupGrid, best_worst_group_return
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from trl_maxmin.evaluation import plot_training
from trl_maxmin.functional import welfare_weights


class FruitTree(gym.Wrapper):
    """MO-Gymnasium's fruit tree: six groups, each wants one nutrient; nodes are shown one-hot, returns are / 10."""

    def __init__(self) -> None:
        import mo_gymnasium

        super().__init__(mo_gymnasium.make("fruit-tree-v0"))
        self.depth = self.unwrapped.tree_depth
        self.observation_space = gym.spaces.Box(0.0, 1.0, shape=(2 ** (self.depth + 1),), dtype=np.float32)

    def _node(self, observation: np.ndarray) -> np.ndarray:
        one_hot = np.zeros(self.observation_space.shape, dtype=np.float32)
        one_hot[2 ** int(observation[0]) + int(observation[1])] = 1.0
        return one_hot

    def reset(self, **kwargs) -> tuple[np.ndarray, dict]:
        observation, info = self.env.reset(**kwargs)
        return self._node(observation), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, vector, terminated, truncated, info = self.env.step(int(action))
        vector = np.asarray(vector, dtype=np.float64) / 10
        return self._node(observation), float(vector.sum()), terminated, truncated, {**info, "vector_reward": vector}


def fruit_tree_optimum() -> float:
    """Greatest worst-group return over mixtures of the 64 paths, by linear programming."""
    import itertools

    from scipy.optimize import linprog

    environment, returns = FruitTree(), []
    for path in itertools.product((0, 1), repeat=environment.depth):
        environment.reset()
        returns.append(sum(environment.step(action)[4]["vector_reward"] for action in path))
    table = np.array(returns)
    paths, groups = table.shape
    found = linprog(
        np.r_[np.zeros(paths), -1.0],
        A_ub=np.c_[-table.T, np.ones(groups)],
        b_ub=np.zeros(groups),
        A_eq=[np.r_[np.ones(paths), 0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * paths + [(None, None)],
    )
    return float(-found.fun)


ENVIRONMENTS = {
    "gridworld": (TwoGroupGrid, list(GROUPS), USERS, best_worst_group_return),
    "fruit-tree": (FruitTree, [f"nutrient {i}" for i in range(6)], np.ones(6), fruit_tree_optimum),
}
SETTINGS = {
    "gridworld": {"steps": 160_000, "tau": 0.3, "eta": 0.2, "ent_coef": 0.03},
    "fruit-tree": {"steps": 120_000, "tau": 0.03, "eta": 2.0, "ent_coef": 0.01},
}


class WeightedReward(VecEnvWrapper):
    """Replaces the reward by `weights . vector_reward`, and keeps the return of each group in finished episodes."""

    def __init__(self, venv, weights: np.ndarray, memory: int = 256) -> None:
        super().__init__(venv)
        self.weights = weights
        self.running = np.zeros((venv.num_envs, len(weights)))
        self.finished: deque[np.ndarray] = deque(maxlen=memory)

    def reset(self) -> np.ndarray:
        self.running[:] = 0
        return self.venv.reset()

    def step_wait(self):
        observation, _, done, info = self.venv.step_wait()
        vectors = np.array([entry["vector_reward"] for entry in info])
        self.running += vectors
        for index in np.flatnonzero(done):
            self.finished.append(self.running[index].copy())
            self.running[index] = 0
        return observation, (vectors @ self.weights).astype(np.float32), done, info


class Welfare(BaseCallback):
    """After each rollout: the groups' returns, and from them the weights of the next rollout."""

    def __init__(
        self, environment: WeightedReward, rule: str, steps: int, tau: float, eta: float, ent_coef: float
    ) -> None:
        super().__init__()
        self.environment, self.rule, self.steps = environment, rule, steps
        self.tau, self.eta, self.ent_coef = tau, eta, ent_coef
        self.curve: list[list[float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # Explore at first, then commit: the entropy bonus falls to 0.
        self.model.ent_coef = self.ent_coef * max(0.0, 1 - 1.25 * self.num_timesteps / self.steps)
        if not self.environment.finished:
            return
        utilities = torch.tensor(np.mean(self.environment.finished, axis=0))
        self.curve.append([self.num_timesteps, float(utilities.min())])
        if self.rule != "sum":
            previous = torch.tensor(self.environment.weights)
            weights = welfare_weights(self.rule, utilities, tau=self.tau, eta=self.eta, previous=previous)
            self.environment.weights = weights.numpy()
        self.environment.finished.clear()


def train(name: str, rule: str, seed: int, steps: int | None = None, num_envs: int = 16) -> dict:
    """One run: the curve of the worst group's return, and the groups' returns of the final policy (1,000 episodes)."""
    make, groups, users, _ = ENVIRONMENTS[name]
    settings = SETTINGS[name]
    start = users / users.sum() if rule == "sum" else np.full(len(groups), 1 / len(groups))
    environment = WeightedReward(DummyVecEnv([make] * num_envs), start)
    model = PPO(
        "MlpPolicy",
        environment,
        n_steps=64,
        batch_size=512,
        n_epochs=5,
        learning_rate=lambda left: 2e-3 * left,
        gamma=1.0,
        gae_lambda=0.95,
        ent_coef=settings["ent_coef"],
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )
    steps = steps or settings["steps"]
    welfare = Welfare(environment, rule, steps, settings["tau"], settings["eta"], settings["ent_coef"])
    model.learn(steps, callback=welfare)
    environment.finished = deque()
    observation = environment.reset()
    while len(environment.finished) < 1000:
        # The policy itself, not its mode: serving several groups may need chance.
        action, _ = model.predict(observation, deterministic=False)
        observation, *_ = environment.step(action)
    returns = np.mean(environment.finished, axis=0)
    return {
        "rule": rule,
        "seed": seed,
        "curve": welfare.curve,
        "returns": dict(zip(groups, returns.tolist(), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=ENVIRONMENTS, default="gridworld")
    parser.add_argument(
        "--welfare", nargs="+", default=["sum", "softmin"], help="sum, or rules of trl_maxmin.functional"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--output_dir", default="general_rl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    optimum = ENVIRONMENTS[arguments.env][3]()
    report = {"env": arguments.env, "optimum": optimum, "runs": []}
    curves: dict[str, list[list[float]]] = {}
    for rule in arguments.welfare:
        runs = []
        for seed in range(arguments.seeds):
            runs.append(train(arguments.env, rule, seed, arguments.steps))
            report["runs"].append(runs[-1])
            print(f"{rule}, seed {seed}: {runs[-1]['returns']}", flush=True)
        worst = [min(run["returns"].values()) for run in runs]
        shown = ", ".join(f"{value:.3f}" for value in worst)
        print(f"{rule}: worst-group return {np.mean(worst):.3f} ({shown}); optimum {optimum:.3f}", flush=True)
        points = zip(*(run["curve"] for run in runs), strict=False)
        curves[f"{rule} (mean of {len(runs)} seeds)"] = [
            [point[0][0], float(np.mean([value for _, value in point]))] for point in points
        ]
    last = max(points[-1][0] for points in curves.values())
    curves["exact optimum"] = [[0, optimum], [last, optimum]]
    title = f"Worst-off group during training, {arguments.env}"
    plot_training(curves, folder / f"{arguments.env}.png", title, "return of the worst-off group", "environment steps")
    (folder / f"{arguments.env}.json").write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
