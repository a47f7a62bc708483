"""Workload of a plan: one step of a model, lowered for a mesh of absent devices."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from t5jax.generation import prefill, prepare_decoder
from t5jax.models import ComputePolicy, T5Config, abstract_params, get_family, is_stacked
from t5jax.optim import (
    OptimizerConfig,
    OptimizerName,
    ScheduleConfig,
    learning_rate_schedule,
    make_optimizer,
)
from t5jax.parallel import (
    BATCH_SPEC,
    MeshConfig,
    check_batch_size,
    infer_shardings,
    make_mesh,
    with_shardings,
)
from t5jax.profiling import chip_of_topology, decode_step_flops, train_step_flops
from t5jax.training import StepConfig, abstract_state, make_train_step

# The learning rate does not affect the cost of a step.
_SCHEDULE = ScheduleConfig(name="rsqrt", learning_rate=0.3, warmup_steps=100)
_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One training step, or one decoding step of a token per row.

    Attributes:
      config: model config.
      policy: dtype, remat and attention of the model.
      mesh: sharding of the work.
      batch_size: global batch size.
      input_length: number of encoder tokens per row.
      target_length: number of decoder tokens per row, or slots in its cache.
      optimizer: optimizer of a training step.
      accumulate: number of micro-batches of a training step.
      decode: True for a decoding step.

    Examples:
      >>> workload = t5jax.planning.Workload(
      ...     config=t5jax.T5Config.preset("t5-small"), policy=t5jax.ComputePolicy(),
      ...     mesh=t5jax.parallel.MeshConfig(), batch_size=1, input_length=512, target_length=114,
      ... )
      >>> f"{workload.flops():.2e}"
      '1.06e+11'
    """

    config: T5Config
    policy: ComputePolicy
    mesh: MeshConfig
    batch_size: int
    input_length: int
    target_length: int
    optimizer: OptimizerName = "adafactor"
    accumulate: int = 1
    decode: bool = False

    def flops(self) -> float:
        """Return the FLOPs that the model itself needs in one step.

        Returns:
          FLOPs over all devices.
        """
        if self.decode:
            return decode_step_flops(
                self.config,
                batch_size=self.batch_size,
                input_length=self.input_length,
                cache_length=self.target_length,
            )
        return train_step_flops(
            self.config,
            batch_size=self.batch_size,
            input_length=self.input_length,
            target_length=self.target_length,
        )


@dataclasses.dataclass(frozen=True)
class Lowered:
    """Lowered step.

    Attributes:
      program: `jax.stages.Lowered`.
      num_bytes: bytes per device that persist between steps, by purpose.
    """

    program: jax.stages.Lowered
    num_bytes: dict[str, int]


def slice_devices(topology: str) -> Sequence[Any]:
    """Create devices of a TPU slice to compile for, without the slice.

    Args:
      topology: chip and axes, such as "v5e:4x8".
    Returns:
      Devices that programs can be compiled for, but not run on.
    Raises:
      ValueError: the slice does not exist, or libtpu, the compiler for TPUs, is not installed.

    Examples:
      >>> len(t5jax.planning.slice_devices("v5e:4x8"))  # doctest: +SKIP
      32
    """
    chip_of_topology(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "planning for a TPU requires its compiler, libtpu, which is not installed; run "
            "pip install libtpu."
        )
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # libtpu looks for a TPU when it starts, and logs long errors without one.
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    # JAX would look for a TPU too.
    if jax.config.jax_platforms is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology must be a slice that libtpu supports, got {topology!r}: "
            f"{str(error).splitlines()[0]:.200}."
        ) from error


def lower_step(workload: Workload, devices: Sequence[Any]) -> Lowered:
    """Lower a step for devices, from shapes alone.

    Args:
      workload: the step.
      devices: devices to compile for, present or not.
    Returns:
      The lowered step.
    Raises:
      ValueError: the devices do not divide the work.
    """
    mesh = make_mesh(workload.mesh, devices)
    check_batch_size(workload.batch_size, mesh=mesh)
    return _lower_decoding(workload, mesh) if workload.decode else _lower_training(workload, mesh)


def bytes_per_device(tree: PyTree) -> int:
    """Return the bytes per device of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves
    )


def _lower_training(workload: Workload, mesh: Mesh) -> Lowered:
    config = workload.config
    options = OptimizerConfig(name=workload.optimizer, schedule=_SCHEDULE)
    tx = make_optimizer(options, total_steps=_STEPS, stacked=is_stacked)
    step_options = StepConfig(accumulate=workload.accumulate)
    state = abstract_state(config, tx, mesh=mesh, options=step_options)
    step = make_train_step(
        config,
        tx,
        policy=workload.policy,
        schedule=learning_rate_schedule(_SCHEDULE, total_steps=_STEPS),
        mesh=mesh,
        options=step_options,
        seed=0,
    )
    sharding = NamedSharding(mesh, BATCH_SPEC)

    def tokens(length: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((workload.batch_size, length), dtype, sharding=sharding)

    batch = {
        "encoder_input_tokens": tokens(workload.input_length),
        "decoder_input_tokens": tokens(workload.target_length),
        "decoder_target_tokens": tokens(workload.target_length),
        "decoder_loss_weights": tokens(workload.target_length, jnp.float32),
    }
    num_bytes = {
        "parameters": bytes_per_device(state.params),
        "optimizer": bytes_per_device(state.opt_state),
    }
    return Lowered(step.lower(state, batch), num_bytes)


def _lower_decoding(workload: Workload, mesh: Mesh) -> Lowered:
    """Lower the programs of `generate`; the compiler chooses the shardings between them."""
    config, policy = workload.config, workload.policy
    if not config.num_decoder_layers:
        raise ValueError("decoding requires a model with a decoder, got an encoder-only model.")
    params = abstract_params(config)
    shardings = infer_shardings(params, mesh=mesh, rules=get_family(config).partition_rules)
    params = with_shardings(params, shardings)
    rows = NamedSharding(mesh, BATCH_SPEC)
    shape = (workload.batch_size, workload.input_length)
    inputs = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows)
    tokens = jax.ShapeDtypeStruct((workload.batch_size,), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        decoder = _outputs(prepare_decoder.lower(params, config=config, policy=policy))
        prefilled = prefill.lower(
            params,
            decoder,
            inputs,
            mask,
            config=config,
            policy=policy,
            max_len=workload.target_length,
            num_beams=1,
        )
        step, cache = _outputs(prefilled)
        decode = jax.jit(lambda step, cache, tokens: step(tokens, cache), donate_argnums=1)
        program = decode.lower(step, cache, tokens)
    num_bytes = {
        "parameters": bytes_per_device(step.decoder),
        "cache": bytes_per_device(cache) + bytes_per_device(step.encoder_kv),
    }
    return Lowered(program, num_bytes)


def _outputs(lowered: jax.stages.Lowered) -> PyTree:
    """Return the shapes of a program's outputs, with the shardings that the compiler chose."""
    return with_shardings(lowered.out_info, lowered.compile().output_shardings)
