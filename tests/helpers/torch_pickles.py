"""Files of `torch.save`, assembled by hand from the format's description, without torch.

The pickles use protocol 2, like torch; `pickletools` describes each instruction.
"""

import pickle
import struct
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C
PROTO = b"\x80\x02"
STOP = b"."
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def items(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def sizes(*values: int) -> bytes:
    return items(*map(integer, values))


def named(name: str) -> bytes:
    """A global, "module.name"."""
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"


def storage(key: str, size: int, kind: str = "Float", *, legacy: bool = False) -> bytes:
    fields = [text("storage"), named(f"torch.{kind}Storage"), text(key), text("cpu"), integer(size)]
    return items(*fields, *[b"N"] * legacy) + b"Q"


def tensor(of: bytes, shape: bytes, strides: bytes, offset: bytes = b"K\0", more=b"") -> bytes:
    """Each argument a pickled value."""
    arguments = items(of, offset, shape, strides, b"\x89", ORDERED_DICT, more)
    return named("torch._utils._rebuild_tensor_v2") + arguments + b"R"


def entries(values: dict[str, bytes]) -> bytes:
    return b"(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def state_dict(tensors: dict[str, bytes]) -> bytes:
    """A pickle, of tensors by name."""
    metadata = ORDERED_DICT + entries({"": b"}" + entries({"version": b"K\1"})})
    attributes = b"}" + entries({"_metadata": metadata})
    return PROTO + ORDERED_DICT + entries(tensors) + attributes + b"b" + STOP


def write_zip(path, pickled: bytes, storages: dict[str, bytes], *, root="archive", **others):
    """The container of torch 1.6 and later; `others` are its small entries or replace them."""
    small = {"byteorder": b"little", "version": b"3\n", **others}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        for name, content in small.items():
            if content is not None:
                archive.writestr(f"{root}/{name}", content)
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
    return path


def write_legacy(path, pickled: bytes, storages: dict[str, tuple[int, bytes]], **changes):
    """The container before torch 1.6; storages are numbers of elements and their bytes."""
    head = {"magic": MAGIC, "protocol": 1001, "system": {"little_endian": True}, "keys": None}
    head |= changes
    keys = list(storages) if head["keys"] is None else head["keys"]
    content = b"".join(pickle.dumps(head[x], protocol=2) for x in ("magic", "protocol", "system"))
    content += pickled + (keys if isinstance(keys, bytes) else pickle.dumps(keys, protocol=2))
    for size, data in storages.values():
        content += struct.pack("<q", size) + data
    path.write_bytes(content)
    return path
