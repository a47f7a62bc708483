"""Which parameters a pattern leaves out of training."""

import jax
import pytest

from t5jax.training.step import merge_params, partition_params

TREE = {
    "encoder": {"layers": {"mlp": {"wi": 1, "wo": 2}}, "relative_bias": {"embedding": 3}},
    "decoder": {"layers": {"mlp": {"wi": 4}}},
    "token_embedder": {"embedding": 5},
}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], []),
        (["encoder"], [1, 2, 3]),
        (["token_embedder", "wi"], [1, 4, 5]),
        (["(encoder|decoder)/.*/wi"], [1, 4]),
        (["w."], [1, 2, 4]),
        (["embedding"], [3, 5]),
    ],
)
def test_split_freezes_what_a_pattern_fits(patterns, frozen):
    trained, kept = partition_params(TREE, patterns)
    assert sorted(jax.tree.leaves(kept)) == frozen
    assert sorted(jax.tree.leaves(trained)) == sorted({1, 2, 3, 4, 5} - set(frozen))
    assert merge_params(trained, kept) == TREE


def test_split_refuses_patterns_that_fit_nothing_or_everything():
    with pytest.raises(ValueError, match=r"got 'encode', .*use decoder, enc"):
        partition_params(TREE, ["encode"])
    with pytest.raises(ValueError, match="frozen must leave"):
        partition_params(TREE, [".*"])
