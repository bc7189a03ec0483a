"""Test the command `fetch` with a local HTTP server that behaves like Google's bucket, with and without faults."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bucket_server import Bucket, serving
from sketchbatch_client.drawings.readers import labelled_files, source_of
from sketchbatch_trainer.catalogue import ExpectedNpy, read_catalogue
from sketchbatch_trainer.cli import app
from sketchbatch_trainer.errors import BucketUnreachable, FetchFailed
from sketchbatch_trainer.fetch.bucket import SOURCE, known_classes
from sketchbatch_trainer.fetch.download import HEAD_BYTES, OVERLAP_BYTES, Downloader, FetchState, RetrySettings
from sketchbatch_trainer.fetch.fetch_request import FetchRequest, FetchResult
from sketchbatch_trainer.fetch.fetching import fetch, is_reachable
from sketchbatch_trainer.fetch.formats import FORMATS
from sketchbatch_trainer.selection import cache_folder
from typer.testing import CliRunner

ROWS = 400
DRAWINGS = np.random.default_rng(5).integers(0, 256, (ROWS, 784), np.uint8)
NOWHERE = "http://127.0.0.1:1"
BEAR = "numpy_bitmap/bear.npy"
QUICK_RETRY = RetrySettings(first_wait_s=0.001)


def google_npy(array: np.ndarray) -> bytes:
    """Return an .npy file with a header of 80 bytes, like the headers of the files in the bucket."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (70).to_bytes(2, "little") + head.ljust(69) + b"\n" + array.tobytes()


def json_line(number: int) -> bytes:
    """Return a line with a drawing of about 1,500 bytes.

    The drawing is longer than the mean drawing of Google's simplified files. So the first request for a number of
    drawings, whose size is estimated from the mean, receives too few bytes.
    """
    return json.dumps({"key_id": str(number), "drawing": [[[number] * 250, [7] * 250]]}).encode() + b"\n"


def record(number: int) -> bytes:
    """Return a binary drawing of about 500 bytes."""
    strokes = [bytes([number % 256]) * 240, b"\x07"]
    body = b"".join(struct.pack("<H", len(points)) + points + points for points in strokes)
    return struct.pack("<Q2sbIH", number, b"CH", number % 2, 1_490_000_000, len(strokes)) + body


NPY = google_npy(DRAWINGS)
LINES = [json_line(number) for number in range(ROWS)]
RECORDS = [record(number) for number in range(ROWS)]
EXPECTED = ExpectedNpy(len(NPY), ROWS, hashlib.sha256(NPY).hexdigest())
STROKES = pytest.mark.parametrize(
    ("form", "drawings"), [("simplified", LINES), ("raw", LINES), ("binary", RECORDS)], ids=["simplified", "raw", "bin"]
)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """Serve a bucket with files of four classes in every format; all classes have the same drawings."""
    with serving() as served:
        for label in ("bear", "cat", "dog", "The Eiffel Tower"):
            served.files[f"numpy_bitmap/{label}.npy"] = NPY
            served.files[f"simplified/{label}.ndjson"] = served.files[f"raw/{label}.ndjson"] = b"".join(LINES)
            served.files[f"binary/{label}.bin"] = b"".join(RECORDS)
        yield served


@pytest.fixture
def request_for(bucket, tmp_path):
    """Return a function that makes a fetch request to the bucket, by default for the class `bear`.

    The catalogue of the request has the sizes and digests of the files in the bucket.
    """

    def make(rows: int | None, *labels: str, form: str = "npy", **changes: object) -> FetchRequest:
        defaults = {
            "base_url": bucket.url,
            "folder": tmp_path / "d",
            "retry": QUICK_RETRY,
            "catalogue": dict.fromkeys(("bear", "cat", "dog", "The Eiffel Tower"), EXPECTED),
        }
        return FetchRequest(labels=labels or ("bear",), rows=rows, form=FORMATS[form], **(defaults | changes))

    return make


def fetched(request: FetchRequest) -> dict[str, FetchResult]:
    """Fetch files from the local server; return the result of each class."""
    results: list[FetchResult] = []
    received: list[int] = []
    fetch(request, on_bytes=received.append, on_class=results.append)
    assert sum(received) == sum(result.received_bytes for result in results)
    return {result.label: result for result in results}


def content(request: FetchRequest) -> bytes:
    """Return the contents of the fetched file of the class `bear`."""
    return request.path("bear").read_bytes()


def partial(request: FetchRequest) -> Path:
    """Return the path of the partial file of the class `bear`, and create its folder."""
    path = request.path("bear").with_name("bear.npy.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def files_in(folder: Path) -> list[str]:
    """List all files except hidden ones."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("[!.]*") if file.is_file())


class TestFirstRows:
    @pytest.mark.parametrize("ignores_range", [False, True])
    @pytest.mark.parametrize("rows", [1, 7, ROWS - 1])
    def test_the_first_rows_of_a_npy_are_fetched_exactly(self, bucket, request_for, rows, ignores_range):
        """A fetch of the first rows of an .npy file writes a valid .npy file with exactly these rows.

        The file is the same if the server ignores the requested range and sends the whole file.
        """
        bucket.ignores_range = ignores_range
        assert fetched(request_for(rows))["bear"].rows == rows
        path = labelled_files(request_for(rows).folder)["bear"]
        assert np.array_equal(np.load(path), DRAWINGS[:rows])

    def test_no_unnecessary_byte_is_requested(self, bucket, request_for):
        """A fetch sends two requests: for the first bytes of the file, and for the missing rows.

        The second range begins a few bytes before the end of the first range.
        """
        fetched(request_for(100))
        assert bucket.ranges_of(BEAR) == [
            (0, HEAD_BYTES - 1),
            (HEAD_BYTES - OVERLAP_BYTES, 80 + 100 * 784 - 1),
        ]

    @pytest.mark.parametrize("header_bytes", [80, 128])
    def test_npy_headers_of_any_length_are_parsed(self, bucket, request_for, header_bytes):
        """Headers of .npy files are parsed, whatever their length is, and even if Python 2 wrote them."""
        head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({ROWS}L, 784L), }}".encode()
        magic = b"\x93NUMPY\x01\x00" + (header_bytes - 10).to_bytes(2, "little")
        bucket.files[BEAR] = magic + head.ljust(header_bytes - 11) + b"\n" + DRAWINGS.tobytes()
        fetched(request_for(30))
        assert np.array_equal(np.load(request_for(30).path("bear")), DRAWINGS[:30])

    @pytest.mark.parametrize("rows", [1, 33, ROWS - 1])
    @STROKES
    def test_the_first_strokes_are_whole_drawings(self, request_for, form, drawings, rows):
        """A fetch of the first drawings of a file of strokes writes exactly these drawings.

        If a response ends within a drawing, either the rest of this drawing is fetched, or the incomplete drawing is
        removed.
        """
        assert fetched(request_for(rows, form=form))["bear"].rows == rows
        assert content(request_for(rows, form=form)) == b"".join(drawings[:rows])

    def test_a_stroke_file_with_fewer_drawings_than_expected_is_complete(self, bucket, request_for):
        """A file of strokes is complete even if it has fewer drawings than were requested.

        Google publishes the numbers of drawings of .npy files only, so more drawings than exist may be requested. The
        last line may have no newline.
        """
        bucket.files["simplified/bear.ndjson"] = b"".join(LINES[:50])[:-1]
        assert fetched(request_for(60, form="simplified"))["bear"].rows == 50

    def test_spaces_in_names_are_quoted(self, request_for):
        """A space in a name is sent as %20, as the bucket expects."""
        assert fetched(request_for(1, "The Eiffel Tower"))["The Eiffel Tower"].rows == 1
        assert request_for(1).url("The Eiffel Tower").endswith("/The%20Eiffel%20Tower.npy")


class TestWholeFiles:
    @pytest.mark.parametrize("rows", [None, ROWS, ROWS + 1])
    def test_all_rows_are_the_bucket_file_byte_for_byte(self, request_for, rows):
        """If all rows of a class or more are requested, the fetched file is the bucket's file byte for byte."""
        assert fetched(request_for(rows))["bear"].rows == ROWS
        assert content(request_for(rows)) == NPY

    @STROKES
    def test_whole_stroke_files_are_the_bucket_file_byte_for_byte(self, request_for, form, drawings):
        """If all drawings are requested, the fetched file of each stroke format is the bucket's file byte for byte."""
        assert fetched(request_for(None, form=form))["bear"].rows == ROWS
        assert content(request_for(None, form=form)) == b"".join(drawings)

    def test_a_wrong_digest_is_refused_and_the_download_deleted(self, bucket, request_for):
        """After a wrong digest, the download is deleted, and the error has the expected and the actual digest."""
        changed = NPY[:-1] + b"\x00"
        bucket.files[BEAR] = changed
        got = hashlib.sha256(changed).hexdigest()
        with pytest.raises(FetchFailed, match=f"expected sha256 {EXPECTED.sha256}, got {got}"):
            fetched(request_for(None))
        assert files_in(request_for(None).folder) == []

    def test_a_wrong_size_is_refused_before_the_download(self, bucket, request_for):
        """A file of a wrong size is refused after the first request, before the rest of the file is downloaded.

        The download of a real file would be about 115 MB.
        """
        bucket.files[BEAR] = google_npy(DRAWINGS[:-1])
        with pytest.raises(FetchFailed, match=f"expected {len(NPY)} bytes, the server has {len(NPY) - 784}"):
            fetched(request_for(None))
        assert len(bucket.requests) == 1

    def test_strokes_are_verified_against_the_digest_of_the_bucket(self, bucket, request_for):
        """A file of strokes is refused if its MD5 digest differs from the digest that the bucket sends.

        Unlike for .npy files, Google publishes no other digests of files of strokes.
        """
        bucket.md5["binary/bear.bin"] = "AAAAAAAAAAAAAAAAAAAAAA=="
        with pytest.raises(FetchFailed, match=r"expected md5 A+==, got "):
            fetched(request_for(None, form="binary"))
        assert files_in(request_for(None).folder) == []

    @pytest.mark.parametrize("path", ["simplified/bear.ndjson", "binary/bear.bin"])
    def test_a_stroke_file_that_ends_within_a_drawing_is_refused(self, bucket, request_for, path):
        """A stroke file that ends within a drawing is refused, because the bucket's file itself must be damaged."""
        bucket.files[path] = bucket.files[path][:-9]
        with pytest.raises(FetchFailed, match="got one cut off at byte"):
            fetched(request_for(None, form=path.split("/")[0]))


class TestExistingFiles:
    @pytest.mark.parametrize("form", ["npy", "simplified", "binary"])
    def test_enough_rows_need_no_request(self, request_for, form):
        """If a file has enough rows, a second fetch of the same rows or of fewer rows sends no request."""
        fetched(request_for(50, form=form))
        for rows in (50, 20):
            again = fetched(request_for(rows, form=form, base_url=NOWHERE))
            assert again["bear"].rows >= rows
            assert again["bear"].received_bytes == 0

    def test_a_whole_npy_is_verified_again(self, request_for):
        """A second fetch verifies the digest of a whole .npy file, and fetches the file again only if it is damaged."""
        fetched(request_for(None))
        assert fetched(request_for(None, base_url=NOWHERE))["bear"].received_bytes == 0
        request_for(None).path("bear").write_bytes(NPY[:-1] + b"\x00")
        assert fetched(request_for(None))["bear"].received_bytes == len(NPY)
        assert content(request_for(None)) == NPY

    def test_whole_strokes_are_recognised_by_their_size(self, bucket, request_for):
        """A complete stroke file is recognised by its size with one short request, and does not change."""
        fetched(request_for(None, form="raw"))
        bucket.requests.clear()
        path = request_for(None, form="raw").path("bear")
        inode = path.stat().st_ino
        assert fetched(request_for(None, form="raw"))["bear"].received_bytes == 0
        assert len(bucket.requests) == 1
        assert path.stat().st_ino == inode

    @pytest.mark.parametrize(("more", "stop"), [(300, 80 + 300 * 784), (None, len(NPY))])
    def test_more_rows_request_only_the_missing_ones(self, bucket, request_for, more, stop):
        """If more rows are requested than before, only the missing bytes and a short overlap are fetched.

        The file then has the contents of Google's file.
        """
        fetched(request_for(100))
        bucket.requests.clear()
        fetched(request_for(more))
        assert bucket.ranges_of(BEAR)[1:] == [(80 + 100 * 784 - OVERLAP_BYTES, stop - 1)]
        assert np.array_equal(np.load(request_for(more).path("bear")), DRAWINGS[:more])

    def test_more_strokes_start_at_the_end_of_the_last_whole_one(self, bucket, request_for):
        """If more drawings are requested, the fetch continues at the end of the last complete drawing in the file.

        Only the bytes of a short overlap are requested twice.
        """
        fetched(request_for(100, form="binary"))
        bucket.requests.clear()
        fetched(request_for(ROWS - 1, form="binary"))
        held_bytes = len(b"".join(RECORDS[:100]))
        assert bucket.ranges_of("binary/bear.bin")[1][0] == held_bytes - OVERLAP_BYTES
        assert content(request_for(1, form="binary")) == b"".join(RECORDS[:-1])

    @pytest.mark.parametrize("held", [b"<!doctype html> sign in", NPY[:9000], b""])
    def test_a_file_without_other_drawings_is_replaced(self, request_for, held):
        """A web page, an empty or a truncated file is replaced."""
        path = request_for(20).path("bear")
        path.parent.mkdir(parents=True)
        path.write_bytes(held)
        fetched(request_for(20))
        assert np.array_equal(np.load(path), DRAWINGS[:20])

    def test_a_file_of_other_drawings_is_refused(self, request_for, tmp_path):
        """A file of other drawings, in Google's shape or in another one, is neither replaced nor changed."""
        np.save(tmp_path / "own.npy", DRAWINGS[:9].reshape(9, 28, 28))
        path = request_for(20).path("bear")
        path.parent.mkdir(parents=True)
        for held in (google_npy(DRAWINGS[::-1][:9]), (tmp_path / "own.npy").read_bytes()):
            path.write_bytes(held)
            with pytest.raises(FetchFailed, match=r"bear\.npy: has other drawings than http.*; fetch into another"):
                fetched(request_for(20))
            assert path.read_bytes() == held
            assert files_in(request_for(20).folder) == [BEAR]

    @pytest.mark.parametrize("held", [google_npy(DRAWINGS[::-1]), NPY[:9000] + bytes(600)], ids=["other", "torn"])
    def test_a_partial_file_with_other_content_is_replaced(self, request_for, held):
        """A partial file is replaced if its last bytes differ from the bytes that the server sends for the same place.

        The end of a partial file can be wrong after a power failure.
        """
        partial(request_for(20)).write_bytes(held)
        fetched(request_for(20))
        assert np.array_equal(np.load(request_for(20).path("bear")), DRAWINGS[:20])


class TestTransientFaults:
    def test_an_interrupted_download_resumes(self, bucket, request_for):
        """An interrupted download resumes where it stopped, however often, as long as each response has new bytes."""
        cuts = range(30_000, 300_000, 30_000)
        bucket.cuts[BEAR] = [HEAD_BYTES, *cuts]
        fetched(request_for(None))
        ranges = bucket.ranges_of(BEAR)
        assert len(ranges) == 11
        assert all(cut - 20_000 < first < cut for (first, _), cut in zip(ranges[2:], cuts, strict=True))
        assert content(request_for(None)) == NPY

    def test_without_range_support_an_interrupted_download_starts_again(self, bucket, request_for):
        """If the server ignores ranges, an interrupted download starts again at byte 0 and gives the same file."""
        bucket.ignores_range = True
        bucket.cuts[BEAR] = [len(NPY), 100_000]
        fetched(request_for(None))
        assert content(request_for(None)) == NPY

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_requests_to_an_overloaded_server_are_repeated(self, bucket, request_for, status):
        """If an overloaded server returns an error status, the same request is sent again until it succeeds."""
        bucket.statuses[BEAR] = [status, status, 200, status]
        assert fetched(request_for(None))["bear"].rows == ROWS
        assert len(bucket.requests) == 5

    def test_retry_after_is_obeyed(self, bucket):
        """The wait before the next attempt is the longer of Retry-After and the back-off, but at most 60 s."""
        waits = []

        class RecordingEvent(threading.Event):
            def wait(self, timeout=None):
                waits.append(timeout)
                return False

        state = FetchState(on_bytes=lambda _: None, stop=RecordingEvent())
        bucket.retry_after_s = 7
        bucket.statuses[BEAR] = [503, 503]
        with Downloader(RetrySettings(first_wait_s=5), state) as downloader:
            downloader.open(f"{bucket.url}/{BEAR}")
            bucket.retry_after_s = 3600
            bucket.statuses[BEAR] = [503]
            downloader.open(f"{bucket.url}/{BEAR}")
        assert waits == [7, 10, 60]

    def test_a_server_that_stays_overloaded_ends_the_fetch(self, bucket, request_for):
        """After `max_faults` failed attempts, the fetch fails; the next fetch resumes the download."""
        bucket.cuts[BEAR] = [HEAD_BYTES, 100_000]
        bucket.statuses[BEAR] = [200, 200, 503, 503]
        with pytest.raises(FetchFailed, match=r"the server answered 503 .*; tried 3 times; run the command again"):
            fetched(request_for(None, retry=RetrySettings(first_wait_s=0.001, max_faults=3)))
        bucket.requests.clear()
        fetched(request_for(None))
        assert 80_000 < bucket.ranges_of(BEAR)[1][0] < 100_000

    def test_a_silent_server_is_asked_again(self, bucket, request_for):
        """If the server sends no bytes for longer than the read timeout, the request is sent again."""
        bucket.holds[BEAR] = [HEAD_BYTES, 100_000]
        retry = RetrySettings(first_wait_s=0.001, read_timeout_s=0.2, max_faults=50)
        fetched(request_for(None, retry=retry))
        assert content(request_for(None)) == NPY


class TestPermanentFaults:
    def test_a_missing_class_is_requested_once(self, bucket, request_for):
        """A missing class is requested once, because status 404 is not retried."""
        del bucket.files["numpy_bitmap/cat.npy"]
        with pytest.raises(FetchFailed, match=r"/numpy_bitmap/cat\.npy: the server answered 404 Not Found$"):
            fetched(request_for(5, "cat"))
        assert len(bucket.requests) == 1

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("page", [b"<!doctype html> sign in", b"\n<HTML>" + bytes(9000)])
    def test_a_web_page_is_refused_and_deleted(self, bucket, request_for, form, page):
        """A web page in place of drawings is refused and deleted; login pages and captive portals have status 200."""
        bucket.ignores_range = True
        bucket.files = dict.fromkeys(bucket.files, page)
        for rows in (None, 5):
            with pytest.raises(FetchFailed, match="expected drawings, got a web page"):
                fetched(request_for(rows, form=form))
        assert files_in(request_for(5).folder) == []

    @pytest.mark.parametrize(
        ("form", "served", "message"),
        [
            ("npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, ", "uint8 .*, got .*<f8"),
            ("npy", b"nothing", "expected a .npy file .*, got b'nothing'"),
            ("simplified", b"\x93NUMPY", r"expected a line of JSON at byte 0, got b'\\x93NUMPY'"),
            ("binary", b"twenty bytes of text", "expected a drawing at byte 0, got b'twenty"),
            ("npy", google_npy(DRAWINGS[:3]), "expected 5 drawings or more, got 3"),
        ],
    )
    def test_other_content_is_refused_and_deleted(self, bucket, request_for, form, served, message):
        """A file with other contents than drawings of the expected format is refused and deleted.

        The error is one line with the address and the beginning of the contents.
        """
        bucket.files = dict.fromkeys(bucket.files, served)
        with pytest.raises(FetchFailed, match=message):
            fetched(request_for(5, form=form))
        assert files_in(request_for(5).folder) == []

    def test_a_wrong_response_does_not_replace_a_partial_file(self, bucket, request_for):
        """After a wrong response, the partial file is kept for a later fetch."""
        bucket.cuts[BEAR] = [HEAD_BYTES, 100_000]
        bucket.statuses[BEAR] = [200, 200, 403]
        with pytest.raises(FetchFailed, match="the server answered 403"):
            fetched(request_for(None))
        held = partial(request_for(None)).read_bytes()
        assert NPY.startswith(held)
        bucket.files[BEAR] = b"nothing"
        with pytest.raises(FetchFailed, match=r"expected a \.npy file"):
            fetched(request_for(390))
        assert partial(request_for(None)).read_bytes() == held

    def test_a_file_that_changes_during_the_download_is_refused(self, bucket, request_for):
        """If the size of a file in the bucket changes during its download, the fetch fails."""
        bucket.holds[BEAR] = [HEAD_BYTES, 100_000]
        bucket.cuts[BEAR] = [HEAD_BYTES, 150_000]
        with ThreadPoolExecutor() as pool:
            fetching = pool.submit(fetched, request_for(390))
            bucket.wait_until_paused()
            bucket.files[BEAR] = google_npy(DRAWINGS[:-1])
            bucket.release.set()
            with pytest.raises(FetchFailed, match=f"changed from {len(NPY)} to {len(NPY) - 784} bytes"):
                fetching.result()

    def test_another_range_than_requested_is_refused(self, bucket, request_for):
        """A response with another byte range than requested is refused, because its bytes would shift the rows."""
        bucket.misplaced_bytes = 784
        with pytest.raises(FetchFailed, match="expected bytes from 0 and the file's size, got "):
            fetched(request_for(5))

    def test_all_failures_are_reported_and_complete_classes_kept(self, bucket, request_for):
        """If some classes cannot be fetched, one error lists them, with one line per class.

        The files of the other classes are kept.
        """
        del bucket.files["numpy_bitmap/cat.npy"]
        bucket.files["numpy_bitmap/dog.npy"] = b"<html>"
        with pytest.raises(FetchFailed) as caught:
            fetched(request_for(5, "dog", "bear", "cat"))
        first, cat, dog = str(caught.value).splitlines()
        assert first == "2 of 3 classes were not fetched:"
        assert "cat.npy: the server answered 404" in cat
        assert "dog.npy: expected drawings, got a web page" in dog
        assert files_in(request_for(5).folder) == ["SOURCE.txt", BEAR]

    def test_an_unreachable_bucket_ends_the_fetch_at_once(self, request_for):
        """An unreachable bucket causes one error for all classes, and no retry."""
        with pytest.raises(BucketUnreachable, match=r"cannot be reached: .*Connection refused; offline\?"):
            fetched(request_for(5, "bear", "cat", "dog", base_url=NOWHERE, retry=RetrySettings(first_wait_s=30)))

    def test_is_reachable_requires_a_npy_file(self, bucket):
        """A server that answers with a web page does not count as the bucket."""
        assert is_reachable(bucket.url)
        assert not is_reachable(NOWHERE)
        bucket.files[BEAR] = b"<html>"
        assert not is_reachable(bucket.url)


class TestFolder:
    @pytest.mark.parametrize(
        ("fetches", "note"),
        [
            ([(20, "bear"), (20, "cat")], f"{SOURCE}, the first 20 of each class"),
            ([(20, "bear"), (300, "cat")], f"{SOURCE}, the first 20 to 300 of each class"),
            ([(20, "bear"), (None, "bear", "cat")], f"{SOURCE}, all of each class"),
        ],
        ids=["equal", "different", "whole"],
    )
    def test_the_source_note_describes_all_drawings_of_the_folder(self, request_for, fetches, note):
        """The note on the origin, SOURCE.txt, describes all drawings of the folder, even those of earlier fetches."""
        for rows, *labels in fetches:
            fetched(request_for(rows, *labels))
        assert source_of(request_for(1).folder) == note

    def test_the_source_note_contains_no_counts_if_there_are_strokes(self, request_for):
        """If a folder contains files of strokes, the note in SOURCE.txt has no numbers of drawings.

        To count the drawings, the command would have to read the whole files.
        """
        fetched(request_for(5))
        fetched(request_for(7, form="raw"))
        assert source_of(request_for(1).folder) == SOURCE

    def test_a_folder_of_other_drawings_is_refused(self, request_for):
        """A folder of other drawings is refused, because synthetic and real drawings must not be mixed."""
        folder = request_for(5).folder
        folder.mkdir()
        (folder / "SOURCE.txt").write_text("synthetic sketches\n")
        with pytest.raises(FetchFailed, match=r"holds other drawings \(synthetic sketches\); fetch into another"):
            fetched(request_for(5))

    def test_drawings_of_unknown_origin_get_no_source_note(self, request_for):
        """If a folder contains a file that no fetch has written, a fetch writes no SOURCE.txt for this folder."""
        path = request_for(5).path("cat")
        path.parent.mkdir(parents=True)
        path.write_bytes(NPY)
        fetched(request_for(5))
        assert files_in(request_for(5).folder) == [BEAR, "numpy_bitmap/cat.npy"]

    @pytest.mark.parametrize(
        ("environment", "folder"),
        [
            ({"SKETCHBATCH_DATA": "/data/drawings", "XDG_CACHE_HOME": "/cache"}, Path("/data/drawings")),
            ({"SKETCHBATCH_DATA": "~/drawings"}, Path.home() / "drawings"),
            ({"SKETCHBATCH_DATA": "", "XDG_CACHE_HOME": "/cache"}, Path("/cache/sketchbatch/quickdraw")),
            ({}, Path.home() / ".cache" / "sketchbatch" / "quickdraw"),
        ],
    )
    def test_the_default_folder_is_in_the_cache_of_the_user(self, environment, folder):
        """The default folder for drawings is in the user's cache, unless SKETCHBATCH_DATA names another folder."""
        assert cache_folder(environment) == folder


class TestClasses:
    def test_the_catalogue_has_345_classes_with_sizes_and_digests(self):
        """The catalogue lists 345 classes, with the number of drawings, the size and the SHA-256 digest of each file.

        The size of a file is 80 bytes for the header, and 784 bytes per drawing.
        """
        catalogue = read_catalogue()
        assert len(catalogue) == 345
        assert sum(expected.drawings for expected in catalogue.values()) == 50_426_266
        assert all(expected.size_bytes == 80 + 784 * expected.drawings for expected in catalogue.values())
        assert all(len(bytes.fromhex(expected.sha256)) == 32 for expected in catalogue.values())

    def test_repeated_names_are_dropped(self):
        """Class names that are given twice are used once, and the order of the names is kept."""
        catalogue = read_catalogue()
        assert known_classes("cat, bear,cat,", catalogue) == ("cat", "bear")
        assert known_classes("all", catalogue) == tuple(catalogue)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("bear,Teddy Bear", "no class is called 'Teddy Bear'; did you mean teddy-bear"),
            ("bear,eiffel tower", "did you mean The Eiffel Tower"),
            ("bear,zzz", r"no class is called 'zzz' \(`all` stands for all 345 classes\)"),
            (" , ", "no class named"),
        ],
    )
    def test_similar_names_are_suggested(self, names, message):
        """Similar names are suggested for an unknown name, because Google's spelling of names varies."""
        with pytest.raises(FetchFailed, match=message):
            known_classes(names, read_catalogue())


class TestThreads:
    def test_files_are_fetched_concurrently(self, bucket, request_for):
        """Several files are fetched concurrently, but at most `jobs` at a time."""
        labels = ("bear", "cat", "dog")
        bucket.holds = {f"numpy_bitmap/{label}.npy": [HEAD_BYTES, 100_000] for label in labels}
        with ThreadPoolExecutor() as pool:
            fetching = pool.submit(fetched, request_for(None, *labels, jobs=2))
            bucket.wait_until_paused()
            bucket.wait_until_paused()
            assert {path for path, _, _ in bucket.requests} == {BEAR, "numpy_bitmap/cat.npy"}
            bucket.release.set()
            assert fetching.result().keys() == set(labels)
        assert len(labelled_files(request_for(None).folder)) == 3

    def test_a_second_fetch_into_the_folder_is_refused(self, bucket, request_for):
        """A second fetch into a folder is refused, because two fetches would write the same partial files."""
        bucket.holds[BEAR] = [HEAD_BYTES, 100_000]
        with ThreadPoolExecutor() as pool:
            fetching = pool.submit(fetched, request_for(None))
            bucket.wait_until_paused()
            with pytest.raises(FetchFailed, match="another fetch writes into this folder"):
                fetched(request_for(5, "cat"))
            bucket.release.set()
            assert fetching.result()["bear"].rows == ROWS
        assert fetched(request_for(5, "cat"))["cat"].rows == 5

    def test_an_interruption_stops_all_threads_and_keeps_the_partial_files(self, bucket, request_for):
        """After Ctrl-C, which raises KeyboardInterrupt, all threads stop and the partial files remain."""
        bucket.holds[BEAR] = [HEAD_BYTES, 100_000]

        def interrupt(_: FetchResult) -> None:
            bucket.wait_until_paused()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(request_for(None, "bear", "cat"), on_bytes=lambda _: None, on_class=interrupt)
        bucket.release.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "fetch"]:
            thread.join()
        assert files_in(request_for(5).folder) == ["SOURCE.txt", f"{BEAR}.part", "numpy_bitmap/cat.npy"]


def invoke(*words: object, **environment: str):
    """Run `sketchbatch-train fetch` in this process."""
    return CliRunner().invoke(app, ["fetch", *map(str, words)], env=environment)


class TestCommand:
    @pytest.mark.timeout(60)  # starts a process
    @pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
    def test_a_killed_command_resumes(self, bucket, tmp_path, how, code):
        """If the command is killed, only a partial file remains; the next command requests only the missing bytes."""
        array = np.random.default_rng(6).integers(0, 256, (2001, 784), np.uint8)
        bucket.files[BEAR] = google_npy(array)
        bucket.holds[BEAR] = [HEAD_BYTES, 1_000_000]
        words = ["--classes", "bear", "--rows", "2000", "--base-url", bucket.url, "--folder", str(tmp_path)]
        part = tmp_path / f"{BEAR}.part"
        command = [Path(sys.executable).parent / "sketchbatch-train", "fetch", *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not part.is_file() or part.stat().st_size < 900_000:
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, how)
            _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (code, "")
        assert set(files_in(tmp_path)) - {"SOURCE.txt"} == {f"{BEAR}.part"}
        held_bytes = part.stat().st_size
        bucket.requests.clear()
        assert invoke(*words).exit_code == 0
        assert bucket.ranges_of(BEAR)[1:] == [(held_bytes - OVERLAP_BYTES, 80 + 2000 * 784 - 1)]
        assert files_in(tmp_path) == ["SOURCE.txt", BEAR]
        assert np.array_equal(np.load(tmp_path / BEAR), array[:2000])

    def test_it_prints_the_rows_and_bytes_of_each_class(self, bucket, tmp_path):
        """The command prints the number of drawings and the received bytes of each class.

        Without --folder, it writes to the cache folder. A second fetch of the same drawings receives no bytes.
        """
        words = ["--rows", "50", "--format", "binary", "--base-url", bucket.url + "/"]
        environment = {"SKETCHBATCH_DATA": str(tmp_path / "cache")}
        *classes, last = invoke(*words, **environment).output.splitlines()
        assert sorted(classes) == [f"{label}: 50 drawings (0.0 MB received)" for label in ("bear", "cat", "dog")]
        assert last == f"bear, cat, dog -> {tmp_path / 'cache'}"
        assert invoke(*words, **environment).output.count("50 drawings (already complete)") == 3
        assert files_in(tmp_path / "cache") == ["SOURCE.txt", *(f"binary/{n}.bin" for n in ("bear", "cat", "dog"))]

    def test_a_failure_is_one_line_on_stderr_and_exit_code_1(self, tmp_path, run_command):
        """A failure is one line on stderr with address, reason and remedy, and the exit code is 1."""
        finished = run_command("sketchbatch-train", "fetch", "--folder", tmp_path, "--base-url", NOWHERE)
        assert finished.returncode == 1
        reason = "cannot be reached: [Errno 111] Connection refused; offline? `sketchbatch-train sketch`"
        assert reason in finished.stderr
        assert finished.stderr.count("\n") == 1

    def test_rows_must_be_a_number_or_all(self):
        """`--rows` must be a number or `all`; any other value is rejected before any request."""
        result = invoke("--rows", "0", "--base-url", NOWHERE)
        assert result.exit_code == 2
        assert "must be a number from 1 or all" in result.output
