"""Encoder and decoder: blocks and stacks of blocks.

Shape letters: B batch, T target length, S input length, C cache length, D d_model, N heads, H d_kv,
L layers, I inputs, R decoder rows; the R / I rows of an input are adjacent.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, PyTree

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.models.layers import Attention, FeedForward, KVCache, RelativeBias, RMSNorm, dropout
from t5jax.ops import Segments, is_kernel
from t5jax.parallel import Sharder


class EncoderBlock(nnx.Module):
    """Self-attention over the whole input, then feed-forward."""

    def __init__(
        self, config: T5Config, policy: ComputePolicy, sharder: Sharder, *, rngs: nnx.Rngs
    ):
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, policy, sharder, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = FeedForward(config, sharder, rngs=rngs)
        self.relative_bias = (
            RelativeBias(config, bidirectional=True, rngs=rngs)
            if config.relative_bias_per_layer
            else None
        )
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "B 1 #S S"] | Segments,
        bias: Float[Array, "1 N S S"] | Float[Array, "N offsets"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        """Apply the block.

        Args:
          x: states before the block.
          mask: self-attention mask.
          bias: relative bias of the stack; None uses the layer's own.
          dropout_key: random key for dropout; None disables it.
        """
        keys, rate = split_key(dropout_key, 4), self.dropout_rate
        if bias is None:
            bias = _own_bias(self.relative_bias, mask, x.shape[1])

        h = self.attention_norm(x)  # [B, S, D]
        q, k, v = self.attention.project_qkv(h)  # [B, N, S, H]
        h = self.attention.attend(q, k, v, mask=mask, bias=bias, dropout_key=keys[0])  # [B, S, D]
        x = x + dropout(h, rate=rate, key=keys[1], shared_axis=-2)

        h = self.mlp_norm(x)
        h = self.mlp(h, dropout_key=keys[2])
        return x + dropout(h, rate=rate, key=keys[3], shared_axis=-2)


class DecoderBlock(nnx.Module):
    """Causal self-attention, cross-attention over the input, then feed-forward."""

    def __init__(
        self, config: T5Config, policy: ComputePolicy, sharder: Sharder, *, rngs: nnx.Rngs
    ):
        self.self_attention_norm = RMSNorm(config)
        self.self_attention = Attention(config, policy, sharder, rngs=rngs)
        self.cross_attention_norm = RMSNorm(config)
        self.cross_attention = Attention(config, policy, sharder, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = FeedForward(config, sharder, rngs=rngs)
        self.relative_bias = (
            RelativeBias(config, bidirectional=False, rngs=rngs)
            if config.relative_bias_per_layer
            else None
        )
        self.dropout_rate = config.dropout_rate

    def encoder_kv(
        self, encoded: Float[Array, "I S D"]
    ) -> tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]]:
        """Return the cross-attention keys and values of the encoder output."""
        return self.cross_attention.project_kv(encoded)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        encoder_kv: tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]],
        *,
        mask: Bool[Array, "#R 1 #T C"] | Segments,
        cross_mask: Bool[Array, "I 1 #T S"] | Segments,
        bias: Float[Array, "#R N T C"] | Float[Array, "N offsets"] | None = None,
        cache: KVCache | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "R T D"], PyTree]:
        """Apply the block to whole targets or, with a cache, to one more token per row.

        Args:
          x: states before the block.
          encoder_kv: output of the method `encoder_kv`.
          mask: self-attention mask, over the C = T targets or the C positions of the cache.
          cross_mask: cross-attention mask.
          bias: relative bias of the stack; None uses the layer's own.
          cache: keys and values of earlier tokens.
          dropout_key: random key for dropout; None disables it.
        Returns:
          States after the block, and the updated `KVCache` or None.
        """
        keys, rate = split_key(dropout_key, 6), self.dropout_rate
        if bias is None:
            bias = _own_bias(self.relative_bias, mask, x.shape[1])

        h = self.self_attention_norm(x)  # [R, T, D]
        q, k, v = self.self_attention.project_qkv(h)  # [R, N, T, H]
        if cache is not None:
            cache = cache.write(k, v)
            k, v = cache.read(len(x))  # [R, N, C, H]
        h = self.self_attention.attend(q, k, v, mask=mask, bias=bias, dropout_key=keys[0])
        x = x + dropout(h, rate=rate, key=keys[1], shared_axis=-2)  # [R, T, D]

        h = self.cross_attention_norm(x)
        q = self._cross_q(h, len(encoder_kv[0]))  # [I, N, R / I * T, H]
        h = self.cross_attention.attend(q, *encoder_kv, mask=cross_mask, dropout_key=keys[2])
        h = h.reshape(x.shape)  # [R, T, D]
        x = x + dropout(h, rate=rate, key=keys[3], shared_axis=-2)

        h = self.mlp_norm(x)
        h = self.mlp(h, dropout_key=keys[4])
        x = x + dropout(h, rate=rate, key=keys[5], shared_axis=-2)
        return x, cache

    def cross_attention_weights(
        self,
        x: Float[Array, "R T D"],
        encoder_kv: tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]],
        *,
        mask: Bool[Array, "#R 1 T T"],
        cross_mask: Bool[Array, "I 1 #T S"],
        bias: Float[Array, "1 N T T"] | None = None,
    ) -> Float[Array, "I N T S"]:
        """Return the cross-attention weights of the block.

        Args:
          x: states before the block.
          encoder_kv: output of the method `encoder_kv`.
          mask: self-attention mask.
          cross_mask: cross-attention mask.
          bias: relative bias of the stack; None uses the layer's own.
        """
        if bias is None:
            bias = _own_bias(self.relative_bias, mask, x.shape[1])
        q, k, v = self.self_attention.project_qkv(self.self_attention_norm(x))
        x = x + self.self_attention.attend(q, k, v, mask=mask, bias=bias)
        q = self._cross_q(self.cross_attention_norm(x), len(encoder_kv[0]))
        return self.cross_attention.weights(q, encoder_kv[0], mask=cross_mask, bias=None)

    def for_decoding(self, dtype: str) -> "DecoderBlock":
        """Return a copy in the compute dtype, with fused self-attention kernels."""
        # Int8 kernels keep their float32 scales.
        block = jax.tree.map(
            lambda leaf: leaf if is_kernel(leaf) else leaf.astype(dtype), self, is_leaf=is_kernel
        )
        block.self_attention.fuse_qkv()
        return block

    def _cross_q(self, h: Float[Array, "R T D"], num_inputs: int) -> Float[Array, "I N Q H"]:
        # Rows of an input become queries of one sequence, so that its keys are read once.
        return self.cross_attention.project_q(h.reshape(num_inputs, -1, h.shape[-1]))


def split_key(key: Key[Array, ""] | None, count: int):
    """Split a key, or return a list of None if dropout is off."""
    return [None] * count if key is None else jax.random.split(key, count)


def _own_bias(relative_bias: RelativeBias | None, mask: Segments | Array, length: int) -> Array:
    assert relative_bias is not None, "a block without a relative bias needs that of its stack"
    return relative_bias.for_mask(mask, length)


# On CPU, XLA copies the residuals of a loop and runs its body on fewer threads.  Unrolling stacks
# of up to this many layers cuts the step time by a third (jax 0.10.2, benchmarks/train.py;
# benchmarks/depth.py measures the cost in compile time).
_MAX_UNROLLED_LAYERS = 12


class Stack(nnx.Module):
    """Blocks with parameters stacked along a leading axis, and a final norm.

    The blocks share one relative bias, or each has its own (umT5).  Block classes may alternate in
    a repeating period.  With one class, `layers` is the stacked block; with several, a dict with
    one stack per position in the period.
    """

    def __init__(
        self,
        config: T5Config,
        policy: ComputePolicy,
        sharder: Sharder,
        blocks: Sequence[type[EncoderBlock]] | Sequence[type[DecoderBlock]],
        *,
        num_layers: int,
        bidirectional: bool,
        rngs: nnx.Rngs,
    ):
        period = len(blocks)
        if num_layers % period:
            raise ValueError(
                f"num_{'encoder' if bidirectional else 'decoder'}_layers must be a multiple of "
                f"{period}, the number of alternating blocks in the family {config.family!r}, "
                f"got {num_layers}."
            )
        self.config = config
        self.policy = policy
        self.sharder = sharder
        keys = jax.random.split(rngs.params(), num_layers)

        def init(key, block):
            return block(config, policy, sharder, rngs=nnx.Rngs(params=key))

        stacks = {
            f"block_{i}": jax.vmap(functools.partial(init, block=block))(keys[i::period])
            for i, block in enumerate(blocks)
        }
        self.layers: Any = stacks["block_0"] if period == 1 else nnx.Dict(stacks)
        self.relative_bias = (
            None
            if config.relative_bias_per_layer
            else RelativeBias(config, bidirectional=bidirectional, rngs=rngs)
        )
        self.final_norm = RMSNorm(config)

    def layer(self, index: int) -> Any:
        """Return one block of the stack."""
        period = self._period()
        repeat, place = divmod(index, len(period))
        return jax.tree.map(lambda leaf: leaf[repeat], period[place])

    def _period(self) -> list[Any]:
        """Return the stacked block of each position in the period."""
        if not isinstance(self.layers, nnx.Dict):
            return [self.layers]
        return [self.layers[f"block_{i}"] for i in range(len(self.layers))]

    def shared_bias(self, mask: Segments | Array, length: int) -> Array | None:
        """Return the bias that all layers share.

        Args:
          mask: as from `attention_mask`.
          length: number of queries and keys.
        Returns:
          The bias; None if each layer has its own.
        """
        return None if self.relative_bias is None else self.relative_bias.for_mask(mask, length)

    def _scan_layers(self, block: Callable, x: Array, key: Key[Array, ""] | None) -> Array:
        """Apply `block(x, layer, key)` to all layers in one loop, to compile only one layer."""

        def apply(x, layer, key):
            # Without this constraint, `fsdp` shards features instead of examples.
            return self.sharder.constrain_activations(block(x, layer, key))

        remat = self.policy.remat
        # CSE does not cross loop iterations, so `prevent_cse` is unnecessary.
        if remat == "full":
            apply = jax.checkpoint(apply, prevent_cse=False)
        elif remat == "dots":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            apply = jax.checkpoint(apply, policy=dots, prevent_cse=False)

        def body(x, layers_and_keys):
            for layer, key in zip(*layers_and_keys, strict=True):
                x = apply(x, layer, key)
            return x, None

        period = self._period()
        repeats = jax.tree.leaves(self.layers)[0].shape[0]
        num_layers = repeats * len(period)
        # Keep the loop with remat: outside a loop, the compiler might undo it to save time.
        few = num_layers <= _MAX_UNROLLED_LAYERS and remat == "none"
        unroll = repeats if few and self.sharder.platform == "cpu" else 1
        keys: list[Any] = [None] * len(period)
        if key is not None:
            layer_keys = jax.random.split(key, num_layers)
            keys = [layer_keys[i :: len(period)] for i in range(len(period))]
        x, _ = jax.lax.scan(body, x, (period, keys), unroll=unroll)
        return x


class Encoder(Stack):
    """Stack of encoder blocks."""

    def __init__(
        self,
        config: T5Config,
        policy: ComputePolicy,
        sharder: Sharder,
        blocks: Sequence[type[EncoderBlock]],
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config,
            policy,
            sharder,
            blocks,
            num_layers=config.num_encoder_layers,
            bidirectional=True,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "B 1 #S S"] | Segments,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        """Return the final encoder states.

        Args:
          x: embedded inputs.
          mask: self-attention mask.
          dropout_key: random key for dropout; None disables it.
        """
        bias = self.shared_bias(mask, x.shape[1])

        def block(x, layer, key):
            return layer(x, mask=mask, bias=bias, dropout_key=key)

        keys, rate = split_key(dropout_key, 3), self.config.dropout_rate
        x = dropout(x, rate=rate, key=keys[0], shared_axis=-2)  # [B, S, D]
        x = self._scan_layers(block, x, keys[1])
        x = self.final_norm(x)
        # The only dropout of T5X with a separate mask for each position.
        return dropout(x, rate=rate, key=keys[2])


class Decoder(Stack):
    """Stack of decoder blocks."""

    def __init__(
        self,
        config: T5Config,
        policy: ComputePolicy,
        sharder: Sharder,
        blocks: Sequence[type[DecoderBlock]],
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config,
            policy,
            sharder,
            blocks,
            num_layers=config.num_decoder_layers,
            bidirectional=False,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "R T D"],
        encoded: Float[Array, "I S D"],
        *,
        mask: Bool[Array, "#R 1 T T"] | Segments,
        cross_mask: Bool[Array, "I 1 #T S"] | Segments,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "R T D"]:
        """Return the final decoder states.

        Args:
          x: embedded targets.
          encoded: final encoder states.
          mask: self-attention mask.
          cross_mask: cross-attention mask.
          dropout_key: random key for dropout; None disables it.
        """
        bias = self.shared_bias(mask, x.shape[1])

        def block(x, layer, key):
            kv = layer.encoder_kv(encoded)  # [I, N, S, H]
            return layer(x, kv, mask=mask, cross_mask=cross_mask, bias=bias, dropout_key=key)[0]

        keys, rate = split_key(dropout_key, 3), self.config.dropout_rate
        x = dropout(x, rate=rate, key=keys[0], shared_axis=-2)  # [R, T, D]
        x = self._scan_layers(block, x, keys[1])
        x = self.final_norm(x)
        return dropout(x, rate=rate, key=keys[2], shared_axis=-2)

    def cross_attention_weights(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "#B 1 T T"],
        cross_mask: Bool[Array, "B 1 #T S"],
    ) -> Float[Array, "L B N T S"]:
        """Return the cross-attention weights of every layer.

        Args:
          x: embedded targets.
          encoded: final encoder states.
          mask: self-attention mask.
          cross_mask: cross-attention mask.
        """
        masks = {"mask": mask, "cross_mask": cross_mask, "bias": self.shared_bias(mask, x.shape[1])}

        def body(x, layers):
            weights = []
            for layer in layers:
                kv = layer.encoder_kv(encoded)
                weights.append(layer.cross_attention_weights(x, kv, **masks))
                x = layer(x, kv, **masks)[0]
            return x, jnp.stack(weights)

        weights = jax.lax.scan(body, x, self._period())[1]  # [repeats, period, B, N, T, S]
        return weights.reshape(-1, *weights.shape[2:])
