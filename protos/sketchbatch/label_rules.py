"""Check the class names of a model file: clients compare, print and search them, so each must be plain text.

The service applies the rules when it loads a model, and the trainer before it writes one.
"""

import unicodedata
from collections.abc import Iterable, Sequence

_INVISIBLE = frozenset("\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
"""Format characters without a shape: soft hyphen, zero-width space, marks of direction, word joiner, byte order mark.
The joiners U+200C and U+200D are missing here, because Persian words and emojis need them."""

_SPACES = frozenset(" \u3000")  # the white space that a label may contain: it is as wide as it looks
_SHOWN_CHARACTERS = 60


def problems_of(labels: Sequence[str]) -> Iterable[str]:
    """Yield the first label of each kind of problem, for one line to the operator.

    A label must not be empty, begin or end with white space, or contain a character that cannot be seen. Two labels
    must differ, also after normalisation to Unicode's NFC: `sketchbatch evaluate` compares them in that form.
    """
    bad = [(number, label, problem) for number, label in enumerate(labels) if (problem := _problem(label))]
    if bad:
        number, label, problem = bad[0]
        shown = f" {_shown(label)}" if label else ""
        others = f" (and {len(bad) - 1} more)" if bad[1:] else ""
        yield f"label {number}{shown} {problem}{others}"
    first_of: dict[str, str] = {}
    for number, label in enumerate(labels):
        form = unicodedata.normalize("NFC", label)
        if form not in first_of:
            first_of[form] = label
        elif first_of[form] == label:
            yield f"label {number} {_shown(label)} occurs twice"
            return
        else:
            yield f"labels {first_of[form]!a} and {label!a} are the same in Unicode's NFC form"
            return


def _problem(label: str) -> str:
    if not label:
        return "is empty"
    if label != label.strip():
        return "begins or ends with white space"
    hidden = next((character for character in label if _is_hidden(character)), "")
    return f"contains {hidden!r}" if hidden else ""


def _is_hidden(character: str) -> bool:
    is_space = character.isspace() and character not in _SPACES
    is_control = unicodedata.category(character) in ("Cc", "Cs")  # Cs: of a file name that is not UTF-8
    return is_space or character in _INVISIBLE or is_control


def _shown(label: str) -> str:
    return repr(label if len(label) <= _SHOWN_CHARACTERS else f"{label[:_SHOWN_CHARACTERS]}...")
