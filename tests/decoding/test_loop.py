"""The token loop over a hand-made Markov chain: the next logits depend on the last token alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import token_sets

from t5jax.decoding import trie
from t5jax.decoding.automaton_builders import from_edges, matcher
from t5jax.decoding.logits_processors import LogitsProcessors
from t5jax.decoding.loop import Finish, decode_loop, greedy, init_loop
from t5jax.decoding.sampling import sampler

V, MAX_LEN = 7, 9
EOS, PAD = 1, 6
START = (0, 2, 3, 4, 5)
NO_PREFIX = ((), (), (), (), ())
GREEDY_AFTER = {0: 2, 2: EOS, 3: 4, 4: 5, 5: 3, EOS: 0, PAD: 0}


@pytest.fixture(scope="module")
def table():
    """[V, V] logits of the next token, by the last one.  Greedily 0 2 EOS, 3 4 5 3 4 5 ..."""
    logits = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
    for last, following in GREEDY_AFTER.items():
        logits[last, following] = 9
    return logits


def walk(start, prefix=(), *, limit=MAX_LEN):
    """The greedy path of one row behind the start token, with its prefix; no padding."""
    path, last = [], (start, *prefix)[-1]
    while len(path) < limit and (not path or last != EOS):
        last = GREEDY_AFTER[last]
        path.append(last)
    return [*prefix, *path]


def padded(rows, width):
    return [[*row, *[PAD] * (width - len(row))] for row in rows]


def step_of(table):
    """Also counts how often it was called."""

    def step(tokens, count):
        return jnp.asarray(table)[tokens], count + 1

    return step


@jax.jit
def _begin(start, prefix, done):
    return init_loop(
        jnp.int32(0), start_tokens=start, prefix=prefix, done=done, max_len=MAX_LEN, pad_id=PAD
    )


@functools.partial(jax.jit, static_argnames="chooser")
def _decode(table, state, prefix_lens, processors, limit, most, chooser):
    return decode_loop(
        step_of(table),
        state,
        sample_fn=chooser,
        processors=processors,
        prefix_lens=prefix_lens,
        max_new_tokens=limit,
        max_steps=most,
        eos_id=EOS,
        pad_id=PAD,
    )


def as_arrays(prefixes):
    width = max(map(len, prefixes))
    prefix = np.array(padded(prefixes, width), np.int32).reshape(len(prefixes), width)
    return prefix, np.array([len(row) for row in prefixes], np.int32)


def begin(start, prefixes=None, *, done=None):
    prefix, lens = as_arrays(prefixes or [()] * len(start))
    done = np.zeros(len(start), bool) if done is None else np.array(done)
    return _begin(np.array(start, np.int32), prefix, done), lens


def decode(
    table,
    start,
    prefixes=None,
    *,
    chooser=greedy,
    done=None,
    limit=MAX_LEN,
    processors=None,
):
    """The state at the end, in numpy."""
    state, lens = begin(start, prefixes, done=done)
    state = _decode(
        table,
        state,
        lens,
        processors or LogitsProcessors(),
        np.int32(limit),
        np.int32(99),
        chooser=chooser,
    )
    return jax.tree.map(np.asarray, state)


def behind_start(state):
    """What every row has written, its prefix included, and nothing but padding behind it."""
    rows = state.sequences[:, 1:].tolist()
    for row, length in zip(rows, state.lengths, strict=True):
        assert row[length:] == [PAD] * (len(row) - length)
    return [row[:length] for row, length in zip(rows, state.lengths, strict=True)]


def test_decode_greedy_walks_each_row_until_its_eos(table):
    found = decode(table, START)
    assert found.sequences.dtype == np.int32
    assert found.sequences[:, 0].tolist() == list(START)
    assert behind_start(found) == [walk(start) for start in START]
    # As drawn: rows that end at once, after two tokens, and not at all.
    assert found.sequences[0, 1:].tolist() == [2, EOS] + [PAD] * 7
    assert found.sequences[1, 1:].tolist() == [EOS] + [PAD] * 8
    assert found.sequences[2, 1:].tolist() == [4, 5, 3] * 3
    assert found.lengths.tolist() == [2, 1, 9, 9, 9]
    assert found.finish.tolist() == [
        Finish.EOS,
        Finish.EOS,
        Finish.LIMIT,
        Finish.LIMIT,
        Finish.LIMIT,
    ]
    assert found.failed == -1


def test_decode_takes_limit_as_traced_value(table):
    before = _decode._cache_size()
    for limit in (1, 2, 4, MAX_LEN):
        found = decode(table, START, limit=limit)
        assert behind_start(found) == [walk(start, limit=limit) for start in START]
    assert _decode._cache_size() - before <= 1


def test_decode_names_eos_at_the_limit_eos(table):
    assert decode(table, (0, 3), limit=2).finish.tolist() == [Finish.EOS, Finish.LIMIT]


def test_decode_stops_when_the_last_row_has_ended(table):
    assert decode(table, (0, 2)).cache == 2


def test_decode_stops_at_limit(table):
    assert decode(table, (0, 3), limit=5).cache == 5


def test_decode_leaves_done_rows_out_and_does_not_wait_for_them(table):
    found = decode(table, (0, 3, 2), done=[False, True, False])
    assert behind_start(found) == [walk(0), [], walk(2)]
    assert found.cache == 2


def test_decode_of_done_rows_alone_runs_nothing(table):
    found = decode(table, (3, 3), done=[True, True])
    assert behind_start(found) == [[], []]
    assert found.cache == 0


def test_decode_tells_choose_the_position(table):
    def position(logits, position):
        return jnp.full(logits.shape[:1], position % 5 + 2)

    found = decode(table, (3, 4), chooser=position)
    assert behind_start(found) == [[p % 5 + 2 for p in range(MAX_LEN)]] * 2


def test_decode_feeds_pad_to_rows_that_have_ended(table):
    seen = []

    def spy(logits, position):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), logits, ordered=True)
        return greedy(logits, position)

    decode(table, (2, 3), chooser=spy, limit=3)
    jax.effects_barrier()
    # Row 0 ends with its first token; from then on the model reads PAD after EOS.
    np.testing.assert_array_equal([x[0] for x in seen], table[[2, EOS, PAD]])
    np.testing.assert_array_equal([x[1] for x in seen], table[[3, 4, 5]])


# Prefixes.

PREFIXES = ((3, 3, EOS, 4), (), (0,), (5, 2, 5), (EOS, PAD, 0))


@pytest.mark.parametrize("limit", [1, 3, MAX_LEN])
def test_decode_writes_behind_prefixes_of_unequal_lengths(table, limit):
    """They count in no limit, EOS within one ends nothing, and all of it is in `lengths`."""
    found = decode(table, START, PREFIXES, limit=limit)
    expected = [walk(*pair, limit=limit) for pair in zip(START, PREFIXES, strict=True)]
    assert found.sequences.shape == (5, 1 + 4 + MAX_LEN)
    assert behind_start(found) == expected
    ended = [row[-1] == EOS for row in expected]
    assert any(ended)
    assert not all(ended)
    assert found.finish.tolist() == [Finish.EOS if end else Finish.LIMIT for end in ended]


def test_decode_with_a_prefix_is_that_of_the_row_alone(table):
    together = decode(table, START, PREFIXES)
    for row, start in enumerate(START):
        alone = decode(table, [start], [PREFIXES[row]])
        assert behind_start(alone) == [behind_start(together)[row]]
        assert alone.finish[0] == together.finish[row]
        assert alone.lengths[0] == together.lengths[row]


def test_decode_reads_every_token_of_a_prefix(table):
    """The sum of what the model has read, as its cache holds it; rows that go on are compared."""
    prefixes = [(3, 3, 5), (), (0, 4)]

    def step(tokens, total):
        logits = jnp.full((3, V), -1.0).at[:, 3].set(1.0)
        return logits, total + 10 ** jnp.minimum(tokens, 5)

    prefix, lens = as_arrays(prefixes)
    state = init_loop(
        jnp.zeros(3, jnp.int32),
        start_tokens=jnp.array([2, 2, 2]),
        prefix=jnp.asarray(prefix),
        done=jnp.zeros(3, bool),
        max_len=4,
        pad_id=PAD,
    )
    state = decode_loop(
        step,
        state,
        sample_fn=greedy,
        processors=LogitsProcessors(),
        prefix_lens=jnp.asarray(lens),
        max_new_tokens=jnp.int32(4),
        max_steps=4,
        eos_id=EOS,
        pad_id=PAD,
    )
    # Four tokens were fed: the start token, the prefix, and threes for the rest.
    fed = [[2, *prefix, 3, 3, 3][:4] for prefix in prefixes]
    assert state.cache.tolist() == [sum(10**token for token in row) for row in fed]


@pytest.mark.parametrize("most", [1, 2, 4])
def test_decode_goes_on_where_it_stopped(table, most):
    whole = decode(table, START, PREFIXES, limit=5)
    state, lens = begin(START, PREFIXES)
    for call in range(1, 20):
        before = state
        state = _decode(
            table, state, lens, LogitsProcessors(), np.int32(5), np.int32(most), chooser=greedy
        )
        assert state.position == min(most * call, whole.position)
        # What was written stays.
        np.testing.assert_array_equal(
            state.sequences[:, : before.position + 1], before.sequences[:, : before.position + 1]
        )
    jax.tree.map(np.testing.assert_array_equal, state, whole)


# What is not finite.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_decode_reports_the_first_position_of_logits_that_are_not_finite(table, bad):
    broken = table.copy()
    broken[5] = bad  # all of them: -inf alone is a token ruled out, and no damage
    assert decode(broken, (3, 0)).failed == 2  # 3 4 5
    assert decode(broken, (0, 5, 3)).failed == 0
    assert decode(broken, (0, 2)).failed == -1
    # The model reads a prefix too.
    assert decode(broken, (3, 3), [(), (2, 5, 2)]).failed == 2
    assert decode(broken, (3, 3), [(), (5,)]).failed == 1


def test_decode_reports_one_token_that_is_not_a_number(table):
    broken = table.copy()
    broken[5, 2] = np.nan
    assert decode(broken, (0, 3)).failed == 2
    # But a model may rule out a token of its own.
    broken[5, 2] = -np.inf
    assert decode(broken, (0, 3)).failed == -1


def test_decode_stops_where_logits_are_not_finite(table):
    broken = table.copy()
    broken[5] = np.nan
    assert decode(broken, (3, 3)).cache == 3


def test_decode_does_not_mind_what_ended_rows_read(table):
    broken = table.copy()
    broken[[EOS, PAD]] = np.nan
    found = decode(broken, (0, 3, 2), done=[False, False, True])
    assert found.failed == -1
    assert behind_start(found) == [walk(0), walk(3), []]
    broken[4] = np.inf
    assert decode(broken, (0, 4), done=[False, True]).failed == -1


# Ends of other kinds.


def test_decode_ends_in_a_dead_end_where_nothing_may_be_written(table):
    all_but_three = np.arange(V) != 3
    processors = LogitsProcessors(
        suppress_tokens=jnp.asarray(all_but_three), no_repeat_ngram_size=2
    )
    # 3 3, and a third 3 would repeat that; with the start token it repeats at once.
    found = decode(table, (0, 3, 0), [(), (3,), (4, 5)], processors=processors)
    assert found.finish.tolist() == [Finish.DEAD_END] * 3
    assert behind_start(found) == [[3, 3], [3], [4, 5, 3, 3]]


def test_decode_of_other_rows_goes_on_past_a_dead_end(table):
    processors = LogitsProcessors(no_repeat_ngram_size=1)
    # No token twice: seven tokens, one of them fed first.
    found = decode(table, START, processors=processors)
    # EOS has ended two; the others are out of tokens, at the latest.
    for start, row, finish in zip(START, behind_start(found), found.finish, strict=True):
        assert len({start, *row}) == 1 + len(row)
        assert finish == (Finish.EOS if row[-1] == EOS else Finish.DEAD_END)
    assert behind_start(found)[0] == [2, EOS]
    no_end = LogitsProcessors(no_repeat_ngram_size=1, suppress_tokens=jnp.arange(V) == EOS)
    found = decode(table, (0, 3), processors=no_end)
    assert found.finish.tolist() == [Finish.DEAD_END] * 2
    assert found.lengths.tolist() == [5, 5]


PIECES = [b"", b"", b"ab", b"c", b" d", b"e", b""]  # of tokens 0 to 6
STRINGS = ["b", "abab", "ec", "c d", "ce", "cc d", "c de c d", "abx"]


@pytest.mark.parametrize("string", STRINGS)
@pytest.mark.parametrize("prefixes", [NO_PREFIX, PREFIXES], ids=["bare", "prefix"])
def test_decode_stops_at_a_stop_string(table, string, prefixes):
    """It is looked for in what is written, not in the prefix."""
    stop = matcher([string.encode()], PIECES, vocab_size=V)
    found = decode(table, START, prefixes, processors=LogitsProcessors(stop_automaton=stop))
    rows, finish = [], []
    for start, prefix in zip(START, prefixes, strict=True):
        whole, end = walk(start, prefix), len(prefix)
        while end < len(whole):
            end += 1
            text = b"".join(PIECES[token] for token in whole[len(prefix) : end]).decode()
            if whole[end - 1] == EOS or string in text:
                break
        rows.append(whole[:end])
        last = Finish.EOS if whole[end - 1] == EOS else Finish.LIMIT
        finish.append(Finish.STOP if string in text else last)
    assert behind_start(found) == rows
    assert found.finish.tolist() == finish


def test_decode_ends_where_an_automaton_does(table):
    """Without EOS: at the second 5, however long the way to it is."""
    others = {token: 0 for token in range(V) if token not in (EOS, 5)}
    edges = {0: {**others, 5: 1}, 1: {**dict.fromkeys(others, 1), 5: 2}}
    twice = from_edges(edges, vocab_size=V, ends=[2])
    found = decode(table, (3, 4, 5), ((), (), (5,)), processors=LogitsProcessors(automaton=twice))
    assert behind_start(found) == [[4, 5, 3, 4, 5], [5, 3, 4, 5], [5, 3, 4, 5, 3, 4, 5]]
    assert found.finish.tolist() == [Finish.STOP] * 3


def test_decode_does_not_end_in_its_prefix(table):
    """Where the automaton's start is an end already, one token is written."""
    start_is_end = from_edges(
        {0: {**dict.fromkeys(range(2, V), 0), EOS: 1}}, vocab_size=V, ends=[0, 1]
    )
    found = decode(table, (3, 3), ((), (4, 5)), processors=LogitsProcessors(automaton=start_is_end))
    assert behind_start(found) == [[4], [4, 5, 3]]
    assert found.finish.tolist() == [Finish.STOP] * 2


def test_decode_names_a_stop_string_at_the_limit_stop(table):
    stop = matcher([b"e"], PIECES, vocab_size=V)
    found = decode(table, (3, 4), processors=LogitsProcessors(stop_automaton=stop), limit=2)
    assert found.finish.tolist() == [Finish.STOP, Finish.STOP]
    assert behind_start(found) == [[4, 5], [5]]


# One of a set of sequences.

NUM_SETS = 1000
# Of three rows for each set.
SET_PREFIXES = ((), (3, 0), (4,))


def remember(memory, token):
    return (memory * 7 + token + 1) % 64


def write_allowed(weights, tries, limits, starts, *, seeds=None):
    """Written, lengths and finish, [sets, 3, ...], by a model that remembers all it has read."""
    make, tries = tries
    prefix, lens = as_arrays(SET_PREFIXES)
    prefix = np.where(np.arange(prefix.shape[1]) < lens[:, None], prefix, token_sets.PAD)

    def step(tokens, memory):
        memory = remember(memory, tokens)
        return jnp.asarray(weights)[memory], memory

    @jax.jit
    @jax.vmap
    def run(trie, limit, start_tokens, seeds):
        trie = make(trie)
        chooser = greedy
        if seeds is not None:
            keys = jax.vmap(jax.random.key)(seeds)
            chooser = sampler(keys, temperature=jnp.float32(2.0))
        state = init_loop(
            jnp.zeros_like(start_tokens),
            start_tokens=start_tokens,
            prefix=jnp.asarray(prefix, jnp.int32),
            done=jnp.zeros(start_tokens.shape, bool),
            max_len=token_sets.LONGEST + 2,
            pad_id=token_sets.PAD,
        )
        state = decode_loop(
            step,
            state,
            sample_fn=chooser,
            processors=LogitsProcessors(automaton=trie),
            prefix_lens=jnp.asarray(lens),
            max_new_tokens=limit,
            max_steps=99,
            eos_id=token_sets.EOS,
            pad_id=token_sets.PAD,
        )
        return state.sequences, state.lengths, state.finish

    return map(np.asarray, run(tries, limits, starts, seeds))


@pytest.fixture(scope="module")
def allowed():
    sets = token_sets.draw(NUM_SETS, seed=0)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(64, token_sets.VOCAB)).astype(np.float32) * 2
    limits = rng.integers(1, token_sets.LONGEST + 3, NUM_SETS).astype(np.int32)
    starts = rng.integers(0, token_sets.VOCAB, (NUM_SETS, 3)).astype(np.int32)
    return sets, weights, token_sets.stacked(sets), limits, starts


def test_decode_greedy_writes_the_likeliest_token_that_leads_to_one_of_a_set(allowed):
    sets, weights, tries, limits, starts = allowed
    written, lengths, finish = write_allowed(weights, tries, limits, starts)
    ends = {Finish.EOS: 0, Finish.DEAD_END: 0}
    for i, sequences in enumerate(sets):
        fitting = token_sets.fitting(sequences, limits[i])
        for row, prefix in enumerate(SET_PREFIXES):
            memory = 0
            for token in (starts[i, row], *prefix):
                memory = remember(memory, int(token))
            expected = []
            while tokens := token_sets.following(fitting, expected):
                expected.append(max(tokens, key=lambda token: weights[memory, token]))
                memory = remember(memory, expected[-1])
            found = written[i, row, 1 : 1 + lengths[i, row]].tolist()
            assert found == [*prefix, *expected]
            assert finish[i, row] == (Finish.EOS if fitting else Finish.DEAD_END)
            ends[int(finish[i, row])] += 1
    assert min(ends.values()) > 300


def test_decode_draws_nothing_but_one_of_a_set(allowed):
    sets, weights, tries, limits, starts = allowed
    seeds = np.arange(NUM_SETS * 3, dtype=np.int32).reshape(NUM_SETS, 3)
    written, lengths, finish = write_allowed(weights, tries, limits, starts, seeds=seeds)
    seen = set()
    for i, sequences in enumerate(sets):
        fitting = token_sets.fitting(sequences, limits[i])
        for row, prefix in enumerate(SET_PREFIXES):
            found = tuple(written[i, row, 1 + len(prefix) : 1 + lengths[i, row]].tolist())
            assert found in (fitting or [()])
            assert finish[i, row] == (Finish.EOS if fitting else Finish.DEAD_END)
            seen.add((i, found))
    possible = sum(len(token_sets.fitting(s, n)) for s, n in zip(sets, limits, strict=True))
    assert len(seen) > possible / 2


def test_decode_never_writes_what_a_forced_token_makes_invalid(table):
    """Rules that contradict one another leave nothing."""
    machine = trie([(3, 4)], eos_id=EOS, vocab_size=V)
    for first, last in ((EOS, EOS), (5, EOS), (3, 2), (3, EOS)):
        for limit in (1, 2, 3):
            processors = LogitsProcessors(
                automaton=machine,
                forced_bos_token_id=jnp.int32(first),
                forced_eos_token_id=jnp.int32(last),
            )
            found = decode(table, (0, 3), processors=processors, limit=limit)
            fulfilled = (first, last, limit) == (3, EOS, 3)
            assert found.finish.tolist() == [Finish.EOS if fulfilled else Finish.DEAD_END] * 2
            if fulfilled:
                assert behind_start(found) == [[3, 4, EOS]] * 2


# Draws.


@functools.partial(jax.jit, static_argnames="limit")
def sampled(table, start, seeds, prefix, prefix_lens, limit=MAX_LEN):
    """What stands behind the start tokens."""
    keys = jax.vmap(jax.random.key)(seeds)
    state = init_loop(
        jnp.int32(0),
        start_tokens=start,
        prefix=prefix,
        done=jnp.zeros(start.shape, bool),
        max_len=limit,
        pad_id=PAD,
    )
    state = decode_loop(
        step_of(table),
        state,
        sample_fn=sampler(keys, temperature=jnp.float32(3.0)),
        processors=LogitsProcessors(),
        prefix_lens=prefix_lens,
        max_new_tokens=jnp.int32(limit),
        max_steps=99,
        eos_id=EOS,
        pad_id=PAD,
    )
    return state.sequences[:, 1:]


def draw(table, start, seeds, prefixes=None, **options):
    prefix, lens = as_arrays(prefixes or [()] * len(start))
    seeds = np.asarray(seeds, np.int32)
    return np.asarray(sampled(table, np.asarray(start, np.int32), seeds, prefix, lens, **options))


def test_decode_samples_of_a_row_do_not_depend_on_its_neighbours(table):
    together = draw(table, [0, 3, 4, 3], [10, 11, 12, 11])
    among_others = draw(table, [5, 3, 2, 2], [20, 11, 21, 22])
    alone = draw(table, [3], [11])
    np.testing.assert_array_equal(together[1], alone[0])
    np.testing.assert_array_equal(together[3], alone[0])
    np.testing.assert_array_equal(among_others[1], alone[0])
    others = draw(table, [3] * 20, range(20))
    assert len({row.tobytes() for row in others}) > 10


def test_decode_samples_of_a_row_do_not_depend_on_its_neighbours_prefixes(table):
    prefixes = [(), (4, 2), (0, 0, 0, 5)]
    together = draw(table, [3, 3, 3], [11, 12, 13], prefixes)
    for row, prefix in enumerate(prefixes):
        alone = draw(table, [3], [11 + row], [prefix])[0].tolist()
        assert alone[: len(prefix)] == list(prefix)
        assert together[row].tolist() == [*alone, *[PAD] * (4 - len(prefix))]


def test_decode_samples_follow_the_chain(table):
    """Pairs of first and second token against the product of two softmaxes."""
    rows = 20_000
    probabilities = np.exp(table.astype(np.float64) / 3)
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = probabilities[3][:, None] * probabilities
    expected[EOS] = 0
    expected[EOS, PAD] = probabilities[3, EOS]
    pairs = draw(table, np.full(rows, 3), np.arange(rows), limit=2)
    found = np.zeros((V, V))
    np.add.at(found, tuple(pairs.T), 1)
    assert not found[expected == 0].any()
    possible = expected > 0
    counts, means = found[possible], rows * expected[possible]
    assert means.min() > 5
    # The seeds are fixed; a fair draw passes but one time in a million.
    limit = scipy.stats.chi2.ppf(1 - 1e-6, len(means) - 1)
    assert ((counts - means) ** 2 / means).sum() < limit
