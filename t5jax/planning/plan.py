"""`t5jax plan`: what a step will need on TPUs, by their own compiler, on a machine without any."""

import dataclasses
import json as jsons
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff

from t5jax.models import ComputeDtype, Remat, T5Config
from t5jax.optim import OptimizerName
from t5jax.parallel import MeshConfig
from t5jax.planning import cost_model, mesh_search, workload
from t5jax.planning.cost_model import OutOfMemory, format_gib
from t5jax.planning.workload import Workload
from t5jax.profiling import Chip, chip_of_topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a training step will need on TPUs, without any: memory, operations, time.

    The real step is compiled by the TPUs' own compiler, which `pip install libtpu` brings.  Times
    are what the chip's data sheet allows at best: the longest of operations by its highest rate,
    memory traffic by bandwidth, and what is sent by all links together.
    """

    model: str = "t5-v1_1-base"
    """A published size, such as 't5-v1_1-xxl', or a JSON file with the fields of T5Config."""
    topology: str = "v5e:2x4"
    """Chip and shape of the slice, such as v5e:16x16, v5p:8x8x4, v6e:16x16 or tpu7x:4x4x4."""
    mesh: MeshConfig = MeshConfig(data=1, fsdp=-1)
    """How work is divided."""
    batch_size: int | None = None
    """Sequences over all devices; two a device unless given."""
    input_length: int = 512
    """Tokens that the encoder reads."""
    target_length: int = 114
    """Tokens that the decoder reads, or with --decode has room to write."""
    dtype: ComputeDtype = "bfloat16"
    """Type of activations and matrix products."""
    remat: Remat = "none"
    """What is recomputed instead of kept: none, dots (all but products), full (whole blocks)."""
    optimizer: OptimizerName = "adafactor"
    """Of training."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other."""
    decode: FlagCreatePairsOff[bool] = False
    """Plan the writing of one more token for every row, instead of training."""
    search: FlagCreatePairsOff[bool] = False
    """Try meshes and remat, and rank those that fit by time."""
    max_compilations: int = 12
    """With --search, most programs to compile."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the plan here, too."""

    def __post_init__(self):
        for name in ("input_length", "target_length", "accumulate", "max_compilations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")


def plan_step(options: Plan) -> dict[str, Any]:
    """Prints a plan, and returns it.

    Raises:
      ValueError: the model or slice is unknown, devices do not divide the work, libtpu is missing,
        or the step does not fit; the message says what would help.
    """
    chip = chip_of_topology(options.topology)
    config = _model(options)
    devices = workload.slice_devices(options.topology)
    task = Workload(
        config=config,
        mesh=options.mesh,
        batch_size=options.batch_size or 2 * len(devices),
        input_length=options.input_length,
        target_length=options.target_length,
        optimizer=options.optimizer,
        accumulate=options.accumulate,
        decode=options.decode,
    )
    plan: dict[str, Any] = {
        "model": options.model,
        "topology": options.topology,
        "devices": len(devices),
        "batch_size": task.batch_size,
        "input_length": task.input_length,
        "target_length": task.target_length,
        "step": "decode" if task.decode else "train",
    }
    if options.search:
        plan["ranking"] = mesh_search.rank_meshes(
            task, devices, chip=chip, max_compilations=options.max_compilations
        )
        print(mesh_search.mesh_table(plan["ranking"]))
    else:
        plan["mesh"] = dataclasses.asdict(task.mesh)
        plan |= {"remat": config.remat, "accumulate": task.accumulate}
        found = _estimate(task, devices, chip)
        plan |= cost_model.estimate_to_json(found)
        print(
            f"{options.model}: {plan['step']} step of {task.batch_size} sequences of "
            f"{task.input_length} and {task.target_length} tokens, for each of {len(devices)} "
            f"devices of {options.topology}"
        )
        read = 1 if task.decode else task.input_length + task.target_length
        for name, amount in cost_model.estimate_lines(found, num_tokens=task.batch_size * read):
            print(f"  {name:26}  {amount}")
    if options.json is not None:
        options.json.write_text(jsons.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return plan


def advice(task: Workload, error: OutOfMemory, *, count: int) -> list[tuple[float, str]]:
    """Changes that would help most, each with the bytes a device that it saves, roughly.

    State is known exactly; of the rest it is taken that it grows with the batch, and that layers
    hold nine tenths of it when nothing is recomputed, half when only products are kept.
    """
    state = sum(error.state.values())
    rest = max(error.needed - state, 0)
    sizes = task.mesh.sizes(count)
    found: list[tuple[float, str]] = []
    if not task.decode and task.config.remat != "full":
        found.append((rest * {"none": 0.9, "dots": 0.5}[task.config.remat], "--remat full"))
    ways = sizes["data"] * sizes["fsdp"]
    if not task.decode and task.batch_size % (2 * task.accumulate * ways) == 0:
        found.append((rest / 2, f"--accumulate {2 * task.accumulate}"))
    elif task.decode and task.batch_size % (2 * ways) == 0:
        found.append((error.needed / 2, f"--batch-size {task.batch_size // 2}"))
    if sizes["data"] > 1:
        change = f"--mesh.data 1 --mesh.fsdp {ways}"
        found.append((state * (1 - 1 / sizes["data"]), change))
    if sizes["fsdp"] > 1 and task.config.num_heads % (2 * sizes["tensor"]) == 0:
        change = f"--mesh.fsdp {sizes['fsdp'] // 2} --mesh.tensor {2 * sizes['tensor']}"
        kept = (
            sizes["fsdp"] % 2 == 0 and task.batch_size % (sizes["data"] * sizes["fsdp"] // 2) == 0
        )
        if kept:
            found.append((rest * 0.25, change))
    if task.optimizer != "adafactor" and not task.decode:
        found.append((error.state.get("optimizer", 0) * 0.99, "--optimizer adafactor"))
    found.append((error.needed / 2, "a slice with twice the chips"))
    return sorted(found, key=lambda change: -change[0])[:3]


def _model(options: Plan) -> T5Config:
    if options.model.endswith(".json"):
        config = T5Config.from_file(options.model)
    else:
        config = T5Config.preset(options.model)
    return config.replace(dtype=options.dtype, remat=options.remat)


def _estimate(task: Workload, devices: Sequence[Any], chip: Chip) -> cost_model.Estimate:
    lowered = workload.lower_step(task, devices)
    try:
        return cost_model.compile_step(lowered, task, chip=chip, count=len(devices))
    except OutOfMemory as error:
        changes = ", or ".join(
            f"{change} (about {format_gib(saved)} less)"
            for saved, change in advice(task, error, count=len(devices))
        )
        raise ValueError(
            f"a step must fit into the {format_gib(error.available)} of a {chip.name} chip, got a "
            f"need of {format_gib(error.needed)}, {format_gib(error.needed - error.available)} too "
            f"much; try {changes}."
        ) from error
