"""Store next to an output how it was made, so that a later run detects a finished job and shards can be merged."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..drawings.passed_over import PassedOverList
from ..errors import JobRefused
from ..strict_json import encode
from .plan import PartDigest, Plan, whole_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """The rows of an output that one run wrote, before later runs of `score --append` added more."""

    plan: Plan
    digests: dict[int, PartDigest]  # by number of the part

    def to_json(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return the JSON object, without labels if they are `labels`, of which there may be ten thousand."""
        plan = self.plan.to_json()
        return {"plan": plan | {"labels": []} if self.plan.labels == labels else plan, "digests": self.digests}

    @classmethod
    def from_json(cls, found: dict[str, Any], labels: tuple[str, ...]) -> "Addition":
        """Read what `to_json` returned. Raises ValueError or KeyError for another object."""
        plan = Plan.from_json(found["plan"])
        return cls(plan=plan if plan.labels else replace(plan, labels=labels), digests=_digests(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a manifest: how a finished output was made, and its totals."""

    plan: Plan
    digests: dict[int, PartDigest]  # by number of the part
    rows: int  # number of rows written, without rejected rows
    rejected: int
    unread_metadata: int = 0  # number of rows with metadata that cannot be read
    unlabelled: int = 0  # number of the rows written whose label is empty, see `Plan.reject_below`
    passed_over: dict[str, Any] = field(default_factory=dict)
    """`PassedOverList.to_json` of the files that were not read."""
    ignores_others: bool = False  # whether the user accepted that files which may have drawings were not read
    has_key_ids: bool | None = None  # whether the output has a column for keys; None = unknown
    earlier: tuple[Addition, ...] = ()  # for an output of `score --append`: the runs before that of `plan`
    output_bytes: int  # size of the output; an output file of another size does not belong to this manifest

    def write(self, path: Path) -> None:
        """Write to `path`, which the caller moves to `manifest_path` once the output is in its place."""
        earlier = [each.to_json(self.plan.labels) for each in self.earlier]
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        path.write_bytes(_encoded({**fields, "plan": self.plan.to_json(), "earlier": earlier}))

    @property
    def additions(self) -> tuple[Addition, ...]:
        """The runs that wrote the rows of the output, in the order of the rows."""
        return (*self.earlier, Addition(plan=self.plan, digests=self.digests))

    @property
    def not_read(self) -> PassedOverList:
        """The files that were not read."""
        return PassedOverList.from_json(self.passed_over)

    @classmethod
    def read(cls, output: Path) -> "Manifest | None":
        """Return the manifest of a finished output.

        Return None if the manifest is missing, or if the output is missing or not `output_bytes` large.

        Raises JobRefused if the manifest is damaged, or if another version of the client wrote it.
        """
        path = manifest_path(output)
        try:
            found = read_json(path)
            plan = Plan.from_json(found["plan"])
            manifest = cls(
                plan=plan,
                digests=_digests(found),
                rows=whole_number(found["rows"]),
                rejected=whole_number(found["rejected"]),
                unread_metadata=whole_number(found.get("unread_metadata", 0)),  # 0 in older manifests
                unlabelled=whole_number(found.get("unlabelled", 0)),
                passed_over=PassedOverList.from_json(found.get("passed_over", {})).to_json(),
                ignores_others=found.get("ignores_others") is True,
                has_key_ids=found.get("has_key_ids"),
                earlier=tuple(Addition.from_json(each, plan.labels) for each in found.get("earlier", [])),
                output_bytes=whole_number(found["output_bytes"]),
            )
            return manifest if output.stat().st_size == manifest.output_bytes else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError, TypeError) as exc:
            raise unreadable(path, exc) from exc


def _digests(found: dict[str, Any]) -> dict[int, PartDigest]:
    """Read the part digests; older clients wrote one number for a part, which is its digest if it has one segment."""
    found_digests = {int(part): each if isinstance(each, list) else [each] for part, each in found["digests"].items()}
    return {part: tuple(map(whole_number, each)) for part, each in found_digests.items()}


def manifest_path(output: Path) -> Path:
    """Return the path of the manifest of an output."""
    return output.with_name(f"{output.name}.manifest.json")


def rejects_path(output: Path) -> Path:
    """Return the path of the rejects file of an output; it exists only if a row was rejected."""
    return output.with_name(f"{output.name}.rejects.jsonl")


def unreadable(path: Path, error: Exception) -> JobRefused:
    """Return the error for a manifest that this version of the client cannot read."""
    reason = str(error) if isinstance(error, ValueError) else f"not the manifest of a job: {error!r}"
    remedy = "finish the job with the version of sketchbatch that began it, or discard it with score --restart"
    return JobRefused(f"{path}: cannot be read: {reason.partition(chr(10))[0]:.200}; {remedy}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if the file contains no object."""
    if path.exists() and not path.is_file():  # the opening of a pipe may wait for ever
        raise ValueError("expected a file, got a folder, pipe or device")
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as exc:
        raise ValueError(f"{path}: nested too deep") from exc
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return found


def write_json(path: Path, contents: dict[str, Any]) -> None:
    """Write a JSON object; on failure the file keeps its earlier contents."""
    with replacing(path) as partial:
        partial.write_bytes(_encoded(contents))


def _encoded(contents: dict[str, Any]) -> bytes:
    text = encode(contents, indent=1) + "\n"
    return text.encode(errors="surrogatepass")  # file names need not be UTF-8; `json` decodes them the same way
