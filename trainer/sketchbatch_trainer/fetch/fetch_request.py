"""Says what to fetch, and how much of it that is."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from .bucket import BUCKET, Catalogue, read_catalogue
from .download import Patience
from .formats import NPY, Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to fetch, and where to."""

    labels: tuple[str, ...]
    """Classes of `catalogue`."""
    folder: Path
    """Laid out like the bucket: FOLDER/numpy_bitmap/NAME.npy and so on."""
    rows: int | None
    """Of each class, from the first; None = whole files."""
    form: Format = NPY
    base_url: str = BUCKET
    jobs: int = 4
    """Files at a time."""
    patience: Patience = field(default_factory=Patience)
    catalogue: Catalogue = field(default_factory=read_catalogue)

    @property
    def size_bytes(self) -> int:
        """About how much all of it is; exact for npy, but for the headers."""
        return sum(map(self.size_bytes_of, self.labels))

    def size_bytes_of(self, label: str) -> int:
        """About how much one class is."""
        rows = self.rows_of(label)
        return (self.catalogue[label].drawings if rows is None else rows) * self.form.row_bytes

    def rows_of(self, label: str) -> int | None:
        """As `rows`, but None also where the class has no more than that."""
        return None if self.rows is None or self.rows >= self.catalogue[label].drawings else self.rows

    def path(self, label: str) -> Path:
        """Where the file of a class goes."""
        return self.folder / self.form.folder / f"{label}{self.form.suffix}"

    def url(self, label: str) -> str:
        """Where the file of a class comes from."""
        return f"{self.base_url}/{self.form.folder}/{quote(label)}{self.form.suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A class that is there now."""

    label: str
    rows: int
    """As many as were asked for, or more if more were there, or all there are."""
    received_bytes: int
    """0 = it was there already."""
