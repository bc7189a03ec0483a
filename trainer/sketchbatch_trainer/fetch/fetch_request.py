"""Define which drawings to fetch, their paths, addresses and sizes, and the result for each class."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ..catalogue import Catalogue, read_catalogue
from .bucket import BUCKET
from .download import RetrySettings
from .formats import NPY, Format


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """Which drawings to fetch, and into which folder."""

    labels: tuple[str, ...]
    """Names of the classes to fetch; `catalogue` contains each of them."""
    folder: Path
    """Target folder, laid out like Google's storage bucket: FOLDER/numpy_bitmap/NAME.npy and so on."""
    rows: int | None
    """Number of drawings to fetch of each class, counted from the first drawing; None = whole files."""
    form: Format = NPY
    base_url: str = BUCKET
    jobs: int = 4
    """Number of files that are downloaded concurrently."""
    retry: RetrySettings = field(default_factory=RetrySettings)
    catalogue: Catalogue = field(default_factory=read_catalogue)

    def size_bytes_of(self, label: str) -> int:
        """Estimate the size of the file of one class; for npy the estimate is exact except for the header."""
        rows = self.rows_of(label)
        return (self.catalogue[label].drawings if rows is None else rows) * self.form.row_bytes

    def rows_of(self, label: str) -> int | None:
        """Return how many rows of one class to fetch; return None if the whole file is fetched."""
        return None if self.rows is None or self.rows >= self.catalogue[label].drawings else self.rows

    def path(self, label: str) -> Path:
        """Return the target path of the file of one class."""
        return self.folder / self.form.folder / f"{label}{self.form.suffix}"

    def url(self, label: str) -> str:
        """Return the address of the file of one class in the bucket."""
        return f"{self.base_url}/{self.form.folder}/{quote(label)}{self.form.suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """The result for one class after its file is complete."""

    label: str
    rows: int
    """Number of rows in the file: the requested rows, more if the file had more before, or all rows of the class."""
    received_bytes: int
    """Number of downloaded bytes; 0 = the file was complete before the fetch."""
