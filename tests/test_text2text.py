"""Texts in, texts out: batching, padding and order must not show in the results.

The oracle runs one text at a time, unpadded, without a cache: see `forced`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.forced_decoding import (
    LIMIT,
    counting_compilations,
    forced_log_probs,
    greedy_ids,
    rows_of,
)

import t5jax
from t5jax.text2text import Text2Text
from t5jax.tokenizers.sentencepiece import SentencePieceTokenizer


@pytest.fixture(scope="module")
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
    options = {"max_new_tokens": 1, "temperature": temperature, "batch_size": 8192}
    found = t5.generate_ids(ids, encoder_mask=mask, **options)
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
@pytest.mark.parametrize("method", ["generate", "generate_outputs", "stream"])
def test_texts_that_are_no_list_of_strings_are_refused(t5, method, given):
    with pytest.raises(TypeError, match=r"^texts must be a list of strings, got "):
        getattr(t5, method)(given)


@pytest.mark.usefixtures("own_checks")
def test_texts_that_can_be_read_only_once_are_refused(t5):
    with pytest.raises(TypeError, match="must be a list of strings, got <generator"):
        t5.generate(text for text in ["a", "b"])


@pytest.mark.parametrize("method", ["generate", "generate_outputs", "stream"])
def test_text_that_is_too_long_is_named_with_both_lengths(t5, texts, method):
    length = len(t5.tokenizer.encode(texts[3])) + 1
    with pytest.raises(ValueError, match=rf"^texts\[3\] must have at most 15 tokens, got {length}"):
        getattr(t5, method)(texts, max_input_tokens=15)


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


def generate_rows(t5, texts, **options):
    tokens, mask = rows_of(t5, texts)
    return t5.generate_ids(tokens, encoder_mask=mask, **options)


def test_generate_ids_is_generate_without_text(t5, texts, answers):
    found = generate_rows(t5, texts, max_new_tokens=LIMIT)
    assert [t5.tokenizer.decode(row) for row in found] == answers
    sampled = generate_rows(t5, texts, max_new_tokens=LIMIT, temperature=1.0, seed=7)
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


# What fits together.


def test_text2text_refuses_a_tokenizer_with_more_ids_than_embeddings(t5, english):
    large = SentencePieceTokenizer(english.model, num_sentinels=13)
    assert large.vocab_size == 98
    with pytest.raises(ValueError, match=r"at most vocab_size = 97 ids, got 98"):
        Text2Text(t5.config, t5.params, large)
    exact = SentencePieceTokenizer(english.model, num_sentinels=12)
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


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_generate_with_the_narrowest_truncation_is_greedy(t5, texts, answers, options):
    assert t5.generate(texts, max_new_tokens=LIMIT, temperature=3.0, **options) == answers


# Whatever else is computed with it.

STRATEGIES = {
    "greedy": {},
    "draws": {"temperature": 1.0, "top_k": 20, "seed": 5},
    "beams": {"num_beams": 3},
    "ruled": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words": ["counts"],
        "stop_strings": ["ght"],
        "decoder_prefix": "my",
    },
    "ruled beams": {"num_beams": 3, "repetition_penalty": 1.3, "min_new_tokens": 4},
    "allowed": {"allowed_texts": ["the baker", "apples rains", "Lisbon", ""]},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generate_of_a_row_does_not_depend_on_the_others(t5, short, strategy):
    options = {"max_new_tokens": LIMIT, **STRATEGIES[strategy]}
    together = t5.generate(short, **options)
    assert t5.generate(short, batch_size=1, **options) == together
    # Beside others, and longer ones; a draw belongs to its place.
    longer = [*short[:3], "an old captain sells the broken clock when it rains."]
    assert t5.generate(longer, **options)[:3] == together[:3]
    if strategy != "draws":
        assert t5.generate(short[::-1], **options) == together[::-1]


# Streams.


def joined(pieces, count):
    """The texts and the reasons of each row, whose pieces must end once."""
    texts, reasons = [""] * count, [None] * count
    for piece in pieces:
        assert reasons[piece.row] is None
        assert piece.text or piece.finish_reason
        texts[piece.row] += piece.text
        reasons[piece.row] = piece.finish_reason
    assert None not in reasons
    return texts, reasons


STREAMED = {
    "greedy": {},
    "draws": {"temperature": 1.0, "seed": 5},
    "stop": {"stop_strings": ["e", "ns c"], "min_new_tokens": 3},
    "prefix": {"decoder_prefix": ["the baker", "", "my sister", "an"]},
    "allowed": {"allowed_texts": ["the baker", "apples rains", "Lisbon", ""]},
}


@pytest.mark.parametrize("strategy", STREAMED)
def test_stream_joined_is_what_generate_returns(t5, short, strategy):
    options = {"max_new_tokens": LIMIT, **STREAMED[strategy]}
    pieces = [*t5.stream(short, **options)]
    texts, reasons = joined(pieces, 4)
    assert texts == t5.generate(short, **options)
    assert reasons == [row[0].finish_reason for row in t5.generate_outputs(short, **options)]
    if strategy in ("greedy", "draws"):
        assert len(pieces) > 2 * len(short)


def test_stream_of_several_batches_tells_rows_by_their_place(t5, texts, answers):
    pieces = [*t5.stream(texts, max_new_tokens=LIMIT, batch_size=3)]
    assert joined(pieces, 7)[0] == answers
    rows = [piece.row for piece in pieces]
    lengths = [len(t5.tokenizer.encode(text)) for text in texts]
    shortest = sorted(range(7), key=lambda i: lengths[i])
    assert set(rows[: rows.index(shortest[3])]) == set(shortest[:3])


def test_stream_gives_out_text_before_the_end(t5, short):
    """The rows of a batch side by side, and nothing is computed before it is asked for."""
    stream = t5.stream(short, max_new_tokens=LIMIT)
    first = [next(stream) for _ in range(4)]
    assert len({piece.row for piece in first}) > 1
    assert any(piece.finish_reason is None for piece in first)


def test_stream_ends_where_constraints_leave_nothing(t5, short):
    (token, *_) = t5.tokenizer.encode("the baker")
    options = {"allowed_texts": ["the baker"], "suppress_tokens": [token], "max_new_tokens": 6}
    pieces = [*t5.stream(short, **options)]
    assert sorted(pieces) == [(row, "", "dead_end") for row in range(4)]


def test_stream_refuses_what_it_cannot_do_at_once(t5):
    """Not only when its first piece is asked for."""
    with pytest.raises(ValueError, match="num_beams must be 1 to stream, got 2"):
        t5.stream(["x"], num_beams=2)
    with pytest.raises(TypeError, match="unknown option 'beams'"):
        t5.stream(["x"], beams=2)


# Nothing, and next to nothing.


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generate_of_no_texts_is_no_answers(t5, strategy):
    assert t5.generate([], **STRATEGIES[strategy]) == []
    assert t5.generate_outputs([], **STRATEGIES[strategy]) == []
    if "beams" not in strategy:
        assert [*t5.stream([], **STRATEGIES[strategy])] == []


def test_generate_writes_one_token_if_that_is_the_limit(t5, short):
    for options in ({}, {"num_beams": 3}):
        for text, (answer,) in zip(
            short, t5.generate_outputs(short, max_new_tokens=1, **options), strict=True
        ):
            assert answer.ids == [int(forced_log_probs(t5, text, [])[0].argmax())]
            assert answer.finish_reason == ("eos" if answer.ids == [1] else "length")


# What goes wrong.


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_generate_names_texts_that_constraints_leave_nothing_to(t5, short, options):
    given = {"decoder_prefix": ["apples", "", "apples", ""], "no_repeat_ngram_size": 1}
    options = {**options, **given, "allowed_texts": ["apples"], "max_new_tokens": 6}
    with pytest.raises(ValueError, match=r"left nothing for texts\[0\], texts\[2\]; loosen them"):
        t5.generate(short, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 1.0}])
def test_weights_that_are_not_finite_are_an_error_with_the_step(t5, short, options, bad):
    params = jax.tree.map(lambda leaf: leaf, t5.params)
    params["output"] = {"kernel": params["output"]["kernel"].at[:, 40].set(bad)}
    broken = Text2Text(t5.config, params, t5.tokenizer)
    message = r"^logits must be finite, got NaN or infinity at step 0 .*dtype='float32' or"
    with pytest.raises(ValueError, match=message):
        broken.generate(short, max_new_tokens=LIMIT, **options)
    if not options.get("num_beams"):
        with pytest.raises(ValueError, match=message):
            [*broken.stream(short, max_new_tokens=LIMIT, **options)]


def test_weights_that_break_on_the_way_are_an_error_with_that_step(t5, short):
    ids = greedy_ids(t5, short[0])
    step = next(i for i, token in enumerate(ids) if token not in ids[:i] and i > 0)
    params = jax.tree.map(lambda leaf: leaf, t5.params)
    table = params["token_embedder"]["embedding"]
    params["token_embedder"] = {"embedding": table.at[ids[step]].set(np.nan)}
    broken = Text2Text(t5.config, params, t5.tokenizer)
    with pytest.raises(ValueError, match=f"at step {step + 1} of the decoder"):
        broken.generate([short[0]], max_new_tokens=LIMIT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_of_an_output_layer_that_is_not_finite_are_an_error(t5, short, bad):
    """Also if the target itself has a finite log-probability, as with a logit of -inf."""
    params = jax.tree.map(lambda leaf: leaf, t5.params)
    params["output"] = {"kernel": params["output"]["kernel"].at[:, 40].set(bad)}
    broken = Text2Text(t5.config, params, t5.tokenizer)
    message = r"^logits must be finite, got NaN or infinity for input 0; .*dtype='float32' or"
    with pytest.raises(ValueError, match=message):
        broken.score(short[:1], ["apples"])
    with pytest.raises(ValueError, match=message):
        broken.rank(short[:1], ["apples", ""])
    with pytest.raises(ValueError, match=message):
        broken.scorer.score_tokens([[5, 1]], [[6, 1]], batch_size=1, num_best=0)
    assert np.isfinite(broken.embed(short)).all()  # the encoder is intact


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_encoder_that_is_not_finite_is_an_error(t5, bad):
    params = jax.tree.map(lambda leaf: leaf, t5.params)
    scale = params["encoder"]["final_norm"]["scale"]
    params["encoder"] = params["encoder"] | {"final_norm": {"scale": scale.at[3].set(bad)}}
    broken = Text2Text(t5.config, params, t5.tokenizer)
    with pytest.raises(ValueError, match=r"^embeddings must be finite, got NaN or infinity for"):
        broken.embed(["apples", ""])
    with pytest.raises(ValueError, match=r"^encoder states must be finite, got NaN or infinity"):
        broken.encode(["apples", ""])
    with pytest.raises(ValueError, match=r"^logits must be finite, got NaN or infinity for input"):
        broken.score(["apples", ""], ["", "apples"])


# Warmth.


@pytest.mark.parametrize("strategy", ["greedy", "beams"])
def test_generate_compiles_nothing_after_warmup(t5, short, strategy):
    fresh = Text2Text(t5.config.replace(norm_epsilon=2e-6), t5.params, t5.tokenizer)
    options = {"max_new_tokens": 9, **STRATEGIES[strategy]}
    with counting_compilations() as compiled:
        seconds = fresh.warmup(input_lengths=[3, 16], num_texts=[3, 4], **options)
    assert seconds > 0
    assert compiled
    with counting_compilations() as compiled:
        fresh.generate(short, **options)
        fresh.generate(short[:3], **(options | {"max_new_tokens": 16}))
    assert compiled == []


def test_warmup_of_nothing_compiles_nothing(t5):
    with counting_compilations() as compiled:
        t5.warmup(input_lengths=[])
        t5.warmup(num_texts=[])
    assert compiled == []


# What options may be made of, and what contradicts one another.


@pytest.mark.usefixtures("own_checks")
def test_generate_takes_numbers_of_numpy(t5, short):
    options = {"temperature": np.float32(0.7), "top_p": np.float64(0.9), "seed": np.int64(3)}
    plain = {"temperature": float(np.float32(0.7)), "top_p": 0.9, "seed": 3}
    assert t5.generate(short, **options) == t5.generate(short, **plain)


@pytest.mark.usefixtures("own_checks")
def test_generate_compiles_nothing_for_a_whole_temperature(t5, short):
    t5.generate(short, temperature=1.5)
    with counting_compilations() as compiled:
        t5.generate(short, temperature=1)
    assert not compiled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoder_prefix": [[5, 1]]},
            r"decoder_prefix\[0\] .* EOS, 1, got \[5, 1\]",
        ),
        ({"bad_words": [" "]}, "bad_words .* got ' '"),
        ({"allowed_texts": ["the baker"], "stop_strings": ["b"]}, "stop_strings .* allowed_texts"),
        (
            {"allowed_texts": ["the baker"], "suppress_tokens": [1]},
            "suppress_tokens .* 1, with allowed_texts",
        ),
    ],
)
def test_options_that_contradict_are_refused_at_once(t5, options, message):
    for method in (t5.generate, t5.stream):
        with pytest.raises(ValueError, match=message):
            method(["the baker"], **options)


def test_generate_ids_keeps_to_the_limit_of_inputs(t5):
    tokens = np.full((1, 20), 5, np.int32)
    options = {"encoder_mask": tokens > 0, "max_new_tokens": 3, "max_input_tokens": 8}
    with pytest.raises(ValueError, match=r"encoder_tokens\[0\] must have at most 8 tokens, got 20"):
        t5.generate_ids(tokens, **options)
    with pytest.warns(UserWarning, match="1 of 1 encoder_tokens were cut to 8 tokens"):
        t5.generate_ids(tokens, **options, truncate=True)


def test_params_are_of_one_model(t5):
    with pytest.raises(AttributeError):
        t5.params = {}
