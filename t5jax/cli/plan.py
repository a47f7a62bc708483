"""`t5jax plan`: memory, operations and time of a step on TPUs, on a machine without any."""

import dataclasses
import json as jsons
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from t5jax.errors import check_at_least
from t5jax.fileio import JsonObject
from t5jax.models import AttentionKind, ComputeDtype, ComputePolicy, Remat, T5Config
from t5jax.optim import OptimizerName
from t5jax.parallel import MeshConfig
from t5jax.planning import (
    Workload,
    estimate_lines,
    estimate_to_json,
    mesh_table,
    plan_step,
    rank_meshes,
    slice_devices,
)
from t5jax.profiling import chip_of_topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a training step will need on TPUs, without any: memory, operations, time.

    The real step is compiled by the TPUs' own compiler, which `pip install libtpu` brings.  Times
    are what the chip's data sheet allows at best: the longest of operations by its highest rate,
    memory traffic by bandwidth, and what is sent by all links together.

    Attributes:
      model: A published size, such as 't5-v1_1-xxl', or a JSON file with the fields of T5Config.
      topology: Chip and shape of the slice, such as v5e:16x16, v5p:8x8x4, v6e:16x16 or
        tpu7x:4x4x4.
      mesh: Sharding of the step.
      batch_size: Global batch size; two sequences on each device by default.
      input_length: Tokens that the encoder reads.
      target_length: Tokens that the decoder reads, or with --decode has room to write.
      dtype: Type of activations and matrix products.
      remat: Activations to recompute instead of keeping: none, dots (all but products), full
        (whole blocks).
      attention: Attention over all pairs of positions at once (plain), or in blocks (blockwise, or
        pallas as a kernel); auto chooses by the length.
      optimizer: Optimizer of the training step.
      accumulate: Parts that a batch is computed in, one after the other.
      decode: Plan the decoding of one more token for every row, instead of training.
      search: Try meshes and remat, and rank those that fit by time.
      max_compilations: Maximum number of programs to compile with --search.
      json: Write the plan here, too.
    """

    model: str = "t5-v1_1-base"
    topology: str = "v5e:2x4"
    mesh: MeshConfig = MeshConfig(data=1, fsdp=-1)
    batch_size: int | None = None
    input_length: int = 512
    target_length: int = 114
    dtype: ComputeDtype = "bfloat16"
    remat: Remat = "none"
    attention: AttentionKind = "auto"
    optimizer: OptimizerName = "adafactor"
    accumulate: int = 1
    decode: FlagCreatePairsOff[bool] = False
    search: FlagCreatePairsOff[bool] = False
    max_compilations: int = 12
    json: Annotated[Path | None, arg(metavar="FILE")] = None

    def __post_init__(self):
        check_at_least(
            1,
            batch_size=self.batch_size,
            input_length=self.input_length,
            target_length=self.target_length,
            accumulate=self.accumulate,
            max_compilations=self.max_compilations,
        )


def plan(options: Plan) -> None:
    """Print the plan of a step, or a ranking of meshes.

    Raises:
      ValueError: the model or slice is unknown, devices do not divide the work, libtpu is missing,
        or the step does not fit.
    """
    chip = chip_of_topology(options.topology)
    config = _read_config(options)
    devices = slice_devices(options.topology)
    task = Workload(
        config=config,
        policy=ComputePolicy(dtype=options.dtype, remat=options.remat, attention=options.attention),
        mesh=options.mesh,
        batch_size=options.batch_size or 2 * len(devices),
        input_length=options.input_length,
        target_length=options.target_length,
        optimizer=options.optimizer,
        accumulate=options.accumulate,
        decode=options.decode,
    )
    report: JsonObject = {
        "model": options.model,
        "topology": options.topology,
        "devices": len(devices),
        "batch_size": task.batch_size,
        "input_length": task.input_length,
        "target_length": task.target_length,
        "step": "decode" if task.decode else "train",
    }
    if options.search:
        report["ranking"] = rank_meshes(
            task, devices, chip=chip, max_compilations=options.max_compilations
        )
        print(mesh_table(report["ranking"]))
    else:
        report["mesh"] = dataclasses.asdict(task.mesh)
        report |= {"remat": task.policy.remat, "attention": task.policy.attention}
        report |= {"accumulate": task.accumulate}
        estimate = plan_step(task, devices, chip=chip)
        report |= estimate_to_json(estimate)
        print(
            f"{options.model}: {report['step']} step of {task.batch_size} sequences of "
            f"{task.input_length} and {task.target_length} tokens, for each of {len(devices)} "
            f"devices of {options.topology}"
        )
        num_read = 1 if task.decode else task.input_length + task.target_length
        for name, amount in estimate_lines(estimate, num_tokens=task.batch_size * num_read):
            print(f"  {name:26}  {amount}")
    if options.json is not None:
        options.json.write_text(jsons.dumps(report, indent=1) + "\n", encoding="utf-8")


def _read_config(options: Plan) -> T5Config:
    if options.model.endswith(".json"):
        return T5Config.from_file(options.model)
    return T5Config.preset(options.model)
