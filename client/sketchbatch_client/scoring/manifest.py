"""Store next to an output how it was made, so that a later run detects a finished job and shards can be merged."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..errors import JobRefused
from ..strict_json import encode
from .plan import Plan, whole_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a manifest: how a finished output was made, and its totals."""

    plan: Plan
    digests: dict[int, int]  # part digest by number of the part
    rows: int  # number of rows written, without rejected rows
    rejected: int
    unread_metadata: int = 0  # number of rows with metadata that cannot be read
    passed_over: dict[str, Any] = field(default_factory=dict)
    """`PassedOverList.to_json` of the files that were not read."""
    output_bytes: int  # size of the output; an output file of another size does not belong to this manifest

    def write(self, path: Path) -> None:
        """Write to `path`, which the caller moves to `manifest_path` once the output is in its place."""
        path.write_bytes(_encoded({**asdict(self), "plan": self.plan.to_json()}))

    @classmethod
    def read(cls, output: Path) -> "Manifest | None":
        """Return the manifest of a finished output.

        Return None if the manifest is missing, or if the output is missing or not `output_bytes` large.

        Raises JobRefused if the manifest is damaged, or if another version of the client wrote it.
        """
        path = manifest_path(output)
        try:
            found = read_json(path)
            manifest = cls(
                plan=Plan.from_json(found["plan"]),
                digests={int(part): whole_number(digest) for part, digest in found["digests"].items()},
                rows=whole_number(found["rows"]),
                rejected=whole_number(found["rejected"]),
                unread_metadata=whole_number(found.get("unread_metadata", 0)),  # older manifests have neither
                passed_over=found.get("passed_over", {}),
                output_bytes=whole_number(found["output_bytes"]),
            )
            return manifest if output.stat().st_size == manifest.output_bytes else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError) as exc:
            raise unreadable(path, exc) from exc


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
