"""Finite automata over tokens, stored as arrays for a decoding loop.

A dense [states, tokens] table would not fit in memory: thousands of states, hundreds of thousands
of tokens.  States therefore share a few dense rows, and each state stores only its exceptions, the
tokens whose transition differs from its row.  `automaton_builders` builds the arrays.

Shape letters: K rows, V vocabulary, Q states, E exceptions, R rows of a decoding loop.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

UNREACHABLE = 2**30
"""Distance of a state from which no end can be reached."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Automaton:
    """A deterministic finite automaton over tokens.

    State 0 is the start, -1 the state after a disallowed token.  Integers are int32.  `trie`,
    `matcher` and `from_edges` round K, Q, E and `max_edges` up to powers of two, so that automata
    of similar size share a compiled program.

    Attributes:
      rows: next state for every token, -1 if the token is disallowed.
      row_of: index of each state's row in `rows`.
      first_edge: offsets; state q has exceptions `first_edge[q]` to `first_edge[q + 1] - 1`.
      tokens: token of each exception, ascending within a state.
      targets: next state of each exception, -1 if the token is disallowed.
      distance: minimum number of tokens from each state to an end, EOS included, or `UNREACHABLE`
        (2**30).
      ends: True for states in which a sequence is complete.
      max_edges: maximum number of exceptions per state; static.

    Examples:
      >>> automaton = t5jax.decoding.trie([[5, 6], [5, 7]], eos_id=1, vocab_size=9)
      >>> int(automaton.distance[0])  # two tokens and EOS
      3
    """

    rows: Int[Array, "K V"]
    row_of: Int[Array, " Q"]
    first_edge: Int[Array, " Q+1"]
    tokens: Int[Array, " E"]
    targets: Int[Array, " E"]
    distance: Int[Array, " Q"]
    ends: Bool[Array, " Q"]
    max_edges: int = dataclasses.field(metadata={"static": True})


def next_states(automaton: Automaton, states: Int[Array, " R"]) -> Int[Array, "R V"]:
    """Return the next state for every token.

    Args:
      automaton: the transitions.
      states: [R] current states; -1 allows no token.
    Returns:
      [R, V] int32, -1 where the token is disallowed.
    """
    live = jnp.maximum(states.astype(jnp.int32), 0)
    successors = automaton.rows[automaton.row_of[live]]
    edges = automaton.first_edge[live][:, None] + jnp.arange(automaton.max_edges)[None]
    present = edges < automaton.first_edge[live + 1][:, None]
    edges = jnp.where(present, edges, 0)
    # V is out of range, so its update is dropped.
    tokens = jnp.where(present, automaton.tokens[edges], automaton.rows.shape[1])
    rows = jnp.arange(states.shape[0])[:, None]
    successors = successors.at[rows, tokens].set(automaton.targets[edges], mode="drop")
    return jnp.where((states >= 0)[:, None], successors, -1)


def allowed_tokens(
    automaton: Automaton, states: Int[Array, " R"], remaining: Int[Array, " R"]
) -> Bool[Array, "R V"]:
    """Return the mask of tokens after which an end is still within reach.

    Args:
      automaton: the transitions.
      states: [R] current states; -1 allows no token.
      remaining: [R] number of tokens left to generate, including the next one; a state with a
        greater `distance` allows no token.
    Returns:
      [R, V] bool, True where the token is allowed.
    """
    successors = next_states(automaton, states)
    distance = automaton.distance[jnp.maximum(successors, 0)]
    after_next = jnp.clip(remaining.astype(jnp.int32), 0, UNREACHABLE) - 1
    return (successors >= 0) & (distance <= after_next[:, None])


def advance_states(
    automaton: Automaton, states: Int[Array, " R"], tokens: Int[Array, " R"]
) -> Int[Array, " R"]:
    """Return the state of every row after one token.

    Args:
      automaton: the transitions.
      states: [R] current states.
      tokens: [R] next token of each row.
    Returns:
      [R] int32, -1 where the token is disallowed or the state already was -1.
    """
    live = jnp.maximum(states.astype(jnp.int32), 0)
    edge, end = automaton.first_edge[live], automaton.first_edge[live + 1]
    last = automaton.tokens.shape[0] - 1
    # Binary search for the first exception whose token is at least the given one.
    for bit in reversed(range(automaton.max_edges.bit_length())):
        ahead = edge + (1 << bit)
        lower = automaton.tokens[jnp.minimum(ahead - 1, last)] < tokens
        edge = jnp.where((ahead <= end) & lower, ahead, edge)
    candidate = jnp.minimum(edge, last)
    is_exception = (edge < end) & (automaton.tokens[candidate] == tokens)
    shared = automaton.rows[automaton.row_of[live], tokens]
    return jnp.where(states >= 0, jnp.where(is_exception, automaton.targets[candidate], shared), -1)


def is_end(automaton: Automaton, states: Int[Array, "*R"]) -> Bool[Array, "*R"]:
    """Return True for states in which a sequence is complete, False for -1."""
    return (states >= 0) & automaton.ends[states]
