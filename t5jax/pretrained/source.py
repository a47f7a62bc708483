"""Opened checkpoints in any format, with weights still in their files."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import shapes_by_path
from t5jax.models import Params, T5Config, abstract_params, get_family
from t5jax.parallel import infer_shardings, path_name
from t5jax.pretrained.formats import (
    DTYPES,
    FileRegion,
    Index,
    LazyArray,
    full_index,
    relative_index,
)
from t5jax.pretrained.name_map import Leaf, NameMap

Progress = Callable[[int], object]
"""Callback with the number of bytes read since its last call."""

# Transposed writes fill whole cache lines.
_CACHE_LINE = 64
_ALIGNMENT = 64
_THREADS = min(8, os.cpu_count() or 1)


class Weights(NamedTuple):
    """Parameters to write, in memory or read lazily from files.

    Attributes:
      shapes: parameter shapes, by '/'-joined path.
      dtypes: parameter dtypes, by path.
      read: function that reads a parameter, by path.

    Examples:
      >>> weights = t5jax.pretrained.Weights.from_params(params)
      >>> weights.shapes["token_embedder/embedding"]
      (97, 16)
      >>> weights.read("decoder/final_norm/scale").shape
      (16,)
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]
    read: Callable[[str], np.ndarray]

    @classmethod
    def from_params(cls, params: Params) -> "Weights":
        """Wrap parameters in memory.

        Args:
          params: model parameters.
        Returns:
          Weights that read these parameters.
        """
        leaves = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
        return cls(
            {path: leaf.shape for path, leaf in leaves.items()},
            {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()},
            lambda path: np.asarray(leaves[path]),
        )


class WrittenArray(NamedTuple):
    """Array written to a checkpoint.

    Attributes:
      name: name of the array.
      path: path of our parameter that the array is, or is a layer of.
      shape: shape of the array.
      dtype: dtype name.
      sha256: SHA-256 of the elements, in row-major order, little-endian.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @classmethod
    def from_values(cls, name: str, path: str, values: np.ndarray) -> "WrittenArray":
        """Describe an array by its values.

        Args:
          name: name of the array.
          path: path of our parameter that the array is, or is a layer of.
          values: values of the array.
        """
        contiguous = np.ascontiguousarray(values)
        digest = hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).hexdigest()
        return cls(name, path, tuple(values.shape), values.dtype.name, digest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """Opened checkpoint: lazy arrays, and the parameter that each belongs to.

    Attributes:
      path: file or folder of the weights.
      format: human-readable format name.
      config: model config.
      arrays: all arrays in the files, by name.
      layout: the arrays of each parameter of `config`, by t5jax path.
      ignored: arrays that are not read, with the reason.
      notes: notes on assumed or corrected values.
      check: function that raises ValueError if loaded parameters differ from the saved ones.
    """

    path: Path
    format: str
    config: T5Config
    arrays: Mapping[str, LazyArray]
    layout: Mapping[str, Leaf]
    ignored: Mapping[str, str]
    notes: tuple[str, ...] = ()
    check: Callable[[Params], None] | None = None

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of our parameters, by path."""
        return shapes_by_path(abstract_params(self.config))

    def ignored_lines(self) -> list[str]:
        """Summarize the arrays that are not read, one line per reason."""
        lines = []
        for why in dict.fromkeys(self.ignored.values()):
            names = [name for name, reason in self.ignored.items() if reason == why]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"{names[0]}{more}: {why}")
        return lines

    def dtype(self, path: str) -> np.dtype:
        """Return the stored dtype of one of our parameters; float32 if its layers differ."""
        dtypes = {self.arrays[name].dtype for name in self.layout[path].names}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        return np.dtype(np.float32) if dtype == np.float64 else dtype

    def num_bytes(self, path: str) -> int:
        """Return the stored size of one of our parameters, in bytes."""
        arrays = [self.arrays[name] for name in self.layout[path].names]
        return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in arrays)

    def read(self, path: str, *, dtype: np.dtype, progress: Progress | None = None) -> np.ndarray:
        """Read one of our parameters into host memory.

        Args:
          path: path of the parameter.
          dtype: dtype to return.
          progress: called with the number of bytes just read.
        """
        return self._part(path, full_index(self.shapes[path]), dtype, progress)

    def weights(
        self, *, dtype: np.dtype | None = None, progress: Progress | None = None
    ) -> "Weights":
        """Return all parameters as weights that are read one by one.

        Args:
          dtype: dtype to return; None keeps the stored dtypes.
          progress: called with the number of bytes just read.
        """
        dtypes = {path: self.dtype(path) if dtype is None else dtype for path in self.shapes}
        return Weights(
            self.shapes,
            dtypes,
            lambda path: self.read(path, dtype=dtypes[path], progress=progress),
        )

    def load_params(
        self,
        *,
        dtype: np.dtype | None = None,
        mesh: Mesh | None = None,
        progress: Progress | None = None,
    ) -> Params:
        """Load all parameters onto devices, block by block.

        Besides the result, host memory holds a few blocks of `BLOCK_BYTES`; on a mesh, or if the
        devices have separate memory, it holds this host's shard of one parameter.

        Args:
          dtype: dtype of the loaded parameters; None keeps the stored dtypes.
          mesh: mesh to shard the parameters over, by the rules of their family; None puts them on
            one device.
          progress: called with the number of bytes just read.
        Returns:
          The parameters.
        Raises:
          ValueError: a file is damaged.
        """
        shapes = abstract_params(self.config)
        shardings: Any = jax.tree.map(
            lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), shapes
        )
        if mesh is not None:
            shardings = infer_shardings(
                shapes, mesh=mesh, rules=get_family(self.config).partition_rules
            )

        def load(key_path, leaf, sharding):
            path = path_name(key_path)
            kind = self.dtype(path) if dtype is None else dtype

            if mesh is None:
                # A CPU device uses aligned host memory without a copy.
                return jax.device_put(
                    self._part(path, full_index(leaf.shape), kind, progress), sharding
                )

            def bounds(index):
                pairs = zip(index, leaf.shape, strict=True)
                return tuple(slice(*part.indices(size)[:2]) for part, size in pairs)

            # Read the union of this host's shards once.
            parts = map(bounds, sharding.addressable_devices_indices_map(leaf.shape).values())
            box = tuple(
                slice(min(s.start for s in axis), max(s.stop for s in axis))
                for axis in zip(*parts, strict=True)
            )
            values = self._part(path, box, kind, progress)
            return jax.make_array_from_callback(
                leaf.shape, sharding, lambda index: values[relative_index(bounds(index), box)]
            )

        params = jax.tree.map_with_path(load, shapes, shardings)
        if self.check is not None and dtype in (None, np.dtype(np.float32)):
            self.check(params)
        return params

    def _part(
        self, path: str, index: Index, dtype: np.dtype, progress: Progress | None
    ) -> np.ndarray:
        """Read the values of a parameter at an index into our layout."""
        leaf = self.layout[path]
        out = _aligned([s.stop - s.start for s in index], dtype)
        tasks: list[tuple[LazyArray, Index, np.ndarray]] = []
        if leaf.per_layer:
            layers, *rest = index
            for i in range(layers.start, layers.stop):
                array = self.arrays[leaf.names[i]]
                tasks.append((array, leaf.to_theirs(rest), out[i - layers.start]))
        else:
            tasks = list(_split(self.arrays[leaf.names[0]], leaf, index, out))

        def run(task):
            array, where, values = task
            _fill(values.transpose(leaf.inverse(values.ndim)), array, where, progress)

        if len(tasks) == 1:
            run(tasks[0])
        else:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(run, tasks))
        return out


def checked_source(
    source: CheckpointSource, name_map: NameMap, *, unknown: Sequence[str]
) -> CheckpointSource:
    """Check that the arrays of a checkpoint match its config.

    Args:
      source: checkpoint to check.
      name_map: name map of its format, to name missing arrays.
      unknown: names of arrays that are neither parameters nor `ignored`.
    Returns:
      The source.
    Raises:
      ValueError: a tensor is missing or unknown, or has the wrong shape or an unsupported dtype.
    """
    config, path = source.config, source.path
    expected = source.shapes
    surplus: list[str] = []
    # In the order of computation, so that the first error is the most likely cause of the others.
    for ours, shape in sorted(expected.items(), key=lambda item: _computing_order(item[0])):
        leaf = source.layout.get(ours)
        layers = num_layers(config, ours)
        wanted = name_map.leaf(ours, 1 if leaf is None else len(leaf.names) + 1)
        form = wanted if leaf is None else leaf
        theirs = form.to_theirs(shape[1:] if form.per_layer else shape)
        for name in () if leaf is None else leaf.names:
            _check_array(source.arrays[name], name, theirs)
        if leaf is None or (leaf.per_layer and len(leaf.names) < layers):
            raise ValueError(
                f"{path} must contain {wanted.names[-1]} of shape {theirs}, got none; it is "
                "incomplete, or its config belongs to another model."
            )
        surplus += leaf.names[layers:] if leaf.per_layer else ()
    unused = [source.layout[ours].names[0] for ours in source.layout if ours not in expected]
    unused = sorted([*unused, *surplus, *unknown])
    if unused:
        raise ValueError(
            f"{path} contains {len(unused)} tensors that a T5 of its config does not use, first "
            f"{repr(unused[0])[1:-1]:.200}; it has another architecture or size."
        )
    return source


def num_layers(config: T5Config, path: str) -> int:
    """Return the number of layers in a parameter's stack; 1 outside of stacks."""
    return getattr(config, f"num_{path.split('/')[0]}_layers", 1)


def _computing_order(path: str) -> tuple[int, str]:
    parts = ("token_embedder", "encoder", "decoder")
    part = path.split("/")[0]
    return parts.index(part) if part in parts else len(parts), path


def _check_array(array: LazyArray, name: str, shape: tuple[int, ...]) -> None:
    if array.dtype not in (*DTYPES.values(), np.dtype(np.float64)):
        raise ValueError(
            f"{array.file}: {name} must have dtype {', '.join(DTYPES)}, got {array.dtype.name}; "
            "fp8 and quantized files are not read, use one with float weights."
        )
    if tuple(array.shape) != shape:
        raise ValueError(
            f"{array.file}: {name} must have shape {shape} to match its config, got "
            f"{tuple(array.shape)}; they belong to different models."
        )


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _split(
    array: LazyArray, leaf: Leaf, index: Index, out: np.ndarray
) -> Iterator[tuple[LazyArray, Index, np.ndarray]]:
    """Split one array along its first axis, to be read by several threads."""
    theirs = leaf.to_theirs(index)
    # Other arrays are stored in chunks, which every thread would decode again.
    if not theirs or not isinstance(array, FileRegion):
        yield array, theirs, out
        return
    ours = leaf.inverse(len(index))[0]
    first, *rest = theirs
    step = max(1, -(-(first.stop - first.start) // _THREADS))
    for start in range(first.start, first.stop, step):
        stop = min(start + step, first.stop)
        part = [slice(None)] * out.ndim
        part[ours] = slice(start - first.start, stop - first.start)
        yield array, (slice(start, stop), *rest), out[tuple(part)]


def _fill(out: np.ndarray, array: LazyArray, index: Index, progress: Progress | None) -> None:
    """Copy the elements at `index` to `out`, whose memory order is arbitrary."""
    for where, values in array.blocks(index):
        target = out[relative_index(where, index)]
        if values.dtype != out.dtype:
            values = values.astype(out.dtype)
        if values.ndim == 2 and target.strides[0] < target.strides[1]:
            rows = max(1, _CACHE_LINE // out.dtype.itemsize)
            for i in range(0, len(values), rows):
                target[i : i + rows] = values[i : i + rows]
        else:
            target[...] = values
        if progress is not None:
            progress(values.size * array.dtype.itemsize)
