"""What somebody may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def hint(given: str, known: Iterable[str], otherwise: str = "") -> str:
    """The question whether the most similar known name was meant, or `otherwise` if none is."""
    found = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else otherwise
