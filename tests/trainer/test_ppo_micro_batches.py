# SPDX-License-Identifier: Apache-2.0
"""Updates in micro-batches by tokens, and the first of them on the rollout's own forward: the same numbers."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from tests.trainer.ppo_helpers import build_ppo_trainer, gpt2, lora, weights
from trl_maxmin.trainer.ppo import setup
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer
from trl_maxmin.trainer.ppo.rollout import Rollout


def lengths(rollout, part):
    return len(part) * (
        max(len(rollout.prompt_ids[i]) for i in part) + max(len(rollout.completion_ids[i]) for i in part)
    )


def test_micro_batches_by_tokens_hold_every_row_once_and_no_more_than_they_may():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (2, 40), generator=generator).tolist()
    rollout = SimpleNamespace(
        prompt_ids=[[0] * n for n in sizes[0]], completion_ids=[[0] * n for n in sizes[1]], __len__=lambda self: 40
    )
    rollout.by_length = lambda rows: Rollout.by_length(rollout, rows)
    for most in (1, 55, 200, 10_000):
        parts = Rollout.micro_batches(rollout, range(40), 4, most)
        assert sorted(row for part in parts for row in part) == list(range(40))
        assert parts == Rollout.micro_batches(rollout, list(range(40))[::-1], 4, most)
        assert all(lengths(rollout, part) <= most or len(part) == 1 for part in parts)
        # No part had room for the first row of the next.
        for part, following in zip(parts, parts[1:], strict=False):
            assert lengths(rollout, [*part, following[0]]) > most
    assert Rollout.micro_batches(rollout, range(10), 4) == [rollout.by_length(range(10))[i : i + 4] for i in (0, 4, 8)]


def gradients(tmp_path, tokenizer, **options):
    """Loss and gradients of the first update, before they are applied."""

    class Stopped(PPOTrainer):
        def _optimise(self, rollout):
            loss = super()._optimise(rollout)
            self.seen.append((loss, {n: p.grad.clone() for n, p in self._root.named_parameters()}))
            return loss

    trainer = build_ppo_trainer(
        tmp_path, tokenizer, Stopped, per_device_train_batch_size=4, num_ppo_epochs=1, max_steps=1, **options
    )
    trainer.seen, parts = [], []
    split = trainer._micro_batches
    trainer._micro_batches = lambda *args: parts.append(split(*args)) or parts[-1]
    trainer.train()
    return *trainer.seen[0], parts[-1]


def test_loss_and_gradients_by_tokens_are_those_by_rows(tmp_path, word_tokenizer):
    by_rows = gradients(tmp_path, word_tokenizer)
    by_tokens = gradients(tmp_path, word_tokenizer, max_tokens_per_micro_batch=22)
    whole = gradients(tmp_path, word_tokenizer, max_tokens_per_micro_batch=1000)
    assert [len(parts) for *_, parts in (by_rows, whole)] == [2, 1] and len(by_tokens[2]) > 2
    for loss, grads, _ in (by_tokens, whole):
        torch.testing.assert_close(loss, by_rows[0], atol=1e-6, rtol=1e-6)
        for name, grad in by_rows[1].items():
            torch.testing.assert_close(grads[name], grad, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["full", "new adapter", "own adapter", "critic adapter", "checkpointing"])
def test_the_first_update_on_the_rollouts_forward_is_that_on_its_own(tmp_path, word_tokenizer, monkeypatch, kind):
    def run(keep):
        options = {"model": gpt2()}
        if kind == "own adapter":
            from peft import get_peft_model

            torch.manual_seed(1)
            options["model"] = get_peft_model(gpt2(), lora())
        elif "adapter" in kind:
            options |= {"peft_config": lora(), "critic_adapter": kind == "critic adapter"}
        if kind == "checkpointing":
            options["gradient_checkpointing"] = True
        trainer = build_ppo_trainer(
            tmp_path, word_tokenizer, per_device_train_batch_size=8, gradient_accumulation_steps=1, **options
        )
        if not keep:
            monkeypatch.setattr(trainer, "_is_first_update", lambda rollout: False)
        forwards = []
        forward = trainer._forward
        monkeypatch.setattr(trainer, "_forward", lambda *a, **k: forwards.append(1) or forward(*a, **k))
        trainer.train()
        return weights(trainer), len(forwards)

    (kept, fewer), (own, all_of_them) = run(True), run(False)
    assert all_of_them - fewer == 2  # one a rollout
    for name, weight in own.items():
        torch.testing.assert_close(kept[name], weight, atol=1e-6, rtol=1e-6, msg=name)


def test_sizes_that_cannot_be(tmp_path, word_tokenizer):
    with pytest.raises(ValueError, match="max_tokens_per_micro_batch must be above 0, got 0"):
        build_ppo_trainer(tmp_path, word_tokenizer, max_tokens_per_micro_batch=0)
    args = SimpleNamespace(max_tokens_per_micro_batch=512)
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        with pytest.raises(ValueError, match="max_tokens_per_micro_batch=512 gives processes different numbers"):
            setup.refuse_uneven_micro_batches(args, SimpleNamespace(distributed_type=kind))
    setup.refuse_uneven_micro_batches(args, SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
