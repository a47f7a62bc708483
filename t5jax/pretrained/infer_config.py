"""Config inference from parameter shapes."""

from collections.abc import Mapping

from t5jax.fileio import JsonObject
from t5jax.pretrained.formats import LazyArray
from t5jax.pretrained.name_map import EMBEDDING_PATH, OUTPUT_PATH, PROJECTION_PATH, Leaf

_PER_LAYER_BIAS = "encoder/layers/relative_bias/embedding"


def infer_shapes(
    layout: Mapping[str, Leaf], arrays: Mapping[str, LazyArray]
) -> dict[str, tuple[int, ...]]:
    """Infer the shapes of our parameters from the first layer of each.

    Args:
      layout: the arrays of each parameter, by t5jax path.
      arrays: arrays by name.
    """
    shapes = {}
    for ours, leaf in layout.items():
        shape = arrays[leaf.names[0]].shape
        # An array of the wrong rank keeps its shape, which is rejected later.
        if not leaf.axes or len(leaf.axes) == len(shape):
            layers = (len(leaf.names),) if leaf.per_layer else ()
            shapes[ours] = (*layers, *leaf.to_ours(shape))
        else:
            shapes[ours] = tuple(shape)
    return shapes


def mark_shared_bias(layout: dict[str, Leaf], *, keep: bool) -> None:
    """Move a stack's shared bias table out of its first layer, where most formats store it.

    Args:
      layout: the arrays of each parameter, by t5jax path; modified in place.
      keep: whether to treat tables as per-layer even if only the first layer has one.
    """
    paths = [f"{stack}/layers/relative_bias/embedding" for stack in ("encoder", "decoder")]
    tables = {path: layout[path] for path in paths if path in layout}
    if keep or any(len(leaf.names) > 1 for leaf in tables.values()):
        return
    for path, leaf in tables.items():
        del layout[path]
        layout[path.replace("layers/", "")] = Leaf(leaf.names, leaf.axes, False)


def drop_decoder(layout: dict[str, Leaf], ignored: dict[str, str]) -> None:
    """Move the arrays that only the decoder uses from `layout` to `ignored`."""
    for path in [path for path in layout if path.startswith(("decoder/", "output/"))]:
        ignored |= dict.fromkeys(layout.pop(path).names, "decoder only")


def infer_switches(shapes: Mapping[str, tuple[int, ...]]) -> JsonObject:
    """Infer the fields of `T5Config` that determine which parameters exist.

    Args:
      shapes: shapes of the parameters, by t5jax path.
    """
    return {
        "vocab_size": _size(shapes, EMBEDDING_PATH, 0),
        "gated_ff": "encoder/layers/mlp/wi_linear" in shapes,
        "tie_embeddings": OUTPUT_PATH not in shapes,
        "projection_dim": _size(shapes, PROJECTION_PATH, -1),
        "relative_bias_per_layer": _PER_LAYER_BIAS in shapes,
    }


def infer_fields(shapes: Mapping[str, tuple[int, ...]], *, source: object) -> JsonObject:
    """Infer the fields of `T5Config` that follow from the parameters, for files without a config.

    Logits are scaled if and only if the output layer is tied to the embedding.  Gated feed-forward
    layers use tanh GELU, others ReLU.  This holds for every published T5 except UL2, which is gated
    with SiLU.

    Args:
      shapes: shapes of the parameters, by t5jax path.
      source: file name for error messages.
    Returns:
      Field values by name.
    Raises:
      ValueError: a parameter that determines a size is missing or has an invalid shape.
    """
    switches = infer_switches(shapes)
    per_layer = switches["relative_bias_per_layer"]
    bias = _PER_LAYER_BIAS if per_layer else "encoder/relative_bias/embedding"
    ranks = {
        EMBEDDING_PATH: 2,
        "encoder/layers/attention/query": 3,
        "encoder/layers/mlp/wi": 3,
        bias: 2 + per_layer,
    }
    for path, rank in ranks.items():
        if len(shapes.get(path, ())) != rank:
            raise ValueError(
                f"{source} must contain a T5 encoder to infer sizes from, but {path} has shape "
                f"{shapes.get(path, 'none')}."
            )
    num_layers, d_model, joined = shapes["encoder/layers/attention/query"]
    buckets, num_heads = shapes[bias][-2:]
    if not num_heads or joined % num_heads:
        raise ValueError(
            f"{source} must have attention kernels whose width is a multiple of the {num_heads} "
            f"heads of its relative bias, got {joined}."
        )
    return {
        **switches,
        "d_model": d_model,
        "d_ff": shapes["encoder/layers/mlp/wi"][-1],
        "d_kv": joined // num_heads,
        "num_heads": num_heads,
        "num_encoder_layers": num_layers,
        "num_decoder_layers": _size(shapes, "decoder/layers/self_attention/query", 0),
        "relative_buckets": buckets,
        "activation": "gelu_tanh" if switches["gated_ff"] else "relu",
        "scale_logits": switches["tie_embeddings"],
    }


def _size(shapes: Mapping[str, tuple[int, ...]], path: str, axis: int) -> int:
    """Return the size of an axis, or 0 (none, or invalid) if the parameter is missing."""
    shape = shapes.get(path, ())
    return shape[axis] if shape else 0
