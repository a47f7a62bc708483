"""What the shapes of its parameters say about a T5."""

from collections.abc import Mapping
from typing import Any

from t5jax.pretrained.formats import LazyArray
from t5jax.pretrained.name_map import Leaf

_PER_LAYER_BIAS = "encoder/layers/relative_bias/embedding"


def infer_shapes(
    layout: Mapping[str, Leaf], arrays: Mapping[str, LazyArray]
) -> dict[str, tuple[int, ...]]:
    """Shapes of our parameters, as far as the first layer of each tells.

    Args:
      layout: where they lie.
      arrays: by the names there.
    """
    found = {}
    for ours, leaf in layout.items():
        shape = arrays[leaf.names[0]].shape
        # Of arrays with another number of axes, which are an error later, nothing is known.
        if not leaf.axes or len(leaf.axes) == len(shape):
            layers = (len(leaf.names),) if leaf.per_layer else ()
            found[ours] = (*layers, *leaf.to_ours(shape))
        else:
            found[ours] = tuple(shape)
    return found


def split_bias_rules(layout: dict[str, Leaf], *, keep: bool) -> None:
    """Tells a bias table that a stack shares from those that its layers own.

    A shared one lies in the first layer in most formats.

    Args:
      layout: changed in place.
      keep: whether tables of first layers alone belong to these, because no stack has others.
    """
    stacks = [f"{stack}/layers/relative_bias/embedding" for stack in ("encoder", "decoder")]
    found = {path: layout[path] for path in stacks if path in layout}
    if keep or any(len(leaf.names) > 1 for leaf in found.values()):
        return
    for path, leaf in found.items():
        del layout[path]
        layout[path.replace("layers/", "")] = Leaf(leaf.names, leaf.axes, False)


def drop_decoder(layout: dict[str, Leaf], ignored: dict[str, str]) -> None:
    """Moves what only a decoder needs from `layout` to `ignored`."""
    for path in [path for path in layout if path.startswith(("decoder/", "output/"))]:
        ignored |= dict.fromkeys(layout.pop(path).names, "not of the encoder")


def infer_switches(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of `T5Config` that say which parameters there are.

    Args:
      shapes: of the parameters found, by our path.
    """
    return {
        "vocab_size": _size(shapes, "token_embedder/embedding", 0),
        "gated_ff": "encoder/layers/mlp/wi_linear" in shapes,
        "tie_embeddings": "output/kernel" not in shapes,
        "projection_dim": _size(shapes, "projection/kernel", -1),
        "relative_bias_per_layer": _PER_LAYER_BIAS in shapes,
    }


def infer_fields(shapes: Mapping[str, tuple[int, ...]], *, source: object) -> dict[str, Any]:
    """All fields of `T5Config` that follow from the parameters, for files without a config.

    A T5 with an output layer of its own does not scale its logits, and one without does; a gated
    feed-forward layer has the tanh GELU, and another one ReLU: so it is in every published T5 but
    UL2, whose gate is a SiLU.

    Args:
      shapes: of the parameters found, by our path.
      source: what to call the file in an error.
    Raises:
      ValueError: a parameter from which a size follows is missing or has an impossible shape.
    """
    found = infer_switches(shapes)
    per_layer = found["relative_bias_per_layer"]
    bias = _PER_LAYER_BIAS if per_layer else "encoder/relative_bias/embedding"
    ranks = {
        "token_embedder/embedding": 2,
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
        **found,
        "d_model": d_model,
        "d_ff": shapes["encoder/layers/mlp/wi"][-1],
        "d_kv": joined // num_heads,
        "num_heads": num_heads,
        "num_encoder_layers": num_layers,
        "num_decoder_layers": _size(shapes, "decoder/layers/self_attention/query", 0),
        "relative_buckets": buckets,
        "activation": "gelu_tanh" if found["gated_ff"] else "relu",
        "scale_logits": found["tie_embeddings"],
    }


def _size(shapes: Mapping[str, tuple[int, ...]], path: str, axis: int) -> int:
    """0, which no config may have or which means none, if there is no such axis."""
    shape = shapes.get(path, ())
    return shape[axis] if shape else 0
