"""Which reader a name or path goes to, and what is said where none fits."""

import shutil

import jax
import numpy as np
import pytest
from helpers import hf_folders

from t5jax.checkpoint.manager import CheckpointManager
from t5jax.pretrained.open import load_pretrained, save_pretrained
from t5jax.tokenizers.sentencepiece import train_tokenizer


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(["a folder in a folder"], vocab_size=14, num_sentinels=7)


@pytest.fixture
def ours(tmp_path, tiny_config, tiny_params, vocabulary):
    path = tmp_path / "ours"
    save_pretrained(path, tiny_config, tiny_params, vocabulary)
    return path


@pytest.fixture
def theirs(tmp_path, vocabulary):
    tensors = hf_folders.random_tensors(hf_folders.CONFIG)
    path = hf_folders.write(tmp_path / "theirs", hf_folders.CONFIG, tensors)
    vocabulary.save(path)
    return path


@pytest.fixture
def run(tmp_path, tiny_config, tiny_params, vocabulary):
    path = tmp_path / "run"
    checkpoints = CheckpointManager(path / "checkpoints", keep=1)
    checkpoints.save(3, {"params": tiny_params}, {})
    checkpoints.close()
    (path / "config.json").write_text(tiny_config.to_json())
    vocabulary.save(path)
    return path


@pytest.mark.parametrize("kind", ["ours", "run"])
def test_load_reads_folders_of_ours(kind, request, tiny_config, tiny_params, vocabulary):
    config, params, found = load_pretrained(request.getfixturevalue(kind))
    assert config == tiny_config
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(tiny_params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert found is not None
    assert found.fingerprint == vocabulary.fingerprint


def test_load_reads_folders_of_hugging_face(theirs, vocabulary):
    config, params, found = load_pretrained(theirs)
    assert (config.d_model, config.num_decoder_layers, config.scale_logits) == (16, 3, True)
    expected = hf_folders.random_tensors(hf_folders.CONFIG)["shared.weight"]
    np.testing.assert_array_equal(params["token_embedder"]["embedding"], expected)
    assert found is not None
    assert found.fingerprint == vocabulary.fingerprint


def test_load_without_tokenizer_files_has_none(theirs):
    for name in ("spiece.model", "tokenizer_config.json"):
        (theirs / name).unlink()
    assert load_pretrained(theirs)[2] is None


def test_load_takes_paths_as_users_write_them(ours, tmp_path, monkeypatch, tiny_config):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (ours, str(ours), "ours", "./ours/", "~/ours"):
        assert load_pretrained(path)[0] == tiny_config


def test_load_prefers_a_folder_to_a_hub_id_of_the_same_name(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ours, tmp_path / "google" / "flan-t5-small")
    assert load_pretrained("google/flan-t5-small")[0].d_model == 16


def test_load_refuses_a_file_that_is_no_model(theirs):
    file = theirs / "config.json"
    with pytest.raises(ValueError, match=f"^{file} must be a folder with a model, .* none of them"):
        load_pretrained(file)


def test_load_reads_a_single_file_with_the_config_beside_it(theirs):
    config, params, _ = load_pretrained(theirs)
    same, alone, found = load_pretrained(theirs / "model.safetensors")
    assert same == config
    jax.tree.map(np.testing.assert_array_equal, alone, params)
    assert found is not None


def test_load_reads_a_single_file_by_its_tensors(theirs):
    """As image models have their text encoders; only the maximal distance cannot be seen."""
    config, params, _ = load_pretrained(theirs)
    (theirs / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"no config\.json; sizes and activation were inferred"):
        same, alone, _ = load_pretrained(theirs / "model.safetensors")
    assert same == config.replace(dropout_rate=0.0, relative_max_distance=128)
    jax.tree.map(np.testing.assert_array_equal, alone, params)


def test_load_refuses_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path} must contain a model: .* got nothing"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("present", [["config.json"], ["params"], ["a.txt"]])
def test_load_says_what_a_folder_without_model_holds(tmp_path, present):
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="must contain a model") as caught:
        load_pretrained(tmp_path)
    assert str(caught.value).endswith(f"got {', '.join(present)}.")
    assert "model.safetensors" in str(caught.value)


def test_load_lists_a_few_of_many_files(tmp_path):
    for i in range(1000):
        (tmp_path / f"{i:04}.txt").touch()
    with pytest.raises(ValueError, match=r"0000\.txt, .*, 0007\.txt") as caught:
        load_pretrained(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_load_refuses_a_revision_of_a_folder(kind, request):
    path = request.getfixturevalue(kind)
    with pytest.raises(ValueError, match=f"revision must not be set for a local path, .* {path}"):
        load_pretrained(path, revision="main")


def test_load_names_a_damaged_tokenizer(theirs):
    file = theirs / "spiece.model"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"^{file}.* must be a complete SentencePiece model"):
        load_pretrained(theirs)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_load_of_a_path_that_does_not_exist_says_so(name):
    with pytest.raises(FileNotFoundError, match="must be an existing folder or a hub id"):
        load_pretrained(name)
