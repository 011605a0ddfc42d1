"""Ways to train on several ranks that no replay covers are refused by name, before the first step."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from nangrid import Watch
from nangrid.records.errors import InputError


@pytest.fixture(autouse=True)
def four_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def mesh(*sizes: int) -> DeviceMesh:
    return init_device_mesh("cpu", sizes, mesh_dim_names=("a", "b")[: len(sizes)])


def tensor_parallel() -> nn.Module:
    return parallelize_module(nn.Sequential(nn.Linear(4, 4)), mesh(4), {"0": ColwiseParallel()})


def tensor_parallel_in_shards() -> nn.Module:
    two = mesh(2, 2)
    model = parallelize_module(nn.Sequential(nn.Linear(4, 4)), two["b"], {"0": ColwiseParallel()})
    return fully_shard(model, mesh=two["a"])


def replicated_shards() -> nn.Module:
    return fully_shard(nn.Linear(4, 4), mesh=mesh(2, 2))


def part_of_the_ranks() -> nn.Module:
    return fully_shard(nn.Linear(4, 4), mesh=mesh(2, 2)["b"])


def flat() -> nn.Module:
    return FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (tensor_parallel, "tensor parallelism:"),
        (tensor_parallel_in_shards, "tensor parallelism with fully_shard:"),
        (replicated_shards, r"HSDP \(fully_shard with replicas\):"),
        (part_of_the_ranks, "fully_shard over a part of the ranks:"),
        (flat, r"FullyShardedDataParallel \(FSDP1\):"),
    ],
)
def test_models(make, named: str) -> None:
    model = make()
    with pytest.raises(InputError, match=f"^Watch does not support {named} use DistributedDataParallel,"):
        Watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_pipeline() -> None:
    model = nn.Linear(4, 4)
    stage = PipelineStage(model, 0, 4, torch.device("cpu"))
    with pytest.raises(InputError, match="pipeline parallelism"):
        Watch(stage, torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_sharded_optimizer() -> None:
    model = nn.Linear(4, 4)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(InputError, match=r"ZeroRedundancyOptimizer \(ZeRO 1\)"):
        Watch(model, optimizer)


def test_join(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DistributedDataParallel(nn.Linear(4, 4))
    monkeypatch.setattr("nangrid.watch.deferred.ranks_of_this_run", lambda: None)
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with model.join(), pytest.raises(InputError, match=r"DistributedDataParallel\.join: give all ranks as many"):
        watch.batches([])
