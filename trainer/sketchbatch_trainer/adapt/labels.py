"""Read the class names of a model: from `--labels`, or from the model's own metadata."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path

import onnx
from sketchbatch_client.label_names import problems_of

from ..errors import AdaptRefused

Labels = tuple[str, ...]

_SUFFIXES = (".csv", ".json", ".labels", ".names", ".txt", ".yaml", ".yml")  # of files, not of class names


def read_labels(text: str) -> Labels:
    """Return the class names, in the order of the scores, that the value of `--labels` states.

    The value is the path of a file, or names separated by commas. A file holds one name per line, with its number
    ("0 bear") or without, one line of names separated by commas, a JSON list, a dictionary of index to name, as
    Ultralytics writes it, or one of name to index, as Keras has it.

    Raises:
        AdaptRefused: The file is missing or has another form, or a name is empty, repeated or has odd characters.
    """
    path = Path(text)
    if _is_file(path):
        return _check(_parse_file(path), f"--labels {text}")
    if "," not in text and (path.suffix in _SUFFIXES or len(path.parts) > 1):
        raise AdaptRefused(f"--labels {text}: no such file")
    return _check([name.strip() for name in text.split(",")], "--labels")


def stored_labels(graph: onnx.ModelProto) -> tuple[Labels, str]:
    """Return the class names that the model states itself, and the place where it does; empty if there are none."""
    properties = {each.key: each.value for each in graph.metadata_props}
    for key in ("sketchbatch.labels", "names"):  # ours, and the one of Ultralytics
        if key in properties:
            place = f"{key} of the model"
            return _check(_parse_names(properties[key], place), place), place
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings" and attribute.strings:  # of a classifier of scikit-learn
                place = f"{node.op_type} of the model"
                return _check([name.decode(errors="replace") for name in attribute.strings], place), place
    return (), ""


def check_order(labels: Labels, graph: onnx.ModelProto) -> None:
    """Refuse the names that the model states itself in another order: the classes would be exchanged."""
    try:
        stored, place = stored_labels(graph)
    except AdaptRefused:  # unusable names, which `labels` replace
        return
    if stored != labels and sorted(stored) == sorted(labels):
        shown = ", ".join(stored[:5]) + (", ..." if stored[5:] else "")
        raise AdaptRefused(f"--labels: {place} has the same names in the order {shown}: leave --labels out")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # many names are longer than the name of a file may be
        return False


def _parse_file(path: Path) -> list[object]:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise AdaptRefused(f"--labels {path}: must be text in UTF-8: save it in that encoding") from exc
    if text.startswith(("[", "{")):
        names = _parse_names(text, f"--labels {path}")
    else:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        lines = _without_numbers(lines)
        names = [*map(str.strip, lines[0].split(","))] if len(lines) == 1 else [*lines]
    if not names:
        raise AdaptRefused(f"--labels {path}: the list is empty, write one name per line")
    return names


def _without_numbers(lines: list[str]) -> list[str]:
    """Return the names of lines such as "0 bear" and "1 cat", as Teachable Machine writes them; others unchanged."""
    are_numbered = all(line.startswith(f"{number} ") for number, line in enumerate(lines))
    return [line.partition(" ")[2].strip() for line in lines] if are_numbered else lines


def _parse_names(text: str, place: str) -> list[object]:
    """Return the names of a list or a dictionary, written in JSON or in Python."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)  # {0: 'bear'} is Python, not JSON
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as exc:
            raise AdaptRefused(f"{place}: must be a list or a dictionary of names, got {text[:60]!r}") from exc
    if isinstance(value, dict):
        return _by_index(value, place)
    if not isinstance(value, list):
        raise AdaptRefused(f"{place}: must be a list or a dictionary of names, got {text[:60]!r}")
    return value


def _by_index(names: Mapping[object, object], place: str) -> list[object]:
    """Return the names of {index: name} or {name: index} in the order of the indices."""
    if all(isinstance(index, int) for index in names.values()):
        names = {index: name for name, index in names.items()}
    by_index = {int(str(key)): name for key, name in names.items() if str(key).isdecimal()}
    if sorted(by_index) != list(range(len(names))):
        raise AdaptRefused(f"{place}: the indices must be 0 to {len(names) - 1}, got {', '.join(map(str, names))[:60]}")
    return [by_index[index] for index in range(len(by_index))]


def _check(names: list[object], place: str) -> Labels:
    labels = tuple(name for name in names if isinstance(name, str))
    if len(labels) != len(names):
        odd = next(name for name in names if not isinstance(name, str))
        raise AdaptRefused(f"{place}: each name must be text, got {odd!r}")
    if problem := next(iter(problems_of(labels)), None):
        raise AdaptRefused(f"{place}: {problem}; the service would refuse the file")
    return labels
