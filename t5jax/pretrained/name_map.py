"""Name maps: from our parameters to the arrays of other programs, and back."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

# Paths of our parameters that several formats treat in a way of their own.
EMBEDDING_PATH = "token_embedder/embedding"
OUTPUT_PATH = "output/kernel"
PROJECTION_PATH = "projection/kernel"

LAYER = "{}"

T = TypeVar("T")

# Mesh TensorFlow's names of attentions and their kernels, which Hugging Face took over.
ATTENTIONS = {
    "encoder": {"attention": "SelfAttention"},
    "decoder": {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention"},
}

KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}


class NameRule(NamedTuple):
    """One of our parameters and its name in another format.

    Attributes:
      ours: '/'-joined path; parameters below `layers` are stacked on a leading axis.
      theirs: name of the array, with "{}" for the number of the layer if every layer has one.
      axes: the axis of theirs that each axis of ours is; empty if they are the same.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...] = ()


class Leaf(NamedTuple):
    """The arrays that make one of our parameters.

    Attributes:
      names: of one array, or of one for each layer.
      axes: as in `NameRule`.
      per_layer: whether each name is a layer, and so an entry of our leading axis.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    per_layer: bool

    def to_ours(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Convert the shape of one of their arrays to that of our parameter or a layer of it."""
        return tuple(shape[axis] for axis in self.axes or range(len(shape)))

    def to_theirs(self, shape: Sequence[T]) -> tuple[T, ...]:
        """Invert `to_ours`, for shapes and all else that has an entry for each axis."""
        return tuple(shape[i] for i in self.inverse(len(shape)))

    def split(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield their arrays, by name, that the values of our parameter become."""
        for name, row in zip(self.names, values if self.per_layer else [values], strict=True):
            yield name, row.transpose(self.inverse(row.ndim))

    def inverse(self, ndim: int) -> tuple[int, ...]:
        """Return the axis of ours that each of their `ndim` axes is."""
        axes = self.axes or tuple(range(ndim))
        return tuple(axes.index(axis) for axis in range(ndim))


class NameMap:
    """The names of one format, in both directions.

    Args:
      rules: names of parameters; of several for one parameter, the first is written.
      digits: minimal width of a layer's number, padded with zeros.
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
          names: of all arrays in the file.
          source: name of the file in an error.
        Returns:
          Our parameters by path, and the names that match none.
        Raises:
          ValueError: a layer is missing between others, or present twice.
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
                            f"{source} must hold {layers[layer]} once, got {name} too."
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
                        f"{source} must hold {self._spell(rule, i)}, since it holds "
                        f"{layers[max(layers)]}; it is incomplete. Download it again."
                    )
            ordered = tuple(layers[i] for i in range(len(layers)))
            layout[ours] = Leaf(ordered, rule.axes, LAYER in rule.theirs)
        return layout, unknown

    def leaf(self, path: str, num_layers: int) -> Leaf:
        """Name the arrays to write for one of our parameters.

        Args:
          path: of the parameter.
          num_layers: number of layers in its stack.
        """
        rule = self._rules[path]
        per_layer = LAYER in rule.theirs
        count = num_layers if per_layer else 1
        return Leaf(tuple(self._spell(rule, i) for i in range(count)), rule.axes, per_layer)

    def _spell(self, rule: NameRule, layer: int) -> str:
        return rule.theirs.replace(LAYER, f"{layer:0{self._digits}}")
