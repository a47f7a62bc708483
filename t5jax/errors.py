"""Option checks and helpers for error messages."""

import difflib
from collections.abc import Iterable


def check_at_least(minimum: int | float, hint: str = "", /, **options: int | float | None) -> None:
    """Check that options are not below a minimum.

    Args:
      minimum: smallest value allowed.
      hint: suggested value that ends the message, such as "1000 is usual".
      **options: value of each option; None means not set and passes.
    Raises:
      ValueError: a value is below `minimum` or NaN.

    Examples:
      >>> check_at_least(1, steps=10, batch_size=None)
    """
    for name, value in options.items():
        if value is not None and not value >= minimum:
            remedy = f"; {hint}" if hint else ""
            raise ValueError(f"{name} must be at least {minimum}, got {value}{remedy}.")


def suggest(name: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Suggest the known name most similar to an unknown one.

    Args:
      name: the unknown name.
      known: names to choose from.
      otherwise: returned if no known name is similar.
      cutoff: minimum `difflib.SequenceMatcher.ratio`, in [0, 1].
    Returns:
      "did you mean ...?", or `otherwise`.

    Examples:
      >>> suggest("blue", ["bleu", "chrf"], "choose one of these.")
      "did you mean 'bleu'?"
    """
    matches = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {matches[0]!r}?" if matches else otherwise


def shorten(name: str) -> str:
    """Escape and truncate a name read from a file, for use in a message."""
    # Truncated again after escaping, which can make it ten times as long.
    text = repr(name[:120])[1:-1]
    return text if len(text) <= 120 else f"{text[:120]}..."
