"""The numbers in the docs are those of the files they name. (Blocks between comments: see their programs' tests.)"""

import json
import math
import re
from pathlib import Path
from statistics import mean, median, stdev

import pytest
import torch

from benchmarks import annotator_tables, real_rankings, sureness
from trl_maxmin.trainer.common.generation_backends import choose_backend


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = {
    name: (ROOT / path).read_text(encoding="utf-8")
    for name, path in {
        "reproduction": "docs/reproduction.md",
        "performance": "docs/performance.md",
        "welfare": "docs/welfare.md",
        "method": "docs/method.md",
        "diagnose": "docs/diagnose.md",
        "readme": "README.md",
        "benchmarks": "benchmarks/README.md",
    }.items()
}
DEMO_SEEDS = (0, 1, 2, 5)


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def says(page, text):
    """The page holds the text, wherever its lines are broken."""
    assert " ".join(text.split()) in " ".join(PAGES[page].split()), f"docs: {text!r}"


def both(rates):
    return f"{rates['concise']['mean']:.3f} / {rates['positive']['mean']:.3f}"


@pytest.mark.parametrize("seed", DEMO_SEEDS)
def test_demo(seed):
    report = read(f"demo_seed{seed}")
    rates, right = report["win_rate"], report["em"]["heldout_accuracy"]
    says(
        "reproduction",
        f"| {seed} | {report['em']['assignment_accuracy']:.2f} | {right['mixture']['positive']:.2f} / "
        f"{right['single']['positive']:.2f} | {both(rates['single'])} | {both(rates['maxmin'])} | "
        f"{both(rates['oracle'])} | [demo_seed{seed}.json]",
    )


def test_what_the_demos_took():
    totals = [read(f"demo_seed{seed}")["seconds"]["total"] for seed in DEMO_SEEDS]
    peaks = [read(f"demo_seed{seed}")["peak_rss_mb"] for seed in DEMO_SEEDS]
    says("reproduction", f"({min(totals):.0f} to {max(totals):.0f}, ceiling included)")
    says("reproduction", f"their peak memory is {min(peaks):.0f} to {max(peaks):.0f} MB")


def test_demo_of_the_readme():
    report = read("demo_seed0")
    for policy, label in {"single": "single reward (conventional RLHF)", "maxmin": "MaxMin"}.items():
        shown = [
            f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
            for value in report["win_rate"][policy].values()
        ]
        says("readme", f"| {label} | {' | '.join(shown)} |")
    right = report["em"]["heldout_accuracy"]
    says("readme", f"right in {right['mixture']['positive']:.2f} of the cases, the single reward model in")
    says("readme", f"{right['single']['positive']:.2f}. More seeds")


def test_demo_without_groups_and_with_narrow_heads():
    assert read("demo_no_groups_seed0")["em"]["num_components"] == 1
    says("reproduction", "[demo_no_groups_seed0.json](results/demo_no_groups_seed0.json)) one component is chosen")
    rates = both(read("demo_seed0_narrow_heads")["win_rate"]["maxmin"])
    says("reproduction", f"{rates} on seed 0 ([demo_seed0_narrow_heads.json]")


def test_demo_with_the_other_trainers():
    reports = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("demo_[gr]*_seed*.json")}
    assert len(reports) == 5
    for name, report in reports.items():
        _, trainer, seed = name.split("_")
        rates = report["win_rate"]
        says(
            "reproduction",
            f"| {trainer.upper()} | {seed.removeprefix('seed')} | {both(rates['single'])} | {both(rates['maxmin'])} "
            f"| [{name}.json]",
        )
    totals = [report["seconds"]["total"] for report in reports.values()]
    peaks = [report["peak_rss_mb"] for report in reports.values()]
    says("reproduction", f"{min(totals):.0f} to {max(totals):.0f} s and {min(peaks):.0f} to {max(peaks):.0f} MB:")


@pytest.mark.parametrize("name", ["bowling_green", "ccai", "ukp"])
def test_real_annotators(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["annotator_tables.py", str(RESULTS / f"annotators_{name}.json")])
    annotator_tables.main()
    assert capsys.readouterr().out.strip() in PAGES["reproduction"]


def test_what_is_said_of_the_real_annotators():
    reports = {name: list(read(f"annotators_{name}")["seeds"].values()) for name in ("bowling_green", "ccai", "ukp")}
    texts = {name: [seed["num_texts"] for seed in seeds] for name, seeds in reports.items()}
    says("reproduction", f"({max(texts['bowling_green'])} texts for Bowling Green's 33,895 pairs")
    says("reproduction", f"{max(texts['ccai'])} of those in CCAI's 23,875)")
    chosen = {name: {seed["num_components"] for seed in seeds} for name, seeds in reports.items()}
    assert chosen == {"bowling_green": {2}, "ccai": {1}, "ukp": {1}}
    new = {
        (name, k): [mean(s["unseen_statements"][k][of] for s in seeds) for of in ("accuracy", "log_likelihood")]
        for name, seeds in reports.items()
        for k in "1234"
    }
    right, likelihood = zip(*new.values(), strict=True)
    says("reproduction", f"rewards are right {min(right):.2f} to {max(right):.2f} of the time, whatever K")
    votes = {name: value for name, value in zip(new, likelihood, strict=True) if name[0] != "ukp"}
    assert all(value < math.log(0.5) for value in votes.values())  # "less likely than a coin"


def test_what_the_start_is_worth():
    rows = read("planted_trained_without_start")["rows"]
    lower = [mean(row["true_ari"] - row["ari"] for row in rows if row["planted"] == k) for k in (2, 3, 4)]
    shown = "the index was {:.2f} (K = 2), {:.2f} (K = 3) and {:.2f} (K = 4) lower"
    says("reproduction", shown.format(*lower))


@pytest.mark.parametrize("name", ["planted_trained", "planted_frozen"])
def test_planted_mixtures(name):
    page = PAGES["reproduction"].split(f"[{name}.json](results/{name}.json)")[1].split("\n\n")[1]
    rows = read(name)["rows"]
    for planted in (1, 2, 3, 4):
        mine = [row for row in rows if row["planted"] == planted]
        lower = [row["true_ari"] - row["ari"] for row in mine]
        chosen = sum(row["chosen"] == planted for row in mine)
        found = re.search(rf"^\| {planted} \| (.*) \|$", page, re.MULTILINE)[1].split(" | ")
        assert found[0] == str(len(mine)) and found[4] == f"{chosen} of {len(mine)} times {planted}"
        shown = [float(value) for value in (*found[1:3], *re.findall(r"[-\d.]+", found[3]))]
        exact = [mean(row["ari"] for row in mine), mean(row["true_ari"] for row in mine), mean(lower), max(lower)]
        assert shown == pytest.approx(exact, abs=6e-4)


def test_the_game_with_a_saddle_point():
    for row in read("saddle_point_rloo")["results"]:
        shown = [f"{row[name]:.3f}" for name in ("averaged", "averaged_gap", "last", "last_gap")]
        shown = re.escape(" | ".join(shown))
        assert re.search(rf"\| {row['rule']}[^|]* \| {shown} \|", PAGES["welfare"])


def test_one_short_run_on_imdb():
    report = json.loads((ROOT / "examples" / "imdb" / "results" / "short_seed0.json").read_text())
    says("reproduction", f"The run took {report['seconds']['total'] / 60:.0f} minutes on one thread")
    says("reproduction", f"{report['peak_rss_mb'] / 1000:.1f} GB.")
    for policy, label in {"reference": "reference", "single": "single reward", "maxmin": "MaxMin"}.items():
        cells = []
        for group in ("concise", "positive"):
            cells.append(f"{report['gold_utility'][policy][group]:.2f}")
            rate = report["win_rate"].get(policy, {}).get(group)
            cells.append(f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" if rate else "")
        line = f"| {label} | {' | '.join(cells)} | {report['replies'][policy]['mean_tokens']:.1f} |"
        says("reproduction", line.replace("|  |", "| |"))


def test_speed_of_ppo():
    runs = [read(f"ppo_vs_trl_{name}") for name in ("v50257_two_pairs", "v50257", "v512")]
    summaries = [run["summary"] for run in runs]

    def medians(key, digits):
        """`TRL / here` for each file."""
        cells = []
        for run in runs:
            sides = [[side[key] for side in run["runs"] if side["side"] == name] for name in ("trl", "ours")]
            cells.append(" / ".join(f"{median(values):.{digits}f}" for values in sides))
        return " | ".join(cells)

    says("performance", f"episodes per second, TRL 1.12 / here | {medians('episodes_per_second', 2)} |")
    for phase in ("rollout", "update"):
        key = f"peak_{phase}_mib"
        ratios = " | ".join(f"{summary[f'{key}_ratio']:.2f}" for summary in summaries)
        says(
            "performance",
            f"{phase}, MiB, TRL 1.12 / here | {medians(key, 0)} | | ratio (median of pairs) | {ratios} |",
        )
    assert all(summary["optimizer_steps_ratio"] == 1 for summary in summaries)
    for summary in summaries[1:]:
        low, high = summary["mean_score_difference_95"]
        shown = f"{summary['mean_score_difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        says("performance", f"{shown} (TRL gains {summary['gain_of_first']:.3f})")
    speeds = [[side["episodes_per_second"] for side in runs[1]["runs"] if side["side"] == s] for s in ("trl", "ours")]
    pairs = [ours / trl for trl, ours in zip(*speeds, strict=True)]
    ratios = [f"{summary['episodes_per_second_ratio']:.2f}" for summary in summaries]
    ratios[1] += f" ({min(pairs):.1f} to {max(pairs):.1f})"
    says("performance", f"| ratio (median of pairs; range) | {' | '.join(ratios)} |")
    record = read("ppo_vs_trl_v50257_phases")
    trl, ours = (side["peak_rollout_mib"] for side in record["runs"])
    says("performance", f"{trl:.0f} / {ours:.0f} MiB in the rollout")
    says("performance", f"a ratio of {record['summary']['peak_rollout_mib_ratio']:.2f}.")
    eight = read("ppo_k8_vs_k1_v512")["summary"]["episodes_per_second_ratio"]
    says("performance", f"{eight:.3f} times the episodes per second")


def test_a_pretrained_policy_against_trl():
    for name in ("full", "ends", "lora"):
        record = read(f"ppo_gemma_{name}")
        sides = [[side for side in record["runs"] if side["side"] == who] for who in ("trl", "ours")]
        cells = [str(record["settings"]["seeds"])]
        for key, digits in (("episodes_per_cpu_second", 3), ("peak_mib", 0)):
            cells.append(" / ".join(f"{median(run[key] for run in runs):.{digits}f}" for runs in sides))
            cells.append(f"{record['summary'][f'{key}_ratio']:.2f}")
        says("performance", f"| {' | '.join(cells)} |")


def test_a_sampler_that_rounds_and_a_token_on_a_real_vocabulary():
    record = read("sampler_noise")
    exact, rounded, summary = (record[name] for name in ("exact", "rounded", "summary"))
    says("performance", f"final KL {exact['kl']:.2f} and {rounded['kl']:.2f} nats (ratio {summary['kl_ratio']:.4f})")
    says("performance", f"probabilities {summary['ratio_mean']:.5f}, largest {rounded['ratio_max']:.2f}")
    assert record["steps"] == 1000 and abs(summary["kl_ratio"] - 1) < 0.05 and abs(summary["ratio_mean"] - 1) < 0.01
    for row in read("token_step")["rows"]:
        assert row["ratio"] <= 1.5
        says("performance", f"| {row['ratio']:.2f} |")


def test_who_samples():
    rows = read("generation_backends")["rows"]
    assert len(rows) == 12
    for row in rows:
        cells = [row["prompts"], row["limit"], row["mean"] or "the limit", row["generate"], row["continuous_batching"]]
        cells += [f"{row['ratio']:.2f}", row["auto_at_first"], row["auto"]]
        says("performance", f"| {' | '.join(map(str, cells))} |")
        length = row["mean"] or row["limit"]
        chosen = choose_backend("auto", row["prompts"], row["limit"], torch.device("cpu"), length)
        assert chosen == row["auto"]
        speed = row["ratio"] if chosen == "continuous_batching" else 1.0
        assert speed >= 0.95 * max(row["ratio"], 1.0)


def test_memory_of_one_base():
    record = read("base_memory_1b_cpu")
    for stage, label in {"score": "scoring", "ppo": "a MaxMin-PPO step"}.items():
        one, four = (record["runs"][f"{stage}_k{k}"] for k in (1, 4))
        pairs = [f"{one[name]:.0f} / {four[name]:.0f}" for name in ("weights", "peak")]
        says(
            "performance",
            f"| {label} | {one['one_base']:.0f} | {' | '.join(pairs)} | {record['summary'][stage]['ratio']:.3f} |",
        )


def test_costs_of_a_token():
    record = read("token_costs")
    loss, chunks, draw = (record[name] for name in ("loss", "without_gradient", "draw"))
    fewer = loss["arrays"]["cross_entropy"] - loss["arrays"]["token_logprobs"]
    assert round(fewer) == 2
    says("performance", f"{loss['ratio']:.2f} of the time of `cross_entropy` and two arrays less")
    says("performance", f"{chunks['ratio']:.2f} of the time in one piece")
    seconds = draw["seconds"]
    says(
        "performance", f"{seconds['multinomial'] / seconds['projection']:.1f} times the projection onto the vocabulary"
    )
    says("performance", f"in {draw['ratio']:.2f} of the time")


def test_em_at_scale():
    record = read("e_step_scale")
    assert (record["num_pairs"], record["num_annotators"], record["num_components"]) == (10**7, 10**6, 8)
    says("performance", f"{median(record['cpu_seconds']):.1f} s of CPU time, {record['peak_gb']:.1f} GB at the peak")
    record = read("em_vs_published")
    ours, theirs = record["ours"], record["published"]
    says(
        "performance",
        f"| {theirs['e_step_pairs_per_second']:.0f} | {ours['e_step_pairs_per_second']:,.0f} "
        f"({record['e_step_ratio']:.0f} times) |",
    )
    says(
        "performance",
        f"more than {theirs['seconds']:.1f}: stopped after its first iteration, with {theirs['ari'][0]:.3f}",
    )
    says("performance", f"{ours['seconds_to_groups']:.1f} ({record['time_ratio']:.0f} times shorter)")
    says("performance", f"{ours['seconds']:.1f}, with {ours['ari']:.3f} at the end")


def test_how_sure_one_may_be():
    reports = [read(f"sureness_{name}") for name in ("bowling_green", "ccai", "planted")]
    says("reproduction", f"<!-- sureness: begin -->\n{sureness.table(reports)}\n<!-- sureness: end -->")
    for report in reports:
        for seed in report["seeds"].values():
            told = seed["assignments"]["weighed"]
            assert abs(told["expected"] - told["observed"]) < 0.02
            assert seed["new_votes"]["weighed"] >= seed["new_votes"]["whole"]
    (town,), (ccai,) = (report["seeds"].values() for report in reports[:2])

    def excess(entry):
        return f"{entry['expected'] - entry['observed']:.3f}"

    for of, name in ((lambda e: e["whole"], "(all pairs: {} and {})"),
                     (lambda e: e["shared_texts"]["no_text_twice"], "{} too much in Bowling Green and {} in CCAI"),
                     (lambda e: e["shared_texts"]["as_many_at_random"], "at random, {} and {}.")):  # fmt: skip
        says("reproduction", name.format(*(excess(of(entry["assignments"])) for entry in (town, ccai))))
    by_weight = ccai["new_votes"]["by_weight"]
    assert max(by_weight, key=by_weight.get) == "0.05"  # "In CCAI 0.05"


def test_how_few_people_are_a_group():
    rows = read("group_floor")
    many = [row for row in rows if row["minority"] >= 10]
    assert min(min(row["purity"]) for row in many) == 0.82  # "at least 82 %"
    assert min(min(row["accuracy_where_they_differ"]) for row in many) == 0.8
    few = [row for row in rows if row["minority"] < 10]
    assert all(mean(row["purity"]) < 0.5 for row in few)  # "mostly other people, or fitted nobody"
    says("welfare", "to at least 82 % in all six seeds")


def test_the_weight_of_the_evidence_in_em():
    rows = read("em_evidence_weight")["rows"]
    own = {w: [r["ari_with_group"] for r in rows if r["data"] == "bowling_green" and r["weight_in_e_step"] == w]
           for w in (1.0, 0.5, 0.25)}  # fmt: skip
    told = [f"{mean(own[w]):.2f}" for w in (0.5, 0.25, 1.0)]
    says("method", f"(ARI {told[0]} with 0.5 and {told[1]} with 0.25 against {told[2]}, two seeds)")


def test_the_share_of_maxmin_in_a_step():
    record = read("mixin_overhead_grpo")
    own, step = 1000 * record["own_seconds"], 1000 * record["step_seconds"]
    says(
        "benchmarks",
        f"it was {own:.1f} ms of processor time in a step of {step:.0f} ms, {100 * record['share']:.2f} %",
    )


@pytest.mark.parametrize("share, label", [(0.0, "none"), (0.1, "10 %"), (0.2, "20 %"), (0.3, "30 %")])
def test_what_diagnose_finds(share, label):
    worlds = [world for world in read("diagnose") if world["share"] == share]
    groups = ", ".join(str(world["num_groups"]) for world in worlds)
    shares = "; ".join(" / ".join(f"{100 * value:.1f}" for value in world["shares"]) for world in worlds)
    ordered = sum(world["gaps"].index(max(world["gaps"])) == len(world["gaps"]) - 1 for world in worlds)
    verdict = f"{ordered} of {len(worlds)}" if share else "one group"
    says("diagnose", f"| {label} | {groups} | {shares} % | {verdict} |")
    assert all(1 <= world["cpu_seconds"] <= 2 for world in worlds)  # "one to two seconds"


def test_what_is_said_of_trunks():
    """Paired differences over the five seeds; 2.776 is Student's t for four degrees of freedom."""
    right = {(row["variant"], row["seed"]): row["heldout_accuracy"] for row in read("ablation_trunk")["rows"]}

    def gain(share, one, other, group="positive"):
        pairs = [(right[f"{share}, {one}", seed], right[f"{share}, {other}", seed]) for seed in range(5)]
        return [ours[group] - theirs[group] for ours, theirs in pairs]

    for one, other, form in [("full", "head", "{:.3f}"), ("frozen", "full", "{:+.3f}"), ("frozen", "head", "{:+.3f}")]:
        values = gain("0.01", one, other)
        margin = 2.776 * stdev(values) / 5**0.5
        low, high = mean(values) - margin, mean(values) + margin
        says("reproduction", f"{form.format(mean(values))} [{low:+.3f}, {high:+.3f}]")
        if other == "head":
            assert sum(value > 0 for value in values) == 4  # "in four of five seeds"
    costs = [
        -mean(gain(share, "frozen", other, group))
        for share in ("0.05", "0.10", "0.20")
        for other in ("head", "full")
        for group in ("positive", "concise")
    ]
    assert (round(min(costs), 2), round(max(costs), 2)) == (0.01, 0.03)


def test_what_raw_rewards_cost_whom():
    wins = {(row["variant"], row["seed"]): row["win_rate"] for row in read("ablation_policy")["rows"]}

    def change(variant, group):
        values = [wins[variant, seed][group] - wins["raw", seed][group] for seed in range(5)]
        margin = 2.776 * stdev(values) / 5**0.5  # Student's t for four degrees of freedom
        return mean(values), mean(values) - margin, mean(values) + margin

    middle, low, high = change("raw, majority x 3", "concise")
    says("reproduction", f"the majority loses {-middle:.3f} [{-high:.3f}, {-low:.3f}] of its wins")
    middle, low, high = change("raw, minority x 3", "positive")
    says("reproduction", f"most of it in one seed ({middle:+.3f} [{low:+.3f}, {high:+.3f}])")


def test_planted_rankings():
    found = read("planted_rankings")
    assert list(found) == ["0", "1", "2", "3", "4"]
    for name in found["0"]:
        of = {key: mean(seed[name][key] for seed in found.values()) for key in found["0"][name]}
        numbers = " | ".join(f"{of[key]:.3f}" for key in ("ari", "ari_bayes", "right", "announced"))
        says("reproduction", f"| {name} | {of['rows']:,.0f} | {numbers} | {of['predictive_weight']:.2f} |")
    for name, share in (("best of four", 0.98), ("full ranking", 1.00)):
        ratios = [seed[name]["ari"] / seed[name]["ari_bayes"] for seed in found.values()]
        assert min(ratios) > 0.92
        total = [sum(seed[name][key] for seed in found.values()) for key in ("ari", "ari_bayes")]
        assert round(total[0] / total[1], 2) == share


@pytest.mark.parametrize("name", [path.stem for path in sorted(RESULTS.glob("rankings_*.json"))])
def test_rankings_of_people(name):
    found = read(name)
    assert list(found) == ["0", "1", "2"]
    says("reproduction", "\n".join(real_rankings.table(found)))
    chance = mean(of["rankings"]["top_1_by_chance"] for of in found.values())
    says("reproduction", f"top-1 by chance {chance:.3f}; [{name}.json]")


def test_what_is_said_of_sushi():
    found = read("rankings_sushi").values()
    gains = {name: [of["rankings"][name] - of["pairs"][name] for of in found] for name in ("top_1", "tau")}
    low, high = ([f"{end(gains[name]):.3f}" for name in gains] for end in (min, max))
    says("reproduction", f"by {low[0]} to {high[0]} in top-1 and {low[1]} to {high[1]} in tau")
    assert all(of["rankings"]["verdict_kind"] == "groups" for of in found)
    assert [of["pairs"]["verdict_kind"] for of in found].count("cannot_tell") == 2
    assert all(
        0.05 < of["rankings"]["gain_of_2"] < 0.065 and of["rankings"]["gain_of_2_error"] < 0.0102 for of in found
    )
