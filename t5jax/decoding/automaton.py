"""Finite automata over tokens: which may come next, and whether a text has come to its end.

A table of states by tokens would not fit: thousands of states, hundreds of thousands of tokens.  So
states share a few dense rows, and each holds the tokens at which it differs from its row.  Shape
letters: K rows, V tokens, Q states, E exceptions, R sequences.
"""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

UNREACHABLE = 2**30


"""Distance of a state from which there is no way to an end."""


MAX_STATES = 2**24


# From a state and a token, or a byte, to the next state.
_Nexts = dict[tuple[int, int], int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Automaton:
    """States, and the tokens that lead from one to the next; state 0 is the start.

    Integers are int32.  `trie`, `matcher` and `from_edges` round K, Q, E and `most_edges` up to
    powers of two, so that automata of similar sizes share a compiled program.
    """

    rows: Int[Array, "K V"]
    """Next state of every token, -1 where it is not allowed."""
    row_of: Int[Array, " Q"]
    """The row that a state starts from."""
    first_edge: Int[Array, " Q+1"]
    """State q has the exceptions from `first_edge[q]` up to `first_edge[q + 1]`."""
    tokens: Int[Array, " E"]
    """Of the exceptions; they rise within a state."""
    targets: Int[Array, " E"]
    """Next states of the exceptions, -1 where the token is not allowed."""
    distance: Int[Array, " Q"]
    """Fewest tokens from a state to an end, EOS included; `UNREACHABLE` without a way."""
    ends: Bool[Array, " Q"]
    """Whether a sequence is over on arrival."""
    most_edges: int = dataclasses.field(metadata={"static": True})
    """No state has more exceptions."""


def next_states(automaton: Automaton, states: Int[Array, " R"]) -> Int[Array, "R V"]:
    """Next state of every token, -1 where it is not allowed; from -1 none is."""
    live = jnp.maximum(states.astype(jnp.int32), 0)
    nexts = automaton.rows[automaton.row_of[live]]
    edges = automaton.first_edge[live][:, None] + jnp.arange(automaton.most_edges)[None]
    present = edges < automaton.first_edge[live + 1][:, None]
    edges = jnp.where(present, edges, 0)
    # Token V does not exist, so that it is dropped.
    tokens = jnp.where(present, automaton.tokens[edges], automaton.rows.shape[1])
    sequence = jnp.arange(states.shape[0])[:, None]
    nexts = nexts.at[sequence, tokens].set(automaton.targets[edges], mode="drop")
    return jnp.where((states >= 0)[:, None], nexts, -1)


def allowed_tokens(
    automaton: Automaton, states: Int[Array, " R"], remaining: Int[Array, " R"]
) -> Bool[Array, "R V"]:
    """Whether a token may come next and an end can still be reached behind it.

    Args:
      automaton: decides.
      states: of the sequences so far; from -1 nothing is allowed.
      remaining: most tokens that can still be written, this one included; if they are fewer than
        the state's `distance`, nothing is allowed.
    """
    nexts = next_states(automaton, states)
    distance = automaton.distance[jnp.maximum(nexts, 0)]
    behind = jnp.clip(remaining.astype(jnp.int32), 0, UNREACHABLE) - 1
    return (nexts >= 0) & (distance <= behind[:, None])


def advance_states(
    automaton: Automaton, states: Int[Array, " R"], tokens: Int[Array, " R"]
) -> Int[Array, " R"]:
    """States after one more token each, -1 where it is not allowed; -1 stays -1."""
    live = jnp.maximum(states.astype(jnp.int32), 0)
    edge, end = automaton.first_edge[live], automaton.first_edge[live + 1]
    last = automaton.tokens.shape[0] - 1
    # A binary search for the first exception whose token is not lower.
    for bit in reversed(range(automaton.most_edges.bit_length())):
        ahead = edge + (1 << bit)
        lower = automaton.tokens[jnp.minimum(ahead - 1, last)] < tokens
        edge = jnp.where((ahead <= end) & lower, ahead, edge)
    found = jnp.minimum(edge, last)
    excepted = (edge < end) & (automaton.tokens[found] == tokens)
    ordinary = automaton.rows[automaton.row_of[live], tokens]
    return jnp.where(states >= 0, jnp.where(excepted, automaton.targets[found], ordinary), -1)


def check_automaton(automaton: Automaton, vocab_size: int) -> None:
    """Refuses an automaton whose arrays do not fit together, for those made by hand.

    Args:
      automaton: its arrays may be numpy's.
      vocab_size: width of the model's logits.
    Raises:
      ValueError: a shape, a type or a value that cannot be.
    """
    sizes = (np.size(part) for part in (automaton.rows, automaton.row_of, automaton.tokens))
    num_entries, num_states, num_edges = (max(size, 1) for size in sizes)
    num_rows = -(-num_entries // vocab_size)
    limits = {
        "rows": ([num_rows, vocab_size], -1, num_states),
        "row_of": ([num_states], 0, num_rows),
        "tokens": ([num_edges], 0, vocab_size),
        "targets": ([num_edges], -1, num_states),
        "first_edge": ([num_states + 1], 0, num_edges + 1),
        "distance": ([num_states], 0, UNREACHABLE + 1),
        "ends": ([num_states], 0, 2),
    }
    for name, (shape, low, high) in limits.items():
        array, dtype = np.asarray(getattr(automaton, name)), "bool" if name == "ends" else "int32"
        if array.dtype != dtype or [*array.shape] != shape:
            raise _misfit(name, f"be {dtype}{shape}", f"{array.dtype}{[*array.shape]}")
        outside = array[(array < low) | (array >= high)]
        if outside.size:
            raise _misfit(name, f"be in [{low}, {high})", outside[0])
    late = np.asarray(automaton.distance)[np.asarray(automaton.ends)]
    if late.any():
        raise _misfit("distance", "be 0 in ends", late.max())

    first_edge, most = np.asarray(automaton.first_edge), automaton.most_edges
    counts = np.diff(first_edge)
    if first_edge[0] != 0 or counts.min() < 0:
        raise _misfit("first_edge", "start with 0 and never fall", first_edge[:8].tolist())
    if not isinstance(most, int) or not counts.max() <= most <= 2 * vocab_size:
        rule = f"be in [{counts.max()}, {2 * vocab_size}], at least the most of one state"
        raise _misfit("most_edges", rule, repr(most))
    state = np.repeat(np.arange(num_states), counts)
    tokens = np.asarray(automaton.tokens)[: len(state)]
    falls = np.flatnonzero((np.diff(state) == 0) & (np.diff(tokens) <= 0))
    if falls.size:
        pair = tokens[falls[0] : falls[0] + 2].tolist()
        raise _misfit("tokens", "rise within a state", f"{pair} in state {state[falls[0]]}")


def from_edges(
    edges: Mapping[int, Mapping[int, int]], *, vocab_size: int, ends: Collection[int]
) -> Automaton:
    """The automaton of these states and edges.

    Args:
      edges: of each state, from tokens to next states; state 0 is the start, and states without
        edges may be left out.
      vocab_size: width of the model's logits.
      ends: states in which a sequence is over.
    Raises:
      ValueError: a token outside the vocabulary, or a state outside [0, MAX_STATES).
    """
    nexts = {(q, token): target for q, row in edges.items() for token, target in row.items()}
    states = {0, *edges, *ends, *nexts.values()}
    for state in (min(states), max(states)):
        if not 0 <= state < MAX_STATES:
            raise ValueError(f"states must be in [0, {MAX_STATES}), got {state}; number them so.")
    return _accepting(nexts, np.isin(np.arange(max(states) + 1), [*ends]), vocab_size)


def trie(sequences: Sequence[Sequence[int]], *, eos_id: int, vocab_size: int) -> Automaton:
    """Accepts these sequences, each followed by EOS, and no others.

    Args:
      sequences: without EOS; the empty one is EOS alone.
      eos_id: ends a sequence.
      vocab_size: width of the model's logits.
    Raises:
      ValueError: no sequences, EOS inside one, or a token outside the vocabulary.
    """
    if not len(sequences):
        raise ValueError("sequences must be at least one, got none; list what may be written.")
    for index, sequence in enumerate(sequences):
        if eos_id in sequence:
            raise ValueError(
                f"sequences must be without EOS, got {eos_id} in sequence {index}; leave it out."
            )
    nexts, complete = _prefixes(sequences)
    end = len(nexts) + 1
    nexts |= {(node, eos_id): end for node in complete}
    return _accepting(nexts, np.arange(end + 1) == end, vocab_size)


def matcher(
    patterns: Sequence[bytes],
    pieces: Sequence[bytes],
    *,
    vocab_size: int,
    first_pieces: Sequence[bytes] | None = None,
) -> Automaton:
    """Comes to an end, and stays there, when what tokens write contains one of the patterns.

    It allows every token, and its `distance` is 0 everywhere.  (Aho and Corasick 1975, on bytes)

    Args:
      patterns: anywhere in the text, within one token or across several.
      pieces: the bytes that each token adds to a text; tokens without a piece add none.
      vocab_size: width of the model's logits.
      first_pieces: what they add as long as the text is empty, if it differs: SentencePiece leaves
        out spaces there.
    Raises:
      ValueError: no patterns, an empty one, or more pieces than tokens.
    """
    if not patterns or not all(isinstance(pattern, bytes) and pattern for pattern in patterns):
        raise ValueError(
            f"patterns must be bytes, one or more, none empty, got {patterns!r:.60}; encode text."
        )
    # With first pieces, the empty text is a state of its own before all others.
    root = 0 if first_pieces is None else 1
    table = _byte_table(patterns, root)
    text = _Text.of(pieces, vocab_size)
    row = _arrivals(table, root, text)
    found = []
    for state in range(len(table)):
        if state < root:
            first = _Text.of(first_pieces or (), vocab_size)
            nexts = np.where(first.lengths > 0, _arrivals(table, root, first), state)
        else:
            nexts = _arrivals(table, state, text)
        apart = np.flatnonzero(nexts != row)
        found.append(_Edges(np.full_like(apart, state), apart, nexts[apart]))
    ends = np.arange(len(table)) == len(table) - 1
    return _packed(row, found, ends=ends, distance=np.zeros(len(table), np.int32))


class _Edges(NamedTuple):
    sources: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray


class _Text(NamedTuple):
    """What tokens write, one behind the other."""

    content: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, pieces: Sequence[bytes], vocab_size: int) -> "_Text":
        if len(pieces) > vocab_size:
            raise ValueError(
                f"pieces must be at most {vocab_size}, the vocab_size, got {len(pieces)}; "
                "take those of the model's own tokenizer."
            )
        lengths = np.zeros(vocab_size, np.int64)
        lengths[: len(pieces)] = [len(piece) for piece in pieces]
        content = np.frombuffer(b"".join(pieces), np.uint8)
        return cls(content, np.cumsum(lengths) - lengths, lengths)


def _misfit(name: str, rule: str, got: object) -> ValueError:
    return ValueError(
        f"automaton's {name} must {rule}, got {got}; build it with trie, matcher or from_edges."
    )


def _prefixes(sequences: Sequence[Sequence[int]]) -> tuple[_Nexts, set[int]]:
    """The tree of all prefixes, and which of them are complete sequences.

    State 0 is the empty prefix; the others are numbered in the order of the dictionary.
    """
    nexts: _Nexts = {}
    complete = set()
    for sequence in sequences:
        state = 0
        for symbol in sequence:
            state = nexts.setdefault((state, symbol), len(nexts) + 1)
        complete.add(state)
    return nexts, complete


def _accepting(nexts: _Nexts, ends: np.ndarray, vocab_size: int) -> Automaton:
    """The automaton in which nothing else is allowed."""
    for state, token in nexts:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"tokens must be in [0, {vocab_size}), the vocabulary, got {token} after state "
                f"{state}; encode with the model's own tokenizer."
            )
    sources, tokens = np.array(list(nexts), np.int64).reshape(-1, 2).T
    edges = _Edges(sources, tokens, np.fromiter(nexts.values(), np.int64, len(nexts)))
    nothing = np.full(vocab_size, -1, np.int32)
    return _packed(nothing, [edges], ends=ends, distance=_distances(edges, ends))


def _distances(edges: _Edges, ends: np.ndarray) -> np.ndarray:
    """Fewest edges from every state to an end, by breadth-first search from the ends backwards."""
    distance = np.where(ends, 0, UNREACHABLE).astype(np.int32)
    sources = edges.sources[np.argsort(edges.targets, kind="stable")]
    counts = np.bincount(edges.targets, minlength=len(ends))
    begins = np.cumsum(counts) - counts
    front, steps = np.flatnonzero(ends), 0
    while front.size:
        steps += 1
        size = counts[front]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        front = np.unique(sources[np.repeat(begins[front], size) + within])
        front = front[distance[front] == UNREACHABLE]
        distance[front] = steps
    return distance


def _byte_table(patterns: Sequence[bytes], root: int) -> np.ndarray:
    """Next state of every byte, by state; the last state is the end, where a pattern is complete.

    Any other state stands for the longest end of the text that begins a pattern; `root`, for none.
    """
    nexts, complete = _prefixes(patterns)
    children = collections.defaultdict(list)
    for (node, byte), child in nexts.items():
        children[node].append((byte, child))
    end = len(nexts) + 1
    table = np.zeros((end + 1, 256), np.int32)
    table[end] = end
    shorter, queue = {}, collections.deque([0])
    while queue:
        node = queue.popleft()
        # Where the text does not go on as this beginning does, it may as a shorter one.
        if node:
            table[node] = table[shorter[node]]
        for byte, child in children[node]:
            fallback = int(table[node, byte])
            if child in complete or fallback == end:
                table[node, byte] = end
            else:
                table[node, byte], shorter[child] = child, fallback
                queue.append(child)
    return np.concatenate([np.full((root, 256), root, np.int32), root + table])


def _arrivals(table: np.ndarray, start: int, text: _Text) -> np.ndarray:
    """States behind every token that is walked from `start`, byte by byte."""
    states = np.full(len(text.lengths), start, np.int32)
    tokens, depth = np.flatnonzero(text.lengths), 0
    while tokens.size:
        states[tokens] = table[states[tokens], text.content[text.begins[tokens] + depth]]
        depth += 1
        tokens = tokens[text.lengths[tokens] > depth]
    return states


def _packed(
    row: np.ndarray, parts: Sequence[_Edges], *, ends: np.ndarray, distance: np.ndarray
) -> Automaton:
    """The automaton whose states all have this row, but for the edges."""
    # Nothing leads to the states that fill up.
    padding = (0, _rounded(len(ends)) - len(ends))
    ends = np.pad(ends, padding)
    distance = np.pad(distance, padding, constant_values=UNREACHABLE)
    edges, first_edge = _by_state(parts, len(ends))
    # So many exceptions cost a step little; states with more have rows of their own.
    many = max(256, len(row) // 64)
    rows, row_of = [row], np.zeros(len(ends), np.int32)
    sparse, others = np.ones(len(edges.sources), bool), []
    for state in np.flatnonzero(np.diff(first_edge) > many):
        here = slice(first_edge[state], first_edge[state + 1])
        own = row.copy()
        own[edges.tokens[here]] = edges.targets[here]
        nearest = min(range(len(rows)), key=lambda k, own=own: np.count_nonzero(own != rows[k]))
        if np.count_nonzero(own != rows[nearest]) > many:
            nearest = len(rows)
            rows.append(own)
        apart = np.flatnonzero(own != rows[nearest])
        others.append(_Edges(np.full_like(apart, state), apart, own[apart]))
        row_of[state] = nearest
        sparse[here] = False
    kept = _Edges(*(part[sparse] for part in edges))
    edges, first_edge = _by_state([kept, *others], len(ends))

    rows += [row] * (_rounded(len(rows)) - len(rows))
    padding = (0, _rounded(len(edges.tokens)) - len(edges.tokens))
    exceptions = (np.pad(part, padding) for part in (edges.tokens, edges.targets))
    integers = (np.stack(rows), row_of, first_edge, *exceptions, distance)
    return Automaton(
        *(jnp.asarray(part, jnp.int32) for part in integers),
        ends=jnp.asarray(ends),
        most_edges=_rounded(int(np.diff(first_edge).max())),
    )


def _by_state(parts: Sequence[_Edges], num_states: int) -> tuple[_Edges, np.ndarray]:
    """Edges sorted by source and token, and where those of each source begin."""
    edges = _Edges(*map(np.concatenate, zip(*parts, strict=True)))
    order = np.lexsort((edges.tokens, edges.sources))
    counts = np.bincount(edges.sources, minlength=num_states)
    return _Edges(*(part[order] for part in edges)), np.concatenate([[0], np.cumsum(counts)])


def _rounded(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
