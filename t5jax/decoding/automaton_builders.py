"""Automaton builders, in numpy: from edges, from a set of sequences, from byte patterns."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from t5jax.decoding.automaton import UNREACHABLE, Automaton

MAX_STATES = 2**24
# (state, token or byte) -> next state.
_Transitions = dict[tuple[int, int], int]


def from_edges(
    edges: Mapping[int, Mapping[int, int]], *, vocab_size: int, ends: Collection[int]
) -> Automaton:
    """Build an automaton from its transitions.

    Args:
      edges: state -> {allowed token: next state}; state 0 is the start, and states without edges
        may be omitted.
      vocab_size: width of the model's logits.
      ends: states in which a sequence is complete.
    Returns:
      The automaton; all other transitions are disallowed.
    Raises:
      ValueError: a token is outside the vocabulary, or a state outside [0, 2**24).

    Examples:
      >>> edges = {0: {5: 0, 1: 1}}  # any number of 5, then EOS
      >>> t5jax.decoding.from_edges(edges, vocab_size=9, ends=[1]).distance.tolist()
      [1, 0]
    """
    transitions = {(q, token): target for q, row in edges.items() for token, target in row.items()}
    states = {0, *edges, *ends, *transitions.values()}
    for state in (min(states), max(states)):
        if not 0 <= state < MAX_STATES:
            raise ValueError(f"states must be in [0, {MAX_STATES}), got {state}; renumber them.")
    return _acceptor(transitions, np.isin(np.arange(max(states) + 1), [*ends]), vocab_size)


def trie(sequences: Sequence[Sequence[int]], *, eos_id: int, vocab_size: int) -> Automaton:
    """Build the automaton that accepts exactly the given sequences, each followed by EOS.

    Args:
      sequences: token ids without EOS; an empty sequence accepts EOS alone.
      eos_id: id of EOS.
      vocab_size: width of the model's logits.
    Returns:
      The automaton, one state per distinct prefix and one end.
    Raises:
      ValueError: `sequences` is empty, a sequence contains EOS, or a token is outside the
        vocabulary.

    Examples:
      >>> automaton = t5jax.decoding.trie([[5, 6], [5, 7]], eos_id=1, vocab_size=9)
      >>> automaton.ends[:5].tolist()  # prefixes "", 5, 5 6, 5 7 and the end
      [False, False, False, False, True]
    """
    if not len(sequences):
        raise ValueError("sequences must not be empty, got none; list the allowed outputs.")
    for index, sequence in enumerate(sequences):
        if eos_id in sequence:
            raise ValueError(
                f"sequences must not contain EOS, got {eos_id} in sequence {index}; remove it."
            )
    transitions, complete = _prefix_tree(sequences)
    end = len(transitions) + 1
    transitions |= {(node, eos_id): end for node in complete}
    return _acceptor(transitions, np.arange(end + 1) == end, vocab_size)


def matcher(
    patterns: Sequence[bytes],
    pieces: Sequence[bytes],
    *,
    vocab_size: int,
    first_pieces: Sequence[bytes] | None = None,
) -> Automaton:
    """Build the automaton that reaches an end once the decoded text contains a pattern.

    It allows every token, never leaves its end, and has `distance` 0 everywhere.  It is the
    Aho-Corasick (1975) automaton over bytes, walked once for every state and token.

    Args:
      patterns: byte strings, matched anywhere in the text, within one token or across several.
      pieces: bytes that each token appends to the text; tokens without a piece append none.
      vocab_size: width of the model's logits.
      first_pieces: bytes that each token appends to an empty text, where they differ:
        SentencePiece drops leading spaces; defaults to `pieces`.
    Returns:
      The automaton.
    Raises:
      ValueError: `patterns` is empty, a pattern is empty or not bytes, or there are more pieces
        than tokens.

    Examples:
      >>> from t5jax.decoding.automaton import advance_states, is_end
      >>> automaton = t5jax.decoding.matcher([b"stop"], [b"st", b"op"], vocab_size=2)
      >>> state = advance_states(automaton, jnp.array([0]), jnp.array([0]))
      >>> is_end(automaton, advance_states(automaton, state, jnp.array([1]))).tolist()
      [True]
    """
    if not patterns or not all(isinstance(pattern, bytes) and pattern for pattern in patterns):
        raise ValueError(
            f"patterns must be non-empty byte strings, got {patterns!r:.60}; encode text first."
        )
    # With first pieces, the empty text is a separate state before all others.
    root = 0 if first_pieces is None else 1
    table = _byte_table(patterns, root)
    text = _Text.from_pieces(pieces, vocab_size)
    row = _walk(table, root, text)
    exceptions = []
    for state in range(len(table)):
        if state < root:
            first = _Text.from_pieces(first_pieces or (), vocab_size)
            successors = np.where(first.lengths > 0, _walk(table, root, first), state)
        else:
            successors = _walk(table, state, text)
        tokens = np.flatnonzero(successors != row)
        exceptions.append(_Edges(np.full_like(tokens, state), tokens, successors[tokens]))
    ends = np.arange(len(table)) == len(table) - 1
    return _pack(row, exceptions, ends=ends, distance=np.zeros(len(table), np.int32))


def check_automaton(automaton: Automaton, vocab_size: int) -> None:
    """Check that the arrays of an automaton built by hand are consistent.

    Args:
      automaton: arrays of JAX or numpy.
      vocab_size: width of the model's logits.
    Raises:
      ValueError: an array has a wrong shape, dtype or value.
    """
    sizes = (np.size(part) for part in (automaton.rows, automaton.row_of, automaton.tokens))
    num_entries, num_states, num_edges = (max(size, 1) for size in sizes)
    num_rows = -(-num_entries // vocab_size)
    # Shape, lowest value, exclusive upper bound.
    expected = {
        "rows": ([num_rows, vocab_size], -1, num_states),
        "row_of": ([num_states], 0, num_rows),
        "tokens": ([num_edges], 0, vocab_size),
        "targets": ([num_edges], -1, num_states),
        "first_edge": ([num_states + 1], 0, num_edges + 1),
        "distance": ([num_states], 0, UNREACHABLE + 1),
        "ends": ([num_states], 0, 2),
    }
    for name, (shape, low, high) in expected.items():
        array, dtype = np.asarray(getattr(automaton, name)), "bool" if name == "ends" else "int32"
        if array.dtype != dtype or [*array.shape] != shape:
            raise _misfit(name, f"be {dtype}{shape}", f"{array.dtype}{[*array.shape]}")
        outside = array[(array < low) | (array >= high)]
        if outside.size:
            raise _misfit(name, f"be in [{low}, {high})", outside[0])
    end_distance = np.asarray(automaton.distance)[np.asarray(automaton.ends)]
    if end_distance.any():
        raise _misfit("distance", "be 0 in end states", end_distance.max())
    _check_edges(automaton, vocab_size, num_states)


def _check_edges(automaton: Automaton, vocab_size: int, num_states: int) -> None:
    """Check that exceptions are grouped by state, with ascending tokens in each."""
    first_edge, max_edges = np.asarray(automaton.first_edge), automaton.max_edges
    counts = np.diff(first_edge)
    if first_edge[0] != 0 or counts.min() < 0:
        raise _misfit("first_edge", "start at 0 and never decrease", first_edge[:8].tolist())
    if not isinstance(max_edges, int) or not counts.max() <= max_edges <= 2 * vocab_size:
        rule = f"be in [{counts.max()}, {2 * vocab_size}] to cover the exceptions of every state"
        raise _misfit("max_edges", rule, repr(max_edges))
    state = np.repeat(np.arange(num_states), counts)
    tokens = np.asarray(automaton.tokens)[: len(state)]
    falls = np.flatnonzero((np.diff(state) == 0) & (np.diff(tokens) <= 0))
    if falls.size:
        pair = tokens[falls[0] : falls[0] + 2].tolist()
        raise _misfit("tokens", "ascend within a state", f"{pair} in state {state[falls[0]]}")


def _misfit(name: str, rule: str, value: object) -> ValueError:
    return ValueError(
        f"automaton.{name} must {rule}, got {value}; build it with trie, matcher or from_edges."
    )


class _Edges(NamedTuple):
    """Transitions as arrays of equal length."""

    sources: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray


class _Text(NamedTuple):
    """The bytes of all tokens, concatenated."""

    content: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_pieces(cls, pieces: Sequence[bytes], vocab_size: int) -> "_Text":
        if len(pieces) > vocab_size:
            raise ValueError(
                f"pieces must have at most vocab_size = {vocab_size} entries, got {len(pieces)}; "
                "use the model's tokenizer."
            )
        lengths = np.zeros(vocab_size, np.int64)
        lengths[: len(pieces)] = [len(piece) for piece in pieces]
        content = np.frombuffer(b"".join(pieces), np.uint8)
        return cls(content, np.cumsum(lengths) - lengths, lengths)


def _prefix_tree(sequences: Sequence[Sequence[int]]) -> tuple[_Transitions, set[int]]:
    """Return the transitions of the prefix tree and the states of complete sequences.

    State 0 is the empty prefix; the others are numbered in dictionary order.
    """
    transitions: _Transitions = {}
    complete = set()
    for sequence in sequences:
        state = 0
        for symbol in sequence:
            state = transitions.setdefault((state, symbol), len(transitions) + 1)
        complete.add(state)
    return transitions, complete


def _acceptor(transitions: _Transitions, ends: np.ndarray, vocab_size: int) -> Automaton:
    """Build the automaton that allows only these transitions."""
    for state, token in transitions:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"tokens must be in [0, vocab_size = {vocab_size}), got {token} after state "
                f"{state}; use the model's tokenizer."
            )
    sources, tokens = np.array(list(transitions), np.int64).reshape(-1, 2).T
    targets = np.fromiter(transitions.values(), np.int64, len(transitions))
    edges = _Edges(sources, tokens, targets)
    none_allowed = np.full(vocab_size, -1, np.int32)
    return _pack(none_allowed, [edges], ends=ends, distance=_distances(edges, ends))


def _distances(edges: _Edges, ends: np.ndarray) -> np.ndarray:
    """Return the minimum number of edges from each state to an end, by backward BFS."""
    distance = np.where(ends, 0, UNREACHABLE).astype(np.int32)
    sources = edges.sources[np.argsort(edges.targets, kind="stable")]
    counts = np.bincount(edges.targets, minlength=len(ends))
    begins = np.cumsum(counts) - counts
    frontier, steps = np.flatnonzero(ends), 0
    while frontier.size:
        steps += 1
        size = counts[frontier]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        frontier = np.unique(sources[np.repeat(begins[frontier], size) + within])
        frontier = frontier[distance[frontier] == UNREACHABLE]
        distance[frontier] = steps
    return distance


def _byte_table(patterns: Sequence[bytes], root: int) -> np.ndarray:
    """Return the [states, 256] transition table over bytes; the last state is the match.

    Every other state is the longest suffix of the text that is a prefix of a pattern; `root` is
    the empty suffix.
    """
    transitions, complete = _prefix_tree(patterns)
    children = collections.defaultdict(list)
    for (node, byte), child in transitions.items():
        children[node].append((byte, child))
    end = len(transitions) + 1
    table = np.zeros((end + 1, 256), np.int32)
    table[end] = end
    failure, queue = {}, collections.deque([0])
    while queue:
        node = queue.popleft()
        # A byte that does not extend this prefix may extend its longest proper suffix.
        if node:
            table[node] = table[failure[node]]
        for byte, child in children[node]:
            fallback = int(table[node, byte])
            if child in complete or fallback == end:
                table[node, byte] = end
            else:
                table[node, byte], failure[child] = child, fallback
                queue.append(child)
    return np.concatenate([np.full((root, 256), root, np.int32), root + table])


def _walk(table: np.ndarray, start: int, text: _Text) -> np.ndarray:
    """Return the state after each token, starting from `start`, byte by byte."""
    states = np.full(len(text.lengths), start, np.int32)
    tokens, depth = np.flatnonzero(text.lengths), 0
    while tokens.size:
        states[tokens] = table[states[tokens], text.content[text.begins[tokens] + depth]]
        depth += 1
        tokens = tokens[text.lengths[tokens] > depth]
    return states


def _pack(
    row: np.ndarray, parts: Sequence[_Edges], *, ends: np.ndarray, distance: np.ndarray
) -> Automaton:
    """Build the automaton whose states share `row`, except for the edges in `parts`."""
    # Padding states are unreachable.
    padding = (0, _round_up(len(ends)) - len(ends))
    ends = np.pad(ends, padding)
    distance = np.pad(distance, padding, constant_values=UNREACHABLE)
    edges, first_edge = _group_by_state(parts, len(ends))
    # Up to this number, exceptions cost little per step; states with more get a separate row.
    max_exceptions = max(256, len(row) // 64)
    rows, row_of = [row], np.zeros(len(ends), np.int32)
    is_sparse, dense_parts = np.ones(len(edges.sources), bool), []
    for state in np.flatnonzero(np.diff(first_edge) > max_exceptions):
        of_state = slice(first_edge[state], first_edge[state + 1])
        own = row.copy()
        own[edges.tokens[of_state]] = edges.targets[of_state]
        nearest = min(range(len(rows)), key=lambda k, own=own: np.count_nonzero(own != rows[k]))
        if np.count_nonzero(own != rows[nearest]) > max_exceptions:
            nearest = len(rows)
            rows.append(own)
        tokens = np.flatnonzero(own != rows[nearest])
        dense_parts.append(_Edges(np.full_like(tokens, state), tokens, own[tokens]))
        row_of[state] = nearest
        is_sparse[of_state] = False
    sparse = _Edges(*(part[is_sparse] for part in edges))
    edges, first_edge = _group_by_state([sparse, *dense_parts], len(ends))

    rows += [row] * (_round_up(len(rows)) - len(rows))
    padding = (0, _round_up(len(edges.tokens)) - len(edges.tokens))
    exceptions = (np.pad(part, padding) for part in (edges.tokens, edges.targets))
    integers = (np.stack(rows), row_of, first_edge, *exceptions, distance)
    return Automaton(
        *(jnp.asarray(part, jnp.int32) for part in integers),
        ends=jnp.asarray(ends),
        max_edges=_round_up(int(np.diff(first_edge).max())),
    )


def _group_by_state(parts: Sequence[_Edges], num_states: int) -> tuple[_Edges, np.ndarray]:
    """Return the edges sorted by source and token, and the [num_states + 1] source offsets."""
    edges = _Edges(*map(np.concatenate, zip(*parts, strict=True)))
    order = np.lexsort((edges.tokens, edges.sources))
    counts = np.bincount(edges.sources, minlength=num_states)
    return _Edges(*(part[order] for part in edges)), np.concatenate([[0], np.cumsum(counts)])


def _round_up(count: int) -> int:
    """Return the smallest power of two >= max(count, 1)."""
    return 1 << max(count - 1, 0).bit_length()
