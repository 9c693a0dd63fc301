# SPDX-License-Identifier: Apache-2.0
r"""
The example of docs/welfare.md: two groups, four replies, every welfare rule, solved exactly.

A policy is a distribution over the replies. For given weights the best policy under the KL term has a closed form,
`pi_w(y) proportional to pi_ref(y) exp(sum_k w_k u_k(y) / beta)`; a rule settles where the weights it returns for the
utilities of `pi_w` are `w` again. With two groups that is a root in one number.

python docs/welfare_rules.py            # prints the table, writes docs/welfare_rules.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trl_maxmin.functional import minus_regret, mirror_weights, sample_min, welfare_weights


GROUPS = ("concise", "positive")
REPLIES = ("short", "praise", "a bit of both", "neither")
UTILITIES = np.array([[1.0, 0.0], [0.0, 0.8], [0.35, 0.30], [-0.1, -0.1]])
REFERENCE = np.array([0.25, 0.25, 0.25, 0.25])
MIXING = (0.8, 0.2)
BETA = 0.05
# Step of the policy in the right panel: a move of the log-probabilities along the gradient, as a trainer makes it.
POLICY_STEP, MIRROR_STEP, STEPS = 1.0, 0.3, 160


def best_policy(reward: np.ndarray, beta: float = BETA) -> np.ndarray:
    """The maximiser of `E[reward] - beta KL(pi || ref)`."""
    logits = np.log(REFERENCE) + reward / beta
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def utilities(policy: np.ndarray) -> np.ndarray:
    """Group utilities `E[u_k]`."""
    return policy @ UTILITIES


#: Utility of each group under the policy that serves it alone.
BEST = torch.tensor([utilities(best_policy(UTILITIES[:, k]))[k] for k in range(2)])


def expected_minimum(policy: np.ndarray) -> float:
    """`E[min_k u_k]`."""
    return float(policy @ sample_min(torch.tensor(UTILITIES)).numpy())


def settled(rule: str, **options) -> np.ndarray:
    """The policy at which a rule's weights no longer change: the root of `rule(U(pi_w)) - w` in the first weight.

    For `"maxmin"` and `"mirror"` it is the saddle point, where both groups are equally well off if any weights make
    them so, and for `"regret"` equally far from their best; otherwise all weight is on one of them.
    """

    def excess(first: float) -> float:
        values = utilities(best_policy(UTILITIES @ np.array([first, 1.0 - first])))
        if rule in ("maxmin", "mirror"):
            return float(values[1] - values[0])
        if rule == "regret":
            return float(minus_regret(torch.tensor(values), BEST)[1] - minus_regret(torch.tensor(values), BEST)[0])
        return float(welfare_weights(rule, torch.tensor(values), **options)[0]) - first

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return best_policy(UTILITIES @ np.array([low, 1.0 - low]))
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return best_policy(UTILITIES @ np.array([low, 1.0 - low]))


def policies() -> dict[str, np.ndarray]:
    """What each rule leads to."""
    shares = torch.tensor(MIXING, dtype=torch.float64)
    return {
        "utilitarian (mean)": settled("utilitarian"),
        "mixing (0.8, 0.2)": settled("mixing", mixing_weights=shares),
        "softmin, tau = 0.5": settled("softmin", tau=0.5),
        "pmean, p = 0.5": settled("pmean", power=0.5),
        "Nash = pmean, p = 0": settled("nash"),
        "pmean, p = -4": settled("pmean", power=-4.0),
        "gini (0.51, 0.49)": settled("gini", order_weights=(0.51, 0.49)),
        "maxmin = mirror = leximin": settled("maxmin"),
        "regret": settled("regret"),
        "sample_min": best_policy(UTILITIES.min(axis=1)),
    }


def trajectory(rule: str) -> np.ndarray:
    """Group utilities `(STEPS, 2)` of a policy that takes gradient steps under a rule, from the reference on."""
    logits, weights, seen = np.log(REFERENCE), torch.full((2,), 0.5, dtype=torch.float64), []
    for _ in range(STEPS):
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        seen.append(utilities(policy))
        values = torch.tensor(seen[-1])
        weights = mirror_weights(values, weights, MIRROR_STEP) if rule == "mirror" else welfare_weights(rule, values)
        advantage = UTILITIES @ weights.numpy() - BETA * np.log(policy / REFERENCE)
        # The natural gradient of a softmax policy is the advantage itself.
        logits = np.log(policy) + POLICY_STEP * (advantage - policy @ advantage)
    return np.stack(seen)


def table() -> list[tuple[str, float, float, float, float]]:
    """Rows `(rule, U_1, U_2, min_k E[u_k], E[min_k u_k])`."""
    rows = []
    for name, policy in policies().items():
        values = utilities(policy)
        rows.append((name, float(values[0]), float(values[1]), float(values.min()), expected_minimum(policy)))
    return rows


def draw(path: Path) -> None:
    """The figure: where each rule ends, and how hard switching and mirror get there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    frontier = np.array([utilities(best_policy(UTILITIES @ [w, 1 - w])) for w in np.linspace(0, 1, 400)])
    left.plot(*frontier.T, color="#b0b0b0", linewidth=1.5, zorder=1, label="best policies for weights (w, 1 - w)")
    left.plot(
        [-0.1, 0.85], [-0.1, 0.85], color="black", linewidth=0.8, linestyle=":", label="both groups equally well off"
    )
    left.scatter(*UTILITIES.T, marker="x", color="#707070", zorder=2)
    for reply, (x, y) in zip(REPLIES, UTILITIES, strict=True):
        left.annotate(reply, (x, y), xytext=(6, -12), textcoords="offset points", fontsize=9, color="#505050")
    colors = (
        "#d9d9d9",
        "#a0a0a0",
        "#a3c293",
        "#cfe2f3",
        "#9fc5e8",
        "#6fa8dc",
        "#8e7cc3",
        "#1f4e79",
        "#cc4125",
        "#f0b27a",
    )
    styles = zip("s^v<P>Xo*D", colors, strict=True)
    for (name, policy), (marker, color) in zip(policies().items(), styles, strict=True):
        left.scatter(*utilities(policy), marker=marker, s=95, color=color, edgecolor="black", zorder=3, label=name)
    left.set_xlabel(f"utility of the majority ({GROUPS[0]})")
    left.set_ylabel(f"utility of the minority ({GROUPS[1]})")
    left.set_title("Where each rule ends")
    left.set_xlim(-0.15, 1.95)  # the legend is beside the points
    left.legend(fontsize=8, loc="upper right")
    for rule, color in (("maxmin", "#d08030"), ("mirror", "#1f4e79")):
        worst = trajectory(rule).min(axis=1)
        right.plot(worst, color=color, linewidth=1.3, label=f"{rule}: worst group")
    value = utilities(settled("maxmin")).min()
    right.axhline(value, color="black", linestyle="--", linewidth=0.9, label="at the saddle point")
    right.set_xlabel("step")
    right.set_ylabel("utility of the worst-off group")
    right.set_title("How the worst group fares on the way")
    right.legend(fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format="png")


if __name__ == "__main__":
    print("| rule | U concise | U positive | min E | E min |\n|---|---|---|---|---|")
    for name, *numbers in table():
        print(f"| {name} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    for rule in ("maxmin", "mirror"):
        worst = trajectory(rule)[STEPS // 2 :]
        print(
            f"{rule}, second half: mean worst utility {worst.min(axis=1).mean():.3f}, lowest "
            f"{worst.min():.3f}, worst utility of the mean policy {worst.mean(axis=0).min():.3f}"
        )
    draw(Path(__file__).with_suffix(".png"))
