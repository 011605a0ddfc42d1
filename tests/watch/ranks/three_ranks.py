"""The loops of the other scripts on three ranks, of which rank 1 reads the fault."""

import sys
from pathlib import Path

import ddp_loops
import sharded_loops
import torch.distributed as dist
from faults import ones, zero_input
from two_ranks import note

if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    replicas = ddp_loops.stopped(ddp_loops.accumulating, zero_input, folder / "replicas")
    shards = sharded_loops.stopped(sharded_loops.Scene(), ones, folder / "shards")
    note({"replicas": replicas, "shards": shards})
