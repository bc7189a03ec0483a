"""Compare the names of classes, and show how names differ that look alike.

Names are compared in Unicode's normal form NFC: some systems write file names in NFD, which looks the same.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from sketchbatch.label_rules import problems_of as problems_of  # for the trainer

_SHOWN = 5  # most names of a list in a message
_SIMILARITY = 0.75  # least ratio of difflib of a suggestion: "cats" suggests "cat", "zebra" suggests nothing
_SUGGESTED = 50  # most names for which a suggestion is searched letter by letter
_DOWNLOADED = re.compile(  # names that the Google Cloud console and browsers give to downloaded class files
    r"(?:full(?:_|%2F|/)(?:numpy_bitmap|simplified|binary|raw)(?:_|%2F|/))?(?P<name>.+?)(?: ?\(\d+\))?", re.IGNORECASE
)
_MAX_COMPARED = 1000  # most names that are compared letter by letter, which takes about 10 us for each


def nfc(name: str) -> str:
    """Return `name` in normal form NFC."""
    return unicodedata.normalize("NFC", name)


def listed(names: Sequence[str], most: int = _SHOWN) -> str:
    """Join the first names; all of them as Python literals if a person could not see all of one of them."""
    texts = list(names) if all(map(_is_visible, names)) else list(map(repr, names))
    return _joined(texts, most)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that `name` probably stands for, or None.

    `name` may differ in case, spacing or plural, have a typing error, or be the name of a downloaded class file, such
    as full_numpy_bitmap_cat or "cat (1)".
    """
    by_key = {_key(each): each for each in reversed(known)}
    return _nearest(name, by_key, [*by_key][-_MAX_COMPARED:])


def with_suggestions(names: Sequence[str], known: Sequence[str]) -> str:
    """Join the first names, each with the known name that it probably stands for: 'Cat' (did you mean 'cat'?).

    Names with a suggestion are first. Without any such name, the result is that of `listed`.
    """
    by_key = {_key(each): each for each in reversed(known)}
    compared = [*by_key][-_MAX_COMPARED:]
    found = [_nearest(name, by_key, compared if index < _SUGGESTED else []) for index, name in enumerate(names)]
    hints = [
        f"{name!r} (did you mean {each!r}?)"
        for name, each in zip(names, found, strict=True)
        if each not in (None, name)
    ]
    if not hints:
        return listed(names)
    others = [repr(name) for name, each in zip(names, found, strict=True) if each in (None, name)]
    return _joined(hints + others, _SHOWN)


def compared(expected: Sequence[str], got: Sequence[str]) -> str:
    """Return "EXPECTED, got GOT" for a message about two lists, so that names which look alike are told apart."""
    found = with_suggestions(got, expected)
    is_literal = found.startswith(("'", '"')) or not all(map(_is_visible, expected))
    texts = list(map(repr, expected)) if is_literal else list(expected)
    return f"{_joined(texts, _SHOWN)}, got {found}"


def _nearest(name: str, by_key: Mapping[str, str], compared: Sequence[str]) -> str | None:
    """Return the name in `by_key` with the key of `name`, or the one of the most similar key of `compared`."""
    downloaded = _DOWNLOADED.fullmatch(name)
    key, inner = _key(name), _key(downloaded["name"] if downloaded else name)
    if found := by_key.get(key) or by_key.get(inner):
        return found
    close = difflib.get_close_matches(inner, compared, 1, _SIMILARITY)
    return by_key[close[0]] if close else None


def _is_visible(name: str) -> bool:
    """Return whether `name` has neither outer white space nor characters that are invisible or control a terminal."""
    return bool(name) and name == name.strip() and name.isprintable()


def _key(name: str) -> str:
    """Return what stays equal under changes of case, white space, punctuation and invisible characters."""
    letters = "".join(each for each in nfc(name).casefold() if each.isalnum())
    return letters or name


def _joined(texts: list[str], most: int) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
