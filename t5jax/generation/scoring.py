"""Forward passes over ids: encoder states, embeddings, log-probabilities of targets."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5jax.data import shift_right
from t5jax.generation.batching import InputBatch, batch_bucket, batches_by_length, pad_batch
from t5jax.generation.engine import NOT_FINITE
from t5jax.models import (
    ComputePolicy,
    Layer,
    Params,
    SentenceEncoder,
    T5Config,
    apply_layers,
    bind,
)

# Number of positions whose logits are in memory at once; all would not fit for a large vocabulary.
_CHUNK = 8


class TokenScores(NamedTuple):
    """Log-probabilities of the tokens of targets; for a single target, without axis R.

    Attributes:
      log_probs: log-probability of each target token, in nats.
      best: the k most likely tokens at each position, best first.
      best_log_probs: their log-probabilities, in nats.
    """

    log_probs: Float[Array, "*R T"]
    best: Int[Array, "*R T k"]
    best_log_probs: Float[Array, "*R T k"]


class Scorer:
    """Encoder states, embeddings and scores of ids, computed batch by batch.

    Attributes:
      config: architecture of the model.
      params: parameters of the model.
      policy: compute policy.
      sentence_encoder: layers between encoder states and embeddings.

    Examples:
      >>> scorer = t5jax.generation.Scorer(config, params, policy=t5jax.ComputePolicy())
      >>> states, mask = scorer.encode([[5, 6, 1], [7, 1]], batch_size=2)
      >>> states.shape, mask.sum(axis=1).tolist()
      ((2, 3, 16), [3, 2])
    """

    def __init__(
        self,
        config: T5Config,
        params: Params,
        *,
        policy: ComputePolicy,
        sentence_encoder: SentenceEncoder | None = None,
    ):
        self.config = config
        self.params = params
        self.policy = policy
        self.sentence_encoder = sentence_encoder or SentenceEncoder.default(config)

    def encode(
        self, inputs: Sequence[Sequence[int]], *, batch_size: int
    ) -> tuple[Float[np.ndarray, "B S D"], Bool[np.ndarray, "B S"]]:
        """Return the final encoder states of every input, and their mask.

        Args:
          inputs: ids of every input.
          batch_size: maximum number of inputs computed at once.
        Returns:
          [B, S, D] float32 states, 0 on padding, and a [B, S] mask that is True on ids; S is the
          length of the longest input.
        Raises:
          ValueError: a state is not finite.
        """
        lengths = np.array([len(ids) for ids in inputs], np.int32)
        width = int(lengths.max(initial=0))
        mask = np.arange(width)[None, :] < lengths[:, None]
        states = np.zeros((*mask.shape, self.config.d_model), np.float32)
        for batch in self._batches(inputs, batch_size):
            encoded = encode_batch(
                self.params, batch.tokens, batch.mask, config=self.config, policy=self.policy
            )
            encoded = np.asarray(encoded.astype(jnp.float32))
            for index, row in zip(batch.indices, encoded, strict=False):
                states[index, : lengths[index]] = row[: lengths[index]]
                _check_finite("encoder states", index, states[index])
        return states, mask

    def embed(
        self, inputs: Sequence[Sequence[int]], *, batch_size: int, prompt_length: int = 0
    ) -> Float[np.ndarray, "B E"]:
        """Return the embedding of every input.

        Args:
          inputs: ids of every input.
          batch_size: maximum number of inputs computed at once.
          prompt_length: number of leading ids of every input that belong to the prompt.
        Returns:
          [B, E] float32; E is the output width of the sentence encoder.
        Raises:
          ValueError: an embedding is not finite.
        """
        encoder = self.sentence_encoder
        layers = encoder.with_projection(self.params.get("projection", {}).get("kernel"))
        width = encoder.width(self.config)
        embeddings = np.zeros((len(inputs), width), np.float32)
        for batch in self._batches(inputs, batch_size):
            rows = embed_batch(
                self.params,
                batch.tokens,
                batch.mask,
                layers=layers,
                prompt_length=jnp.int32(prompt_length),
                config=self.config,
                policy=self.policy,
            )
            for index, row in zip(batch.indices, np.asarray(rows), strict=False):
                embeddings[index] = row[:width]
                _check_finite("embeddings", index, row)
        return embeddings

    def score_candidates(
        self,
        inputs: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
        *,
        batch_size: int,
    ) -> list[list[Float[np.ndarray, " T"]]]:
        """Return the token log-probabilities of several targets per input.

        Args:
          inputs: ids of every input, encoded once for all of its targets.
          candidates: ids of the targets of each input; their number may differ between inputs.
          batch_size: maximum number of pairs computed at once; the pairs of an input are never
            split.
        Returns:
          For each target of each input, a [T] float32 array in nats.
        Raises:
          ValueError: logits are not finite.
        """
        most = max(map(len, candidates), default=0)
        scores: list[list[Float[np.ndarray, " T"]]] = [[] for _ in inputs]
        for batch in self._batches(inputs, max(1, batch_size // max(most, 1))):
            listed = [candidates[index] for index in batch.indices]
            if not any(listed):
                continue
            width = batch_bucket(max(map(len, listed)))
            targets = self._pad_targets(
                [ids for row in listed for ids in [*row, *[[]] * (width - len(row))]],
                num_rows=len(batch.tokens) * width,
            )
            log_probs = np.asarray(self._score_batch(batch, targets).log_probs)
            log_probs = log_probs.reshape(len(batch.tokens), width, -1)
            for index, row, targets_of_input in zip(batch.indices, log_probs, listed, strict=False):
                scores[index] = [
                    one[: len(ids)] for one, ids in zip(row, targets_of_input, strict=False)
                ]
                for log_probs_of_target in scores[index]:
                    _check_finite("logits", index, log_probs_of_target)
        return scores

    def score_tokens(
        self,
        inputs: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        batch_size: int,
        num_best: int,
    ) -> list[TokenScores]:
        """Return the token log-probabilities of one target per input.

        Args:
          inputs: ids of every input.
          targets: ids of the target of each input.
          batch_size: maximum number of pairs computed at once.
          num_best: number of most likely tokens to return for each position.
        Returns:
          The scores of each target.
        Raises:
          ValueError: logits are not finite.
        """
        scores: dict[int, TokenScores] = {}
        for batch in self._batches(inputs, batch_size):
            padded = self._pad_batch_targets(batch, targets)
            arrays = map(np.asarray, self._score_batch(batch, padded, num_best=num_best))
            for index, *row in zip(batch.indices, *arrays, strict=False):
                scores[index] = TokenScores(*(part[: len(targets[index])] for part in row))
                _check_finite("logits", index, row[0][: len(targets[index])])
        return [scores[index] for index in range(len(inputs))]

    def cross_attention(
        self,
        inputs: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        batch_size: int,
    ) -> list[Float[np.ndarray, "L N T S"]]:
        """Return the cross-attention weights of one target per input.

        Args:
          inputs: ids of every input.
          targets: ids of the target of each input.
          batch_size: maximum number of pairs computed at once.
        Returns:
          For each input, an [L, N, T, S] float32 array; its rows sum to 1 over S.
        Raises:
          ValueError: a weight is not finite.
        """
        weights: dict[int, Float[np.ndarray, "L N T S"]] = {}
        for batch in self._batches(inputs, batch_size):
            padded = self._pad_batch_targets(batch, targets)
            rows = cross_attention_weights(
                self.params,
                batch.tokens,
                batch.mask,
                self._shift(padded),
                config=self.config,
                policy=self.policy,
            )
            rows = np.moveaxis(np.asarray(rows), 1, 0)
            for index, row in zip(batch.indices, rows, strict=False):
                weights[index] = row[:, :, : len(targets[index]), : len(inputs[index])].copy()
                _check_finite("attention weights", index, weights[index])
        return [weights[index] for index in range(len(inputs))]

    def _batches(self, inputs: Sequence[Sequence[int]], batch_size: int) -> Iterator[InputBatch]:
        return batches_by_length(inputs, batch_size=batch_size, pad_id=self.config.pad_id)

    def _score_batch(
        self, batch: InputBatch, targets: Int[np.ndarray, "R T"], *, num_best: int = 0
    ) -> TokenScores:
        return score_tokens(
            self.params,
            batch.tokens,
            batch.mask,
            self._shift(targets),
            targets,
            config=self.config,
            policy=self.policy,
            num_best=num_best,
        )

    def _pad_batch_targets(
        self, batch: InputBatch, targets: Sequence[Sequence[int]]
    ) -> Int[np.ndarray, "B T"]:
        return self._pad_targets(
            [targets[index] for index in batch.indices], num_rows=len(batch.tokens)
        )

    def _pad_targets(
        self, targets: Sequence[Sequence[int]], *, num_rows: int
    ) -> Int[np.ndarray, "R T"]:
        return pad_batch(targets, pad_id=self.config.pad_id, num_rows=num_rows)[0]

    def _shift(self, targets: Int[np.ndarray, "R T"]) -> Int[np.ndarray, "R T"]:
        return shift_right(targets, start_id=self.config.decoder_start_id)


def _check_finite(name: str, index: int, values: np.ndarray) -> None:
    """Raise ValueError unless all values that were computed for an input are finite."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity for input {index}; {NOT_FINITE}"
        )


@functools.partial(jax.jit, static_argnames=("config", "policy"))
def encode_batch(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
    policy: ComputePolicy,
) -> Float[Array, "B S D"]:
    """Return the final encoder states.

    Args:
      params: parameters of the model.
      encoder_tokens: [B, S] input ids.
      encoder_mask: [B, S] True on ids that are not padding.
      config: architecture of the model.
      policy: compute policy.
    Returns:
      [B, S, D] in the dtype of the policy.
    """
    return bind(config, params, policy=policy).encode(encoder_tokens, encoder_mask=encoder_mask)


@functools.partial(jax.jit, static_argnames=("config", "policy"))
def embed_batch(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    layers: tuple[Layer, ...],
    prompt_length: Int[Array, ""],
    config: T5Config,
    policy: ComputePolicy,
) -> Float[Array, "B E"]:
    """Return the embeddings that the layers of a sentence encoder make of the encoder states.

    Args:
      params: parameters of the model.
      encoder_tokens: [B, S] input ids.
      encoder_mask: [B, S] True on ids that are not padding.
      layers: layers of the sentence encoder.
      prompt_length: number of leading ids that belong to the prompt.
      config: architecture of the model.
      policy: compute policy.
    Returns:
      [B, E] float32.
    """
    model = bind(config, params, policy=policy)
    states = model.encode(encoder_tokens, encoder_mask=encoder_mask).astype(jnp.float32)
    return apply_layers(layers, states, encoder_mask, prompt_length=prompt_length)


@functools.partial(jax.jit, static_argnames=("config", "policy", "num_best"))
def score_tokens(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    decoder_tokens: Int[Array, "R T"],
    targets: Int[Array, "R T"],
    *,
    config: T5Config,
    policy: ComputePolicy,
    num_best: int = 0,
) -> TokenScores:
    """Return the token log-probabilities of targets, and the most likely tokens.

    Args:
      params: parameters of the model.
      encoder_tokens: [B, S] input ids, each row encoded once.
      encoder_mask: [B, S] True on ids that are not padding.
      decoder_tokens: [R, T] decoder input ids, the targets shifted right.
      targets: [R, T] target ids, R / B adjacent rows per input; T is a multiple of 8.
      config: architecture of the model.
      policy: compute policy.
      num_best: number of most likely tokens to return for each position.
    Returns:
      float32 log-probabilities in nats, NaN where a logit is not finite.
    """
    model = bind(config, params, policy=policy)
    encoded = model.encode(encoder_tokens, encoder_mask=encoder_mask)
    states = model.decode(decoder_tokens, encoded, encoder_mask=encoder_mask)

    def score_chunk(chunk):
        states, targets = chunk
        logits = model.logits(states)
        # An infinite logit of one token would leave the log-probabilities of others finite.
        finite = jnp.isfinite(logits).all(axis=-1, keepdims=True)
        log_probs = jnp.where(finite, jax.nn.log_softmax(logits), jnp.nan)
        chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        return chosen, *jax.lax.top_k(log_probs, num_best)

    def split(x):
        return jnp.moveaxis(x.reshape(len(x), -1, _CHUNK, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(*targets.shape, *x.shape[3:])

    chunks = jax.lax.map(score_chunk, (split(states), split(targets)))
    log_probs, best_log_probs, best = map(join, chunks)
    return TokenScores(log_probs, best, best_log_probs)


@functools.partial(jax.jit, static_argnames=("config", "policy"))
def cross_attention_weights(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    decoder_tokens: Int[Array, "B T"],
    *,
    config: T5Config,
    policy: ComputePolicy,
) -> Float[Array, "L B N T S"]:
    """Return the cross-attention weights of every decoder token.

    Args:
      params: parameters of the model.
      encoder_tokens: [B, S] input ids.
      encoder_mask: [B, S] True on ids that are not padding.
      decoder_tokens: [B, T] decoder input ids.
      config: architecture of the model.
      policy: compute policy.
    Returns:
      [L, B, N, T, S] weights, which sum to 1 over S.
    """
    return bind(config, params, policy=policy).cross_attention_weights(
        encoder_tokens, decoder_tokens, encoder_mask=encoder_mask
    )
