"""Decoding loops over any `step(tokens, cache) -> (logits, cache)`."""
