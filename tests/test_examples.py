"""Examples run as their first lines say."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from t5jax import tokenizer
from t5jax.config import T5Config
from t5jax.model import init_params
from t5jax.text2text import Text2Text

ROOT = Path(__file__).parents[1]


def test_fill_in_blanks_prints_every_sentence(tmp_path):
    config = T5Config(
        vocab_size=384, d_model=8, d_ff=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1
    )
    t5 = Text2Text(config, init_params(config, jax.random.key(0)), tokenizer.ByteTokenizer())
    t5.save(tmp_path / "model")
    shown = subprocess.run(
        [
            *(sys.executable, ROOT / "examples" / "fill_in_blanks.py"),
            *("--model", tmp_path / "model"),
            *("--texts", "One <extra_id_0> three <extra_id_1>.", "A <extra_id_0>."),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("One [")
    assert "<extra_id_" not in shown[0]
