"""Mesh TensorFlow's checkpoints: what TensorFlow wrote, genuine names, and the older ones.

`data/mesh_tf/make.py` wrote the first, with the values beside it.
"""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.trees import assert_same_bits, flat

from t5jax.models.config import T5Config
from t5jax.pretrained import mesh_tf
from t5jax.pretrained.mesh_tf import find_mesh_tf, open_mesh_tf
from t5jax.pretrained.open import load_pretrained, open_checkpoint

DATA = Path(__file__).parents[1] / "fixtures" / "mesh_tf"
PREFIX = DATA / "model.ckpt-1000"
CONFIG = T5Config(
    vocab_size=48,
    d_model=8,
    d_kv=4,
    num_heads=3,
    d_ff=10,
    num_encoder_layers=2,
    num_decoder_layers=1,
    relative_buckets=8,
    gated_ff=True,
    activation="gelu_tanh",
    tie_embeddings=False,
    scale_logits=False,
)
LAYERS = {"encoder": 2, "decoder": 1}
UNUSED_BIAS = "decoder/block_000/layer_001/EncDecAttention/relative_attention_bias"


@dataclasses.dataclass(frozen=True)
class InMemory:
    """An array that lies in no file."""

    values: np.ndarray
    file: Path = PREFIX

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def blocks(self, index):
        yield index, self.values[index]


@pytest.fixture(scope="module")
def values():
    """The variables, as they were given to TensorFlow."""
    with np.load(DATA / "expected.npz") as file:
        return {name: file[name] for name in file.files if "_slot_" not in name}


def expected_params(values):
    """Our parameters, '/'-joined, by the names there; kernels are [in, out] in both."""
    found = {"token_embedder/embedding": values["shared/embedding"]}
    if "decoder/logits/kernel" in values:
        found["output/kernel"] = values["decoder/logits/kernel"]
    for stack, num_layers in LAYERS.items():
        blocks = [f"{stack}/block_{i:03}" for i in range(num_layers)]
        attentions = {"attention": (0, "SelfAttention")}
        if stack == "decoder":
            attentions = {
                "self_attention": (0, "SelfAttention"),
                "cross_attention": (1, "EncDecAttention"),
            }
        mlp = len(attentions)

        def stacked(ours, theirs, blocks=blocks, stack=stack):
            rows = [values[f"{block}/{theirs}"] for block in blocks]
            found[f"{stack}/layers/{ours}"] = np.stack(rows)

        for ours, (j, theirs) in attentions.items():
            for name, letter in zip(("query", "key", "value", "out"), "qkvo", strict=True):
                stacked(f"{ours}/{name}", f"layer_{j:03}/{theirs}/{letter}")
            stacked(f"{ours}_norm/scale", f"layer_{j:03}/rms_norm/scale")
        gated = f"{stack}/block_000/layer_{mlp:03}/DenseReluDense/wi_0/kernel" in values
        inner = {"wi": "wi_0", "wi_linear": "wi_1"} if gated else {"wi": "wi"}
        for ours, theirs in {**inner, "wo": "wo"}.items():
            stacked(f"mlp/{ours}", f"layer_{mlp:03}/DenseReluDense/{theirs}/kernel")
        stacked("mlp_norm/scale", f"layer_{mlp:03}/rms_norm/scale")
        # [heads, buckets] there, the other way round here.
        bias = values[f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"]
        found[f"{stack}/relative_bias/embedding"] = bias.T
        found[f"{stack}/final_norm/scale"] = values[f"{stack}/rms_norm/scale"]
    return found


@pytest.fixture
def open_variables(monkeypatch):
    """Opens variables as if they were in a checkpoint."""

    def open_them(values, **options):
        held = {name: InMemory(value) for name, value in values.items()}
        monkeypatch.setattr(mesh_tf, "open_tf_bundle", lambda path: held)
        return open_mesh_tf(PREFIX, **options)

    return open_them


def error_of(action) -> str:
    """The message with which something is refused: one sentence that begins with the file."""
    with pytest.raises(ValueError, match=re.escape(str(PREFIX))) as caught:
        action()
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(PREFIX))
    assert "\n" not in message
    assert len(message.replace(str(PREFIX.parent), "")) < 400
    return message


def test_checkpoint_of_tensorflow_loads_bit_for_bit(values):
    source = open_mesh_tf(PREFIX)
    assert source.config == CONFIG
    assert source.format == "Mesh TensorFlow"
    params = flat(source.load_params())
    assert_same_bits(params, expected_params(values))
    assert sum(map(np.size, params.values())) == sum(
        x.size for name, x in values.items() if name != "global_step"
    )


def test_optimizer_is_ignored():
    ignored = open_mesh_tf(PREFIX).ignored
    assert set(ignored) == {
        "global_step",
        "shared/embedding_slot_vr",
        "shared/embedding_slot_vc",
        "encoder/rms_norm/scale_slot_v",
        "encoder/rms_norm/scale_slot_m",
    }


def test_encoder_only_leaves_the_decoder(values):
    source = open_mesh_tf(PREFIX, encoder_only=True)
    assert source.config.num_decoder_layers == 0
    expected = expected_params(values)
    own = {n: x for n, x in expected.items() if not n.startswith(("decoder/", "output/"))}
    assert_same_bits(flat(source.load_params()), own)
    assert source.ignored["decoder/logits/kernel"] == "decoder only"


@pytest.mark.parametrize(
    "name",
    [
        "model.ckpt-1000",
        "model.ckpt-1000.index",
        "model.ckpt-1000.data-00000-of-00001",
        "model.ckpt-1000.meta",
        "",
    ],
)
def test_find_takes_prefix_file_or_folder(name):
    assert find_mesh_tf(DATA / name) == PREFIX


def test_find_knows_what_is_none(tmp_path):
    for path in (tmp_path, tmp_path / "model.ckpt-1", DATA / "expected.npz", DATA / "model.ckpt-1"):
        assert find_mesh_tf(path) is None


def test_load_takes_prefix_or_folder(values):
    expected = expected_params(values)
    for path in (PREFIX, DATA, DATA / "model.ckpt-1000.index"):
        config, params, words = load_pretrained(path)
        assert (config, words) == (CONFIG, None)
        assert_same_bits(flat(params), expected)


def test_gin_file_beside_tells_the_activation(tmp_path):
    for file in DATA.glob("model.ckpt*"):
        shutil.copy(file, tmp_path)
    prefix = find_mesh_tf(tmp_path)
    assert prefix is not None
    assert open_mesh_tf(prefix).config.activation == "gelu_tanh"
    gin = tmp_path / "operative_config.gin"
    gin.write_text("encoder/DenseReluDense.activation = ['swish', 'linear']\n")
    assert open_mesh_tf(prefix).config == CONFIG.replace(activation="silu")


def test_genuine_names_all_have_a_place(shared_data):
    """The file with the values is missing, which nobody notices before they are read."""
    folder = shared_data / "t5x_testdata" / "mtf_tiny_t5"
    info = (folder / "model-info.txt").read_text()
    listed = {
        name: tuple(int(size) for size in re.findall(r"=(\d+)", shape))
        for name, shape in re.findall(r"^Variable (\S+) .*Shape\[(.*?)\]", info, re.MULTILINE)
    }
    source = open_checkpoint(folder)
    assert {name: array.shape for name, array in source.arrays.items() if name in listed} == listed
    used = {name for leaf in source.layout.values() for name in leaf.names}
    slots = {name for name in listed if "_slot_" in name}
    assert used == set(listed) - slots
    assert set(source.ignored) == set(source.arrays) - used
    blocks = {name.split("/layer_")[0] for name in used if "/block_" in name}
    assert source.config == T5Config(
        vocab_size=listed["shared/embedding"][0],
        d_model=32,
        d_kv=64,
        num_heads=2,
        d_ff=64,
        num_encoder_layers=sum(block.startswith("encoder") for block in blocks),
        num_decoder_layers=sum(block.startswith("decoder") for block in blocks),
        gated_ff=True,
        activation="gelu_tanh",
        tie_embeddings=False,
        scale_logits=False,
    )
    with pytest.raises(ValueError, match="data-00001-of-00002"):
        source.read("encoder/layers/mlp/wo", dtype=np.dtype(np.float32))


# Older names and other families, in the place of what the bundle holds.


def test_older_names_of_norms_load(values, open_variables):
    older = {
        re.sub(r"^(encoder|decoder)/rms_norm", r"\1/final_layer_norm", name).replace(
            "rms_norm", "layer_norm"
        ): value
        for name, value in values.items()
    }
    assert "encoder/final_layer_norm/scale" in older
    assert "decoder/block_000/layer_002/layer_norm/scale" in older
    assert_same_bits(flat(open_variables(older).load_params()), expected_params(values))


def ungated(values):
    found = {n: x for n, x in values.items() if "wi_1" not in n and "logits" not in n}
    return {name.replace("wi_0", "wi"): value for name, value in found.items()}


@pytest.mark.parametrize("suffix", ["/kernel", ""])
def test_tied_relu_loads(values, open_variables, suffix):
    """T5 1.0; its oldest files have no /kernel."""
    given = ungated(values)
    theirs = {
        name.replace("/kernel", suffix) if "Dense" in name else name: value
        for name, value in given.items()
    }
    assert f"encoder/block_001/layer_001/DenseReluDense/wi{suffix}" in theirs
    source = open_variables(theirs)
    assert source.config == CONFIG.replace(
        gated_ff=False, activation="relu", tie_embeddings=True, scale_logits=True
    )
    assert_same_bits(flat(source.load_params()), expected_params(given))


def test_bias_of_cross_attention_is_ignored(values, open_variables):
    given = {**values, UNUSED_BIAS: np.ones((3, 8), np.float32)}
    source = open_variables(given)
    assert source.ignored[UNUSED_BIAS] == "unused cross-attention bias"
    assert_same_bits(flat(source.load_params()), expected_params(values))


def test_slots_of_every_optimizer_are_ignored(values, open_variables):
    slots = ["_slot_v", "_slot_vr", "_slot_vc", "_slot_m", "/Adam", "/Adam_1"]
    given = {**values, **{f"shared/embedding{slot}": np.ones(3, np.float32) for slot in slots}}
    given |= {"beta1_power": np.float32(1).reshape(()), "beta2_power": np.float32(1).reshape(())}
    assert_same_bits(flat(open_variables(given).load_params()), expected_params(values))


def test_bias_of_every_layer_loads(values, open_variables):
    """As umT5 would be there."""
    table = "encoder/block_{:03}/layer_000/SelfAttention/relative_attention_bias"
    more = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    source = open_variables({**values, table.format(1): more})
    assert source.config == CONFIG.replace(relative_bias_per_layer=True)
    params = flat(source.load_params())
    both = np.stack([values[table.format(0)].T, more.T])
    assert params["encoder/layers/relative_bias/embedding"].tobytes() == both.tobytes()
    assert params["decoder/layers/relative_bias/embedding"].shape == (1, 8, 3)


@pytest.mark.parametrize(
    "name",
    [
        "encoder/block_001/layer_001/DenseReluDense/wo/kernel",
        "decoder/block_000/layer_001/EncDecAttention/o",
        "decoder/block_000/layer_001/rms_norm/scale",
        "encoder/rms_norm/scale",
        "shared/embedding",
    ],
)
def test_missing_variable_is_named(values, open_variables, name):
    given = {n: x for n, x in values.items() if n != name}
    # Of the two names of a norm, either may be told.
    message = error_of(lambda: open_variables(given)).replace("layer_norm", "rms_norm")
    assert name in message.replace("final_rms_norm", "rms_norm")


@pytest.mark.parametrize(
    "name",
    [
        "encoder/block_000/layer_000/SelfAttention/talking_heads",
        "encoder/block_002/layer_000/SelfAttention/q",
        "encoder/embedding",
    ],
)
def test_variable_too_many_is_an_error(values, open_variables, name):
    given = {**values, name: np.ones((8, 12), np.float32)}
    error_of(lambda: open_variables(given))


def test_other_architectures_are_refused(values, open_variables):
    alone = {name.replace("decoder/", "transformer/"): x for name, x in values.items()}
    alone = {n: x for n, x in alone.items() if not n.startswith(("encoder/", "shared/"))}
    assert "must contain shared/embedding" in error_of(lambda: open_variables(alone))
    assert "must contain shared/embedding" in error_of(lambda: open_variables({}))
    wide = {**values, "decoder/rms_norm/scale": np.ones(9, np.float32)}
    assert "(9,)" in error_of(lambda: open_variables(wide))
