"""The oracle for all that is written or scored: one text at a time, unpadded, without a cache.

`t5.model` gives logits for forced targets, and numpy chooses from them or sums them up.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

LIMIT = 12  # tokens of an answer
# Room for targets, a prefix among them.
WIDTH = 24

# Sums of up to 20 float32 log-probabilities of size 10, each rounded to 1e-6 relative.
SCORE_TOLERANCE = 2e-4
# One of them.
TOKEN_TOLERANCE = 2e-5


@jax.jit
def _logits(model, inputs, decoder_tokens):
    return model(inputs, decoder_tokens, encoder_mask=jnp.ones(inputs.shape, bool))


def forced_logits(t5, text, targets):
    """[WIDTH, V] float64: of every next token behind the start and each of `targets`."""
    inputs = np.array([[*t5.tokenizer.encode(text), 1]], np.int32)
    # What comes later does not count, so all targets can have one length.
    decoder_tokens = np.zeros((1, WIDTH), np.int32)
    decoder_tokens[0, 1 : len(targets) + 1] = targets[: WIDTH - 1]
    return np.asarray(_logits(t5.model, inputs, decoder_tokens))[0].astype(np.float64)


def forced_log_probs(t5, text, targets):
    """Their log-softmax."""
    logits = forced_logits(t5, text, targets)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def token_log_probs(t5, text, ids):
    """Of each of `ids`, given those before it."""
    return forced_log_probs(t5, text, ids)[np.arange(len(ids)), ids]


def score_by_hand(t5, text, target):
    return token_log_probs(t5, text, [*t5.tokenizer.encode(target), 1]).sum()


def greedy_ids(t5, text, *, limit=LIMIT, prefix=()):
    """By definition: the likeliest next token, each time from scratch; up to and without EOS."""
    ids = [*prefix]
    while len(ids) < limit + len(prefix):
        ids.append(int(forced_log_probs(t5, text, ids)[len(ids)].argmax()))
        if ids[-1] == 1:
            return ids[:-1]
    return ids


def rows_of(t5, texts):
    """Ids and mask of `generate_ids`."""
    encoded = [[*t5.tokenizer.encode(text), 1] for text in texts]
    width = max(map(len, encoded))
    tokens = np.array([ids + [0] * (width - len(ids)) for ids in encoded], np.int32)
    return tokens, np.arange(width) < np.array([len(ids) for ids in encoded])[:, None]


@contextlib.contextmanager
def counting_compilations():
    """A list that gets an entry for every program compiled in the block, whatever asked for it."""
    compiled = []

    def listener(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
