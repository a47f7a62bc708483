"""States, embeddings and scores: the numbers of the module's own logits, put together by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.forced_decoding import (
    SCORE_TOLERANCE,
    TOKEN_TOLERANCE,
    forced_log_probs,
    score_by_hand,
    token_log_probs,
)

from t5jax.generation.scoring import (
    cross_attention_weights,
    embed_batch,
    encode_batch,
    score_tokens,
)
from t5jax.models.config import ComputePolicy
from t5jax.models.sentence_encoder import SentenceEncoder
from t5jax.models.t5 import bind
from t5jax.text2text import Text2Text

POLICY = ComputePolicy()

S, T = 9, 16
LENGTHS = (9, 5, 1)
NUM_TARGETS = 2

RNG = np.random.default_rng(0)
MASK = np.arange(S) < np.array(LENGTHS)[:, None]
TOKENS = (RNG.integers(2, 97, (3, S)) * MASK).astype(np.int32)
TARGETS = RNG.integers(1, 97, (3 * NUM_TARGETS, T)).astype(np.int32)
SHIFTED = np.concatenate([np.full((3 * NUM_TARGETS, 1), 3), TARGETS[:, :-1]], 1).astype(np.int32)

# Logits of size 1 to 4 from five layers of float32 sums.
ABSOLUTE = 4e-5


@pytest.fixture(scope="module")
def tiny(tiny_config, tiny_params):
    return tiny_config.replace(decoder_start_id=3), tiny_params


@jax.jit
def forward(bound, tokens, mask, decoder_tokens):
    return bound(tokens, decoder_tokens, encoder_mask=mask)


@pytest.fixture(scope="module")
def log_probs(tiny):
    """[R, T, V] float64 of the module's logits, inputs repeated and targets shifted by hand."""
    logits = forward(
        bind(*tiny),
        TOKENS.repeat(NUM_TARGETS, axis=0),
        MASK.repeat(NUM_TARGETS, axis=0),
        SHIFTED,
    )
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_score_tokens_gives_the_log_probability_of_every_target_token(tiny, log_probs):
    config, params = tiny
    found = score_tokens(params, TOKENS, MASK, SHIFTED, TARGETS, config=config, policy=POLICY)
    expected = np.take_along_axis(log_probs, TARGETS[..., None], axis=-1)[..., 0]
    assert (found.log_probs.shape, found.log_probs.dtype) == ((6, T), jnp.float32)
    np.testing.assert_allclose(found.log_probs, expected, rtol=0, atol=ABSOLUTE)
    assert found.best.shape == found.best_log_probs.shape == (6, T, 0)


@pytest.mark.parametrize("num_best", [4, 97])
def test_score_tokens_gives_the_likeliest_tokens_best_first(tiny, log_probs, num_best):
    config, params = tiny
    found = score_tokens(
        params, TOKENS, MASK, SHIFTED, TARGETS, config=config, policy=POLICY, num_best=num_best
    )
    order = np.argsort(-log_probs, axis=-1)[..., :num_best]
    best = np.take_along_axis(log_probs, order, axis=-1)
    np.testing.assert_allclose(found.best_log_probs, best, rtol=0, atol=ABSOLUTE)
    # Neighbours whose distance is in the last bits may change places.
    gaps = np.diff(-np.sort(-log_probs, axis=-1), axis=-1, prepend=np.inf)
    apart = np.minimum(-gaps, np.roll(-gaps, -1, axis=-1))[..., :num_best] > 2 * ABSOLUTE
    np.testing.assert_array_equal(np.asarray(found.best)[apart], order[apart])
    assert apart.mean() > 0.9 or num_best == 97


def test_score_tokens_of_several_targets_equals_one_at_a_time(tiny):
    config, params = tiny
    together = score_tokens(
        params, TOKENS, MASK, SHIFTED, TARGETS, config=config, policy=POLICY, num_best=2
    )
    alone = [
        score_tokens(
            *(params, TOKENS, MASK, SHIFTED[k::NUM_TARGETS], TARGETS[k::NUM_TARGETS]),
            config=config,
            policy=POLICY,
            num_best=2,
        )
        for k in range(NUM_TARGETS)
    ]
    for part, (one, other) in zip(together, zip(*alone, strict=True), strict=True):
        expected = np.stack([one, other], axis=1).reshape(part.shape)
        np.testing.assert_allclose(part, expected, rtol=0, atol=ABSOLUTE)


def test_score_tokens_does_not_hold_all_logits_at_once(tiny):
    config, params = tiny
    wide = jnp.zeros((2, 64), jnp.int32)
    program = jax.make_jaxpr(
        lambda params: score_tokens(
            params, TOKENS[:2], MASK[:2], wide, wide, config=config, policy=POLICY
        )
    )
    text = str(program(params))
    assert "2,8,97" in text
    assert "2,64,97" not in text


def embed(config, params, mask):
    projection = params.get("projection", {}).get("kernel")
    return embed_batch(
        params,
        TOKENS,
        mask,
        layers=SentenceEncoder.default(config).with_projection(projection),
        prompt_length=jnp.int32(0),
        config=config,
        policy=POLICY,
    )


@pytest.mark.parametrize("projection_dim", [0, 7])
def test_embed_is_the_mean_of_states_projected_and_of_length_1(tiny, projection_dim):
    config, params = tiny[0].replace(projection_dim=projection_dim), dict(tiny[1])
    if projection_dim:
        kernel = np.random.default_rng(1).normal(size=(16, projection_dim)).astype(np.float32)
        params["projection"] = {"kernel": jnp.asarray(kernel)}
    states = np.asarray(
        encode_batch(params, TOKENS, MASK, config=config, policy=POLICY), np.float64
    )
    found = embed(config, params, MASK)
    mean = np.stack([row[kept].mean(axis=0) for row, kept in zip(states, MASK, strict=True)])
    expected = mean @ kernel if projection_dim else mean
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_embed_of_a_row_without_tokens_is_zero_and_leaves_the_others(tiny):
    config, params = tiny
    mask = MASK.copy()
    mask[2] = False
    found = np.asarray(embed(config, params, mask))
    assert not found[2].any()
    expected = np.asarray(embed(config, params, MASK))
    np.testing.assert_array_equal(found[:2], expected[:2])


def test_cross_attention_weights_are_those_of_the_module(tiny):
    config, params = tiny
    decoder_tokens = jnp.asarray(SHIFTED[::NUM_TARGETS])
    weights = cross_attention_weights(
        params, TOKENS, MASK, decoder_tokens, config=config, policy=POLICY
    )

    @jax.jit
    def run(bound, tokens, mask, decoder_tokens):
        return bound.cross_attention_weights(tokens, decoder_tokens, encoder_mask=mask)

    expected = run(bind(config, params), TOKENS, MASK, decoder_tokens)
    assert weights.shape == (3, 3, 3, T, S)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)


# Of texts: batching, padding and order must not show.


@jax.jit
def _states(model, inputs):
    return model.encode(inputs, encoder_mask=jnp.ones(inputs.shape, bool))


def states_alone(t5, text):
    return np.asarray(_states(t5.model, jnp.array([[*t5.tokenizer.encode(text), 1]]))[0])


# States.


@pytest.mark.parametrize("batch_size", [3, 32])
def test_encode_gives_the_states_of_each_text_alone(t5, texts, batch_size):
    states, mask = t5.encode(texts, batch_size=batch_size)
    lengths = [len(t5.tokenizer.encode(text)) + 1 for text in texts]
    assert states.shape == (7, max(lengths), 16)
    assert states.dtype == np.float32
    assert mask.sum(axis=1).tolist() == lengths
    for text, row, row_mask, length in zip(texts, states, mask, lengths, strict=True):
        # Sums of 16 to 24 terms of size 1 in float32, in another order.
        np.testing.assert_allclose(row[:length], states_alone(t5, text), rtol=0, atol=1e-5)
        assert row_mask.tolist() == [True] * length + [False] * (max(lengths) - length)
        assert not row[length:].any()


def test_encode_of_nothing_is_empty(t5):
    states, mask = t5.encode([])
    assert states.shape == (0, 0, 16)
    assert mask.shape == (0, 0)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_embed_is_the_mean_of_each_text_s_states_of_length_1(t5, texts, batch_size):
    found = t5.embed(texts, batch_size=batch_size)
    expected = np.stack([states_alone(t5, text).mean(axis=0) for text in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (found.shape, found.dtype) == ((7, 16), np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_embed_of_nothing_is_empty(t5):
    assert t5.embed([]).shape == (0, 16)


# Scores.


@pytest.mark.parametrize("batch_size", [3, 32])
def test_score_is_the_log_probability_of_target_and_eos(t5, texts, batch_size):
    targets = [texts[i] for i in (6, 4, 3, 0, 2, 1, 5)]
    found = t5.score(texts, targets, batch_size=batch_size)
    expected = [score_by_hand(t5, *pair) for pair in zip(texts, targets, strict=True)]
    assert (found.shape, found.dtype) == ((7,), np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SCORE_TOLERANCE)


def test_score_of_the_empty_target_is_that_of_eos(t5, texts):
    found = t5.score(texts[:3], [""] * 3)
    expected = [forced_log_probs(t5, text, [])[0, 1] for text in texts[:3]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=SCORE_TOLERANCE)


def test_score_refuses_lists_of_unequal_length(t5):
    with pytest.raises(ValueError, match=r"inputs and targets .* got 2 and 1"):
        t5.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"inputs and candidates .* got 2 and 1"):
        t5.score_candidates(["a", "b"], [["c"]])
    with pytest.raises(ValueError, match=r"inputs and candidates .* got 1 and 2"):
        t5.rank(["a"], [["c"], ["d"]])


def test_score_of_nothing_is_nothing(t5):
    found = t5.score([], [])
    assert (found.shape, found.dtype) == ((0,), np.float32)
    assert t5.score_candidates([], []) == []
    assert t5.score_tokens([], []) == []
    assert t5.rank([], []) == []
    assert t5.rank([], ["a", "b"]) == []


CANDIDATES = [["Lisbon", "", "seven red apples"], ["the baker"], [], ["a letter", "Lisbon"]]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_score_candidates_equals_scoring_one_by_one(t5, short, batch_size):
    found = t5.score_candidates(short, CANDIDATES, batch_size=batch_size)
    assert [row.shape for row in found] == [(3,), (1,), (0,), (2,)]
    assert {row.dtype for row in found} == {np.dtype(np.float32)}
    for text, row, scores in zip(short, CANDIDATES, found, strict=True):
        expected = [score_by_hand(t5, text, target) for target in row]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=SCORE_TOLERANCE)


def test_score_candidates_of_inputs_without_any_are_empty(t5, short):
    found = t5.score_candidates(short[:2], [[], []])
    assert [row.shape for row in found] == [(0,), (0,)]


def test_score_tokens_are_those_of_every_token_and_sum_to_the_score(t5, short):
    found = t5.score_tokens(short, CANDIDATES)
    totals = t5.score_candidates(short, CANDIDATES)
    for text, row, arrays, scores in zip(short, CANDIDATES, found, totals, strict=True):
        assert len(arrays) == len(row)
        for target, array, total in zip(row, arrays, scores, strict=True):
            expected = token_log_probs(t5, text, [*t5.tokenizer.encode(target), 1])
            np.testing.assert_allclose(array, expected, rtol=0, atol=TOKEN_TOLERANCE)
            np.testing.assert_allclose(array.sum(), total, rtol=1e-6)


def test_scores_of_bfloat16_are_float32_and_close(t5, short):
    half = Text2Text(t5.config, t5.params, t5.tokenizer, policy=ComputePolicy(dtype="bfloat16"))
    exact, found = (one.score(short, short[::-1]) for one in (t5, half))
    assert found.dtype == np.float32
    # Log-probabilities of size 3 to 10 a token, from logits that err by some hundredths.
    np.testing.assert_allclose(found, exact, rtol=0.03)
    assert not np.array_equal(found, exact)
    states, _ = half.encode(short)
    assert states.dtype == np.float32


# Ranks.


def test_rank_puts_the_likeliest_first(t5, short):
    candidates = ["word", "counts", "apples", "", "rains", "night"]
    found = t5.rank(short, candidates)
    for text, row in zip(short, found, strict=True):
        scores = [score_by_hand(t5, text, target) for target in candidates]
        order = np.argsort(scores)[::-1].tolist()
        assert [one.place for one in row] == order
        assert [one.text for one in row] == [candidates[place] for place in order]
        expected = [scores[place] for place in order]
        found_scores = [one.log_prob for one in row]
        np.testing.assert_allclose(found_scores, expected, rtol=0, atol=SCORE_TOLERANCE)
    assert len({tuple(one.place for one in row) for row in found}) > 1


def test_rank_takes_candidates_of_each_input(t5, short):
    found = t5.rank(short, CANDIDATES)
    assert [sorted(one.text for one in row) for row in found] == [*map(sorted, CANDIDATES)]
    together = t5.rank(short[:1], CANDIDATES[0])[0]
    assert [one.text for one in found[0]] == [one.text for one in together]


def test_rank_leaves_equal_candidates_in_their_order(t5, short):
    (found,) = t5.rank(short[:1], ["Lisbon", "the baker", "Lisbon", "Lisbon"])
    places = [one.place for one in found if one.text == "Lisbon"]
    assert places == [0, 2, 3]
    assert len({one.log_prob for one in found if one.text == "Lisbon"}) == 1


def test_rank_refuses_texts_beside_lists(t5):
    with pytest.raises(TypeError, match=r"candidates must be texts, or lists of texts, .* both"):
        t5.rank(["a", "b"], ["c", ["d"]])


def test_rank_without_candidates_is_empty(t5, short):
    assert t5.rank(short[:2], []) == [[], []]


@pytest.mark.usefixtures("own_checks")
def test_candidates_that_are_no_lists_are_refused(t5):
    with pytest.raises(TypeError, match=r"candidates\[0\] must be a list of strings, got 'yes'"):
        t5.score_candidates(["a", "b"], ["yes", "no"])
    with pytest.raises(TypeError, match="candidates must be a list of texts, or of such lists"):
        t5.rank(["a"], "yes")


# Long texts.


def cut_by_hand(t5, text, limit):
    """A text whose ids are the first of another's; its last word may be none."""
    ids = t5.tokenizer.encode(text)[: limit - 1]
    found = t5.tokenizer.decode(ids)
    assert t5.tokenizer.encode(found) == ids
    return found


def test_truncated_texts_are_those_cut_by_hand_and_a_warning_counts_them(t5, texts):
    limit = 4
    cut = [cut_by_hand(t5, text, limit) for text in texts]
    assert sum(one != other for one, other in zip(cut, texts, strict=True)) == 4
    message = r"^4 of 7 texts were cut to 4 tokens: texts\[0\], texts\[1\], texts\[3\], \.\.\.\.$"
    options = {"max_input_tokens": limit, "truncate": True}
    with pytest.warns(UserWarning, match=message) as caught:
        states, mask = t5.encode(texts, **options)
    assert len(caught) == 1
    expected, expected_mask = t5.encode(cut)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match=message):
        np.testing.assert_allclose(t5.embed(texts, **options), t5.embed(cut), rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match=message):
        assert t5.generate(texts, max_new_tokens=5, **options) == t5.generate(cut, max_new_tokens=5)


def test_truncated_targets_are_those_cut_by_hand(t5, texts):
    inputs = ["Lisbon"] * 7
    cut = [cut_by_hand(t5, text, 4) for text in texts]
    with pytest.warns(UserWarning, match="^4 of 7 targets were cut to 4 tokens") as caught:
        found = t5.score(inputs, texts, max_input_tokens=4, truncate=True)
    assert len(caught) == 1
    np.testing.assert_allclose(found, t5.score(inputs, cut), rtol=0, atol=SCORE_TOLERANCE)


@pytest.mark.filterwarnings("error")
def test_truncate_warns_of_nothing_where_all_texts_fit(t5, texts):
    t5.encode(texts, truncate=True)


def test_text_that_is_too_long_is_named_with_both_lengths(t5, texts):
    length = len(t5.tokenizer.encode(texts[3])) + 1
    with pytest.raises(ValueError, match=rf"^texts\[3\] must have at most 15 tokens, got {length}"):
        t5.encode(texts, max_input_tokens=15)
    with pytest.raises(ValueError, match=rf"^texts\[3\] must have at most 15 tokens, got {length}"):
        t5.embed(texts, max_input_tokens=15)
    with pytest.raises(ValueError, match=r"^inputs\[1\] must have at most 15 tokens"):
        t5.score(["x", texts[3]], ["x", "x"], max_input_tokens=15)
    with pytest.raises(ValueError, match=r"^targets\[1\] must have at most 15 tokens"):
        t5.score(["x", "x"], ["x", texts[3]], max_input_tokens=15)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("given", ["one text", [b"bytes"], ["text", None], [["nested"]], [7]])
def test_texts_that_are_no_list_of_strings_are_refused(t5, given):
    for call in (t5.encode, t5.embed):
        with pytest.raises(TypeError, match=r"^texts must be a list of strings, got "):
            call(given)
    with pytest.raises(TypeError, match=r"^targets must be a list of strings, got "):
        t5.score(["x"] * len(given), given)


@pytest.mark.parametrize("method", ["encode", "embed"])
def test_batches_of_nothing_are_refused(t5, method):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        getattr(t5, method)(["x"], batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        t5.score(["x"], ["y"], batch_size=0)
