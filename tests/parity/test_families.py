"""The same numbers as Hugging Face transformers, for the families beside T5 itself.

Sizes of `transformers_models.SIZES`: no two alike, unequal depths, heads that are not d_model.
"""

import json

import jax
import numpy as np
import pytest
from helpers.transformers_models import (
    SIZES,
    STEPS,
    TOLERANCE,
    assert_exported_bit_for_bit,
    batch,
    make,
    one_thread,
    our_forward,
    their_forward,
    their_greedy,
    torch,
)
from safetensors.numpy import load_file, save_file

import t5jax
from t5jax.generation.scoring import encode_batch

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES = {
    "mt5": ("MT5ForConditionalGeneration", GATED),
    "umt5": ("UMT5ForConditionalGeneration", GATED),
    # Pile-T5: a umT5 whose sequences end as Llama's.
    "pile-t5": ("UMT5ForConditionalGeneration", GATED | {"eos_token_id": 2}),
    # One layer, where only model_type tells whose the bias is.
    "umt5-shallow": (
        "UMT5ForConditionalGeneration",
        GATED | {"num_layers": 1, "num_decoder_layers": 1},
    ),
    "madlad": ("T5ForConditionalGeneration", GATED | {"pad_token_id": 1, "eos_token_id": 2}),
    "codet5": (
        "T5ForConditionalGeneration",
        {"feed_forward_proj": "relu", "bos_token_id": 1, "eos_token_id": 2},
    ),
    "t5-efficient": (
        "T5ForConditionalGeneration",
        {"feed_forward_proj": "relu", "num_layers": 4, "num_decoder_layers": 1, "d_ff": 40},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with one_thread():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    kind, keys = FAMILIES[request.param]
    theirs = make(folder, SIZES | keys, kind=kind, loudness=4)
    if request.param == "madlad":
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        save_file(tensors, file, metadata={"format": "pt"})
    return kind, theirs, t5jax.load(folder)


@torch.no_grad()
def their_logits(model, encoder, mask, decoder):
    """What transformers computes, or for umT5 what its authors do.

    They trained an output layer of its own, and without a factor.  transformers 5 multiplies
    umT5's decoder states by d_model**-0.5 before it, in some versions but not in others.
    """
    logits, layers = their_forward(model, encoder, mask, decoder)
    if model.config.model_type == "umt5":
        logits = model.lm_head(torch.from_numpy(layers[-1])).numpy()
    return logits, layers


def test_family_has_the_states_and_logits_of_transformers(pair):
    _, theirs, ours = pair
    encoder, mask, decoder = batch(theirs.config.vocab_size, (19, 8, 1), 31)
    logits, layers = their_logits(theirs, encoder, mask, decoder)
    states = layers[theirs.config.num_layers]
    our_states, our_logits = our_forward(ours.model, encoder, mask, decoder)
    np.testing.assert_allclose(np.asarray(our_states)[mask], states[mask], rtol=0, atol=TOLERANCE)
    scale = max(1, abs(logits).max() / 15)  # logits of the other families are at most 15
    np.testing.assert_allclose(our_logits, logits, rtol=0, atol=TOLERANCE * scale)


def test_family_exports_what_it_read(pair, tmp_path):
    kind, theirs, ours = pair
    assert_exported_bit_for_bit(
        ours, tmp_path / "out", theirs, kind=kind.replace("MT5", "T5") if kind[0] == "M" else kind
    )


def test_umt5_decodes_greedily_to_the_ids_of_transformers(tmp_path):
    kind, keys = FAMILIES["umt5"]
    theirs = make(tmp_path, SIZES | keys, kind=kind, loudness=40, eos_gain=1.5)
    ours = t5jax.load(tmp_path)
    encoder, mask, _ = batch(97, (19, 8, 5, 3, 1), 1, seed=2)
    ids, lead = their_greedy(theirs, encoder, mask)  # the largest logit is that of any scale
    assert len(np.unique(ids)) >= 10
    assert lead * 97**0.5 > TOLERANCE
    found = ours.generate_ids(encoder, encoder_mask=mask, max_new_tokens=STEPS)
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("kind", ["UMT5EncoderModel", "MT5EncoderModel"])
def test_encoder_alone_has_the_states_of_transformers(tmp_path, kind):
    theirs = make(tmp_path, SIZES | {"feed_forward_proj": "gated-gelu"}, kind=kind)
    ours = t5jax.load(tmp_path)
    assert ours.config.num_decoder_layers == 0
    encoder, mask, _ = batch(97, (31, 8, 1), 1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(encoder).long(),
            attention_mask=torch.from_numpy(mask).long(),
        ).last_hidden_state.numpy()
    found = encode_batch(ours.params, encoder, mask, config=ours.config, policy=ours.policy)
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "UMT5ForConditionalGeneration"])
def test_pickled_state_dicts_hold_the_same_model(tmp_path, kind, legacy):
    """With every alias of the embedding, as torch saves them."""
    theirs = make(tmp_path / "safe", SIZES | GATED, kind=kind)
    (tmp_path / "bin").mkdir()
    config = (tmp_path / "safe" / "config.json").read_text()
    (tmp_path / "bin" / "config.json").write_text(config)
    torch.save(
        theirs.state_dict(),
        tmp_path / "bin" / "pytorch_model.bin",
        _use_new_zipfile_serialization=not legacy,
    )
    one, other = t5jax.load(tmp_path / "safe"), t5jax.load(tmp_path / "bin")
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_sharded_pickles_hold_the_same_model(tmp_path):
    theirs = make(tmp_path / "safe", SIZES | GATED)
    (tmp_path / "bin").mkdir()
    state, weight_map = theirs.state_dict(), {}
    names = list(state)
    for i in range(3):
        part = {name: state[name] for name in names[i::3]}
        file = f"pytorch_model-{i + 1:05}-of-00003.bin"
        torch.save(part, tmp_path / "bin" / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (tmp_path / "bin" / "pytorch_model.bin.index.json").write_text(index)
    config = (tmp_path / "safe" / "config.json").read_text()
    (tmp_path / "bin" / "config.json").write_text(config)
    one, other = t5jax.load(tmp_path / "safe"), t5jax.load(tmp_path / "bin")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize("kind", ["T5ForSequenceClassification", "T5ForQuestionAnswering"])
def test_heads_of_other_tasks_are_left_out(tmp_path, kind):
    """The model that they were put on is a T5 all the same."""
    keys = SIZES | {"feed_forward_proj": "gated-gelu", "num_labels": 3}
    theirs = make(tmp_path, keys, kind=kind)
    with pytest.warns(UserWarning, match="a head for another task"):
        ours = t5jax.load(tmp_path)
    model = getattr(theirs, "transformer", theirs)
    encoder, mask, _ = batch(97, (19, 8, 1), 1)
    with torch.no_grad():
        expected = model.encoder(
            input_ids=torch.from_numpy(encoder).long(),
            attention_mask=torch.from_numpy(mask).long(),
        ).last_hidden_state.numpy()
    found = encode_batch(ours.params, encoder, mask, config=ours.config, policy=ours.policy)
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], rtol=0, atol=TOLERANCE)


# Full size, with random weights: `pytest -m slow tests/parity/test_families.py`.

SIZED = {
    "flan-t5-base": (
        "T5ForConditionalGeneration",
        {"vocab_size": 32128, "d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    ),
    "mt5-small": (
        "MT5ForConditionalGeneration",
        {"vocab_size": 250112, "d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    ),
    "byt5-small": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 384,
            "d_model": 1472,
            "d_ff": 3584,
            "num_heads": 6,
            "num_layers": 12,
            "num_decoder_layers": 4,
        },
    ),
    "umt5-small": (
        "UMT5ForConditionalGeneration",
        {"vocab_size": 256384, "d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZED)
def test_full_size_has_the_logits_of_transformers(tmp_path, name):
    kind, keys = SIZED[name]
    theirs = make(tmp_path, GATED | {"d_kv": 64} | keys, kind=kind)
    ours = t5jax.load(tmp_path)
    expected = t5jax.T5Config.preset(name, dropout_rate=0.1)
    assert ours.config == expected
    encoder, mask, decoder = batch(keys["vocab_size"], (141, 90, 17, 1), 33)
    logits, layers = their_logits(theirs, encoder, mask, decoder)
    our_states, our_logits = our_forward(ours.model, encoder, mask, decoder)
    states = layers[theirs.config.num_layers]
    np.testing.assert_allclose(np.asarray(our_states)[mask], states[mask], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(our_logits, logits, rtol=0, atol=TOLERANCE)
