"""generation_config.json: what transformers generates with it, `generate_ids` does too."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import t5jax
from t5jax.generation.engine import _truncate
from t5jax.generation.generation_file import from_generation_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.array([[5, 9, 33, 40, 1], [7, 60, 12, 1, 0], [3, 1, 0, 0, 0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=5,
        d_ff=24,
        num_heads=3,
        num_layers=2,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def write(folder, settings) -> None:
    ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ids | settings))


def random_settings(seed: int) -> dict:
    rng = np.random.default_rng(seed)

    def maybe(probability=0.4):
        return rng.random() < probability

    settings: dict = {}
    if maybe():
        settings["num_beams"] = int(rng.integers(1, 5))
    if maybe():
        settings["length_penalty"] = float(rng.choice([0.0, 0.6, 1.0, 2.0, -1.0]))
    if maybe():
        settings["early_stopping"] = [True, False, "never"][rng.integers(3)]
    if maybe():
        settings["max_length" if maybe(0.5) else "max_new_tokens"] = int(rng.integers(2, 12))
    if maybe():
        settings["min_length" if maybe(0.5) else "min_new_tokens"] = int(rng.integers(0, 8))
    if maybe():
        settings["no_repeat_ngram_size"] = int(rng.integers(1, 4))
    if maybe():
        settings["repetition_penalty"] = float(rng.choice([0.8, 1.3, 2.0]))
    if maybe():
        settings["forced_bos_token_id"] = int(rng.integers(2, 64))
    if maybe():
        settings["forced_eos_token_id"] = [1] if maybe(0.3) else 1
    if maybe():
        settings["suppress_tokens"] = rng.choice(np.arange(2, 64), 20, replace=False).tolist()
        if settings.get("forced_bos_token_id") in settings["suppress_tokens"]:
            del settings["suppress_tokens"]
    if maybe():
        settings["begin_suppress_tokens"] = [1, int(rng.integers(2, 64))]
    if maybe():
        settings["bad_words_ids"] = [[int(x) for x in rng.integers(2, 64, n)] for n in (1, 2)]
    if maybe():
        settings |= {"top_k": 5, "top_p": 0.9, "temperature": 0.7}  # without do_sample: no effect
    return settings


@pytest.mark.parametrize("seed", range(30))
def test_answers_are_those_of_transformers(folder, seed):
    settings = random_settings(seed)
    write(folder, settings)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    # Its limit of 20, without one in the file, is not ours.
    limit = {} if settings.keys() & {"max_length", "max_new_tokens"} else {"max_new_tokens": 9}
    mask = torch.tensor(IDS > 0)
    want = theirs.generate(torch.tensor(IDS), attention_mask=mask, **limit)[:, 1:].numpy()
    ours = t5jax.load(folder).generate_ids(IDS, encoder_mask=IDS > 0, **limit)
    np.testing.assert_array_equal(ours[:, : want.shape[1]], want, err_msg=str(settings))
    assert not ours[:, want.shape[1] :].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
        {"do_sample": True, "top_k": 0, "min_p": 0.2},
        {"do_sample": True, "top_k": 3, "typical_p": 0.9, "temperature": 1.5},
        {"do_sample": True, "top_k": 12, "top_p": 0.95, "min_p": 0.01},
    ],
)
def test_processed_logits_are_those_of_transformers(folder, settings):
    write(folder, settings)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    config = from_generation_file(settings, source="file")
    generation, _ = theirs._prepare_generation_config(None)
    processors = theirs._get_logits_processor(
        generation, input_ids_seq_length=1, encoder_input_ids=torch.tensor(IDS)
    )
    logits = np.random.default_rng(0).normal(0, 3, (4, 64)).astype(np.float32)
    want = processors(torch.tensor([[0]] * 4), torch.tensor(logits)).numpy()
    params = {name: jnp.asarray(value) for name, value in config.sampling_params.items()}
    ours = _truncate(jnp.asarray(logits) / config.temperature, params=params, max_k=64)
    np.testing.assert_allclose(ours, want, rtol=1e-6)
    assert np.isinf(want).any()


def test_settings_of_an_old_config_are_those_of_transformers(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "generation_config.json").unlink()
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    settings = {"num_beams": 3, "no_repeat_ngram_size": 1, "max_length": 7}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | settings))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "old")
    mask = torch.tensor(IDS > 0)
    want = theirs.generate(torch.tensor(IDS), attention_mask=mask)[:, 1:].numpy()
    ours = t5jax.load(tmp_path / "old").generate_ids(IDS, encoder_mask=IDS > 0)
    np.testing.assert_array_equal(ours[:, : want.shape[1]], want)


def test_start_of_the_file_is_that_of_transformers(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "start")
    write(tmp_path / "start", {"decoder_start_token_id": 44, "max_new_tokens": 6})
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "start")
    want = theirs.generate(torch.tensor(IDS), attention_mask=torch.tensor(IDS > 0))[:, 1:].numpy()
    with pytest.warns(UserWarning, match="decoder_start_token_id is 0 in config"):
        ours = t5jax.load(tmp_path / "start").generate_ids(IDS, encoder_mask=IDS > 0)
    np.testing.assert_array_equal(ours[:, : want.shape[1]], want)


def test_file_of_ours_is_read_by_transformers(folder, tmp_path):
    write(folder, {"num_beams": 3, "length_penalty": 0.6, "min_new_tokens": 2, "max_new_tokens": 6})
    t5 = t5jax.load(folder)
    t5jax.export_hf(t5, tmp_path / "exported")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "exported")
    want = theirs.generate(torch.tensor(IDS), attention_mask=torch.tensor(IDS > 0))[:, 1:].numpy()
    np.testing.assert_array_equal(
        t5.generate_ids(IDS, encoder_mask=IDS > 0)[:, : want.shape[1]], want
    )
    t5.save(tmp_path / "saved")
    assert t5jax.load(tmp_path / "saved").generation_config == t5.generation_config
