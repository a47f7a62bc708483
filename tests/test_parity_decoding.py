"""Beam search finds what transformers' finds, with the same scores."""

import numpy as np
import pytest
from their_models import SIZES, TOLERANCE, batch, make, one_thread, torch

import t5jax
from t5jax import generate

STEPS = 12
FAMILIES = {
    "t5": {"feed_forward_proj": "relu"},
    "byt5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 3},
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with one_thread():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    keys = SIZES | FAMILIES[request.param]
    # Loud enough to write different tokens, and to end now and then.
    theirs = make(folder, keys, loudness=10, eos_gain=2.5)
    return theirs, t5jax.load(folder)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(("num_beams", "length_penalty"), [(4, 0.0), (4, 2.0), (3, -1.0)])
def test_beam_search_finds_the_ids_and_scores_of_transformers(
    pair, num_beams, length_penalty, early_stopping
):
    theirs, ours = pair
    lengths = [19, 8, 5, 3, 1, 12, 7, 2, 16, 11]
    encoder, mask, _ = batch(theirs.config.vocab_size, lengths, 1, seed=5)
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(encoder).long(),
            attention_mask=torch.from_numpy(mask).long(),
            max_new_tokens=STEPS,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            use_cache=False,  # its cache has as many layers as the encoder
            output_scores=True,
            return_dict_in_generate=True,
        )
    ids = expected.sequences[:, 1:].numpy()
    ids = np.pad(ids, ((0, 0), (0, STEPS - ids.shape[1])))
    scores = expected.sequences_scores.numpy().reshape(len(lengths), num_beams)
    found = generate.beam_search(
        ours.params,
        encoder,
        mask,
        np.arange(len(lengths), dtype=np.int32),
        config=ours.config,
        max_len=16,
        limit=np.int32(STEPS),
        num_beams=num_beams,
        length_penalty=np.float32(length_penalty),
        penalty_form="power",
        early_stopping=early_stopping,
    )
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=TOLERANCE / 10)
    written = np.asarray(found.tokens)[:, :, :STEPS].reshape(-1, STEPS)
    same = np.array(
        [content(one) == content(other) for one, other in zip(written, ids, strict=True)]
    )
    # Sequences of one row whose scores differ by no more than they err may change places.
    gaps = np.abs(np.diff(scores, axis=1, prepend=np.inf, append=-np.inf))
    apart = np.minimum(gaps[:, :-1], gaps[:, 1:]).reshape(-1) > TOLERANCE / 5
    assert same[apart].all()
    assert apart.mean() > 0.6
    assert (ids == 1).any(axis=1).mean() > 0.05  # some end
    assert len({tuple(content(row)) for row in ids}) > 10


def content(row):
    """Up to EOS, behind which transformers repeats it."""
    ids = row.tolist()
    return ids[: ids.index(1) + 1] if 1 in ids else ids
