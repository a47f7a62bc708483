"""Which way of dividing a step, and of recomputing it, is the fastest that fits."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import tqdm

from t5jax.models import Remat
from t5jax.parallel import MeshConfig
from t5jax.planning import cost_model, workload
from t5jax.planning.cost_model import OutOfMemory, format_gib
from t5jax.planning.workload import Workload
from t5jax.profiling import Chip


def mesh_candidates(task: Workload, count: int) -> Iterator[Workload]:
    """Ways to divide a step over `count` devices, the most promising first.

    Those whose axes divide heads, widths, vocabulary and batch: data alone, which sends the least;
    then more and more fsdp, and last ever more tensor, which sends the most.
    """
    config = task.config
    found = []
    for tensor in _divisors(count):
        widths = (config.num_heads, config.d_ff, config.vocab_size)
        if any(width % tensor for width in widths):
            continue
        for fsdp in _divisors(count // tensor):
            data = count // tensor // fsdp
            if task.batch_size % (data * fsdp) or config.d_model % fsdp:
                continue
            found.append((tensor, fsdp, MeshConfig(data=data, fsdp=fsdp, tensor=tensor)))
    # All of fsdp first: it needs the least memory, so that a short search finds what fits.
    found.sort(key=lambda item: (item[0], -item[1]))
    policies = (config.remat,) if task.decode else get_args(Remat)
    for _, _, mesh in found:
        for remat in policies:
            yield dataclasses.replace(task, mesh=mesh, config=config.replace(remat=remat))


def rank_meshes(
    task: Workload, devices: Sequence[Any], *, chip: Chip, max_compilations: int
) -> list[dict[str, Any]]:
    """What was tried: what fits by time, then what does not by the memory it needs.

    Raises:
      ValueError: no mesh divides the work.
    """
    ways = list(mesh_candidates(task, len(devices)))
    if not ways:
        raise ValueError(
            f"batch_size must be a multiple of some divisor of the {len(devices)} devices that "
            f"leaves a divisor of {task.config.num_heads} heads, got {task.batch_size}; try "
            f"{len(devices)}."
        )
    found: list[dict[str, Any]] = []
    budget = max_compilations
    with tqdm.tqdm(total=min(len(ways), budget), desc="compiling", unit="program") as bar:
        for way in ways:
            if budget == 0:
                break
            if _hopeless(way, found):
                continue
            found.append(_try(way, devices, chip))
            budget -= 1
            bar.update()
    return sorted(found, key=lambda row: (not row["fits"], row["step_time"] or row["total_bytes"]))


def mesh_table(rows: Sequence[dict[str, Any]]) -> str:
    """The ranking, for people."""
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


def _try(way: Workload, devices: Sequence[Any], chip: Chip) -> dict[str, Any]:
    row: dict[str, Any] = {"mesh": dataclasses.asdict(way.mesh), "remat": way.config.remat}
    lowered = workload.lower_step(way, devices)
    try:
        got = cost_model.compile_step(lowered, way, chip=chip, count=len(devices))
    except OutOfMemory as error:
        return {
            **row,
            "fits": False,
            "total_bytes": int(error.needed),
            "step_time": None,
            "bound": None,
        }
    return {**row, "fits": True, **cost_model.estimate_to_json(got)}


def _hopeless(way: Workload, found: Sequence[dict[str, Any]]) -> bool:
    """Whether what did not fit needed no more than this will."""
    order = get_args(Remat)
    for row in found:
        sizes, given = row["mesh"], dataclasses.asdict(way.mesh)
        same = all(sizes[axis] == given[axis] for axis in sizes if axis not in ("data", "fsdp"))
        more = sizes["fsdp"] >= given["fsdp"]
        saves = order.index(row["remat"]) >= order.index(way.config.remat)
        if not row["fits"] and same and more and saves:
            return True
    return False


def _divisors(count: int) -> list[int]:
    return [i for i in range(1, count + 1) if count % i == 0]
