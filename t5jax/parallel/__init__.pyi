"""Mesh, sharding and processes."""

from .distributed import (
    HostsConfig as HostsConfig,
    StopVote as StopVote,
    abort_together as abort_together,
    agree_on as agree_on,
    barrier as barrier,
    broadcast_from_main as broadcast_from_main,
    gather_arrays as gather_arrays,
    initialize as initialize,
    is_main_process as is_main_process,
    log_once as log_once,
    main_process_first as main_process_first,
    process_count as process_count,
    process_index as process_index,
)
from .mesh import (
    MeshConfig as MeshConfig,
    make_mesh as make_mesh,
)
from .rendezvous import (
    RunAborted as RunAborted,
)
from .sharding import (
    BATCH_AXES as BATCH_AXES,
    BATCH_SPEC as BATCH_SPEC,
    DeviceBatch as DeviceBatch,
    PartitionRules as PartitionRules,
    Sharder as Sharder,
    check_batch_size as check_batch_size,
    check_lengths as check_lengths,
    global_batch_size as global_batch_size,
    infer_shardings as infer_shardings,
    local_rows as local_rows,
    matches_path as matches_path,
    num_shards as num_shards,
    on_cpu as on_cpu,
    path_name as path_name,
    shard_batch as shard_batch,
    shard_rows as shard_rows,
    with_shardings as with_shardings,
)

__all__ = [
    "HostsConfig",
    "MeshConfig",
    "PartitionRules",
    "RunAborted",
    "Sharder",
    "abort_together",
    "barrier",
    "gather_arrays",
    "infer_shardings",
    "initialize",
    "is_main_process",
    "local_rows",
    "make_mesh",
    "shard_batch",
]
