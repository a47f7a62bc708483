"""`t5jax plan`: estimate memory, FLOPs and time of a step on TPUs, on a machine without any."""

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
    """Estimate memory, FLOPs and time of a training step on TPUs, on a machine without any.

    Compiles the real step with the TPU compiler (`pip install libtpu`).  The time is a lower bound
    from the chip's data sheet: the maximum of FLOPs / peak FLOP/s, memory traffic / bandwidth, and
    communication / total link bandwidth.

    Attributes:
      model: published size such as 't5-v1_1-xxl', or a JSON file with the fields of T5Config.
      topology: chip and shape of the slice, such as v5e:16x16, v5p:8x8x4, v6e:16x16 or
        tpu7x:4x4x4.
      mesh: sharding of the step.
      batch_size: global batch size; defaults to two sequences per device.
      input_length: input length in tokens.
      target_length: target length in tokens; with --decode, the KV cache length.
      dtype: dtype of activations and matmuls.
      remat: activations to recompute in the backward pass: none, dots (all except matmul outputs),
        full (whole blocks).
      attention: plain (full score matrix), blockwise, or pallas (blockwise kernel); auto chooses by
        length.
      optimizer: optimizer of the training step.
      accumulate: number of gradient accumulation steps.
      decode: estimate one decoding step (one token per row) instead of a training step.
      search: search over meshes and remat, and rank those that fit by time.
      max_compilations: maximum number of programs to compile with --search.
      json: JSON file to write the plan to.
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
    """Print the estimate of a step, or a ranking of meshes.

    Args:
      options: options of the command.
    Raises:
      ValueError: the model or slice is unknown, the mesh does not divide the model or batch, libtpu
        is missing, or the step does not fit.
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
            f"{options.model}: {report['step']} step, {task.batch_size} sequences of "
            f"{task.input_length} + {task.target_length} tokens; per device, {len(devices)} "
            f"devices ({options.topology})"
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
