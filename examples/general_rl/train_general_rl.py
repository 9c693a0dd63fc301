# SPDX-License-Identifier: Apache-2.0
"""MaxMin beyond language models: one summed reward against max-min, with PPO from stable-baselines3.

    pip install -r examples/general_rl/requirements.txt
    python examples/general_rl/train_general_rl.py --env gridworld --output_dir general_rl

PPO maximises `w . r`; after every rollout a welfare rule of `trl_maxmin.functional` turns the groups' returns into the
weights `w` of the next. With `--welfare sum` the weights never change. Two policies are measured: the last one, and
the average of those of the second half of training, which draws one of them at the start of every episode.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gridworld import GROUPS, USERS, TwoGroupGrid, best_worst_group_return
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from trl_maxmin.evaluation import plot_training
from trl_maxmin.functional import welfare_weights


EPISODES = 1024


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


def fruit_tree_returns() -> np.ndarray:
    """What each of the 64 paths gives the six groups, (64, 6)."""
    environment, returns = FruitTree(), []
    for path in itertools.product((0, 1), repeat=environment.depth):
        environment.reset()
        returns.append(sum(environment.step(action)[4]["vector_reward"] for action in path))
    return np.array(returns)


def fruit_tree_optimum() -> float:
    """Greatest worst-group return over mixtures of the paths, by linear programming."""
    from scipy.optimize import linprog

    table = fruit_tree_returns()
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
# Steps in all; steps of a rollout, a multiple of the episode's length; entropy bonus at the start and at the end, in
# units of return; `tau` of softmin, `eta` of mirror. Where the optimum takes chance, some entropy has to stay.
SETTINGS = {
    "gridworld": {"steps": 80_000, "n_steps": 35, "entropy": (0.02, 0.0), "tau": 0.1, "eta": 0.2},
    "fruit-tree": {"steps": 120_000, "n_steps": 36, "entropy": (0.02, 0.003), "tau": 0.03, "eta": 0.3},
}


class WeightedReward(VecEnvWrapper):
    """Replaces the reward by `weights . vector_reward`, and keeps the return of each group in finished episodes."""

    def __init__(self, venv: VecEnv, weights: np.ndarray) -> None:
        super().__init__(venv)
        self.weights = weights
        self.running = np.zeros((venv.num_envs, len(weights)))
        self.finished: list[np.ndarray] = []

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

    def __init__(self, environment: WeightedReward, rule: str, settings: dict, steps: int) -> None:
        super().__init__()
        self.environment, self.rule, self.settings, self.steps = environment, rule, settings, steps
        self.curve: list[list[float]] = []
        self.policies: list[dict] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # Explore at first, then commit.
        first, last = self.settings["entropy"]
        self.model.ent_coef = max(last, first * (1 - 1.25 * self.num_timesteps / self.steps))
        utilities = torch.tensor(np.mean(self.environment.finished, axis=0))
        self.environment.finished.clear()
        if self.num_timesteps > self.steps / 2:
            self.policies.append(copy.deepcopy(self.model.policy.state_dict()))
        self.curve.append([self.num_timesteps, *utilities.tolist(), *self.environment.weights.tolist()])
        if self.rule != "sum":
            previous = torch.tensor(self.environment.weights)
            rates = {name: self.settings[name] for name in ("tau", "eta")}
            self.environment.weights = welfare_weights(self.rule, utilities, previous=previous, **rates).numpy()


def train(name: str, rule: str, seed: int, steps: int | None = None, num_envs: int = 32) -> dict:
    """One run: the groups' returns and weights in every rollout, and what two policies give in the end."""
    make, groups, users, _ = ENVIRONMENTS[name]
    settings = SETTINGS[name]
    start = users / users.sum() if rule == "sum" else np.full(len(groups), 1 / len(groups))
    environment = WeightedReward(DummyVecEnv([make] * num_envs), start)
    model = PPO(
        "MlpPolicy",
        environment,
        n_steps=settings["n_steps"],
        batch_size=settings["n_steps"] * num_envs // 2,
        n_epochs=5,
        learning_rate=lambda left: 2e-3 * left,
        gamma=1.0,
        gae_lambda=0.95,
        # Divided by their spread, advantages would make the entropy bonus mean something else in every rollout.
        normalize_advantage=False,
        ent_coef=settings["entropy"][0],
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )
    steps = steps or settings["steps"]
    welfare = Welfare(environment, rule, settings, steps)
    started = time.process_time()
    model.learn(steps, callback=welfare)
    seconds = time.process_time() - started
    last = play(model, environment, EPISODES)
    average = []
    for policy in welfare.policies:
        model.policy.load_state_dict(policy)
        average.append(play(model, environment, max(num_envs, EPISODES // len(welfare.policies))))
    measured = {"last": last, "average": np.mean(average, axis=0)}
    return {
        "rule": rule,
        "seed": seed,
        "steps": model.num_timesteps,
        "cpu_seconds": round(seconds, 1),
        "returns": {name: dict(zip(groups, values.tolist(), strict=True)) for name, values in measured.items()},
        "worst": {name: float(values.min()) for name, values in measured.items()},
        "curve": [[round(value, 5) for value in point] for point in welfare.curve],
    }


def play(model: PPO, environment: WeightedReward, episodes: int) -> np.ndarray:
    """Mean return of each group."""
    environment.finished.clear()
    observation = environment.reset()
    while len(environment.finished) < episodes:
        # The policy itself, not its mode: serving several groups may need chance.
        action, _ = model.predict(observation, deterministic=False)
        observation, *_ = environment.step(action)
    return np.mean(environment.finished, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=ENVIRONMENTS, default="gridworld")
    parser.add_argument(
        "--welfare", nargs="+", default=["sum", "mirror"], help="sum, or rules of trl_maxmin.functional"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--output_dir", default="general_rl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _, groups, _, best = ENVIRONMENTS[arguments.env]
    report = {"env": arguments.env, "groups": groups, "optimum": best(), "episodes": EPISODES, "runs": []}
    for rule in arguments.welfare:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            run = train(arguments.env, rule, seed, arguments.steps)
            report["runs"].append(run)
            shares = [f"{name} {worst / report['optimum']:.1%}" for name, worst in run["worst"].items()]
            print(f"{rule}, seed {seed}: worst-off group, of the optimum: {', '.join(shares)}", flush=True)
            # After every run, so that an interrupted command has not run for nothing.
            (folder / f"{arguments.env}.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(summary(report))
    plot(report, folder / f"{arguments.env}.png")


def summary(report: dict) -> str:
    """A Markdown table: the worst-off group under each rule."""
    optimum = report["optimum"]
    lines = [f"exact optimum of the worst-off group: {optimum:.4f}", ""]
    lines += ["| rule | policy | worst-off group, mean over seeds | lowest seed | at least 95 % |", "|---" * 5 + "|"]
    for rule, runs in by_rule(report).items():
        for name in ("last", "average"):
            worst = np.array([run["worst"][name] for run in runs])
            lines.append(
                f"| `{rule}` | {name} | {worst.mean():.3f} ({worst.mean() / optimum:.1%}) | {worst.min():.3f} "
                f"({worst.min() / optimum:.1%}) | {(worst >= 0.95 * optimum).sum()} of {len(runs)} |"
            )
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """Worst-off group during training: mean over seeds and their range, beside the exact optimum."""
    count, curves, bands = len(report["groups"]), {}, {}
    for rule, runs in by_rule(report).items():
        worst = np.array([[min(point[1 : 1 + count]) for point in run["curve"]] for run in runs])
        steps = [point[0] for point in runs[0]["curve"]]
        curves[rule] = list(zip(steps, worst.mean(axis=0), strict=True))
        bands[rule] = list(zip(steps, worst.min(axis=0), worst.max(axis=0), strict=True))
    last = max(points[-1][0] for points in curves.values())
    curves["exact optimum"] = [[0, report["optimum"]], [last, report["optimum"]]]
    title = f"Worst-off group during training, {report['env']}"
    steps = f"environment steps (lines: mean of {len(runs)} seeds; shaded: their range)"
    plot_training(curves, path, title, "return of the worst-off group", steps, bands=bands)


def by_rule(report: dict) -> dict[str, list[dict]]:
    """Rule -> its runs."""
    rules = dict.fromkeys(run["rule"] for run in report["runs"])
    return {rule: [run for run in report["runs"] if run["rule"] == rule] for rule in rules}


if __name__ == "__main__":
    main()
