"""Compare the names of classes, and show how names differ that look alike.

Names are compared in Unicode's normal form NFC: some systems write file names in NFD, which looks the same.
"""

import difflib
import unicodedata
from collections.abc import Sequence

from sketchbatch.label_rules import problems_of as problems_of  # for the trainer

_SHOWN = 5  # most names of a list in a message
_SIMILARITY = 0.75  # least ratio of difflib of a suggestion: "cats" suggests "cat", "zebra" suggests nothing
_MAX_COMPARED = 1000  # most names that are compared letter by letter, which takes about 10 us for each


def nfc(name: str) -> str:
    """Return `name` in normal form NFC."""
    return unicodedata.normalize("NFC", name)


def listed(names: Sequence[str], most: int = _SHOWN) -> str:
    """Join the first names; all of them as Python literals if a person could not see all of one of them."""
    texts = list(names) if all(map(_is_visible, names)) else list(map(repr, names))
    return _joined(texts, most)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that `name` probably stands for: other case, spacing or plural, a typing error; or None."""
    by_key = {_key(each): each for each in reversed(known)}
    key = _key(name)
    if key in by_key:
        return by_key[key]
    close = difflib.get_close_matches(key, list(by_key)[-_MAX_COMPARED:], 1, _SIMILARITY)
    return by_key[close[0]] if close else None


def with_suggestions(names: Sequence[str], known: Sequence[str]) -> str:
    """Join the first names, each with the known name that it probably stands for: 'Cat' (did you mean 'cat'?).

    Without any such name, the result is that of `listed`.
    """
    suggested = {
        name: found for name in names[:_SHOWN] if (found := nearest(name, known)) is not None and found != name
    }
    if not suggested:
        return listed(names)
    hints = {name: f" (did you mean {found!r}?)" for name, found in suggested.items()}
    return _joined([f"{name!r}{hints.get(name, '')}" for name in names], _SHOWN)


def compared(expected: Sequence[str], got: Sequence[str]) -> str:
    """Return "EXPECTED, got GOT" for a message about two lists, so that names which look alike are told apart."""
    found = with_suggestions(got, expected)
    is_literal = found.startswith(("'", '"')) or not all(map(_is_visible, expected))
    texts = list(map(repr, expected)) if is_literal else list(expected)
    return f"{_joined(texts, _SHOWN)}, got {found}"


def _is_visible(name: str) -> bool:
    """Return whether `name` has neither outer white space nor characters that are invisible or control a terminal."""
    return bool(name) and name == name.strip() and name.isprintable()


def _key(name: str) -> str:
    """Return what stays equal under changes of case, white space, punctuation and invisible characters."""
    letters = "".join(each for each in nfc(name).casefold() if each.isalnum())
    return letters or name


def _joined(texts: list[str], most: int) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
