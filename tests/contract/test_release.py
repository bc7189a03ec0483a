"""Test `make release` in clones of a repository that has the files of this one."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

DISTRIBUTIONS = ("protos", "client", "service", "trainer")
LEFT_OUT = shutil.ignore_patterns(
    ".*", "runs", "dist", "site", "__pycache__", "benchmarks", "tests", "locks", "*.onnx", "*.png"
)
"""Files that the copy of the repository does not need. The names in the folders may contain versions of libraries."""


class Clone:
    """A clone of the repository, in which a test may release."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *words: str) -> str:
        """Run a git command that must succeed; return its output."""
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, edit: Callable[[Path], object]) -> None:
        """Commit a change that `edit` makes to the files."""
        edit(self.folder)
        self.git("commit", "--all", "--message=edit")

    def release(self, version: str, **environment: str) -> tuple[int, str, list[str]]:
        """Run `make release`; return its exit code, its output, and its errors without those of make itself."""
        author = {f"GIT_{role}_{key}": "t" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        finished = subprocess.run(
            ["make", "--no-print-directory", "release", f"VERSION={version}", f"PYTHON={sys.executable}"],
            cwd=self.folder,
            env=os.environ | author | {"UV_DEFAULT_INDEX": "unused"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        errors = [line for line in finished.stderr.splitlines() if not line.startswith("make")]
        return finished.returncode, finished.stdout, errors

    def project(self, distribution: str) -> dict:
        """Return the table `project` of a distribution."""
        return tomllib.loads((self.folder / distribution / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def origin(root, tmp_path_factory) -> Path:
    """Return a repository with the present files of this repository, also with those that are not committed."""
    folder = tmp_path_factory.mktemp("origin") / "repository"
    shutil.copytree(root, folder, ignore=LEFT_OUT, symlinks=True)
    repository = Clone(folder)
    repository.git("init", "--quiet")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message=begin")
    return folder


@pytest.fixture
def clone(origin, tmp_path) -> Clone:
    """Return a new clone, whose changelog has an unreleased change."""
    subprocess.run(["git", "clone", "--quiet", origin, tmp_path / "clone"], check=True)
    found = Clone(tmp_path / "clone")
    found.commit(lambda root: write_unreleased(root, "### Topic\n\n- A change that users notice.\n"))
    return found


def write_unreleased(root: Path, text: str) -> None:
    """Replace the section Unreleased of the changelog."""
    path = root / "CHANGELOG.md"
    changed, count = re.subn(r"(?s)^## Unreleased\n.*?(?=^## )", "", path.read_text(), flags=re.MULTILINE)
    assert count == 1
    head, separator, rest = changed.partition("## ")
    path.write_text(f"{head}## Unreleased\n\n{text}\n{separator}{rest}")


def test_a_release_sets_the_version_everywhere(clone):
    """The version and the requirements of all distributions change.

    The version before remains only in the pages about earlier versions.
    """
    before = clone.project("service")["version"]
    code, output, errors = clone.release("98.7.6")
    assert (code, errors) == (0, [])
    assert output.endswith("committed and tagged v98.7.6; publish with: git push origin HEAD v98.7.6\n")
    for project in map(clone.project, DISTRIBUTIONS):
        assert project["version"] == "98.7.6"
        own = [each for each in project["dependencies"] if each.startswith("sketchbatch-")]
        assert [each.partition("==")[2] for each in own] == ["98.7.6"] * len(own)
    listed = clone.git("grep", "--word-regexp", "--fixed-strings", "--files-with-matches", "98.7.6").splitlines()
    assert sorted(listed) == ["CHANGELOG.md", *sorted(f"{each}/pyproject.toml" for each in DISTRIBUTIONS)]
    stale = subprocess.run(["git", "grep", "-lwF", before], cwd=clone.folder, capture_output=True, text=True).stdout
    assert set(stale.split()) <= {"CHANGELOG.md", "UPGRADING.md", "docs/support.md"}
    made = subprocess.run(["make", "-n", "image"], cwd=clone.folder, capture_output=True, text=True, check=True)
    assert "--build-arg VERSION=98.7.6 " in made.stdout


def test_a_release_dates_the_changes_and_tags_them(clone):
    """The unreleased changes get the heading of the version with the date; commit and tag have the version."""
    changelog = clone.folder / "CHANGELOG.md"
    before, days = changelog.read_text(), [datetime.now(UTC).date()]
    assert clone.release("98.7.6")[0] == 0
    days.append(datetime.now(UTC).date())
    headings = [f"## Unreleased\n\n## 98.7.6 - {day.isoformat()}\n" for day in days]
    assert changelog.read_text() in [before.replace("## Unreleased\n", heading) for heading in headings]
    assert clone.git("log", "-1", "--format=%s") == "release: set version 98.7.6"
    assert clone.git("describe") == "v98.7.6"
    assert clone.git("cat-file", "-t", "v98.7.6") == "tag"
    assert not clone.git("status", "--porcelain")
    write_unreleased(clone.folder, "- Next.\n")
    clone.git("commit", "--all", "--message=next")
    assert clone.release("98.7.6")[2] == ["release: VERSION must be newer than 98.7.6, got 98.7.6"]
    assert clone.release("98.10.0")[0] == 0


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("", "VERSION must be x.y.z, such as 1.2.3, got nothing"),
        ("98.7", "VERSION must be x.y.z, such as 1.2.3, got 98.7"),
        ("v98.7.6", "VERSION must be x.y.z, such as 1.2.3, got v98.7.6"),
        ("98.7.6rc1", "VERSION must be x.y.z, such as 1.2.3, got 98.7.6rc1"),
        ("98.07.6", "VERSION must be x.y.z, such as 1.2.3, got 98.07.6"),
        ("0.0.1", "VERSION must be newer than "),
    ],
)
def test_an_unsuitable_version_is_refused(clone, version, message):
    """A version must have three numbers, and must be newer than the present one."""
    refused(clone, message, version)


def test_an_empty_changelog_is_refused(clone):
    """The section Unreleased must exist and must list changes; headings alone are no changes."""
    clone.commit(lambda root: write_unreleased(root, "### Topic\n"))
    refused(clone, "the section Unreleased of CHANGELOG.md must list the changes, got none: add what users notice")
    changelog = clone.folder / "CHANGELOG.md"
    clone.commit(lambda _: changelog.write_text(changelog.read_text().replace("## Unreleased\n", "")))
    refused(clone, "CHANGELOG.md must have a section '## Unreleased', got none")


def test_a_tag_that_exists_is_refused(clone):
    """A tag of the version is never moved."""
    clone.git("tag", "v98.7.6")
    refused(clone, "the tag v98.7.6 exists already: choose a newer VERSION")


def test_different_versions_are_refused(clone):
    """All distributions must have the same version before the release."""
    path = clone.folder / "client/pyproject.toml"
    clone.commit(lambda _: path.write_text(re.sub('(?m)^version = ".*"', 'version = "0.0.7"', path.read_text())))
    refused(clone, "all distributions must have the same version, got protos ")


def test_a_changed_tree_is_refused(clone):
    """Neither a changed file nor a new file may be in the working tree."""
    (clone.folder / "new.txt").write_text("new")
    refused(clone, "the working tree must be clean, got 1 changed file: commit or stash them", changes=1)
    (clone.folder / "README.md").write_text("changed")
    refused(clone, "the working tree must be clean, got 2 changed files: commit or stash them", changes=2)


def test_a_failed_commit_changes_no_file(clone):
    """If git refuses the commit, for example because of a hook, the files are as before."""
    hook = clone.folder / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    refused(clone, "git commit failed: not today")


def refused(clone: Clone, message: str, version: str = "98.7.6", *, changes: int = 0) -> None:
    """Check that the release ends with one line of error, and has changed neither files nor commits nor tags."""
    before = (clone.git("rev-parse", "HEAD"), clone.git("tag"), clone.git("diff"))
    code, output, errors = clone.release(version)
    assert code != 0
    assert output == ""
    [error] = errors
    assert error.startswith(f"release: {message}")
    assert (clone.git("rev-parse", "HEAD"), clone.git("tag"), clone.git("diff")) == before
    assert len(clone.git("status", "--porcelain").splitlines()) == changes
