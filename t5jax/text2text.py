"""What `t5jax.load` returns: a model with its parameters and tokenizer, from text to text."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from t5jax import generate, pretrained
from t5jax.config import T5Config
from t5jax.model import T5, Params, bind
from t5jax.pretrained import hf_save
from t5jax.pretrained.source import Weights
from t5jax.tokenizer import Tokenizer


class Text2Text:
    """A T5 ready for use.

    Texts are tokenised, grouped by length, padded to a few fixed lengths and run through compiled
    programs; results come in the order of the texts.  The first call with a new combination of
    lengths compiles, later ones do not.

    Attributes:
      config: the architecture.
      params: nested dict of arrays.
      tokenizer: None if the model came without one; then only the methods on ids work.
    """

    def __init__(self, config: T5Config, params: Params, tokenizer: Tokenizer | None):
        """Checks that the three fit together.

        Raises:
          ValueError: parameters of other shapes, or a tokenizer with more ids than embeddings.
        """
        self._model = bind(config, params)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer must have at most vocab_size = {config.vocab_size} ids, got "
                f"{tokenizer.vocab_size}; it belongs to another model."
            )
        if tokenizer is not None and tokenizer.eos_id != config.eos_id:
            raise ValueError(
                f"the tokenizer must end sequences as the model does, with eos_id = "
                f"{config.eos_id}, got {tokenizer.eos_id}; it belongs to another model."
            )
        self.config = config
        self.params = params
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Text2Text({count / 1e6:.1f} M parameters, {self.config})"

    @property
    def model(self) -> T5:
        """The `flax.nnx` module, for everything that the methods here do not do."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
    ) -> list[str]:
        """Writes an answer to every text.

        Args:
          texts: inputs, with whatever prefix the model was trained on.
          max_new_tokens: most tokens of an answer.
          temperature: 0 takes the most likely token each time; above, tokens are drawn at random.
          seed: of the draws.  An answer depends on it, on its text and on its place in `texts`.
          batch_size: texts computed at once.
          max_input_tokens: longest input allowed, since memory grows with its square.
        Raises:
          ValueError: an option out of range, or a text longer than allowed.
        """
        _check_sampling(temperature, seed)
        _check_positive(max_new_tokens=max_new_tokens, batch_size=batch_size)
        inputs = self._encode_texts("texts", texts, max_input_tokens)
        tokenizer = self._need_tokenizer()

        def run(rows, tokens, mask):
            return self._generate(rows, tokens, mask, max_new_tokens, temperature, seed)

        return [tokenizer.decode(ids) for ids in self._run(inputs, run, batch_size=batch_size)]

    def generate_ids(
        self,
        encoder_tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
        *,
        encoder_mask: Bool[Array, "B S"] | Bool[np.ndarray, "B S"],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[np.ndarray, "B T"]:
        """`generate` from ids to ids, for one batch.

        Args:
          encoder_tokens: input ids.
          encoder_mask: True on ids that are not padding.
          max_new_tokens: most tokens of an answer, T.
          temperature: as in `generate`.
          seed: as in `generate`.
        Returns:
          [B, T] int32; rows end with EOS, then padding, unless they reached the limit.
        """
        _check_sampling(temperature, seed)
        _check_positive(max_new_tokens=max_new_tokens)
        tokens, mask = np.asarray(encoder_tokens), np.asarray(encoder_mask)
        if tokens.ndim != 2 or tokens.shape != mask.shape:
            raise ValueError(
                "encoder_tokens and encoder_mask must both have shape [B, S], got "
                f"{tokens.shape} and {mask.shape}."
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            raise ValueError(
                f"ids must be in [0, vocab_size = {self.config.vocab_size}), got "
                f"{tokens.min()} to {tokens.max()}; another tokenizer made them."
            )
        if not len(tokens):
            return np.zeros((0, max_new_tokens), np.int32)
        count, length = tokens.shape
        room = ((0, _rows_bucket(count) - count), (0, generate.bucket(length) - length))
        tokens = np.pad(tokens.astype(np.int32), room, constant_values=self.config.pad_id)
        mask = np.pad(mask.astype(bool), room)
        rows = np.where(np.arange(len(tokens)) < count, np.arange(len(tokens)), -1)
        return self._generate(rows, tokens, mask, max_new_tokens, temperature, seed)[:count]

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
    ) -> Float[np.ndarray, " B"]:
        """Log-probability, in nats, that each input is answered by its target and then EOS.

        Args:
          inputs: texts.
          targets: one for each input.
          batch_size: pairs computed at once.
          max_input_tokens: longest input or target allowed.
        """
        _check_positive(batch_size=batch_size)
        tokenizer = self._need_tokenizer()
        encoded = self._encode_texts("inputs", inputs, max_input_tokens)
        wanted = self._encode_texts("targets", targets, max_input_tokens)
        if len(inputs) != len(targets):
            raise ValueError(
                f"inputs and targets must be as many, got {len(inputs)} and {len(targets)}."
            )

        def run(rows, tokens, mask):
            labels, label_mask = generate.pad_batch(
                [wanted[i] for i in rows if i >= 0], pad_id=tokenizer.pad_id, num_rows=len(rows)
            )
            return np.asarray(
                generate.score(self.params, tokens, mask, labels, label_mask, config=self.config)
            )

        return np.array(self._run(encoded, run, batch_size=batch_size), np.float32)

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, max_input_tokens: int = 2048
    ) -> tuple[Float[np.ndarray, "B S D"], Bool[np.ndarray, "B S"]]:
        """Final encoder states of every token, and which positions are tokens.

        S is the length, EOS included, of the longest text; states behind a text's end are 0.
        """
        _check_positive(batch_size=batch_size)
        encoded = self._encode_texts("texts", texts, max_input_tokens)
        lengths = np.array([len(ids) for ids in encoded], np.int32)

        def run(rows, tokens, mask):
            del rows
            states = generate.encode(self.params, tokens, mask, config=self.config)
            return np.asarray(states.astype(jnp.float32))

        width = int(lengths.max(initial=0))
        mask = np.arange(width)[None, :] < lengths[:, None]
        states = np.zeros((*mask.shape, self.config.d_model), np.float32)
        for i, row in enumerate(self._run(encoded, run, batch_size=batch_size)):
            states[i, : lengths[i]] = row[: lengths[i]]
        return states, mask

    def embed(
        self, texts: Sequence[str], *, batch_size: int = 32, max_input_tokens: int = 2048
    ) -> Float[np.ndarray, "B E"]:
        """One vector of length 1 for every text: the mean of its encoder states.

        If the model has a projection (sentence-T5, GTR), it is applied to the mean, and E is its
        width; otherwise E is d_model.  (arXiv:2108.08877, section 3)
        """
        _check_positive(batch_size=batch_size)
        encoded = self._encode_texts("texts", texts, max_input_tokens)

        def run(rows, tokens, mask):
            del rows
            return np.asarray(generate.embed(self.params, tokens, mask, config=self.config))

        width = self.config.projection_dim or self.config.d_model
        rows = self._run(encoded, run, batch_size=batch_size)
        return np.array(rows, np.float32).reshape(len(texts), width)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes config, parameters and tokenizer to a folder that `t5jax.load` reads.

        Args:
          folder: made whole or not at all.
          overwrite: replace an existing folder, which otherwise is an error.
        """
        pretrained.save(folder, self.config, self.params, self.tokenizer, overwrite=overwrite)

    def _need_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "this model was loaded without a tokenizer; pass `tokenizer=` to t5jax.load, put "
                "spiece.model into its folder, or call generate_ids with ids of your own."
            )
        return self._tokenizer

    def _encode_texts(self, name: str, texts: Sequence[str], limit: int) -> list[list[int]]:
        tokenizer = self._need_tokenizer()
        readable = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not readable or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{name} must be a list of strings, got {texts!r:.60}.")
        encoded = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        for i, ids in enumerate(encoded):
            if len(ids) > limit:
                raise ValueError(
                    f"{name}[{i}] must have at most {limit} tokens, got {len(ids)}; shorten it or "
                    "raise max_input_tokens."
                )
        return encoded

    def _generate(self, rows, tokens, mask, max_new_tokens, temperature, seed) -> np.ndarray:
        ids = generate.generate(
            self.params,
            tokens,
            mask,
            np.asarray(rows, np.int32),
            config=self.config,
            max_len=generate.bucket(max_new_tokens),
            limit=np.int32(max_new_tokens),
            sample=temperature > 0,
            temperature=np.float32(temperature),
            seed=np.int32(seed),
        )
        return np.asarray(ids)[:, :max_new_tokens]

    def _run(
        self,
        encoded: list[list[int]],
        run: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
        *,
        batch_size: int,
    ) -> list[Any]:
        """Results of `run(rows, tokens, mask)` for each input, in order; computed by length."""
        results: list[Any] = [None] * len(encoded)
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(encoded), batch_size):
            group = by_length[start : start + batch_size]
            num_rows = min(_rows_bucket(len(group)), batch_size)
            tokens, mask = generate.pad_batch(
                [encoded[i] for i in group], pad_id=self.config.pad_id, num_rows=num_rows
            )
            rows = np.array([*group, *[-1] * (num_rows - len(group))])
            for i, result in zip(group, run(rows, tokens, mask), strict=False):
                results[i] = result
        return results


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: str = "auto",
    encoder_only: bool = False,
    mesh: Mesh | None = None,
    tokenizer: Tokenizer | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Text2Text:
    """Loads a T5 from a folder, a file or the Hugging Face hub.

    Args:
      name_or_path: a folder written by `save`, by `scripts/pretrain.py`, by Hugging Face
        transformers, diffusers or sentence-transformers; a .safetensors file; a T5X or Mesh
        TensorFlow checkpoint; or a hub id such as "google/flan-t5-small".
      dtype: "float32" or "bfloat16" to hold parameters in and to compute in, or "auto", which holds
        them in float32 and computes in bfloat16 on TPU and GPU, in float32 on a CPU.
      encoder_only: leave the decoder where it is, and load a model that encodes and embeds.
      mesh: to divide parameters over, by `model.PARTITION_RULES`; no host holds more than its part.
        Without one they lie on the first device.
      tokenizer: instead of the model's own.
      revision: branch, tag or commit on the hub.
      subfolder: where the model lies among others, such as "text_encoder_2".
    Raises:
      FileNotFoundError: no such folder, and no such model on the hub.
      ConnectionError: the hub cannot be reached and the model is not in its cache.
      ValueError: the files do not hold a T5, or do not fit together.
    """
    compute_dtype = resolve_dtype(dtype)
    config, params, found = pretrained.load(
        name_or_path,
        revision=revision,
        subfolder=subfolder,
        encoder_only=encoder_only,
        dtype=np.dtype(jnp.float32 if dtype == "auto" else dtype),
        mesh=mesh,
    )
    return Text2Text(config.replace(dtype=compute_dtype), params, tokenizer or found)


def export_hf(t5: Text2Text, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a folder that Hugging Face transformers loads.

    Args:
      t5: what to write.
      folder: made whole or not at all.
      overwrite: replace an existing folder, which otherwise is an error.
    """
    hf_save.save(folder, t5.config, Weights.of(t5.params), t5.tokenizer, overwrite=overwrite)


def resolve_dtype(dtype: str) -> str:
    """What "auto" means on the devices at hand; other names are checked and returned."""
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"dtype must be 'auto', 'float32' or 'bfloat16', got {dtype!r}; "
            "float16 is too narrow for T5."
        )
    return dtype


def _rows_bucket(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _check_sampling(temperature: float, seed: int) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}; 0 is greedy.")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be in [0, 2**31), got {seed}.")


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
