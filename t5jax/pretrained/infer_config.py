"""Infer the config of a T5 from the shapes of its parameters."""

from collections.abc import Mapping
from typing import Any

from t5jax.pretrained.formats import LazyArray
from t5jax.pretrained.name_map import EMBEDDING_PATH, OUTPUT_PATH, PROJECTION_PATH, Leaf

_PER_LAYER_BIAS = "encoder/layers/relative_bias/embedding"


def infer_shapes(
    layout: Mapping[str, Leaf], arrays: Mapping[str, LazyArray]
) -> dict[str, tuple[int, ...]]:
    """Infer the shapes of our parameters from the first layer of each.

    Args:
      layout: the arrays of each parameter, by our path.
      arrays: by their names.
    """
    shapes = {}
    for ours, leaf in layout.items():
        shape = arrays[leaf.names[0]].shape
        # An array with another number of axes keeps its shape, and is an error later.
        if not leaf.axes or len(leaf.axes) == len(shape):
            layers = (len(leaf.names),) if leaf.per_layer else ()
            shapes[ours] = (*layers, *leaf.to_ours(shape))
        else:
            shapes[ours] = tuple(shape)
    return shapes


def mark_shared_bias(layout: dict[str, Leaf], *, keep: bool) -> None:
    """Move a bias table that a stack shares out of its first layer, where most formats keep it.

    Args:
      layout: the arrays of each parameter, by our path; changed in place.
      keep: leave tables in place even where only the first layer has one.
    """
    paths = [f"{stack}/layers/relative_bias/embedding" for stack in ("encoder", "decoder")]
    tables = {path: layout[path] for path in paths if path in layout}
    if keep or any(len(leaf.names) > 1 for leaf in tables.values()):
        return
    for path, leaf in tables.items():
        del layout[path]
        layout[path.replace("layers/", "")] = Leaf(leaf.names, leaf.axes, False)


def drop_decoder(layout: dict[str, Leaf], ignored: dict[str, str]) -> None:
    """Move the arrays that only a decoder needs from `layout` to `ignored`."""
    for path in [path for path in layout if path.startswith(("decoder/", "output/"))]:
        ignored |= dict.fromkeys(layout.pop(path).names, "not of the encoder")


def infer_switches(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Infer the fields of `T5Config` that decide which parameters there are.

    Args:
      shapes: of the parameters, by our path.
    """
    return {
        "vocab_size": _size(shapes, EMBEDDING_PATH, 0),
        "gated_ff": "encoder/layers/mlp/wi_linear" in shapes,
        "tie_embeddings": OUTPUT_PATH not in shapes,
        "projection_dim": _size(shapes, PROJECTION_PATH, -1),
        "relative_bias_per_layer": _PER_LAYER_BIAS in shapes,
    }


def infer_fields(shapes: Mapping[str, tuple[int, ...]], *, source: object) -> dict[str, Any]:
    """Infer all fields of `T5Config` that follow from the parameters, for files without a config.

    A T5 with an output layer of its own does not scale its logits, and one without does; a gated
    feed-forward layer has the tanh GELU, and another one ReLU: so it is in every published T5 but
    UL2, whose gate is a SiLU.

    Args:
      shapes: of the parameters, by our path.
      source: name of the file in an error.
    Raises:
      ValueError: a parameter from which a size follows is missing or has an impossible shape.
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
                f"{source} must hold the parameters of a T5 encoder to tell its sizes, but "
                f"{path} has shape {shapes.get(path, 'none')}."
            )
    num_layers, d_model, joined = shapes["encoder/layers/attention/query"]
    buckets, num_heads = shapes[bias][-2:]
    if not num_heads or joined % num_heads:
        raise ValueError(
            f"{source} must have attention kernels that {num_heads} heads, of its relative bias, "
            f"divide; they are {joined} wide."
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
    """Return the size of an axis, or 0, which means none or is no valid size, without it."""
    shape = shapes.get(path, ())
    return shape[axis] if shape else 0
