"""How many floating-point operations a model needs: what it is, not how it is computed.

Counted are all products of matrices, a multiplication and an addition as two operations; softmax,
norms, biases and lookups are not, nor what is computed twice to save memory.  Attention counts
every query with every key, masked or not.  (arXiv:2204.02311, appendix B, does the same.)
"""

from t5jax.models import T5Config


def train_step_flops(
    config: T5Config, *, batch_size: int, input_length: int, target_length: int
) -> float:
    """Operations of one update: forward, and twice that for both gradients of every product.

    Args:
      config: of the model.
      batch_size: sequences, or packed rows of several.
      input_length: tokens that the encoder reads in each.
      target_length: tokens that the decoder reads in each.
    """
    return 3.0 * forward_flops(
        config, batch_size=batch_size, input_length=input_length, target_length=target_length
    )


def forward_flops(
    config: T5Config, *, batch_size: int, input_length: int, target_length: int
) -> float:
    """Operations from tokens to logits; arguments as of `train_step_flops`."""
    source, target = input_length, target_length
    joined = config.num_heads * config.d_kv
    reading = source * 2 * config.d_model * joined  # keys and values of cross-attention
    layer = (
        target * 6 * config.d_model * joined
        + target * 2 * target * joined
        + target * 2 * source * joined
        + target * _feed_forward(config)
    )
    products = (
        _encoder(config, source)
        + config.num_decoder_layers * (reading + layer)
        + target * _output(config)
    )
    return 2.0 * batch_size * products


def encode_flops(config: T5Config, *, batch_size: int, input_length: int) -> float:
    """Operations of the encoder alone."""
    return 2.0 * batch_size * _encoder(config, input_length)


def decode_step_flops(
    config: T5Config, *, batch_size: int, input_length: int, cache_length: int
) -> float:
    """Operations of one more token for every row, with keys and values in a cache.

    Args:
      config: of the model.
      batch_size: rows that are written.
      input_length: tokens that each has read.
      cache_length: room in the cache, all of which is attended to.
    """
    joined = config.num_heads * config.d_kv
    layer = (
        6 * config.d_model * joined
        + 2 * cache_length * joined
        + 2 * input_length * joined
        + _feed_forward(config)
    )
    return 2.0 * batch_size * (config.num_decoder_layers * layer + _output(config))


def _encoder(config: T5Config, length: int) -> int:
    joined = config.num_heads * config.d_kv
    token = 4 * config.d_model * joined + 2 * length * joined + _feed_forward(config)
    return config.num_encoder_layers * length * token


def _feed_forward(config: T5Config) -> int:
    return (3 if config.gated_ff else 2) * config.d_model * config.d_ff


def _output(config: T5Config) -> int:
    return config.d_model * config.vocab_size if config.num_decoder_layers else 0
