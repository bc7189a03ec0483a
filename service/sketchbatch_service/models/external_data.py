"""List the files in which an ONNX model stores its large tensors, such as model.onnx.data.

The service does not depend on the package onnx, and protobuf would copy all weights. So this module walks over the
messages of the model itself, and skips the weights. Fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}

CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **dict.fromkeys((5, 10), "TensorProto"),
        **dict.fromkeys((6, 11), "GraphProto"),
        **dict.fromkeys((22, 23), "SparseTensorProto"),
    },
    "SparseTensorProto": dict.fromkeys((1, 2), "TensorProto"),
}
"""For each message through which a tensor can be reached: the type of each field that leads to a tensor."""

EXTERNAL_DATA, DATA_LOCATION, EXTERNAL = 13, 14, 1  # two fields of TensorProto, and the value of the second
_KEY, _VALUE = 1, 2  # fields of StringStringEntryProto


def locations(model: bytes) -> list[str]:
    """Return the paths of the external data files, relative to the folder of the model, sorted, without repetition.

    Return none for bytes that are not an ONNX model: a file in ONNX Runtime's own format has no such files.
    """
    try:
        return sorted({location for tensor in _tensors(memoryview(model)) for location in _location(tensor)})
    except (ValueError, IndexError):
        return []


def _tensors(model: memoryview) -> Iterator[memoryview]:
    waiting = [("ModelProto", model)]
    while waiting:
        kind, message = waiting.pop()
        if kind == "TensorProto":
            yield message
            continue
        children = CHILDREN[kind]
        waiting += [
            (children[number], value)
            for number, value in _fields(message)
            if number in children and isinstance(value, memoryview)
        ]


def _location(tensor: memoryview) -> list[str]:
    """Return the location of the data of one tensor; nothing if the tensor contains its data."""
    entries, is_external = {}, False
    for number, value in _fields(tensor):
        if number == EXTERNAL_DATA and isinstance(value, memoryview):
            entry = {name: bytes(text) for name, text in _fields(value) if isinstance(text, memoryview)}
            entries[entry.get(_KEY, b"")] = entry.get(_VALUE, b"")
        elif number == DATA_LOCATION:
            is_external = value == EXTERNAL
    return [entries[b"location"].decode()] if is_external and b"location" in entries else []


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field; the value of a fixed-size number is skipped and given as 0.

    Raise ValueError or IndexError if the bytes are not a message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire_type == _LENGTH_DELIMITED:
            size, start = _varint(message, at)
            at = start + size
            if at > len(message):
                raise ValueError(f"field {number} must end at byte {len(message)} or before, got {at}")
            yield number, message[start:at]
        elif wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
            yield number, 0
        else:
            raise ValueError(f"wire type must be 0, 1, 2 or 5, got {wire_type}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the varint that starts at `at`, and the position after it."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a varint must have at most 10 bytes")
