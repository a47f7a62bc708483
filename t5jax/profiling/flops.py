"""FLOPs of a model, independent of how they are computed.

Matmuls count two FLOPs per multiply-add. Softmax, norms, biases, lookups and recomputation do not
count. Attention counts every query-key pair, masked or not. (arXiv:2204.02311, appendix B, does the
same.)
"""

from t5jax.models import T5Config


def train_step_flops(
    config: T5Config, *, batch_size: int, input_length: int, target_length: int
) -> float:
    """Count the FLOPs of one update: the forward pass, and twice that for the gradients.

    Args:
      config: model config.
      batch_size: number of sequences, or of packed rows.
      input_length: number of encoder tokens per row.
      target_length: number of decoder tokens per row.
    Returns:
      FLOPs of the whole batch.

    Examples:
      >>> config = t5jax.models.T5Config.preset("t5-small")
      >>> flops = t5jax.profiling.train_step_flops(
      ...     config, batch_size=1, input_length=512, target_length=114
      ... )
      >>> f"{flops:.2e}"
      '1.06e+11'
    """
    return 3.0 * forward_flops(
        config, batch_size=batch_size, input_length=input_length, target_length=target_length
    )


def forward_flops(
    config: T5Config, *, batch_size: int, input_length: int, target_length: int
) -> float:
    """Count the FLOPs of a forward pass, from tokens to logits.

    Args:
      config: model config.
      batch_size: number of sequences, or of packed rows.
      input_length: number of encoder tokens per row.
      target_length: number of decoder tokens per row.
    Returns:
      FLOPs of the whole batch.

    Examples:
      >>> config = t5jax.models.T5Config.preset("t5-small")
      >>> flops = t5jax.profiling.forward_flops(
      ...     config, batch_size=1, input_length=512, target_length=114
      ... )
      >>> f"{flops:.2e}"
      '3.54e+10'
    """
    source, target = input_length, target_length
    inner_dim = config.num_heads * config.d_kv
    cross_kv = source * 2 * config.d_model * inner_dim  # keys and values of cross-attention
    layer = (
        target * 6 * config.d_model * inner_dim
        + target * 2 * target * inner_dim
        + target * 2 * source * inner_dim
        + target * _feed_forward(config)
    )
    products = (
        _encoder(config, source)
        + config.num_decoder_layers * (cross_kv + layer)
        + target * _output(config)
    )
    return 2.0 * batch_size * products


def encode_flops(config: T5Config, *, batch_size: int, input_length: int) -> float:
    """Count the FLOPs of the encoder, the only part that `Text2Text.embed` runs.

    Args:
      config: model config.
      batch_size: number of sequences.
      input_length: number of tokens per sequence.
    Returns:
      FLOPs of the whole batch.

    Examples:
      >>> config = t5jax.models.T5Config.preset("t5-small")
      >>> f"{t5jax.profiling.encode_flops(config, batch_size=1, input_length=512):.2e}"
      '2.25e+10'
    """
    return 2.0 * batch_size * _encoder(config, input_length)


def decode_step_flops(
    config: T5Config, *, batch_size: int, input_length: int, cache_length: int
) -> float:
    """Count the FLOPs of decoding one token per row, with keys and values in a cache.

    Args:
      config: model config.
      batch_size: number of rows.
      input_length: number of encoder tokens per row.
      cache_length: number of slots in the cache, all of them attended to.
    Returns:
      FLOPs of the whole batch.

    Examples:
      >>> config = t5jax.models.T5Config.preset("t5-small")
      >>> flops = t5jax.profiling.decode_step_flops(
      ...     config, batch_size=1, input_length=512, cache_length=114
      ... )
      >>> f"{flops:.2e}"
      '8.46e+07'
    """
    inner_dim = config.num_heads * config.d_kv
    layer = (
        6 * config.d_model * inner_dim
        + 2 * cache_length * inner_dim
        + 2 * input_length * inner_dim
        + _feed_forward(config)
    )
    return 2.0 * batch_size * (config.num_decoder_layers * layer + _output(config))


def _encoder(config: T5Config, length: int) -> int:
    inner_dim = config.num_heads * config.d_kv
    token = 4 * config.d_model * inner_dim + 2 * length * inner_dim + _feed_forward(config)
    return config.num_encoder_layers * length * token


def _feed_forward(config: T5Config) -> int:
    return (3 if config.gated_ff else 2) * config.d_model * config.d_ff


def _output(config: T5Config) -> int:
    return config.d_model * config.vocab_size if config.num_decoder_layers else 0
