"""Describe in one line the installed versions of a distribution, its libraries and Python.

Each command prints the line for `--version`, so that a bug report can quote it.
"""

import platform
from importlib.metadata import PackageNotFoundError, version


def describe(command: str, distribution: str, *libraries: str) -> str:
    """Return the line for `command --version`: the versions of `distribution`, of its `libraries` and of Python.

    Several names with a slash between them, such as "onnxruntime/onnxruntime-gpu", are one library: the first
    installed distribution counts. A library without any installed distribution is listed as `missing`.
    """
    found = [_installed(names.split("/")) for names in libraries]
    return f"{command} {version(distribution)} ({', '.join([*found, f'Python {platform.python_version()}'])})"


def _installed(names: list[str]) -> str:
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"{names[0]} missing"
