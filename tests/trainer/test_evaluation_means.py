# SPDX-License-Identifier: Apache-2.0
"""An evaluation is one of its whole set: batches and ranks change no mean, no minimum, no gap.

Replies are injected: a function of the prompt, of different lengths, some cut off. The oracle of GRPO, RLOO and PPO is
arithmetic on those replies; that of reward training is a batch of one pair.
"""

import json
import math
import statistics

import pytest
import torch

from tests.launcher import launch
from tests.trainer.trl_helpers import save_base


COUNT = 7  # divided by neither 2 processes nor 2 rows
WORDS = ["the film", "a movie story", "plot of the film", "acting", "the plot", "a story", "film"]
CHOSEN = ["good", "great superb", "very good", "superb", "good but long", "great", "dull"]
REJECTED = ["dull", "weak", "long", "bad dull weak", "weak", "dull", "good"]
SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
from datasets import Dataset
from tests.conftest import build_word_tokenizer
from tests.trainer import test_evaluation_means as case

out, base, folder, sizes = sys.argv[1:5]
rank = int(os.environ.get("RANK", 0))
report = {size: case.measure(base, f"{folder}/{size}", build_word_tokenizer(), size) for size in json.loads(sizes)}
open(f"{out}.{rank}", "w").write(json.dumps(report))
"""


def reply_to(prompt_ids, number=0):
    """Tokens of the injected reply: 2 ends it, 6 tokens are the limit."""
    size = (7 * prompt_ids[-1] + 3 * len(prompt_ids) + number) % 6 + 1
    ids = [(5 * prompt_ids[-1] + 3 * i + number) % 9 + 3 for i in range(size)]
    return ids if size == 6 else [*ids, 2]


def short(completion_ids, **kwargs):
    return [-float(len(ids)) / 4 for ids in completion_ids]


def odd(completion_ids, **kwargs):
    """Scores two replies of three."""
    return [None if sum(ids) % 3 == 0 else float(sum(ids) % 5) for ids in completion_ids]


def measure(base, folder, tokenizer, size):
    """Metrics of an evaluation of each trainer, with `size` rows a batch."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from tests.trainer.ppo_helpers import build_ppo_trainer, gpt2
    from tests.trainer.trl_helpers import CONFIG_OF, build_trl_trainer
    from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardConfig, MixtureRewardTrainer

    found = {}
    rows = Dataset.from_dict({"prompt": WORDS})
    for trainer_class in CONFIG_OF:
        for generations in (1, 2):
            if size % generations:
                continue

            class Replayed(trainer_class):
                def _generate_single_turn(self, prompt_ids, *args, **kwargs):
                    # Rows of a prompt are neighbours; across ranks, too.
                    number = range(len(prompt_ids)) if generations > 1 else [0] * len(prompt_ids)
                    replies = [reply_to(ids, i % generations) for i, ids in zip(number, prompt_ids)]
                    return replies if trainer_class.__name__.endswith("RLOOTrainer") else (replies, None)

            trainer = build_trl_trainer(
                Replayed,
                base,
                tokenizer,
                folder,
                reward_funcs={"short": short, "odd": odd},
                eval_dataset=rows,
                per_device_eval_batch_size=size,
                num_generations_eval=generations,
                utility="raw",
                beta=0.3,
            )
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p.add_(0.05 * torch.sin(torch.arange(p.numel()).float()).view_as(p))
            found[f"{trainer_class.__name__}-{generations}"] = trainer.evaluate()
            assert trainer._evaluation is None

    class Sampled(MaxMinPPOTrainer):
        def _sample(self, rows, *stream):
            from trl_maxmin.trainer.ppo.rollout import Rollout

            ids = [self._read_prompt(row) for row in rows]
            replies = [(reply_to(own), reply_to(own)[-1] == 2) for own in ids]
            return Rollout.build(rows, ids, replies, self._tokenizer, 0, self.accelerator.device)

    trainer = build_ppo_trainer(
        folder,
        tokenizer,
        Sampled,
        MaxMinPPOConfig,
        model=AutoModelForCausalLM.from_pretrained(base),
        reward_model={"short": short, "odd": odd},
        eval_dataset=rows,
        per_device_eval_batch_size=size,
        utility="raw",
        missing_eos_penalty=0.5,
    )
    with torch.no_grad():
        for p in trainer.policy_model.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel()).float()).view_as(p))
    found["MaxMinPPOTrainer"] = trainer.evaluate()

    pairs = {"prompt": WORDS, "chosen": CHOSEN, "rejected": REJECTED, "annotator_id": list("aabbccd")}
    args = MixtureRewardConfig(
        output_dir=folder,
        num_components=2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        per_device_eval_batch_size=size,
        save_strategy="no",
        heldout_fraction=0.0,
    )
    pairs = Dataset.from_dict(pairs)
    trainer = MixtureRewardTrainer(
        model=gpt2(vocab_size=len(tokenizer)),
        args=args,
        processing_class=tokenizer,
        train_dataset=pairs,
        eval_dataset=pairs,
    )
    with torch.no_grad():
        for k, component in enumerate(trainer.mixture.components):
            for p in component.parameters():
                p.copy_(torch.cos(torch.arange(p.numel()).float() + k).view_as(p))
    found["MixtureRewardTrainer"] = trainer.evaluate()
    timing = ("runtime", "per_second", "preparation_time", "num_tokens", "epoch")
    return {
        name: {key: value for key, value in metrics.items() if not key.endswith(timing)}
        for name, metrics in found.items()
    }


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    from tests.conftest import build_word_tokenizer

    folder = tmp_path_factory.mktemp("evaluation")
    base = save_base(folder / "base", build_word_tokenizer())
    return str(base), {size: measure(str(base), str(folder / str(size)), build_word_tokenizer(), size)
                       for size in (1, 2, 8, 64)}  # fmt: skip


def assert_alike(found, expected):
    for name, metrics in found.items():
        assert metrics.keys() == expected[name].keys(), name
        for key, value in metrics.items():
            assert value == pytest.approx(expected[name][key], abs=1e-6, rel=1e-6), (name, key)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_batches_change_nothing(single, size):
    assert_alike(single[1][size], single[1][64])


def test_two_processes_change_nothing(single, tmp_path):
    base, expected = single
    reports = launch(SCRIPT, 2, tmp_path / "out", base, str(tmp_path / "runs"), json.dumps([1, 2, 8]))
    for report in reports:
        for size, found in report.items():
            assert_alike(found, {**expected[64], **expected[int(size)]})


def test_the_numbers_are_those_of_the_replies(single):
    from tests.conftest import build_word_tokenizer

    tokenizer = build_word_tokenizer()
    replies = [reply_to(tokenizer(text)["input_ids"]) for text in WORDS]
    assert len({len(ids) for ids in replies}) > 2 and any(ids[-1] != 2 for ids in replies)
    lengths = short(replies)
    scored = [value for value in odd(replies) if value is not None]
    assert 0 < len(scored) < COUNT
    by_hand = {"short": statistics.mean(lengths), "odd": statistics.mean(scored)}
    for name, metrics in single[1][2].items():
        if name == "MixtureRewardTrainer" or name.endswith("-2"):
            continue
        for component, mean in by_hand.items():
            assert metrics[f"eval_rewards/{component}/mean"] == pytest.approx(mean)
            assert metrics[f"eval_maxmin/utility/{component}"] == pytest.approx(mean)
        assert metrics["eval_maxmin/worst_utility"] == pytest.approx(min(by_hand.values()))
        assert metrics["eval_maxmin/gap"] == pytest.approx(max(by_hand.values()) - min(by_hand.values()))
        assert metrics["eval_completions/clipped_ratio"] == pytest.approx(sum(r[-1] != 2 for r in replies) / COUNT)
        assert metrics["eval_completions/mean_length"] == pytest.approx(sum(map(len, replies)) / COUNT)
        if "GRPO" in name or "RLOO" in name:
            assert metrics["eval_rewards/odd/std"] == pytest.approx(statistics.stdev(scored))
            assert metrics["eval_completions/min_length"] == min(map(len, replies))
            assert math.isfinite(metrics["eval_loss"]) and metrics["eval_kl"] != 0
