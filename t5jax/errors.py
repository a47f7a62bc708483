"""What somebody may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def suggest(given: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Asks whether the most similar known name was meant; `otherwise` where none is similar.

    Similar is what has a ratio of letters in common, as difflib counts it, of at least `cutoff`.
    """
    found = difflib.get_close_matches(given, known, n=1, cutoff=cutoff)
    return f"did you mean {found[0]!r}?" if found else otherwise
