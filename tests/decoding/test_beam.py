"""Beam search against enumeration of all sequences of a model that remembers what it wrote."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import token_sets

from t5jax.decoding import trie
from t5jax.decoding.automaton_builders import from_edges, matcher
from t5jax.decoding.beam import Beams, beam_search, gnmt_penalty, power_penalty
from t5jax.decoding.logits_processors import LogitsProcessors
from t5jax.decoding.loop import Finish

PAD, EOS, VOCAB, MAX_LEN = 0, 1, 5, 4
STARTS = (2, 3, 4)
PREFIXES = ((), (4, EOS, 2), (0,))
PENALTIES = {
    "none": (power_penalty, 0.0, lambda n: 1.0),
    "power": (power_penalty, 1.0, lambda n: float(n)),
    "steep": (power_penalty, 2.0, lambda n: float(n**2)),
    "reversed": (power_penalty, -0.7, lambda n: float(n**-0.7)),
    "gnmt": (gnmt_penalty, 0.6, lambda n: ((5 + n) / 6) ** 0.6),
}
# Sums of a few float32 numbers against float64.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def weights():
    """Logits depend on a number that every token of the sequence changes."""
    return np.random.default_rng(3).normal(size=(64, VOCAB)).astype(np.float32) * 2


def remember(memory, token):
    return (memory * 7 + token + 1) % 64


def recall(*tokens):
    return functools.reduce(remember, map(int, tokens), 0)


def all_log_probs(weights):
    rows = weights.astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def step_of(weights):
    def step(tokens, memory):
        memory = remember(memory, tokens)
        return jnp.asarray(weights)[memory], memory

    return step


@functools.partial(jax.jit, static_argnames=("num_beams", "form", "early_stopping", "max_len"))
def search(
    weights,
    start,
    prefix,
    prefix_lens,
    done,
    limit,
    alpha,
    processors,
    *,
    num_beams,
    form,
    early_stopping,
    max_len,
):
    return beam_search(
        step_of(weights),
        jnp.zeros((len(start) * num_beams,), jnp.int32),
        num_beams=num_beams,
        penalty=form(alpha),
        early_stopping=early_stopping,
        processors=processors,
        start_tokens=start,
        prefix=prefix,
        prefix_lens=prefix_lens,
        done=done,
        max_new_tokens=limit,
        max_len=max_len,
        eos_id=EOS,
        pad_id=PAD,
    )


def as_arrays(prefixes):
    width = max(map(len, prefixes))
    prefix = np.array([[*row, *[PAD] * (width - len(row))] for row in prefixes], np.int32)
    return prefix.reshape(len(prefixes), width), np.array([len(p) for p in prefixes], np.int32)


def run(
    weights,
    *,
    num_beams,
    kind="power",
    limit=MAX_LEN,
    max_len=MAX_LEN,
    early_stopping="never",
    starts=STARTS,
    prefixes=None,
    done=None,
    processors=None,
):
    found = search(
        weights,
        np.array(starts, np.int32),
        *as_arrays(prefixes or [()] * len(starts)),
        np.zeros(len(starts), bool) if done is None else np.array(done),
        np.int32(limit),
        np.float32(PENALTIES[kind][1]),
        LogitsProcessors() if processors is None else processors,
        num_beams=num_beams,
        form=PENALTIES[kind][0],
        early_stopping=early_stopping,
        max_len=max_len,
    )
    return Beams(*map(np.asarray, found))


def sequences_of(found, row, prefix=()):
    """What the beams of a row hold behind the prefix, best first, and why each has ended."""
    sequences = []
    for k, score in enumerate(found.scores[row]):
        length, ids = int(found.lengths[row, k]), found.tokens[row, k, 1:].tolist()
        if score == -np.inf:
            assert found.log_probs[row, k] == -np.inf
            continue
        assert ids[: len(prefix)] == list(prefix)
        assert ids[length:] == [PAD] * (len(ids) - length)
        sequences.append((tuple(ids[len(prefix) : length]), int(found.finish[row, k])))
    count = len(sequences)
    assert (found.scores[row, count:] == -np.inf).all()
    assert (np.diff(found.scores[row, :count]) <= 0).all()
    return sequences


def why(tokens, stops=lambda tokens: False):
    return Finish.EOS if tokens[-1] == EOS else Finish.STOP if stops(tokens) else Finish.LIMIT


def all_sequences(weights, start, limit, prefix=(), stops=lambda tokens: False):
    """Every sequence that ends by itself, or at the limit, and its log-probability."""
    log_probs, found = all_log_probs(weights), {}
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            over = [token == EOS or stops(tokens[: i + 1]) for i, token in enumerate(tokens)]
            if any(over[:-1]) or (length < limit and not over[-1]):
                continue
            memory, total = recall(start, *prefix), 0.0
            for token in tokens:
                total += log_probs[memory, token]
                memory = remember(memory, token)
            found[tokens] = total
    return found


def check_best(found, weights, *, kind="power", limit=MAX_LEN, prefixes=None, stops=None):
    """The ten best of each row are those of an enumeration."""
    stops = stops or (lambda tokens: False)
    for row, (start, prefix) in enumerate(zip(STARTS, prefixes or [()] * 3, strict=True)):
        exact = all_sequences(weights, start, limit, prefix, stops)
        scores = {s: total / PENALTIES[kind][2](len(s)) for s, total in exact.items()}
        best = sorted(scores, key=lambda s, scores=scores: -scores[s])[:10]
        ours = sequences_of(found, row, prefix)[:10]
        assert ours == [(s, why(s, stops)) for s in best]
        for array, values in ((found.scores, scores), (found.log_probs, exact)):
            np.testing.assert_allclose(array[row, : len(best)], [values[s] for s in best], CLOSE)


@pytest.mark.parametrize("limit", [1, 2, MAX_LEN])
@pytest.mark.parametrize("kind", PENALTIES)
def test_search_with_enough_beams_finds_the_best_of_all(weights, kind, limit):
    # 128 beams are more than there are open sequences.
    check_best(run(weights, kind=kind, limit=limit, num_beams=128), weights, kind=kind, limit=limit)


@pytest.mark.parametrize("limit", [1, MAX_LEN])
@pytest.mark.parametrize("kind", ["steep", "gnmt"])
def test_search_finds_the_best_behind_prefixes_of_unequal_lengths(weights, kind, limit):
    """They count in no length, no score and no limit, and EOS within one ends nothing."""
    options = {"kind": kind, "limit": limit, "prefixes": PREFIXES}
    found = run(weights, num_beams=128, **options)
    assert found.tokens.shape == (3, 128, 1 + 3 + MAX_LEN)
    check_best(found, weights, **options)


PIECES = [b"", b"", b"ab", b"c", b"d"]


@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["bare", "prefix"])
@pytest.mark.parametrize("string", ["b", "cab", "bcd"])
def test_search_ends_sequences_at_a_stop_string(weights, string, prefixes):
    """It is looked for in what is written, not in the prefix."""
    stop = matcher([string.encode()], PIECES, vocab_size=VOCAB)

    def stops(tokens):
        return string in b"".join(PIECES[token] for token in tokens).decode()

    found = run(
        weights, num_beams=128, prefixes=prefixes, processors=LogitsProcessors(stop_automaton=stop)
    )
    check_best(found, weights, prefixes=prefixes, stops=stops)
    assert (found.finish[found.scores > -np.inf] == Finish.STOP).any()


def by_hand(
    log_probs,
    start,
    *,
    num_beams,
    score,
    mode,
    limit=MAX_LEN,
    prefix=(),
    rule=lambda log_probs, history, count: log_probs,
    stops=lambda tokens: False,
):
    """Beam search written with lists: the definition."""
    alive, ended = [((), 0.0)], []
    for length in range(1, limit + 1):
        candidates = []
        for tokens, total in alive:
            history = (start, *prefix, *tokens)
            for token, more in enumerate(rule(log_probs[recall(*history)], history, length - 1)):
                if more > -np.inf:
                    candidates.append(((*tokens, token), total + more))
        candidates.sort(key=lambda c: -c[1])
        candidates = candidates[: 2 * num_beams]
        over = [c[0][-1] == EOS or length == limit or stops(c[0]) for c in candidates]
        for (tokens, total), is_over in list(zip(candidates, over, strict=True))[:num_beams]:
            if is_over:
                ended.append((tokens, total, total / score(length)))
        ended = sorted(ended, key=lambda e: -e[2])[:num_beams]
        alive = [c for c, is_over in zip(candidates, over, strict=True) if not is_over][:num_beams]
        if not alive:
            break
        if len(ended) == num_beams:
            if mode == "full":
                break
            reach = alive[0][1] / score(length)
            if mode == "never":
                reach = max(reach, alive[0][1] / score(limit))
            if ended[-1][2] >= reach:
                break
    return ended


def check_by_hand(found, row, expected, prefix=(), stops=lambda tokens: False):
    assert sequences_of(found, row, prefix) == [(e[0], why(e[0], stops)) for e in expected]
    count = len(expected)
    np.testing.assert_allclose(found.log_probs[row, :count], [e[1] for e in expected], CLOSE)
    np.testing.assert_allclose(found.scores[row, :count], [e[2] for e in expected], CLOSE)


@pytest.mark.parametrize("mode", ["full", "heuristic", "never"])
@pytest.mark.parametrize("num_beams", [1, 2, 3])
@pytest.mark.parametrize("kind", PENALTIES)
def test_search_is_what_its_definition_says(weights, kind, num_beams, mode):
    options = {"num_beams": num_beams, "early_stopping": mode, "max_len": 9, "limit": 9}
    found = run(weights, kind=kind, prefixes=PREFIXES, **options)
    log_probs = all_log_probs(weights)
    for row, (start, prefix) in enumerate(zip(STARTS, PREFIXES, strict=True)):
        expected = by_hand(
            log_probs,
            start,
            num_beams=num_beams,
            score=PENALTIES[kind][2],
            mode=mode,
            limit=9,
            prefix=prefix,
        )
        check_by_hand(found, row, expected, prefix)


def test_search_with_one_beam_is_greedy(weights):
    found = run(weights, num_beams=1, limit=9, max_len=9, early_stopping="full")
    for row, start in enumerate(STARTS):
        expected = []
        while len(expected) < 9 and (not expected or expected[-1] != EOS):
            expected.append(int(weights[recall(start, *expected)].argmax()))
        assert sequences_of(found, row) == [(tuple(expected), why(expected))]


# Rules, which need the right history of every beam.


def no_pair_twice(log_probs, history, count):
    out = log_probs.copy()
    for first, second in itertools.pairwise(history):
        if first == history[-1]:
            out[second] = -np.inf
    return out


def less_of_the_same(log_probs, history, count):
    out = log_probs.copy()
    for token in set(history):
        out[token] *= 1.5
    return out


def no_early_end(log_probs, history, count):
    out = log_probs.copy()
    if count < 6:
        out[EOS] = -np.inf
    return out


def three_then_two(log_probs, history, count):
    """The first token, and if it comes so far, the ninth."""
    forced = {0: 3, 8: 2}.get(count)
    return log_probs if forced is None else np.where(np.arange(VOCAB) == forced, 0.0, -np.inf)


def all_at_once(log_probs, history, count):
    for rule in (less_of_the_same, no_pair_twice, no_early_end, three_then_two):
        log_probs = rule(log_probs, history, count)
    return log_probs


ALL = {
    "no_repeat_ngram_size": 2,
    "repetition_penalty": jnp.float32(1.5),
    "min_new_tokens": jnp.int32(6),
    "forced_bos_token_id": jnp.int32(3),
    "forced_eos_token_id": jnp.int32(2),
}
RULES = {
    no_pair_twice: ["no_repeat_ngram_size"],
    less_of_the_same: ["repetition_penalty"],
    no_early_end: ["min_new_tokens"],
    three_then_two: ["forced_bos_token_id", "forced_eos_token_id"],
    all_at_once: list(ALL),
}


@pytest.mark.parametrize("prefixes", [((), (), ()), PREFIXES], ids=["bare", "prefix"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_search_keeps_processors_as_its_definition_says(weights, rule, prefixes):
    processors = LogitsProcessors(**{name: ALL[name] for name in RULES[rule]})
    found = run(weights, num_beams=3, limit=9, max_len=9, prefixes=prefixes, processors=processors)
    differs = []
    for row, (start, prefix) in enumerate(zip(STARTS, prefixes, strict=True)):
        options = {"num_beams": 3, "score": float, "mode": "never", "limit": 9, "prefix": prefix}
        expected = by_hand(all_log_probs(weights), start, rule=rule, **options)
        check_by_hand(found, row, expected, prefix)
        differs.append(expected != by_hand(all_log_probs(weights), start, **options))
    assert any(differs)


def test_search_stops_narrow_beams_as_its_definition_says(weights):
    string = "cd"
    stop = matcher([string.encode()], PIECES, vocab_size=VOCAB)

    def stops(tokens):
        return string in b"".join(PIECES[token] for token in tokens).decode()

    found = run(
        weights, num_beams=3, limit=9, max_len=9, processors=LogitsProcessors(stop_automaton=stop)
    )
    for row, start in enumerate(STARTS):
        expected = by_hand(
            all_log_probs(weights),
            start,
            num_beams=3,
            score=PENALTIES["power"][2],
            mode="never",
            limit=9,
            stops=stops,
        )
        check_by_hand(found, row, expected, stops=stops)


# Rows do not see one another.


def test_search_of_a_row_does_not_depend_on_the_others(weights):
    processors = LogitsProcessors(
        no_repeat_ngram_size=2,
        stop_automaton=matcher([b"cc"], PIECES, vocab_size=VOCAB),
        automaton=trie(
            [(2, 3, 4, 2, 3), (2, 4), (3, 3), (4,), (4, 0, 2)], eos_id=EOS, vocab_size=VOCAB
        ),
    )
    options = {"num_beams": 3, "limit": 9, "max_len": 9, "processors": processors}
    options["early_stopping"] = "heuristic"
    together = run(weights, prefixes=PREFIXES, **options)
    order = [2, 0, 1, 2]
    others = run(
        weights,
        starts=[STARTS[i] for i in order],
        prefixes=[PREFIXES[i] for i in order],
        **options,
    )
    for place, row in enumerate(order):
        for name in ("tokens", "scores", "log_probs", "finish", "lengths"):
            ours, theirs = getattr(others, name)[place], getattr(together, name)[row]
            np.testing.assert_array_equal(ours, theirs)
    # Alone, a row with a short prefix has room for no longer one.
    for row in (0, 1):
        alone = run(weights, starts=[STARTS[row]], prefixes=[PREFIXES[row]], **options)
        expected = sequences_of(together, row, PREFIXES[row])
        assert expected
        assert sequences_of(alone, 0, PREFIXES[row]) == expected
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])


def test_search_leaves_done_rows_out(weights):
    found = run(weights, num_beams=3, done=(False, True, False), prefixes=PREFIXES)
    expected = run(weights, num_beams=3, prefixes=PREFIXES)
    assert sequences_of(found, 1) == []
    np.testing.assert_array_equal(found.tokens[[0, 2]], expected.tokens[[0, 2]])


def test_search_with_more_beams_than_sequences_marks_the_rest(weights):
    found = run(weights, num_beams=8, limit=1)  # five sequences of one token
    assert (found.scores[:, :5] > -np.inf).all()
    assert (found.scores[:, 5:] == -np.inf).all()


# What is not finite, and what is impossible.


@functools.partial(jax.jit, static_argnames="num_beams")
def failure(bad, place, position, done, processors, *, num_beams):
    """What `search` reports where the logits of one row at one position are bad.

    The rows have prefixes of 0, 3 and 1 tokens.
    """

    def step(tokens, cache):
        rows, count = cache
        logits = jnp.broadcast_to(jnp.array([0.1, 0.0, 0.3, 0.2, 0.4]), (len(tokens), VOCAB))
        here = (rows == place) & (count == position)
        return jnp.where(here[:, None], bad, logits), (rows, count + 1)

    prefix, lens = as_arrays(PREFIXES)
    return beam_search(
        step,
        (jnp.repeat(jnp.arange(3), num_beams), jnp.int32(0)),
        num_beams=num_beams,
        penalty=power_penalty(jnp.float32(0)),
        early_stopping="full",
        processors=processors,
        start_tokens=jnp.array(STARTS),
        prefix=jnp.asarray(prefix),
        prefix_lens=jnp.asarray(lens),
        done=done,
        max_new_tokens=jnp.int32(MAX_LEN),
        max_len=MAX_LEN,
        eos_id=EOS,
        pad_id=PAD,
    ).failed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_search_reports_the_position_of_logits_that_are_not_finite(bad):
    def position(place, position, *, done=(False, False, False), **processors):
        bad_row = np.full(VOCAB, bad, np.float32)
        given = (
            bad_row,
            np.int32(place),
            np.int32(position),
            np.array(done),
            LogitsProcessors(**processors),
        )
        return int(failure(*given, num_beams=2))

    # The row with the longest prefix reads it, and then as much as the others.
    for where in range(3 + MAX_LEN):
        assert position(1, where) == where
        assert position(1, where, done=(False, True, False)) == -1
        assert position(0, where) == (where if where < MAX_LEN else -1)
        assert position(2, where) == (where if where < 1 + MAX_LEN else -1)
    # Rows that have nothing more to write are done, while others are not.
    for where in range(3 + MAX_LEN):
        found = position(0, where, forced_bos_token_id=jnp.int32(EOS))
        assert found == (where if where < 1 else -1)


def test_search_reports_one_token_that_is_not_a_number():
    done = np.zeros(3, bool)
    for bad, expected in ((np.nan, 2), (np.inf, 2), (-np.inf, -1)):
        row = np.array([0.1, bad, 0.3, 0.2, 0.4], np.float32)
        found = failure(row, np.int32(0), np.int32(2), done, LogitsProcessors(), num_beams=2)
        # But a model may rule out a token of its own.
        assert found == expected


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_search_reports_a_single_beam_that_is_not_finite(weights, bad):
    """It would be the first of all in a comparison, and last in none."""
    broken = weights.copy()
    broken[recall(2, 3)] = bad
    assert run(broken, num_beams=3, starts=(2,)).failed == 1


def test_search_ends_where_an_automaton_does(weights):
    """Two tokens, no EOS: all pairs, and nothing else."""
    tokens = [token for token in range(VOCAB) if token != EOS]
    edges = {state: dict.fromkeys(tokens, state + 1) for state in (0, 1)}
    pairs = from_edges(edges, vocab_size=VOCAB, ends=[2])
    found = run(weights, num_beams=32, processors=LogitsProcessors(automaton=pairs))
    for row, start in enumerate(STARTS):
        exact = all_sequences(weights, start, 2, stops=lambda written: len(written) == 2)
        expected = {s: total / 2 for s, total in exact.items() if EOS not in s}
        best = sorted(expected, key=expected.__getitem__, reverse=True)
        assert sequences_of(found, row) == [(s, Finish.STOP) for s in best]


def test_search_finds_nothing_in_a_dead_end(weights):
    nothing = LogitsProcessors(suppress_tokens=jnp.ones(VOCAB, bool))
    found = run(weights, num_beams=3, processors=nothing, prefixes=PREFIXES)
    assert [sequences_of(found, row) for row in range(3)] == [[], [], []]
    assert found.failed == -1


def test_search_goes_on_past_beams_in_a_dead_end(weights):
    """No token twice, and no EOS: sequences of four tokens at most, and with a limit of five none.

    But where a prefix and a start token leave three, those end in nothing before.
    """
    processors = LogitsProcessors(no_repeat_ngram_size=1, suppress_tokens=jnp.arange(VOCAB) == EOS)
    found = run(
        weights, num_beams=64, limit=3, processors=processors, starts=(2, 3), prefixes=((), (4,))
    )
    for sequence, finish in sequences_of(found, 0):
        assert sorted(sequence) == [0, 3, 4]
        assert finish == Finish.LIMIT
    assert len(sequences_of(found, 0)) == 6
    assert sequences_of(found, 1, (4,)) == []


# One of a set of sequences.

NUM_SETS = 1000
SET_PREFIXES = ((), (3, 0), (4,))


@pytest.fixture(scope="module")
def allowed():
    sets = token_sets.draw(NUM_SETS, seed=2)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(64, token_sets.VOCAB)).astype(np.float32) * 2
    limits = rng.integers(1, token_sets.LONGEST + 3, NUM_SETS).astype(np.int32)
    starts = rng.integers(0, token_sets.VOCAB, (NUM_SETS, 3)).astype(np.int32)
    alphas = rng.uniform(-1, 2, NUM_SETS).astype(np.float32)
    return sets, weights, token_sets.stacked(sets), limits, starts, alphas


def search_allowed(allowed, *, num_beams, kind, mode):
    """Beams of three rows for each set."""
    _, weights, (make, tries), limits, starts, alphas = allowed
    prefix, lens = as_arrays(SET_PREFIXES)

    @jax.jit
    @jax.vmap
    def run(trie, limit, start, alpha):
        return beam_search(
            step_of(weights),
            jnp.zeros((3 * num_beams,), jnp.int32),
            num_beams=num_beams,
            penalty=PENALTIES[kind][0](alpha),
            early_stopping=mode,
            processors=LogitsProcessors(automaton=make(trie)),
            start_tokens=start,
            prefix=jnp.asarray(prefix),
            prefix_lens=jnp.asarray(lens),
            done=jnp.zeros(3, bool),
            max_new_tokens=limit,
            max_len=token_sets.LONGEST + 2,
            eos_id=EOS,
            pad_id=PAD,
        )

    found = Beams(*map(np.asarray, run(tries, limits, starts, alphas)))
    assert (found.failed == -1).all()
    return [Beams(*parts) for parts in zip(*found, strict=True)]


def penalty_of(kind, alpha):
    if kind == "power":
        return lambda n: float(n) ** float(alpha)
    return lambda n: ((5 + n) / 6) ** float(alpha)


@pytest.mark.parametrize("kind", ["power", "gnmt"])
def test_wide_search_ranks_all_of_a_set_that_fit(allowed, kind):
    """And returns nothing where none fits."""
    sets, weights, _, limits, starts, alphas = allowed
    log_probs, without = all_log_probs(weights), 0
    searches = search_allowed(allowed, num_beams=8, kind=kind, mode="never")
    for i, (sequences, found) in enumerate(zip(sets, searches, strict=True)):
        fitting, score = token_sets.fitting(sequences, limits[i]), penalty_of(kind, alphas[i])
        without += not fitting
        for row, prefix in enumerate(SET_PREFIXES):
            totals = {}
            for tokens in fitting:
                histories = [(starts[i, row], *prefix, *tokens[:n]) for n in range(len(tokens))]
                totals[tokens] = sum(
                    log_probs[recall(*history), token]
                    for history, token in zip(histories, tokens, strict=True)
                )
            ranked = sorted(fitting, key=lambda s, totals=totals: -totals[s] / score(len(s)))
            expected = [(s, totals[s], totals[s] / score(len(s))) for s in ranked]
            check_by_hand(found, row, expected, prefix)
    assert 100 < without < 500


@pytest.mark.parametrize(
    ("num_beams", "kind", "mode"),
    [(1, "power", "full"), (2, "gnmt", "heuristic")],
)
def test_narrow_search_of_a_set_is_what_its_definition_says(allowed, num_beams, kind, mode):
    sets, weights, _, limits, starts, alphas = allowed
    log_probs = all_log_probs(weights)
    searches = search_allowed(allowed, num_beams=num_beams, kind=kind, mode=mode)
    for i, (sequences, found) in enumerate(zip(sets, searches, strict=True)):
        fitting = token_sets.fitting(sequences, limits[i])

        def rule(log_probs, history, count, fitting=fitting):
            written = history[len(history) - count :]
            out = np.full_like(log_probs, -np.inf)
            tokens = token_sets.following(fitting, written)
            out[tokens] = log_probs[tokens]
            return out

        for row, prefix in enumerate(SET_PREFIXES):
            expected = by_hand(
                log_probs,
                starts[i, row],
                num_beams=num_beams,
                score=penalty_of(kind, alphas[i]),
                mode=mode,
                limit=int(limits[i]),
                prefix=prefix,
                rule=rule,
            )
            check_by_hand(found, row, expected, prefix)
            assert {e[0] for e in expected} <= set(fitting)


def test_search_never_returns_what_a_forced_token_makes_invalid(weights):
    """Rules that contradict one another leave nothing."""
    machine = trie([(3, 4)], eos_id=EOS, vocab_size=VOCAB)
    for first, last in ((EOS, EOS), (2, EOS), (3, 2), (3, EOS)):
        for limit in (1, 2, 3):
            processors = LogitsProcessors(
                automaton=machine,
                forced_bos_token_id=jnp.int32(first),
                forced_eos_token_id=jnp.int32(last),
            )
            found = run(weights, num_beams=2, processors=processors, limit=limit)
            expected = [((3, 4, EOS), Finish.EOS)] if (first, last, limit) == (3, EOS, 3) else []
            assert [sequences_of(found, row) for row in range(3)] == [expected] * 3
