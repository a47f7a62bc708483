"""Config fields of published T5 models."""

from t5jax.fileio import JsonObject


def preset_fields() -> dict[str, JsonObject]:
    """Return the config fields of published T5, mT5, ByT5, umT5 and UL2 models, by Hub name.

    Sizes are those of the released checkpoints (arXiv:1910.10683, 2010.11934, 2105.13626,
    2304.09151, 2205.05131).  Dropout is that of pre-training: 0.1 for T5 1.0, else 0.
    """
    return {name: dict(fields) for name, fields in _PRESETS.items()}


def _sizes(d_model, d_ff, d_kv, num_heads, encoder_layers, decoder_layers):
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": d_kv,
        "num_heads": num_heads,
        "num_encoder_layers": encoder_layers,
        "num_decoder_layers": decoder_layers,
    }


_V1_0 = {
    "small": _sizes(512, 2048, 64, 8, 6, 6),
    "base": _sizes(768, 3072, 64, 12, 12, 12),
    "large": _sizes(1024, 4096, 64, 16, 24, 24),
    "3b": _sizes(1024, 16384, 128, 32, 24, 24),
    "11b": _sizes(1024, 65536, 128, 128, 24, 24),
}
_V1_1 = {
    "small": _sizes(512, 1024, 64, 6, 8, 8),
    "base": _sizes(768, 2048, 64, 12, 12, 12),
    "large": _sizes(1024, 2816, 64, 16, 24, 24),
    "xl": _sizes(2048, 5120, 64, 32, 24, 24),
    "xxl": _sizes(4096, 10240, 64, 64, 24, 24),
}
_BYT5 = {
    "small": _sizes(1472, 3584, 64, 6, 12, 4),
    "base": _sizes(1536, 3968, 64, 12, 18, 6),
    "large": _sizes(1536, 3840, 64, 16, 36, 12),
    "xl": _sizes(2560, 6720, 64, 32, 36, 12),
    "xxl": _sizes(4672, 12352, 64, 64, 36, 12),
}
_UL2 = {
    **_sizes(4096, 16384, 256, 16, 32, 32),
    "vocab_size": 32128,
    "activation": "silu",
    "tie_embeddings": True,
    "scale_logits": True,
}
_RELU_TIED = {
    "activation": "relu",
    "gated_ff": False,
    "tie_embeddings": True,
    "scale_logits": True,
    "dropout_rate": 0.1,
}
_PRESETS: dict[str, JsonObject] = {
    **{f"t5-{s}": {**v, "vocab_size": 32128, **_RELU_TIED} for s, v in _V1_0.items()},
    **{f"t5-v1_1-{s}": {**v, "vocab_size": 32128} for s, v in _V1_1.items()},
    **{f"t5-{s}-lm-adapt": {**v, "vocab_size": 32128} for s, v in _V1_1.items()},
    **{f"flan-t5-{s}": {**v, "vocab_size": 32128} for s, v in _V1_1.items()},
    **{f"mt5-{s}": {**v, "vocab_size": 250112} for s, v in _V1_1.items()},
    **{f"byt5-{s}": {**v, "vocab_size": 384} for s, v in _BYT5.items()},
    **{
        f"umt5-{s}": {**_V1_1[s], "vocab_size": 256384, "relative_bias_per_layer": True}
        for s in ("small", "base", "xl", "xxl")
    },
    "ul2": _UL2,
    "flan-ul2": _UL2,
}
