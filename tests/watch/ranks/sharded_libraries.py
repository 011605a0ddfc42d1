"""The loops of spread_libraries.py with fully_shard (FSDP2)."""

import sys
from pathlib import Path

from accelerate import FullyShardedDataParallelPlugin
from spread_libraries import found_by_ranks, use
from two_ranks import note

if __name__ == "__main__":
    use("FSDP")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    spread = {"fsdp": "full_shard", "fsdp_config": {"fsdp_version": 2}}
    note(found_by_ranks(Path(sys.argv[1]), {"fsdp_plugin": plugin}, **spread))
