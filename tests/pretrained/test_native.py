"""Our own folder: whole or not at all, bit for bit, and never over somebody else's files."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.trees import assert_same_bits

from t5jax.checkpoint.manager import CheckpointManager
from t5jax.models.config import T5Config
from t5jax.models.t5 import abstract_params
from t5jax.pretrained.model_folder import write_model_folder
from t5jax.pretrained.native import holds_native_model, save_native
from t5jax.pretrained.open import load_pretrained
from t5jax.tokenizers.sentencepiece import train_tokenizer

# Orbax leaves reads of damaged folders unfinished, which Python reports when it cleans up.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(["a folder in a folder"], vocab_size=14, num_sentinels=7)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_config, odd_params, vocabulary):
    """A saved model; not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "model"
    save_native(path, tiny_config, odd_params, vocabulary)
    return path


@pytest.fixture(scope="module")
def odd_params(tiny_params):
    """With values that ordinary arithmetic would not keep."""
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, -1e-40, 3.4e38], np.float32)
    table = tiny_params["token_embedder"]["embedding"]
    return {**tiny_params, "token_embedder": {"embedding": table.at[5, :6].set(odd)}}


@pytest.fixture
def model(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def load(path):
    return load_pretrained(path, dtype=np.dtype(np.float32))


def names(path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def error_of(path, match) -> str:
    with pytest.raises(ValueError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def edit(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# There and back.


def test_load_returns_what_was_saved_bit_for_bit(saved, tiny_config, odd_params, vocabulary):
    config, params, found = load(saved)
    assert config == tiny_config
    assert_same_bits(params, odd_params)
    assert found is not None
    assert found.fingerprint == vocabulary.fingerprint
    assert found.encode("a folder") == vocabulary.encode("a folder")


def test_load_puts_every_array_on_one_device(saved):
    _, params, _ = load(saved)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(params))


def test_save_gathers_arrays_that_lie_on_several_devices(tmp_path, tiny_config, tiny_params):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(leaf):
        axis = next((i for i, size in enumerate(leaf.shape) if size % 8 == 0), None)
        spec = [None] * leaf.ndim
        if axis is not None:
            spec[axis] = "fsdp"
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    spreaded = jax.tree.map(spread, tiny_params)
    assert any(len(leaf.addressable_shards) == 8 for leaf in jax.tree.leaves(spreaded))
    save_native(tmp_path / "model", tiny_config, spreaded, None)
    assert_same_bits(load(tmp_path / "model")[1], tiny_params)


def test_load_widens_parameters_that_were_saved_in_bfloat16(tmp_path, tiny_config, tiny_params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_params)
    save_native(tmp_path / "model", tiny_config, half, None)
    _, params, _ = load(tmp_path / "model")
    # bfloat16 is the upper half of float32.
    wide = jax.tree.map(
        lambda leaf: (np.asarray(leaf).view(np.uint16).astype(np.uint32) << 16).view(np.float32),
        half,
    )
    assert_same_bits(params, wide)


def test_save_without_tokenizer_loads_without_one(tmp_path, tiny_config, tiny_params):
    save_native(tmp_path / "model", tiny_config, tiny_params, None)
    assert names(tmp_path / "model") == ["config.json", "params", "params.checksum"]
    assert load(tmp_path / "model")[2] is None


def test_config_file_is_json_that_people_can_read(saved, tiny_config):
    fields = json.loads((saved / "config.json").read_text())
    assert fields["d_model"] == tiny_config.d_model
    assert fields["tie_embeddings"] is tiny_config.tie_embeddings


# What is in the way.


@pytest.mark.parametrize("kind", ["model", "stranger", "file"])
def test_save_replaces_nothing_unless_told_to(model, tmp_path, tiny_config, tiny_params, kind):
    target = {"model": model, "stranger": tmp_path / "stranger", "file": tmp_path / "file"}[kind]
    if kind == "stranger":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    if kind == "file":
        target.write_text("a file")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match=f"^{target} must be a new or an empty folder"):
        save_native(target, tiny_config, tiny_params, None)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "files",
    [
        ["thesis.tex"],
        ["config.json"],
        ["params/main.py"],  # a folder of that name in somebody's project
        ["model.safetensors"],
        ["config.json", "checkpoints/100/params/manifest.ocdbt"],  # a run
    ],
)
def test_save_overwrites_nothing_but_saved_models(tmp_path, tiny_config, tiny_params, files):
    target = tmp_path / "mine"
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (target / file).write_text("years of work")
    with pytest.raises(FileExistsError, match="must be a saved model to be overwritten"):
        save_native(target, tiny_config, tiny_params, None, overwrite=True)
    assert all((target / file).read_text() == "years of work" for file in files)
    assert names(tmp_path) == ["mine"]


def test_save_overwrites_a_saved_model(model, tmp_path, tiny_config, tiny_params):
    (model / "spiece.model").write_text("of the old model")
    changed = tiny_config.replace(dropout_rate=0.25)
    save_native(model, changed, tiny_params, None, overwrite=True)
    config, params, found = load(model)
    assert config == changed
    assert_same_bits(params, tiny_params)
    assert found is None
    assert names(model) == ["config.json", "params", "params.checksum"]
    assert names(tmp_path) == ["model"]


def test_save_writes_into_an_empty_folder_and_makes_its_parents(tmp_path, tiny_config, tiny_params):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        save_native(target, tiny_config, tiny_params, None)
        assert load(target)[0] == tiny_config
    assert names(tmp_path) == ["a", "empty"]


def test_save_takes_paths_as_users_write_them(tmp_path, monkeypatch, tiny_config, tiny_params):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_native("here/", tiny_config, tiny_params, None)
    save_native("~/there", tiny_config, tiny_params, None)
    assert names(tmp_path) == ["here", "there"]


def test_save_through_a_link_replaces_what_it_points_to(model, tmp_path, tiny_config, tiny_params):
    link = tmp_path / "latest"
    link.symlink_to(model)
    save_native(link, tiny_config.replace(dropout_rate=0.25), tiny_params, None, overwrite=True)
    assert link.is_symlink()
    assert load(model)[0].dropout_rate == 0.25
    assert names(tmp_path) == ["latest", "model"]


# Interrupted.


def save_half(path, error, *, overwrite):
    with write_model_folder(path, overwrite=overwrite) as temporary:
        (temporary / "config.json").write_text("{")
        raise error


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_interrupted_save_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        save_half(tmp_path / "model", error, overwrite=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_interrupted_save_leaves_the_old_model(model, tmp_path, tiny_config, odd_params, error):
    with pytest.raises(type(error)):
        save_half(model, error, overwrite=True)
    assert names(tmp_path) == ["model"]
    config, params, _ = load(model)
    assert config == tiny_config
    assert_same_bits(params, odd_params)


# Damaged, or of another model.


def data_files(path) -> list[Path]:
    """The files that hold the arrays, largest first."""
    files = [p for p in (path / "params" / "ocdbt.process_0" / "d").iterdir() if p.is_file()]
    return sorted(files, key=lambda p: p.stat().st_size, reverse=True)


@pytest.mark.parametrize("damage", ["cut", "removed", "overwritten"])
def test_load_refuses_damaged_arrays(model, damage):
    largest = data_files(model)[0]
    content = largest.read_bytes()
    largest.write_bytes(content[:100] if damage == "cut" else b"\0" * len(content))
    if damage == "removed":
        largest.unlink()
    error_of(model, "is damaged")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_load_refuses_arrays_with_one_flipped_bit(model):
    """Compressed numbers are numbers still, whatever their bits."""
    flip(data_files(model)[0])
    error_of(model, "is damaged")


def test_load_takes_a_folder_without_checksum(model, tiny_config):
    (model / "params.checksum").unlink()
    assert load(model)[0] == tiny_config


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_load_refuses_params_without_their_list(model, damage):
    path = model / "params" / "manifest.ocdbt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if damage == "removed":
        path.unlink()
    error_of(model, "params (is damaged|must be a folder of arrays written by t5jax)")


def test_load_refuses_an_empty_params_folder(model):
    shutil.rmtree(model / "params")
    (model / "params").mkdir()
    error_of(model, "params must be a folder of arrays written by t5jax")


@pytest.mark.parametrize(
    ("changes", "path", "wanted", "found"),
    [
        ({"vocab_size": 128}, "output/kernel", (16, 128), (16, 97)),
        ({"num_heads": 4}, "decoder/layers/cross_attention/key", (3, 16, 20), (3, 16, 15)),
        ({"num_encoder_layers": 3}, "encoder/layers/attention/key", (3, 16, 15), (2, 16, 15)),
        ({"relative_buckets": 10}, "decoder/relative_bias/embedding", (10, 3), (8, 3)),
    ],
)
def test_load_names_the_array_that_does_not_fit_the_config(model, changes, path, wanted, found):
    edit(model, **changes)
    message = error_of(model, "params")
    assert f"{path} must have shape {wanted} for this config, got {found}" in message


def test_load_names_an_array_that_the_config_asks_for(model):
    edit(model, relative_bias_per_layer=True)
    error_of(model, "must hold decoder/layers/relative_bias/embedding for this config")


@pytest.mark.parametrize("changes", [{"tie_embeddings": True}, {"num_decoder_layers": 0}])
def test_load_refuses_arrays_that_the_config_has_no_use_for(model, changes):
    edit(model, **changes)
    error_of(model, "params")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"d_modle": 16}'])
def test_load_refuses_a_config_that_is_none(model, text):
    (model / "config.json").write_text(text)
    error_of(model, r"config\.json")


# Runs.


@pytest.fixture
def run(tmp_path, tiny_config):
    """A run as training leaves it: config, and checkpoints with more than parameters in them."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(tiny_config.to_json())
    return path


def test_load_takes_the_newest_checkpoint_of_a_run(run, vocabulary, tiny_config, tiny_params):
    vocabulary.save(run)
    save_run(run, tiny_params, (9, 10))
    config, params, found = load(run)
    assert config == tiny_config
    assert_same_bits(params, jax.tree.map(lambda leaf: leaf + 10, tiny_params))
    assert found is not None


def save_run(run, params, steps):
    checkpoints = CheckpointManager(run / "checkpoints", keep=len(steps))
    for step in steps:
        moved = jax.tree.map(lambda leaf, step=step: leaf + step, params)
        checkpoints.save(step, {"params": moved, "state": {"step": jnp.asarray(step)}}, {})
    checkpoints.close()


def test_load_takes_the_checkpoint_before_a_damaged_one(run, tiny_params):
    save_run(run, tiny_params, (9, 10))
    for file in (run / "checkpoints" / "10" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"10/params .*Trying the previous checkpoint"):
        _, params, _ = load(run)
    assert_same_bits(params, jax.tree.map(lambda leaf: leaf + 9, tiny_params))


def test_load_of_a_run_of_another_config_names_the_newest_checkpoint(run, tiny_params):
    save_run(run, tiny_params, (9, 10))
    edit(run, vocab_size=128)
    message = error_of(run, r"10/params: output/kernel must have shape \(16, 128\)")
    assert "got (16, 97)" in message


@pytest.mark.parametrize("unfinished", [[], ["100.orbax-checkpoint-tmp-0"], ["7.damaged"]])
def test_load_refuses_a_run_that_has_no_checkpoint_yet(run, unfinished):
    (run / "checkpoints").mkdir()
    for name in unfinished:
        (run / "checkpoints" / name).mkdir()
    assert holds_native_model(run)
    error_of(run, "must contain a checkpoint, but the run has not saved one yet")


def test_holds_model_needs_config_and_arrays(model, run, tmp_path):
    assert holds_native_model(model)
    assert not holds_native_model(run)  # neither params nor checkpoints
    (model / "config.json").unlink()
    assert not holds_native_model(model)
    assert not holds_native_model(tmp_path / "absent")


def test_abstract_params_are_what_a_folder_holds(saved):
    """What is loaded, and nothing else, is what the config asks for."""
    config = T5Config.from_file(saved / "config.json")
    _, params, _ = load(saved)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(config)
    )
