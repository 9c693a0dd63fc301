# SPDX-License-Identifier: Apache-2.0
import json
import math
import warnings

import numpy as np
import pytest
import torch

from trl_maxmin.trainer.scoring.reference_statistics import (
    ReferenceStatistics,
    prompt_key,
)


NAN = float("nan")
NAMES = ["short", "kind"]


def reference(prompts=("p", "q", "r"), per_prompt=5, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(prompts), per_prompt, 2)) * [1.0, 4.0] + 10 * rng.normal(size=(len(prompts), 1, 2))
    keys = [prompt_key(p) for p in prompts for _ in range(per_prompt)]
    completions = [f"{p} {m}" for p in prompts for m in range(per_prompt)]
    order = rng.permutation(len(keys))
    rewards = torch.tensor(table.reshape(-1, 2)[order], dtype=torch.float32)
    statistics = ReferenceStatistics.from_rewards(
        NAMES, [keys[i] for i in order], rewards, [completions[i] for i in order], "policy-1", "prompts-1"
    )
    return statistics, table


def test_statistics_agree_with_numpy_whatever_the_order_of_the_rows():
    statistics, table = reference()
    np.testing.assert_allclose(statistics.shift.numpy(), table.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(statistics.scale.numpy(), np.sqrt(table.var(axis=1, ddof=1).mean(axis=0)), rtol=1e-5)
    utilities = statistics.utilities(torch.zeros(3, 2), [prompt_key(p) for p in "pqr"])
    expected = (0 - table.mean(axis=1)) / np.sqrt(table.var(axis=1, ddof=1).mean(axis=0))
    np.testing.assert_allclose(utilities.numpy(), expected, rtol=1e-4)


def test_completions_stay_with_their_prompt():
    statistics, _ = reference()
    for key, replies in zip(statistics.prompt_keys, statistics.completions, strict=True):
        assert len(replies) == 5 and {prompt_key(reply.split()[0]) for reply in replies} == {key}


def test_zscore_of_the_reference_itself_has_mean_zero_and_unit_spread():
    statistics, table = reference(per_prompt=6)
    keys = [prompt_key(p) for p in "pqr" for _ in range(6)]
    utilities = statistics.utilities(torch.tensor(table.reshape(-1, 2)).float(), keys).reshape(3, 6, 2)
    torch.testing.assert_close(utilities.mean(dim=1), torch.zeros(3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(utilities.var(dim=1).mean(dim=0), torch.ones(2), atol=1e-4, rtol=0)


def test_win_rate_by_hand():
    key = prompt_key("p")
    rewards = torch.tensor([[0.0], [0.0], [math.log(3)], [math.log(3)]])
    statistics = ReferenceStatistics.from_rewards(["a"], [key] * 4, rewards)
    # Reward log 3: odds 3 : 1 against two references and even against two: (3/4 + 1/2) / 2.
    utilities = statistics.utilities(torch.tensor([[math.log(3)]]), [key], "win_rate")
    assert utilities.item() == pytest.approx(0.625)


def test_best_utilities_are_those_of_the_favourite_of_each_component():
    statistics, table = reference()
    spread = np.sqrt(table.var(axis=1, ddof=1).mean(axis=0))
    expected = ((table.max(axis=1) - table.mean(axis=1)) / spread).mean(axis=0)
    np.testing.assert_allclose(statistics.best_utilities().numpy(), expected, rtol=1e-4)
    chances = 1 / (1 + np.exp(table - table.max(axis=1, keepdims=True)))
    np.testing.assert_allclose(statistics.best_utilities("win_rate"), chances.mean(axis=(0, 1)), rtol=1e-4)


def test_best_utilities_leave_out_what_was_not_scored():
    keys = [prompt_key(p) for p in "pq" for _ in range(4)]
    rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, NAN]] + [[NAN, 0.0]] * 3 + [[NAN, 1.0]])
    best = ReferenceStatistics.from_rewards(NAMES, keys, rewards).best_utilities()
    # The first: mean 1, spread sqrt(4 / 3) on one prompt. The second: 1 - 1 / 3 and 1 - 1 / 4, variances 1/3 and 1/4.
    spread = math.sqrt((1 / 3 + 1 / 4) / 2)
    assert best.tolist() == pytest.approx([1 / math.sqrt(4 / 3), (2 / 3 + 3 / 4) / 2 / spread], rel=1e-5)


def test_raw_is_the_identity():
    statistics, _ = reference()
    rewards = torch.tensor([[1.0, NAN]])
    assert statistics.utilities(rewards, [prompt_key("unknown")], "raw").tolist()[0][0] == 1.0


def test_prompt_without_references_uses_the_global_mean_and_warns_once():
    statistics, table = reference()
    keys = [prompt_key("p"), prompt_key("unknown")]
    with pytest.warns(UserWarning, match="1 prompts have no reference replies.*max_calibration_prompts"):
        utilities = statistics.utilities(torch.zeros(2, 2), keys)
    expected = -table.mean(axis=(0, 1)) / statistics.scale.numpy()
    np.testing.assert_allclose(utilities[1].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(utilities[0].numpy(), -table[0].mean(axis=0) / statistics.scale.numpy(), rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics.utilities(torch.zeros(2, 2), keys)
    assert statistics.missing([*keys, *keys]) == [prompt_key("unknown")]


def test_nan_references_do_not_count():
    key, other = prompt_key("p"), prompt_key("q")
    values = [[1.0, 0.0], [3.0, NAN], [1.0, 2.0], [3.0, 4.0], [NAN, 6.0]]
    rewards = torch.tensor(values + [[0.0, NAN]] * 4)
    statistics = ReferenceStatistics.from_rewards(NAMES, [key] * 5 + [other] * 4, rewards)
    # Component 0 on "p": mean 2, variance 4/3; on "q": constant 0.
    # Component 1 on "p": mean 3, variance 20/3; on "q": nothing scored.
    assert statistics.scale.tolist() == pytest.approx([math.sqrt((4 / 3 + 0) / 2), math.sqrt(20 / 3)])
    assert statistics.shift.tolist() == pytest.approx([1.0, 3.0])
    utilities = statistics.utilities(torch.tensor([[2.0, 3.0], [0.0, 3.0]]), [key, other])
    torch.testing.assert_close(utilities, torch.zeros(2, 2), atol=1e-6, rtol=0)
    win_rate = statistics.utilities(torch.tensor([[2.0, 3.0], [0.0, 3.0]]), [key, other], "win_rate")
    assert win_rate.isnan().tolist() == [[False, False], [False, True]]


def test_nan_rewards_stay_nan():
    statistics, _ = reference()
    rewards = torch.tensor([[NAN, 0.0]])
    for kind in ("zscore", "win_rate"):
        utilities = statistics.utilities(rewards, [prompt_key("p")], kind)
        assert utilities.isnan().tolist() == [[True, False]]


def test_constant_component_warns():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    with pytest.warns(UserWarning, match=r"\['short'\] give every reference reply"):
        statistics = ReferenceStatistics.from_rewards(NAMES, [prompt_key("p")] * 4, rewards)
    assert statistics.scale[0].item() == 1.0


def test_save_and_load_are_the_same(tmp_path):
    statistics, _ = reference()
    statistics.rewards[0, 0, 0] = NAN
    statistics.save(tmp_path / "new" / "folder")
    assert sorted(p.suffix for p in (tmp_path / "new" / "folder").iterdir()) == [".json", ".safetensors"]
    loaded = ReferenceStatistics.load(tmp_path / "new" / "folder")
    for name in ("component_names", "prompt_keys", "completions", "policy_fingerprint", "prompts_fingerprint"):
        assert getattr(loaded, name) == getattr(statistics, name)
    for name in ("rewards", "shift", "scale"):
        torch.testing.assert_close(getattr(loaded, name), getattr(statistics, name), equal_nan=True, rtol=0, atol=0)
    keys = [prompt_key(p) for p in "pqr"]
    torch.testing.assert_close(
        ReferenceStatistics.load(tmp_path / "new" / "folder").utilities(torch.ones(3, 2), keys, "win_rate"),
        statistics.utilities(torch.ones(3, 2), keys, "win_rate"),
    )


def test_statistics_without_prompts_carry_shift_and_scale():
    shift, scale = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5])
    statistics = ReferenceStatistics(NAMES, [], torch.zeros(0, 0, 2), shift, scale)
    with pytest.warns(UserWarning, match="no reference replies"):
        utilities = statistics.utilities(torch.tensor([[3.0, 3.0]]), [prompt_key("p")])
    assert utilities.tolist() == [[1.0, 2.0]]


def test_compatibility():
    statistics, _ = reference()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics.check_compatible(NAMES, "policy-1", "prompts-1")
        statistics.check_compatible(NAMES)
    with pytest.warns(UserWarning, match=r"another reference policy \(policy-1, now policy-2\)"):
        statistics.check_compatible(NAMES, policy_fingerprint="policy-2")
    with pytest.warns(UserWarning, match="another reference prompts"):
        statistics.check_compatible(NAMES, prompts_fingerprint="prompts-2")
    for names in (["kind", "short"], ["short"]):
        with pytest.raises(ValueError, match=r"of the components \['short', 'kind'\]"):
            statistics.check_compatible(names)


def test_keys_tell_prompts_apart():
    messages = [{"role": "user", "content": "Hi"}]
    keys = {prompt_key("Hi"), prompt_key("hi"), prompt_key(messages), prompt_key([1, 2]), prompt_key("[1, 2]")}
    assert len(keys) == 5
    assert prompt_key(messages) == prompt_key([{"content": "Hi", "role": "user"}])
    # A saved key has to be found again by every later release: the digest of the JSON text, '"Hi"' in quotes.
    assert prompt_key("Hi") == "fdda60cb3869b17ede5fda4d458c1568"


def test_truncated_replies_count_only_where_most_are():
    """A reward of a truncated reply is arbitrary; by hand: replies 0, 2 finished, and one far away that was cut."""
    rewards, finished = torch.tensor([[0.0], [2.0], [0.0], [2.0], [-90.0]]), torch.tensor([True] * 4 + [False])
    statistics = ReferenceStatistics.from_rewards(["a"], [prompt_key("p")] * 5, rewards, finished=finished)
    assert statistics.shift.item() == 1.0 and statistics.scale.item() == pytest.approx((4 / 3) ** 0.5)
    mostly_cut = ReferenceStatistics.from_rewards(["a"], [prompt_key("p")] * 5, rewards, finished=~finished)
    assert mostly_cut.shift.item() == pytest.approx(rewards.mean().item())


def test_a_known_spread_takes_the_place_of_one_that_cannot_be_measured():
    key = prompt_key("p")
    statistics = ReferenceStatistics.from_rewards(
        ["a"], [key] * 2, torch.tensor([[1.0], [3.0]]), scale=torch.tensor([4.0])
    )
    assert statistics.utilities(torch.tensor([[4.0]]), [key]).item() == 0.5


KEY = prompt_key("p")
GOOD = {"component_names": NAMES, "prompt_keys": [KEY], "rewards": torch.zeros(1, 4, 2)}
MOMENTS = {"shift": torch.zeros(2), "scale": torch.ones(2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReferenceStatistics(NAMES, [KEY], torch.zeros(2, 4, 2), **MOMENTS), r"but \(1, any, 2\)"),
        (lambda: ReferenceStatistics(NAMES, [KEY], torch.zeros(1, 4), **MOMENTS), "`rewards` has shape"),
        (lambda: ReferenceStatistics(**GOOD, shift=torch.zeros(1), scale=torch.ones(2)), "`shift` and `scale`"),
        (lambda: ReferenceStatistics(NAMES, [KEY, KEY], torch.zeros(2, 4, 2), **MOMENTS), "duplicates"),
        (lambda: ReferenceStatistics.from_rewards(NAMES, [KEY] * 4, torch.zeros(4, 1)), r"but \(4, 2\)"),
        (lambda: ReferenceStatistics.from_rewards(NAMES, [], torch.zeros(0, 2)), "at least 1"),
        (
            lambda: ReferenceStatistics.from_rewards(NAMES, [KEY] * 3, torch.zeros(3, 2)),
            "3 reference replies a prompt",
        ),
        (lambda: ReferenceStatistics.from_rewards(NAMES, [KEY] * 4, torch.full((4, 2), NAN)), "scored no prompt"),
        (lambda: ReferenceStatistics.from_rewards(NAMES, [KEY] * 4, torch.ones(4, 2), ["a"]), "1 `completions` for 4"),
        (lambda: reference()[0].utilities(torch.zeros(1, 2), [KEY], "rank"), "Unknown utility 'rank'"),
        (lambda: reference()[0].utilities(torch.zeros(2, 2), [KEY]), r"but \(1, 2\) is needed"),
        (lambda: reference()[0].utilities(torch.zeros(1, 2), [prompt_key("?")], "win_rate"), "which 'win_rate' needs"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_load_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reference_statistics.json"):
        ReferenceStatistics.load(tmp_path)
    reference()[0].save(tmp_path)
    path = tmp_path / "reference_statistics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        ReferenceStatistics.load(tmp_path)
