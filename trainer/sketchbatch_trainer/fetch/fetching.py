"""Fetch drawings of many classes into a folder laid out like Google's storage bucket: whole files, or first rows.

Flow: `fetch` -> a few threads -> for each class `ClassFile` (class_file.py) -> `Downloader` (download.py).
"""

import fcntl
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sketchbatch_client.drawings.readers import SOURCE_NOTE, read_bitmaps
from sketchbatch_client.errors import FileRefused

from ..dataset import write_source
from ..errors import BucketUnreachable, FetchFailed
from .bucket import BUCKET, SOURCE
from .class_file import ClassFile
from .download import Downloader, FetchState, FetchStopped, RetrySettings
from .fetch_request import FetchRequest, FetchResult
from .formats import FORMATS, NPY

_JOIN_TIMEOUT_S = 0.2  # wait for one thread; a daemon thread that still waits for a server ends with the process


def is_reachable(base_url: str = BUCKET, timeout_s: float = 5.0) -> bool:
    """Return True if the bucket responds with the beginning of a .npy file."""
    retry = RetrySettings(max_faults=1, connect_timeout_s=timeout_s, read_timeout_s=timeout_s)
    try:
        with Downloader(retry, FetchState(on_bytes=lambda _: None)) as downloader:
            return downloader.open(f"{base_url}/numpy_bitmap/bear.npy").head.startswith(b"\x93NUMPY")
    except FetchFailed:
        return False


def fetch(request: FetchRequest, *, on_bytes: Callable[[int], None], on_class: Callable[[FetchResult], None]) -> None:
    """Fetch every missing class of `request`; the failure of one class does not stop the others.

    Several threads call `on_bytes` with numbers of received bytes. The caller's thread calls `on_class` for each file.

    Raises:
        BucketUnreachable: The bucket accepts no connection; the remaining classes are not tried.
        FetchFailed: Some classes failed (the message lists each with its reason), or the folder has other drawings.
    """
    failures = []
    with _locked(request.folder), _source_note(request):
        for outcome in _outcomes(request, on_bytes):
            if isinstance(outcome, FetchResult):
                on_class(outcome)
            elif isinstance(outcome, FetchFailed) and not isinstance(outcome, BucketUnreachable):
                failures.append(str(outcome))
            else:
                raise outcome
    if len(failures) > 1:
        failures = [f"{len(failures)} of {len(request.labels)} classes were not fetched:", *sorted(failures)]
    if failures:
        raise FetchFailed("\n  ".join(failures))


def _outcomes(request: FetchRequest, on_bytes: Callable[[int], None]) -> Iterator[FetchResult | Exception]:
    """Yield the result or the error of each class, in order of completion."""
    pending: queue.SimpleQueue[str] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[FetchResult | Exception] = queue.SimpleQueue()
    state = FetchState(on_bytes)

    def fetch_pending() -> None:
        with Downloader(request.retry, state) as downloader:
            while not state.stop.is_set() and not pending.empty():
                try:
                    outcomes.put(ClassFile(request, pending.get_nowait()).fetch(downloader))
                except (queue.Empty, FetchStopped):
                    return
                except Exception as exc:  # the main thread waits for one outcome per class and handles the error
                    outcomes.put(exc)

    for label in request.labels:
        pending.put(label)
    # Daemon threads instead of a pool, because Ctrl-C must not wait for downloads; each NAME.part can be resumed.
    threads = [
        threading.Thread(target=fetch_pending, name="fetch", daemon=True)
        for _ in range(min(request.jobs, len(request.labels)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in request.labels:
            yield outcomes.get()
    finally:
        state.stop.set()
        for thread in threads:
            thread.join(_JOIN_TIMEOUT_S)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder, so that two fetches never write the same partial file; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fetching").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise FetchFailed(f"{folder}: another fetch writes into this folder; wait until it has ended") from exc
        yield


@contextmanager
def _source_note(request: FetchRequest) -> Iterator[None]:
    """Keep SOURCE.txt correct at every moment; do not write it if the folder has drawings of unknown origin."""
    path = request.folder / SOURCE_NOTE
    note = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if note and not note.startswith(SOURCE):
        raise FetchFailed(f"{request.folder}: holds other drawings ({note}); fetch into another folder")
    if not note and _has_drawings(request.folder):
        yield
        return
    write_source(request.folder, SOURCE)
    try:
        yield
    finally:
        if _has_drawings(request.folder):
            write_source(request.folder, SOURCE + _describe_rows(request))
        else:
            path.unlink(missing_ok=True)


def _has_drawings(folder: Path) -> bool:
    folders = (folder, *(folder / form.folder for form in FORMATS.values()))
    suffixes = {form.suffix for form in FORMATS.values()}
    return any(file.suffix in suffixes for each in folders for file in each.glob("*.*"))


def _describe_rows(request: FetchRequest) -> str:
    """Return a text on the number of drawings per class; empty if counting requires reading whole files."""
    has_strokes = any((request.folder / form.folder).is_dir() for form in FORMATS.values() if form is not NPY)
    try:
        rows = {path.stem: len(read_bitmaps(path)) for path in (request.folder / NPY.folder).glob("*.npy")}
    except FileRefused:
        return ""
    if has_strokes or not rows:  # no rows: all drawings are outside numpy_bitmap/ and were not fetched
        return ""
    if all(label in request.catalogue and request.catalogue[label].drawings == rows[label] for label in rows):
        return ", all of each class"
    fewest, most = min(rows.values()), max(rows.values())
    return f", the first {fewest:,} " + (f"to {most:,} " if most > fewest else "") + "of each class"
