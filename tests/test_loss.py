"""Loss and its gradient against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax import loss

B, T, V = 3, 5, 11
# Sums of some ten float32 terms of size 10 err by a few 1e-6.
RELATIVE = 5e-6


@pytest.fixture(scope="module")
def batch():
    """The second row is padded behind two tokens, the last wholly; weights need not be 0 or 1."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (B, T, V)).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    targets[0, :3] = logits[0, :3].argmax(-1)
    weights = np.array([[1, 1, 0.5, 2, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)
    return logits, targets, weights


def reference(logits, targets, weights, z_loss):
    """(cross entropy, penalty, correct), one position at a time."""
    entropy, penalty, correct = 0.0, 0.0, 0.0
    for b in range(len(logits)):
        for t in range(logits.shape[1]):
            x = logits[b, t].astype(np.float64)
            log_z = np.log(np.exp(x).sum())
            entropy += weights[b, t] * (log_z - x[targets[b, t]])
            penalty += weights[b, t] * z_loss * log_z**2
            correct += weights[b, t] * float(np.argmax(x) == targets[b, t])
    return entropy, penalty, correct


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
def test_cross_entropy_equals_float64(batch, z_loss):
    logits, targets, weights = batch
    result = loss.cross_entropy(*map(jnp.asarray, batch), z_loss=z_loss)
    entropy, penalty, correct = reference(logits, targets, weights, z_loss)
    np.testing.assert_allclose(result.cross_entropy, entropy, rtol=RELATIVE)
    np.testing.assert_allclose(result.total, entropy + penalty, rtol=RELATIVE)
    np.testing.assert_allclose(result.correct, correct)
    assert result.correct >= 2.5  # the three that were made correct, with their weights
    np.testing.assert_allclose(result.weight, 7.5)
    assert {x.dtype for x in result} == {jnp.dtype("float32")}


def test_cross_entropy_of_uniform_logits_is_log_vocabulary():
    logits, targets = jnp.full((1, 3, V), 7.0), jnp.array([[0, 4, 10]], jnp.int32)
    result = loss.cross_entropy(logits, targets, jnp.ones((1, 3)), z_loss=0.0)
    np.testing.assert_allclose(result.cross_entropy, 3 * np.log(V), rtol=RELATIVE)


def test_cross_entropy_adds_up_over_rows(batch):
    whole = loss.cross_entropy(*map(jnp.asarray, batch), z_loss=0.01)
    rows = [
        loss.cross_entropy(*(jnp.asarray(x[b : b + 1]) for x in batch), z_loss=0.01)
        for b in range(B)
    ]
    for total, parts in zip(whole, zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(total, np.sum(parts), rtol=RELATIVE)


def test_cross_entropy_ignores_what_has_no_weight(batch):
    logits, targets, weights = batch
    changed = np.where(weights[..., None] == 0, 30.0, logits).astype(np.float32)
    other = np.where(weights == 0, (targets + 1) % V, targets).astype(np.int32)
    before = loss.cross_entropy(*map(jnp.asarray, batch), z_loss=0.1)
    after = loss.cross_entropy(*map(jnp.asarray, (changed, other, weights)), z_loss=0.1)
    assert [float(x) for x in before] == [float(x) for x in after]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_cross_entropy_gradient_has_z_loss_factor(batch, z_loss):
    logits, targets, weights = batch

    def total(logits):
        args = (logits, jnp.asarray(targets), jnp.asarray(weights))
        return loss.cross_entropy(*args, z_loss=z_loss).total

    x = logits.astype(np.float64)
    z = np.exp(x).sum(-1, keepdims=True)
    factor = 1 + 2 * z_loss * np.log(z)
    expected = weights[..., None] * (np.exp(x) / z * factor - np.eye(V)[targets])
    # Entries that cancel to nothing err by the rounding of the factor, which is up to 4.
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(logits)), expected, atol=4e-6, rtol=1e-5)


def test_cross_entropy_of_no_weight_is_zero_with_zero_gradient(batch):
    logits, targets, _ = map(jnp.asarray, batch)

    def total(logits):
        return loss.cross_entropy(logits, targets, jnp.zeros((B, T)), z_loss=1e-4).total

    value, gradient = jax.value_and_grad(total)(logits)
    assert value == 0
    assert not np.any(gradient)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[[1e4, 0.0, -1e4]]])
    result = loss.cross_entropy(logits, jnp.array([[1]], jnp.int32), jnp.ones((1, 1)), z_loss=0.0)
    np.testing.assert_allclose(result.cross_entropy, 1e4)
