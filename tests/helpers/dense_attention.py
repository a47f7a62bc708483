"""Attention over all pairs of positions, to compare others with."""

import jax
import jax.numpy as jnp
import numpy as np

from t5jax.ops.masks import Segments

B, N, H = 2, 3, 5
# Sums of at most a hundred float32 products of size 1; the order of additions is all that differs.
ABSOLUTE = 1e-5


def dense(queries, keys, values, bias, mask):
    """softmax as it is written in the paper, over all pairs at once."""
    t, s = queries.shape[2], keys.shape[2]
    scores = jnp.einsum("bnth,bnsh->bnts", queries, keys)
    if bias is not None:
        index = np.arange(s)[None, :] - np.arange(t)[:, None] + t - 1
        scores = scores + bias[:, index][None]
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bnts,bnsh->bnth", jax.nn.softmax(scores), values)


def example(query_len, key_len, *, kind, causal, dtype=jnp.float32):
    """Queries, keys, values, bias, the direction of a gradient; segments, and the mask they mean.

    Masks are made by loops, not by `Segments`.
    """
    rng = np.random.default_rng(query_len + key_len)
    sizes = [(query_len, H), (key_len, H), (key_len, H), (query_len, H)]
    q, k, v, out = (jnp.asarray(rng.normal(size=(B, N, *size)), dtype) for size in sizes)
    bias = jnp.asarray(rng.normal(size=(N, query_len + key_len - 1)), jnp.float32)
    query_ids = key_ids = None
    if kind == "padding":
        key_ids = np.ones((B, key_len), np.int32)
        key_ids[1, key_len // 3 :] = 0
    elif kind == "segments":
        # Segment 3 has no keys: its queries look nowhere.
        query_ids = np.sort(rng.integers(1, 4, (B, query_len))).astype(np.int32)
        key_ids = np.sort(rng.integers(0, 3, (B, key_len)))[:, ::-1].astype(np.int32)
    mask = np.zeros((B, 1, query_len, key_len), bool)
    for b, t, s in np.ndindex(B, query_len, key_len):
        here = 1 if query_ids is None else query_ids[b, t]
        there = 1 if key_ids is None else key_ids[b, s]
        mask[b, 0, t, s] = here == there and not (causal and s > t)
    as_array = [None if ids is None else jnp.asarray(ids) for ids in (query_ids, key_ids)]
    return (q, k, v, bias), out, Segments(*as_array, causal), mask


def with_gradients(attend, *arrays, out):
    """What `attend` makes of the arrays, and all gradients in the direction `out`; one program."""

    @jax.jit
    def run(*arrays):
        found, back = jax.vjp(attend, *arrays)
        return found, back(out)

    return run(*arrays)


def check(attend, query_len, key_len, *, kind, causal, has_bias=True, atol=ABSOLUTE):
    """Compares `attend(q, k, v, bias, segments)` and all its gradients to `dense`."""
    (q, k, v, bias), out, segments, mask = example(query_len, key_len, kind=kind, causal=causal)
    bias = bias if has_bias else None
    found, grads = with_gradients(lambda *x: attend(*x, segments), q, k, v, bias, out=out)
    expected, expected_grads = with_gradients(lambda *x: dense(*x, mask), q, k, v, bias, out=out)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    for name, ours, theirs in zip("qkvb", grads, expected_grads, strict=True):
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol, err_msg=name)
