"""The same numbers as Hugging Face transformers: forward, greedy decoding, and files both ways.

The reference is always a model that transformers itself read from the folder that we read.
"""

import jax
import numpy as np
import pytest
from helpers.transformers_models import (
    SIZES,
    STEPS,
    TOLERANCE,
    assert_exported_bit_for_bit,
    batch,
    make,
    one_thread,
    our_forward,
    their_forward,
    their_greedy,
    torch,
    transformers,
)

import t5jax
from t5jax.generation.scoring import encode_batch, score_tokens
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.load import load_tokenizer
from t5jax.tokenizers.sentencepiece import train_tokenizer

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
def quiet():
    with one_thread():
        yield


# Full size.


@pytest.fixture(scope="module", params=SMALL)
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    keys = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, **SMALL[request.param]}
    return make(folder, keys, loudness=40, eos_gain=2), t5jax.load(folder)


def test_small_has_the_states_and_logits_of_transformers(small):
    theirs, ours = small
    # Both lengths exceed the largest distance that positions are told apart by, 128.
    encoder, mask, decoder = batch(32128, (141, 90, 17, 1), 135)
    logits, layers = their_forward(theirs, encoder, mask, decoder)
    states = layers[theirs.config.num_layers]
    our_states, our_logits = our_forward(ours.model, encoder, mask, decoder)
    assert logits.std() > 0.5
    np.testing.assert_allclose(np.asarray(our_states)[mask], states[mask], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(our_logits, logits, rtol=0, atol=TOLERANCE)


def test_small_decodes_greedily_to_the_ids_of_transformers(small):
    theirs, ours = small
    encoder, mask, _ = batch(32128, (40, 23, 9, 1), 1, seed=3)
    ids, lead = their_greedy(theirs, encoder, mask)
    lengths = [list(row).index(1) if 1 in row else STEPS for row in ids]
    assert len(np.unique(ids)) >= 20
    assert max(lengths) == STEPS
    assert min(lengths) < STEPS / 2
    assert lead > 10 * TOLERANCE  # so that rounding cannot decide
    found = ours.generate_ids(encoder, encoder_mask=mask, max_new_tokens=STEPS)
    np.testing.assert_array_equal(found, ids)


def test_small_exports_what_it_read(small, tmp_path):
    theirs, ours = small
    assert_exported_bit_for_bit(ours, tmp_path / "out", theirs)


# Tiny, of every family.


@pytest.fixture(scope="module", params=TINY)
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    keys = SIZES | TINY[request.param]
    return make(folder, keys, loudness=4), t5jax.load(folder)


@jax.jit
def our_layers(model, encoder, mask, decoder):
    """States behind the embedding and every block; the last of a stack, behind its norm."""
    length, target_length = encoder.shape[1], decoder.shape[1]
    cross_mask = mask[:, None, None, :]
    x = model.token_embedder(encoder)
    found = []
    for i in range(model.config.num_encoder_layers):
        found.append(x)
        block = jax.tree.map(lambda leaf, i=i: leaf[i], model.encoder.layers)
        x = block(x, mask=cross_mask, bias=model.encoder.relative_bias(length))
    states = model.encoder.final_norm(x)
    found.append(states)
    x = model.token_embedder(decoder)
    for i in range(model.config.num_decoder_layers):
        found.append(x)
        block = jax.tree.map(lambda leaf, i=i: leaf[i], model.decoder.layers)
        x, _ = block(
            x,
            block.encoder_kv(states),
            mask=jax.numpy.tri(target_length, dtype=bool)[None, None],
            cross_mask=cross_mask,
            bias=model.decoder.relative_bias(target_length),
        )
    return [*found, model.decoder.final_norm(x)]


def test_tiny_has_the_states_of_transformers_behind_every_layer(tiny):
    theirs, ours = tiny
    encoder, mask, decoder = batch(theirs.config.vocab_size, (19, 8, 1), 31)
    _, expected = their_forward(theirs, encoder, mask, decoder)
    found = our_layers(ours.model, encoder, mask, decoder)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        rows = mask if i <= theirs.config.num_layers else np.ones(decoder.shape, bool)
        scale = max(1, abs(other[rows]).max())
        error = abs(np.asarray(one)[rows] - other[rows]).max()
        assert error < TOLERANCE * scale, f"layer {i}"


def test_tiny_has_the_logits_of_transformers(tiny):
    theirs, ours = tiny
    encoder, mask, decoder = batch(theirs.config.vocab_size, (19, 8, 1), 31)
    logits, layers = their_forward(theirs, encoder, mask, decoder)
    states = layers[theirs.config.num_layers]
    our_states, our_logits = our_forward(ours.model, encoder, mask, decoder)
    np.testing.assert_allclose(np.asarray(our_states)[mask], states[mask], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(our_logits, logits, rtol=0, atol=TOLERANCE)


def test_tiny_exports_what_it_read(tiny, tmp_path):
    theirs, ours = tiny
    again = assert_exported_bit_for_bit(ours, tmp_path / "out", theirs)
    encoder, mask, decoder = batch(theirs.config.vocab_size, (19, 8, 1), 31)
    expected, _ = their_forward(theirs, encoder, mask, decoder)
    found, _ = their_forward(again, encoder, mask, decoder)
    np.testing.assert_array_equal(found, expected)  # nor does the config change anything
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        assert getattr(again.generation_config, key) == getattr(theirs.generation_config, key)
        assert getattr(again.config, key) == getattr(theirs.config, key)


@pytest.mark.parametrize("family", ["t5", "madlad-ids"])
def test_tiny_scores_as_the_loss_of_transformers(tmp_path, family):
    theirs = make(tmp_path, SIZES | TINY[family])
    ours = t5jax.load(tmp_path)
    encoder, mask, targets = batch(theirs.config.vocab_size, (19, 8, 1), 16)
    target_mask = np.arange(16) < np.array([16, 5, 1])[:, None]
    shifted = np.concatenate([np.zeros((3, 1), targets.dtype), targets[:, :-1]], axis=1)
    judged = score_tokens(
        ours.params, encoder, mask, shifted, targets, config=ours.config, policy=ours.policy
    )
    found = np.where(target_mask, judged.log_probs, 0).sum(axis=1)
    for i, count in enumerate(target_mask.sum(axis=1)):
        labels = np.where(target_mask[i], targets[i], -100)[None]
        with torch.no_grad():
            loss = theirs(
                input_ids=torch.from_numpy(encoder[i : i + 1]).long(),
                attention_mask=torch.from_numpy(mask[i : i + 1]).long(),
                labels=torch.from_numpy(labels).long(),
            ).loss
        # A sum of up to 16 log-probabilities.
        np.testing.assert_allclose(found[i], -loss.item() * count, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["t5", "byt5", "madlad-ids"])
def test_tiny_decodes_greedily_to_the_ids_of_transformers(tmp_path, family):
    theirs = make(tmp_path, SIZES | TINY[family], loudness=40, eos_gain=1.5)
    ours = t5jax.load(tmp_path)
    encoder, mask, _ = batch(theirs.config.vocab_size, (19, 8, 5, 3, 1), 1, seed=2)
    ids, lead = their_greedy(theirs, encoder, mask)
    assert len(np.unique(ids)) >= 20
    assert theirs.config.eos_token_id in ids
    assert lead > 10 * TOLERANCE
    found = ours.generate_ids(encoder, encoder_mask=mask, max_new_tokens=STEPS)
    np.testing.assert_array_equal(found, ids)


def assert_same_params(one, other):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def test_shards_of_transformers_hold_the_same_model(tmp_path):
    keys = SIZES | TINY["v1_1"]
    make(tmp_path / "one", keys)
    make(tmp_path / "many", keys, max_shard_size="3KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 5
    one, many = t5jax.load(tmp_path / "one"), t5jax.load(tmp_path / "many")
    assert many.config == one.config
    assert_same_params(many.params, one.params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_as_transformers_reads_them(tmp_path, dtype):
    theirs = make(tmp_path / "in", SIZES | TINY["v1_1"], dtype=dtype)
    ours = t5jax.load(tmp_path / "in")
    assert_exported_bit_for_bit(ours, tmp_path / "out", theirs)


def test_encoder_alone_has_the_states_of_transformers(tmp_path):
    keys = SIZES | {"feed_forward_proj": "gated-gelu"}
    theirs = make(tmp_path / "in", keys, kind="T5EncoderModel")
    ours = t5jax.load(tmp_path / "in")
    assert ours.config.num_decoder_layers == 0
    encoder, mask, _ = batch(97, (31, 8, 1), 1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(encoder).long(),
            attention_mask=torch.from_numpy(mask).long(),
        ).last_hidden_state.numpy()
    found = encode_batch(ours.params, encoder, mask, config=ours.config, policy=ours.policy)
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], rtol=0, atol=TOLERANCE)
    assert_exported_bit_for_bit(ours, tmp_path / "out", theirs, kind="T5EncoderModel")


# Tokenizers.

LINES = [
    "translate English to German: That is good.",
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "  two  spaces\tand a tab\nand a line ",
    "1234567890 (numbers), e.g. 3.14!",
    "½ ﬁne ﬀ ①② emoji 🙂 {braces}",
    "",
]


def export_with(vocabulary, folder, vocab_size):
    keys = SIZES | {"vocab_size": vocab_size, "feed_forward_proj": "relu"}
    make(folder / "in", keys)
    t5 = t5jax.load(folder / "in", tokenizer=vocabulary)
    t5jax.export_hf(t5, folder / "out")
    return transformers.AutoTokenizer.from_pretrained(folder / "out")


def test_exported_vocabulary_gives_transformers_the_same_ids(shared_data, tmp_path):
    ours = load_tokenizer(shared_data / "t5_tokenizer")
    theirs = export_with(ours, tmp_path, 32128)
    assert len(theirs) == ours.vocab_size == 32100
    for line in LINES:
        ids = [*ours.encode(line), ours.eos_id]
        assert theirs(line).input_ids == ids
        if ours.unk_id not in ids:  # which they leave out
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    for k in (0, 1, 99):
        assert theirs.convert_tokens_to_ids(f"<extra_id_{k}>") == ours.sentinel_id(k)


def test_exported_trained_vocabulary_gives_transformers_the_same_ids(tmp_path):
    texts = ["a small vocabulary of small words", "words of a small model", "a model of words"]
    ours = train_tokenizer(texts, vocab_size=20, num_sentinels=10)
    theirs = export_with(ours, tmp_path, 97)
    assert len(theirs) == ours.vocab_size
    for line in [*texts, "unseen words: small vocabularies", "x"]:
        assert theirs(line).input_ids == [*ours.encode(line), ours.eos_id]
    for k in range(10):
        assert theirs.convert_tokens_to_ids(f"<extra_id_{k}>") == ours.sentinel_id(k)


def test_exported_byte_vocabulary_gives_transformers_the_same_ids(tmp_path):
    ours = ByteTokenizer()
    theirs = export_with(ours, tmp_path, 384)
    for line in LINES:
        assert theirs(line).input_ids == [*ours.encode(line), ours.eos_id]
