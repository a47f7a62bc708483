"""Snappy decompression without its library.

(https://github.com/google/snappy/blob/main/format_description.txt)
"""


def snappy_length(data: bytes) -> int:
    """Return the uncompressed length that a block states, in bytes.

    Raises:
      ValueError: the block is damaged.
    """
    return _read_length(data)[0]


def decompress_snappy(data: bytes) -> bytes:
    """Decompress a block.

    Args:
      data: compressed block; memory use is bounded by its `snappy_length`.
    Returns:
      The content.
    Raises:
      ValueError: the block is damaged.
    """
    length, position = _read_length(data)
    content = bytearray()
    while position < len(data) and len(content) <= length:
        tag = data[position]
        kind, count = tag & 3, (tag >> 2) + 1
        position += 1
        if kind == 0:
            if count > 60:
                width = count - 60
                count = int.from_bytes(_slice(data, position, width), "little") + 1
                position += width
            content += _slice(data, position, count)
            position += count
            continue
        if kind == 1:
            count = (tag >> 2 & 7) + 4
            distance = (tag >> 5) << 8 | _slice(data, position, 1)[0]
            position += 1
        else:
            width = 2 if kind == 2 else 4
            distance = int.from_bytes(_slice(data, position, width), "little")
            position += width
        if not 1 <= distance <= len(content):
            raise ValueError("a compressed block must copy from the content before it.")
        start = len(content) - distance
        repeated = content[start : start + count]
        # A copy may overlap with its own output.
        content += (repeated * (count // len(repeated) + 1))[:count]
    if len(content) != length:
        raise ValueError(f"a compressed block must contain {length} bytes, got {len(content)}.")
    return bytes(content)


def _read_length(data: bytes) -> tuple[int, int]:
    """Read a block's leading varint, and return it and the position after it."""
    length = 0
    for position in range(5):
        byte = _slice(data, position, 1)[0]
        length |= (byte & 127) << 7 * position
        if byte < 128:
            return length, position + 1
    raise ValueError("a compressed block must state its length in 32 bits.")


def _slice(data: bytes, start: int, count: int) -> bytes:
    if start + count > len(data):
        raise ValueError("a compressed block ends within an element.")
    return data[start : start + count]
