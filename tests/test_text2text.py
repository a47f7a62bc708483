"""Texts in, texts out: batching, padding and order must not show in the results.

The oracle runs one text at a time, unpadded, without a cache: `t5.model` gives logits for forced
targets, and numpy chooses from them or sums them up.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5jax
from t5jax import generate, tokenizer
from t5jax.config import T5Config
from t5jax.model import abstract_params
from t5jax.strategy import Strategy
from t5jax.text2text import Text2Text

LIMIT = 12  # tokens of an answer


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
    return tokenizer.train(sentences, vocab_size=85, num_sentinels=10)


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


@jax.jit
def _forced(model, inputs, decoder_tokens):
    return model(inputs, decoder_tokens, encoder_mask=jnp.ones(inputs.shape, bool))


@jax.jit
def _states(model, inputs):
    return model.encode(inputs, encoder_mask=jnp.ones(inputs.shape, bool))


def forced_log_probs(t5, text, targets):
    """[T, V] float64: of every next token behind the start and each of `targets`, T = 24."""
    inputs = np.array([[*t5.tokenizer.encode(text), 1]], np.int32)
    # What comes later does not count, so all targets can have one length.
    decoder_tokens = np.zeros((1, 24), np.int32)
    decoder_tokens[0, 1 : len(targets) + 1] = targets
    logits = np.asarray(_forced(t5.model, inputs, decoder_tokens))[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def greedy_ids(t5, text):
    """By definition: the likeliest next token, each time from scratch; up to and without EOS."""
    ids = []
    while len(ids) < LIMIT:
        ids.append(int(forced_log_probs(t5, text, ids)[len(ids)].argmax()))
        if ids[-1] == 1:
            return ids[:-1]
    return ids


@pytest.fixture(scope="session")
def answers(t5, texts):
    """What greedy decoding must give; the model is such that this is worth comparing."""
    ids = [greedy_ids(t5, text) for text in texts]
    lengths = {len(row) for row in ids}
    assert LIMIT in lengths  # some answers reach the limit
    assert len(lengths) > 2  # others end, and not together
    assert len({tuple(row) for row in ids}) == len(ids)
    return [t5.tokenizer.decode(row) for row in ids]


# Generation.


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_generate_answers_every_text_in_order(t5, texts, answers, batch_size):
    assert t5.generate(texts, max_new_tokens=LIMIT, batch_size=batch_size) == answers


def test_generate_does_not_depend_on_the_order_of_texts(t5, texts, answers):
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 5, 2, 4]):
        found = t5.generate([texts[i] for i in order], max_new_tokens=LIMIT)
        assert found == [answers[i] for i in order]


def test_generate_answers_equal_texts_equally(t5, texts, answers):
    assert t5.generate([texts[3]] * 7, max_new_tokens=LIMIT) == [answers[3]] * 7


def test_generate_shorter_answers_are_beginnings_of_longer_ones(t5, texts):
    rows = {n: generate_rows(t5, texts, max_new_tokens=n) for n in (1, 5, LIMIT)}
    for n in (1, 5):
        np.testing.assert_array_equal(rows[n], rows[LIMIT][:, :n])


def test_generate_samples_do_not_depend_on_the_batch(t5, texts):
    options = {"max_new_tokens": LIMIT, "temperature": 1.0, "seed": 5}
    together = t5.generate(texts, **options)
    assert t5.generate(texts, **options, batch_size=3) == together


def test_generate_samples_do_not_depend_on_neighbours(t5, texts):
    options = {"max_new_tokens": LIMIT, "temperature": 1.0, "seed": 5}
    together = t5.generate(texts, **options)
    assert t5.generate(texts[:3], **options) == together[:3]
    swapped = [texts[0], texts[3], texts[2], texts[1], *texts[4:]]
    found = t5.generate(swapped, **options)
    assert [found[i] for i in (0, 2, 4, 5, 6)] == [together[i] for i in (0, 2, 4, 5, 6)]


def test_generate_samples_repeat_with_their_seed_and_change_with_it(t5, texts):
    options = {"max_new_tokens": LIMIT, "temperature": 1.0}
    first = t5.generate(texts, **options, seed=1)
    assert t5.generate(texts, **options, seed=1) == first
    assert t5.generate(texts, **options, seed=2) != first
    assert t5.generate(texts, **options) == t5.generate(texts, **options, seed=0)


def test_generate_samples_of_one_text_differ_from_row_to_row(t5, texts):
    found = t5.generate([texts[3]] * 8, max_new_tokens=LIMIT, temperature=1.0)
    assert len(set(found)) > 4


def test_generate_at_low_temperature_is_greedy(t5, texts, answers):
    assert t5.generate(texts, max_new_tokens=LIMIT, temperature=1e-4) == answers


def test_generate_at_temperature_0_does_not_depend_on_the_seed(t5, texts, answers):
    assert t5.generate(texts, max_new_tokens=LIMIT, temperature=0.0, seed=9) == answers


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_generate_draws_tokens_as_often_as_the_model_says(t5, texts, temperature):
    ids = np.array([[*t5.tokenizer.encode(texts[0]), 1]] * 8192, np.int32)
    mask = np.ones(ids.shape, bool)
    strategy = Strategy(temperature=temperature)
    found = t5.generate_ids(ids, encoder_mask=mask, max_new_tokens=1, strategy=strategy)
    scores = forced_log_probs(t5, texts[0], [])[0] / temperature
    expected = np.exp(scores) / np.exp(scores).sum()
    frequency = np.bincount(found[:, 0], minlength=97) / len(found)
    # Five standard deviations, of 97 tokens: one seed in some 20,000 would fail by chance.
    assert np.all(abs(frequency - expected) <= 5 * np.sqrt(expected / len(found)) + 1e-9)


def test_generate_of_nothing_is_nothing(t5):
    assert t5.generate([]) == []


def test_generate_takes_tuples_and_the_empty_text(t5, texts, answers):
    assert t5.generate(("",), max_new_tokens=LIMIT) == [answers[texts.index("")]]


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("given", ["one text", [b"bytes"], ["text", None], [["nested"]], [7]])
def test_texts_that_are_no_list_of_strings_are_refused(t5, given):
    with pytest.raises(TypeError, match=r"^texts must be a list of strings, got "):
        t5.generate(given)
    with pytest.raises(TypeError, match=r"^texts must be a list of strings, got "):
        t5.encode(given)
    with pytest.raises(TypeError, match=r"^targets must be a list of strings, got "):
        t5.score(["x"] * len(given), given)


@pytest.mark.usefixtures("own_checks")
def test_texts_that_can_be_read_only_once_are_refused(t5):
    with pytest.raises(TypeError, match="must be a list of strings, got <generator"):
        t5.generate(text for text in ["a", "b"])


def test_text_that_is_too_long_is_named_with_both_lengths(t5, texts):
    length = len(t5.tokenizer.encode(texts[3])) + 1
    with pytest.raises(ValueError, match=rf"^texts\[3\] must have at most 15 tokens, got {length}"):
        t5.generate(texts, max_input_tokens=15)
    with pytest.raises(ValueError, match=rf"^texts\[3\] must have at most 15 tokens, got {length}"):
        t5.encode(texts, max_input_tokens=15)
    with pytest.raises(ValueError, match=r"^inputs\[1\] must have at most 15 tokens"):
        t5.score(["x", texts[3]], ["x", "x"], max_input_tokens=15)
    with pytest.raises(ValueError, match=r"^targets\[1\] must have at most 15 tokens"):
        t5.score(["x", "x"], ["x", texts[3]], max_input_tokens=15)


def test_text_of_the_longest_length_allowed_is_not_too_long(t5, texts, answers):
    length = len(t5.tokenizer.encode(texts[3])) + 1
    found = t5.generate([texts[3]], max_new_tokens=LIMIT, max_input_tokens=length)
    assert found == [answers[3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be at least 0, got -0\.1; 0 is greedy"),
        ({"temperature": float("nan")}, r"temperature must be at least 0, got nan"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*31\), got -1"),
        ({"seed": 2**31}, r"seed must be in \[0, 2\*\*31\), got 2147483648"),
        ({"max_new_tokens": 0}, r"max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
    ],
)
def test_generate_refuses_options_out_of_range(t5, options, message):
    with pytest.raises(ValueError, match=message):
        t5.generate(["x"], **options)


# Ids.


def rows_of(t5, texts):
    encoded = [[*t5.tokenizer.encode(text), 1] for text in texts]
    width = max(map(len, encoded))
    tokens = np.array([ids + [0] * (width - len(ids)) for ids in encoded], np.int32)
    return tokens, np.arange(width) < np.array([len(ids) for ids in encoded])[:, None]


def generate_rows(t5, texts, **options):
    tokens, mask = rows_of(t5, texts)
    return t5.generate_ids(tokens, encoder_mask=mask, **options)


def test_generate_ids_is_generate_without_text(t5, texts, answers):
    found = generate_rows(t5, texts, max_new_tokens=LIMIT)
    assert [t5.tokenizer.decode(row) for row in found] == answers
    strategy = Strategy(temperature=1.0, seed=7)
    sampled = generate_rows(t5, texts, max_new_tokens=LIMIT, strategy=strategy)
    expected = t5.generate(texts, max_new_tokens=LIMIT, temperature=1.0, seed=7)
    assert [t5.tokenizer.decode(row) for row in sampled] == expected


def test_generate_ids_end_with_eos_then_padding(t5, texts):
    found = generate_rows(t5, texts, max_new_tokens=LIMIT)
    assert (found.shape, found.dtype) == ((len(texts), LIMIT), np.int32)
    for row, text in zip(found, texts, strict=True):
        expected = greedy_ids(t5, text)
        ended = [*expected, 1] if len(expected) < LIMIT else expected
        assert row.tolist() == ended + [0] * (LIMIT - len(ended))


def test_generate_ids_ignores_what_is_masked(t5, texts):
    tokens, mask = rows_of(t5, texts)
    expected = t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=LIMIT)
    junk = np.where(mask, tokens, 55)
    room = ((0, 0), (0, 3))
    found = t5.generate_ids(
        np.pad(junk, room, constant_values=66),
        encoder_mask=np.pad(mask, room),
        max_new_tokens=LIMIT,
    )
    np.testing.assert_array_equal(found, expected)


def test_generate_ids_takes_jax_arrays_and_wide_integers(t5, texts):
    tokens, mask = rows_of(t5, texts)
    expected = t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=LIMIT)
    for cast in (jnp.asarray, lambda x: x.astype(np.int64) if x.dtype == np.int32 else x):
        found = t5.generate_ids(cast(tokens), encoder_mask=cast(mask), max_new_tokens=LIMIT)
        np.testing.assert_array_equal(found, expected)


def test_generate_ids_of_an_empty_batch_is_empty(t5):
    tokens = np.zeros((0, 7), np.int32)
    found = t5.generate_ids(tokens, encoder_mask=tokens.astype(bool), max_new_tokens=5)
    assert (found.shape, found.dtype) == ((0, 5), np.int32)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("tokens", "mask"), [((2, 5), (2, 4)), ((5,), (5,)), ((2, 5), (5,)), ((1, 2, 5), (1, 2, 5))]
)
def test_generate_ids_refuses_shapes_that_do_not_fit(t5, tokens, mask):
    with pytest.raises(ValueError, match=r"must both have shape \[B, S\], got \(.*\) and \(.*\)"):
        t5.generate_ids(
            np.ones(tokens, np.int32), encoder_mask=np.ones(mask, bool), max_new_tokens=5
        )


@pytest.mark.parametrize("outside", [-1, 97, 32099])
def test_generate_ids_refuses_ids_outside_the_vocabulary(t5, outside):
    tokens = np.array([[5, outside, 1]], np.int32)
    mask = np.ones(tokens.shape, bool)
    with pytest.raises(ValueError, match=rf"\[0, vocab_size = 97\), got .*{outside}.*tokenizer"):
        t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=5)


def test_generate_ids_refuses_to_write_nothing(t5):
    tokens = np.ones((1, 3), np.int32)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        t5.generate_ids(tokens, encoder_mask=tokens.astype(bool), max_new_tokens=0)


# Scores.


def score_by_hand(t5, text, target):
    ids = [*t5.tokenizer.encode(target), 1]
    log_probs = forced_log_probs(t5, text, ids)
    return sum(log_probs[i, token] for i, token in enumerate(ids))


# Sums of up to 20 float32 log-probabilities of size 10, each rounded to 1e-6 relative.
SCORE_TOLERANCE = 2e-4


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
    with pytest.raises(ValueError, match="inputs and targets must be as many, got 2 and 1"):
        t5.score(["a", "b"], ["c"])


def test_score_of_nothing_is_nothing(t5):
    found = t5.score([], [])
    assert (found.shape, found.dtype) == ((0,), np.float32)


# States.


@pytest.mark.parametrize("batch_size", [3, 32])
def test_encode_gives_the_states_of_each_text_alone(t5, texts, batch_size):
    states, mask = t5.encode(texts, batch_size=batch_size)
    lengths = [len(t5.tokenizer.encode(text)) + 1 for text in texts]
    assert states.shape == (7, max(lengths), 16)
    assert states.dtype == np.float32
    assert mask.sum(axis=1).tolist() == lengths
    for text, row, row_mask, length in zip(texts, states, mask, lengths, strict=True):
        ids = jnp.array([[*t5.tokenizer.encode(text), 1]])
        alone = _states(t5.model, ids)[0]
        # Sums of 16 to 24 terms of size 1 in float32, in another order.
        np.testing.assert_allclose(row[:length], alone, rtol=0, atol=1e-5)
        assert row_mask.tolist() == [True] * length + [False] * (max(lengths) - length)
        assert not row[length:].any()


def test_encode_of_nothing_is_empty(t5):
    states, mask = t5.encode([])
    assert states.shape == (0, 0, 16)
    assert mask.shape == (0, 0)


# What fits together.


def test_text2text_refuses_a_tokenizer_with_more_ids_than_embeddings(t5, english):
    large = tokenizer.SentencePieceTokenizer(english.model, num_sentinels=13)
    assert large.vocab_size == 98
    with pytest.raises(ValueError, match=r"at most vocab_size = 97 ids, got 98"):
        Text2Text(t5.config, t5.params, large)
    exact = tokenizer.SentencePieceTokenizer(english.model, num_sentinels=12)
    assert Text2Text(t5.config, t5.params, exact).tokenizer is exact


def test_text2text_refuses_a_tokenizer_that_ends_sequences_otherwise(t5, english):
    with pytest.raises(ValueError, match=r"with eos_id = 5, got 1"):
        Text2Text(t5.config.replace(eos_id=5), t5.params, english)


def test_text2text_refuses_parameters_of_another_config(t5, english):
    with pytest.raises(ValueError, match=r"must have shape .* got .* another config"):
        Text2Text(t5.config.replace(d_ff=25), t5.params, english)


def test_text2text_without_tokenizer_says_what_to_do(t5, texts):
    bare = Text2Text(t5.config, t5.params, None)
    assert bare.tokenizer is None
    for call in (bare.generate, bare.encode, lambda x: bare.score(x, x)):
        with pytest.raises(
            ValueError, match=r"without a tokenizer; pass `tokenizer=`.*generate_ids"
        ):
            call(["x"])
    expected = generate_rows(t5, texts, max_new_tokens=LIMIT)
    tokens, mask = rows_of(t5, texts)
    found = bare.generate_ids(tokens, encoder_mask=mask, max_new_tokens=LIMIT)
    np.testing.assert_array_equal(found, expected)


def test_text2text_of_an_encoder_encodes_and_says_that_it_cannot_write(t5, texts):
    config = t5.config.replace(num_decoder_layers=0)
    params = {name: t5.params[name] for name in ("token_embedder", "encoder")}
    encoder = Text2Text(config, params, t5.tokenizer)
    np.testing.assert_array_equal(encoder.encode(texts)[0], t5.encode(texts)[0])
    with pytest.raises(ValueError, match="must have a decoder to score or generate"):
        encoder.generate(["x"])


@pytest.mark.parametrize("write", ["save", "export_hf"])
def test_text2text_answers_the_same_after_a_round_trip(t5, texts, answers, tmp_path, write):
    if write == "save":
        t5.save(tmp_path / "model")
    else:
        t5jax.export_hf(t5, tmp_path / "model")
    again = t5jax.load(tmp_path / "model")
    assert again.config == t5.config
    assert again.generate(texts, max_new_tokens=LIMIT) == answers
    with pytest.raises(FileExistsError, match="new or an empty folder"):
        again.save(tmp_path / "model")
    again.save(tmp_path / "model", overwrite=True)
    np.testing.assert_array_equal(
        t5jax.load(tmp_path / "model").score(texts, texts), t5.score(texts, texts)
    )


def test_repr_is_one_line_without_arrays(t5):
    text = repr(t5)
    count = sum(leaf.size for leaf in jax.tree.leaves(t5.params))
    assert text.startswith(f"Text2Text({count / 1e6:.1f} M parameters")
    assert "\n" not in text
    assert "array" not in text.lower()
    assert len(text) < 600


# Beams.


def total_log_prob(t5, text, answer):
    ids = [*t5.tokenizer.encode(text), 1]
    tokens = np.asarray([ids], np.int32)
    labels = np.asarray([answer.ids], np.int32)
    found = generate.score(
        t5.params,
        tokens,
        np.ones(tokens.shape, bool),
        labels,
        np.ones(labels.shape, bool),
        config=t5.config,
    )
    return float(found[0])


def test_n_best_scores_are_log_probabilities_over_the_penalty(t5, texts):
    found = t5.n_best(texts[:3], num_beams=4, max_new_tokens=LIMIT, length_penalty=0.7)
    assert [len(answers) for answers in found] == [4, 4, 4]
    for text, answers in zip(texts, found, strict=False):
        scores = [answer.score for answer in answers]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(answer.ids) for answer in answers}) == 4
        for answer in answers:
            assert answer.ids[-1] == 1 or len(answer.ids) == LIMIT
            assert 1 not in answer.ids[:-1]
            assert answer.text == t5.tokenizer.decode(answer.ids)
            expected = total_log_prob(t5, text, answer)
            np.testing.assert_allclose(answer.log_prob, expected, rtol=1e-4)
            penalty = len(answer.ids) ** 0.7
            np.testing.assert_allclose(answer.score, expected / penalty, rtol=1e-4)


def test_generate_with_beams_is_the_first_of_the_n_best(t5, texts):
    options = {"num_beams": 3, "penalty_form": "gnmt", "length_penalty": 0.6}
    found = t5.generate(texts, max_new_tokens=LIMIT, **options)
    best = t5.n_best(texts, max_new_tokens=LIMIT, num_return_sequences=1, **options)
    assert found == [answers[0].text for answers in best]
    assert all(len(answers) == 1 for answers in best)


def test_generate_with_beams_does_not_depend_on_the_batch(t5, texts):
    options = {"num_beams": 3, "max_new_tokens": LIMIT}
    together = t5.generate(texts, batch_size=8, **options)
    assert together == [t5.generate([text], **options)[0] for text in texts]


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 2, "num_return_sequences": 3}])
def test_n_best_refuses_more_answers_than_beams(t5, texts, options):
    with pytest.raises(ValueError, match="num_beams must be at least 2 and at least"):
        t5.n_best(texts, **options)


@pytest.mark.parametrize("method", ["generate", "n_best"])
def test_beams_of_no_texts_are_no_answers(t5, method):
    assert getattr(t5, method)([], num_beams=2) == []


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_generate_with_the_narrowest_truncation_is_greedy(t5, texts, answers, options):
    assert t5.generate(texts, max_new_tokens=LIMIT, temperature=3.0, **options) == answers
