"""Tiny Hugging Face folders, written with numpy and json from the description of the format.

Tensor names and shapes are those that transformers 5 writes; nothing here comes from t5jax.
"""

import json
from pathlib import Path

import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import save_file

# No two sizes alike, and d_kv * num_heads = 15 is not d_model.
CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 24,
    "d_kv": 5,
    "d_model": 16,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "relu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 3,
    "num_heads": 3,
    "num_layers": 2,
    "pad_token_id": 0,
    "relative_attention_max_distance": 12,
    "relative_attention_num_buckets": 8,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 97,
}


def shapes(config, *, gated=False, decoder=True, head=False):
    """Every tensor of a model of this config.json and its shape, [out, in] for linear layers."""
    vocab, d_model, d_ff = config["vocab_size"], config["d_model"], config["d_ff"]
    heads, joined = config["num_heads"], config["num_heads"] * config["d_kv"]
    found = {"shared.weight": (vocab, d_model)}
    stacks = [("encoder", config["num_layers"], ["SelfAttention"])]
    if decoder:
        stacks.append(
            ("decoder", config["num_decoder_layers"], ["SelfAttention", "EncDecAttention"])
        )
    for stack, num_layers, attentions in stacks:
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[bias] = (config["relative_attention_num_buckets"], heads)
        found[f"{stack}.final_layer_norm.weight"] = (d_model,)
        for i in range(num_layers):
            block = f"{stack}.block.{i}.layer"
            for j, attention in enumerate(attentions):
                for name in "qkv":
                    found[f"{block}.{j}.{attention}.{name}.weight"] = (joined, d_model)
                found[f"{block}.{j}.{attention}.o.weight"] = (d_model, joined)
                found[f"{block}.{j}.layer_norm.weight"] = (d_model,)
            feed_forward = f"{block}.{len(attentions)}.DenseReluDense"
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                found[f"{feed_forward}.{name}.weight"] = (d_ff, d_model)
            found[f"{feed_forward}.wo.weight"] = (d_model, d_ff)
            found[f"{block}.{len(attentions)}.layer_norm.weight"] = (d_model,)
    if head:
        found["lm_head.weight"] = (vocab, d_model)
    return found


def random_tensors(config, *, seed=0, **options):
    """Float32 values, all different; options as for `shapes`."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes(config, **options).items()
    }


def write(folder, config, tensors, *, num_shards=1):
    """Writes config.json and the weights, as one file or as shards with an index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(num_shards):
        file = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def flax_leaves(tensors):
    """The same tensors as transformers' Flax classes had them, by '/'-joined path."""
    found = {}
    for name, values in tensors.items():
        path = name.removesuffix(".weight").replace(".", "/")
        if path.endswith("layer_norm"):
            found[f"{path}/weight"] = values
        elif path.endswith(("shared", "relative_attention_bias")):
            found[f"{path}/embedding"] = values
        else:
            found[f"{path}/kernel"] = np.ascontiguousarray(values.T)
    return found


def write_flax(folder, config, tensors, *, num_shards=1):
    """Writes config.json and the weights as Flax does, in one file or in shards with an index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    leaves, weight_map = flax_leaves(tensors), {}
    for i in range(num_shards):
        file = f"flax_model-{i + 1:05}-of-{num_shards:05}.msgpack"
        part = {name: leaves[name] for name in list(leaves)[i::num_shards]}
        nested = traverse_util.unflatten_dict(part, sep="/")
        name = file if num_shards > 1 else "flax_model.msgpack"
        (folder / name).write_bytes(serialization.msgpack_serialize(nested))
        weight_map |= dict.fromkeys(part, file)
    if num_shards > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "flax_model.msgpack.index.json").write_text(index, encoding="utf-8")
    return folder


def write_sentence_layers(folder, weight, *, bias=None, transformer=""):
    """Turns a folder with an encoder into a sentence encoder: mean, dense layer [out, in]."""
    steps = {transformer: "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in steps.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    dense = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    dense |= {"bias": bias is not None, "activation_function": None}
    pooling = {"word_embedding_dimension": weight.shape[1], "pooling_mode_mean_tokens": True}
    for path, settings in (("1_Pooling", pooling), ("2_Dense", dense)):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(settings))
    arrays = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    save_file(arrays, folder / "2_Dense" / "model.safetensors")
