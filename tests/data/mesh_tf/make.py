"""Writes this folder's checkpoints and those of `mesh_tf_sharded` and `mesh_tf_partitioned`.

Written by TensorFlow 2.21.0 (tensorflow-cpu) with `python tests/data/mesh_tf/make.py`; tests read
what it wrote and never run it.  The variables are those that Mesh TensorFlow has for a T5 1.1 with
an output layer of its own: 48 tokens, width 8, 3 heads of 4, feed-forward width 10, 2 blocks in the
encoder and 1 in the decoder, 8 buckets.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
VOCAB, D_MODEL, D_FF, NUM_HEADS, HEADS, BUCKETS = 48, 8, 10, 3, 12, 8
BLOCKS = {"encoder": 2, "decoder": 1}


def shapes() -> dict[str, tuple[int, ...]]:
    found = {"shared/embedding": (VOCAB, D_MODEL), "decoder/logits/kernel": (D_MODEL, VOCAB)}
    for stack, num_blocks in BLOCKS.items():
        attentions = ["SelfAttention", "EncDecAttention"][: 1 + (stack == "decoder")]
        for i in range(num_blocks):
            block = f"{stack}/block_{i:03d}"
            for j, attention in enumerate(attentions):
                layer = f"{block}/layer_{j:03d}"
                for name in "qkv":
                    found[f"{layer}/{attention}/{name}"] = (D_MODEL, HEADS)
                found[f"{layer}/{attention}/o"] = (HEADS, D_MODEL)
                found[f"{layer}/rms_norm/scale"] = (D_MODEL,)
            layer = f"{block}/layer_{len(attentions):03d}"
            found[f"{layer}/DenseReluDense/wi_0/kernel"] = (D_MODEL, D_FF)
            found[f"{layer}/DenseReluDense/wi_1/kernel"] = (D_MODEL, D_FF)
            found[f"{layer}/DenseReluDense/wo/kernel"] = (D_FF, D_MODEL)
            found[f"{layer}/rms_norm/scale"] = (D_MODEL,)
        bias = f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"
        found[bias] = (NUM_HEADS, BUCKETS)
        found[f"{stack}/rms_norm/scale"] = (D_MODEL,)
    return found


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1910_10683)
    found = {}
    for name, shape in shapes().items():
        low, high = (0.5, 1.5) if name.endswith("scale") else (-1, 1)
        found[name] = rng.uniform(low, high, shape).astype(np.float32)
    # Adafactor keeps factors for large variables and all values for small ones.
    found["shared/embedding_slot_vr"] = rng.uniform(0, 1, D_MODEL).astype(np.float32)
    found["shared/embedding_slot_vc"] = rng.uniform(0, 1, VOCAB).astype(np.float32)
    found["encoder/rms_norm/scale_slot_v"] = rng.uniform(0, 1, D_MODEL).astype(np.float32)
    slot = rng.uniform(-1, 1, D_MODEL)
    found["encoder/rms_norm/scale_slot_m"] = slot.astype(tf.bfloat16.as_numpy_dtype)
    found["global_step"] = np.array(1000, np.int64)
    return found


def save(found: dict[str, np.ndarray]) -> None:
    """As training does, and with paths that do not say where this ran."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
            for name, value in found.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)
        saver.save(session, str(HERE / "model.ckpt"), global_step=1000, write_meta_graph=False)


def save_sharded() -> None:
    """Three data files with every type, an empty tensor and strings."""
    rng = np.random.default_rng(7)
    found = {
        "bfloat16": rng.normal(size=(3, 5)).astype(tf.bfloat16.as_numpy_dtype),
        "bool": np.array([True, False, True]),
        "empty": np.zeros((0, 4), np.float32),
        "float16": rng.normal(size=(2, 1, 3)).astype(np.float16),
        "float32": np.array([np.nan, -0.0, np.inf, 1e-42], np.float32),
        "float64": rng.normal(size=7),
        "int32": np.array([[-1, 2**31 - 1]], np.int32),
        "int64": np.array(-(2**63), np.int64),
        "int8": np.array([-128, 127], np.int8),
        "strings": np.array([b"left", b"out"]),
        "uint8": np.arange(5, dtype=np.uint8),
    }
    folder = HERE.with_name("mesh_tf_sharded")
    folder.mkdir(exist_ok=True)
    parts = []
    for i in range(3):
        part = {name: value for j, (name, value) in enumerate(found.items()) if j % 3 == i}
        parts.append(str(folder / f"part-{i}"))
        tensors = [tf.constant(value) for value in part.values()]
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=list(part),
            shape_and_slices=[""] * len(part),
            tensors=tensors,
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(folder / "model.ckpt-7")
    )
    del found["strings"]
    save_expected(folder, found)


def save_partitioned() -> None:
    """A variable in two pieces."""
    folder = HERE.with_name("mesh_tf_partitioned")
    folder.mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt-0"),
        tensor_names=["shared/embedding"] * 2,
        shape_and_slices=["4 2 0,2:-", "4 2 2,2:-"],
        tensors=[tf.ones((2, 2)), tf.zeros((2, 2))],
    )


def save_expected(folder: Path, found: dict[str, np.ndarray]) -> None:
    """Without TensorFlow's types, bfloat16 as the same bits in uint16."""
    plain = {
        name: value.view(np.uint16) if value.dtype == tf.bfloat16.as_numpy_dtype else value
        for name, value in found.items()
    }
    np.savez_compressed(folder / "expected.npz", **plain)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    saved = values()
    save(saved)
    save_expected(HERE, saved)
    save_sharded()
    save_partitioned()
