"""Extract one large field from a protobuf message without a copy; protobuf parses the remaining fields.

protobuf copies such a field twice, when it parses the message and when the field is read. During the copies no other
Python thread runs, which takes 40 us for a request of 1,024 rows (docs/decisions/0025).
"""

LARGE_BYTES = 1 << 15  # size of a message from which on `take_out` costs less than the two copies of protobuf

_VARINT, _LENGTH_DELIMITED = 0, 2  # the wire types of the fields of our messages
_CONTINUATION = 0x80  # bit of a varint's byte: another byte follows
_MAX_VARINT_BYTES = 10

_MAX_FIELDS = 64  # our messages have up to seven; millions of fields would block the polling thread for a long time


def take_out(message: bytes, field: int) -> tuple[list[memoryview], bytes] | None:
    """Return a view of each occurrence of field number `field` (1 to 15, `bytes`), and the message without the field.

    Return None if this function cannot parse the message; the message may be valid all the same, and protobuf must
    parse it.
    """
    view, rest, found = memoryview(message), bytearray(), list[memoryview]()
    wanted, at = field << 3 | _LENGTH_DELIMITED, 0
    try:
        for _ in range(_MAX_FIELDS):
            if at == len(message):
                return found, bytes(rest)
            tag = message[at]
            number, end = _varint(message, at + 1)
            if tag >= _CONTINUATION or tag & 7 not in (_VARINT, _LENGTH_DELIMITED):
                return None
            if tag & 7 == _LENGTH_DELIMITED:
                end += number
            if end > len(message):
                return None
            if tag == wanted:
                found.append(view[end - number : end])
            else:
                rest += view[at:end]
            at = end
    except IndexError:  # the message ends within a varint
        return None
    return None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the varint that starts at `at`, and the position after it."""
    number = 0
    for place in range(_MAX_VARINT_BYTES):
        byte = message[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < _CONTINUATION:
            return number, at + place + 1
    raise IndexError(at)
