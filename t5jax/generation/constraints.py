"""Compilation of the constraints of a GenerationConfig into logits processors."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from t5jax.decoding import Automaton, LogitsProcessors, check_automaton, matcher, trie
from t5jax.generation.config import GenerationConfig, Ids
from t5jax.models import T5Config
from t5jax.tokenizers import Tokenizer

# A prefix is fed token by token, and every row caches its keys and values.
MAX_PREFIX_TOKENS = 2048


def compile_constraints(
    config: GenerationConfig, model_config: T5Config, tokenizer: Tokenizer | None
) -> LogitsProcessors:
    """Compile the constraints of a config into logits processors.

    Args:
      config: generation options.
      model_config: architecture of the model.
      tokenizer: tokenizer of the model; required for constraints given as text.
    Returns:
      The processors for all constraints that are set.
    Raises:
      ValueError: an id is outside the vocabulary, the tokenizer cannot encode a text, or no output
        satisfies the constraints.
    """
    vocab_size, eos_id = model_config.vocab_size, model_config.eos_id
    words = [list(ids) for ids in config.bad_words_ids]
    if config.bad_words:
        words += _encode_bad_words(config.bad_words, _require(tokenizer, "bad_words"))
    _check_ids("bad_words_ids", [token for ids in words for token in ids], vocab_size)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        _check_ids(name, getattr(config, name), vocab_size)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if getattr(config, name) is not None:
            _check_ids(name, [getattr(config, name)], vocab_size)
    if [eos_id] in words:
        raise ValueError(
            f"bad_words_ids must not contain EOS alone, got [{eos_id}]; use min_new_tokens or "
            "suppress_tokens."
        )
    if config.allowed_texts is not None and eos_id in config.suppress_tokens:
        raise ValueError(
            f"suppress_tokens must not contain EOS, {eos_id}, with allowed_texts, which end with "
            "EOS; remove it."
        )
    return LogitsProcessors(
        repetition_penalty=(
            None if config.repetition_penalty == 1 else jnp.float32(config.repetition_penalty)
        ),
        bad_words_ids=jnp.asarray(_right_aligned(words)) if words else None,
        min_new_tokens=_scalar(config.min_new_tokens or None),
        automaton=_compile_automaton(config, model_config, tokenizer),
        forced_bos_token_id=_scalar(config.forced_bos_token_id),
        forced_eos_token_id=_scalar(config.forced_eos_token_id),
        suppress_tokens=_mask(config.suppress_tokens, vocab_size),
        begin_suppress_tokens=_mask(config.begin_suppress_tokens, vocab_size),
        stop_automaton=(
            _compile_stop_strings(
                tuple(config.stop_strings), _require(tokenizer, "stop_strings"), vocab_size
            )
            if config.stop_strings
            else None
        ),
        no_repeat_ngram_size=config.no_repeat_ngram_size,
    )


def encode_prefixes(
    config: GenerationConfig,
    model_config: T5Config,
    tokenizer: Tokenizer | None,
    *,
    num_inputs: int,
) -> list[list[int]]:
    """Encode `decoder_prefix` for every input.

    Args:
      config: generation options.
      model_config: architecture of the model.
      tokenizer: tokenizer of the model; required for a prefix given as text.
      num_inputs: number of inputs.
    Returns:
      The ids of each input's prefix.
    Raises:
      ValueError: the number of prefixes is not `num_inputs`, or a prefix is too long, contains EOS
        or an id outside the vocabulary.
    """
    prefix = config.decoder_prefix
    if prefix is None:
        return [[]] * num_inputs
    prefixes = [prefix] * num_inputs if isinstance(prefix, str) else list(prefix)
    if not all(isinstance(one, Sequence | np.ndarray) for one in prefixes):
        raise ValueError(
            "decoder_prefix must be one text, or a list of texts or lists of ids, got "
            f"{prefix!r:.60}; wrap the ids of one prefix in a list."
        )
    if len(prefixes) != num_inputs:
        raise ValueError(
            f"decoder_prefix must be one text, or one for each of {num_inputs} inputs, got "
            f"{len(prefixes)}."
        )
    encoded = [
        _require(tokenizer, "decoder_prefix").encode(one) if isinstance(one, str) else list(one)
        for one in prefixes
    ]
    for i, ids in enumerate(encoded):
        if len(ids) > MAX_PREFIX_TOKENS:
            raise ValueError(
                f"decoder_prefix[{i}] must have at most {MAX_PREFIX_TOKENS} tokens, got "
                f"{len(ids)}; shorten it."
            )
        if model_config.eos_id in ids:
            raise ValueError(
                f"decoder_prefix[{i}] must not contain EOS, {model_config.eos_id}, got {ids}; "
                "remove it."
            )
        _check_ids(f"decoder_prefix[{i}]", ids, model_config.vocab_size)
    return encoded


def _compile_automaton(
    config: GenerationConfig, model_config: T5Config, tokenizer: Tokenizer | None
) -> Automaton | None:
    limit = config.max_new_tokens
    if config.allowed_texts is not None:
        automaton, longest, num_tokens = _compile_allowed_texts(
            tuple(config.allowed_texts), _require(tokenizer, "allowed_texts"), model_config
        )
        if num_tokens > limit:
            raise ValueError(
                f"max_new_tokens must be at least {num_tokens} for all allowed_texts to fit, got "
                f"{limit}; the longest is {longest!r:.60}."
            )
        return automaton
    if config.automaton is not None:
        check_automaton(config.automaton, model_config.vocab_size)
        shortest = int(config.automaton.distance[0])
        if shortest > limit:
            raise ValueError(
                f"automaton must accept a sequence of at most max_new_tokens = {limit} tokens, EOS "
                "included; "
                + ("it accepts nothing." if shortest >= 2**30 else f"it needs {shortest}.")
            )
    return config.automaton


@functools.lru_cache(maxsize=8)
def _compile_allowed_texts(
    texts: tuple[str, ...], tokenizer: Tokenizer, model_config: T5Config
) -> tuple[Automaton, str, int]:
    """Return the automaton, the text with the most tokens, and its length, EOS included."""
    encoded = [tokenizer.encode(text) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        # Characters outside the vocabulary are lost.
        if tokenizer.decode(ids) != text:
            raise ValueError(
                f"allowed_texts must be texts that the tokenizer can encode, got {text!r:.60}, "
                f"which it encodes as {tokenizer.decode(ids)!r:.60}."
            )
    automaton = trie(encoded, eos_id=model_config.eos_id, vocab_size=model_config.vocab_size)
    longest = max(range(len(texts)), key=lambda i: len(encoded[i]))
    return automaton, texts[longest], len(encoded[longest]) + 1


@functools.lru_cache(maxsize=8)
def _compile_stop_strings(
    strings: tuple[str, ...], tokenizer: Tokenizer, vocab_size: int
) -> Automaton:
    pieces, first_pieces = _pieces(tokenizer)
    return matcher(
        [string.encode() for string in strings],
        pieces,
        vocab_size=vocab_size,
        first_pieces=first_pieces,
    )


@functools.lru_cache(maxsize=2)
def _pieces(tokenizer: Tokenizer) -> tuple[list[bytes], list[bytes]]:
    """Return the bytes that each token appends to a text, and to an empty text."""
    pieces = tokenizer.pieces()
    return pieces, [_first_piece(tokenizer, i, piece) for i, piece in enumerate(pieces)]


def _first_piece(tokenizer: Tokenizer, token: int, piece: bytes) -> bytes:
    """Return the bytes that a token appends to an empty text; some tokenizers drop spaces."""
    if not piece.startswith(b" "):
        return piece
    text = tokenizer.decode([token])
    num_spaces = len(text) - len(text.lstrip(" "))
    return b" " * num_spaces + piece.lstrip(b" ")


def _encode_bad_words(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Encode bad words, which must not contain the unknown token."""
    encoded = [tokenizer.encode(word) for word in words]
    for word, ids in zip(words, encoded, strict=True):
        if not ids or tokenizer.unk_id in ids:
            raise ValueError(
                f"bad_words must be texts that the tokenizer can encode, got {word!r:.60}, which "
                f"it encodes as {tokenizer.decode(ids)!r:.60}."
            )
    return encoded


def _require(tokenizer: Tokenizer | None, name: str) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(f"{name} must come with a tokenizer, got a model without one; pass ids.")
    return tokenizer


def _check_ids(name: str, ids: Ids, vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} must be ids in [0, vocab_size = {vocab_size}), got {token}.")


def _scalar(value: int | None):
    return None if value is None else jnp.int32(value)


def _mask(tokens: Ids, vocab_size: int):
    if not len(tokens):
        return None
    mask = np.zeros(vocab_size, bool)
    mask[list(tokens)] = True
    return jnp.asarray(mask)


def _right_aligned(words: list[list[int]]) -> np.ndarray:
    """Stack sequences, padded on the left with -1, in sizes that are powers of two."""
    width = 1 << (max(map(len, words)) - 1).bit_length()
    rows = np.full((1 << (len(words) - 1).bit_length(), width), -1, np.int32)
    for row, ids in zip(rows, words, strict=False):
        row[width - len(ids) :] = ids
    # Padding rows repeat the first word, which has no effect.
    rows[len(words) :] = rows[0]
    return rows
