"""Google's storage bucket of drawings: its address, and the choice of its classes.

This module contains no HTTP code: `download.py` fetches one file, and `fetching.py` fetches many files.
"""

import difflib

from ..catalogue import Catalogue
from ..errors import FetchFailed

BUCKET = "https://storage.googleapis.com/quickdraw_dataset/full"
"""The address is stated in https://github.com/googlecreativelab/quickdraw-dataset#get-the-data"""

SOURCE = "Quick, Draw! drawings by Google (CC BY 4.0)"


def known_classes(names: str, catalogue: Catalogue) -> tuple[str, ...]:
    """Return the class names in `names`, split at commas and without repetitions; `all` means the whole catalogue.

    Raises:
        FetchFailed: A name is not in the catalogue; the message suggests similar names.
    """
    if names.strip() == "all":
        return tuple(catalogue)
    labels = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in labels if name not in catalogue]
    if unknown or not labels:
        problems = "; ".join(_suggest(name, catalogue) for name in unknown) or "no class named"
        raise FetchFailed(f"{problems} (`all` stands for all {len(catalogue)} classes)")
    return labels


def _suggest(name: str, catalogue: Catalogue) -> str:
    by_lower = {known.lower(): known for known in catalogue}
    similar = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower)]
    return f"no class is called {name!r}" + (f"; did you mean {' or '.join(similar)}?" if similar else "")
