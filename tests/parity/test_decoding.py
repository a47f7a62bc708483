"""Decoding finds what transformers' finds: beams with the same scores, and the same rules."""

import numpy as np
import pytest
from helpers.transformers_models import SIZES, TOLERANCE, batch, make, one_thread, torch

import t5jax
from t5jax.generation.config import GenerationConfig
from t5jax.generation.constraints import compile_constraints
from t5jax.generation.engine import prefill, prepare_decoder, search_beams

STEPS = 12
START, EOS = 0, 1
FAMILIES = {
    "t5": {"feed_forward_proj": "relu"},
    "byt5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 3},
}
# 50 inputs of 1 to 20 tokens.
LENGTHS = [1 + 7 * i % 20 for i in range(50)]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with one_thread():
        yield


def make_pair(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp(family)
    # Loud enough to write different tokens, and to end now and then.
    theirs = make(folder, SIZES | FAMILIES[family], loudness=10, eos_gain=2.5)
    return theirs, t5jax.load(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    return make_pair(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def byt5(tmp_path_factory):
    """Rules do not depend on the family."""
    return make_pair("byt5", tmp_path_factory)


@pytest.fixture(scope="module")
def prompts():
    encoder, mask, _ = batch(SIZES["vocab_size"], LENGTHS, 1, seed=5)
    return encoder, mask


@torch.no_grad()
def their_generate(theirs, prompts, prefix=None, **options):
    encoder, mask = prompts
    if prefix is not None:
        start = np.full((len(prefix), 1), START)
        options["decoder_input_ids"] = torch.from_numpy(np.concatenate([start, prefix], 1)).long()
    return theirs.generate(
        torch.from_numpy(encoder).long(),
        attention_mask=torch.from_numpy(mask).long(),
        max_new_tokens=STEPS,
        do_sample=False,
        # Its cache has as many layers as the encoder.
        use_cache=theirs.config.num_layers == theirs.config.num_decoder_layers,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


def their_beams(theirs, prompts, prefix=None, *, num_beams, **options):
    """[B, K] lists of ids behind the start token, and their scores."""
    found = their_generate(
        theirs,
        prompts,
        prefix,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        **options,
    )
    prefix_len = 0 if prefix is None else prefix.shape[1]
    rows = [content(row, prefix_len) for row in found.sequences[:, 1:].tolist()]
    grouped = [rows[i : i + num_beams] for i in range(0, len(rows), num_beams)]
    return grouped, found.sequences_scores.numpy().reshape(-1, num_beams)


def our_beams(
    ours, prompts, prefix=None, *, num_beams, length_penalty=1.0, early_stopping=False, **rules
):
    encoder, mask = prompts
    count = len(encoder)
    prefix = np.zeros((count, 0), np.int32) if prefix is None else prefix
    step, cache = prefill(
        ours.params,
        prepare_decoder(ours.params, config=ours.config, policy=ours.policy),
        encoder,
        mask,
        config=ours.config,
        policy=ours.policy,
        max_len=prefix.shape[1] + 16,
        num_beams=num_beams,
    )
    found = search_beams(
        step,
        cache,
        np.arange(count, dtype=np.int32),
        prefix,
        np.full(count, prefix.shape[1], np.int32),
        compile_constraints(GenerationConfig(max_new_tokens=STEPS, **rules), ours.config, None),
        limit=np.int32(STEPS),
        length_penalty=np.float32(length_penalty),
        max_len=16,
        num_beams=num_beams,
        penalty_form="power",
        early_stopping=early_stopping,
    )
    assert found.failed == -1
    tokens, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
    rows = [
        [ids[1 : 1 + length].tolist() for ids, length in zip(*row, strict=True)]
        for row in zip(tokens, lengths, strict=True)
    ]
    return rows, np.asarray(found.scores)


def content(ids, prefix_len):
    """Up to EOS, behind which transformers pads."""
    end = ids.index(EOS, prefix_len) + 1 if EOS in ids[prefix_len:] else len(ids)
    return ids[:end]


def assert_same_beams(ours, theirs):
    (rows, scores), (their_rows, their_scores) = ours, theirs
    close = np.isclose(scores, their_scores, rtol=1e-6, atol=TOLERANCE / 10).all(axis=1)
    # Two candidates closer than they err, at the edge of what a search keeps, lead it elsewhere:
    # one in thousands.
    assert close.sum() >= len(rows) - 1
    # Sequences of one row whose scores differ by no more than they err may change places.
    gaps = np.abs(np.diff(their_scores, axis=1, prepend=np.inf, append=-np.inf))
    apart = np.minimum(gaps[:, :-1], gaps[:, 1:]) > TOLERANCE / 5
    for row in np.flatnonzero(close):
        for k in np.flatnonzero(apart[row]):
            assert rows[row][k] == their_rows[row][k]
    assert apart.mean() > 0.6


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(("num_beams", "length_penalty"), [(4, 0.0), (4, 2.0), (3, -1.0)])
def test_beam_search_finds_the_ids_and_scores_of_transformers(
    pair, prompts, num_beams, length_penalty, early_stopping
):
    theirs, ours = pair
    options = {
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
    }
    expected = their_beams(theirs, prompts, **options)
    assert_same_beams(our_beams(ours, prompts, **options), expected)
    ids = [tuple(sequence) for row in expected[0] for sequence in row]
    assert np.mean([EOS in sequence for sequence in ids]) > 0.05  # some end
    assert len(set(ids)) > 50


RULES = {
    "min_new_tokens": {"min_new_tokens": 5},
    "forced_bos": {"forced_bos_token_id": 17},
    "forced_eos": {"forced_eos_token_id": EOS},
    "suppress": {"suppress_tokens": list(range(20, 60))},
    "begin_suppress": {"begin_suppress_tokens": list(range(1, 97, 2))},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_1gram": {"no_repeat_ngram_size": 1},
    "no_repeat_2gram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": []},  # filled in with what would be written
}
ALL = {
    "min_new_tokens": 5,
    "forced_eos_token_id": EOS,
    "suppress_tokens": list(range(20, 30)),
    "begin_suppress_tokens": list(range(1, 97, 2)),
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [],
}
WITH_PREFIX = {"all": ALL, "no rules": {}}
WITHOUT_PREFIX = {**RULES, "all": ALL | {"forced_bos_token_id": 18}}
CASES = [(name, rules, False) for name, rules in WITHOUT_PREFIX.items()]
CASES += [(f"{name} behind a prefix", rules, True) for name, rules in WITH_PREFIX.items()]


PREFIX = np.random.default_rng(0).integers(3, 97, (len(LENGTHS), 3)).astype(np.int32)


@pytest.fixture(scope="module")
def free(byt5, prompts):
    """Their beams and greedy ids without rules."""
    beams, _ = their_beams(byt5[0], prompts, num_beams=4)
    return beams, their_generate(byt5[0], prompts, num_beams=1).sequences[:, 1:].tolist()


@pytest.fixture(params=CASES, ids=[name for name, _, _ in CASES])
def case(request, free):
    """Rules, and a prefix of three tokens that differs from row to row, or none."""
    _, rules, with_prefix = request.param
    rules = dict(rules)
    if "bad_words_ids" in rules:
        # Of one, two and three tokens that the model writes if it is free to.
        rows = [row for row in free[1] if not {START, EOS} & set(row[:6])]
        words = [rows[0][2:3], rows[1][2:4], rows[2][1:3], rows[3][2:5], rows[4][0:3]]
        rules["bad_words_ids"] = words
    return rules, PREFIX if with_prefix else None


def test_beam_search_keeps_the_rules_of_transformers(byt5, prompts, case, free):
    theirs, ours = byt5
    rules, prefix = case
    expected = their_beams(theirs, prompts, prefix, num_beams=4, **rules)
    assert_same_beams(our_beams(ours, prompts, prefix, num_beams=4, **rules), expected)
    if prefix is None:
        assert sum(one != other for one, other in zip(free[0], expected[0], strict=True)) > 5


def test_greedy_keeps_the_rules_of_transformers(byt5, prompts, case):
    theirs, ours = byt5
    rules, prefix = case
    expected = their_generate(theirs, prompts, prefix, num_beams=1, **rules)
    prefix_len = 0 if prefix is None else prefix.shape[1]
    rows = [content(row, prefix_len) for row in expected.sequences[:, 1:].tolist()]
    best = torch.stack(expected.scores, 1).topk(2, -1).values.numpy()
    lead = best[..., 0] - best[..., 1]
    given = {} if prefix is None else {"decoder_prefix": prefix.tolist()}
    encoder, mask = prompts
    found = ours.generate_ids(
        encoder, encoder_mask=mask, max_new_tokens=STEPS, **given, **rules
    ).tolist()
    compared = 0
    for row, ids in enumerate(rows):
        if lead[row, : len(ids) - prefix_len].min() < TOLERANCE:
            continue
        assert found[row] == ids + [ours.config.pad_id] * (prefix_len + STEPS - len(ids))
        compared += 1
    assert compared >= len(rows) - 2
