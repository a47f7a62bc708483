"""Memory, operations and time of a step on devices that are not there."""

from .cost_model import (
    Estimate as Estimate,
    estimate_lines as estimate_lines,
    estimate_to_json as estimate_to_json,
)
from .mesh_search import (
    mesh_table as mesh_table,
    rank_meshes as rank_meshes,
)
from .plan import (
    plan_step as plan_step,
)
from .workload import (
    Workload as Workload,
    lower_step as lower_step,
    slice_devices as slice_devices,
)

__all__ = [
    "Estimate",
    "Workload",
    "plan_step",
    "rank_meshes",
    "slice_devices",
]
