"""Pickles read without executing them: what the standard library reads, and what it must not.

Harmless values are compared with `pickle.loads`; pickles of tensors and hostile ones are assembled
by hand.  Files that torch itself writes are in test_torch_file.py.
"""

import contextlib
import copyreg
import io
import os
import pickle
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import torch_pickles
from helpers.torch_pickles import ORDERED_DICT, PROTO, STOP, integer, items, named, sizes, text
from hypothesis import given, settings, strategies as st

from t5jax.errors import shorten
from t5jax.pretrained.formats import torch_pickle
from t5jax.pretrained.formats.torch_pickle import Global, PickleReader, Storage, Tensor

PATH = Path("folder/pytorch_model.bin")
PROTOCOLS = [2, 3, 4, 5]
TENSOR = torch_pickles.tensor(torch_pickles.storage("0", 6), sizes(2, 3), sizes(3, 1))
STORAGE = Storage("0", np.dtype(np.float32), 6)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(),
    lambda values: (
        st.lists(values)
        | st.lists(values).map(tuple)
        | st.dictionaries(st.text(), values)
        | st.tuples(values).map(lambda one: [one, one])  # the same object twice
    ),
)


def value_of(pickled: bytes):
    return PickleReader(PATH, io.BytesIO(pickled)).value()


def error_of(pickled: bytes) -> str:
    """The message with which a pickle is refused: one sentence that names the file."""
    with pytest.raises(ValueError, match=PATH.name) as caught:
        value_of(pickled)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(PATH))
    assert "\n" not in message
    assert len(message) < 400
    return message


# What torch writes.


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(deadline=None, max_examples=25)
@given(value=PLAIN)
def test_reader_finds_the_values_of_the_standard_library(protocol, value):
    pickled = pickle.dumps(value, protocol=protocol)
    assert value_of(pickled) == value
    assert repr(value_of(pickled)) == repr(pickle.loads(pickled))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reader_reads_long_and_shared_values(protocol):
    value = {"long name " * 100: list(range(5000)), **{f"x{i}": "same" for i in range(3000)}}
    value["both"] = [value["long name " * 100]] * 2
    found = value_of(pickle.dumps(value, protocol=protocol))
    assert found == value
    assert found["both"][0] is found["both"][1]


def test_reader_reads_values_that_hold_themselves():
    holder = {"list": []}
    holder["list"].append(holder)
    found = value_of(pickle.dumps(holder, protocol=2))
    assert found["list"][0] is found


def test_reader_reads_one_pickle_after_the_other():
    stream = io.BytesIO(pickle.dumps([1], protocol=4) + pickle.dumps("two", protocol=2) + b"rest")
    reader = PickleReader(PATH, stream)
    assert [reader.value(), reader.value()] == [[1], "two"]
    assert stream.read() == b"rest"


def test_reader_forgets_the_memo_between_pickles():
    reader = PickleReader(PATH, io.BytesIO(PROTO + b"K\1q\0." + PROTO + b"h\0."))
    assert reader.value() == 1
    with pytest.raises(ValueError, match="damaged"):
        reader.value()


def test_reader_finds_tensors_and_ignores_metadata():
    reader = PickleReader(PATH, io.BytesIO(torch_pickles.state_dict({"a": TENSOR})))
    assert reader.value() == {"a": Tensor(STORAGE, 0, (2, 3), (3, 1))}
    assert reader.storages == {"0": STORAGE}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Float", "float32"),
        ("BFloat16", "bfloat16"),
        ("Half", "float16"),
        ("Double", "float64"),
        ("Long", "int64"),
        ("Int", "int32"),
        ("Short", "int16"),
        ("Char", "int8"),
        ("Byte", "uint8"),
        ("Bool", "bool"),
    ],
)
def test_reader_knows_storages(kind, dtype):
    pickled = PROTO + torch_pickles.storage("key", 1 << 40, kind) + STOP
    assert value_of(pickled) == Storage("key", np.dtype(dtype), 1 << 40)


def test_reader_takes_parameters_for_their_tensors():
    arguments = items(TENSOR, b"\x88", ORDERED_DICT)
    pickled = PROTO + named("torch._utils._rebuild_parameter") + arguments + b"R."
    assert value_of(pickled) == Tensor(STORAGE, 0, (2, 3), (3, 1))


def test_reader_does_not_judge_shapes():
    of = torch_pickles.storage("0", 6)
    found = value_of(PROTO + torch_pickles.tensor(of, text("odd"), b"N", integer(-1)) + STOP)
    assert found == Tensor(STORAGE, -1, "odd", None)


def test_reader_returns_an_allowed_name_as_a_name():
    assert value_of(PROTO + b"ctorch\nFloatStorage\n.") == Global("torch.FloatStorage")
    by_stack = b"\x80\x04\x8c\x05torch\x8c\x0cFloatStorage\x93."
    assert value_of(by_stack) == Global("torch.FloatStorage")


# What torch does not write.


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    """Each of them makes a folder when it is loaded by `pickle`."""
    mkdir = Call(os.mkdir, str(marker))
    code = f"__import__('os').mkdir({str(marker)!r})"
    argument = text(str(marker))
    module, name = text("os"), text("mkdir")
    nested = ORDERED_DICT[:-2] + items(items(b"cos\nmkdir\n" + items(argument) + b"R")) + b"R"
    found = {
        f"{kind} of protocol {protocol}": pickle.dumps(value, protocol=protocol)
        for protocol in range(6)
        for kind, value in {
            "mkdir": mkdir,
            "eval": Call(eval, code),
            "exec": Call(exec, code),
            "getattr": Call(getattr, mkdir, "x", None),
            "within a state dict": {"a": [mkdir]},
            "copyreg": Call(copyreg.constructor, mkdir),
        }.items()
    }
    return {
        **found,
        "system": pickle.dumps(Call(os.system, f"mkdir '{marker}'"), protocol=2),
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(" + b"cos\nmkdir\n" + argument + b"o.",
        "memoized global": PROTO + b"cos\nmkdir\nq\5" + b"0h\5" + items(argument) + b"R.",
        "STACK_GLOBAL": PROTO + module + name + b"\x93" + items(argument) + b"R.",
        "STACK_GLOBAL of memo": PROTO
        + (module + b"q\0" + name + b"q\1" + b"00h\0h\1\x93" + items(argument) + b"R."),
        "argument of an allowed call": PROTO + nested + STOP,
        "EXT1": PROTO + b"\x82\xf0" + items(argument) + b"R.",
        "EXT2": PROTO + b"\x83\xf0\x00" + items(argument) + b"R.",
        "EXT4": PROTO + b"\x84\xf0\x00\x00\x00" + items(argument) + b"R.",
        "before a value": PROTO + b"cos\nmkdir\n" + items(argument) + b"R0" + TENSOR + STOP,
        "dotted": b"\x80\x04"
        + text("os")
        + text("path.os.mkdir")
        + b"\x93"
        + items(argument)
        + b"R.",
        "allowed module": PROTO + b"ccollections\n_sys\n0cos\nmkdir\n" + items(argument) + b"R.",
    }


@pytest.fixture
def extension():
    """`os.mkdir` under a number, as EXT1, EXT2 and EXT4 call it."""
    copyreg.add_extension("os", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("os", "mkdir", 0xF0)


def test_reader_executes_nothing(tmp_path, extension):
    marker = tmp_path / "marker"
    for kind, pickled in hostile_pickles(marker).items():
        with contextlib.suppress(Exception):
            pickle.loads(pickled)
        assert marker.is_dir(), f"{kind} does nothing"
        marker.rmdir()
        error_of(pickled)
        assert not marker.exists(), kind


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "builtins.eval"),
        (os.mkdir, f"{os.name}.mkdir"),
        (copyreg.constructor, "copyreg.constructor"),
    ],
)
def test_reader_names_what_a_pickle_asks_for(function, name):
    for protocol in (3, 4):
        message = error_of(pickle.dumps({"a": Call(function, "x")}, protocol=protocol))
        assert f"refers to {name}, which" in message
        assert "may be malicious, do not load it" in message


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "_utils"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("torch", "UntypedStorage"),
        ("", ""),
        ("\ud800", "\n\0" * 9999),
        ("torch.FloatStorage", ""),
        ("x" * 9999, "y"),
    ],
)
def test_reader_refuses_other_names_however_they_look(module, name):
    assert "may be malicious" in error_of(PROTO + text(module) + text(name) + b"\x93.")


@pytest.mark.parametrize(
    ("name", "pickled"),
    [
        ("INT", b"I5\n"),
        ("LONG", b"L5L\n"),
        ("LONG4", b"\x8b\1\0\0\0\5"),
        ("FLOAT", b"F5.5\n"),
        ("STRING", b"S'a'\n"),
        ("BINSTRING", b"T\1\0\0\0a"),
        ("SHORT_BINSTRING", b"U\1a"),
        ("UNICODE", b"Va\n"),
        ("BINUNICODE8", b"\x8d\1\0\0\0\0\0\0\0a"),
        ("BINBYTES8", b"\x8e\1\0\0\0\0\0\0\0a"),
        ("BYTEARRAY8", b"\x96\1\0\0\0\0\0\0\0a"),
        ("NEXT_BUFFER", b"\x97"),
        ("READONLY_BUFFER", b"]\x98"),
        ("LIST", b"(l"),
        ("DICT", b"(d"),
        ("FROZENSET", b"(\x91"),
        ("GET", b"Nq\0g0\n"),
        ("PUT", b"Np0\n"),
        ("POP", b"NN0"),
        ("POP_MARK", b"N(1"),
        ("DUP", b"N2"),
        ("INST", b"(iposix\nsystem\n"),
        ("OBJ", b"(No"),
        ("NEWOBJ_EX", b"N)}\x92"),
        ("EXT1", b"\x82\1"),
        ("EXT2", b"\x83\1\0"),
        ("EXT4", b"\x84\1\0\0\0"),
        ("PERSID", b"Pkey\n"),
    ],
)
def test_reader_refuses_other_instructions_by_name(name, pickled):
    message = error_of(PROTO + pickled + STOP)
    assert f"opcode {name}," in message
    assert "malicious" in message


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        PROTO,
        PROTO + STOP,
        PROTO + b"N",
        PROTO + b"\xff.",
        PROTO + b"h\0.",  # get what nobody put
        PROTO + b"j\0\0\0\x80.",
        PROTO + b"q\0.",  # put nothing
        PROTO + b"\x94.",
        PROTO + b"(q\0.",
        PROTO + b"N(.",  # the stack ends at a mark
        PROTO + b"t.",
        PROTO + b"N\x86.",
        PROTO + b"N(N\x86.",
        PROTO + b"N(R.",
        PROTO + b"NR.",
        PROTO + b"NNR.",
        PROTO + b"N)R.",
        PROTO + b"Q.",
        PROTO + b"NQ.",
        PROTO + b")Q.",
        PROTO + b"Na.",
        PROTO + b"NNa.",
        PROTO + b"N(Ne.",
        PROTO + b"](e0.",
        PROTO + b"NNNs.",
        PROTO + b"}(Nu.",
        PROTO + b"}N(u.",
        PROTO + b"}NNs.",
        PROTO + b"}b.",
        PROTO + b"NNb.",
        PROTO + b"NN\x93.",
        PROTO + b"NX\1\0\0\0a\x93.",
        PROTO + b"X\1\0\0\0\xff.",
        PROTO + b"\x8a\5ab",
        PROTO + b"ctorch\xff\nx\n.",
        PROTO + b"ctorch",
        PROTO + b"I" + b"9" * 5000 + b"\n.",
        PROTO + b"L" + b"9" * 5000 + b"L\n.",
        PROTO + b"\x8b\xff\xff\xff\xff.",
    ],
)
def test_reader_refuses_damage(pickled):
    error_of(pickled)


FLOAT = named("torch.FloatStorage")


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [text("module"), FLOAT, text("0"), text("cpu"), integer(6)],
        [text("storage"), named("collections.OrderedDict"), text("0"), text("cpu"), integer(6)],
        [text("storage"), text("torch.FloatStorage"), text("0"), text("cpu"), integer(6)],
        [text("storage"), FLOAT, integer(0), text("cpu"), integer(6)],
        [text("storage"), FLOAT, text("0"), text("cpu"), text("6")],
        [text("storage"), FLOAT, text("0"), text("cpu"), integer(-6)],
        [text("storage"), FLOAT, text("0"), text("cpu"), integer(1 << 63)],
        [text("storage"), FLOAT, text("0"), text("cpu"), integer(1 << 2000)],
        [text("storage"), FLOAT, text("0"), text("cpu")],
        [text("storage"), FLOAT, text("0"), text("cpu"), integer(6), sizes(1, 2, 3)],
    ],
)
def test_reader_refuses_storages_of_another_form(fields):
    assert "damaged" in error_of(PROTO + items(*fields) + b"Q.")


def test_reader_refuses_one_storage_with_two_sizes_or_types():
    for other in (torch_pickles.storage("0", 7), torch_pickles.storage("0", 6, "Int")):
        pair = items(torch_pickles.storage("0", 6), other)
        assert "damaged" in error_of(PROTO + pair + STOP)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("collections.OrderedDict", items(b"]")),
        ("collections.OrderedDict", b"]"),
        ("torch.FloatStorage", items(integer(1 << 40))),
        ("torch._utils._rebuild_tensor_v2", items()),
        ("torch._utils._rebuild_tensor_v2", items(*[b"N"] * 6)),
        ("torch._utils._rebuild_parameter", items(b"N", b"N", b"N")),
        ("torch._utils._rebuild_parameter", items(TENSOR)),
    ],
)
def test_reader_refuses_calls_of_another_form(function, arguments):
    message = error_of(PROTO + named(function) + arguments + b"R.")
    assert f"calls {function}" in message
    assert "damaged or malicious" in message


def test_reader_refuses_tensors_whose_values_are_to_be_changed():
    negated = b"}" + torch_pickles.entries({"neg": b"\x88"})
    of = torch_pickles.storage("0", 6)
    pickled = PROTO + torch_pickles.tensor(of, sizes(6), sizes(1), more=negated) + STOP
    assert "_rebuild_tensor_v2" in error_of(pickled)
    plain = PROTO + torch_pickles.tensor(of, sizes(6), sizes(1), more=b"}") + STOP
    assert value_of(plain) == Tensor(STORAGE, 0, (6,), (1,))


# Bombs.


def doubled(times: int) -> bytes:
    """A tuple of the same tuple twice, and so on: as long to hash or print as 2 ** times."""
    return b")" + b"".join(b"q\0h\0\x86" for _ in range(times))


def peak_of(call, *arguments) -> int:
    """Bytes that were allocated at the same time."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "pickled",
    [
        b"Nr" + struct.pack("<I", 1 << 31) + b"r" + struct.pack("<I", (1 << 32) - 1) + b"(",
        b"X" + struct.pack("<I", (1 << 32) - 1) + b"abc",
        b"\x8d" + struct.pack("<Q", (1 << 63) - 1) + b"abc",
        b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"abc",
        b"\x8e" + struct.pack("<Q", (1 << 62)) + b"abc",
        b"\x96" + struct.pack("<Q", (1 << 40)) + b"abc",
        b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"abc",
        b"\x95" + struct.pack("<Q", (1 << 63)) + b"N",
        b"\x8a\xff" + b"\xff" * 255 + b"N",
    ],
)
def test_reader_allocates_only_what_the_pickle_has(pickled):
    assert peak_of(error_of, PROTO + pickled) < 1 << 20


def test_reader_puts_a_value_at_any_index_of_the_memo():
    assert value_of(PROTO + b"(K\7r\0\0\0\x80j\0\0\0\x80t.") == (7, 7)


def test_reader_does_not_hash_or_print_what_takes_forever():
    assert len(value_of(PROTO + doubled(1000) + STOP)) == 2
    assert "tuple" in error_of(PROTO + b"}" + doubled(1000) + b"Ns.")
    of = torch_pickles.storage("0", 6)
    value_of(PROTO + torch_pickles.tensor(of, doubled(1000), sizes(1)) + STOP)
    error_of(PROTO + doubled(1000) + b")R.")
    error_of(PROTO + doubled(1000) + b"Q.")
    error_of(PROTO + doubled(1000) + text("x") + b"\x93.")


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b"\x85"), (b"]", b"a"), (b"}" + text("x"), b"s"), (b"(", b"t"), (b"](", b"e")],
)
def test_reader_follows_any_depth(before, after):
    assert value_of(PROTO + before * 10_000 + b"N" + after * 10_000 + STOP) is not None


def test_reader_follows_any_depth_of_tensors():
    call = (
        named("torch._utils._rebuild_tensor_v2") + b"q\0" + torch_pickles.storage("0", 6) + b"q\1"
    )
    deep = b"(h\0(h\1" * 5_000 + b"N" + b"NNNNtR\x85" * 5_000
    error_of(PROTO + call + deep + STOP)
    value_of(PROTO + b"(" + call + b"h\0(h\1" * 5_000 + b"N" + b"NNNNtR" * 5_000 + b"t.")


def test_reader_stops_after_many_instructions(monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MAX_OPCODES", 1000)
    assert value_of(PROTO + b"N" * 997 + b"\x85.") == (None,)
    message = error_of(PROTO + b"N" * 998 + b"\x85.")
    assert "at most 1000 opcodes" in message


# Fuzzing.


def disturbed(pickled: bytes, rng: random.Random) -> bytes:
    content = bytearray(pickled)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(content))
        kind = rng.randrange(4)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + rng.randrange(1, 9)]
        else:
            start = rng.randrange(len(content))
            content[at:at] = content[start : start + rng.randrange(1, 30)]
        if not content:
            return b""
    return bytes(content)


def outcome(pickled: bytes) -> str:
    """Whether a pickle is read or refused, as it should be."""
    try:
        value_of(pickled)
    except ValueError:
        error_of(pickled)
        return "refused"
    return "read"


STATE = torch_pickles.state_dict({"a": TENSOR, "b": TENSOR, "c": TENSOR})


def test_reader_refuses_a_pickle_cut_anywhere():
    for length in range(len(STATE)):
        error_of(STATE[:length])


def test_reader_reads_or_refuses_disturbed_pickles():
    rng = random.Random(0)
    framed = pickle.dumps({"a": [1, (2, None)], "b": ["x"] * 3, "c": {"d": True}}, protocol=4)
    outcomes = set()
    for _ in range(1000):
        pickled = disturbed(rng.choice([STATE, framed]), rng)
        outcomes.add(outcome(pickled))
    assert outcomes == {"read", "refused"}


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_reader_reads_or_refuses_garbage(content, with_start):
    outcome(PROTO * with_start + content + STOP)


def test_shown_is_short_and_on_one_line():
    assert shorten("encoder.block.0.layer.0") == "encoder.block.0.layer.0"
    for name in ("a\nb", "\0" * 1000, "\U0001d173" * 1000, "\ud800", "x" * 10**6):
        assert len(shorten(name)) <= 123
        assert "\n" not in shorten(name)
        shorten(name).encode()
