"""How other programs name the parameters of a T5, and where each of ours lies among theirs."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

LAYER = "{}"
T = TypeVar("T")

# What Mesh TensorFlow called attentions and their kernels, and Hugging Face after it.
ATTENTIONS = {
    "encoder": {"attention": "SelfAttention"},
    "decoder": {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention"},
}

KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}


class NameRule(NamedTuple):
    """One of our parameters and its name there."""

    ours: str
    """'/'-joined path; parameters below `layers` are stacked on a leading axis."""
    theirs: str
    """Their name, with "{}" for the number of the layer where every layer has a tensor."""
    axes: tuple[int, ...] = ()
    """Which of their axes each of ours is; empty if they are the same."""


class Leaf(NamedTuple):
    """Where one of our parameters lies."""

    names: tuple[str, ...]
    """One array, or one for each layer."""
    axes: tuple[int, ...]
    """As in `NameRule`."""
    per_layer: bool
    """Whether each name is a layer, which our leading axis counts."""

    def to_ours(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape here of an array of `shape` there, without the layers of `per_layer`."""
        return tuple(shape[axis] for axis in self.axes or range(len(shape)))

    def to_theirs(self, shape: Sequence[T]) -> tuple[T, ...]:
        """Inverse of `to_ours`, for shapes and everything else that has an entry for each axis."""
        return tuple(shape[i] for i in self.inverse(len(shape)))

    def split(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays there, by name, that one of our parameters becomes."""
        for name, row in zip(self.names, values if self.per_layer else [values], strict=True):
            yield name, row.transpose(self.inverse(row.ndim))

    def inverse(self, ndim: int) -> tuple[int, ...]:
        """Which of our axes each of theirs is."""
        axes = self.axes or tuple(range(ndim))
        return tuple(axes.index(axis) for axis in range(ndim))


class NameMap:
    """Names of one format, in both directions.

    Args:
      rules: a parameter may have several names, of which the first is the one that is written.
      digits: of the smallest layer numbers, which zeros fill up.
    """

    def __init__(self, rules: Iterable[NameRule], *, digits: int = 1):
        self._digits = digits
        self._rules: dict[str, NameRule] = {}
        self._patterns: list[tuple[re.Pattern[str], NameRule]] = []
        for rule in rules:
            self._rules.setdefault(rule.ours, rule)
            pattern = re.escape(rule.theirs).replace(re.escape(LAYER), f"([0-9]{{{digits},5}})")
            self._patterns.append((re.compile(pattern), rule))

    def match(self, names: Iterable[str], *, source: object) -> tuple[dict[str, Leaf], list[str]]:
        """What the names of a file stand for.

        Args:
          names: of all its arrays.
          source: what to call the file in an error.
        Returns:
          Our parameters by path, and the names that stand for none.
        Raises:
          ValueError: a layer is missing between others, or there twice.
        """
        found: dict[str, tuple[NameRule, dict[int, str]]] = {}
        rest = []
        for name in names:
            for pattern, rule in self._patterns:
                if matched := pattern.fullmatch(name):
                    layers = found.setdefault(rule.ours, (rule, {}))[1]
                    layer = int(matched[1]) if LAYER in rule.theirs else 0
                    if layer in layers:
                        raise ValueError(
                            f"{source} must hold {layers[layer]} once, got {name} too."
                        )
                    layers[layer] = name
                    break
            else:
                rest.append(name)
        layout = {}
        for ours, (rule, layers) in found.items():
            for i in range(len(layers)):
                if i not in layers:
                    raise ValueError(
                        f"{source} must hold {self._spell(rule, i)}, since it holds "
                        f"{layers[max(layers)]}; it is incomplete. Download it again."
                    )
            ordered = tuple(layers[i] for i in range(len(layers)))
            layout[ours] = Leaf(ordered, rule.axes, LAYER in rule.theirs)
        return layout, rest

    def leaf(self, path: str, num_layers: int) -> Leaf:
        """Where to write a parameter of ours; `num_layers` is that of its stack."""
        rule = self._rules[path]
        per_layer = LAYER in rule.theirs
        count = num_layers if per_layer else 1
        return Leaf(tuple(self._spell(rule, i) for i in range(count)), rule.axes, per_layer)

    def _spell(self, rule: NameRule, layer: int) -> str:
        return rule.theirs.replace(LAYER, f"{layer:0{self._digits}}")


def shorten(name: str) -> str:
    """A name as it is put into a message, however long and strange it is."""
    # Cut twice: escapes can make it ten times as long.
    text = repr(name[:120])[1:-1]
    return text if len(text) <= 120 else f"{text[:120]}..."
