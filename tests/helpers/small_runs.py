"""Files and readings of pre-training runs that take a moment."""

from pathlib import Path

import numpy as np

from t5jax.models.config import T5Config
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.training.tracker import read_metrics

TINY = T5Config(
    vocab_size=384,
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    tie_embeddings=True,
    scale_logits=True,
    dropout_rate=0.1,
)


def write_inputs(folder: Path) -> dict[str, str]:
    """What a small run reads: text, a byte tokenizer, a model."""
    words = ["red", "green", "blue", "cat", "dog", "sun", "moon", "walks", "sleeps", "sees"]
    rng = np.random.default_rng(0)
    lines = ["The " + " ".join(rng.choice(words, 12)) + " today." for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))
    ByteTokenizer().save(folder / "bytes")
    (folder / "tiny.json").write_text(TINY.to_json())
    return {
        "text": str(folder / "text.txt"),
        "tokenizer": str(folder / "bytes"),
        "model": str(folder / "tiny.json"),
    }


def training_losses(folder: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_metrics(folder) if "loss" in e}
