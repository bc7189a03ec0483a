"""Says beside an output what it was made from, so that a finished job is recognised, and shards find one another."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import replacing
from .plan import Plan, whole_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A finished job."""

    plan: Plan
    digests: dict[int, int]
    """What the rows of each part were made from."""
    rows: int
    """Rows written."""
    rejected: int
    """Rows that are no drawing."""
    output_bytes: int
    """The output's size, by which it is recognised."""

    def write(self, path: Path) -> None:
        """To a path that becomes `path_beside` its output only when that is in its place."""
        contents = {
            "plan": self.plan.to_json(),
            "digests": self.digests,
            "rows": self.rows,
            "rejected": self.rejected,
            "output_bytes": self.output_bytes,
        }
        path.write_bytes(_encoded(contents))

    @classmethod
    def read(cls, output: Path) -> "Manifest | None":
        """Of `output`, if it is there and as large as it was; None otherwise, and where there is no manifest."""
        try:
            found = read_json(path_beside(output))
            manifest = cls(
                plan=Plan.from_json(found["plan"]),
                digests={int(part): whole_number(digest) for part, digest in found["digests"].items()},
                rows=whole_number(found["rows"]),
                rejected=whole_number(found["rejected"]),
                output_bytes=whole_number(found["output_bytes"]),
            )
            return manifest if output.stat().st_size == manifest.output_bytes else None
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            return None


def path_beside(output: Path) -> Path:
    """Where the manifest of `output` is."""
    return output.with_name(f"{output.name}.manifest.json")


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError where there is no JSON object in it."""
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as exc:
        raise ValueError(f"{path}: nested too deep") from exc
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return found


def write_json(path: Path, contents: dict[str, Any]) -> None:
    """Whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(_encoded(contents))


def _encoded(contents: dict[str, Any]) -> bytes:
    text = json.dumps(contents, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="surrogatepass")  # names of files need be no UTF-8; `json` reads it so
