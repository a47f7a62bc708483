"""Name maps between t5jax's parameters and the arrays of other formats."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

# Paths of parameters that several formats treat specially.
EMBEDDING_PATH = "token_embedder/embedding"
OUTPUT_PATH = "output/kernel"
PROJECTION_PATH = "projection/kernel"

LAYER = "{}"

T = TypeVar("T")

# Mesh TensorFlow's names of attention layers and their kernels, also used by Hugging Face.
ATTENTIONS = {
    "encoder": {"attention": "SelfAttention"},
    "decoder": {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention"},
}

KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}


class NameRule(NamedTuple):
    """One of our parameters and its name in another format.

    Attributes:
      ours: '/'-joined path; parameters below `layers` are stacked on a leading axis.
      theirs: name of the array, with "{}" for the layer number if every layer has one.
      axes: for each of our axes, the corresponding axis of theirs; empty if they are the same.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...] = ()


class Leaf(NamedTuple):
    """Arrays that make up one of our parameters.

    Attributes:
      names: name of one array, or one name per layer.
      axes: as in `NameRule`.
      per_layer: whether each name is one layer, an entry of our leading axis.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    per_layer: bool

    def to_ours(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Convert the shape of a stored array to that of our parameter, or of one of its layers."""
        return tuple(shape[axis] for axis in self.axes or range(len(shape)))

    def to_theirs(self, shape: Sequence[T]) -> tuple[T, ...]:
        """Invert `to_ours`, for any sequence with one entry per axis."""
        return tuple(shape[i] for i in self.inverse(len(shape)))

    def split(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Split the values of our parameter into their arrays, as (name, values)."""
        for name, row in zip(self.names, values if self.per_layer else [values], strict=True):
            yield name, row.transpose(self.inverse(row.ndim))

    def inverse(self, ndim: int) -> tuple[int, ...]:
        """Return our axis for each of their `ndim` axes."""
        axes = self.axes or tuple(range(ndim))
        return tuple(axes.index(axis) for axis in range(ndim))


class NameMap:
    """Bidirectional name map of one format.

    Args:
      rules: names of parameters; if a parameter has several, the first is written.
      digits: minimum width of a layer number, padded with zeros.
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
        """Match the names in a file with our parameters.

        Args:
          names: names of all arrays in the file.
          source: file name for error messages.
        Returns:
          Our parameters by path, and the unmatched names.
        Raises:
          ValueError: a layer is missing or duplicated.
        """
        matches: dict[str, tuple[NameRule, dict[int, str]]] = {}
        unknown = []
        for name in names:
            for pattern, rule in self._patterns:
                if matched := pattern.fullmatch(name):
                    layers = matches.setdefault(rule.ours, (rule, {}))[1]
                    layer = int(matched[1]) if LAYER in rule.theirs else 0
                    if layer in layers:
                        raise ValueError(
                            f"{source} must have one name for each array, got {layers[layer]} and "
                            f"{name}."
                        )
                    layers[layer] = name
                    break
            else:
                unknown.append(name)
        layout = {}
        for ours, (rule, layers) in matches.items():
            for i in range(len(layers)):
                if i not in layers:
                    raise ValueError(
                        f"{source} must contain {self._spell(rule, i)}, since it contains "
                        f"{layers[max(layers)]}; it is incomplete. Download it again."
                    )
            ordered = tuple(layers[i] for i in range(len(layers)))
            layout[ours] = Leaf(ordered, rule.axes, LAYER in rule.theirs)
        return layout, unknown

    def leaf(self, path: str, num_layers: int) -> Leaf:
        """Name the arrays to write for one of our parameters.

        Args:
          path: path of the parameter.
          num_layers: number of layers in its stack.
        """
        rule = self._rules[path]
        per_layer = LAYER in rule.theirs
        count = num_layers if per_layer else 1
        return Leaf(tuple(self._spell(rule, i) for i in range(count)), rule.axes, per_layer)

    def _spell(self, rule: NameRule, layer: int) -> str:
        return rule.theirs.replace(LAYER, f"{layer:0{self._digits}}")
