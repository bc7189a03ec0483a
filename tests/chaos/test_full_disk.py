"""Test the client's commands on a full disk: a small tmpfs, which only root can mount."""

import json
import os
import subprocess

import numpy as np
import pytest

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
]

ROWS, PART = 6000, 512
# Space that the test frees after each failure, so that the job fails several times: the job needs about 620 KiB for CSV
# and half as much for Parquet.
STEP_KIB = 130


class SmallDisk:
    """Manage a file system of 3 MiB that a filler file fills, except for the space that a test frees."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def leave(self, kib: int) -> None:
        """Resize the filler file so that `kib` KiB of the disk are free."""
        self._filler.unlink(missing_ok=True)
        disk = os.statvfs(self.folder)
        self._filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - kib * 1024)))

    def used_kib(self) -> int:
        """Return the KiB that all files except the filler file use."""
        return sum((self.folder / name).stat().st_blocks for name in self.files()) // 2

    def files(self) -> set[str]:
        """Return the names of all files except the filler file."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()} - {"filler"}


@pytest.fixture
def disk(tmp_path):
    """Mount a small disk that is full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    small = SmallDisk(folder)
    small.leave(0)
    yield small
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def drawings(tmp_path):
    """Write a file of bitmaps, and a file of strokes in which some lines are invalid."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    np.save(folder / "a.npy", np.random.default_rng(5).integers(0, 256, (ROWS, 784), np.uint8))
    lines = [json.dumps({"drawing": [[[row % 256, 255], [0, 255]]]}) for row in range(600)]
    lines[::9] = ["no drawing"] * len(lines[::9])
    lines[0], lines[1] = lines[1], lines[0]
    (folder / "b.ndjson").write_text("\n".join(lines))
    return folder


def assert_reports_full_disk(finished, folder):
    """Check that a command ended with exit code 1, and that its one line of error names the file and the remedy."""
    assert finished.returncode == 1, finished.stderr
    assert finished.stderr.startswith(f"sketchbatch: {folder}/")
    assert finished.stderr.endswith(": No space left on device; free disk space, then run the same command again\n")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_full_disk_loses_nothing(run_command, tiny_service, drawings, disk, tmp_path, capsys, kind):
    """If the disk is full, a job writes no output and keeps its finished parts.

    The test repeats the command with more free space each time, until the job ends. The output is then byte-identical
    to the output of a job on a disk with enough space.
    """
    flags = ["--server", tiny_service.address, "--part-rows", PART, "--quiet"]
    undisturbed, output = tmp_path / f"o.{kind}", disk.folder / f"o.{kind}"
    assert run_command("sketchbatch", "score", drawings, "--output", undisturbed, *flags).returncode == 3
    parts: list[int] = []
    kib = 0
    while (finished := run_command("sketchbatch", "score", drawings, "--output", output, *flags)).returncode != 3:
        assert_reports_full_disk(finished, disk.folder)
        left = disk.files()
        parts.append(len([name for name in left if name.endswith(".arrow")]))
        assert all(name.startswith(f"{output.name}.parts/") and "partial" not in name for name in left)
        kib += STEP_KIB
        disk.leave(kib - disk.used_kib())
    for ending in ("", ".rejects.jsonl"):
        mine, other = (path.with_name(path.name + ending).read_bytes() for path in (output, undisturbed))
        assert mine == other
    assert len(disk.files()) == 3
    with capsys.disabled():
        print(f"\n{kind}: disk full {len(parts)} times, parts kept each time: {parts}; identical output")
    assert parts == sorted(parts)
    assert parts[-1] > 1


def test_merge_and_evaluate_leave_no_partial_file(run_command, tiny_service, drawings, disk, tmp_path, capsys):
    """If the disk is full, `merge` and `evaluate` leave no file behind, neither a complete nor an incomplete one."""
    flags = ["--server", tiny_service.address, "--quiet"]
    shards = []
    for number in range(2):
        run_command(
            "sketchbatch",
            "score",
            drawings,
            "--output",
            tmp_path / "s.csv",
            *flags,
            "--shard",
            f"{number}/2",
            "--part-rows",
            PART,
        )
        shards.append(tmp_path / f"s-0000{number}-of-00002.csv")
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    for number, label in enumerate(("ant", "bee", "cow")):
        np.save(labelled / f"{label}.npy", np.load(drawings / "a.npy")[number * 50 : number * 50 + 50])
    joined_kib = sum(shard.stat().st_size for shard in shards) // 1024
    # For each command: sizes of free space, in KiB, that are too small. The third size for `merge` is large enough for
    # the output, but not for the other files.
    verbs = {
        "m.csv": (["merge", *shards, "--quiet", "--output"], (0, joined_kib // 2, joined_kib + 4)),
        "e.json": (["evaluate", labelled, *flags, "--json"], (0, 4)),
        "e.html": (["evaluate", labelled, *flags, "--html"], (0, 4)),
    }
    for name, (words, too_little) in verbs.items():
        for kib in too_little:
            disk.leave(kib)
            assert_reports_full_disk(run_command("sketchbatch", *words, disk.folder / name), disk.folder)
            assert not disk.files()
        disk.leave(2000)
        assert run_command("sketchbatch", *words, disk.folder / name).returncode in (0, 3)
        assert name in disk.files()
        for each in disk.files():
            (disk.folder / each).unlink()
    with capsys.disabled():
        print("\ndisk full seven times: no partial file was left")
