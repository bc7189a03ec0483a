"""Fetches drawings of many classes into a folder laid out like the bucket: whole files, or the first rows of each.

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
from .download import Downloader, Patience, Shared, Stopped
from .fetch_request import Fetched, Order
from .formats import FORMATS, NPY

_LEAVE_WITHIN_S = 0.2  # of each thread; one that waits for a silent server is left behind: it is a daemon


def is_reachable(base_url: str = BUCKET, timeout_s: float = 5.0) -> bool:
    """True if the bucket answers with the beginning of a .npy file."""
    patience = Patience(faults=1, connect_s=timeout_s, read_s=timeout_s)
    try:
        with Downloader(patience, Shared(on_bytes=lambda _: None)) as downloader:
            return downloader.open(f"{base_url}/numpy_bitmap/bear.npy").head.startswith(b"\x93NUMPY")
    except FetchFailed:
        return False


def fetch(order: Order, *, on_bytes: Callable[[int], None], on_class: Callable[[Fetched], None]) -> None:
    """Fetches every class of `order` that is not there yet; those that can be are kept even if others fail.

    Args:
        order: What to fetch.
        on_bytes: Told how many bytes have come, on several threads.
        on_class: Told of each class when it is there, on this thread.

    Raises:
        BucketUnreachable: Nobody answers; nothing more is tried.
        FetchFailed: Classes could not be fetched (all are named, with why), or the folder is for other drawings.
    """
    failures = []
    with _alone_in(order.folder), _noting_source(order):
        for outcome in _outcomes(order, on_bytes):
            if isinstance(outcome, Fetched):
                on_class(outcome)
            elif isinstance(outcome, FetchFailed) and not isinstance(outcome, BucketUnreachable):
                failures.append(str(outcome))
            else:
                raise outcome
    if len(failures) > 1:
        failures = [f"{len(failures)} of {len(order.labels)} classes were not fetched:", *sorted(failures)]
    if failures:
        raise FetchFailed("\n  ".join(failures))


def _outcomes(order: Order, on_bytes: Callable[[int], None]) -> Iterator[Fetched | Exception]:
    """One for each class, in the order in which they end."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Fetched | Exception] = queue.SimpleQueue()
    shared = Shared(on_bytes)

    def work() -> None:
        with Downloader(order.patience, shared) as downloader:
            while not shared.stop.is_set() and not waiting.empty():
                try:
                    ended.put(ClassFile(order, waiting.get_nowait()).fetch(downloader))
                except (queue.Empty, Stopped):
                    return
                except Exception as exc:  # the main thread waits for an outcome, and raises or reports this one
                    ended.put(exc)

    for label in order.labels:
        waiting.put(label)
    # Daemons, not a pool: Ctrl-C must not wait for them, and what they leave behind is a NAME.part to go on from.
    threads = [
        threading.Thread(target=work, name="fetch", daemon=True) for _ in range(min(order.jobs, len(order.labels)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in order.labels:
            yield ended.get()
    finally:
        shared.stop.set()
        for thread in threads:
            thread.join(_LEAVE_WITHIN_S)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps two fetches from writing the same partial files; the lock goes with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fetching").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise FetchFailed(f"{folder}: another fetch is writing there; wait until it has ended") from exc
        yield


@contextmanager
def _noting_source(order: Order) -> Iterator[None]:
    """Keeps SOURCE.txt true at every moment; it says nothing of drawings that were not fetched."""
    note = order.folder / SOURCE_NOTE
    said = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else ""
    if said and not said.startswith(SOURCE):
        raise FetchFailed(f"{order.folder}: its drawings are {said}; fetch into another folder")
    if not said and _has_drawings(order.folder):
        yield
        return
    write_source(order.folder, SOURCE)
    try:
        yield
    finally:
        if _has_drawings(order.folder):
            write_source(order.folder, SOURCE + _which(order))
        else:
            note.unlink(missing_ok=True)


def _has_drawings(folder: Path) -> bool:
    folders = (folder, *(folder / form.folder for form in FORMATS.values()))
    return any(
        file.suffix in {form.suffix for form in FORMATS.values()} for each in folders for file in each.glob("*.*")
    )


def _which(order: Order) -> str:
    """Which drawings of each class there are now; nothing if that would take reading through them."""
    if any((order.folder / form.folder).is_dir() for form in FORMATS.values() if form is not NPY):
        return ""
    try:
        rows = {path.stem: len(read_bitmaps(path)) for path in (order.folder / NPY.folder).glob("*.npy")}
    except FileRefused:
        return ""
    if not rows:  # drawings beside numpy_bitmap/ are not ours
        return ""
    if all(label in order.catalogue and order.catalogue[label].drawings == rows[label] for label in rows):
        return ", all of each class"
    fewest, most = min(rows.values()), max(rows.values())
    return f", the first {fewest:,} " + (f"to {most:,} " if most > fewest else "") + "of each class"
