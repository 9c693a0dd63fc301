# SPDX-License-Identifier: Apache-2.0
"""Gathering and reducing, with one process and with two gloo processes on loopback."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

from tests.launcher import launch
from trl_maxmin.distributed import (
    accumulate,
    backward,
    gather_objects,
    gather_rows,
    keep_float32_outputs,
    local_slice,
    rows_per_rank,
    sum_over_ranks,
)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_one_process_gathers_itself(accelerator):
    rows = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    assert rows_per_rank(accelerator, 3) == [3]
    assert local_slice(accelerator, [3]) == slice(0, 3)
    for result in (gather_rows(accelerator, rows), sum_over_ranks(accelerator, rows)):
        assert torch.equal(result, rows) and not result.requires_grad
    assert gather_objects(accelerator, ["a", [1]]) == ["a", [1]]


def test_accumulate_says_when_gradients_are_shared_and_restores(accelerator):
    model = torch.nn.Linear(2, 1)
    state = accelerator.gradient_state
    state._set_sync_gradients(True)
    for is_last in (False, True):
        with accumulate(accelerator, model, is_last):
            assert state.sync_gradients == is_last
            backward(accelerator, model(torch.ones(1, 2)).sum())
        assert state.sync_gradients
    with pytest.raises(RuntimeError, match="inside"), accumulate(accelerator, model, False):
        raise RuntimeError("inside")
    assert state.sync_gradients
    assert model.weight.grad.tolist() == [[2.0, 2.0]]


class TestFloat32Outputs:
    """What FSDP2 hands out, from the policy that accelerate makes of `mixed_precision` or from the user's."""

    @staticmethod
    def policy(mixed_precision=None, version=2, **settings):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=version, **settings)
        if mixed_precision:
            plugin.set_mixed_precision(mixed_precision)
        keep_float32_outputs(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
        return plugin.mixed_precision_policy

    @pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
    def test_computing_stays_in_halves_and_nothing_else(self, name, dtype):
        assert self.policy(name) == MixedPrecisionPolicy(dtype, torch.float32, None)

    @pytest.mark.parametrize("output_dtype", [None, torch.float32])
    def test_a_policy_of_the_users_own_is_kept(self, output_dtype):
        own = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, output_dtype, cast_forward_inputs=False)
        assert self.policy("bf16", mixed_precision_policy=own) is own

    def test_a_policy_of_the_users_own_that_rounds_is_refused(self):
        own = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.bfloat16)
        with pytest.raises(ValueError, match="output_dtype=torch.bfloat16.*Set it to torch.float32 or None"):
            self.policy(mixed_precision_policy=own)

    def test_full_precision_and_others_than_fsdp2_are_left_alone(self, accelerator):
        assert self.policy() is None
        assert self.policy("fp32") == MixedPrecisionPolicy(torch.float32, torch.float32, torch.float32)
        assert self.policy("bf16", version=1).reduce_dtype == torch.bfloat16
        keep_float32_outputs(accelerator)


COLLECTIVES = """
import json, os, sys, torch
from accelerate import Accelerator
from trl_maxmin.distributed import accumulate, gather_objects, gather_rows, local_slice
from trl_maxmin.distributed import rows_per_rank, sum_over_ranks

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
rows = torch.arange(4.0 * rank, 4.0 * rank + 2 * (2 - rank)).reshape(2 - rank, 2)  # rank 0 has two rows, rank 1 one
counts = rows_per_rank(accelerator, len(rows))
model = accelerator.prepare(torch.nn.Linear(2, 1, bias=False))
with torch.no_grad():
    model.module.weight.zero_()
gradients = []
for is_last in (False, True):
    with accumulate(accelerator, model, is_last):
        accelerator.backward(model(torch.full((1, 2), rank + 1.0)).sum())
    gradients.append(model.module.weight.grad[0, 0].item())
result = {
    "type": str(accelerator.distributed_type),
    "rows": gather_rows(accelerator, rows).tolist(),
    "empty": gather_rows(accelerator, rows[: 1 - rank]).tolist(),
    "counts": counts,
    "slice": gather_rows(accelerator, rows)[local_slice(accelerator, counts)].tolist() == rows.tolist(),
    "sum": sum_over_ranks(accelerator, torch.tensor([1.0 + rank])).tolist(),
    "objects": gather_objects(accelerator, [f"r{rank}"] * (rank + 1)),
    "gradients": gradients,
}
open(sys.argv[1] + f".{rank}", "w").write(json.dumps(result))
"""


SHARDED = """
import json, sys, torch
import torch.distributed as dist
from pathlib import Path
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from trl_maxmin.distributed import accumulate

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
assert accelerator.is_fsdp2
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
fully_shard(model[0])
fully_shard(model, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
data = torch.randn(3, 2, 5, 4)  # micro-batches, ranks, rows
held = []
for number, rows in enumerate(data[:, rank]):
    with accumulate(accelerator, model, is_last=number == len(data) - 1):
        model(rows).square().sum().backward()
    held.append([p.grad is not None and type(p.grad).__name__ for p in model.parameters()])
result = {
    "held": held, "data": data.tolist(),
    "gradients": [p.grad.full_tensor().flatten().tolist() for p in model.parameters()],
}
Path(f"{sys.argv[1]}.{rank}").write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_fsdp2_holds_shards_of_the_gradients_between_micro_batches(tmp_path):
    results = launch(SHARDED, 2, tmp_path / "run")
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    (whole(torch.tensor(results[0]["data"])).square().sum() / 2).backward()  # ranks are averaged
    for result in results:
        assert result["held"] == [["DTensor"] * 4] * 3
        for gradient, parameter in zip(result["gradients"], whole.parameters(), strict=True):
            assert gradient == pytest.approx(parameter.grad.flatten().tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_two_processes_gather_and_reduce(tmp_path):
    results = launch(COLLECTIVES, 2, tmp_path / "collectives")
    for result in results:
        assert result["type"] == "DistributedType.MULTI_CPU"
        assert result["rows"] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert result["empty"] == [[0.0, 1.0]]
        assert result["counts"] == [2, 1] and result["slice"]
        assert result["sum"] == [3.0]
        assert result["objects"] == ["r0", "r1", "r1"]
    # Not shared after the first micro-batch; after the second the mean over ranks of 2 * (rank + 1).
    assert [result["gradients"][0] for result in results] == [1.0, 2.0]
    assert [result["gradients"][1] for result in results] == [3.0, 3.0]
