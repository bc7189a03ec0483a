"""Check that a model file may replace the file that is served in its place.

Clients may keep the labels of a version, because the Open Inference Protocol names the version of a response only. So
a file with other labels needs another version number. The input of every served file is the same, as `artifact` checks.
"""

import shlex

from ..errors import ModelRefused
from .registry import ServedModel

Labels = tuple[str, ...]


def check_replacement(new: ServedModel, old: ServedModel, *, default_model: str, allows_label_changes: bool) -> None:
    """Raise ModelRefused if the file of `new` may not replace the file of `old`.

    The name of the default model must stay, because requests without a name would silently use another model. The
    labels of a version must stay in their order, unless `allows_label_changes` is true.
    """
    path = new.file and new.file.path
    if old.name == default_model != new.name:
        raise ModelRefused(
            f"{path}: must be named {default_model!r} as before, got {new.name!r}; train or adapt it with "
            f"`--name {shlex.quote(default_model)}`, or restart the service"
        )
    is_same_version = (old.name, old.version) == (new.name, new.version)
    difference = _difference(old.artifact.labels, new.artifact.labels)
    if is_same_version and difference and not allows_label_changes:
        raise ModelRefused(
            f"{path}: must have the labels of the served file of {old.name!r} version {old.version}: {difference}; "
            "give the file a new version number, or start the service with --allow-label-changes"
        )


def _difference(old: Labels, new: Labels) -> str:
    """Return the number of labels or the first label that differs; "" if all labels and their order are equal."""
    if len(old) != len(new):
        return f"{len(old)} labels, got {len(new)}"
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            order = " (the same labels in another order)" if set(old) == set(new) else ""
            return f"label {index} {before!r}, got {after!r}{order}"
    return ""
