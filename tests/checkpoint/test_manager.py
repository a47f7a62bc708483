"""What was saved comes back bit for bit, or is known to be damaged."""

import json
import logging
import shutil
import subprocess
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.checkpoint.manager import CheckpointManager, complete_steps, preservation_policy
from t5jax.checkpoint.trees import checksum, load_tree, save_tree


def tree(offset: float) -> dict:
    key = jax.random.key(3)
    return {
        "weights": jax.random.normal(key, (300, 200)) + offset,
        "inner": {"count": jnp.asarray(7, jnp.int32), "half": jnp.ones((5,), jnp.bfloat16)},
    }


def shapes(value) -> dict:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), value)


def assert_equal(tree, expected) -> None:
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def save_two(folder: Path) -> None:
    checkpoints = CheckpointManager(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"params": tree(step)}, {"next": 10 * step})
    checkpoints.close()


def test_checkpoints_return_the_newest_bit_for_bit(tmp_path):
    save_two(tmp_path)
    checkpoints = CheckpointManager(tmp_path, keep=2)
    step, trees, record = checkpoints.restore_latest(
        {"params": shapes(tree(0.0))}, warn=pytest.fail
    )
    assert (step, record) == (2, {"next": 20})
    assert_equal(trees["params"], tree(2))


def test_checkpoints_keep_only_the_newest(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"params": {"x": jnp.ones(3)}}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert complete_steps(tmp_path) == [2, 3]


def test_checkpoints_keep_round_steps_and_the_best_too(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=1, keep_every=4, keep_best=2)
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5}
    for step, loss in losses.items():
        checkpoints.save(step, {"params": {"x": jnp.ones(3)}}, {}, loss=loss)
    checkpoints.close()
    assert complete_steps(tmp_path) == [2, 3, 4, 5]
    again = CheckpointManager(
        tmp_path, keep=1, keep_every=4, keep_best=2
    )  # knows the losses from disk
    again.save(6, {"params": {"x": jnp.ones(3)}}, {}, loss=0.5)
    again.close()
    assert complete_steps(tmp_path) == [2, 4, 6]


def brute_force(steps, losses, *, keep, keep_every, keep_best, keep_round):
    """Which steps stay, by counting, for each, those that come before it."""

    def among_first(step, others, count, key):
        return sum(key(other) < key(step) for other in others) < count

    def stays(step):
        rounded = keep_round and [other for other in steps if other % keep_round[1] == 0]
        measured = [other for other in steps if other in losses]
        return (
            among_first(step, steps, keep, lambda x: -x)
            or (keep_every is not None and step % keep_every == 0)
            or (
                rounded
                and step in rounded
                and among_first(step, rounded, keep_round[0], lambda x: -x)
            )
            or (
                step in measured
                and among_first(step, measured, keep_best, lambda x: (losses[x], x))
            )
        )

    return [step for step in steps if stays(step)]


@settings(deadline=None, max_examples=300)
@given(
    steps=st.lists(st.integers(1, 40), unique=True).map(sorted),
    losses=st.dictionaries(st.integers(1, 40), st.integers(0, 5).map(float)),
    keep=st.integers(1, 4),
    keep_every=st.none() | st.integers(1, 9),
    keep_best=st.integers(0, 4),
    keep_round=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 9)),
)
def test_policy_keeps_what_any_option_keeps(steps, losses, **options):
    policy = preservation_policy(losses, **options)
    checkpoints = [types.SimpleNamespace(step=step) for step in steps]
    flags = policy.should_preserve(checkpoints, context=None)
    kept = [step for step, flag in zip(steps, flags, strict=True) if flag]
    assert kept == brute_force(steps, losses, **options)


def test_checkpoints_keep_the_newest_round_steps_too(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=1, keep_round=(2, 2))
    for step in range(1, 8):
        checkpoints.save(step, {"params": {"x": jnp.ones(3)}}, {})
    checkpoints.close()
    assert complete_steps(tmp_path) == [4, 6, 7]


def test_checkpoints_leave_the_loggers_of_others_alone_and_log_no_warning(tmp_path, caplog):
    before = logging.getLogger("absl").level
    save_two(tmp_path)
    checkpoints = CheckpointManager(tmp_path, keep=2)
    checkpoints.restore_latest({"params": shapes(tree(0.0))}, warn=pytest.fail)
    checkpoints.close()
    assert logging.getLogger("absl").level == before
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_checkpoints_are_none_in_a_new_folder(tmp_path):
    checkpoints = CheckpointManager(tmp_path / "new", keep=1)
    assert checkpoints.restore_latest({"params": {}}, warn=pytest.fail) is None
    assert complete_steps(tmp_path / "absent") == []


def test_checkpoints_save_what_the_arrays_were_when_asked(tmp_path):
    """The step after a save gives its memory to the next state."""
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpoints = CheckpointManager(tmp_path, keep=1)
    x = jnp.zeros((1000, 1000))
    checkpoints.save(1, {"params": {"x": x}}, {})
    for _ in range(20):
        x = overwrite(x)
    checkpoints.wait()
    _, trees, _ = checkpoints.restore_latest({"params": shapes({"x": x})}, warn=pytest.fail)
    assert not np.any(trees["params"]["x"])


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder: Path) -> None:
    file = largest_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(folder: Path) -> None:
    file = largest_file(folder / "params")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove_record(folder: Path) -> None:
    shutil.rmtree(folder / "record")


def change_record(folder: Path) -> None:
    file = folder / "record" / "metadata"
    text = file.read_text()
    file.write_text(text.replace('"next": 20', '"next": 80'))


def test_record_of_an_older_checkpoint_has_no_digest(tmp_path):
    save_two(tmp_path)
    file = tmp_path / "2" / "record" / "metadata"
    contents = json.loads(file.read_text())
    del contents["digest"]
    file.write_text(json.dumps(contents))
    checkpoints = CheckpointManager(tmp_path, keep=2)
    restored = checkpoints.restore_latest({"params": shapes(tree(0))}, warn=pytest.fail)
    checkpoints.close()
    assert (restored[0], restored[2]) == (2, {"next": 20})


@pytest.mark.parametrize("damage", [truncate, flip_bit, remove_record, change_record])
def test_checkpoints_fall_back_when_the_newest_is_damaged(tmp_path, damage):
    save_two(tmp_path)
    damage(tmp_path / "2")
    warnings = []
    checkpoints = CheckpointManager(tmp_path, keep=2)
    step, trees, record = checkpoints.restore_latest(
        {"params": shapes(tree(0.0))}, warn=warnings.append
    )
    assert (step, record) == (1, {"next": 10})
    assert_equal(trees["params"], tree(1))
    assert len(warnings) == 1
    assert "checkpoint 2 is damaged" in warnings[0]
    assert (tmp_path / "2.damaged").is_dir()
    # The damaged step can be reached and saved again.
    checkpoints.save(2, {"params": tree(2)}, {"next": 20})
    checkpoints.close()
    assert complete_steps(tmp_path) == [1, 2]


def test_checkpoints_say_when_none_can_be_read(tmp_path):
    save_two(tmp_path)
    truncate(tmp_path / "1")
    truncate(tmp_path / "2")
    checkpoints = CheckpointManager(tmp_path, keep=2)
    with pytest.raises(ValueError, match="none of the checkpoints"):
        checkpoints.restore_latest({"params": shapes(tree(0.0))}, warn=pytest.fail)
    assert complete_steps(tmp_path) == [1, 2]


def test_checkpoints_stay_where_they_are_when_asked_for_other_arrays(tmp_path):
    save_two(tmp_path)
    other = {**tree(0.0), "weights": jnp.ones((300, 201))}
    checkpoints = CheckpointManager(tmp_path, keep=2)
    with pytest.raises(ValueError, match=r"weights must have shape \(300, 201\)"):
        checkpoints.restore_latest({"params": shapes(other)}, warn=pytest.fail)
    assert complete_steps(tmp_path) == [1, 2]


def test_checkpoints_survive_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        checkpoints = CheckpointManager(disk / "run", keep=3)
        small = {"x": jnp.arange(1000.0)}
        checkpoints.save(1, {"params": small}, {})
        checkpoints.wait()
        large = {"x": jax.random.normal(jax.random.key(0), (1000, 1000))}

        def save():
            checkpoints.save(2, {"params": large}, {})
            checkpoints.wait()

        with pytest.raises(OSError, match=r"could not write a checkpoint.*intact \(steps \[1\]\)"):
            save()
        again = CheckpointManager(disk / "run", keep=3)
        step, trees, _ = again.restore_latest({"params": shapes(small)}, warn=pytest.fail)
        assert step == 1
        assert_equal(trees["params"], small)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_load_tree_names_the_first_array_that_does_not_fit(tmp_path):
    save_tree(tmp_path / "params", tree(0.0))
    assert_equal(load_tree(tmp_path / "params", shapes(tree(0.0))), tree(0.0))
    wrong = {**tree(0.0), "weights": jnp.ones((300, 199))}
    with pytest.raises(ValueError, match=r"weights must have shape \(300, 199\).*\(300, 200\)"):
        load_tree(tmp_path / "params", shapes(wrong))
    fewer = {"weights": tree(0.0)["weights"]}
    with pytest.raises(ValueError, match="holds inner/count, which this config does not use"):
        load_tree(tmp_path / "params", shapes(fewer))
    with pytest.raises(ValueError, match="must hold other"):
        load_tree(tmp_path / "params", shapes({"other": jnp.ones(1)}))
    with pytest.raises(ValueError, match="must be a folder of arrays"):
        load_tree(tmp_path, shapes(tree(0.0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_checksum_notices_any_single_bit(dtype):
    width = 8 * jnp.dtype(dtype).itemsize
    values = jnp.arange(64).astype(dtype)
    bits = np.asarray(jax.lax.bitcast_convert_type(values, f"uint{width}"))
    before = int(checksum({"x": values}))
    for bit in range(width):
        changed = bits.copy()
        changed[bit] ^= changed.dtype.type(1 << bit)
        value = jax.lax.bitcast_convert_type(jnp.asarray(changed), dtype)
        assert int(checksum({"x": value})) != before
