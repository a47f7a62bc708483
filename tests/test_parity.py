"""The same numbers as Hugging Face transformers: forward, greedy decoding, and files both ways.

The reference is always a model that transformers itself read from the folder that we read.
Weights are drawn by numpy and larger than at initialisation: norms in [0.5, 1.5], biases around 1,
so that no norm or bias can be swapped or left out unnoticed.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import t5jax
from t5jax import tokenizer
from t5jax.text2text import Text2Text

# float32 on both sides, sums in another order; logits are of size 1 to 20.
TOLERANCE = 1e-4
STEPS = 64

SMALL = {  # google-t5/t5-small and google/t5-v1_1-small, at full size
    "t5-small": {"d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu"},
    "t5-v1_1-small": {
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}
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
TINY = {
    "t5": {"feed_forward_proj": "relu"},
    "v1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "ul2": {"feed_forward_proj": "gated-silu"},
    "byt5": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "vocab_size": 384,
        "num_layers": 3,
        "num_decoder_layers": 1,
    },
    # flan-t5-xxl as first published: the exact GELU.
    "erf": {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"},
    "ungated-gelu": {"feed_forward_proj": "gelu"},
    "tied-unscaled": {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
    "untied-scaled": {
        "feed_forward_proj": "relu",
        "tie_word_embeddings": False,
        "scale_decoder_outputs": True,
    },
    "madlad-ids": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
}


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(before)


def draw(model, *, eos_gain):
    """Fills a model with numbers that do not depend on torch's generator.

    Random decoders repeat themselves.  Here the feed-forward layers, which tell tokens apart, are
    made louder than the residual, and lose the mean that all tokens have in common.
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
        elif "embed" not in name and "shared" not in name and "bias" not in name:
            values *= shape[1] ** -0.5
        if "decoder" in name and "DenseReluDense.wo" in name:
            values = 40 * (values - values.mean(axis=1, keepdims=True))
        if "lm_head" in name:
            values *= 3
        if eos_gain and ("lm_head" in name or "shared" in name):
            values[config.eos_token_id] *= eos_gain
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def make(folder, keys, *, kind="T5ForConditionalGeneration", eos_gain=0, **saving):
    """Saves a random model there, and reads it back, with transformers alone."""
    model = getattr(transformers, kind)(transformers.T5Config(decoder_start_token_id=0, **keys))
    if keys.get("tie_word_embeddings") is False and kind != "T5EncoderModel":
        # A new model shares the tensor whatever the config says; one that was read does not.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    draw(model, eos_gain=eos_gain)
    model.save_pretrained(folder, **saving)
    return read(folder, kind=kind)


def read(folder, *, kind="T5ForConditionalGeneration", **options):
    kind = getattr(transformers, kind)
    return kind.from_pretrained(folder, attn_implementation="eager", **options).eval()


def batch(vocab_size, lengths, target_length):
    """Encoder ids padded on the right, their mask, and decoder ids that start with 0."""
    rng = np.random.default_rng(1)
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
    return found.encoder_last_hidden_state.numpy(), found.logits.numpy(), found


@jax.jit
def our_forward(model, encoder, mask, decoder):
    states = model.encode(encoder, encoder_mask=mask)
    return states, model.decode(decoder, states, encoder_mask=mask)


@torch.no_grad()
def their_greedy(model, encoder, mask):
    """[B, STEPS] ids, and by how much the best token of each was ahead of the second."""
    found = model.generate(
        torch.from_numpy(encoder).long(),
        attention_mask=torch.from_numpy(mask).long(),
        max_new_tokens=STEPS,
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
    again, info = read(folder, kind=kind, output_loading_info=True)
    assert {name: len(values) for name, values in info.items()} == dict.fromkeys(info, 0)
    expected, found = reference.state_dict(), again.eval().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name
    return again


# Full size.


@pytest.fixture(scope="module", params=SMALL)
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    keys = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, **SMALL[request.param]}
    return make(folder, keys, eos_gain=2.5), t5jax.load(folder)


def test_small_has_the_states_and_logits_of_transformers(small):
    theirs, ours = small
    # Both lengths exceed the largest distance that positions are told apart by, 128.
    encoder, mask, decoder = batch(32128, (141, 90, 17, 1), 135)
    states, logits, _ = their_forward(theirs, encoder, mask, decoder)
    our_states, our_logits = our_forward(ours.model, encoder, mask, decoder)
    assert logits.std() > 0.5
    np.testing.assert_allclose(np.asarray(our_states)[mask], states[mask], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(our_logits, logits, rtol=0, atol=TOLERANCE)


def test_small_decodes_greedily_to_the_ids_of_transformers(small):
    theirs, ours = small
    encoder, mask, _ = batch(32128, (40, 23, 9, 1), 1)
    ids, lead = their_greedy(theirs, encoder, mask)
    lengths = [list(row).index(1) if 1 in row else STEPS for row in ids]
    print(lengths, lead, len(np.unique(ids)))
    assert len(np.unique(ids)) >= 20
    assert max(lengths) == STEPS
    assert min(lengths) < STEPS / 2
    assert lead > 10 * TOLERANCE  # so that rounding cannot decide
    found = ours.generate_ids(encoder, encoder_mask=mask, max_new_tokens=STEPS)
    np.testing.assert_array_equal(found, ids)


def test_small_exports_what_it_read(small, tmp_path):
    theirs, ours = small
    assert_exported_bit_for_bit(ours, tmp_path / "out", theirs)
