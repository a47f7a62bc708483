"""Pickles written by torch, interpreted without executing anything.

A pickle is a program that may call any function.  This module interprets only the opcodes that
torch writes for a dict of tensors, as listed by `pickletools.genops`, and rejects all others.
(https://docs.python.org/3/library/pickletools.html documents each opcode.)
"""

import dataclasses
import io
import itertools
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t5jax.errors import shorten
from t5jax.pretrained.formats import lazy_array

# Far above any real file, at about 40 per tensor.  Bounds time and memory, as the stream does.
_MAX_OPCODES = 2_000_000
_MAX_SIZE = 1 << 63

_STORAGES = {
    "torch.FloatStorage": lazy_array.DTYPES["float32"],
    "torch.BFloat16Storage": lazy_array.DTYPES["bfloat16"],
    "torch.HalfStorage": lazy_array.DTYPES["float16"],
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}

_FUNCTIONS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}

# Packages whose objects trainers save next to tensors.  Nothing of them is imported or called: an
# object becomes an `Opaque`.
_HARMLESS = re.compile(
    r"(lightning|lightning_fabric|omegaconf|pytorch_lightning|transformers|torch\.nn|torch\.optim)"
    r"(\.[A-Za-z]\w*)+|argparse\.Namespace|collections\.(Counter|defaultdict)|_codecs\.encode|"
    r"datetime\.(date|datetime|timedelta)|numpy\.(dtype|ndarray|float32|float64|int64)|"
    r"numpy\._?core\.multiarray\.(scalar|_reconstruct)|(builtins|__builtin__)\.set|"
    r"pathlib\.(Path|PosixPath|PurePosixPath|WindowsPath)|torch\.device"
)

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclasses.dataclass(frozen=True)
class Global:
    """Name of a function or class, one of the few that a pickle may refer to."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Flat storage of `size` elements, which several tensors may share."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """View of a storage as a tensor, with unchecked values from the pickle."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any


@dataclasses.dataclass
class Opaque:
    """Object of a class that is not interpreted."""

    name: str


def _is_harmless(name: str) -> bool:
    return _HARMLESS.fullmatch(name) is not None


class PickleReader:
    """Reader of consecutive pickles.

    Args:
      path: file name for messages.
      stream: pickles, in memory, since a damaged one may read to the end of the file.

    Attributes:
      storages: storages in the pickles read so far, by key.
    """

    def __init__(self, path: Path, stream: io.BytesIO):
        self.storages: dict[str, Storage] = {}
        self._path = path
        self._stream = stream
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def value(self) -> Any:
        """Read the value of the next pickle.

        Returns:
          A Tensor, Storage, Global, Opaque, str, bytes, int, float, bool or None, or a tuple, list
          or dict of them; dict keys are str or int.  Nesting is unlimited, and a value may contain
          itself.
        Raises:
          ValueError: the pickle is damaged, or torch does not write such pickles for tensors.
        """
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument in self._opcodes():
            self._follow(opcode, argument)
        return self._pop(1)[0]

    def _opcodes(self) -> Iterator[tuple[str, Any]]:
        opcodes = pickletools.genops(self._stream)
        try:
            for opcode, argument, _ in itertools.islice(opcodes, _MAX_OPCODES):
                yield opcode.name, argument
                if opcode.name == "STOP":
                    return
        except ValueError as error:
            raise self._damaged() from error
        raise ValueError(
            f"{self._path} must have at most {_MAX_OPCODES} opcodes in a pickle, got more; it is "
            "not a T5 checkpoint."
        )

    def _follow(self, opcode: str, argument: Any) -> None:
        push = self._stack.append
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                push(argument)
            case "BINFLOAT" | "SHORT_BINBYTES" | "BINBYTES":  # of options saved with the tensors
                push(argument)
            case "EMPTY_SET":
                push([])
            case "ADDITEMS":
                items = self._pop_to_mark()
                self._top(list).extend(items)
            case "NEWOBJ":
                function, _ = self._pop(2)
                push(self._call(function, None))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push(_CONSTANTS[opcode])
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "MARK":
                self._marks.append(len(self._stack))
            case "TUPLE":
                push(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(opcode[-1]))))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top()
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise self._damaged()
                push(self._memo[argument])
            case "GLOBAL":
                push(self._global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, name = self._pop(2)
                if not (type(module) is str and type(name) is str):
                    raise self._damaged()
                push(self._global(f"{module}.{name}"))
            case "REDUCE":
                push(self._call(*self._pop(2)))
            case "BUILD":
                # A state dict's `_metadata` attribute, the versions of its modules.
                self._pop(1)
                self._top((dict, Opaque))
            case "BINPERSID":
                push(self._storage(self._pop(1)[0]))
            case "SETITEM":
                self._set(self._pop(2))
            case "SETITEMS":
                self._set(self._pop_to_mark())
            case "APPEND":
                (item,) = self._pop(1)
                self._top(list).append(item)
            case "APPENDS":
                items = self._pop_to_mark()
                self._top(list).extend(items)
            case _:
                raise ValueError(
                    f"{self._path} uses the pickle opcode {opcode}, which torch does not need for "
                    "tensors; it may be malicious, do not load it."
                )

    def _pop(self, count: int) -> list[Any]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - floor < count:
            raise self._damaged()
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise self._damaged()
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type | tuple[type, ...] = object) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor or not isinstance(self._stack[-1], kind):
            raise self._damaged()
        return self._stack[-1]

    def _set(self, items: list[Any]) -> None:
        target = self._top((dict, Opaque))
        if len(items) % 2:
            raise self._damaged()
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A malicious key of nested tuples could also take forever to hash.
            if type(key) not in (str, int):  # optimizers number their parameters
                raise ValueError(
                    f"{self._path} must have strings as dict keys, got {type(key).__name__}; save "
                    "model.state_dict() instead."
                )
            if isinstance(target, dict):
                target[key] = value

    def _global(self, name: str) -> Global:
        if name not in _STORAGES and name not in _FUNCTIONS and not _is_harmless(name):
            raise ValueError(
                f"{self._path} refers to {shorten(name)}, which tensors do not need; it may be "
                "malicious, do not load it."
            )
        return Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is tuple:
            match function, arguments:
                case Global("collections.OrderedDict"), ():
                    return {}
                case (
                    Global("torch._utils._rebuild_tensor_v2"),
                    (Storage() as storage, offset, shape, strides, _, _, *flags),
                ) if not any(flags):  # flags include negation of every value
                    return Tensor(storage, offset, shape, strides)
                case Global("torch._utils._rebuild_parameter"), (Tensor() as tensor, _, _):
                    return tensor
        name = function.name if isinstance(function, Global) else type(function).__name__
        if isinstance(function, Global) and name not in _FUNCTIONS and _is_harmless(name):
            return Opaque(name)
        raise ValueError(
            f"{self._path} calls {name} in a way that torch does not for plain tensors; it is "
            "damaged or malicious, do not load it."
        )

    def _storage(self, id_: Any) -> Storage:
        match id_:
            # In the older format, the last item is None except for views of another storage.
            case ("storage", Global(name), str(key), _, int(size), *part) if (
                name in _STORAGES and 0 <= size < _MAX_SIZE and not any(part)
            ):
                storage = Storage(key, _STORAGES[name], size)
                if self.storages.setdefault(key, storage) == storage:
                    return storage
        raise self._damaged()

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{self._path} has a pickle that is damaged or incomplete near byte "
            f"{self._stream.tell()}. Download it again."
        )
