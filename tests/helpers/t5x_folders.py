"""Tiny T5X checkpoints, written with NumPy, Flax, TensorStore and Orbax from their description.

Names and shapes are those of T5X's own checkpoints; nothing here comes from t5jax.
"""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from flax import serialization

# No two sizes alike, and HEADS * D_KV = 15 is not D_MODEL.
VOCAB, D_MODEL, D_KV, HEADS, D_FF, BUCKETS = 97, 16, 5, 3, 24, 8
LAYERS = {"encoder": 2, "decoder": 3}
JOINED = HEADS * D_KV
# Of a stack: their name, our name, and the name of the norm before.
ATTENTIONS = {
    "encoder": [("attention", "attention", "pre_attention_layer_norm")],
    "decoder": [
        ("self_attention", "self_attention", "pre_self_attention_layer_norm"),
        ("encoder_decoder_attention", "cross_attention", "pre_cross_attention_layer_norm"),
    ],
}
TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint16": "<u2"}


def shapes(*, gated=True, tied=False, decoder=True, per_layer_bias=False, layers=None):
    """Every parameter below `target/` of a T5 whose layers are not scanned."""
    found = {"token_embedder/embedding": (VOCAB, D_MODEL)}
    for stack, num_layers in (layers or LAYERS).items():
        if stack == "decoder" and not decoder:
            continue
        for i in range(num_layers):
            layer = f"{stack}/layers_{i}"
            for name, _, norm in ATTENTIONS[stack]:
                for kernel in ("query", "key", "value"):
                    found[f"{layer}/{name}/{kernel}/kernel"] = (D_MODEL, JOINED)
                found[f"{layer}/{name}/out/kernel"] = (JOINED, D_MODEL)
                found[f"{layer}/{norm}/scale"] = (D_MODEL,)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                found[f"{layer}/mlp/{name}/kernel"] = (D_MODEL, D_FF)
            found[f"{layer}/mlp/wo/kernel"] = (D_FF, D_MODEL)
            found[f"{layer}/pre_mlp_layer_norm/scale"] = (D_MODEL,)
            if per_layer_bias:
                found[f"{layer}/relpos_bias/rel_embedding"] = (HEADS, BUCKETS)
        if not per_layer_bias:
            found[f"{stack}/relpos_bias/rel_embedding"] = (HEADS, BUCKETS)
        found[f"{stack}/{stack}_norm/scale"] = (D_MODEL,)
    if decoder and not tied:
        found["decoder/logits_dense/kernel"] = (D_MODEL, VOCAB)
    return found


def random_arrays(*, seed=0, dtype=np.float32, **options):
    """Values, all different; options as for `shapes`."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=s).astype(dtype) for name, s in shapes(**options).items()}


def _layers(arrays, stack):
    return len({name.split("/")[1] for name in arrays if name.startswith(f"{stack}/layers_")})


def scanned(arrays, *, scope="{stack}/{stack}", bias="relpos_bias"):
    """The same with all layers of a stack in one array, the layer second."""
    found = {}
    for name, value in arrays.items():
        stack, _, rest = name.partition("/")
        if not rest.startswith("layers_"):
            found[name] = value
        elif rest.startswith("layers_0/"):
            rest = rest.removeprefix("layers_0/")
            rows = [arrays[f"{stack}/layers_{i}/{rest}"] for i in range(_layers(arrays, stack))]
            there = f"{scope.format(stack=stack)}/{rest.replace('relpos_bias', bias)}"
            found[there] = np.stack(rows, axis=1)
    return found


def split_heads(arrays):
    """The same with heads as an axis of their own, as in umT5."""
    found = {}
    for name, value in arrays.items():
        if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
            value = value.reshape(*value.shape[:-1], HEADS, D_KV)
        elif name.endswith("out/kernel"):
            value = value.reshape(HEADS, D_KV, *value.shape[1:])
            value = np.moveaxis(value, 1, -2)
        found[name] = value
    return found


def expected_params(arrays):
    """Our parameters, '/'-joined, of arrays whose layers are not scanned."""
    found = {"token_embedder/embedding": arrays["token_embedder/embedding"]}
    if "decoder/logits_dense/kernel" in arrays:
        found["output/kernel"] = arrays["decoder/logits_dense/kernel"]
    for stack, attentions in ATTENTIONS.items():
        if f"{stack}/{stack}_norm/scale" not in arrays:
            continue
        found[f"{stack}/final_norm/scale"] = arrays[f"{stack}/{stack}_norm/scale"]
        if f"{stack}/relpos_bias/rel_embedding" in arrays:
            bias = arrays[f"{stack}/relpos_bias/rel_embedding"].T
            found[f"{stack}/relative_bias/embedding"] = bias

        def put(ours, theirs, stack=stack):
            rows = [arrays[f"{stack}/layers_{i}/{theirs}"] for i in range(_layers(arrays, stack))]
            rows = [row.T if "rel_embedding" in theirs else row for row in rows]
            found[f"{stack}/layers/{ours}"] = np.stack(rows)

        for theirs, ours, norm in attentions:
            for kernel in ("query", "key", "value", "out"):
                put(f"{ours}/{kernel}", f"{theirs}/{kernel}/kernel")
            put(f"{ours}_norm/scale", f"{norm}/scale")
        gated = f"{stack}/layers_0/mlp/wi_0/kernel" in arrays
        inner = [("wi", "wi_0"), ("wi_linear", "wi_1")] if gated else [("wi", "wi")]
        for ours, theirs in [*inner, ("wo", "wo")]:
            put(f"mlp/{ours}", f"mlp/{theirs}/kernel")
        put("mlp_norm/scale", "pre_mlp_layer_norm/scale")
        if f"{stack}/layers_0/relpos_bias/rel_embedding" in arrays:
            put("relative_bias/embedding", "relpos_bias/rel_embedding")
    return found


def nested(flat, root=""):
    """Names with '/' as dicts within dicts, below `root`."""
    tree = {}
    for name, value in flat.items():
        *path, last = f"{root}/{name}".strip("/").split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def write_tree(file, tree):
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(serialization.msgpack_serialize(tree))
    return file


def optimizer_state(arrays):
    """Adafactor's, of which T5X keeps four for every parameter."""
    states = {}
    for name, value in arrays.items():
        states |= {f"{name}/{slot}": np.zeros((1,), np.float32) for slot in ("m", "v_col", "v_row")}
        states[f"{name}/v"] = np.full(value.shape, 7, np.float32)
    return {"param_states": nested(states), "step": np.int32(1000)}


def write_msgpack(file, arrays, *, optimizer=False):
    """The form that holds everything in one file."""
    state = optimizer_state(arrays) if optimizer else {"step": np.int32(1000)}
    target = {"target": nested(arrays), "state": state}
    return write_tree(file, {"version": 3, "optimizer": target})


def write_zarr(
    folder,
    arrays,
    *,
    inline=(),
    driver="file",
    metadata_files=True,
    version=3,
    chunks=None,
    prefix="target",
    change=lambda spec: spec,
):
    """The form with a folder of Zarr chunks for every array, and what T5X's msgpack says of them.

    Args:
      folder: the checkpoint.
      arrays: by name below `target/`.
      inline: endings of the names of arrays that are in the msgpack file itself.
      driver: that the msgpack file names; the files are here all the same.
      metadata_files: whether `.zarray` is there.
      version: 2 has bfloat16 as uint16.
      chunks: largest size of a chunk along each axis; None for one chunk.
      prefix: of the folders' names.
      change: gets every specification and returns that of the msgpack file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {}
    for name, value in arrays.items():
        if version < 3 and value.dtype == ml_dtypes.bfloat16:
            value = value.view(np.uint16)
        if inline and name.endswith(inline):
            leaves[name] = value
            continue
        own = f"{prefix}.{name.replace('/', '.')}"
        spec = {
            "driver": "zarr",
            "dtype": value.dtype.name,
            "metadata": {
                "shape": list(value.shape),
                "chunks": [min(n, chunks or n) for n in value.shape],
                "compressor": {"id": "gzip", "level": 1},
            },
        }
        put_zarr(folder / own, value, spec)
        if not metadata_files:
            (folder / own / ".zarray").unlink()
        where = {
            "file": {"kvstore": {"driver": "file", "path": f"{own}/"}},
            "gfile": {"kvstore": {"driver": "gfile", "path": f"{own}/"}},
            "gcs": {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": f"{own}/"},
        }
        leaves[name] = change({**spec, **where[driver]})
    target = {"target": nested(leaves), "state": {"step": np.int32(1000), "param_states": {}}}
    write_tree(folder / "checkpoint", {"version": version, "optimizer": target})
    return folder


def put_zarr(folder, value, spec):
    """Writes chunks and `.zarray` or `zarr.json`."""
    import tensorstore

    where = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.open({**spec, "kvstore": where}, create=True).result()
    store.write(value).result()


def write_old_orbax(folder, arrays, *, root="_optimizer/target"):
    """Orbax's first generation: placeholders in msgpack, and Zarr compressed by Zstandard."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {}
    for name, value in arrays.items():
        own = f"{root}/{name}".replace("/", ".")
        put_zarr(
            folder / own,
            value,
            {
                "driver": "zarr",
                "metadata": {
                    "shape": list(value.shape),
                    "chunks": list(value.shape),
                    "dtype": TYPES.get(value.dtype.name, value.dtype.name),
                    "compressor": {"id": "zstd", "level": 1},
                },
            },
        )
        leaves[name] = f"PLACEHOLDER://{own}"
    put_zarr(
        folder / "_optimizer.state.step",
        np.int32(1000),
        {
            "driver": "zarr",
            "metadata": {
                "shape": [],
                "chunks": [],
                "dtype": "<i4",
                "compressor": {"id": "zstd", "level": 1},
            },
        },
    )
    # Parts of the state that hold nothing are there all the same.
    tree = nested(leaves, root)
    tree.setdefault("_optimizer", {})["state"] = {"step": "PLACEHOLDER://_optimizer.state.step"}
    tree |= {"flax_mutables": None, "flax_mutables_axes": None, "params_axes": None}
    write_tree(folder / "checkpoint", tree)
    return folder


def write_orbax(folder, arrays, *, root="target", extra=None, **options):
    """Orbax's own writer; options such as `use_ocdbt` and `use_zarr3`."""
    import orbax.checkpoint

    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    tree = {**nested(arrays, root), "step": np.int32(1000), **(extra or {})}
    handler = orbax.checkpoint.PyTreeCheckpointHandler(**options)
    with orbax.checkpoint.Checkpointer(handler) as writer:
        writer.save(folder, tree)
    return folder
