"""Search for the mesh and remat policy of the fastest step that fits."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import tqdm

from t5jax.fileio import JsonObject
from t5jax.models import Remat
from t5jax.parallel import MeshConfig
from t5jax.planning import cost_model, workload
from t5jax.planning.cost_model import OutOfMemory, format_gib
from t5jax.planning.workload import Workload
from t5jax.profiling import Chip


def mesh_candidates(task: Workload, count: int) -> Iterator[Workload]:
    """Yield a step with every valid mesh and remat policy, the most promising first.

    The axes of a mesh must divide heads, widths, vocabulary and batch. The order is increasing
    tensor parallelism, which communicates most, then decreasing fsdp, which saves memory.

    Args:
      task: the step; its mesh and, for training, its remat policy are replaced.
      count: number of devices.
    Yields:
      Copies of the step.
    """
    config = task.config
    meshes = []
    for tensor in _divisors(count):
        widths = (config.num_heads, config.d_ff, config.vocab_size)
        if any(width % tensor for width in widths):
            continue
        for fsdp in _divisors(count // tensor):
            data = count // tensor // fsdp
            if task.batch_size % (data * fsdp) or config.d_model % fsdp:
                continue
            meshes.append((tensor, fsdp, MeshConfig(data=data, fsdp=fsdp, tensor=tensor)))
    # Largest fsdp first: it needs the least memory, so a short search finds a mesh that fits.
    meshes.sort(key=lambda item: (item[0], -item[1]))
    remats = (task.policy.remat,) if task.decode else get_args(Remat)
    for _, _, mesh in meshes:
        for remat in remats:
            yield dataclasses.replace(task, mesh=mesh, policy=task.policy.replace(remat=remat))


def rank_meshes(
    task: Workload, devices: Sequence[Any], *, chip: Chip, max_compilations: int
) -> list[JsonObject]:
    """Compile a step for candidate meshes and remat policies, and rank the results.

    Args:
      task: the step; its mesh and, for training, its remat policy are replaced.
      devices: devices to compile for, present or not.
      chip: hardware of the devices.
      max_compilations: maximum number of programs to compile.
    Returns:
      One JSON object per program: the fields of `Estimate`, `mesh`, `remat` and `fits`. Programs
      that fit come first, by step time, then the others by memory.
    Raises:
      ValueError: no mesh divides the work.

    Examples:
      >>> workload = t5jax.planning.Workload(
      ...     config=config, policy=t5jax.ComputePolicy(), mesh=t5jax.parallel.MeshConfig(),
      ...     batch_size=2, input_length=8, target_length=8,
      ... )
      >>> chip = t5jax.profiling.chip_of_topology("v5e:1x1")
      >>> [row] = t5jax.planning.rank_meshes(
      ...     workload, jax.devices()[:1], chip=chip, max_compilations=1
      ... )
      >>> row["fits"], row["remat"]
      (True, 'none')
    """
    candidates = list(mesh_candidates(task, len(devices)))
    if not candidates:
        raise ValueError(
            f"batch_size must be divisible by data x fsdp of some mesh of {len(devices)} devices "
            f"whose tensor axis divides {task.config.num_heads} heads, got {task.batch_size}; try "
            f"{len(devices)}."
        )
    rows: list[JsonObject] = []
    budget = max_compilations
    with tqdm.tqdm(
        total=min(len(candidates), budget), desc="compiling", unit="program", disable=None
    ) as bar:
        for candidate in candidates:
            if budget == 0:
                break
            if _is_hopeless(candidate, rows):
                continue
            rows.append(_try(candidate, devices, chip))
            budget -= 1
            bar.update()
    return sorted(rows, key=lambda row: (not row["fits"], row["step_time"] or row["total_bytes"]))


def mesh_table(rows: Sequence[JsonObject]) -> str:
    """Format the rows of `rank_meshes` as a table."""
    lines = [f"{'mesh':34}{'remat':8}{'memory':>12}{'time':>12}  bound by"]
    for row in rows:
        mesh = " ".join(f"{axis}={size}" for axis, size in row["mesh"].items() if size > 1)
        time = f"{row['step_time'] * 1e3:.4g} ms" if row["fits"] else "-"
        bound = row["bound"] if row["fits"] else "does not fit"
        lines.append(
            f"{mesh or 'one device':34}{row['remat']:8}{format_gib(row['total_bytes']):>12}"
            f"{time:>12}  {bound}"
        )
    return "\n".join(lines)


def _try(candidate: Workload, devices: Sequence[Any], chip: Chip) -> JsonObject:
    row: JsonObject = {
        "mesh": dataclasses.asdict(candidate.mesh),
        "remat": candidate.policy.remat,
    }
    lowered = workload.lower_step(candidate, devices)
    try:
        estimate = cost_model.compile_step(lowered, candidate, chip=chip, count=len(devices))
    except OutOfMemory as error:
        return {
            **row,
            "fits": False,
            "total_bytes": int(error.needed),
            "step_time": None,
            "bound": None,
        }
    return {**row, "fits": True, **cost_model.estimate_to_json(estimate)}


def _is_hopeless(candidate: Workload, rows: Sequence[JsonObject]) -> bool:
    """Return True if a program that needs at most the candidate's memory did not fit."""
    order = get_args(Remat)
    for row in rows:
        sizes, candidate_sizes = row["mesh"], dataclasses.asdict(candidate.mesh)
        same = all(
            sizes[axis] == candidate_sizes[axis] for axis in sizes if axis not in ("data", "fsdp")
        )
        more = sizes["fsdp"] >= candidate_sizes["fsdp"]
        saves = order.index(row["remat"]) >= order.index(candidate.policy.remat)
        if not row["fits"] and same and more and saves:
            return True
    return False


def _divisors(count: int) -> list[int]:
    return [i for i in range(1, count + 1) if count % i == 0]
