"""Chunks against plain Python lists; positions against going on without a stop."""

import itertools

import datasets
import numpy as np
import pytest

from t5jax.data.batches import (
    Batch,
    batch_chunks,
    evaluation_batches,
    shift_right,
    training_batches,
)
from t5jax.data.corpus import Chunks, TokenStream, tokenize_dataset
from t5jax.data.objectives.span_corruption import (
    SpanCorruption,
    SpanCorruptionConfig,
    noise_mask,
)
from t5jax.tokenizers.byte import ByteTokenizer

BYTES = ByteTokenizer()
CORRUPTION = SpanCorruptionConfig()
make_example = SpanCorruption(CORRUPTION, tokenizer=BYTES, decoder_start_id=0).example


@pytest.fixture
def documents(tmp_path, monkeypatch) -> datasets.Dataset:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    texts = [f"document {i}, {'x' * (i % 7)}" for i in range(40)]
    return datasets.Dataset.from_dict({"text": texts})


def expected_ids(documents: datasets.Dataset) -> list[int]:
    joined = []
    for text in documents["text"]:
        joined += [byte + 3 for byte in text.encode()] + [1]
    return joined


def test_token_stream_joins_documents_with_eos(documents):
    stream = TokenStream(tokenize_dataset(documents, BYTES))
    expected = expected_ids(documents)
    assert len(stream) == len(expected)
    for start, stop in [(0, 1), (0, len(expected)), (13, 57), (len(expected) - 3, len(expected))]:
        assert stream.slice(start, stop).tolist() == expected[start:stop]


def test_token_stream_slices_across_arrow_pieces(documents):
    parts = [documents.select(range(0, 9)), documents.select(range(9, 40))]
    joined = datasets.concatenate_datasets([tokenize_dataset(part, BYTES) for part in parts])
    stream = TokenStream(joined)
    assert stream.slice(0, len(stream)).tolist() == expected_ids(documents)
    end_of_first = sum(len(text) + 1 for text in parts[0]["text"])
    window = slice(end_of_first - 4, end_of_first + 5)
    assert stream.slice(window.start, window.stop).tolist() == expected_ids(documents)[window]


def test_tokenize_is_cached_by_text_and_tokenizer(documents):
    first = tokenize_dataset(documents, BYTES)
    assert tokenize_dataset(documents, BYTES)._fingerprint == first._fingerprint
    shorter = documents.select(range(3))
    assert tokenize_dataset(shorter, BYTES)._fingerprint != first._fingerprint


def test_chunks_are_equal_and_leave_out_the_rest(documents):
    stream = TokenStream(tokenize_dataset(documents, BYTES))
    chunks = Chunks(stream, 37)
    ids = expected_ids(documents)
    assert len(chunks) == len(ids) // 37
    for i in (0, 1, len(chunks) - 1):
        assert chunks[i].tolist() == ids[37 * i : 37 * i + 37]


def test_chunks_refuse_a_corpus_below_one_chunk(documents):
    stream = TokenStream(tokenize_dataset(documents, BYTES))
    with pytest.raises(ValueError, match=rf"at least one chunk of 5000 tokens, got {len(stream)}"):
        Chunks(stream, 5000)


def numbered_chunks(count: int, length: int = 20) -> list[np.ndarray]:
    return [np.full(length, 3 + i, np.int32) for i in range(count)]


def first_token(batch: Batch) -> list[int]:
    return batch["encoder_input_tokens"][:, 0].tolist()


def test_training_sees_every_chunk_once_an_epoch_in_new_order():
    iterator = training_batches(numbered_chunks(12), make_example, batch_size=4, seed=7)
    seen = [first_token(next(iterator)) for _ in range(6)]
    epochs = [list(itertools.chain(*seen[:3])), list(itertools.chain(*seen[3:]))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(3, 15))
    assert epochs[0] != epochs[1]


def test_training_masks_anew_every_epoch():
    def keep_mask(tokens, rng):
        return {"mask": noise_mask(len(tokens), config=CORRUPTION, rng=rng)}

    iterator = training_batches(numbered_chunks(1, length=60), keep_mask, batch_size=1, seed=7)
    masks = [next(iterator)["mask"].tobytes() for _ in range(8)]
    assert len(set(masks)) > 4


def test_training_example_depends_on_seed_epoch_and_index_alone():
    chunks = numbered_chunks(6)
    one = training_batches(chunks, make_example, batch_size=2, seed=3)
    other = training_batches(chunks, make_example, batch_size=3, seed=3)
    rows_one = np.concatenate([next(one)["encoder_input_tokens"] for _ in range(6)])
    rows_other = np.concatenate([next(other)["encoder_input_tokens"] for _ in range(4)])
    np.testing.assert_array_equal(rows_one, rows_other)
    changed = training_batches(chunks, make_example, batch_size=2, seed=4)
    rows_changed = np.concatenate([next(changed)["encoder_input_tokens"] for _ in range(6)])
    assert (rows_one != rows_changed).any()


def test_training_continues_from_a_saved_position():
    def iterator():
        return training_batches(numbered_chunks(7), make_example, batch_size=3, seed=1)

    straight = iterator()
    expected = [next(straight) for _ in range(9)]
    stopped = iterator()
    for _ in range(4):
        next(stopped)
    state = stopped.get_state()
    resumed = iterator()
    resumed.set_state(state)
    for batch in expected[4:]:
        found = next(resumed)
        for name, value in batch.items():
            np.testing.assert_array_equal(found[name], value)


def test_training_makes_the_rows_asked_for_and_has_one_position_for_all():
    def iterator(rows=None):
        return training_batches(numbered_chunks(7), make_example, batch_size=6, seed=1, rows=rows)

    whole, part = iterator(), iterator(rows=np.array([0, 1, 4]))
    for _ in range(5):
        expected, found = next(whole), next(part)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value[[0, 1, 4]])
    assert part.get_state() == whole.get_state()
    resumed = iterator(rows=[5])
    resumed.set_state(whole.get_state())
    np.testing.assert_array_equal(
        next(resumed)["encoder_input_tokens"], next(whole)["encoder_input_tokens"][5:]
    )


def test_training_continues_from_positions_of_t5jax_0_1():
    """Which batched inside Grain, and saved this."""
    straight = training_batches(numbered_chunks(7), make_example, batch_size=3, seed=1)
    for _ in range(4):
        next(straight)
    resumed = training_batches(numbered_chunks(7), make_example, batch_size=3, seed=1)
    resumed.set_state({"next_index": 4})
    assert first_token(next(resumed)) == first_token(next(straight))


def test_chunk_numbers_are_those_of_the_batch():
    iterator = training_batches(numbered_chunks(7), make_example, batch_size=4, seed=5)
    for number in range(6):
        expected = [token - 3 for token in first_token(next(iterator))]
        assert batch_chunks(7, number, batch_size=4, seed=5) == expected


def test_evaluation_makes_the_rows_asked_for():
    options = {"batch_size": 4, "seed": 0, "max_examples": 100}
    whole = evaluation_batches(numbered_chunks(7), make_example, **options)
    part = evaluation_batches(numbered_chunks(7), make_example, rows=[2, 3], **options)
    for expected, found in zip(whole, part, strict=True):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value[2:])


def test_evaluation_counts_every_example_once_and_repeats_itself():
    chunks = numbered_chunks(7)

    def run():
        return list(
            evaluation_batches(chunks, make_example, batch_size=4, seed=0, max_examples=100)
        )

    found = run()
    weights = np.concatenate([batch["decoder_loss_weights"] for batch in found])
    starts = list(itertools.chain(*map(first_token, found)))
    counted = [start for start, weight in zip(starts, weights, strict=True) if weight.any()]
    assert counted == list(range(3, 10))
    assert [batch["encoder_input_tokens"].shape[0] for batch in found] == [4, 4]
    for one, other in zip(found, run(), strict=True):
        np.testing.assert_array_equal(one["encoder_input_tokens"], other["encoder_input_tokens"])


def test_evaluation_stops_at_max_examples():
    found = evaluation_batches(
        numbered_chunks(9), make_example, batch_size=2, seed=0, max_examples=4
    )
    assert len(list(found)) == 2


def test_shift_right_starts_with_the_start_id():
    targets = np.array([[5, 6, 1], [7, 1, 0]], np.int32)
    shifted = shift_right(targets, start_id=9)
    assert shifted.tolist() == [[9, 5, 6], [9, 7, 1]]
