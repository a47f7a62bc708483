"""Plan of a step: its memory and time on absent devices, and advice if it does not fit."""

from collections.abc import Sequence
from typing import Any

from t5jax.planning import cost_model, workload
from t5jax.planning.cost_model import OutOfMemory, format_gib
from t5jax.planning.workload import Workload
from t5jax.profiling import Chip


def plan_step(task: Workload, devices: Sequence[Any], *, chip: Chip) -> cost_model.Estimate:
    """Compile a step for devices that need not be present, and estimate its memory and time.

    Args:
      task: the step.
      devices: devices to compile for, usually from `slice_devices`.
      chip: hardware of the devices.
    Returns:
      The estimate for one device.
    Raises:
      ValueError: the devices do not divide the work, or the step does not fit into their memory;
        the message suggests changes.

    Examples:
      >>> workload = t5jax.planning.Workload(
      ...     config=config, policy=t5jax.ComputePolicy(), mesh=t5jax.parallel.MeshConfig(),
      ...     batch_size=2, input_length=8, target_length=8,
      ... )
      >>> chip = t5jax.profiling.chip_of_topology("v5e:1x1")
      >>> estimate = t5jax.planning.plan_step(workload, jax.devices()[:1], chip=chip)
      >>> estimate.memory["parameters"] == 4 * sum(x.size for x in jax.tree.leaves(params))
      True
    """
    lowered = workload.lower_step(task, devices)
    try:
        return cost_model.compile_step(lowered, task, chip=chip, count=len(devices))
    except OutOfMemory as error:
        changes = ", or ".join(
            f"{change} (about {format_gib(saved)} less)"
            for saved, change in advice(task, error, count=len(devices))
        )
        raise ValueError(
            f"a step must fit into the {format_gib(error.available)} of a {chip.name} chip, but "
            f"needs {format_gib(error.needed)}, {format_gib(error.needed - error.available)} more; "
            f"try {changes}."
        ) from error


def advice(task: Workload, error: OutOfMemory, *, count: int) -> list[tuple[float, str]]:
    """Suggest the changes that would save most memory.

    State is known exactly. The rest is assumed to grow with the batch; layers are assumed to take
    90 % of it without remat, 50 % if only matmuls are kept.

    Args:
      task: the step that does not fit.
      error: memory that it needs per device.
      count: number of devices.
    Returns:
      At most three pairs of roughly saved bytes per device and options of `t5jax plan`, largest
      first.
    """
    state = sum(error.state.values())
    rest = max(error.needed - state, 0)
    sizes = task.mesh.sizes(count)
    changes: list[tuple[float, str]] = []
    if not task.decode and task.policy.remat != "full":
        changes.append((rest * {"none": 0.9, "dots": 0.5}[task.policy.remat], "--remat full"))
    num_shards = sizes["data"] * sizes["fsdp"]
    if not task.decode and task.batch_size % (2 * task.accumulate * num_shards) == 0:
        changes.append((rest / 2, f"--accumulate {2 * task.accumulate}"))
    elif task.decode and task.batch_size % (2 * num_shards) == 0:
        changes.append((error.needed / 2, f"--batch-size {task.batch_size // 2}"))
    if sizes["data"] > 1:
        change = f"--mesh.data 1 --mesh.fsdp {num_shards}"
        changes.append((state * (1 - 1 / sizes["data"]), change))
    if sizes["fsdp"] > 1 and task.config.num_heads % (2 * sizes["tensor"]) == 0:
        change = f"--mesh.fsdp {sizes['fsdp'] // 2} --mesh.tensor {2 * sizes['tensor']}"
        if sizes["fsdp"] % 2 == 0 and task.batch_size % (num_shards // 2) == 0:
            changes.append((rest * 0.25, change))
    if task.optimizer != "adafactor" and not task.decode:
        changes.append((error.state.get("optimizer", 0) * 0.99, "--optimizer adafactor"))
    changes.append((error.needed / 2, "a slice with twice the chips"))
    return sorted(changes, key=lambda change: -change[0])[:3]
