"""Checks of options, suggestions for unknown names, and names made presentable."""

import difflib
from collections.abc import Iterable


def check_at_least(minimum: int | float, hint: str = "", /, **options: int | float | None) -> None:
    """Check that options are not below a minimum.

    Args:
      minimum: smallest value allowed.
      hint: what a good value is, for the end of the message, such as "1000 is usual".
      **options: values by the name of the option; None, an option that is not set, passes.
    Raises:
      ValueError: a value is below `minimum` or NaN.

    Example:
      >>> check_at_least(1, steps=10, batch_size=None)
    """
    for name, value in options.items():
        if value is not None and not value >= minimum:
            remedy = f"; {hint}" if hint else ""
            raise ValueError(f"{name} must be at least {minimum}, got {value}{remedy}.")


def suggest(name: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Return a question for the most similar known name, or `otherwise` if none is similar.

    Args:
      name: the unknown name.
      known: names to choose from.
      otherwise: returned if no known name is similar.
      cutoff: similarity that is enough, in [0, 1], as `difflib.SequenceMatcher.ratio` measures it.

    Example:
      >>> suggest("blue", ["bleu", "chrf"], "choose one of these.")
      "did you mean 'bleu'?"
    """
    matches = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {matches[0]!r}?" if matches else otherwise


def shorten(name: str) -> str:
    """Quote a name from a file for a message, however long and strange it is."""
    # Cut twice: escapes can make it ten times as long.
    text = repr(name[:120])[1:-1]
    return text if len(text) <= 120 else f"{text[:120]}..."
