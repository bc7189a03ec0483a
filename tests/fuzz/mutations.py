"""Make hostile inputs by changes of valid inputs.

The seed, the name of the target and the index of an input determine its bytes. The changes flip, cut, join and
overwrite bytes. Changes of text insert deep nesting, huge numbers and invalid UTF-8. Zip files and the chunks of PNG
files are packed again after a change, so that their checksums fit the invalid contents.
"""

import io
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

Make = Callable[[random.Random], bytes]

_EDGES = (
    0,
    1,
    2,
    27,
    28,
    29,
    127,
    128,
    255,
    256,
    783,
    784,
    785,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
_WIDE_EDGES = (*_EDGES, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_NUMBERS = (
    *(b"0", b"-0", b"-1", b"1e6", b"1000001", b"1e308", b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"0.1"),
    *(b"9" * 400, b"9" * 4301, b"18446744073709551615", b"18446744073709551616", b"1" + b"0" * 310, b"1e-400"),
)
_VALUES = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"\\ud800"',
    b'"\xff\xfe"',
    b"[[]]",
    b"[[[]]]",
    b"[[[1],[2]]]",
    b'"1"',
)
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|true|false|null')


def input_of(make: Make, target: str, seed: int, number: int) -> bytes:
    """Make the input with index `number` of a target, independently of all other inputs."""
    return make(random.Random(f"{seed} {target} {number}"))


def of_seeds(seeds: Sequence[bytes], *changes: Callable[[bytes, random.Random], bytes]) -> Make:
    """Return a function that makes hostile inputs by random changes of `seeds`.

    Args:
        seeds: Valid inputs.
        changes: Changes for the format of the seeds. If given, they are about half of all changes; the others change
            any bytes.
    """

    def make(chance: random.Random) -> bytes:
        data = chance.choice(seeds)
        if chance.random() < 0.1:
            data = splice(data, chance.choice(seeds), chance)
        for _ in range(min(8, 1 + int(chance.expovariate(0.7)))):
            change = chance.choice(changes) if changes and chance.random() < 0.5 else chance.choice(_CHANGES)
            data = change(data, chance)
        return data

    return make


def splice(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Join the beginning of `data` and the end of `other`."""
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def flip(data: bytes, chance: random.Random) -> bytes:
    """Flip one to eight bits."""
    if not data:
        return b"\0"
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def near_start(data: bytes, chance: random.Random) -> bytes:
    """Overwrite one of the first 64 bytes, because headers are at the start of an input."""
    return _put(data, chance.randrange(min(len(data), 64) or 1), bytes([chance.randrange(256)]))


def cut(data: bytes, chance: random.Random) -> bytes:
    """Cut off the end of the input."""
    return data[: chance.randint(0, len(data))]


def drop(data: bytes, chance: random.Random) -> bytes:
    """Remove some bytes of the input."""
    start = chance.randint(0, len(data))
    return data[:start] + data[start + chance.choice((1, 2, 4, 16, 784)) :]


def repeat(data: bytes, chance: random.Random) -> bytes:
    """Repeat some bytes of the input."""
    start = chance.randint(0, len(data))
    repeated = data[start : start + chance.choice((1, 4, 32, 400))]
    return (data[:start] + repeated * chance.choice((2, 3, 50)) + data[start:])[:1_000_000]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Insert random bytes."""
    start = chance.randint(0, len(data))
    return data[:start] + chance.randbytes(chance.choice((1, 3, 17))) + data[start:]


def number(data: bytes, chance: random.Random) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes at a random place, where a length may be stored, with an extreme number."""
    width, order = chance.choice((1, 2, 4, 4, 8)), chance.choice(("little", "big"))
    value = chance.choice(_WIDE_EDGES) % (1 << 8 * width)
    return _put(data, chance.randint(0, max(0, len(data) - width)), value.to_bytes(width, order))


def varint(data: bytes, chance: random.Random) -> bytes:
    """Overwrite bytes with an extreme number as a varint, the format in which protobuf and Thrift write lengths."""
    return _put(data, chance.randint(0, len(data)), encode_varint(chance.choice(_WIDE_EDGES)))


def encode_varint(value: int) -> bytes:
    """Encode a number as a varint: digits of base 128, one per byte, the lowest digit first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


_CHANGES = (flip, flip, near_start, cut, drop, repeat, insert, number, number, varint)


def text_token(data: bytes, chance: random.Random) -> bytes:
    """Replace a number or string of JSON with an extreme value."""
    tokens = list(_TOKEN.finditer(data[:20_000]))
    if not tokens:
        return data
    token = chance.choice(tokens)
    new = chance.choice(_NUMBERS if chance.random() < 0.6 else _VALUES)
    return data[: token.start()] + new + data[token.end() :]


def nest(data: bytes, chance: random.Random) -> bytes:
    """Replace a value of JSON with nested brackets: a few, about as many as Python's recursion limit, or far more."""
    depth = chance.choice((10, 100, chance.randint(940, 1000), chance.randint(300, 340), 100_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"-", b"")))
    tokens = list(_TOKEN.finditer(data[:20_000]))
    start, end = chance.choice(tokens).span() if tokens else (len(data), len(data))
    return data[:start] + opening * depth + b"1" + closing * depth + data[end:]


def zipped(make: Make, names: Sequence[str]) -> Make:
    """Return a function that makes valid zip files; their members have names of `names` and contents from `make`."""

    def pack(chance: random.Random) -> bytes:
        file = io.BytesIO()
        kind = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        # zipfile warns if two members have the same name, which is intended here
        with zipfile.ZipFile(file, "w", kind) as archive, warnings.catch_warnings(action="ignore"):
            for _ in range(chance.choice((1, 1, 2))):
                archive.writestr(zipfile.ZipInfo(chance.choice(names)), make(chance), archive.compression)
        return file.getvalue()

    return pack


def png_chunk(data: bytes, chance: random.Random) -> bytes:
    """Change one chunk of a PNG file and correct the chunk's checksum.

    Pixels are usually decompressed before the change and compressed again after it.
    """
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    index = chance.randrange(len(chunks))
    kind, body = chunks[index]
    if kind == b"IDAT" and chance.random() < 0.7:
        try:
            body = zlib.compress(chance.choice((flip, cut, repeat, number))(zlib.decompress(body), chance), 1)
        except zlib.error:
            body = flip(body, chance)
    else:
        body = chance.choice((flip, number, number, cut, insert))(body, chance)
    chunks[index] = (kind, body)
    if chance.random() < 0.2:
        kind = chance.choice((b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"eXIf", b"pHYs"))
        chunks.insert(index, (kind, chance.choice((chance.randbytes(20), b"a\0\0" + zlib.compress(bytes(100_000))))))
    return data[:8] + b"".join(_png_chunk(*each) for each in chunks)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def either(*makes: Make) -> Make:
    """Return a function that makes each input with one of the functions `makes`, chosen at random."""
    return lambda chance: chance.choice(makes)(chance)


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]
