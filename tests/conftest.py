"""Settings that turn silent mistakes into errors, and the models that tests share."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax
import jaxtyping
import numpy as np
import pytest

from t5jax.config import T5Config
from t5jax.model import abstract_params

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of a test's time is compiling: many programs, each run a few times.
jax.config.update("jax_disable_most_optimizations", True)

# Genuine files of T5 that are not ours to ship; tests that need them skip without them.
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs genuine T5 files beside the checkout")
    return SHARED_DATA


@pytest.fixture
def own_checks():
    """Leaves it to the library to refuse a value, where the tests' type checker would be first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


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
    """Random parameters with norms and biases as large as in a trained model.

    Drawn by numpy: compiling `init_params` takes longer than most tests.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            fan_in = 1 if "embedding" in name else leaf.shape[-2]
            values = rng.normal(size=leaf.shape) * fan_in**-0.5
        return jax.numpy.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, abstract_params(tiny_config))
