"""Rounded weights: the error that is told is the error that there is, and a model writes with them.

The oracle is the same model with float kernels that hold the rounded values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.forced_decoding import LIMIT, forced_log_probs, greedy_ids, score_by_hand

import t5jax
from t5jax.models.t5 import bind
from t5jax.ops.linear import is_kernel, quantize_kernel
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.text2text import Text2Text


def save_and_round(t5, folder):
    t5.save(folder)
    return t5, t5jax.load(folder, weights="int8")


@pytest.fixture(scope="module")
def untied(t5, tmp_path_factory):
    """The shared model, exact and rounded."""
    return save_and_round(t5, tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="module")
def tied(t5, tmp_path_factory):
    """One whose output layer is its embedding, exact and rounded."""
    config = t5.config.replace(tie_embeddings=True, scale_logits=True)
    params = {name: part for name, part in t5.params.items() if name != "output"}
    table = params["token_embedder"]["embedding"]
    params["token_embedder"] = {"embedding": table.at[config.eos_id].multiply(2.0)}
    exact = Text2Text(config, params, t5.tokenizer)
    return save_and_round(exact, tmp_path_factory.mktemp("tied"))


@pytest.fixture(params=["untied", "tied"])
def pair(request):
    return request.getfixturevalue(request.param)


def widened(t5):
    """Float kernels of the same values; of a tied model, one more for its output."""
    params = jax.tree.map(
        lambda leaf: leaf.dequantize(jnp.float32) if is_kernel(leaf) else leaf,
        t5.params,
        is_leaf=is_kernel,
    )
    if not t5.config.tie_embeddings:
        return Text2Text(t5.config, params, t5.tokenizer)
    table = params["token_embedder"]["embedding"]
    params["output"] = {"kernel": quantize_kernel(table.T).dequantize(jnp.float32)}
    return Text2Text(t5.config.replace(tie_embeddings=False), params, t5.tokenizer)


def test_to_int8_rounds_what_is_multiplied_with_and_leaves_the_rest(pair):
    exact, loaded = pair
    config, params = exact.config, exact.params
    expected = jax.tree.leaves_with_path(params)
    found = jax.tree.leaves(loaded.params, is_leaf=is_kernel)
    narrow = set()
    for (path, before), after in zip(expected, found, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if is_kernel(after):
            narrow.add(name.rpartition("/")[2])
            assert after.shape == before.shape
            np.testing.assert_array_equal(after.values, quantize_kernel(before).values)
        else:
            assert "embedding" in name or "scale" in name
            np.testing.assert_array_equal(after, before)
    names = {"query", "key", "value", "out", "wi", "wi_linear", "wo"}
    assert narrow == names | ({"kernel"} if not config.tie_embeddings else set())


def test_to_int8_tells_the_error_that_numpy_finds(pair):
    exact, loaded = pair
    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(2, 97, (4, size), dtype=np.int32) for size in (64, 16))
    shifted = np.roll(targets, 1, axis=1)

    def logits(t5):
        shifted[:, 0] = t5.config.decoder_start_id
        run = jax.jit(lambda model, *batch: model(*batch, encoder_mask=batch[0] >= 0))
        centred = np.asarray(run(bind(t5.config, t5.params), tokens, shifted), np.float64)
        return centred - centred.mean(axis=-1, keepdims=True)

    before, after = logits(exact), logits(widened(loaded))
    difference = after - before
    error = loaded.logit_error
    relative = np.sqrt((difference**2).mean() / (before**2).mean())
    assert 1e-3 < relative < 0.1
    # Activations of sixteen bits change some 1e-4 of the logits, thousandths of the error.
    np.testing.assert_allclose(error.relative, relative, rtol=0.02)
    np.testing.assert_allclose(error.largest, np.abs(difference).max(), rtol=0.05)
    agreement = (before.argmax(-1) == after.argmax(-1)).mean()
    assert abs(error.agreement - agreement) <= 1 / 64  # one position of 64 may be a tie
    assert 0.8 < agreement <= 1


def test_logit_error_is_told_where_weights_were_rounded(untied):
    exact, loaded = untied
    assert exact.logit_error is None
    assert "LogitError" not in repr(exact)
    assert f"relative={loaded.logit_error.relative}" in repr(loaded)
    assert "\n" not in repr(loaded)
    count = sum(leaf.size for leaf in jax.tree.leaves(exact.params))
    assert repr(loaded).startswith(f"Text2Text({count / 1e6:.1f} M parameters")


def test_int8_model_thinks_what_its_weights_say(pair, short):
    _, loaded = pair
    ids = [*loaded.tokenizer.encode(short[0]), 1]
    found = forced_log_probs(loaded, short[1], ids)
    expected = forced_log_probs(widened(loaded), short[1], ids)
    # Activations of sixteen bits, through two layers.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)


def test_int8_model_writes_what_its_weights_say(pair, short):
    _, loaded = pair
    reference = widened(loaded)
    expected = [loaded.tokenizer.decode(greedy_ids(reference, text)) for text in short[:2]]
    assert loaded.generate(short[:2], max_new_tokens=LIMIT) == expected


def test_int8_model_thinks_hardly_worse_of_what_the_exact_one_writes(untied, short):
    likeliest = untied[0].generate(short, max_new_tokens=LIMIT)
    before, after = (t5.score(short, likeliest) for t5 in untied)
    # Weights with errors of up to one in 254, and up to 13 tokens.
    np.testing.assert_allclose(after, before, rtol=0.1)
    assert np.abs(after - before).max() > 1e-3


def test_int8_model_searches_draws_and_scores(untied, short):
    _, loaded = untied
    assert len(loaded.generate(short, max_new_tokens=LIMIT, num_beams=3)) == len(short)
    options = {"temperature": 1.0, "num_return_sequences": 2}
    draws = loaded.generate_outputs(short, max_new_tokens=LIMIT, **options)
    assert [len(row) for row in draws] == [2] * len(short)
    found = loaded.score(short, short[::-1])
    reference = widened(loaded)
    # The texts of the oracle's programs that there are already.
    expected = [score_by_hand(reference, short[i], short[3 - i]) for i in (0, 1)]
    np.testing.assert_allclose(found[:2], expected, rtol=2e-3)


def test_int8_weights_of_bfloat16_parameters_compute_in_bfloat16(t5, tmp_path, short):
    t5.save(tmp_path / "exact")
    half = t5jax.load(tmp_path / "exact", dtype="bfloat16", weights="int8")
    assert half.policy.dtype == "bfloat16"
    kernel = half.params["decoder"]["layers"]["mlp"]["wo"]
    assert kernel.scale.dtype == jnp.float32
    assert half.params["token_embedder"]["embedding"].dtype == jnp.bfloat16
    assert 1e-3 < half.logit_error.relative < 0.1
    assert len(half.generate(short, max_new_tokens=4)) == len(short)


@pytest.mark.parametrize("write", ["save", "export_hf"])
def test_int8_weights_are_not_saved(untied, tmp_path, write):
    _, loaded = untied
    call = loaded.save if write == "save" else lambda folder: t5jax.export_hf(loaded, folder)
    with pytest.raises(ValueError, match="weights='int8' cannot be saved; load the model without"):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("weights", ["int4", "bfloat16", "", None])
def test_load_refuses_unknown_weights_before_it_reads_anything(tmp_path, weights):
    with pytest.raises(ValueError, match=f"weights must be 'float' or 'int8', got {weights!r}"):
        t5jax.load(tmp_path / "nowhere", weights=weights)


def test_load_refuses_int8_weights_of_an_encoder_or_on_a_mesh(tmp_path):
    for options in ({"encoder_only": True}, {"mesh": make_mesh(MeshConfig(fsdp=8))}):
        with pytest.raises(ValueError, match="int8' must come without mesh and encoder_only"):
            t5jax.load(tmp_path / "nowhere", weights="int8", **options)


def test_load_with_float_weights_tells_of_no_error(t5, tmp_path):
    t5.save(tmp_path / "exact")
    assert t5jax.load(tmp_path / "exact", weights="float").logit_error is None
