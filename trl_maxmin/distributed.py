# SPDX-License-Identifier: Apache-2.0
"""The only place that gathers, reduces and broadcasts.

Every function takes the [`~accelerate.Accelerator`] of a trainer, costs nothing with one process, and must be reached
by all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object


_Result = TypeVar("_Result")


def rows_per_rank(accelerator: Accelerator, num_local: int) -> list[int]:
    """How many rows each rank holds.

    Args:
        num_local (`int`): rows of this rank.

    Returns:
        `list[int]`: one count per rank.
    """
    if accelerator.num_processes == 1:
        return [num_local]
    return accelerator.gather(torch.tensor([num_local], device=accelerator.device)).tolist()


def gather_rows(accelerator: Accelerator, rows_local: torch.Tensor, counts: list[int] | None = None) -> torch.Tensor:
    """Rows of all ranks, in the order of the ranks; ranks may hold different numbers of rows, none included.

    Args:
        rows_local (`torch.Tensor` of shape `(B, ...)`): rows of this rank; the other dimensions agree on all ranks.
        counts (`list[int]`, *optional*): [`rows_per_rank`], where the caller has it already.

    Returns:
        `torch.Tensor` of shape `(N, ...)`: the same on every rank. No gradient passes.
    """
    if accelerator.num_processes == 1:
        return rows_local.detach()
    counts = rows_per_rank(accelerator, rows_local.shape[0]) if counts is None else counts
    width = max(counts)
    padded = rows_local.new_zeros((width, *rows_local.shape[1:]))
    padded[: rows_local.shape[0]] = rows_local.detach()
    gathered = accelerator.gather(padded.to(accelerator.device))
    return torch.cat([gathered[rank * width : rank * width + count] for rank, count in enumerate(counts)])


def gather_evaluated(accelerator: Accelerator, rows_local: torch.Tensor) -> torch.Tensor:
    """Rows of one batch of an evaluation, of all ranks; those that only fill up the last batch are left out.

    Args:
        rows_local (`torch.Tensor` of shape `(B, ...)`): of a batch of a prepared data loader, as many on every rank.

    Returns:
        `torch.Tensor` of shape `(N, ...)`: the same on every rank. No gradient passes.
    """
    return accelerator.gather_for_metrics(rows_local.detach())


def gather_objects(accelerator: Accelerator, objects_local: list) -> list:
    """Python objects of all ranks, in the order of the ranks; ranks may hold different numbers of them.

    Args:
        objects_local (`list`): of this rank; they are pickled.

    Returns:
        `list`: the same on every rank.
    """
    return list(objects_local) if accelerator.num_processes == 1 else gather_object(list(objects_local))


def on_main(accelerator: Accelerator, function: Callable[[], _Result]) -> _Result:
    """What a function returns on the main process, on every rank; the others wait for as long as it takes.

    A rank that waits in a collective is given up after the time limit of its process group, ten minutes under NCCL:
    people and endpoints that are asked for judgements take longer.

    Args:
        function (`Callable`): called on the main process alone; what it returns is pickled.

    Returns:
        what the function returned.

    Raises:
        RuntimeError: on the other ranks, where the function raised on the main one.
    """
    if accelerator.num_processes == 1:
        return function()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    outcome: list[Any] = [None, None]
    try:
        if accelerator.is_main_process:
            outcome[0] = function()
    except BaseException as error:
        outcome[1] = f"{type(error).__name__}: {error}"
        raise
    finally:
        dist.broadcast_object_list(outcome, src=0, group=patient)
        dist.destroy_process_group(patient)
    if outcome[1] is not None:
        raise RuntimeError(f"The main process failed: {outcome[1]}")
    return outcome[0]


def local_slice(accelerator: Accelerator, counts: list[int]) -> slice:
    """Where this rank's rows are in what [`gather_rows`] returned.

    Args:
        counts (`list[int]`): [`rows_per_rank`].

    Returns:
        `slice`: of the gathered rows.
    """
    start = sum(counts[: accelerator.process_index])
    return slice(start, start + counts[accelerator.process_index])


def sum_over_ranks(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over ranks, the same on every rank. No gradient passes.

    Args:
        tensor (`torch.Tensor`): the same shape on every rank; on any device.

    Returns:
        `torch.Tensor`: as `tensor`.
    """
    tensor = tensor.detach()
    if accelerator.num_processes == 1:
        return tensor
    return accelerator.reduce(tensor.to(accelerator.device, copy=True), reduction="sum").to(tensor.device)


def _fsdp2_plugin(accelerator: Accelerator) -> Any:
    """accelerate's settings of FSDP2, or `None` where something else shards or nothing does."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return plugin if getattr(plugin, "fsdp_version", 1) == 2 else None


def keep_float32_outputs(accelerator: Accelerator) -> None:
    """Let FSDP2 hand out what a root module returns as it is, and add gradients up in float32.

    accelerate's own mixed precision rounds the outputs of every sharded module, the root's too: log-probabilities
    and values would keep the 8 significant bits of bfloat16. Has to come before `prepare`.

    Args:
        accelerator ([`~accelerate.Accelerator`]): its `fsdp_plugin` is changed in place. A policy of the user's own
            (`mixed_precision_policy`) is kept.

    Raises:
        ValueError: a policy of the user's own that rounds outputs.
    """
    plugin = _fsdp2_plugin(accelerator)
    policy = None if plugin is None else plugin.mixed_precision_policy
    if policy is None or policy.output_dtype in (None, torch.float32):
        return
    # The three types are one where accelerate chose them from `mixed_precision`.
    if not policy.param_dtype == policy.reduce_dtype == policy.output_dtype:
        raise ValueError(
            f"The `mixed_precision_policy` of FSDP2 has output_dtype={policy.output_dtype}, which would round "
            "log-probabilities and values. Set it to torch.float32 or None, or leave the policy out: "
            "`mixed_precision` alone gives one that keeps them."
        )
    plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


@contextmanager
def accumulate(accelerator: Accelerator, model: torch.nn.Module, is_last: bool) -> Iterator[None]:
    """Forward and backward of one micro-batch: gradients meet across ranks on the last one only, if waiting is free.

    `transformers` decides by itself when gradients are shared; a step that is made inside `training_step` has to say
    so for DDP and FSDP1 (`no_sync`), and for DeepSpeed, whose engine steps in the backward pass that is marked as the
    last. Under FSDP2 every micro-batch shares them: until then each rank would hold those of the whole model.

    Args:
        model (`torch.nn.Module`): the wrapped model.
        is_last (`bool`): whether this micro-batch completes the step.
    """
    state = accelerator.gradient_state
    previous = state.sync_gradients
    state._set_sync_gradients(is_last)
    # DeepSpeed does without: ZeRO-2 and ZeRO-3 reduce in every backward pass and refuse `no_sync`.
    shards = accelerator.distributed_type == DistributedType.DEEPSPEED or _fsdp2_plugin(accelerator) is not None
    waits = not is_last and not shards
    try:
        with accelerator.no_sync(model) if waits else nullcontext():
            yield
    finally:
        state._set_sync_gradients(previous)


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Backward pass of a loss that is scaled as it should be.

    Args:
        loss (`torch.Tensor`): scalar. DeepSpeed is told not to divide it by the accumulation steps of the loop, which
            are micro-batches of prompts here.
    """
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
