"""Settings that turn silent mistakes into errors, and the models that tests share."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax
import numpy as np
import pytest

from t5jax.config import T5Config
from t5jax.model import init_params

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Genuine files of T5 that are not ours to ship; tests that need them skip without them.
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs genuine T5 files beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_config() -> T5Config:
    """No two sizes alike, so that no transposition goes unnoticed."""
    return T5Config(
        vocab_size=97,
        d_model=16,
        d_kv=5,
        num_heads=3,
        d_ff=24,
        num_encoder_layers=2,
        num_decoder_layers=3,
        relative_buckets=8,
        relative_max_distance=12,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Random parameters with norms and biases as large as in a trained model."""
    params = init_params(tiny_config, jax.random.key(0))
    rng = np.random.default_rng(0)

    def randomise(path, leaf):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return jax.numpy.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        if "relative_bias" in name:
            return jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        return leaf

    return jax.tree.map_with_path(randomise, params)
