"""Pairs of predictions and references."""

from collections.abc import Sequence

References = Sequence[str | Sequence[str]]
"""One text per example, or several equally correct ones."""


def pair_references(
    predictions: Sequence[str], references: References
) -> list[tuple[str, list[str]]]:
    """Pair each prediction with its list of references.

    Raises:
      ValueError: the lengths differ or are 0, or an example has no reference.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError("predictions and references must be lists of texts, got a single string.")
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must have the same length, got {len(predictions)} and "
            f"{len(references)}."
        )
    if not len(predictions):
        raise ValueError("predictions must hold at least one example, got none.")
    listed = [[each] if isinstance(each, str) else list(each) for each in references]
    for i, texts in enumerate(listed):
        if not texts:
            raise ValueError(f"references[{i}] must hold at least one text, got none.")
    return list(zip(predictions, listed, strict=True))


def pair_single_reference(
    predictions: Sequence[str], references: References
) -> list[tuple[str, str]]:
    """Pair each prediction with its only reference, both stripped of white space.

    Raises:
      ValueError: the lengths differ or are 0, or an example does not have exactly one reference.
    """
    pairs = pair_references(predictions, references)
    for i, (_, texts) in enumerate(pairs):
        if len(texts) != 1:
            raise ValueError(
                f"this metric takes one reference for each example, got {len(texts)} for "
                f"example {i}."
            )
    return [(prediction.strip(), texts[0].strip()) for prediction, texts in pairs]
