"""Counts against a hand-made one, against published parameter counts, and against XLA's."""

import jax
import jax.numpy as jnp
import pytest

from t5jax.models.config import T5Config
from t5jax.models.t5 import abstract_params, bind
from t5jax.profiling.flops import decode_step_flops, encode_flops, forward_flops, train_step_flops

SMALL = T5Config(
    vocab_size=11,
    d_model=2,
    d_ff=3,
    d_kv=5,
    num_heads=1,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
# Wide for its lengths, so that products are nearly all there is to count.
WIDE = T5Config(
    vocab_size=1024,
    d_model=256,
    d_ff=512,
    d_kv=32,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


def test_forward_is_what_one_counts_by_hand():
    # D=2, J=5, F=3, V=11; 7 tokens in, 3 out.
    encoder = 7 * (4 * 2 * 5) + 7 * 7 * 5 * 2 + 7 * (3 * 2 * 3)
    own = 3 * (4 * 2 * 5) + 3 * 3 * 5 * 2
    cross = 3 * (2 * 2 * 5) + 7 * (2 * 2 * 5) + 3 * 7 * 5 * 2
    decoder = own + cross + 3 * (3 * 2 * 3)
    counted = 2 * 4 * (encoder + decoder + 3 * 2 * 11)
    assert forward_flops(SMALL, batch_size=4, input_length=7, target_length=3) == counted
    assert train_step_flops(SMALL, batch_size=4, input_length=7, target_length=3) == 3 * counted


def test_forward_of_ungated_layers_has_two_products():
    plain = SMALL.replace(gated_ff=False)
    args = {"batch_size": 1, "input_length": 7, "target_length": 3}
    missing = forward_flops(SMALL, **args) - forward_flops(plain, **args)
    assert missing == 2 * (7 + 3) * 2 * 3


def test_encoder_alone_is_the_forward_of_an_encoder():
    alone = SMALL.replace(num_decoder_layers=0)
    whole = forward_flops(alone, batch_size=2, input_length=7, target_length=1)
    assert encode_flops(SMALL, batch_size=2, input_length=7) == whole


def test_forward_with_a_cache_is_a_whole_forward_in_steps():
    """Without attention's squares: what T steps and the encoder do is what one pass does."""
    inputs, targets = 7, 3
    steps = targets * decode_step_flops(
        SMALL, batch_size=1, input_length=inputs, cache_length=targets
    )
    keys_values = 2 * inputs * 2 * 2 * 5
    read = encode_flops(SMALL, batch_size=1, input_length=inputs)
    whole = forward_flops(SMALL, batch_size=1, input_length=inputs, target_length=targets)
    assert steps + keys_values + read == whole


def test_train_step_is_six_times_parameters_and_tokens():
    """The usual rule, of T5 v1.1 XXL's 11.1e9 parameters, half of which see each token.

    Within 15 %: embeddings count as parameters, attention's scores do not, and the decoder's
    cross-attention sees tokens of both kinds.
    """
    config = T5Config.preset("t5-v1_1-xxl")
    counted = train_step_flops(config, batch_size=1, input_length=512, target_length=512)
    assert counted == pytest.approx(6 * 11.1e9 / 2 * 1024, rel=0.15)


@pytest.fixture
def optimised():
    """XLA's count is of the program it made."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("what", ["forward", "train"])
def test_counts_are_xlas_of_a_model_without_loops(what, optimised):
    """Within 4 %: XLA also counts softmax, norms and activations.  One layer: it counts a loop's
    body once."""
    sizes = {"batch_size": 2, "input_length": 48, "target_length": 33}
    abstract = abstract_params(WIDE)
    inputs = jax.ShapeDtypeStruct((2, 48), jnp.int32)
    targets = jax.ShapeDtypeStruct((2, 33), jnp.int32)

    def loss(params, inputs, targets):
        logits = bind(WIDE, params)(inputs, targets, encoder_mask=inputs != 0)
        return jnp.sum(jax.nn.log_softmax(logits)[..., 0])

    function, counted = loss, forward_flops(WIDE, **sizes)
    if what == "train":
        function, counted = jax.grad(loss), train_step_flops(WIDE, **sizes)
    cost = jax.jit(function).lower(abstract, inputs, targets).compile().cost_analysis()
    assert cost["flops"] == pytest.approx(counted, rel=0.04)


def test_decode_step_counts_are_xlas(optimised, own_checks):
    """Within 4 %, as above."""
    params = abstract_params(WIDE)
    states = jax.ShapeDtypeStruct((16, 48, 256), jnp.float32)
    mask = jax.ShapeDtypeStruct((16, 48), jnp.bool_)

    def start(params, states, mask):
        decoder = bind(WIDE, params).incremental_decoder()
        return decoder.start(states, encoder_mask=mask, max_len=20)

    step, cache = jax.eval_shape(start, params, states, mask)
    tokens = jax.ShapeDtypeStruct((16,), jnp.int32)
    compiled = jax.jit(lambda step, *args: step(*args)).lower(step, tokens, cache).compile()
    counted = decode_step_flops(WIDE, batch_size=16, input_length=48, cache_length=20)
    assert compiled.cost_analysis()["flops"] == pytest.approx(counted, rel=0.04)
