"""Constraints: what cannot be is refused, and what is asked for is in every answer.

The oracle of an answer is a greedy search by numpy, from the logits of the whole text each time.
"""

import itertools
import operator

import numpy as np
import pytest
from helpers import scripts_of_languages
from helpers.forced_decoding import LIMIT, forced_logits, greedy_ids, score_by_hand

from t5jax.decoding.automaton_builders import from_edges, trie
from t5jax.generation.config import GenerationConfig
from t5jax.generation.constraints import compile_constraints, encode_prefixes
from t5jax.text2text import Text2Text


def processors(t5, *, limit=LIMIT, **options):
    config = GenerationConfig(max_new_tokens=limit, **options)
    return compile_constraints(config, t5.config, t5.tokenizer)


def prefixes(t5, count, given):
    config = GenerationConfig(decoder_prefix=given)
    return encode_prefixes(config, t5.config, t5.tokenizer, num_inputs=count)


# What is refused.


@pytest.mark.parametrize("outside", [-1, 97, 32099])
@pytest.mark.parametrize(
    "name",
    [
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "bad_words_ids",
    ],
)
def test_processors_refuse_ids_outside_the_vocabulary(t5, name, outside):
    listed = {"bad_words_ids": [[5, outside]], "suppress_tokens": [5, outside]}
    listed["begin_suppress_tokens"] = [outside]
    with pytest.raises(
        ValueError, match=rf"^{name} must be .*\[0, vocab_size = 97\), got {outside}"
    ):
        processors(t5, **{name: listed.get(name, outside)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_words_ids": [[7], [1]]}, r"bad_words_ids must not .* EOS .*got \[1\]; use"),
        (
            {"allowed_texts": ["the baker", "ünknown"]},
            "allowed_texts .*got 'ünknown', which it encodes as ' ⁇ ",
        ),
        (
            {"allowed_texts": ["the  baker"]},
            "allowed_texts .*got 'the  baker', which it encodes as 'the baker'",
        ),
        (
            {"allowed_texts": ["the", "an old captain sells the broken clock to two quiet boats"]},
            r"max_new_tokens must be at least \d+ for .*, got 12; the longest is 'an old captain",
        ),
    ],
)
def test_processors_refuse_what_no_answer_fulfils(t5, options, message):
    with pytest.raises(ValueError, match=message):
        processors(t5, **options)


def test_allowed_texts_may_be_as_long_as_the_limit(t5):
    length = len(t5.tokenizer.encode("an old captain")) + 1
    assert processors(t5, limit=length, allowed_texts=["an old captain"]).automaton is not None
    with pytest.raises(ValueError, match=f"max_new_tokens must be at least {length} for"):
        processors(t5, limit=length - 1, allowed_texts=["an old captain"])


def test_processors_refuse_an_automaton_that_cannot_be_or_accepts_nothing(t5):
    other = trie([[5]], eos_id=1, vocab_size=96)
    with pytest.raises(ValueError, match="automaton"):
        processors(t5, automaton=other)
    long = trie([[5] * 12], eos_id=1, vocab_size=97)
    with pytest.raises(ValueError, match=r"at most max_new_tokens = 12 .*it needs 13\."):
        processors(t5, automaton=long)
    endless = from_edges({0: {5: 0}}, vocab_size=97, ends=[])
    with pytest.raises(ValueError, match=r"automaton must .* 12 .*accepts nothing\."):
        processors(t5, automaton=endless)
    assert processors(t5, limit=13, automaton=long).automaton is long


def test_texts_need_a_tokenizer_and_ids_do_not(t5):
    bare = Text2Text(t5.config, t5.params, None)
    for name in ("bad_words", "stop_strings", "allowed_texts"):
        with pytest.raises(ValueError, match=f"^{name} must come with a tokenizer"):
            processors(bare, **{name: ["the"]})
    with pytest.raises(ValueError, match="decoder_prefix must come with a tokenizer"):
        prefixes(bare, 1, "the")
    assert processors(bare, bad_words_ids=[[5, 6]]).bad_words_ids is not None
    assert prefixes(bare, 2, [[5], [6, 7]]) == [[5], [6, 7]]


def test_prefixes_are_one_text_for_all_or_one_for_each(t5):
    encode = t5.tokenizer.encode
    assert prefixes(t5, 3, None) == [[], [], []]
    assert prefixes(t5, 2, "the baker") == [encode("the baker")] * 2
    assert prefixes(t5, 2, ["the", [5, 6]]) == [encode("the"), [5, 6]]
    assert prefixes(t5, 0, "the") == prefixes(t5, 0, []) == []


def test_prefixes_that_do_not_fit_are_named(t5):
    with pytest.raises(ValueError, match="one text, or one for each of 3 inputs, got 2"):
        prefixes(t5, 3, ["a", "b"])
    assert len(prefixes(t5, 1, [[5] * 2048])[0]) == 2048
    with pytest.raises(ValueError, match=r"decoder_prefix\[1\] .* 2048 .* got 2049; shorten it\.$"):
        prefixes(t5, 2, [[5], [5] * 2049])
    for outside in (-1, 97):
        message = rf"decoder_prefix\[1\] must be .*\[0, vocab_size = 97\), got {outside}"
        with pytest.raises(ValueError, match=message):
            prefixes(t5, 2, [[5], [5, outside]])


def test_processors_without_constraints_are_all_off(t5):
    found = processors(t5)
    assert [value for name, value in vars(found).items() if name != "no_repeat_ngram_size"] == [
        None
    ] * 9
    assert found.no_repeat_ngram_size == 0


def test_processors_of_similar_sizes_have_one_shape(t5):
    """Hence one program."""
    for lists in (
        [[[5, 6, 7]], [[5]] * 2, [[5], [6], [7, 8]]],
        [[[1, 2, 3, 4]] * 4, [[5] * 3] * 3],
    ):
        for words in lists:
            found = np.asarray(processors(t5, bad_words_ids=words).bad_words_ids)
            assert {size.bit_count() for size in found.shape} == {1}
            spelled = {tuple(token for token in row if token >= 0) for row in found.tolist()}
            assert spelled == set(map(tuple, words))


# What is written.


def expected_ids(t5, text, options):
    """Greedily, by the rules as Hugging Face transformers' documentation has them."""
    texts = options.get("allowed_texts")
    allowed = [[*t5.tokenizer.encode(one), 1] for one in texts] if texts else None
    words = [*options.get("bad_words_ids", ())]
    words += [t5.tokenizer.encode(word) for word in options.get("bad_words", ())]
    size = options.get("no_repeat_ngram_size", 0)
    ids = []
    while len(ids) < LIMIT and 1 not in ids:
        scores = forced_logits(t5, text, ids)[len(ids)]
        so_far = [0, *ids]
        seen = sorted(set(so_far))
        penalty = options.get("repetition_penalty", 1.0)
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        out = set(options.get("suppress_tokens", ()))
        for start in range(len(so_far) - size + 1 if size else 0):
            if so_far[start : start + size - 1] == so_far[len(so_far) - size + 1 :]:
                out.add(so_far[start + size - 1])
        for word in words:
            if so_far[len(so_far) - len(word) + 1 :] == word[:-1]:
                out.add(word[-1])
        if len(ids) < options.get("min_new_tokens", 0):
            out.add(1)
        if not ids:
            out |= set(options.get("begin_suppress_tokens", ()))
        if allowed:
            nexts = {one[len(ids)] for one in allowed if one[: len(ids)] == ids}
            out |= set(range(97)) - nexts
        scores[sorted(out)] = -np.inf
        chosen = int(scores.argmax())
        if not ids:
            chosen = options.get("forced_bos_token_id", chosen)
        if len(ids) == LIMIT - 1:
            chosen = options.get("forced_eos_token_id", chosen)
        ids.append(chosen)
    return ids


GREEDY = {
    "min": {"min_new_tokens": 7},
    "suppress": {"suppress_tokens": [1, 19], "begin_suppress_tokens": [50]},
    "forced": {"forced_bos_token_id": 40, "forced_eos_token_id": 1, "min_new_tokens": 11},
    "repetition": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.5},
    "ngram": {"no_repeat_ngram_size": 2, "suppress_tokens": [1]},
    "unigram": {"no_repeat_ngram_size": 1, "suppress_tokens": [1]},
    "words": {"bad_words": ["counts", "apples rains"], "bad_words_ids": [[8, 19], [77]]},
    "allowed": {"allowed_texts": ["the baker", "apples", "apples rains", "sister", ""]},
    "together": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words": ["counts"],
        "min_new_tokens": 5,
        "begin_suppress_tokens": [50, 63],
    },
}


@pytest.mark.parametrize("name", GREEDY)
def test_generate_writes_what_numpy_does_under_the_same_rules(t5, short, name):
    options = GREEDY[name]
    found = t5.generate_outputs(short, max_new_tokens=LIMIT, **options)
    expected = [expected_ids(t5, text, options) for text in short]
    assert [row[0].ids for row in found] == expected
    unruled = [greedy_ids(t5, text) for text in short]
    assert any([*ids] != [*one, 1][:LIMIT] for ids, one in zip(expected, unruled, strict=True))


def holds(ids, word):
    return any(ids[i : i + len(word)] == word for i in range(len(ids) - len(word) + 1))


STRATEGIES = {
    "greedy": {},
    "draws": {"temperature": 3.0, "num_return_sequences": 3, "seed": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bad_words_never_appear_as_tokens(t5, short, strategy):
    # Of the lengths that every strategy likes to write.
    words = ["counts", "night", "apples rains", "the baker"]
    banned = [t5.tokenizer.encode(word) for word in words]
    assert {len(ids) for ids in banned} >= {1, 2}
    options = {"max_new_tokens": LIMIT, **STRATEGIES[strategy]}
    for row in t5.generate_outputs(short, bad_words=words, **options):
        for answer in row:
            assert not any(holds(answer.ids, ids) for ids in banned)
    free = [answer.ids for row in t5.generate_outputs(short, **options) for answer in row]
    assert any(holds(ids, word) for ids in free for word in banned)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_allowed_texts_are_all_that_is_written(t5, short, strategy):
    texts = ["the baker", "apples", "apples rains", "my sister"]
    options = {"max_new_tokens": LIMIT, **STRATEGIES[strategy]}
    found = t5.generate_outputs(short, allowed_texts=texts, **options)
    written = [answer for row in found for answer in row]
    assert {answer.text for answer in written} <= set(texts)
    assert {answer.finish_reason for answer in written} == {"eos"}
    if strategy == "draws":
        assert len({answer.text for answer in written}) > 1


def test_beams_find_all_allowed_texts_in_the_order_of_their_scores(t5, short):
    texts = ["the baker", "apples", "apples rains", "my sister", ""]
    found = t5.generate_outputs(
        short,
        allowed_texts=texts,
        num_beams=8,
        num_return_sequences=8,
        length_penalty=0.0,
        max_new_tokens=LIMIT,
    )
    for text, row in zip(short, found, strict=True):
        scores = {one: score_by_hand(t5, text, one) for one in texts}
        assert [answer.text for answer in row] == sorted(texts, key=lambda one: -scores[one])
        for answer in row:
            # A sum of up to ten float32 log-probabilities.
            np.testing.assert_allclose(answer.score, scores[answer.text], rtol=0, atol=2e-4)


def test_automaton_of_the_user_decides_what_is_written(t5, short):
    """Any number of pairs of one token and another."""
    edges = {0: {5: 1, 1: 2}, 1: {6: 0}}
    machine = from_edges(edges, vocab_size=97, ends=[2])
    found = t5.generate_outputs(short, automaton=machine, max_new_tokens=LIMIT, temperature=3.0)
    lengths = set()
    for ((*ids, end),) in [[answer.ids for answer in row] for row in found]:
        assert end == 1
        assert ids == [5, 6] * (len(ids) // 2)
        lengths.add(len(ids))
    assert len(lengths) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prefixes_begin_answers_and_count_in_no_limit(t5, short, strategy):
    given = ["the baker", "", "my sister", [50, 8]]
    ids = prefixes(t5, 4, given)
    options = {"max_new_tokens": 5, "min_new_tokens": 3, **STRATEGIES[strategy]}
    for prefix, row in zip(
        ids, t5.generate_outputs(short, decoder_prefix=given, **options), strict=True
    ):
        for answer in row:
            assert answer.ids[: len(prefix)] == prefix
            behind = answer.ids[len(prefix) :]
            assert 3 < len(behind) <= 5
            assert (answer.finish_reason == "eos") == (behind[-1] == 1)
            assert 1 not in behind[:-1]
            assert answer.text == t5.tokenizer.decode(answer.ids)


def test_prefix_is_what_a_model_goes_on_from(t5, short):
    given = ["the baker", "", "my sister", [50, 8]]
    ids = prefixes(t5, 4, given)
    found = t5.generate(short, decoder_prefix=given, max_new_tokens=5)
    for text, prefix, answer in zip(short, ids, found, strict=True):
        assert answer == t5.tokenizer.decode(greedy_ids(t5, text, limit=5, prefix=prefix))


def test_first_token_is_the_one_behind_the_prefix(t5, short):
    found = t5.generate_outputs(
        short,
        decoder_prefix=["the baker", "", "my sister", "an"],
        forced_bos_token_id=40,
        forced_eos_token_id=1,
        max_new_tokens=4,
    )
    for text, (answer,) in zip(["the baker", "", "my sister", "an"], found, strict=True):
        behind = answer.ids[len(t5.tokenizer.encode(text)) :]
        assert behind[0] == 40
        assert behind[-1] == 1


def test_allowed_texts_are_what_is_written_behind_the_prefix(t5, short):
    found = t5.generate(
        short, decoder_prefix="the baker", allowed_texts=["apples", "rains"], max_new_tokens=LIMIT
    )
    assert set(found) <= {"the baker apples", "the baker rains"}


# Stop strings.


STOPS = [["e"], ["ap"], ["s r", " w"], ["not there"], ["counts counts", "rok"], ["pples rem"]]


def ids_until(t5, ids, stop_strings, start=0):
    """Up to the first id with which the text holds a stop string."""
    for end in range(start + 1, len(ids) + 1):
        text = t5.tokenizer.decode(ids[start:end])
        if any(string in text for string in stop_strings):
            return ids[:end], True
    return ids, False


@pytest.mark.parametrize("stop_strings", STOPS)
def test_stop_strings_end_an_answer_and_are_cut_off(t5, short, stop_strings):
    found = t5.generate_outputs(short, stop_strings=stop_strings, max_new_tokens=LIMIT)
    for text, (answer,) in zip(short, found, strict=True):
        ids = greedy_ids(t5, text)
        whole = [*ids, 1] if len(ids) < LIMIT else ids
        expected, stopped = ids_until(t5, whole, stop_strings)
        assert answer.ids == expected
        full = t5.tokenizer.decode(expected)
        places = [full.find(string) for string in stop_strings if string in full]
        assert answer.text == full[: min(places, default=len(full))]
        assert answer.finish_reason == (
            "stop" if stopped else "eos" if expected[-1] == 1 else "length"
        )


@pytest.mark.parametrize("strategy", ["draws", "beams"])
def test_stop_strings_end_draws_and_beams(t5, short, strategy):
    options = {"max_new_tokens": LIMIT, **STRATEGIES[strategy]}
    reasons = set()
    for row in t5.generate_outputs(short, stop_strings=["ou", "gh"], **options):
        for answer in row:
            assert "ou" not in answer.text
            assert "gh" not in answer.text
            text = t5.tokenizer.decode(answer.ids)
            assert text.startswith(answer.text)
            stopped = any(string in text for string in ("ou", "gh"))
            assert stopped == (answer.finish_reason == "stop")
            before = t5.tokenizer.decode(answer.ids[:-1])
            assert not any(string in before for string in ("ou", "gh"))
            reasons.add(answer.finish_reason)
    assert "stop" in reasons
    assert len(reasons) > 1


def test_stop_strings_are_not_looked_for_in_the_prefix(t5, short):
    found = t5.generate_outputs(
        short, decoder_prefix="the baker", stop_strings=["e"], max_new_tokens=LIMIT
    )
    prefix = t5.tokenizer.encode("the baker")
    for text, (answer,) in zip(short, found, strict=True):
        ids = greedy_ids(t5, text, prefix=prefix)
        whole = [*ids, 1] if len(ids) < LIMIT + len(prefix) else ids
        assert answer.ids == ids_until(t5, whole, ["e"], start=len(prefix))[0]
        assert answer.text.startswith("the baker")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return scripts_of_languages.every_kind(tmp_path_factory.mktemp("kinds"))


MATCHED = [(" ",), (" t", "é"), ("the", "  "), ("日本", "🙂"), ("o ", "ab", "b"), ("\u200d",)]


@pytest.mark.parametrize("kind", ["bytes", "trained", "with_bytes", "byte_level", "metaspace"])
def test_stop_strings_are_found_when_the_decoded_text_holds_them(t5, kinds, kind):
    found = kinds[kind]
    config = t5.config.replace(vocab_size=found.vocab_size)
    texts = scripts_of_languages.texts(150, seed=2)
    if kind in ("with_bytes", "metaspace"):
        # They drop one space at the beginning of a text and no other, as the automaton does not.
        texts = [text.lstrip(" ") for text in texts]
    count = 0
    for strings in MATCHED:
        stop = compile_constraints(
            GenerationConfig(stop_strings=strings), config, found
        ).stop_automaton
        rows, first = np.asarray(stop.rows)[np.asarray(stop.row_of)], np.asarray(stop.first_edge)
        tokens, targets, ends = map(np.asarray, (stop.tokens, stop.targets, stop.ends))
        for state in range(len(rows)):
            edges = slice(first[state], first[state + 1])
            rows[state, tokens[edges]] = targets[edges]
        for text in texts:
            ids = found.encode(text)
            states = [0]
            for token in ids:
                states.append(rows[states[-1], token])
            seen = [bool(ends[state]) for state in states]
            decoded = [found.decode(ids[:end]) for end in range(len(ids) + 1)]
            held = [any(string in one for string in strings) for one in decoded]
            # While a run of bytes is not whole, a text may hold less than before.
            assert seen == [*itertools.accumulate(held, operator.or_)]
            count += held[-1]
    assert count > 100
