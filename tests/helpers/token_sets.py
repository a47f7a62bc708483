"""Random sets of token sequences, as lists and as automata that one compiled program serves."""

import dataclasses
import itertools

import jax
import numpy as np

from t5jax.decoding import trie

PAD, EOS, VOCAB = 0, 1, 6
LONGEST = 4


def draw(count, *, seed):
    """Sets of 1 to 6 sequences of length 0 to 4; PAD is a token like any other, EOS is not."""
    rng = np.random.default_rng(seed)
    tokens = [token for token in range(VOCAB) if token != EOS]
    every = [s for n in range(LONGEST + 1) for s in itertools.product(tokens, repeat=n)]
    of_length = [[s for s in every if len(s) == n] for n in range(LONGEST + 1)]
    sets = []
    for _ in range(count):
        lengths = rng.integers(0, LONGEST + 1, rng.integers(1, 7))
        sets.append(sorted({of_length[n][rng.integers(len(of_length[n]))] for n in lengths}))
    return sets


def stacked(sets):
    """The tries of all sets, padded to equal shapes and stacked for `jax.vmap`.

    Returns:
      A function that makes one automaton of one slice of the arrays, and the arrays.
    """
    tries = [trie(s, eos_id=EOS, vocab_size=VOCAB) for s in sets]
    max_edges = max(machine.max_edges for machine in tries)
    form = jax.tree.structure(dataclasses.replace(tries[0], max_edges=max_edges))
    # What pads an array is never read: no state leads there.
    parts = zip(*(map(np.asarray, jax.tree.leaves(machine)) for machine in tries), strict=True)
    return form.unflatten, [_stack(arrays) for arrays in parts]


def _stack(arrays):
    shape = np.max([array.shape for array in arrays], axis=0)
    widths = [[(0, n) for n in shape - array.shape] for array in arrays]
    return np.stack([np.pad(a, w, mode="edge") for a, w in zip(arrays, widths, strict=True)])


def fitting(sequences, limit):
    """The sequences, each with EOS, that are no longer than the limit."""
    return [(*s, EOS) for s in sequences if len(s) < limit]


def following(sequences, written):
    """The tokens that come next in those sequences that begin like this."""
    begun = [s for s in sequences if s[: len(written)] == tuple(written)]
    return sorted({s[len(written)] for s in begun if len(s) > len(written)})
