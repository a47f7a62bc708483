"""Loss and its gradient against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.training.loss import chunked_cross_entropy, cross_entropy

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
    result = cross_entropy(*map(jnp.asarray, batch), z_loss=z_loss, label_smoothing=0.0)
    entropy, penalty, correct = reference(logits, targets, weights, z_loss)
    np.testing.assert_allclose(result.cross_entropy, entropy, rtol=RELATIVE)
    np.testing.assert_allclose(result.total, entropy + penalty, rtol=RELATIVE)
    np.testing.assert_allclose(result.correct, correct)
    assert result.correct >= 2.5  # the three that were made correct, with their weights
    np.testing.assert_allclose(result.weight, 7.5)
    assert {x.dtype for x in result} == {jnp.dtype("float32")}


def test_cross_entropy_of_uniform_logits_is_log_vocabulary():
    logits, targets = jnp.full((1, 3, V), 7.0), jnp.array([[0, 4, 10]], jnp.int32)
    result = cross_entropy(logits, targets, jnp.ones((1, 3)), z_loss=0.0, label_smoothing=0.0)
    np.testing.assert_allclose(result.cross_entropy, 3 * np.log(V), rtol=RELATIVE)


def test_cross_entropy_adds_up_over_rows(batch):
    whole = cross_entropy(*map(jnp.asarray, batch), z_loss=0.01, label_smoothing=0.0)
    rows = [
        cross_entropy(*(jnp.asarray(x[b : b + 1]) for x in batch), z_loss=0.01, label_smoothing=0.0)
        for b in range(B)
    ]
    for total, parts in zip(whole, zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(total, np.sum(parts), rtol=RELATIVE)


def test_cross_entropy_ignores_what_has_no_weight(batch):
    logits, targets, weights = batch
    changed = np.where(weights[..., None] == 0, 30.0, logits).astype(np.float32)
    other = np.where(weights == 0, (targets + 1) % V, targets).astype(np.int32)
    before = cross_entropy(*map(jnp.asarray, batch), z_loss=0.1, label_smoothing=0.0)
    after = cross_entropy(
        *map(jnp.asarray, (changed, other, weights)), z_loss=0.1, label_smoothing=0.0
    )
    assert [float(x) for x in before] == [float(x) for x in after]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_cross_entropy_gradient_has_z_loss_factor(batch, z_loss):
    logits, targets, weights = batch

    def total(logits):
        args = (logits, jnp.asarray(targets), jnp.asarray(weights))
        return cross_entropy(*args, z_loss=z_loss, label_smoothing=0.0).total

    x = logits.astype(np.float64)
    z = np.exp(x).sum(-1, keepdims=True)
    factor = 1 + 2 * z_loss * np.log(z)
    expected = weights[..., None] * (np.exp(x) / z * factor - np.eye(V)[targets])
    # Entries that cancel to nothing err by the rounding of the factor, which is up to 4.
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(logits)), expected, atol=4e-6, rtol=1e-5)


def test_cross_entropy_of_no_weight_is_zero_with_zero_gradient(batch):
    logits, targets, _ = map(jnp.asarray, batch)

    def total(logits):
        return cross_entropy(
            logits, targets, jnp.zeros((B, T)), z_loss=1e-4, label_smoothing=0.0
        ).total

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert value == 0
    assert not np.any(gradient)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[[1e4, 0.0, -1e4]]])
    result = cross_entropy(
        logits, jnp.array([[1]], jnp.int32), jnp.ones((1, 1)), z_loss=0.0, label_smoothing=0.0
    )
    np.testing.assert_allclose(result.cross_entropy, 1e4)


# Logits that never exist whole.


D = 6


@pytest.fixture(scope="module")
def states_batch(batch):
    """States and a kernel whose products are of size 5; the batch's targets and weights."""
    rng = np.random.default_rng(1)
    states = rng.normal(0, 2, (B, T, D)).astype(np.float32)
    kernel = rng.normal(0, 1, (D, V)).astype(np.float32)
    return states, kernel, *batch[1:]


@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize(("num_chunks", "num_parts"), [(1, 1), (2, 1), (3, 1), (11, 1), (40, 1)])
def test_chunked_cross_entropy_equals_that_of_whole_logits(
    states_batch, num_chunks, num_parts, vocab_axis
):
    """Chunks of 11, 6, 4 and 1 columns: the last of them overlaps in two cases."""
    check_chunked(states_batch, num_chunks, num_parts, vocab_axis)


@pytest.mark.parametrize(("num_chunks", "num_parts"), [(1, 4), (2, 2), (2, 3), (3, 2)])
def test_chunked_cross_entropy_takes_from_every_part(states_batch, num_chunks, num_parts):
    states, kernel, *rest = states_batch
    kernel = np.concatenate([kernel, kernel[:, :1] * 0.5], axis=1)  # twelve ids
    check_chunked((states, kernel, *rest), num_chunks, num_parts, 1)


def check_chunked(states_batch, num_chunks, num_parts, vocab_axis):
    states, kernel, targets, weights = map(jnp.asarray, states_batch)

    def chunked(states, kernel):
        result = chunked_cross_entropy(
            states,
            kernel if vocab_axis else kernel.T,
            targets,
            weights,
            vocab_axis=vocab_axis,
            scale=0.7,
            z_loss=0.01,
            label_smoothing=0.0,
            num_chunks=num_chunks,
            num_parts=num_parts,
        )
        return 3 * result.total + result.cross_entropy, result

    def whole(states, kernel):
        logits = jnp.einsum("btd,dv->btv", states, kernel) * 0.7
        result = cross_entropy(logits, targets, weights, z_loss=0.01, label_smoothing=0.0)
        return 3 * result.total + result.cross_entropy, result

    (_, found), gradients = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))(
        states, kernel
    )
    (_, expected), references = jax.jit(jax.value_and_grad(whole, (0, 1), has_aux=True))(
        states, kernel
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=RELATIVE)
    for one, other in zip(gradients, references, strict=True):
        # Sums of some ten terms of size 4.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_chunked_cross_entropy_holds_no_logits_of_the_whole_vocabulary():
    rows, width, vocab_size = 64, 8, 4096

    def total(states, kernel, num_chunks):
        return chunked_cross_entropy(
            states,
            kernel,
            jnp.zeros((1, rows), jnp.int32),
            jnp.ones((1, rows)),
            vocab_axis=1,
            scale=1.0,
            z_loss=0.0,
            label_smoothing=0.1,
            num_chunks=num_chunks,
        ).total

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, rows, width), (width, vocab_size))
    ]
    grad = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    memory = grad.lower(*shapes, 16).compile().memory_analysis()
    # The kernel's gradient is as large as the kernel, and a chunk's logits a sixteenth of 1 MB.
    assert memory.temp_size_in_bytes < 4 * rows * vocab_size / 2


def test_chunked_cross_entropy_lets_infinity_and_nan_through(states_batch):
    states, kernel, targets, weights = states_batch
    states = states.copy()
    states[0, 0, 0] = np.nan
    result = chunked_cross_entropy(
        *map(jnp.asarray, (states, kernel, targets, weights)),
        vocab_axis=1,
        scale=1.0,
        z_loss=0.0,
        label_smoothing=0.1,
        num_chunks=3,
    )
    assert np.isnan(result.total)


def test_chunked_cross_entropy_refuses_parts_that_do_not_divide(states_batch):
    with pytest.raises(ValueError, match="multiple of its 2 parts, got 11; pad it"):
        check_chunked(states_batch, 1, 2, 1)


# Smoothed targets, against torch in float64.

Z_LOSS = 0.01


def smoothed_by_torch(logits, targets, weights, label_smoothing):
    """(total, cross entropy) of tensors."""
    functional = pytest.importorskip("torch.nn.functional")

    def entropy(label_smoothing):
        each = functional.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten().long(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return (each * weights.flatten()).sum()

    penalty = Z_LOSS * (weights * logits.logsumexp(-1).square()).sum()
    return entropy(label_smoothing) + penalty, entropy(0.0)


def in_torch(*arrays):
    """Float64 for float32."""
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(np.array(x)) for x in arrays]
    return [x.double() if x.is_floating_point() else x for x in tensors]


def combined(total, entropy):
    """Of which both have a gradient, and not the same."""
    return 3 * total + 0.5 * entropy


@pytest.mark.parametrize("label_smoothing", [0.1, 0.9])
def test_cross_entropy_smooths_targets_as_torch_does(batch, label_smoothing):
    logits, targets, weights = in_torch(*batch)
    logits.requires_grad_()
    total, entropy = smoothed_by_torch(logits, targets, weights, label_smoothing)
    combined(total, entropy).backward()

    def smoothed(logits):
        result = cross_entropy(
            logits, *map(jnp.asarray, batch[1:]), z_loss=Z_LOSS, label_smoothing=label_smoothing
        )
        return combined(result.total, result.cross_entropy), result

    (_, result), gradient = jax.jit(jax.value_and_grad(smoothed, has_aux=True))(
        jnp.asarray(batch[0])
    )
    plain = cross_entropy(*map(jnp.asarray, batch), z_loss=0.0, label_smoothing=0.0)
    np.testing.assert_allclose(result.total, total.item(), rtol=RELATIVE)
    assert [float(x) for x in result[1:]] == [float(x) for x in plain[1:]]
    # Sums of a few terms of size 7.
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize(("num_chunks", "num_parts"), [(1, 1), (3, 1), (12, 1), (2, 4), (4, 2)])
def test_chunked_cross_entropy_smooths_targets_as_torch_does(
    states_batch, num_chunks, num_parts, vocab_axis
):
    """Chunks of 13, 5, 2, 2, 2 columns of 13, 13, 13, 3, 6: the middle three overlap."""
    states, kernel, *rest = states_batch
    more = np.random.default_rng(2).normal(0, 1, (D, 2 if num_parts == 1 else 1))
    kernel = np.concatenate([kernel, more.astype(np.float32)], axis=1)
    check_smoothed((states, kernel, *rest), num_chunks, num_parts, vocab_axis)


def check_smoothed(states_batch, num_chunks, num_parts, vocab_axis):
    label_smoothing, scale = 0.3, 0.7
    states, kernel, targets, weights = in_torch(*states_batch)
    states.requires_grad_()
    kernel.requires_grad_()
    logits = states @ kernel * scale
    total, entropy = smoothed_by_torch(logits, targets, weights, label_smoothing)
    combined(total, entropy).backward()

    def smoothed(states, kernel):
        result = chunked_cross_entropy(
            states,
            kernel if vocab_axis else kernel.T,
            *map(jnp.asarray, states_batch[2:]),
            vocab_axis=vocab_axis,
            scale=scale,
            z_loss=Z_LOSS,
            label_smoothing=label_smoothing,
            num_chunks=num_chunks,
            num_parts=num_parts,
        )
        return combined(result.total, result.cross_entropy), result

    arrays = tuple(map(jnp.asarray, states_batch[:2]))
    (_, result), gradients = jax.jit(jax.value_and_grad(smoothed, (0, 1), has_aux=True))(*arrays)
    np.testing.assert_allclose(result.total, total.item(), rtol=RELATIVE)
    np.testing.assert_allclose(result.cross_entropy, entropy.item(), rtol=RELATIVE)
    for one, other in zip(gradients, (states.grad, kernel.grad), strict=True):
        # Sums of some ten terms of size 10.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=3e-5)


def test_chunked_cross_entropy_with_smoothing_ignores_what_has_no_weight(states_batch):
    states, kernel, targets, weights = states_batch
    changed = np.where(weights[..., None] == 0, np.nan, states).astype(np.float32)

    def total(states, kernel):
        return chunked_cross_entropy(
            states,
            kernel,
            *map(jnp.asarray, (targets, weights)),
            vocab_axis=1,
            scale=1.0,
            z_loss=0.0,
            label_smoothing=0.1,
            num_chunks=3,
        ).total

    before = jax.jit(jax.value_and_grad(total))(*map(jnp.asarray, (states, kernel)))
    after = jax.jit(jax.value_and_grad(total))(*map(jnp.asarray, (changed, kernel)))
    assert np.isfinite(before[0])
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
