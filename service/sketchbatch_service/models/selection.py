"""Select the files of a repository that the version policy includes; the other files are neither read nor loaded.

Flow: the versions of each model, newest first -> the rule of the model includes or excludes a version -> an included
file is passed to a function that loads it, and the number of versions that this function serves decides about the next
older version. So a refused version takes no place among the latest versions.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from ..version_policy import VersionPolicy, VersionRule
from .registry import ExcludedFile
from .repository import ModelFile

_MAX_LISTED = 10  # versions or names in an error message


def select(files: Iterable[ModelFile], policy: VersionPolicy, serve: Callable[[ModelFile], bool]) -> list[ExcludedFile]:
    """Pass the included files to `serve`, by name and newest version first, and return the excluded files.

    `serve` returns whether the version of the file is served. A single file without a repository is always included.
    """
    excluded: list[ExcludedFile] = []
    for name, versions in groupby(sorted(files, key=_newest_first), key=lambda file: file.name):
        rule, served = policy.rule(name), 0
        for file in versions:
            if not name or rule.includes(int(file.version), newer=served):
                served += serve(file)
            else:
                excluded.append(ExcludedFile(name, file.version, file.path, rule.text))
    return excluded


def unmet(files: Iterable[ModelFile], policy: VersionPolicy) -> Iterator[str]:
    """Yield one line for each model or version that the policy names and that no file has; none for a single file."""
    by_name: dict[str, list[int]] = {}
    for file in sorted(files, key=_newest_first):
        if not file.name:
            return
        by_name.setdefault(file.name, []).append(int(file.version))
    for name, versions in by_name.items():
        rule = policy.rule(name)
        if missing := sorted((rule.named or set()).difference(versions)):
            expected = f"must name versions of {name!r} that exist"
            yield f"{_setting(rule)} {expected}, got {_listed(missing)}; there are: {_listed(versions)}"
    for name, rule in policy.by_model.items():
        if name not in by_name:
            yield f"{_setting(rule)} must name a model that exists, got {name!r}; there are: {_listed(by_name)}"


def _newest_first(file: ModelFile) -> tuple[str, int, str]:
    return file.name, -int(file.version or 0), file.version


def _setting(rule: VersionRule) -> str:
    return f"--versions {rule.text}"


def _listed(values: Iterable[object]) -> str:
    texts = list(map(str, values))
    rest = len(texts) - _MAX_LISTED
    return ", ".join(texts[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
