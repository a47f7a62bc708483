"""The choice of a way to attend, and whole models and training steps that take another one."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense_attention import example, with_gradients

from t5jax.models.config import ComputePolicy
from t5jax.models.t5 import abstract_params, bind
from t5jax.ops import attention, blockwise_attention
from t5jax.ops.attention import shard_kernel
from t5jax.ops.blockwise_attention import blockwise_attend
from t5jax.ops.pallas_attention import pallas_attend
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.parallel.sharding import Sharder

ROOT = Path(__file__).parents[2]
S, T = 37, 21
# Gradients of size 1 to 100, through five layers.
RELATIVE, ABSOLUTE = 1e-4, 1e-4


def test_attend_refuses_the_kernel_where_there_is_no_tpu():
    (q, k, v, bias), _, segments, _ = example(9, 9, kind="padding", causal=False)
    with pytest.raises(ValueError, match="requires a TPU, got cpu"):
        attention.attend(q, k, v, segments=segments, bias=bias, kind="pallas")


def test_on_mesh_equals_one_device_with_all_gradients():
    def kernel(*args, **kwargs):
        return pallas_attend(*args, block=128, interpret=True, **kwargs)

    def run(attend):
        def by_segments(q, k, v, bias):
            return attend(q, k, v, segments=segments, bias=bias)

        return with_gradients(by_segments, *arrays, out=out)

    arrays, out, segments, _ = example(9, 13, kind="segments", causal=False)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=3), devices=jax.devices()[:6])
    with jax.set_mesh(mesh):
        found, grads = run(functools.partial(shard_kernel, kernel, sharder=Sharder.from_context()))
    expected, expected_grads = run(blockwise_attend)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("segmented", "per_layer"),
    [
        (True, False),
        (False, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_t5_in_blocks_equals_plain_with_dropout_and_all_gradients(
    tiny_config, segmented, per_layer, monkeypatch
):
    # Several blocks, and a last one that is not full.
    small = functools.partial(blockwise_attend, block=16)
    monkeypatch.setattr(blockwise_attention, "blockwise_attend", small)
    config = tiny_config.replace(dropout_rate=0.3, relative_bias_per_layer=per_layer)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / 3 + 0.1, x.dtype),
        abstract_params(config),
    )
    tokens = jnp.asarray(rng.integers(3, 97, (2, S)), jnp.int32)
    targets = jnp.asarray(rng.integers(3, 97, (2, T)), jnp.int32)
    segments = jnp.asarray(np.repeat([1, 2, 0], [20, 10, 7])[None].repeat(2, 0), jnp.int32)
    ids = {"encoder_segment_ids": segments, "decoder_segment_ids": segments[:, 10 : 10 + T]}

    def value_and_gradient(kind):
        def loss(params):
            logits = bind(config, params, policy=ComputePolicy(attention=kind))(
                tokens,
                targets,
                encoder_mask=segments > 0,
                dropout_key=jax.random.key(0),
                **(ids if segmented else {}),
            )
            return jnp.mean(jax.nn.log_softmax(logits)[..., 5]), logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (plain, plain_logits), (found, logits) = map(value_and_gradient, ("plain", "blockwise"))
    np.testing.assert_allclose(logits, plain_logits, rtol=RELATIVE, atol=ABSOLUTE)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(plain), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, rtol=RELATIVE, atol=ABSOLUTE, err_msg=name)
        assert np.abs(np.asarray(theirs)).max() > 0, name


COMPILE = """
import jax, jax.numpy as jnp, optax
from jax.experimental import topologies
from jax.sharding import NamedSharding
from t5jax.models import ComputePolicy, T5Config
from t5jax.parallel import BATCH_SPEC, MeshConfig, make_mesh
from t5jax.training import StepConfig, abstract_state, make_train_step
config = T5Config(vocab_size=128, d_model=128, d_kv=64, num_heads=4, d_ff=128,
                  num_encoder_layers=2, num_decoder_layers=2)
policy = ComputePolicy(dtype="bfloat16", attention="pallas")
for name in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    mesh = make_mesh(
        MeshConfig(data=-1, fsdp=2, tensor=2), devices=devices[:4])
    optimizer = optax.adam(1e-3)
    step = make_train_step(
        config, optimizer, policy=policy, schedule=lambda s: 1e-3, mesh=mesh,
        options=StepConfig(), seed=0)
    where = NamedSharding(mesh, BATCH_SPEC)
    ids = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=where)
    weights = jax.ShapeDtypeStruct((4, 1024), jnp.float32, sharding=where)
    batch = {f"{s}_{k}": ids for s, k in (("encoder", "input_tokens"), ("encoder", "segment_ids"),
             ("decoder", "input_tokens"), ("decoder", "target_tokens"), ("decoder", "segment_ids"))}
    batch["decoder_loss_weights"] = weights
    state = abstract_state(config, optimizer, mesh=mesh)
    compiled = step.lower(state, batch).compile()
    print(name, compiled.as_text().count('custom_call_target="tpu_custom_call"'))
"""


def test_kernels_compile_inside_a_train_step_for_every_tpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which compiles for TPUs without one")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts = dict(line.split() for line in result.stdout.splitlines())
    # Forward and two backward kernels for each of three kinds of attention, once a scan.
    assert counts == {"v5e:2x2": "9", "v5p:2x2x1": "9", "v6e:2x2": "9"}
