"""Memory, operations and time of a step on devices that are not there."""

from .cost_model import (
    Estimate as Estimate,
)
from .cost_model import (
    estimate_lines as estimate_lines,
)
from .cost_model import (
    estimate_to_json as estimate_to_json,
)
from .mesh_search import (
    mesh_table as mesh_table,
)
from .mesh_search import (
    rank_meshes as rank_meshes,
)
from .plan import (
    plan_step as plan_step,
)
from .workload import (
    Workload as Workload,
)
from .workload import (
    lower_step as lower_step,
)
from .workload import (
    slice_devices as slice_devices,
)
