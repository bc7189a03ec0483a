"""Test that a file is read once, whatever links, patterns and names lead to it."""

import pytest
from sketchbatch_client.drawings.passed_over import PassedOverList
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.inputs import find_sources
from small_files import HEIC, npy, picture


@pytest.mark.parametrize("layout", ["", "label=ant/", "numpy_bitmap/"])
@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_a_link_to_a_file_of_the_same_folder_is_not_read_twice(tmp_path, layout, suffix):
    """Links such as `latest.npy` are passed over in a folder, also through other links; links elsewhere are read."""
    if layout and suffix == ".png":
        layout = layout.replace("label=", "").replace("numpy_bitmap", "bee")
    root, elsewhere, spool = tmp_path / "in", tmp_path / "elsewhere", tmp_path / "spool"
    inner = root / layout
    for folder in (inner, elsewhere, spool):
        folder.mkdir(parents=True)
    for path in (inner / f"a{suffix}", elsewhere / f"b{suffix}", inner / f".hidden{suffix}"):
        path.write_bytes(npy(1) if suffix == ".npy" else picture("png"))
    links = {"b": elsewhere / f"b{suffix}", "hidden": f".hidden{suffix}"}
    links |= {"latest": f"a{suffix}", "chain": f"latest{suffix}", "absolute": inner / f"a{suffix}", "own": f"b{suffix}"}
    for name, target in links.items():
        (inner / f"{name}{suffix}").symlink_to(target)
    passed_over = PassedOverList()
    sources = find_sources([str(root)], spool, lambda _: None, passed_over=passed_over)
    assert sum(map(len, sources)) == 3  # a, b and hidden
    for name, target in {"latest": "a", "chain": "a", "absolute": "a", "own": "b"}.items():
        assert (str(inner / f"{name}{suffix}"), f"a link to {target}{suffix}", False) in passed_over.entries
    assert passed_over.count_with_drawings == 0
    assert len(find_sources([str(inner / f"latest{suffix}")], spool, lambda _: None)) == 1


def test_a_link_to_an_output_is_no_input(tmp_path):
    """A job that scores its own folder every night leaves its output out, and so a link to the output."""
    (tmp_path / "a.npy").write_bytes(npy(1))
    (tmp_path / "night.parquet").write_bytes(b"scores")
    (tmp_path / "night.parquet.manifest.json").write_text("{}")
    (tmp_path / "latest.parquet").symlink_to("night.parquet")
    (tmp_path / "loop.npy").symlink_to("pool.npy")
    (tmp_path / "pool.npy").symlink_to("loop.npy")
    with pytest.raises(FileRefused, match=r"2 inputs .*loop\.npy: .*a link that leads to no file; .*pool\.npy"):
        find_sources([str(tmp_path)], tmp_path, lambda _: None)
    (tmp_path / "loop.npy").unlink()
    (tmp_path / "pool.npy").unlink()
    assert [source.name for source in find_sources([str(tmp_path)], tmp_path, lambda _: None)] == [f"{tmp_path}/a.npy"]


def test_a_file_is_read_once_whatever_links_lead_to_it(tmp_path):
    """Within one folder or pattern, links to files and folders that are read, too, are passed over."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.npy").write_bytes(npy(2))
    (tmp_path / "in" / "best").mkdir()
    (tmp_path / "in" / "best" / "b.npy").symlink_to("../sub/a.npy")
    (tmp_path / "in" / "best" / "c.npy").write_bytes(npy(1))
    (tmp_path / "in" / "current").symlink_to("sub")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p.png").write_bytes(picture("png"))
    (tmp_path / "pictures" / "latest.png").symlink_to("p.png")
    for given, rows, skipped in (
        ("in", ["best/c.npy", "sub/a.npy"], ["best/b.npy"]),
        ("in/**/*.npy", ["best/c.npy", "sub/a.npy"], ["best/b.npy", "current/a.npy"]),
        ("pictures/*.png", ["p.png"], ["latest.png"]),
    ):
        passed_over = PassedOverList()
        sources = find_sources([str(tmp_path / given)], tmp_path, lambda _: None, passed_over=passed_over)
        root = tmp_path / given.partition("/")[0]
        assert [source.name for source in sources] == [f"{root}/{name}" for name in rows]
        assert [entry.path for entry in passed_over.entries] == [f"{root}/{name}" for name in skipped]
        assert passed_over.count_with_drawings == 0


def test_a_link_to_a_folder_above_it_is_not_called_a_folder_with_drawings(tmp_path):
    """The advice to add it would score the drawings twice."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.npy").write_bytes(npy(2))
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    passed_over = PassedOverList()
    find_sources([str(tmp_path / "in")], tmp_path, lambda _: None, passed_over=passed_over)
    assert [(each.reason, each.may_have_drawings) for each in passed_over.entries] == [
        ("a link to a folder above it", False)
    ]


def test_a_file_that_is_named_relative_and_absolute_is_read_once(tmp_path, monkeypatch):
    """As a file that is named twice. Names through a link to its folder stay two inputs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.npy").write_bytes(npy(2))
    (tmp_path / "link").symlink_to("in")
    given = ["in", str(tmp_path / "in"), "./in/a.npy", "link"]
    assert [source.name for source in find_sources(given, tmp_path, lambda _: None)] == ["in/a.npy", "link/a.npy"]


def test_each_picture_of_a_pattern_is_read_once(tmp_path):
    """The pattern `in/**` matches the folders of pictures and their pictures."""
    (tmp_path / "in" / "cat").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / "cat" / name).write_bytes(picture("png"))
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    [gone, cats] = find_sources([str(tmp_path / "in" / "**")], tmp_path, lambda _: None)
    assert (gone.name, len(gone), cats.name, len(cats)) == (f"{tmp_path}/in", 1, f"{tmp_path}/in/cat", 2)
    assert [reject.source for reject in gone.block(0, 1).rejects] == [f"{tmp_path}/in/gone.png"]


def test_a_link_that_is_named_is_read_and_not_called_passed_over(tmp_path):
    """A pattern passes over the link, and the argument that names it reads it."""
    (tmp_path / "a.npy").write_bytes(npy(1))
    (tmp_path / "latest.npy").symlink_to("a.npy")
    passed_over = PassedOverList()
    given = [str(tmp_path / "*.npy"), str(tmp_path / "latest.npy")]
    assert len(find_sources(given, tmp_path, lambda _: None, passed_over=passed_over)) == 2
    assert passed_over.count == 0
    given = [str(tmp_path / "*.npy"), str(tmp_path / "*.np?")]
    assert len(find_sources(given, tmp_path, lambda _: None, passed_over=passed_over)) == 1
    assert [entry.path for entry in passed_over.entries] == [str(tmp_path / "latest.npy")]


def test_linked_folders_are_searched_once(tmp_path):
    """The files of a linked folder are read, and a link to a folder above ends the search."""
    root, elsewhere, spool = tmp_path / "in", tmp_path / "elsewhere", tmp_path / "spool"
    for folder in (root, elsewhere, spool):
        folder.mkdir()
    (elsewhere / "a.npy").write_bytes(npy(2))
    (elsewhere / "b.heic").write_bytes(HEIC)
    (elsewhere / "up").symlink_to(root)
    (root / "day").symlink_to(elsewhere)
    passed_over = PassedOverList()
    sources = find_sources([str(root)], spool, lambda _: None, passed_over=passed_over)
    assert [source.name for source in sources] == [f"{root}/day/a.npy"]
    assert [entry.path for entry in passed_over.entries] == [f"{root}/day/b.heic"]
