"""Beam search against enumeration of all sequences of a model that remembers what it wrote."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.decode import beam

PAD, EOS, VOCAB, MAX_LEN = 0, 1, 5, 4
STARTS = (2, 3, 4)
PENALTIES = {
    "none": (beam.power_penalty, 0.0, lambda n: 1.0),
    "power": (beam.power_penalty, 1.0, lambda n: float(n)),
    "steep": (beam.power_penalty, 2.0, lambda n: float(n**2)),
    "reversed": (beam.power_penalty, -0.7, lambda n: float(n**-0.7)),
    "gnmt": (beam.gnmt_penalty, 0.6, lambda n: ((5 + n) / 6) ** 0.6),
}


@pytest.fixture(scope="module")
def weights():
    """Logits depend on a number that every token of the sequence changes."""
    return np.random.default_rng(3).normal(size=(64, VOCAB)).astype(np.float32) * 2


def remember(memory, token):
    return (memory * 7 + token + 1) % 64


def all_sequences(weights, start, limit):
    """Every sequence that ends with EOS, or at the limit, and its log-probability."""
    found = {}
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            if EOS in tokens[:-1] or (length < limit and tokens[-1] != EOS):
                continue
            memory, total = remember(0, start), 0.0
            for token in tokens:
                row = weights[memory].astype(np.float64)
                total += row[token] - np.log(np.exp(row).sum())
                memory = remember(memory, token)
            found[tokens] = total
    return found


@functools.partial(
    jax.jit, static_argnames=("num_beams", "kind", "early_stopping", "starts", "max_len")
)
def search(
    weights,
    limit,
    alpha,
    *,
    num_beams,
    kind,
    early_stopping="never",
    starts=STARTS,
    done=None,
    max_len=MAX_LEN,
):
    start = jnp.asarray(starts, jnp.int32)
    rows = len(starts) * num_beams

    def step(tokens, memory):
        memory = remember(memory, tokens)
        return jnp.asarray(weights)[memory], memory

    return beam.search(
        step,
        jnp.zeros((rows,), jnp.int32),
        num_beams=num_beams,
        penalty=PENALTIES[kind][0](alpha),
        early_stopping=early_stopping,
        start_tokens=start,
        done=jnp.zeros(len(starts), bool) if done is None else jnp.asarray(done),
        limit=limit,
        max_len=max_len,
        eos_id=EOS,
        pad_id=PAD,
    )


def run(weights, *, kind="power", limit=MAX_LEN, **options):
    alpha = jnp.float32(PENALTIES[kind][1])
    found = search(weights, jnp.int32(limit), alpha, kind=kind, **options)
    return beam.Beams(*map(np.asarray, found))


def content(tokens):
    """Up to and with EOS."""
    tokens = tokens.tolist()
    return tuple(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)


@pytest.mark.parametrize("limit", [1, 2, MAX_LEN])
@pytest.mark.parametrize("kind", PENALTIES)
def test_search_with_enough_beams_finds_the_best_of_all(weights, kind, limit):
    num_beams = 128  # more than there are open sequences
    found = run(weights, kind=kind, limit=limit, num_beams=num_beams)
    for row, start in enumerate(STARTS):
        exact = all_sequences(weights, start, limit)
        scores = {s: total / PENALTIES[kind][2](len(s)) for s, total in exact.items()}
        best = sorted(scores, key=lambda s, scores=scores: -scores[s])[:10]
        for k, expected in enumerate(best):
            assert content(found.tokens[row, k, :limit]) == expected
            assert found.tokens[row, k, len(expected) :].tolist() == [PAD] * (
                MAX_LEN - len(expected)
            )
            np.testing.assert_allclose(found.scores[row, k], scores[expected], rtol=1e-5)
            np.testing.assert_allclose(found.log_probs[row, k], exact[expected], rtol=1e-5)


def by_hand(weights, start, *, num_beams, score, mode, limit=MAX_LEN):
    """Beam search written with lists: the definition."""
    alive, ended = [((), 0.0, remember(0, start))], []
    for length in range(1, limit + 1):
        candidates = []
        for tokens, total, memory in alive:
            row = weights[memory].astype(np.float64)
            log_probs = row - np.log(np.exp(row).sum())
            for token in range(VOCAB):
                following = remember(memory, token)
                candidates.append(((*tokens, token), total + log_probs[token], following))
        candidates.sort(key=lambda c: -c[1])
        candidates = candidates[: 2 * num_beams]
        over = [c[0][-1] == EOS or length == limit for c in candidates]
        for candidate, is_over in list(zip(candidates, over, strict=True))[:num_beams]:
            if is_over:
                ended.append((candidate[0], candidate[1], candidate[1] / score(length)))
        ended = sorted(ended, key=lambda e: -e[2])[:num_beams]
        alive = [c for c, is_over in zip(candidates, over, strict=True) if not is_over][:num_beams]
        if len(ended) == num_beams:
            if mode == "full" or not alive:
                break
            reach = alive[0][1] / score(length)
            if mode == "never":
                reach = max(reach, alive[0][1] / score(limit))
            if ended[-1][2] >= reach:
                break
    return ended


@pytest.mark.parametrize("mode", ["full", "heuristic", "never"])
@pytest.mark.parametrize("num_beams", [1, 2, 3])
@pytest.mark.parametrize("kind", PENALTIES)
def test_search_is_what_its_definition_says(weights, kind, num_beams, mode):
    options = {"num_beams": num_beams, "early_stopping": mode, "max_len": 9, "limit": 9}
    found = run(weights, kind=kind, **options)
    for row, start in enumerate(STARTS):
        expected = by_hand(
            weights, start, num_beams=num_beams, score=PENALTIES[kind][2], mode=mode, limit=9
        )
        assert [content(tokens) for tokens in found.tokens[row]] == [e[0] for e in expected]
        np.testing.assert_allclose(found.scores[row], [e[2] for e in expected], rtol=1e-5)


def test_search_with_one_beam_is_greedy(weights):
    found = run(weights, num_beams=1, limit=9, max_len=9, early_stopping="full")
    for row, start in enumerate(STARTS):
        memory, expected = remember(0, start), []
        while len(expected) < 9 and (not expected or expected[-1] != EOS):
            expected.append(int(weights[memory].argmax()))
            memory = remember(memory, expected[-1])
        assert content(found.tokens[row, 0]) == tuple(expected)


def test_search_of_a_row_does_not_depend_on_the_others(weights):
    together = run(weights, num_beams=3, limit=9, max_len=9, early_stopping="heuristic")
    for row, start in enumerate(STARTS):
        alone = run(
            weights, num_beams=3, limit=9, max_len=9, early_stopping="heuristic", starts=(start,)
        )
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(together.scores[row], alone.scores[0])


def test_search_leaves_done_rows_out(weights):
    found = run(weights, num_beams=3, done=(False, True, False))
    expected = run(weights, num_beams=3)
    assert found.tokens[1].tolist() == [[PAD] * MAX_LEN] * 3
    assert (found.scores[1] == -np.inf).all()
    np.testing.assert_array_equal(found.tokens[[0, 2]], expected.tokens[[0, 2]])


def test_search_with_more_beams_than_sequences_marks_the_rest(weights):
    found = run(weights, num_beams=8, limit=1)  # five sequences of one token
    assert (found.scores[:, :5] > -np.inf).all()
    assert (found.scores[:, 5:] == -np.inf).all()
