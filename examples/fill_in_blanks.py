"""Fill in the blanks of your own sentences with a pre-trained T5.

    python scripts/pretrain.py
    python examples/fill_in_blanks.py --texts "Return the <extra_id_0> of the array."

Takes seconds.  Blanks are <extra_id_0>, <extra_id_1>, ... in order; a T5 1.0 or v1.1 from the hub,
such as --model google/t5-v1_1-small, fills them better than a model of a few minutes.
"""

import dataclasses

import t5jax
from t5jax.cli import run_command
from t5jax.recipes import fill_blanks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to fill, and with which model."""

    model: str = "runs/pretrain"
    """Folder or hub id."""
    texts: tuple[str, ...] = ("The function returns the <extra_id_0> of its arguments.",)
    """Sentences with blanks."""


def main(config: Config) -> None:
    """Prints each sentence with its blanks filled in."""
    t5 = t5jax.load(config.model)
    for text, filled in zip(config.texts, fill_blanks(t5, config.texts), strict=True):
        for k, words in enumerate(filled):
            text = text.replace(f"<extra_id_{k}>", f"[{words}]")
        print(text)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__)
