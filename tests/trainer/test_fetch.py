"""Fetching, against a local HTTP server that behaves, or misbehaves, like the bucket."""

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
from sketchbatch_trainer.errors import BucketUnreachable, FetchFailed
from sketchbatch_trainer.fetch.bucket import SOURCE, WholeNpy, cache_folder, known_classes, read_catalogue
from sketchbatch_trainer.fetch.download import HEAD_BYTES, OVERLAP_BYTES, Patience
from sketchbatch_trainer.fetch.fetch_request import Fetched, Order
from sketchbatch_trainer.fetch.fetching import fetch, is_reachable
from sketchbatch_trainer.fetch.formats import FORMATS

ROWS = 400
DRAWINGS = np.random.default_rng(5).integers(0, 256, (ROWS, 784), np.uint8)
NOWHERE = "http://127.0.0.1:1"


def google_npy(array: np.ndarray) -> bytes:
    """A .npy with the 80-byte header of the bucket's files."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (70).to_bytes(2, "little") + head.ljust(69) + b"\n" + array.tobytes()


def json_line(number: int) -> bytes:
    """One drawing of about 1,500 bytes, more than the format's mean, so that one request does not suffice."""
    return json.dumps({"key_id": str(number), "drawing": [[[number] * 250, [7] * 250]]}).encode() + b"\n"


def record(number: int) -> bytes:
    """The same in binary, about 500 bytes."""
    strokes = [bytes([number % 256]) * 240, b"\x07"]
    body = b"".join(struct.pack("<H", len(points)) + points + points for points in strokes)
    return struct.pack("<Q2sbIH", number, b"CH", number % 2, 1_490_000_000, len(strokes)) + body


NPY = google_npy(DRAWINGS)
LINES = [json_line(number) for number in range(ROWS)]
RECORDS = [record(number) for number in range(ROWS)]
FACTS = WholeNpy(len(NPY), ROWS, hashlib.sha256(NPY).hexdigest())


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """Bears in every format, and cats and dogs that are the same."""
    with serving() as served:
        for label in ("bear", "cat", "dog", "The Eiffel Tower"):
            served.files[f"numpy_bitmap/{label}.npy"] = NPY
            served.files[f"simplified/{label}.ndjson"] = served.files[f"raw/{label}.ndjson"] = b"".join(LINES)
            served.files[f"binary/{label}.bin"] = b"".join(RECORDS)
        yield served


@pytest.fixture
def order(bucket, tmp_path):
    """Makes an order of bears, in a catalogue that fits the bucket."""

    def make(rows: int | None, *labels: str, form: str = "npy", **changes: object) -> Order:
        usual = {"base_url": bucket.url, "folder": tmp_path / "d", "patience": Patience(first_wait_s=0.001)}
        catalogue = dict.fromkeys(("bear", "cat", "dog", "The Eiffel Tower"), FACTS)
        return Order(
            labels=labels or ("bear",), rows=rows, form=FORMATS[form], **(usual | {"catalogue": catalogue} | changes)
        )

    return make


def fetched(order: Order) -> dict[str, Fetched]:
    """Fetches; what was said of each class."""
    said: list[Fetched] = []
    received: list[int] = []
    fetch(order, on_bytes=received.append, on_class=said.append)
    assert sum(received) == sum(one.received_bytes for one in said)
    return {one.label: one for one in said}


def files_in(folder: Path) -> list[str]:
    """What a person sees there."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("[!.]*") if file.is_file())


class TestFirstRows:
    @pytest.mark.parametrize("ignores_range", [False, True])
    @pytest.mark.parametrize("rows", [1, 7, ROWS - 1])
    def test_the_first_rows_of_a_npy_arrive_exactly(self, bucket, order, rows, ignores_range):
        """By a Range or from a server that ignores it; where the readers look for them."""
        bucket.ignores_range = ignores_range
        assert fetched(order(rows))["bear"].rows == rows
        path = labelled_files(order(rows).folder)["bear"]
        assert np.array_equal(np.load(path), DRAWINGS[:rows])

    def test_no_byte_too_many_is_asked_for(self, bucket, order):
        """But for a short look at the file's beginning, and the overlap with what is held."""
        fetched(order(100))
        assert bucket.asked_for("numpy_bitmap/bear.npy") == [
            (0, HEAD_BYTES - 1),
            (HEAD_BYTES - OVERLAP_BYTES, 80 + 100 * 784 - 1),
        ]

    @pytest.mark.parametrize("header_bytes", [80, 128])
    def test_the_header_is_parsed_not_assumed(self, bucket, order, header_bytes):
        """Of any length, also as Python 2 wrote it."""
        head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({ROWS}L, 784L), }}".encode()
        magic = b"\x93NUMPY\x01\x00" + (header_bytes - 10).to_bytes(2, "little")
        bucket.files["numpy_bitmap/bear.npy"] = magic + head.ljust(header_bytes - 11) + b"\n" + DRAWINGS.tobytes()
        fetched(order(30))
        assert np.array_equal(np.load(order(30).path("bear")), DRAWINGS[:30])

    @pytest.mark.parametrize("rows", [1, 33, ROWS - 1])
    @pytest.mark.parametrize(
        ("form", "ending", "drawings"),
        [("simplified", ".ndjson", LINES), ("raw", ".ndjson", LINES), ("binary", ".bin", RECORDS)],
    )
    def test_the_first_strokes_arrive_whole(self, order, form, ending, drawings, rows):
        """The last one that a block cut through is dropped, or fetched to its end."""
        assert fetched(order(rows, form=form))["bear"].rows == rows
        assert (order(rows).folder / form / f"bear{ending}").read_bytes() == b"".join(drawings[:rows])

    def test_fewer_strokes_than_expected_are_all_there_are(self, bucket, order):
        """Nobody promises that every format has as many; the last line need not end in a newline."""
        bucket.files["simplified/bear.ndjson"] = b"".join(LINES[:50])[:-1]
        assert fetched(order(60, form="simplified"))["bear"].rows == 50

    def test_a_name_with_spaces_is_quoted(self, bucket, order):
        """As the bucket wants it."""
        assert fetched(order(1, "The Eiffel Tower"))["The Eiffel Tower"].rows == 1
        assert order(1).url("The Eiffel Tower").endswith("/The%20Eiffel%20Tower.npy")


class TestWholeFiles:
    @pytest.mark.parametrize("rows", [None, ROWS, ROWS + 1])
    def test_all_rows_are_the_bucket_s_file_byte_for_byte(self, order, rows):
        """Also where as many are asked for as there are, or more."""
        assert fetched(order(rows))["bear"].rows == ROWS
        assert order(rows).path("bear").read_bytes() == NPY

    @pytest.mark.parametrize(
        ("form", "content"), [("simplified", LINES), ("raw", LINES), ("binary", RECORDS)], ids=lambda value: value[:6]
    )
    def test_strokes_too(self, order, form, content):
        """In each format."""
        assert fetched(order(None, form=form))["bear"].rows == ROWS
        assert order(None, form=form).path("bear").read_bytes() == b"".join(content)

    def test_a_wrong_digest_is_refused_and_nothing_kept(self, bucket, order):
        """Expected and got are said."""
        changed = NPY[:-1] + b"\x00"
        bucket.files["numpy_bitmap/bear.npy"] = changed
        with pytest.raises(
            FetchFailed, match=f"expected sha256 {FACTS.sha256}, got {hashlib.sha256(changed).hexdigest()}"
        ):
            fetched(order(None))
        assert files_in(order(None).folder) == []

    def test_a_wrong_size_is_refused_before_the_download(self, bucket, order):
        """115 MB of it may be coming."""
        bucket.files["numpy_bitmap/bear.npy"] = google_npy(DRAWINGS[:-1])
        with pytest.raises(FetchFailed, match=f"expected {len(NPY)} bytes, the server has {len(NPY) - 784}"):
            fetched(order(None))
        assert len(bucket.asked) == 1

    def test_of_strokes_the_digest_is_the_one_that_the_bucket_states(self, bucket, order):
        """Nobody else has published any."""
        bucket.md5["binary/bear.bin"] = "AAAAAAAAAAAAAAAAAAAAAA=="
        with pytest.raises(FetchFailed, match=r"expected md5 A+==, got "):
            fetched(order(None, form="binary"))
        assert files_in(order(None).folder) == []

    @pytest.mark.parametrize("form", ["simplified", "binary"])
    def test_strokes_that_end_in_the_middle_are_refused(self, bucket, order, form):
        """The bucket's own copy would be broken."""
        url = order(None, form=form).url("bear")
        path = url.removeprefix(bucket.url + "/")
        bucket.files[path] = bucket.files[path][:-9]
        with pytest.raises(FetchFailed, match="got one cut off at byte"):
            fetched(order(None, form=form))


class TestWhatIsThereAlready:
    @pytest.mark.parametrize("form", ["npy", "simplified", "binary"])
    def test_enough_rows_are_left_alone_even_offline(self, bucket, order, form):
        """The same, or fewer than there are."""
        fetched(order(50, form=form))
        for rows in (50, 20):
            again = fetched(order(rows, form=form, base_url=NOWHERE))
            assert again["bear"].rows >= rows
            assert again["bear"].received_bytes == 0

    def test_a_whole_npy_is_hashed_again(self, bucket, order):
        """Right: left alone, even offline. Damaged: fetched again."""
        fetched(order(None))
        assert fetched(order(None, base_url=NOWHERE))["bear"].received_bytes == 0
        order(None).path("bear").write_bytes(NPY[:-1] + b"\x00")
        assert fetched(order(None))["bear"].received_bytes == len(NPY)
        assert order(None).path("bear").read_bytes() == NPY

    def test_whole_strokes_are_told_by_their_size(self, bucket, order):
        """One short request."""
        fetched(order(None, form="raw"))
        bucket.asked.clear()
        file_number = order(None, form="raw").path("bear").stat().st_ino
        assert fetched(order(None, form="raw"))["bear"].received_bytes == 0
        assert len(bucket.asked) == 1
        assert order(None, form="raw").path("bear").stat().st_ino == file_number

    @pytest.mark.parametrize(("more", "stop"), [(300, 80 + 300 * 784), (None, len(NPY))])
    def test_more_rows_cost_only_the_missing_ones(self, bucket, order, more, stop):
        """Up to the whole file, whose header comes back as Google wrote it."""
        fetched(order(100))
        bucket.asked.clear()
        fetched(order(more))
        assert bucket.asked_for("numpy_bitmap/bear.npy")[1:] == [(80 + 100 * 784 - OVERLAP_BYTES, stop - 1)]
        assert np.array_equal(np.load(order(more).path("bear")), DRAWINGS[:more])

    def test_more_strokes_too(self, bucket, order):
        """From the end of the last whole one."""
        fetched(order(100, form="binary"))
        bucket.asked.clear()
        fetched(order(ROWS - 1, form="binary"))
        held = len(b"".join(RECORDS[:100]))
        assert bucket.asked_for("binary/bear.bin")[1][0] == held - OVERLAP_BYTES
        assert order(1, form="binary").path("bear").read_bytes() == b"".join(RECORDS[:-1])

    @pytest.mark.parametrize("there", [b"<!doctype html> sign in", NPY[:9000], google_npy(DRAWINGS[::-1][:9]), b""])
    def test_what_is_not_the_beginning_of_the_bucket_s_file_is_replaced(self, order, there):
        """A web page, a truncated file, other drawings."""
        path = order(20).path("bear")
        path.parent.mkdir(parents=True)
        path.write_bytes(there)
        fetched(order(20))
        assert np.array_equal(np.load(path), DRAWINGS[:20])

    def test_so_is_a_partial_file_of_other_drawings(self, order):
        """Even one that is long enough."""
        part = order(20).path("bear").with_name("bear.npy.part")
        part.parent.mkdir(parents=True)
        part.write_bytes(google_npy(DRAWINGS[::-1]))
        fetched(order(20))
        assert np.array_equal(np.load(order(20).path("bear")), DRAWINGS[:20])

    def test_a_torn_end_is_found_out(self, bucket, order):
        """As a power cut may leave it: the last bytes held are asked for again, and must be the same."""
        part = order(20).path("bear").with_name("bear.npy.part")
        part.parent.mkdir(parents=True)
        part.write_bytes(NPY[:9000] + bytes(600))
        fetched(order(20))
        assert np.array_equal(np.load(order(20).path("bear")), DRAWINGS[:20])


class TestTroubleThatPasses:
    def test_a_cut_connection_goes_on_where_it_was(self, bucket, order):
        """Any number of times, if each brings something."""
        bucket.cuts["numpy_bitmap/bear.npy"] = [HEAD_BYTES, *range(30_000, 300_000, 30_000)]
        fetched(order(None))
        asked = bucket.asked_for("numpy_bitmap/bear.npy")
        assert len(asked) == 11
        assert all(
            cut - 20_000 < first < cut
            for (first, _), cut in zip(asked[2:], range(30_000, 300_000, 30_000), strict=True)
        )
        assert order(None).path("bear").read_bytes() == NPY

    def test_a_cut_by_a_server_without_ranges_costs_a_new_beginning(self, bucket, order):
        """And gives the right bytes."""
        bucket.ignores_range = True
        bucket.cuts["numpy_bitmap/bear.npy"] = [len(NPY), 100_000]
        fetched(order(None))
        assert order(None).path("bear").read_bytes() == NPY

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_busy_server_is_asked_again(self, bucket, order, status):
        """At the first request or in the middle."""
        bucket.statuses["numpy_bitmap/bear.npy"] = [status, status]
        bucket.cuts["numpy_bitmap/bear.npy"] = [len(NPY), 100_000]
        assert fetched(order(None))["bear"].rows == ROWS

    def test_a_server_that_says_when_to_come_again_is_obeyed(self, bucket, order):
        """Retry-After, in seconds."""
        bucket.statuses["numpy_bitmap/bear.npy"] = [503]
        bucket.retry_after_s = 1
        begun_at = time.monotonic()
        fetched(order(5))
        assert time.monotonic() - begun_at >= 1

    def test_one_that_stays_busy_is_given_up(self, bucket, order):
        """After so many faults in a row; what had come is kept for the next time."""
        bucket.cuts["numpy_bitmap/bear.npy"] = [HEAD_BYTES, 100_000]
        bucket.statuses["numpy_bitmap/bear.npy"] = [200, 200, 503, 503]
        with pytest.raises(FetchFailed, match=r"the server says 503 .*; tried 3 times; fetch again to go on"):
            fetched(order(None, patience=Patience(first_wait_s=0.001, faults=3)))
        bucket.asked.clear()
        fetched(order(None))
        assert 80_000 < bucket.asked[1][1] < 100_000

    def test_a_silent_server_is_asked_again(self, bucket, order):
        """Silence longer than the patience is a fault like another."""
        bucket.holds["numpy_bitmap/bear.npy"] = [HEAD_BYTES, 100_000]
        fetched(order(None, patience=Patience(first_wait_s=0.001, read_s=0.2)))
        assert order(None).path("bear").read_bytes() == NPY


class TestTroubleThatDoesNot:
    def test_a_class_that_is_not_there_is_asked_for_once(self, bucket, order):
        """404 does not pass."""
        del bucket.files["numpy_bitmap/cat.npy"]
        with pytest.raises(FetchFailed, match=r"/numpy_bitmap/cat\.npy: the server says 404 Not Found$"):
            fetched(order(5, "cat"))
        assert len(bucket.asked) == 1

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("page", [b"<!doctype html> sign in", b"\n<HTML>" + bytes(9000)])
    def test_a_web_page_is_refused_and_nothing_kept(self, bucket, order, form, page):
        """As the bucket's console, or a captive portal, answers; with 200."""
        bucket.ignores_range = True
        bucket.files = dict.fromkeys(bucket.files, page)
        for rows in (None, 5):
            with pytest.raises(FetchFailed, match="expected drawings, got a web page"):
                fetched(order(rows, form=form))
        assert files_in(order(5).folder) == []

    @pytest.mark.parametrize(
        ("form", "content", "message"),
        [
            ("npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, ", "uint8 .*, got .*<f8"),
            ("npy", b"nothing", "expected a .npy file .*, got b'nothing'"),
            ("simplified", b"\x93NUMPY", r"expected a line of JSON at byte 0, got b'\\x93NUMPY'"),
            ("binary", b"twenty bytes of text", "expected a drawing at byte 0, got b'twenty"),
            ("npy", google_npy(DRAWINGS[:3]), "expected 5 drawings or more, got 3"),
        ],
    )
    def test_what_is_not_drawings_is_refused_and_nothing_kept(self, bucket, order, form, content, message):
        """One line with the address and what came."""
        bucket.files = dict.fromkeys(bucket.files, content)
        with pytest.raises(FetchFailed, match=message):
            fetched(order(5, form=form))
        assert files_in(order(5).folder) == []

    def test_what_is_held_does_not_give_way_to_a_wrong_answer(self, bucket, order):
        """A partial file waits for the right one."""
        bucket.cuts["numpy_bitmap/bear.npy"] = [HEAD_BYTES, 100_000]
        bucket.statuses["numpy_bitmap/bear.npy"] = [200, 200, 403]
        with pytest.raises(FetchFailed, match="the server says 403"):
            fetched(order(None))
        held = order(None).path("bear").with_name("bear.npy.part").read_bytes()
        assert NPY.startswith(held)
        bucket.files["numpy_bitmap/bear.npy"] = b"nothing"
        with pytest.raises(FetchFailed, match=r"expected a \.npy file"):
            fetched(order(390))
        assert order(None).path("bear").with_name("bear.npy.part").read_bytes() == held

    def test_a_file_that_changes_meanwhile_is_not_mixed_with_what_it_was(self, bucket, order):
        """Told by its size."""
        path = "numpy_bitmap/bear.npy"
        bucket.holds[path] = [HEAD_BYTES, 100_000]
        bucket.cuts[path] = [HEAD_BYTES, 150_000]
        with ThreadPoolExecutor() as pool:
            fetching = pool.submit(fetched, order(390))
            assert bucket.held.acquire(timeout=5)
            bucket.files[path] = google_npy(DRAWINGS[:-1])
            bucket.release.set()
            with pytest.raises(FetchFailed, match=f"changed from {len(NPY)} to {len(NPY) - 784} bytes"):
                fetching.result()

    def test_another_range_than_asked_for_is_refused(self, bucket, order):
        """Rows would be out of place."""
        bucket.misplaced_bytes = 784
        with pytest.raises(FetchFailed, match="expected bytes from 0 and the file's size, got "):
            fetched(order(5))

    def test_all_failures_are_reported_and_the_good_ones_kept(self, bucket, order):
        """A line for each class."""
        del bucket.files["numpy_bitmap/cat.npy"]
        bucket.files["numpy_bitmap/dog.npy"] = b"<html>"
        with pytest.raises(FetchFailed) as caught:
            fetched(order(5, "dog", "bear", "cat"))
        first, cat, dog = str(caught.value).splitlines()
        assert first == "2 of 3 classes were not fetched:"
        assert "cat.npy: the server says 404" in cat
        assert "dog.npy: expected drawings, got a web page" in dog
        assert files_in(order(5).folder) == ["SOURCE.txt", "numpy_bitmap/bear.npy"]

    def test_when_nobody_answers_nothing_more_is_tried(self, order):
        """Said once, not for each class; at once, not after attempts."""
        with pytest.raises(BucketUnreachable, match=r"cannot be reached: .*Connection refused; offline\?"):
            fetched(order(5, "bear", "cat", "dog", base_url=NOWHERE, patience=Patience(first_wait_s=30)))

    def test_is_reachable_says_whether_the_bucket_answers_as_it_should(self, bucket):
        """For those who would rather ask first."""
        assert is_reachable(bucket.url)
        assert not is_reachable(NOWHERE)
        bucket.files["numpy_bitmap/bear.npy"] = b"<html>"
        assert not is_reachable(bucket.url)


class TestFolder:
    @pytest.mark.parametrize(
        ("fetches", "said"),
        [
            ([(20, "bear"), (20, "cat")], f"{SOURCE}, the first 20 of each class"),
            ([(20, "bear"), (300, "cat")], f"{SOURCE}, the first 20 to 300 of each class"),
            ([(20, "bear"), (None, "bear", "cat")], f"{SOURCE}, all of each class"),
        ],
    )
    def test_its_note_says_which_drawings_are_there(self, order, fetches, said):
        """All of them, not only those fetched last."""
        for rows, *labels in fetches:
            fetched(order(rows, *labels))
        assert source_of(order(1).folder) == said

    def test_with_strokes_too_the_note_counts_nothing(self, order):
        """They may be of other drawings."""
        fetched(order(5))
        fetched(order(7, form="raw"))
        assert source_of(order(1).folder) == SOURCE

    def test_other_drawings_are_not_mixed_with(self, order):
        """Synthetic ones would pass for real, or real ones for synthetic."""
        folder = order(5).folder
        folder.mkdir()
        (folder / "SOURCE.txt").write_text("synthetic sketches\n")
        with pytest.raises(FetchFailed, match="its drawings are synthetic sketches; fetch into another folder"):
            fetched(order(5))

    def test_drawings_without_a_note_are_not_described(self, order):
        """Nobody knows whose they are."""
        path = order(5).path("cat")
        path.parent.mkdir(parents=True)
        path.write_bytes(NPY)
        fetched(order(5))
        assert files_in(order(5).folder) == ["numpy_bitmap/bear.npy", "numpy_bitmap/cat.npy"]

    @pytest.mark.parametrize(
        ("environment", "folder"),
        [
            ({"SKETCHBATCH_DATA": "/data/drawings", "XDG_CACHE_HOME": "/cache"}, Path("/data/drawings")),
            ({"SKETCHBATCH_DATA": "~/drawings"}, Path.home() / "drawings"),
            ({"SKETCHBATCH_DATA": "", "XDG_CACHE_HOME": "/cache"}, Path("/cache/sketchbatch/quickdraw")),
            ({}, Path.home() / ".cache" / "sketchbatch" / "quickdraw"),
        ],
    )
    def test_the_default_is_the_user_s_cache(self, environment, folder):
        """Or where the user says."""
        assert cache_folder(environment) == folder


class TestClasses:
    def test_the_345_are_known_with_their_sizes_and_digests(self):
        """Part of the package; a row is 784 bytes after a header of 80."""
        catalogue = read_catalogue()
        assert len(catalogue) == 345
        assert sum(facts.drawings for facts in catalogue.values()) == 50_426_266
        assert all(facts.size_bytes == 80 + 784 * facts.drawings for facts in catalogue.values())
        assert all(len(bytes.fromhex(facts.sha256)) == 32 for facts in catalogue.values())

    def test_they_are_named_once_or_all(self):
        """In the order named."""
        catalogue = read_catalogue()
        assert known_classes("cat, bear,cat,", catalogue) == ("cat", "bear")
        assert known_classes("all", catalogue) == tuple(catalogue)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("Teddy Bear", "no class is called 'Teddy Bear'; did you mean teddy-bear"),
            ("eiffel tower", "did you mean The Eiffel Tower"),
            ("zzz", r"no class is called 'zzz' \(`all` takes all 345 classes\)"),
            (" , ", "no class named"),
        ],
    )
    def test_near_names_are_suggested(self, name, said):
        """Their spelling is Google's, and odd."""
        with pytest.raises(FetchFailed, match=said):
            known_classes(f"bear,{name}" if name.strip(" ,") else name, read_catalogue())


class TestThreads:
    def test_files_come_side_by_side(self, bucket, order):
        """As many as there are jobs, no more."""
        labels = ("bear", "cat", "dog")
        bucket.holds = {f"numpy_bitmap/{label}.npy": [HEAD_BYTES, 100_000] for label in labels}
        with ThreadPoolExecutor() as pool:
            fetching = pool.submit(fetched, order(None, *labels, jobs=2))
            assert bucket.held.acquire(timeout=5)
            assert bucket.held.acquire(timeout=5)
            assert {path for path, _, _ in bucket.asked} == {"numpy_bitmap/bear.npy", "numpy_bitmap/cat.npy"}
            bucket.release.set()
            assert fetching.result().keys() == set(labels)
        assert len(labelled_files(order(None).folder)) == 3

    def test_a_second_fetch_into_the_folder_is_refused(self, bucket, order):
        """Two would write the same partial files."""
        bucket.holds["numpy_bitmap/bear.npy"] = [HEAD_BYTES, 100_000]
        with ThreadPoolExecutor() as pool:
            fetching = pool.submit(fetched, order(None))
            assert bucket.held.acquire(timeout=5)
            with pytest.raises(FetchFailed, match="another fetch is writing there"):
                fetched(order(5, "cat"))
            bucket.release.set()
            assert fetching.result()["bear"].rows == ROWS
        assert fetched(order(5, "cat"))["cat"].rows == 5

    def test_when_one_goes_wrong_for_all_the_others_stop(self, bucket, order):
        """Here the caller, as Ctrl-C would; what has come is kept."""
        bucket.holds["numpy_bitmap/bear.npy"] = [HEAD_BYTES, 100_000]

        def interrupt(_: Fetched) -> None:
            assert bucket.held.acquire(timeout=5)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(order(None, "bear", "cat"), on_bytes=lambda _: None, on_class=interrupt)
        bucket.release.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "fetch"]:
            thread.join()
        assert files_in(order(5).folder) == ["SOURCE.txt", "numpy_bitmap/bear.npy.part", "numpy_bitmap/cat.npy"]


class TestCommand:
    @pytest.fixture
    def many(self, bucket):
        """A file of 1.6 MB, of which all but the last row is asked for; returns the words that do."""
        array = np.random.default_rng(6).integers(0, 256, (2001, 784), np.uint8)
        bucket.files["numpy_bitmap/bear.npy"] = google_npy(array)
        return ["fetch", "--classes", "bear", "--rows", "2000", "--base-url", bucket.url, "--folder"], array[:2000]

    @pytest.mark.timeout(60)  # three processes
    @pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
    def test_after_a_kill_it_asks_only_for_the_rest(self, bucket, many, tmp_path, run_command, how, code):
        """Whether it could tidy up or not; no file is there until it is whole."""
        words, array = many
        bucket.holds["numpy_bitmap/bear.npy"] = [HEAD_BYTES, 1_000_000]
        command = [Path(sys.executable).parent / "sketchbatch-train", *words, tmp_path]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            held = wait_until_it_holds(tmp_path / "numpy_bitmap" / "bear.npy.part", 900_000)
            os.kill(process.pid, how)
            _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (code, "")
        assert set(files_in(tmp_path)) - {"SOURCE.txt"} == {"numpy_bitmap/bear.npy.part"}
        bucket.asked.clear()
        finished = run_command("sketchbatch-train", *words, tmp_path)
        assert finished.returncode == 0, finished.stderr
        assert bucket.asked_for("numpy_bitmap/bear.npy")[1:] == [(held - OVERLAP_BYTES, 80 + 2000 * 784 - 1)]
        assert files_in(tmp_path) == ["SOURCE.txt", "numpy_bitmap/bear.npy"]
        assert np.array_equal(np.load(tmp_path / "numpy_bitmap" / "bear.npy"), array)

    def test_it_says_what_came_and_where_it_is(self, bucket, tmp_path, run_command):
        """In plain lines; into the cache unless told otherwise; the second time nothing comes."""
        words = ["fetch", "--rows", "50", "--format", "binary", "--base-url", bucket.url + "/"]
        environment = os.environ | {"SKETCHBATCH_DATA": str(tmp_path / "cache")}
        first = run_command("sketchbatch-train", *words, env=environment)
        *classes, last = first.stdout.splitlines()
        assert sorted(classes) == [f"{label}: 50 drawings (0.0 MB came)" for label in ("bear", "cat", "dog")]
        assert last == f"bear, cat, dog -> {tmp_path / 'cache'}"
        again = run_command("sketchbatch-train", *words, env=environment)
        assert again.stdout.count("50 drawings (was there)") == 3
        assert files_in(tmp_path / "cache") == ["SOURCE.txt", *(f"binary/{n}.bin" for n in ("bear", "cat", "dog"))]

    def test_failures_end_in_exit_code_1(self, bucket, tmp_path, run_command):
        """Each with its address, on stderr."""
        del bucket.files["numpy_bitmap/cat.npy"]
        bucket.files["numpy_bitmap/dog.npy"] = b"<html>"
        finished = run_command(
            "sketchbatch-train", "fetch", "--rows", 5, "--folder", tmp_path, "--base-url", bucket.url
        )
        assert finished.returncode == 1
        assert finished.stderr.count("\n") == 3
        assert "bear: 5 drawings" in finished.stdout

    def test_offline_is_said_in_one_line(self, tmp_path, run_command):
        """With what to do."""
        finished = run_command("sketchbatch-train", "fetch", "--folder", tmp_path, "--base-url", NOWHERE)
        assert finished.returncode == 1
        assert (
            "cannot be reached: [Errno 111] Connection refused; offline? `sketchbatch-train sketch`" in finished.stderr
        )
        assert finished.stderr.count("\n") == 1

    def test_rows_are_a_number_or_all(self, run_command):
        """Said before anything is fetched."""
        finished = run_command("sketchbatch-train", "fetch", "--rows", "0")
        assert finished.returncode == 2
        assert "expected a number from 1, or all" in finished.stderr


def wait_until_it_holds(path: Path, size_bytes: int) -> int:
    """The file's size, once it is that large and, the server being silent, grows no more."""
    sizes = [-1, -2]
    while sizes[-1] != sizes[-2] or sizes[-1] < size_bytes:
        time.sleep(0.05)
        sizes.append(path.stat().st_size if path.is_file() else 0)
    return sizes[-1]
