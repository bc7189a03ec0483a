"""Test that files of strokes are read drawing by drawing, and that malformed lines are refused or skipped."""

import json
import struct

import pytest
from sketchbatch_client.drawings import strokes
from sketchbatch_client.drawings.drawing import Drawing
from sketchbatch_client.drawings.strokes import Malformed, StrokeFile, open_strokes
from sketchbatch_client.errors import FileRefused

LINE = {
    "word": "cat",
    "countrycode": "VE",
    "timestamp": "2017-03-02 23:25:10.07453 UTC",
    "recognized": True,
    "key_id": "5201136883597312",
    "drawing": [[[130, 113], [72, 40]], [[76], [136]]],
}


def ndjson(*lines: object) -> bytes:
    """Return a file with one line per argument: a string is written unchanged, and any other value as JSON."""
    return b"".join((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n" for line in lines)


def record(strokes, *, key_id=7, country=b"VE", is_recognized=1, drawn_at=1488497110) -> bytes:
    """Return the record of a drawing in the binary format that Google's binary_file_parser.py reads."""
    parts = [struct.pack("<Q2sbIH", key_id, country, is_recognized, drawn_at, len(strokes))]
    parts += [struct.pack("<H", len(xs)) + bytes(xs) + bytes(ys) for xs, ys in strokes]
    return b"".join(parts)


def test_a_line_becomes_a_drawing_with_all_its_fields(tmp_path):
    """A line becomes a drawing with all fields of the line; the key id and the time become numbers."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson(LINE))
    file = open_strokes(path)
    assert (len(file), file.malformed_count) == (1, 0)
    assert list(file) == [file[0]] == [file[-1]]
    assert file[0] == Drawing(5201136883597312, "cat", "VE", True, 1488497110.07453, LINE["drawing"])
    with pytest.raises(IndexError):
        file[1]


def test_a_line_needs_only_strokes(tmp_path):
    """A line needs only the field `drawing`; all other fields have defaults, for drawings from other sources."""
    path = tmp_path / "mine.ndjson"
    path.write_bytes(ndjson({"drawing": [[[1, 2.5], [3, 4]]]})[:-1])  # the last line has no newline
    assert open_strokes(path)[0] == Drawing(0, "", "", None, 0.0, [[[1, 2.5], [3, 4]]])


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n", b"\n\n \t\n", b"\n" * 10_000])
@pytest.mark.parametrize("every", [1, 2])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end, every):
    """Editors and scripts add blank lines at the end; they are neither drawings nor rejects."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson(LINE, LINE, LINE)[:-1] + end)
    file = StrokeFile(path, index_every=every)
    assert len(file) == file.line_count == 3
    assert [drawing.word for drawing in file] == ["cat"] * 3
    path.write_bytes(end)
    assert len(StrokeFile(path)) == 0


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 50, 1 << 20])
def test_blank_lines_between_lines_are_no_rows(tmp_path, monkeypatch, every, chunk_bytes):
    """Blank lines have no row, wherever a chunk of the file ends."""
    monkeypatch.setattr(strokes, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "cat.ndjson"
    lines = ["", " ", " {", "", "\r", "{", "\t \r", "[", "  x", "", "{}", "", "", "", "y", " "]
    path.write_bytes(b'{"drawing": [[[1], [2]]]}\n' + "\n".join(lines).encode())
    file = StrokeFile(path, index_every=every)
    found = [line.strip().decode() for line in file.lines(0, file.line_count)][1:]
    assert found == [line.strip() for line in lines if line.strip()]
    for start in range(1, file.line_count):
        assert next(file.lines(start, start + 1)).strip().decode() == found[start - 1]


def test_an_error_message_counts_blank_lines(tmp_path):
    """The number of a malformed line is that of an editor, which counts blank lines."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson("", LINE, "", "", "no JSON", "", LINE))
    file = StrokeFile(path)
    assert len(file) == 3
    with pytest.raises(FileRefused, match=r"cat\.ndjson:5: not JSON"):
        _ = file[1]
    skipping = open_strokes(path, skip_malformed=True)
    assert (len(skipping), skipping.malformed[0].number) == (2, 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key_id", "a-17"),
        ("key_id", str(2**64)),
        ("key_id", -1),
        ("key_id", 1.5),
        ("key_id", [1]),
        ("word", 1),
        ("countrycode", {}),
        ("recognized", "yes"),
        ("timestamp", "9999-12-31 23:59:59"),
        ("timestamp", "today"),
        ("timestamp", 7),
    ],
)
def test_unreadable_metadata_costs_no_drawing(tmp_path, field, value):
    """A field of metadata that cannot be read is empty, and the drawing names it."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson(LINE | {field: value}, {"drawing": LINE["drawing"]} | {field: None}))
    first, second = open_strokes(path)
    attribute = {"countrycode": "country", "recognized": "is_recognized", "timestamp": "drawn_at"}.get(field, field)
    assert first.strokes == LINE["drawing"]
    assert getattr(first, attribute) == getattr(second, attribute)  # that of a line without the field
    assert (first.unread, second.unread) == ((field,), ())


def test_metadata_in_another_encoding_costs_no_drawing(tmp_path):
    """A word in Latin-1 cannot be read as UTF-8; it is empty, and the drawing and its other fields stay."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(json.dumps(LINE | {"word": "jos\u00e9"}, ensure_ascii=False).encode("latin-1"))
    [drawing] = open_strokes(path)
    assert (drawing.word, drawing.unread, drawing.strokes) == ("", ("word",), LINE["drawing"])
    assert drawing.key_id == int(LINE["key_id"])


def test_a_key_may_be_a_whole_number_of_any_type(tmp_path):
    """Pandas writes 6.0 for 6, if another row has no key."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson(*(LINE | {"key_id": key} for key in ("6", 6, 6.0))))
    assert [drawing.key_id for drawing in open_strokes(path)] == [6, 6, 6]


def test_records_have_the_same_drawings_as_lines(tmp_path):
    """Records of a .bin give the same drawings as lines of .ndjson, except that records have no word."""
    path = tmp_path / "cat.bin"
    drawings = [LINE["drawing"], [[[0, 255, 1], [2, 3, 4]]], [[[9], [9]]]]
    path.write_bytes(b"".join(record(strokes, key_id=2**64 - 1) for strokes in drawings))
    file = open_strokes(path)
    assert [drawing.strokes for drawing in file] == drawings
    assert file[1] == Drawing(2**64 - 1, "", "VE", True, 1488497110.0, drawings[1])


@pytest.mark.real_drawings
def test_real_files_are_read_whole(quickdraw):
    """Every line of Google's files is read, and the word of each drawing is the name of its file.

    Only raw strokes have times.
    """
    for kind, lists in (("raw", 3), ("simplified", 2)):
        for path in (quickdraw / kind).glob("[bcd]*.ndjson"):
            file = open_strokes(path)
            assert len(file) == len(path.read_text().splitlines())
            assert {drawing.word for drawing in file} == {path.stem}
            assert {len(stroke) for drawing in file for stroke in drawing.strokes} == {lists}


MALFORMED_LINES = [
    ("{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
    ("[" * 100_000, "not JSON: nested too deep"),
    ("[1]", r"expected a JSON object, got \[1\]"),
    ({"word": "cat"}, r'expected the key drawing with a list of strokes, got the keys \["word"\]'),
    ({"drawing": None}, "drawing must be a list of strokes, got nothing"),
    ({"drawing": []}, "a drawing must have at least one stroke, got none"),
    ({"drawing": [[[1]]]}, r"stroke 0 must be \[xs, ys\] or \[xs, ys, ts\], got \[\[1\]\]"),
    ({"drawing": [[[1], 1]]}, r"stroke 0 must be \[xs, ys\]"),
    ({"drawing": [[[1, 2]] * 4]}, r"got 4 points; convert with list\(zip\(\*stroke\)\)"),
    ({"drawing": [[{"x": 1, "y": 2}] * 2]}, r"got 2 points; convert with \[\[p\['x'\] for p in stroke\]"),
    ({"drawing": [[[1], [1]], [[1, 2], [1]]]}, r"stroke 1 must have as many x as y and at least one, got \[2, 1\]"),
    ({"drawing": [[[], []]]}, r"at least one, got \[0, 0\]"),
    ({"drawing": [[[1], [1], [1, 2]]]}, r"got \[1, 1, 2\]"),
    ({"drawing": [[["1"], [1]]]}, r'only numbers, got \["1"\]'),
    ({"drawing": [[[True], [1]]]}, "only numbers"),
    ({"drawing": [[[1], [None]]]}, "only numbers"),
    ({"drawing": [[[float("nan")], [1]]]}, "must be within 1e"),
    ({"drawing": [[[1], [1e300]]]}, "must be within 1e"),
    ({"drawing": [[[1], [1], [10**400]]]}, "times within 1e"),
    ({"drawing": [[[1], [1], [float("nan")]]]}, "times within 1e"),
]


@pytest.mark.parametrize(("line", "reason"), MALFORMED_LINES)
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path, line, reason):
    """Reading a malformed line raises an error with the file and the line number; the other lines can be read."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson(LINE, line, LINE))
    file = open_strokes(path)
    assert (len(file), file[0].word, file[2].word) == (3, "cat", "cat")
    with pytest.raises(FileRefused, match=rf"cat\.ndjson:2: .*{reason}") as caught:
        list(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 160


def test_malformed_lines_are_skipped_and_counted_when_asked(tmp_path):
    """With `skip_malformed`, malformed lines are skipped and counted; other lines keep their order and line numbers."""
    path = tmp_path / "cat.ndjson"
    lines = [line for line, _ in MALFORMED_LINES]
    path.write_bytes(ndjson(*lines, LINE, *lines, LINE | {"word": "dog"}))
    file = open_strokes(path, skip_malformed=True)
    assert [drawing.word for drawing in file] == [file[0].word, file[1].word] == ["cat", "dog"]
    assert file.malformed_count == len(file.malformed) == 2 * len(lines)
    assert file.malformed[0] == Malformed(1, MALFORMED_LINES[0][1])
    assert [file.number_of(0), file.number_of(1)] == [len(lines) + 1, 2 * len(lines) + 2]


@pytest.mark.parametrize("ending", [".ndjson", ".bin"])
def test_a_line_or_record_of_many_megabytes_is_refused_and_the_next_is_read(tmp_path, ending):
    """A line or record of more than 4 MiB is refused, and the next line or record can be read.

    The size is limited because parsing a line takes many times the line's size in memory.
    """
    much = [[[1] * 60_000] * 2] * 40
    path = tmp_path / f"cat{ending}"
    lines = ndjson(LINE | {"drawing": much}, LINE)
    path.write_bytes(lines if ending == ".ndjson" else record(much) + record(LINE["drawing"]))
    with pytest.raises(FileRefused, match=f"cat{ending}:1: a line or record must have at most 4194304 bytes, got more"):
        open_strokes(path)
    file = open_strokes(path, skip_malformed=True)
    assert (len(file), file.malformed_count, file[0].strokes) == (1, 1, LINE["drawing"])


def test_the_list_of_malformed_lines_is_bounded(tmp_path):
    """Only the first 1,000 malformed lines are listed, but all are counted."""
    path = tmp_path / "cat.ndjson"
    path.write_bytes(b"{\n" * 5000)
    file = open_strokes(path, skip_malformed=True)
    assert (len(file), len(file.malformed), file.malformed_count) == (0, 1000, 5000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (record([[[1, 2], [3, 4]]])[:-1], "truncated: the file ends 22 bytes into this record"),
        (record([[[1, 2], [3, 4]]])[:9], "truncated: the file ends 9 bytes into this record"),
        (record([]), "at least one stroke, got none"),
        (record([[[], []]]), "stroke 0 must have at least one point"),
    ],
)
def test_a_malformed_record_is_refused_or_skipped(tmp_path, content, reason):
    """Reading a malformed record raises an error with the number of the record; the first record has number 1.

    With `skip_malformed`, the record is skipped.
    """
    path = tmp_path / "cat.bin"
    path.write_bytes(record(LINE["drawing"]) + content)
    with pytest.raises(FileRefused, match=rf"cat\.bin:2: .*{reason}"):
        list(open_strokes(path))
    file = open_strokes(path, skip_malformed=True)
    assert (len(file), file.malformed[0].number, file.malformed_count) == (1, 2, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cat.ndjson", b" <!doctype html>", "got a web page; copy or download it again"),
        ("cat.ndjson", b"\x93NUMPY", "expected a drawing in JSON per line, got a NumPy array"),
        ("cat.bin", b"PK", "cat.bin:1: truncated"),
        ("cat.txt", b"", "expected a suffix of .ndjson, .jsonl, .bin, got '.txt'"),
    ],
)
def test_a_file_of_another_kind_is_refused_when_it_is_opened(tmp_path, name, content, message):
    """Opening a file checks its first line or record, so that a long job with a wrong file fails at its start."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileRefused, match=message):
        open_strokes(tmp_path / name)


def test_a_missing_file_is_refused_and_an_empty_one_has_no_drawing(tmp_path):
    """A missing file is refused with its path; an empty file is valid."""
    with pytest.raises(FileRefused, match=r"none\.bin: cannot be read: No such file"):
        open_strokes(tmp_path / "none.bin")
    (tmp_path / "empty.ndjson").touch()
    assert list(open_strokes(tmp_path / "empty.ndjson")) == []


def test_a_file_costs_eight_bytes_a_drawing(tmp_path):
    """An open stroke file costs eight bytes per drawing, because its lines are not kept in memory."""
    import tracemalloc

    path = tmp_path / "cat.ndjson"
    path.write_bytes(ndjson(LINE) * 50_000)
    open_strokes(path)  # the first call imports modules and fills caches
    tracemalloc.start()
    try:
        file = open_strokes(path)
        kept_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(file) == 50_000
    assert path.stat().st_size > 9_000_000
    assert kept_bytes < 10 * 50_000 + 10_000
