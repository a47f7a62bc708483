"""Models of Hugging Face transformers with weights that tell everything apart.

Weights are drawn by numpy and larger than at initialisation: norms in [0.5, 1.5], biases around 1,
so that no norm or bias can be swapped or left out unnoticed.
"""

import contextlib

import jax
import numpy as np
import pytest

import t5jax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# float32 on both sides, sums in another order: logits of size 3 to 15 differ by up to 4e-5.
TOLERANCE = 1e-4
STEPS = 64

SIZES = {  # No two alike, and 3 heads of 5 are not 16.
    "vocab_size": 97,
    "d_model": 16,
    "d_kv": 5,
    "d_ff": 24,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}


@contextlib.contextmanager
def one_thread():
    """Several would wait for one another by spinning, on cores that other tests need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


def draw(model, *, loudness, eos_gain):
    """Fills a model with numbers that do not depend on torch's generator.

    Random decoders repeat themselves.  For those that are to write, the feed-forward layers, which
    tell tokens apart, are louder than the residual, and lose the mean that all tokens share.
    """
    rng = np.random.default_rng(0)
    config = model.config
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        values = rng.standard_normal(shape, np.float32)
        if "layer_norm" in name:
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif ".q." in name:
            values *= (config.d_model * config.d_kv) ** -0.5
        elif "shared" not in name and "bias" not in name:
            values *= shape[1] ** -0.5
        if "decoder" in name and "DenseReluDense.wo" in name:
            values = loudness * (values - values.mean(axis=1, keepdims=True))
        if "lm_head" in name or "shared" in name:
            values[config.eos_token_id] *= eos_gain
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def make(
    folder,
    keys,
    *,
    kind="T5ForConditionalGeneration",
    dtype=torch.float32,
    loudness=1.0,
    eos_gain=1.0,
    **saving,
):
    """Saves a random model there, and reads it back, with transformers alone."""
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(decoder_start_token_id=0, **keys))
    if keys.get("tie_word_embeddings") is False:
        # A new model shares the tensor whatever the config says; one that was read does not.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    draw(model, loudness=loudness, eos_gain=eos_gain)
    model.to(dtype).save_pretrained(folder, **saving)
    return read(folder, kind=kind)[0]


def read(folder, *, kind="T5ForConditionalGeneration"):
    """The model, in evaluation mode, and what transformers has to say about its tensors."""
    model, info = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    return model.eval(), info


def batch(vocab_size, lengths, target_length, *, seed=1):
    """Encoder ids padded on the right, their mask, and decoder ids that start with 0."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    encoder = np.where(mask, rng.integers(3, vocab_size, mask.shape), 0)
    decoder = rng.integers(3, vocab_size, (len(lengths), target_length))
    decoder[:, 0] = 0
    return encoder.astype(np.int32), mask, decoder.astype(np.int32)


@torch.no_grad()
def their_forward(model, encoder, mask, decoder):
    found = model(
        input_ids=torch.from_numpy(encoder).long(),
        attention_mask=torch.from_numpy(mask).long(),
        decoder_input_ids=torch.from_numpy(decoder).long(),
        output_hidden_states=True,
    )
    layers = (*found.encoder_hidden_states, *found.decoder_hidden_states)
    return found.logits.numpy(), [states.numpy() for states in layers]


@jax.jit
def our_forward(model, encoder, mask, decoder):
    states = model.encode(encoder, encoder_mask=mask)
    return states, model.logits(model.decode(decoder, states, encoder_mask=mask))


@torch.no_grad()
def their_greedy(model, encoder, mask):
    """[B, STEPS] ids, and by how much the best token of each was ahead of the second."""
    found = model.generate(
        torch.from_numpy(encoder).long(),
        attention_mask=torch.from_numpy(mask).long(),
        max_new_tokens=STEPS,
        # Its cache has as many layers as the encoder.
        use_cache=model.config.num_layers == model.config.num_decoder_layers,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = found.sequences[:, 1:].numpy()
    ids = np.pad(
        ids, ((0, 0), (0, STEPS - ids.shape[1])), constant_values=model.config.pad_token_id
    )
    best = torch.stack(found.logits, 1).topk(2, -1).values.numpy()
    lead = best[..., 0] - best[..., 1]
    ended = np.cumsum(ids == model.config.eos_token_id, axis=1)[:, : lead.shape[1]]
    ended -= ids[:, : lead.shape[1]] == model.config.eos_token_id
    return ids, lead[ended == 0].min()


def assert_exported_bit_for_bit(t5, folder, reference, *, kind="T5ForConditionalGeneration"):
    """transformers finds every tensor where it looks for it, and none that it does not know."""
    t5jax.export_hf(t5, folder)
    again, info = read(folder, kind=kind)
    assert {name: len(values) for name, values in info.items()} == dict.fromkeys(info, 0)
    expected, found = reference.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name
    return again
