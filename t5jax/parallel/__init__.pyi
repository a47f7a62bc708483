"""Mesh, sharding and processes."""

from .distributed import (
    HostsConfig as HostsConfig,
)
from .distributed import (
    StopVote as StopVote,
)
from .distributed import (
    abort_together as abort_together,
)
from .distributed import (
    agree_on as agree_on,
)
from .distributed import (
    barrier as barrier,
)
from .distributed import (
    broadcast_from_main as broadcast_from_main,
)
from .distributed import (
    gather_arrays as gather_arrays,
)
from .distributed import (
    initialize as initialize,
)
from .distributed import (
    is_main_process as is_main_process,
)
from .distributed import (
    main_process_first as main_process_first,
)
from .distributed import (
    print_once as print_once,
)
from .distributed import (
    process_count as process_count,
)
from .distributed import (
    process_index as process_index,
)
from .mesh import (
    MeshConfig as MeshConfig,
)
from .mesh import (
    make_mesh as make_mesh,
)
from .mesh import (
    num_shards as num_shards,
)
from .rendezvous import (
    RunAborted as RunAborted,
)
from .sharding import (
    BATCH_AXES as BATCH_AXES,
)
from .sharding import (
    BATCH_SPEC as BATCH_SPEC,
)
from .sharding import (
    constrain_activations as constrain_activations,
)
from .sharding import (
    global_batch_size as global_batch_size,
)
from .sharding import (
    infer_shardings as infer_shardings,
)
from .sharding import (
    local_rows as local_rows,
)
from .sharding import (
    matches_path as matches_path,
)
from .sharding import (
    num_batch_shards as num_batch_shards,
)
from .sharding import (
    path_name as path_name,
)
from .sharding import (
    shard_rows as shard_rows,
)
from .sharding import (
    with_shardings as with_shardings,
)
