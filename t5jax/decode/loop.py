"""The token loop: one jitted `while_loop` that stops when every row has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Step = Callable[[Int[Array, " B"], Any], tuple[Float[Array, "B V"], Any]]
Choose = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]


def decode(
    step: Step,
    cache: Any,
    *,
    choose: Choose,
    start_tokens: Int[Array, " B"],
    done: Bool[Array, " B"],
    limit: Int[Array, ""],
    max_len: int,
    eos_id: int,
    pad_id: int,
) -> Int[Array, "B max_len"]:
    """Feeds each chosen token back until all rows have written EOS or `limit` tokens.

    Args:
      step: from the last tokens and the cache to the next logits and cache; any model.
      cache: its first state.
      choose: from logits and the position, 0 for the first token, to the next tokens, such as
        `choose.greedy`.
      start_tokens: fed first, not returned.
      done: rows that are not to be decoded at all, such as those that only fill up a batch.
      limit: most tokens a row may get, at most `max_len`; a traced value, so that one compiled
        loop serves all.
      max_len: width of the result.
      eos_id: ends a row; it is returned.
      pad_id: fills a row behind its end.
    Returns:
      [B, max_len] int32.
    """
    tokens = jnp.full((start_tokens.shape[0], max_len), pad_id, jnp.int32)
    limit = jnp.minimum(limit, max_len)

    def running(state):
        index, _, _, done, _ = state
        return (index < limit) & ~jnp.all(done)

    def advance(state):
        index, last, cache, done, tokens = state
        logits, cache = step(last, cache)
        chosen = choose(logits, index).astype(jnp.int32)
        chosen = jnp.where(done, jnp.int32(pad_id), chosen)
        tokens = jax.lax.dynamic_update_slice(tokens, chosen[:, None], (jnp.int32(0), index))
        return index + 1, chosen, cache, done | (chosen == eos_id), tokens

    start = (jnp.int32(0), start_tokens.astype(jnp.int32), cache, done, tokens)
    return jax.lax.while_loop(running, advance, start)[-1]
