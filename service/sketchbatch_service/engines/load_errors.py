"""Say in one line why ONNX Runtime cannot load a file: what the file is instead of a model, or which versions differ.

ONNX Runtime's messages contain signatures of its C++ functions and have no fixed form. So a form that is not recognised
is kept, but shortened.
"""

import re
from pathlib import Path

import onnxruntime as ort
from sketchbatch.file_kind import HEAD_BYTES, ONNX_MODEL, describe

from ..file_stamp import denied

_IR_VERSION = re.compile(r"model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL)
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PARSING_FAILED = "Protobuf parsing failed"
_PLACE = re.compile(r"\S*\.(?:cc|cpp|h|hpp):\d+ ")  # in ONNX Runtime's source; its function follows
_METHOD = re.compile(r"[^()]*::[^()]*\(")  # the beginning of a function with its parameters
_EXPORT = "export the model as .onnx with the tool that made it"
_MAX_CHARACTERS = 300
_QUOTED_BYTES = 6


def why_not_loaded(path: Path, error: Exception) -> str:
    """Return why ONNX Runtime raised `error` for the file at `path`, and a remedy if there is one; without the path."""
    text = str(error)
    runtime = f"ONNX Runtime {ort.__version__}"
    if match := _IR_VERSION.search(text):
        limit = f"its IR version is {match[1]}, {runtime} takes {match[2]} at most"
        return f"{limit}: export with an older onnx, or serve with a newer ONNX Runtime"
    if match := _OPSET.search(text):
        limit = f"its opset of {match[2]} is {match[1]}, {runtime} takes {match[3]} at most"
        return f"{limit}: export with an older opset, or serve with a newer ONNX Runtime"
    return _other_kind(path, text) or f"not a model that ONNX Runtime can load: {_cause(path, text)}"


def _other_kind(path: Path, text: str) -> str:
    """Return what the file is if it is not an ONNX model, or a damaged one; "" if its first bytes are those of one."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except PermissionError:
        return denied()
    except OSError:
        return ""  # ONNX Runtime's message has the reason
    kind = describe(head, str(path))
    if kind and kind.name != ONNX_MODEL:
        return f"expected an ONNX model, got {kind.name}; {_EXPORT if 'drawing' in kind.remedy else kind.remedy}"
    if _PARSING_FAILED not in text:
        return ""
    if kind:
        return "damaged or cut off, cannot be read as an ONNX model; copy or download it again"
    return f"expected an ONNX model, got {head[:_QUOTED_BYTES]!r}; {_EXPORT}"


def _cause(path: Path, text: str) -> str:
    first = _CODE.sub("", next(iter(text.splitlines()), "")).removeprefix(f"Load model from {path} failed:")
    cause = _without_function(first).strip() or "ONNX Runtime gives no reason"
    return cause if len(cause) <= _MAX_CHARACTERS else f"{cause[:_MAX_CHARACTERS]} ..."


def _without_function(text: str) -> str:
    """Remove the place in the source of ONNX Runtime, and the function there; return other texts unchanged."""
    place = _PLACE.search(text)
    if not place:
        return text
    before, after = text[: place.start()], text[place.end() :]
    if not (method := _METHOD.match(after)):
        function, _, message = after.partition(" ")
        return before + message if function.isidentifier() and "(" not in message.partition(" ")[0] else text
    end, depth = method.end(), 1
    while depth and end < len(after):
        depth += (after[end] == "(") - (after[end] == ")")
        end += 1
    return before + after[end:].removeprefix(" const").lstrip() if not depth else text
