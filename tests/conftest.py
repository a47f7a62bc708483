"""Settings that turn silent mistakes into errors, and the models that tests share."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Most of a test's time is compiling, and many tests compile the same; JAX reads this at its import,
# and the processes of pytest-xdist have what the first one sets.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="t5jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from t5jax.cli.main import entry
from t5jax.models.config import T5Config
from t5jax.models.t5 import abstract_params
from t5jax.text2text import Text2Text
from t5jax.tokenizers.sentencepiece import train_tokenizer

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs are many, and each is run a few times.
jax.config.update("jax_disable_most_optimizations", True)

# Genuine files of T5 that are not ours to ship; tests that need them skip without them.
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def drop_programs():
    """Drops a module's compiled programs, gigabytes otherwise; collections skip what is left."""
    yield
    jax.clear_caches()
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_level(caplog):
    """Leaves what the library logs from level INFO on to `caplog`."""
    caplog.set_level(logging.INFO, logger="t5jax")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs genuine T5 files beside the checkout")
    return SHARED_DATA


@pytest.fixture
def t5jax(monkeypatch, capsys):
    """Runs the command, and returns its exit status and what it prints to either stream."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["/a/long/path/bin/t5jax", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        status = 0
        try:
            entry()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return command


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
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, abstract_params(tiny_config))


@pytest.fixture(scope="session")
def english():
    """A vocabulary of a few hundred sentences, sense apart."""
    words = (
        "the baker my sister an old captain our teacher quiet neighbour young doctor counts "
        "forgets paints carries never sells remembers drops seven red apples broken clock a letter "
        "from Lisbon his winter coat two wooden boats garden gate before breakfast every Sunday "
        "when it rains without word at night in morning and then we walk to town for bread"
    )
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(words.split(), 8)) + "." for _ in range(300)]
    return train_tokenizer(sentences, vocab_size=85, num_sentinels=10)


@pytest.fixture(scope="session")
def texts(english):
    """Of unequal lengths, the longest neither first nor last, and longer than one bucket."""
    found = [
        "the baker counts.",
        "an old captain sells the broken clock when it rains.",
        "Lisbon",
        "my sister forgets a letter",
        "",
        "two wooden boats carry bread",
        "seven red apples",
    ]
    lengths = [len(english.encode(text)) + 1 for text in found]
    assert len(set(lengths)) == len(lengths)
    assert min(lengths) == 1
    assert 16 < max(lengths) <= 24
    return found


@pytest.fixture(scope="session")
def short(texts, english):
    """Four of them that share a bucket, the empty one included: one program serves them."""
    found = [texts[i] for i in (0, 2, 4, 6)]
    assert max(len(english.encode(text)) + 1 for text in found) <= 16
    return found


@pytest.fixture(scope="session")
def t5(english):
    """A random model that writes answers of various lengths; EOS is likelier than chance."""
    config = T5Config(
        vocab_size=97,
        d_model=16,
        d_kv=5,
        num_heads=3,
        d_ff=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
        relative_buckets=8,
        relative_max_distance=12,
    )
    rng = np.random.default_rng(11)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=leaf.shape)
        if "scale" in name:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif "embedding" not in name:
            values *= 2 * leaf.shape[-2] ** -0.5
        return jnp.asarray(values, leaf.dtype)

    params = jax.tree.map_with_path(draw, abstract_params(config))
    kernel = params["output"]["kernel"]
    params["output"]["kernel"] = kernel.at[:, config.eos_id].multiply(2.5)
    return Text2Text(config, params, english)
