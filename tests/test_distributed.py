# SPDX-License-Identifier: Apache-2.0
"""Gathering and reducing, with one process and with two gloo processes on loopback."""

import pytest
import torch
from accelerate import Accelerator

from tests.launcher import launch
from trl_maxmin.distributed import (
    accumulate,
    backward,
    gather_objects,
    gather_rows,
    local_slice,
    mean_over_ranks,
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
    assert torch.equal(mean_over_ranks(accelerator, rows), rows)
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


COLLECTIVES = """
import json, os, sys, torch
from accelerate import Accelerator
from trl_maxmin.distributed import accumulate, gather_objects, gather_rows, local_slice, mean_over_ranks
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
    "mean": mean_over_ranks(accelerator, torch.tensor([1.0 + rank])).tolist(),
    "objects": gather_objects(accelerator, [f"r{rank}"] * (rank + 1)),
    "gradients": gradients,
}
open(sys.argv[1] + f".{rank}", "w").write(json.dumps(result))
"""


@pytest.mark.slow
def test_two_processes_gather_and_reduce(tmp_path):
    results = launch(COLLECTIVES, 2, tmp_path / "collectives")
    for result in results:
        assert result["type"] == "DistributedType.MULTI_CPU"
        assert result["rows"] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert result["empty"] == [[0.0, 1.0]]
        assert result["counts"] == [2, 1] and result["slice"]
        assert result["sum"] == [3.0] and result["mean"] == [1.5]
        assert result["objects"] == ["r0", "r1", "r1"]
    # Not shared after the first micro-batch; after the second the mean over ranks of 2 * (rank + 1).
    assert [result["gradients"][0] for result in results] == [1.0, 2.0]
    assert [result["gradients"][1] for result in results] == [3.0, 3.0]
