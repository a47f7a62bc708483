"""Oracles: lists of sequences, dictionaries of edges, and Python's own `in`."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.decoding.automaton import UNREACHABLE, advance_states, allowed_tokens, next_states
from t5jax.decoding.automaton_builders import check_automaton, from_edges, matcher, trie
from t5jax.tokenizers.sentencepiece import SentencePieceTokenizer

EOS = 1
VOCAB = 11
WIDE = 1009  # so that states can have more exceptions than are kept sparse
BATCH = 32

following = jax.jit(next_states)
allowed = jax.jit(allowed_tokens)
advance = jax.jit(advance_states)


def int32(values):
    return jnp.asarray(values, jnp.int32)


def run(machine, rows, start=0):
    """States behind rows of tokens, at most BATCH rows of any lengths."""
    states = np.full(BATCH, start, np.int32)
    for index in range(max(map(len, rows), default=0)):
        tokens = [row[index] if index < len(row) else 0 for row in rows]
        tokens += [0] * (BATCH - len(rows))
        nexts = np.asarray(advance(machine, int32(states), int32(tokens)))
        goes_on = np.array([index < len(row) for row in rows] + [False] * (BATCH - len(rows)))
        states = np.where(goes_on, nexts, states)
    return states[: len(rows)]


def choices(machine, states, remaining):
    """The allowed tokens of each state, as sets."""
    padded = [*states] + [-1] * (BATCH - len(states))
    limits = np.broadcast_to(remaining, len(states)).tolist() + [9] * (BATCH - len(states))
    found = np.asarray(allowed(machine, int32(padded), int32(limits)))
    assert not found[len(states) :].any()
    return [set(np.flatnonzero(row).tolist()) for row in found[: len(states)]]


def check_edges(machine, edges, vocab_size):
    """Every step, against a dictionary of edges between the same states."""
    check_automaton(machine, vocab_size)
    expected = np.full((len(edges) + 1, vocab_size), -1)
    for state, row in edges.items():
        expected[state, list(row)] = list(row.values())
    states = [*range(len(edges)), -1]  # the last row stays without edges
    np.testing.assert_array_equal(following(machine, int32(states)), expected)
    tokens = np.tile(np.arange(vocab_size), (len(states), 1))
    flat = int32(np.repeat(states, vocab_size)), int32(tokens.reshape(-1))
    np.testing.assert_array_equal(advance(machine, *flat), expected.reshape(-1))


# Tries.


def random_sequences(rng):
    letters = rng.sample([0, *range(2, VOCAB)], rng.choice([1, 2, 3]))
    return [rng.choices(letters, k=rng.randrange(5)) for _ in range(rng.randrange(1, 8))]


def expected_choices(sequences, prefix, remaining):
    whole = [[*sequence, EOS] for sequence in sequences]
    fits = [s for s in whole if s[: len(prefix)] == prefix and len(s) <= len(prefix) + remaining]
    return {s[len(prefix)] for s in fits if len(s) > len(prefix)}


@pytest.mark.parametrize("seed", range(4))
def test_trie_allows_what_can_still_become_a_sequence_within_the_limit(seed):
    rng = random.Random(seed)
    for _ in range(50):
        sequences = random_sequences(rng)
        machine = trie(sequences, eos_id=EOS, vocab_size=VOCAB)
        check_automaton(machine, VOCAB)
        prefixes = [s[:n] for s in sequences for n in range(len(s) + 1)][: BATCH - 4]
        prefixes += [rng.choices(range(VOCAB), k=rng.randrange(4)) for _ in range(4)]
        states = run(machine, prefixes)
        for remaining in (0, 1, 3, 9):
            found = choices(machine, states, remaining)
            assert found == [expected_choices(sequences, p, remaining) for p in prefixes]


@pytest.mark.parametrize("seed", range(2))
def test_trie_ends_every_walk_within_the_limit_in_a_whole_sequence(seed):
    rng = random.Random(seed)
    for _ in range(25):
        sequences = random_sequences(rng)
        machine = trie(sequences, eos_id=EOS, vocab_size=VOCAB)
        distance, ends = np.asarray(machine.distance), np.asarray(machine.ends)
        limits = [int(distance[0]) + rng.randrange(4) for _ in range(5)]
        rows, states = [[] for _ in limits], np.zeros(5, np.int32)
        for step in range(max(limits)):
            found = choices(machine, states, [limit - step for limit in limits])
            for row, state, tokens in zip(rows, states, found, strict=True):
                assert bool(tokens) != bool(ends[state])
                row += [rng.choice(sorted(tokens))] if tokens else []
            states = run(machine, rows)
        assert ends[states].all()
        assert all(row.pop() == EOS and row in sequences for row in rows)


def test_trie_distance_counts_eos():
    machine = trie([[3, 4, 5], [3], [6, 7]], eos_id=EOS, vocab_size=VOCAB)
    states = run(machine, [[], [3], [3, 4], [6], [3, EOS], [6, 7, EOS]])
    assert np.asarray(machine.distance)[states].tolist() == [2, 1, 2, 2, 0, 0]
    assert np.asarray(machine.ends)[states].tolist() == [False] * 4 + [True] * 2


def test_trie_of_the_empty_sequence_allows_eos_at_once():
    machine = trie([[]], eos_id=EOS, vocab_size=VOCAB)
    assert choices(machine, [0], 1) == [{EOS}]
    assert choices(machine, [0], 0) == [set()]
    assert bool(machine.ends[run(machine, [[EOS]])[0]])


def test_trie_of_repeated_sequences_is_that_of_each_once(own_checks):
    once = trie([[3, 4], [5]], eos_id=EOS, vocab_size=VOCAB)
    twice = trie([(3, 4), np.array([5]), [3, 4], [5]], eos_id=EOS, vocab_size=VOCAB)
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_trie_of_other_sequences_of_similar_size_shares_the_program():
    shapes = set()
    for count in (9, 10, 11):
        sequences = [[2 + i % 3, 2 + i // 3] for i in range(count)]
        machine = trie(sequences, eos_id=EOS, vocab_size=VOCAB)
        leaves, structure = jax.tree.flatten(machine)
        shapes.add((structure, *(leaf.shape for leaf in leaves)))
    assert len(shapes) == 1


def test_trie_with_wide_branches_gives_them_rows_of_their_own():
    wide = [*range(2, WIDE, 2)]
    sequences = [[t] for t in wide] + [[3, t] for t in wide] + [[3, 5, 7], [9]]
    machine = trie(sequences, eos_id=EOS, vocab_size=WIDE)
    check_automaton(machine, WIDE)
    assert machine.rows.shape == (4, WIDE)
    assert machine.max_edges <= 256
    prefixes = [[], [3], [3, 5], [3, 5, 7], [4], [3, 4], [8, 8], [9]]
    for remaining in (1, 2, 3, 4):
        found = choices(machine, run(machine, prefixes), remaining)
        assert found == [expected_choices(sequences, p, remaining) for p in prefixes]


@pytest.mark.parametrize("remaining", [-(2**31), -1, 0, 2**31 - 1])
def test_allowed_takes_any_number_of_remaining_tokens(remaining):
    machine = from_edges({0: {3: 1, 4: 2}, 2: {4: 2}}, vocab_size=VOCAB, ends=[1])
    expected = {3} if remaining > 0 else set()  # no end can be reached behind 4
    assert choices(machine, [0, 2, -1], remaining) == [expected, set(), set()]


def test_trie_of_many_sequences_holds_no_more_than_its_edges():
    rng = np.random.default_rng(0)
    sequences = (rng.zipf(1.5, (5000, 4)) % (WIDE - 2) + 2).tolist()
    machine = trie(sequences, eos_id=EOS, vocab_size=WIDE)
    assert sum(leaf.size for leaf in jax.tree.leaves(machine)) < 20 * 5000 * 4
    chosen = sequences[:BATCH]
    assert (run(machine, chosen) >= 0).all()
    assert np.asarray(machine.ends)[run(machine, [[*s, EOS] for s in chosen])].all()
    assert (run(machine, [[*s, s[0], EOS] for s in chosen]) == -1).all()


@pytest.mark.parametrize(
    ("sequences", "eos_id", "message"),
    [
        ([], 1, "sequences must .*, got none"),
        ([[3], [4, 1, 5]], 1, "sequences must .* EOS, got 1 in sequence 1;"),
        ([[3], [1]], 1, "sequences must .* EOS"),
        ([[3, 11]], 1, r"tokens must be in \[0, .*11\), got 11 after state 1;"),
        ([[-1]], 1, "got -1 after state 0;"),
        ([[10**30]], 1, "got 1000000000000000000000000000000 after"),
        ([[3]], 11, "got 11 after state 1;"),
    ],
)
def test_trie_refuses_what_no_model_can_write(sequences, eos_id, message):
    with pytest.raises(ValueError, match=message):
        trie(sequences, eos_id=eos_id, vocab_size=VOCAB)


# Edges.


def random_edges(rng, vocab_size, num_states, sizes):
    return {
        state: {
            token: rng.randrange(num_states)
            for token in rng.sample(range(vocab_size), rng.choice(sizes))
        }
        for state in range(num_states)
    }


def expected_distances(edges, ends):
    distance = [0 if state in ends else UNREACHABLE for state in range(len(edges))]
    for _ in edges:
        for state, row in edges.items():
            best = min((distance[target] + 1 for target in row.values()), default=UNREACHABLE)
            distance[state] = min(distance[state], best)
    return distance


@pytest.mark.parametrize("seed", range(12))
def test_from_edges_goes_where_they_lead(seed):
    rng = random.Random(seed)
    num_states = rng.choice([1, 5, 9])
    edges = random_edges(rng, VOCAB, num_states, [0, 0, 1, 3, VOCAB])
    ends = rng.sample(range(num_states), rng.randrange(num_states + 1))
    machine = from_edges(edges, vocab_size=VOCAB, ends=ends)
    check_edges(machine, edges, VOCAB)
    assert np.flatnonzero(machine.ends).tolist() == sorted(ends)
    distance = np.asarray(machine.distance)
    assert distance[:num_states].tolist() == expected_distances(edges, ends)
    assert (distance[num_states:] == UNREACHABLE).all()


@pytest.mark.parametrize("seed", range(3))
def test_from_edges_of_wide_states_goes_where_they_lead(seed):
    rng = random.Random(seed)
    edges = random_edges(rng, WIDE, 7, [0, 3, 255, 256, 257, 900, WIDE])
    check_edges(from_edges(edges, vocab_size=WIDE, ends=[6]), edges, WIDE)


def test_from_edges_shares_a_row_among_states_that_differ_little():
    rng = random.Random(0)
    edges = {}
    for state in range(9):
        row = dict.fromkeys(range(WIDE), 5)
        row |= dict.fromkeys(rng.sample(range(WIDE), 20), state)
        for token in rng.sample(range(WIDE), 20):
            del row[token]
        edges[state] = row
    machine = from_edges(edges, vocab_size=WIDE, ends=[5])
    check_edges(machine, edges, WIDE)
    assert machine.rows.shape[0] == 2
    assert machine.max_edges == 128


def test_from_edges_needs_no_edges():
    machine = from_edges({}, vocab_size=VOCAB, ends=[0])
    check_edges(machine, {0: {}}, VOCAB)
    assert machine.distance.tolist() == [0]


@pytest.mark.parametrize(
    ("edges", "ends", "message"),
    [
        ({0: {11: 1}}, [1], r"tokens must be in \[0, .*11\), got 11 after state 0;"),
        ({0: {-1: 1}}, [1], "got -1 after state 0;"),
        ({0: {3: -1}}, [1], r"states must be in \[0, 16777216\), got -1;"),
        ({-2: {3: 1}}, [1], "got -2;"),
        ({0: {3: 1}}, [-1], "got -1;"),
        ({0: {3: 10**12}}, [1], "got 1000000000000;"),
    ],
)
def test_from_edges_refuses_what_cannot_be(edges, ends, message):
    with pytest.raises(ValueError, match=message):
        from_edges(edges, vocab_size=VOCAB, ends=ends)


# Matchers.


def check_matches(patterns, pieces, rows, *, vocab_size, first_pieces=None):
    """Before and behind every token of the rows: over if a pattern is in the text so far."""
    machine = matcher(patterns, pieces, vocab_size=vocab_size, first_pieces=first_pieces)
    check_automaton(machine, vocab_size)
    for row in rows:
        text, expected = b"", []
        for token in row:
            spelled = first_pieces if first_pieces is not None and not text else pieces
            text += spelled[token] if token < len(spelled) else b""
            expected.append(any(pattern in text for pattern in patterns))
        states = run(machine, [row[: n + 1] for n in range(len(row))])
        assert np.asarray(machine.ends)[states].tolist() == expected
    return machine


def random_bytes(rng, least, most):
    return bytes(rng.choices(b"ab", k=rng.randint(least, most)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", [False, True])
def test_matcher_ends_when_a_pattern_is_in_the_text(seed, first):
    rng = random.Random(seed)
    for _ in range(15):
        patterns = [random_bytes(rng, 1, 6) for _ in range(rng.choice([1, 2, 5]))]
        pieces = [random_bytes(rng, 0, 4) for _ in range(VOCAB - 2)]
        first_pieces = [piece[rng.randrange(2) :] for piece in pieces] if first else None
        rows = [rng.choices(range(VOCAB), k=rng.choice([1, 5, 12])) for _ in range(3)]
        check_matches(patterns, pieces, rows, vocab_size=VOCAB, first_pieces=first_pieces)


@given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=4), st.binary(max_size=31))
@settings(deadline=None, max_examples=50)
def test_matcher_finds_any_bytes(patterns, text):
    pieces = [bytes([byte]) for byte in range(256)]
    machine = matcher(patterns, pieces, vocab_size=259)
    texts = [text + patterns[0], patterns[-1] + text, text]
    ends = np.asarray(machine.ends)[run(machine, [[*text] for text in texts])]
    assert ends.tolist() == [any(p in text for p in patterns) for text in texts]


def test_matcher_finds_patterns_that_overlap_or_hold_one_another():
    patterns = [b"abab", b"babb", b"aabaab", b"bb", b"b\x00"]
    pieces = [b"a", b"b", b"ab", b"ba", b"aab", b"xbbx", b"\x00", b""]
    rows = [[2, 2], [0, 1, 0, 7, 1], [4, 4], [4, 0, 0, 1], [0, 5, 0], [3, 0, 2, 6], [3, 2, 8, 1]]
    check_matches(patterns, pieces, rows, vocab_size=VOCAB)


def test_matcher_stays_in_its_end_and_rules_nothing_out():
    machine = matcher([b"ab", b"c"], [b"a", b"b", b"c", b"ab", b""], vocab_size=VOCAB)
    rows = [[], [0], [0, 1], [2], [2, 0, 4, 1], [3, 3]]
    states = run(machine, rows)
    assert np.asarray(machine.ends)[states].tolist() == [False, False, True, True, True, True]
    assert len(set(states[2:].tolist())) == 1
    assert choices(machine, states, 1) == [set(range(VOCAB))] * len(rows)


def test_matcher_reads_first_pieces_as_long_as_the_text_is_empty():
    pieces = [b" ", b" a", b"a", b""]
    first_pieces = [b"", b"a", b"a", b""]
    rows = [[1, 1], [0, 3, 0, 1], [2, 1], [3, 0, 2], [1, 0, 1], [9, 1, 2, 1]]
    check_matches([b" a"], pieces, rows, vocab_size=VOCAB, first_pieces=first_pieces)
    check_matches([b"aa", b"  "], pieces, rows, vocab_size=VOCAB, first_pieces=first_pieces)


def test_matcher_gives_rows_to_states_that_many_tokens_tell_apart():
    rng = random.Random(0)
    pieces = [bytes([rng.choice(b"xyz")]) + random_bytes(rng, 0, 3) for _ in range(WIDE - 3)]
    rows = [rng.choices(range(WIDE), k=9) for _ in range(9)]
    machine = check_matches([b"abx", b"az"], pieces, rows, vocab_size=WIDE)
    assert 1 < machine.rows.shape[0] <= 8
    tokens = np.arange(WIDE)
    for state in range(4):
        nexts = np.asarray(following(machine, int32([state])))[0]
        stepped = advance(machine, jnp.full(WIDE, state, jnp.int32), int32(tokens))
        np.testing.assert_array_equal(stepped, nexts)


def test_matcher_sees_what_the_genuine_tokenizer_writes(shared_data):
    model = shared_data / "t5_tokenizer" / "spiece.model"
    t5 = SentencePieceTokenizer.from_file(model)
    pieces = t5.pieces()
    first = [piece if i == t5.unk_id else piece.lstrip() for i, piece in enumerate(pieces)]
    texts = ["Zwei junge Männer sind im Freien.", "The end. <extra_id_0> of it", "<extra_id_3> a b"]
    for pattern in ("nge M", " The", "The", ". <extra_id_0> o", "ä", "nothing"):
        machine = matcher([pattern.encode()], pieces, vocab_size=32128, first_pieces=first)
        for text in texts:
            ids = t5.encode(text)
            prefixes = [ids[:n] for n in range(len(ids) + 1)]
            expected = [pattern in t5.decode(prefix) for prefix in prefixes]
            assert np.asarray(machine.ends)[run(machine, prefixes)].tolist() == expected


@pytest.mark.parametrize(
    ("patterns", "pieces", "first_pieces", "message"),
    [
        ([], [b"a"], None, r"patterns must be .*, got \[\]; encode"),
        ([b"a", b""], [b"a"], None, r"patterns must be .*, got \[b'a', b''\]"),
        (["a"], [b"a"], None, r"got \['a'\]; encode text"),
        (b"stop", [b"a"], None, "got b'stop'; encode text"),
        ([b"a"], [b"a"] * 12, None, "pieces must .* vocab_size = 11 .*, got 12;"),
        ([b"a"], [b"a"], [b"a"] * 12, "pieces must .* vocab_size = 11 .*, got 12;"),
    ],
)
def test_matcher_refuses_what_it_cannot_look_for(
    patterns, pieces, first_pieces, message, own_checks
):
    with pytest.raises(ValueError, match=message):
        matcher(patterns, pieces, vocab_size=VOCAB, first_pieces=first_pieces)


# Automata made by hand.


def edited(name, index, value):
    """A change of one entry."""

    def change(machine):
        array = np.array(getattr(machine, name))
        array[index] = value
        return {name: array}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited("rows", (0, 3), 8), r"automaton.rows must be in \[-1, 8\), got 8; build it with"),
        (edited("rows", (0, 3), -2), "rows must be in"),
        (edited("row_of", 0, 1), r"row_of must be in \[0, 1\), got 1;"),
        (edited("row_of", 0, -1), "row_of must be in"),
        (edited("tokens", 0, 11), r"tokens must be in \[0, 11\), got 11;"),
        (edited("tokens", 0, 9), r"tokens must .*, got \[9, 5\] in state 0;"),
        (edited("tokens", 0, 5), r"got \[5, 5\] in state 0;"),
        (edited("targets", 0, 8), r"targets must be in \[-1, 8\), got 8;"),
        (edited("first_edge", 0, 1), r"first_edge must .* 0 .*, got \[1"),
        (edited("first_edge", 3, 1), r"first_edge must .* 0 .*, got \[0"),
        (edited("first_edge", -1, 100), r"first_edge must be in \[0, 9\), got 100;"),
        (edited("distance", 0, -1), "distance must be in"),
        (edited("distance", slice(None), 3), "distance must be 0 .*, got 3;"),
        (lambda m: {"rows": m.rows[:, :-1]}, r"rows must be int32\[1, 11\], got int32\[1, 10\];"),
        (lambda m: {"rows": m.rows[0]}, r"rows must be int32\[1, 11\], got int32\[11\];"),
        (lambda m: {"rows": m.rows[:0]}, r"rows must be int32\[1, 11\], got int32\[0, 11\];"),
        (lambda m: {"rows": np.array(5, np.int32)}, r"got int32\[\];"),
        (lambda m: {"row_of": np.array(0, np.int32)}, r"row_of must be int32\[1\], got int32\[\]"),
        (lambda m: {"row_of": m.row_of[:0]}, r"row_of must be int32\[1\], got int32\[0\]"),
        (lambda m: {"row_of": m.row_of[:-1]}, r"first_edge must be int32\[8\], got int32\[9\]"),
        (lambda m: {"tokens": m.tokens[:0]}, r"tokens must be int32\[1\], got int32\[0\];"),
        (lambda m: {"targets": m.targets[:-1]}, r"targets must be int32\[8\], got int32\[7\];"),
        (lambda m: {"ends": m.ends.astype(int)}, r"ends must be bool\[8\], got int32\[8\];"),
        (lambda m: {"distance": m.distance.astype(float)}, "distance must be int32"),
        (lambda m: {"first_edge": np.asarray(m.first_edge, np.int64)}, "got int64"),
        (lambda m: {"max_edges": 1}, r"max_edges must be in \[2, 22\].*, got 1;"),
        (lambda m: {"max_edges": 10**9}, "max_edges must be in .*, got 1000000000;"),
        (lambda m: {"max_edges": 2.0}, "max_edges must be in .*, got 2.0;"),
    ],
)
def test_check_names_what_does_not_fit(change, message, own_checks):
    machine = trie([[3, 5], [5, 4]], eos_id=EOS, vocab_size=VOCAB)
    check_automaton(machine, VOCAB)
    check_automaton(jax.tree.map(np.asarray, machine), VOCAB)
    with pytest.raises(ValueError, match=message) as error:
        check_automaton(dataclasses.replace(machine, **change(machine)), VOCAB)
    assert "\n" not in str(error.value)


def test_check_asks_for_the_width_of_the_logits():
    machine = trie([[3, 5]], eos_id=EOS, vocab_size=VOCAB)
    with pytest.raises(ValueError, match=r"rows must be int32\[\d, 13\], got int32\[1, 11\]"):
        check_automaton(machine, 13)
