"""Test that files with which fuzzing once harmed the client are now refused with an error of one line.

tests/fuzz/FINDINGS.md lists all findings.
"""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from sketchbatch_client.drawings.drawing import from_line
from sketchbatch_client.drawings.images import decode_image
from sketchbatch_client.drawings.npy import open_npz
from sketchbatch_client.errors import FileRefused, JobRefused
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.manifest import Manifest
from sketchbatch_client.scoring.merge import merge
from sketchbatch_client.scoring.parts import Parts


def test_a_stored_array_with_a_flipped_bit_is_refused(tmp_path, noise):
    """An .npz file in which one bit has changed is refused, because its checksum is wrong."""
    path = tmp_path / "drawings.npz"
    np.savez(path, drawings=noise(3))
    assert np.array_equal(open_npz(path).arrays["drawings"][:], noise(3))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FileRefused, match="Bad CRC-32"):
        open_npz(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """An .npz file is refused, before it is unpacked, if its array is compressed more than 200 times.

    Such a file of a few hundred kB could contain an array of many GB.
    """
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    rows = 1_400_000  # 1.1 GB
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (rows, 784)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("blank.npy", header.getvalue() + bytes(784))
    contents = bytearray(path.read_bytes())
    directory = contents.rfind(b"PK\1\2")  # a false size in the central directory is noticed only during unpacking
    contents[directory + 24 : directory + 28] = (len(header.getvalue()) + rows * 784).to_bytes(4, "little")
    path.write_bytes(contents)
    with pytest.raises(FileRefused, match="compressed at most 200 times, got 1,097,600,128 bytes"):
        open_npz(path)


@pytest.mark.parametrize(
    ("xs", "reason"),
    [
        ([0, 255] * 20_001, "at most 40,000 points, got 40,002"),
        ([0, 255] * 400, "at most 500 times as long as the drawing, got 799 times"),
    ],
)
def test_drawings_that_would_take_minutes_to_render_are_refused(xs, reason):
    """A drawing with too many points or too long strokes is refused.

    The time to render a drawing grows with the square of its number of points and of the length of its strokes.
    """
    line = json.dumps({"drawing": [[xs, [index % 2 for index in range(len(xs))]]]}).encode()
    with pytest.raises(ValueError, match=reason):
        from_line(line)
    from_line(json.dumps({"drawing": [[xs[:800:4], [0, 255] * 100]]}).encode())  # this length is accepted


def test_an_empty_bin_holds_no_row(tmp_path):
    """An empty .bin is rejected in one line, like an empty file of any other format."""
    (tmp_path / "empty.bin").touch()
    with pytest.raises(FileRefused, match="expected drawings, got no row"):
        find_sources([str(tmp_path / "empty.bin")], tmp_path, lambda _: None)


def test_a_jpeg_of_very_many_scans_is_refused():
    """A JPEG file with more than 100 scans is refused, because a small file of many scans could take hours to decode.

    A scan is one pass over the pixels; a progressive JPEG has several scans.
    """
    file = io.BytesIO()
    Image.new("L", (64, 64), 255).save(file, "JPEG", progressive=True)
    contents = file.getvalue()
    scan = contents[contents.rfind(b"\xff\xda") : -2]
    with pytest.raises(FileRefused, match="at most 100 scans, got 15"):
        decode_image(contents[:-2] + scan * 150 + contents[-2:], "many.jpg")


def finished(tmp_path, **changes):
    """Write the output and manifest of a finished job of one shard; `changes` replace fields of its plan."""
    output = tmp_path / "labels.csv"
    output.write_bytes(b"source,row\n")
    plan = {"format": 1, "inputs": [], "model": "m", "version": "1", "model_digest": "d", "labels": ["a"], "top_k": 1}
    plan |= {"with_all_scores": False, "part_rows": 1, "shard": [0, 1], **changes}
    manifest = {"plan": plan, "digests": {}, "rows": 0, "rejected": 0, "output_bytes": 11}
    (tmp_path / "labels.csv.manifest.json").write_text(json.dumps(manifest))
    return output


@pytest.mark.parametrize(
    "changes",
    [{"part_rows": 0}, {"part_rows": "1"}, {"shard": [1, 1]}, {"shard": [-1, 2]}, {"labels": [1]}, {"top_k": 1e9}],
)
def test_a_manifest_with_impossible_values_is_refused(tmp_path, changes):
    """A manifest with impossible values is refused at once, so that these values cannot fail the job later."""
    assert Manifest.read(finished(tmp_path))
    with pytest.raises(JobRefused, match=r"labels\.csv\.manifest\.json: cannot be read: "):
        Manifest.read(finished(tmp_path, **changes))


def test_missing_shards_are_counted_not_listed(tmp_path):
    """The error about missing shards contains how many are missing, but no list of them.

    A damaged manifest can state any number of shards, here 1,000,000,000,000.
    """
    with pytest.raises(JobRefused, match="999999999999 of 1000000000000 shards are missing, the first is number 1"):
        merge([finished(tmp_path, shard=[0, 10**12])], tmp_path / "all.csv")


def test_a_part_with_any_damage_counts_as_unfinished(tmp_path, root):
    """A part file that is truncated, damaged or empty, or that has no part digest, counts as unfinished.

    A job scores unfinished parts again.
    """
    for damaged in (root / "tests/fuzz/corpus/part").glob("[cden]*.arrow"):  # cut, damaged, empty, no digest
        (tmp_path / "part-0000000.arrow").write_bytes(damaged.read_bytes())
        assert Parts(tmp_path).digest(0) is None, damaged
    (tmp_path / "part-0000000.arrow").write_bytes((root / "tests/fuzz/corpus/part/lz4.arrow").read_bytes())
    assert Parts(tmp_path).digest(0) == (123,)
