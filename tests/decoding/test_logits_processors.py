"""Logits processors against plain Python, token by token, and against those of transformers."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.decoding.automaton_builders import from_edges
from t5jax.decoding.logits_processors import Context, LogitsProcessors

EOS, V, W, R = 1, 11, 13, 7
LENGTHS = range(1, W + 1)

_apply = jax.jit(LogitsProcessors.__call__, static_argnames="eos_id")


class History:
    """Random rows of a loop: tokens from a few, so that they repeat; garbage behind `length`."""

    def __init__(self, length, *, seed, limit=9, equal=False):
        rng = np.random.default_rng([seed, length])
        self.length, self.limit = length, limit
        self.sequences = rng.integers(0, 5, (R, W))
        # Ids of no token too: nothing may be looked up there.
        self.sequences[:, length:] = rng.integers(-3, V + 9, (R, W - length))
        # Positive and negative; some tokens are out already.
        self.scores = rng.normal(size=(R, V)).astype(np.float32) * 3
        self.scores[rng.random((R, V)) < 0.05] = -np.inf
        # A prefix may reach beyond what has been read.
        prefix_lens = rng.integers(0, 4, R)
        if equal:
            prefix_lens[:] = min(prefix_lens[0], length - 1)
        self.num_new = length - 1 - prefix_lens
        self.states = np.zeros(R, np.int64)

    @property
    def rows(self):
        return self.sequences[:, : self.length].tolist()

    def apply(self, processors):
        context = Context(
            sequences=jnp.asarray(self.sequences, jnp.int32),
            length=jnp.int32(self.length),
            num_new=jnp.asarray(self.num_new, jnp.int32),
            max_new_tokens=jnp.int32(self.limit),
            states=jnp.asarray(self.states, jnp.int32),
        )
        found = _apply(processors, jnp.asarray(self.scores), context, eos_id=EOS)
        assert found.dtype == np.float32
        return np.asarray(found)

    def expect(self, processors, *changes):
        """Compares with functions from a row's scores, tokens and count to its new scores."""
        rows = []
        for scores, row, count in zip(self.scores, self.rows, self.num_new.tolist(), strict=True):
            changed = scores.tolist()
            for change in changes:
                changed = change(changed, row, count)
            rows.append(changed)
        # One product of float32 numbers, rounded once or twice.
        np.testing.assert_allclose(self.apply(processors), np.array(rows, np.float32), rtol=2e-7)


def histories(count=3, **options):
    return [History(length, seed=seed, **options) for length in LENGTHS for seed in range(count)]


def without(scores, tokens):
    return [-np.inf if token in tokens else score for token, score in enumerate(scores)]


def only(scores, chosen):
    return [0.0 if token == chosen else -np.inf for token in range(len(scores))]


# The processors in plain Python.


def penalized(penalty):
    def change(scores, row, count):
        factors = [penalty if score < 0 else 1 / penalty for score in scores]
        return [
            score * factor if token in row else score
            for token, (score, factor) in enumerate(zip(scores, factors, strict=True))
        ]

    return change


def unrepeated(size):
    def change(scores, row, count):
        seen = {tuple(row[i : i + size]) for i in range(len(row) - size + 1)}
        last = row[len(row) - size + 1 :] if size <= len(row) + 1 else None
        return without(scores, {t for t in range(V) if last is not None and (*last, t) in seen})

    return change


def without_words(words):
    def change(scores, row, count):
        # The start token is no part of a word.
        written = row[1:]
        out = {
            word[-1]
            for word in words
            if len(word) <= len(row) and written[len(row) - len(word) :] == list(word[:-1])
        }
        return without(scores, out)

    return change


def not_ended_before(least):
    return lambda scores, row, count: without(scores, {EOS}) if count < least else scores


def forced_at(place, token):
    return lambda scores, row, count: only(scores, token) if count == place else scores


def suppressed(tokens):
    return lambda scores, row, count: without(scores, tokens)


def suppressed_at(place, tokens):
    return lambda scores, row, count: without(scores, tokens) if count == place else scores


def mask(tokens):
    return jnp.asarray(np.isin(np.arange(V), list(tokens)))


def aligned(words):
    """As `Rules` wants them, in a width of four and with a copy."""
    return jnp.array([[*[-1] * (4 - len(word)), *word] for word in [*words, words[0]]], jnp.int32)


def test_processors_that_are_off_change_nothing():
    for history in histories():
        np.testing.assert_array_equal(history.apply(LogitsProcessors()), history.scores)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_makes_what_occurs_less_likely(penalty):
    processors = LogitsProcessors(repetition_penalty=jnp.float32(penalty))
    for history in histories():
        history.expect(processors, penalized(np.float32(penalty)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20, 10**9])
def test_no_repeat_ngram_lets_none_occur_twice(size):
    changed = 0
    for history in histories():
        processors = LogitsProcessors(no_repeat_ngram_size=size)
        history.expect(processors, unrepeated(size))
        changed += (history.apply(processors) != history.scores).any()
    assert (changed > 0) == (size < 5)


WORDS = [
    [(3,)],
    [(2, 3), (4, 4), (0, 1)],
    [(2, 3, 4), (0, 0, 0), (1, 2, 9)],
    [(7,), (3, 2), (3, 1), (0, 1, 2), (2, 2, 2, 2), (4, 3, 2, 1)],
]


@pytest.mark.parametrize("words", WORDS)
def test_bad_words_are_not_completed(words):
    processors, changed = LogitsProcessors(bad_words_ids=aligned(words)), 0
    for history in histories(20):
        history.expect(processors, without_words(words))
        changed += (history.apply(processors) != history.scores).any()
    assert changed


def test_bad_words_do_not_begin_with_the_start_token():
    """Which is not written, and shares its id with padding."""
    processors = LogitsProcessors(bad_words_ids=aligned([(3, 4), (2, 3, 4)]))
    history = History(1, seed=0)
    history.sequences[:, 0] = 3
    np.testing.assert_array_equal(history.apply(processors), history.scores)
    history = History(2, seed=0)
    history.sequences[:, :2] = [2, 3]
    history.expect(processors, suppressed({4}))  # as the second of 3 4


def test_min_tokens_keeps_eos_out_before():
    for least in range(1, 6):
        for history in histories():
            history.expect(
                LogitsProcessors(min_new_tokens=jnp.int32(least)), not_ended_before(least)
            )


def test_forced_first_is_the_only_first_token():
    for history in histories():
        history.expect(LogitsProcessors(forced_bos_token_id=jnp.int32(5)), forced_at(0, 5))


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_forced_last_is_the_only_token_at_the_limit(limit):
    for history in histories(limit=limit):
        history.expect(
            LogitsProcessors(forced_eos_token_id=jnp.int32(EOS)), forced_at(limit - 1, EOS)
        )


def test_suppressed_tokens_are_always_out():
    for history in histories():
        history.expect(LogitsProcessors(suppress_tokens=mask({0, 4, 9})), suppressed({0, 4, 9}))


def test_first_suppressed_tokens_are_out_as_the_first_that_is_chosen():
    processors = LogitsProcessors(begin_suppress_tokens=mask({0, 4, 9}))
    behind = LogitsProcessors(
        begin_suppress_tokens=mask({0, 4, 9}), forced_bos_token_id=jnp.int32(4)
    )
    for history in histories():
        history.expect(processors, suppressed_at(0, {0, 4, 9}))
        history.expect(behind, forced_at(0, 4), suppressed_at(1, {0, 4, 9}))


def states_of(sequences):
    """A number for every beginning of the sequences, and the edges between them."""
    whole = [(*sequence, EOS) for sequence in sequences]
    beginnings = sorted({s[:n] for s in whole for n in range(len(s) + 1)}, key=len)
    states = {beginning: state for state, beginning in enumerate(beginnings)}
    edges = {state: {} for state in states.values()}
    for beginning in beginnings[1:]:
        edges[states[beginning[:-1]]][beginning[-1]] = states[beginning]
    return states, edges, [states[s] for s in whole]


SEQUENCES = [(2, 3), (2, 3, 4, 4, 2), (3,), (3, 3, 3, 3, 3, 3), (0, 9), (4, 0, 1 + 1)]
STATES, EDGES, ENDS = states_of(SEQUENCES)


def machine():
    return from_edges(EDGES, vocab_size=V, ends=ENDS)


def in_states(history, *, lost=False):
    """Puts rows into random states whose way into them they have written; -1 if `lost`."""
    rng = random.Random(history.length)
    open_states = [b for b in STATES if EOS not in b and len(b) < history.length]
    for row in range(R):
        beginning = rng.choice(open_states)
        history.sequences[row, history.length - len(beginning) : history.length] = beginning
        history.num_new[row] = len(beginning)
        history.states[row] = STATES[beginning]
        if lost and row % 3 == 0:
            history.states[row] = -1
    return history


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 9])
def test_automaton_allows_what_can_be_finished_within_the_limit(limit):
    dead = 0
    for history in histories(limit=limit):
        in_states(history, lost=True)
        found = history.apply(LogitsProcessors(automaton=machine()))
        for row, state in enumerate(history.states):
            written = history.rows[row][history.length - history.num_new[row] :]
            fitting = [(*s, EOS) for s in SEQUENCES if len(s) < limit]
            begun = [s for s in fitting if s[: len(written)] == tuple(written)]
            allowed = {s[len(written)] for s in begun} if state >= 0 else set()
            expected = without(history.scores[row], set(range(V)) - allowed)
            np.testing.assert_array_equal(found[row], np.array(expected, np.float32))
            dead += not allowed
    assert dead


def test_automaton_has_the_last_word():
    """A forced token that it does not allow leaves nothing."""
    history = in_states(History(1, seed=0))
    for token, left in ((4, {4}), (5, set())):
        found = history.apply(
            LogitsProcessors(automaton=machine(), forced_bos_token_id=jnp.int32(token))
        )
        assert [set(np.flatnonzero(row > -np.inf)) for row in found] == [left] * R


ALL = {
    "repetition_penalty": jnp.float32(1.7),
    "bad_words_ids": aligned([(9,), (2, 3), (4, 4, 4)]),
    "min_new_tokens": jnp.int32(4),
    "forced_bos_token_id": jnp.int32(3),
    "forced_eos_token_id": jnp.int32(EOS),
    "suppress_tokens": mask({5, 6}),
    "begin_suppress_tokens": mask({2, 7}),
    "no_repeat_ngram_size": 2,
}


def test_processors_together_apply_one_after_the_other():
    for history in histories(6, limit=8):
        history.expect(
            LogitsProcessors(**ALL),
            penalized(np.float32(1.7)),
            unrepeated(2),
            without_words([(9,), (2, 3), (4, 4, 4)]),
            not_ended_before(4),
            forced_at(0, 3),
            forced_at(7, EOS),
            suppressed({5, 6}),
            suppressed_at(1, {2, 7}),
        )


def test_processors_do_not_read_what_is_not_written():
    for history in histories(1):
        before = history.apply(LogitsProcessors(**ALL))
        history.sequences[:, history.length :] = 3
        np.testing.assert_array_equal(history.apply(LogitsProcessors(**ALL)), before)


def test_processors_of_a_row_do_not_depend_on_the_others():
    for history in histories(1):
        before = history.apply(LogitsProcessors(**ALL))
        order = np.random.default_rng(history.length).integers(0, R, R)
        for name in ("sequences", "scores", "num_new", "states"):
            setattr(history, name, getattr(history, name)[order])
        np.testing.assert_array_equal(history.apply(LogitsProcessors(**ALL)), before[order])


def test_processors_of_one_kind_share_a_program():
    history = History(5, seed=0)
    history.apply(LogitsProcessors(min_new_tokens=jnp.int32(1), suppress_tokens=mask({3})))
    before = _apply._cache_size()
    for least, token in itertools.product(range(3), range(3)):
        history.apply(
            LogitsProcessors(min_new_tokens=jnp.int32(least), suppress_tokens=mask({token}))
        )
    for other in histories(1):
        other.apply(LogitsProcessors(min_new_tokens=jnp.int32(2), suppress_tokens=mask({3})))
    assert _apply._cache_size() == before


# Against transformers.


@pytest.fixture
def theirs():
    """Compares ours with a list of transformers' processors."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from helpers.transformers_models import one_thread

    def compare(ours, processors_of, *, log_probs=(False, True), prepare=None, **options):
        changed = 0
        for history in histories(equal=True, **options):
            if prepare:
                prepare(history)
            for normalized in log_probs:
                if normalized:  # as in their beam search
                    finite = torch.from_numpy(history.scores).clamp(min=-50)
                    history.scores = finite.log_softmax(-1).numpy()
                processors = processors_of(transformers, history)
                ids = torch.tensor(history.rows)
                scores = torch.from_numpy(history.scores.copy())
                expected = transformers.LogitsProcessorList(processors)(ids, scores).numpy()
                # Two float32 roundings of one product or quotient.
                np.testing.assert_allclose(history.apply(ours), expected, rtol=2e-7)
                changed += not np.array_equal(expected, history.scores)
        assert changed

    with one_thread():
        yield compare


def prompt_len(history):
    """Start token and prefix, which is as long in every row."""
    return int(history.length - history.num_new[0])


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_is_that_of_transformers(theirs, penalty):
    theirs(
        LogitsProcessors(repetition_penalty=jnp.float32(penalty)),
        lambda hf, history: [hf.RepetitionPenaltyLogitsProcessor(penalty)],
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_no_repeat_ngram_is_that_of_transformers(theirs, size):
    theirs(
        LogitsProcessors(no_repeat_ngram_size=size),
        lambda hf, history: [hf.NoRepeatNGramLogitsProcessor(size)],
        count=10,
    )


def start_token(history):
    """One that is in no word: releases of transformers differ in whether a word may hold it."""
    history.sequences[:, 0] = 10


@pytest.mark.parametrize("words", WORDS)
def test_bad_words_are_those_of_transformers(theirs, words):
    theirs(
        LogitsProcessors(bad_words_ids=aligned(words)),
        lambda hf, history: [hf.NoBadWordsLogitsProcessor([list(w) for w in words], EOS)],
        prepare=start_token,
        count=20,
    )


@pytest.mark.parametrize("least", [1, 4])
def test_min_tokens_is_that_of_transformers(theirs, least):
    theirs(
        LogitsProcessors(min_new_tokens=jnp.int32(least)),
        lambda hf, history: [hf.MinNewTokensLengthLogitsProcessor(prompt_len(history), least, EOS)],
    )


def without_prefix(history):
    """Behind a prefix, transformers does not force a first token."""
    history.num_new[:] = history.length - 1


def test_forced_first_is_that_of_transformers(theirs):
    theirs(
        LogitsProcessors(forced_bos_token_id=jnp.int32(5)),
        lambda hf, history: [hf.ForcedBOSTokenLogitsProcessor(5)],
        prepare=without_prefix,
    )


def test_forced_last_is_that_of_transformers(theirs):
    theirs(
        LogitsProcessors(forced_eos_token_id=jnp.int32(EOS)),
        lambda hf, history: [hf.ForcedEOSTokenLogitsProcessor(prompt_len(history) + 9, EOS)],
    )


def test_suppressed_is_that_of_transformers(theirs):
    theirs(
        LogitsProcessors(suppress_tokens=mask({0, 4, 9})),
        lambda hf, history: [hf.SuppressTokensLogitsProcessor([0, 4, 9])],
    )


def test_first_suppressed_is_that_of_transformers(theirs):
    theirs(
        LogitsProcessors(begin_suppress_tokens=mask({0, 4, 9})),
        lambda hf, history: [
            hf.SuppressTokensAtBeginLogitsProcessor([0, 4, 9], prompt_len(history))
        ],
    )


def test_automaton_is_prefix_allowed_tokens_of_transformers(theirs):
    def processors(hf, history):
        nexts = [sorted(EDGES[state]) for state in history.states]
        return [hf.PrefixConstrainedLogitsProcessor(lambda row, ids: nexts[row], 1)]

    def prepare(history):
        # Where all that is allowed is out already, transformers allows it again.
        history.scores = np.maximum(history.scores, -50)
        in_states(history)

    theirs(LogitsProcessors(automaton=machine()), processors, prepare=prepare, limit=99)


def test_processors_together_are_those_of_transformers_in_its_order(theirs):
    """As `generate` lines them up; a forced first token moves the next rule by one."""
    theirs(
        LogitsProcessors(**ALL),
        lambda hf, history: [
            hf.RepetitionPenaltyLogitsProcessor(1.7),
            hf.NoRepeatNGramLogitsProcessor(2),
            hf.NoBadWordsLogitsProcessor([[9], [2, 3], [4, 4, 4]], EOS),
            hf.MinNewTokensLengthLogitsProcessor(1, 4, EOS),
            hf.ForcedBOSTokenLogitsProcessor(3),
            hf.ForcedEOSTokenLogitsProcessor(1 + 8, EOS),
            hf.SuppressTokensLogitsProcessor([5, 6]),
            hf.SuppressTokensAtBeginLogitsProcessor([2, 7], 2),
        ],
        prepare=lambda history: (without_prefix(history), start_token(history)),
        limit=8,
        count=10,
    )


def test_processors_together_behind_a_prefix_are_those_of_transformers(theirs):
    some = {name: rule for name, rule in ALL.items() if name != "forced_bos_token_id"}
    theirs(
        LogitsProcessors(**some),
        lambda hf, history: [
            hf.RepetitionPenaltyLogitsProcessor(1.7),
            hf.NoRepeatNGramLogitsProcessor(2),
            hf.NoBadWordsLogitsProcessor([[9], [2, 3], [4, 4, 4]], EOS),
            hf.MinNewTokensLengthLogitsProcessor(prompt_len(history), 4, EOS),
            hf.ForcedEOSTokenLogitsProcessor(prompt_len(history) + 8, EOS),
            hf.SuppressTokensLogitsProcessor([5, 6]),
            hf.SuppressTokensAtBeginLogitsProcessor([2, 7], prompt_len(history)),
        ],
        prepare=start_token,
        limit=8,
        count=10,
    )


@pytest.mark.parametrize("size", [16, 17, 19])
def test_long_ngrams_are_those_of_brute_force(size):
    # The last size - 1 tokens occur before, followed by 7.
    pattern = list(range(size - 1))
    sequence = np.array([[*pattern, 7, 3, *pattern, 0, 0]], np.int32)
    length = jnp.int32(2 * size)
    context = Context(jnp.asarray(sequence), length, length - 1, jnp.int32(99), None)
    scores = jnp.zeros((1, 30))
    result = LogitsProcessors(no_repeat_ngram_size=size)(scores, context, eos_id=1)
    assert np.flatnonzero(np.isinf(result[0])).tolist() == [7]
