"""The token loop over a hand-made Markov chain: the next logits depend on the last token alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from t5jax.decode import choose, loop

V, MAX_LEN = 7, 9
EOS, PAD = 1, 6
START = (0, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def table():
    """[V, V] logits of the next token, by the last one.  Greedily 0 2 EOS, 3 4 5 3 4 5 ..."""
    logits = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
    for last, following in {0: 2, 2: EOS, 3: 4, 4: 5, 5: 3, EOS: 0, PAD: 0}.items():
        logits[last, following] = 9
    return logits


def walk(table, start, limit):
    """The greedy path of one row, padded to MAX_LEN."""
    path, last = [], start
    while len(path) < limit and last != EOS:
        last = int(table[last].argmax())
        path.append(last)
    return path + [PAD] * (MAX_LEN - len(path))


def decode(table, start, *, chooser=choose.greedy, done=None, limit=MAX_LEN, calls=None):
    """`calls` is a list that gets an entry every time the model is run."""
    start = jnp.asarray(start, jnp.int32)

    def step(tokens, cache):
        if calls is not None:
            jax.debug.callback(lambda count: calls.append(int(count)), cache["count"])
        logits = jnp.asarray(table)[tokens] + jnp.zeros_like(cache["rows"])[:, None]
        return logits, {"count": cache["count"] + 1, "rows": cache["rows"]}

    tokens = loop.decode(
        step,
        {"count": jnp.int32(0), "rows": jnp.zeros(start.shape)},
        choose=chooser,
        start_tokens=start,
        done=jnp.zeros(start.shape, bool) if done is None else jnp.asarray(done),
        limit=jnp.asarray(limit, jnp.int32),
        max_len=MAX_LEN,
        eos_id=EOS,
        pad_id=PAD,
    )
    jax.effects_barrier()
    return np.asarray(tokens)


def test_decode_greedy_walks_each_row_until_its_eos(table):
    found = decode(table, START)
    assert found.dtype == np.int32
    assert found.tolist() == [walk(table, start, MAX_LEN) for start in START]
    # As drawn: rows that end at once, after two tokens, and not at all.
    assert found[0].tolist() == [2, EOS] + [PAD] * 7
    assert found[1].tolist() == [EOS] + [PAD] * 8
    assert found[2].tolist() == [4, 5, 3] * 3


def test_decode_takes_limit_as_traced_value(table):
    compiled = jax.jit(lambda limit: decode_traced(table, limit))

    def decode_traced(table, limit):
        return loop.decode(
            lambda tokens, cache: (jnp.asarray(table)[tokens], cache),
            (),
            choose=choose.greedy,
            start_tokens=jnp.asarray(START, jnp.int32),
            done=jnp.zeros(len(START), bool),
            limit=limit,
            max_len=MAX_LEN,
            eos_id=EOS,
            pad_id=PAD,
        )

    for limit in (0, 1, 4, MAX_LEN):
        found = np.asarray(compiled(jnp.int32(limit)))
        assert found.tolist() == [walk(table, start, limit) for start in START]
    assert compiled._cache_size() == 1


def test_decode_stops_when_the_last_row_has_ended(table):
    calls = []
    decode(table, (0, 2), calls=calls)
    assert sorted(calls) == [0, 1]


def test_decode_stops_at_limit(table):
    calls = []
    decode(table, (0, 3), limit=5, calls=calls)
    assert sorted(calls) == [0, 1, 2, 3, 4]


def test_decode_leaves_done_rows_out_and_does_not_wait_for_them(table):
    calls = []
    found = decode(table, (0, 3, 2), done=[False, True, False], calls=calls)
    assert found.tolist() == [walk(table, 0, 9), [PAD] * 9, walk(table, 2, 9)]
    assert sorted(calls) == [0, 1]


def test_decode_of_done_rows_alone_runs_nothing(table):
    calls = []
    assert decode(table, (3, 3), done=[True, True], calls=calls).tolist() == [[PAD] * 9] * 2
    assert calls == []


def test_decode_tells_choose_the_position(table):
    def position(logits, position):
        return jnp.full(logits.shape[:1], position + 10)

    assert decode(table, (3, 4), chooser=position).tolist() == [list(range(10, 19))] * 2


def test_decode_feeds_pad_to_rows_that_have_ended(table):
    seen = []

    def spy(logits, position):
        jax.debug.callback(lambda x: seen.append(x), logits, ordered=True)
        return choose.greedy(logits, position)

    decode(table, (2, 3), chooser=spy, limit=3)
    # Row 0 ends with its first token; from then on the model reads PAD after EOS.
    np.testing.assert_array_equal([x[0] for x in seen], table[[2, EOS, PAD]])
    np.testing.assert_array_equal([x[1] for x in seen], table[[3, 4, 5]])


@functools.partial(jax.jit, static_argnames="limit")
def sampled(table, start, seeds, limit=MAX_LEN):
    keys = jax.vmap(jax.random.key)(seeds)
    return loop.decode(
        lambda tokens, cache: (table[tokens], cache),
        (),
        choose=choose.sampler(keys, temperature=jnp.float32(3.0)),
        start_tokens=start,
        done=jnp.zeros(start.shape, bool),
        limit=jnp.int32(limit),
        max_len=MAX_LEN,
        eos_id=EOS,
        pad_id=PAD,
    )


def test_decode_samples_of_a_row_do_not_depend_on_its_neighbours(table):
    table = jnp.asarray(table)
    together = sampled(table, jnp.array([0, 3, 4, 3]), jnp.array([10, 11, 12, 11]))
    among_others = sampled(table, jnp.array([5, 3, 2, 2]), jnp.array([20, 11, 21, 22]))
    alone = sampled(table, jnp.array([3]), jnp.array([11]))
    np.testing.assert_array_equal(together[1], alone[0])
    np.testing.assert_array_equal(together[3], alone[0])
    np.testing.assert_array_equal(among_others[1], alone[0])
    others = sampled(table, jnp.array([3] * 20), jnp.arange(20))
    assert len({row.tobytes() for row in np.asarray(others)}) > 10


def test_decode_samples_follow_the_chain(table):
    """Pairs of first and second token against the product of two softmaxes."""
    rows = 20_000
    probabilities = np.exp(table.astype(np.float64) / 3)
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = probabilities[3][:, None] * probabilities
    expected[EOS] = 0
    expected[EOS, PAD] = probabilities[3, EOS]
    pairs = sampled(jnp.asarray(table), jnp.full(rows, 3), jnp.arange(rows), limit=2)
    found = np.zeros((V, V))
    np.add.at(found, tuple(np.asarray(pairs)[:, :2].T), 1)
    assert not found[expected == 0].any()
    possible = expected > 0
    counts, means = found[possible], rows * expected[possible]
    assert means.min() > 5
    # The seeds are fixed; a fair draw passes but one time in a million.
    limit = scipy.stats.chi2.ppf(1 - 1e-6, len(means) - 1)
    assert ((counts - means) ** 2 / means).sum() < limit
