"""Decide in which order, and in which process, test files run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

IN_ONE_PROCESS = ("tests/trainer/",)
"""Folders whose files all run in one process, because the import of TensorFlow takes seconds in each process."""


class FileScheduling(LoadScopeScheduling):
    """Distribute test files over processes; all files of a folder of `IN_ONE_PROCESS` count as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return next((folder for folder in IN_ONE_PROCESS if file.startswith(folder)), file)


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests ordered by the time limits of their files, the highest limit first.

    A long file that starts last would run alone at the end, while the other process is idle.
    """
    limits: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker else 0
        limits[item.path] = max(limit, limits.get(item.path, 0))
    return sorted(items, key=lambda item: -limits[item.path])
