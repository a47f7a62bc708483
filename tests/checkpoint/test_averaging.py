"""Choosing and averaging checkpoints."""

import jax
import numpy as np
import pytest

from t5jax.checkpoint.averaging import average_checkpoints, choose_checkpoints, is_best
from t5jax.checkpoint.manager import CheckpointManager


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 1 to 4 of one array, the second the best and the fourth without a loss."""
    with_losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None}
    checkpoints = CheckpointManager(tmp_path, keep=9)
    for step, loss in with_losses.items():
        checkpoints.save(step, {"params": tree(step)}, {}, loss=loss)
    checkpoints.close()
    return tmp_path


def tree(step):
    return {"x": jax.numpy.full((2, 3), float(step) ** 2)}


def abstract():
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"x": jax.ShapeDtypeStruct((2, 3), np.float32, sharding=one)}


def test_choose_takes_the_newest_or_the_best(folder):
    assert choose_checkpoints(folder, choice="last", count=2, every=1) == [4, 3]
    assert choose_checkpoints(folder, choice="last", count=3, every=3) == [4, 3]
    assert choose_checkpoints(folder, choice="best", count=2, every=1) == [2, 3]
    assert choose_checkpoints(folder, choice="best", count=9, every=1) == [2, 3, 1]


@pytest.mark.parametrize(
    ("step", "losses", "best"),
    [
        (2, [3.0, 1.0, 2.0], True),
        (2, [], True),
        (2, [3.0, 0.5, 1.0], False),
        (3, [3.0, 1.0, 2.0], False),
        (4, [3.0], False),  # never evaluated
    ],
)
def test_is_best_compares_to_all_evaluations(folder, step, losses, best):
    assert is_best(folder, step, losses) is best


def test_mean_is_that_of_all_and_of_one_is_itself(folder):
    average = average_checkpoints(folder, [1, 2, 4], "params", abstract())
    np.testing.assert_allclose(average["x"], np.full((2, 3), (1 + 4 + 16) / 3), rtol=1e-6)
    average = average_checkpoints(folder, [3], "params", abstract())
    np.testing.assert_array_equal(average["x"], np.full((2, 3), 9.0))


def test_mean_names_a_checkpoint_that_is_damaged(folder):
    for file in (folder / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="2/params must be a folder of arrays"):
        average_checkpoints(folder, [1, 2], "params", abstract())
