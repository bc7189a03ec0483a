"""Takes the one large field out of a protobuf message without copying it; protobuf parses the rest.

protobuf copies such a field twice, once when it parses and once when it is read, while no other thread of Python runs:
40 us of a request of 1,024 rows (docs/decisions/0025).
"""

_VARINT, _LENGTH_DELIMITED = 0, 2  # the wire types that our messages have
_ONE_BYTE = 0x80  # from here on, a varint goes on in the next byte
_MOST_BYTES = 10  # of a varint

_MOST_FIELDS = 64
"""Ours have five. A message of millions would keep the thread that reads for everyone."""


def take_out(message: bytes, field: int) -> tuple[memoryview, bytes] | None:
    """Views the field of number `field` (1 to 15, `bytes`, not repeated), and returns the message without it.

    Of several the last counts, as in protobuf. None = the message has what this function does not know, which need not
    be wrong: protobuf must parse it.
    """
    view, rest = memoryview(message), bytearray()
    found, wanted, at = view[:0], field << 3 | _LENGTH_DELIMITED, 0
    try:
        for _ in range(_MOST_FIELDS):
            if at == len(message):
                return found, bytes(rest)
            tag = message[at]
            number, end = _varint(message, at + 1)
            if tag >= _ONE_BYTE or tag & 7 not in (_VARINT, _LENGTH_DELIMITED):
                return None
            if tag & 7 == _LENGTH_DELIMITED:
                end += number
            if end > len(message):
                return None
            if tag == wanted:
                found = view[end - number : end]
            else:
                rest += view[at:end]
            at = end
    except IndexError:  # it ends within a number
        return None
    return None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    number = 0
    for place in range(_MOST_BYTES):
        byte = message[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < _ONE_BYTE:
            return number, at + place + 1
    raise IndexError(at)
