"""Make a release: `make release VERSION=x.y.z` sets the version everywhere, dates the changelog, commits and tags.

The version stands in the pyproject.toml of each distribution, and in its requirements of other distributions. `make
image` and the commands read it from there, so the labels of images need no change. The script needs git and no package.
Nothing is pushed. If a check fails, nothing is changed.
"""

import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

DISTRIBUTIONS = ("protos", "client", "service", "trainer")
CHANGELOG = "CHANGELOG.md"

_VERSION = r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
_UNRELEASED = re.compile(r"^## Unreleased\n(?P<changes>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


class Refused(Exception):
    """The release cannot be made; the message is one line."""


def main() -> None:
    """Release the version that is the only argument; print the next steps, or one line of error with exit code 1."""
    version = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        release(Path.cwd(), version)
    except Refused as exc:
        sys.exit(f"release: {exc}")
    print(f"committed and tagged v{version}; publish with: git push origin HEAD v{version}")


def release(root: Path, version: str) -> None:
    """Release `version` in the working tree at `root`; raise Refused, without a change, if that is not possible."""
    if not re.fullmatch(_VERSION, version):
        raise Refused(f"VERSION must be x.y.z, such as 1.2.3, got {version or 'nothing'}")
    _check_tree(root)
    present = _present_version(root)
    if _numbers(version) <= _numbers(present):
        raise Refused(f"VERSION must be newer than {present}, got {version}")
    if _git(root, "tag", "--list", f"v{version}"):
        raise Refused(f"the tag v{version} exists already: choose a newer VERSION")
    changed = {CHANGELOG: _dated_changelog(root, version)}
    for distribution in DISTRIBUTIONS:
        changed[f"{distribution}/pyproject.toml"] = _with_version(root, distribution, present, version)
    for name, text in changed.items():
        (root / name).write_text(text)
    try:
        _git(root, "commit", "--quiet", f"--message=release: set version {version}", "--", *changed)
    except Refused:
        _git(root, "restore", "--staged", "--worktree", "--", *changed)
        raise
    try:
        _git(root, "tag", f"--message=Sketchbatch {version}", "--annotate", f"v{version}")
    except Refused as exc:
        raise Refused(f"{exc}; the commit of {version} was made, so only the tag v{version} is missing") from exc


def _check_tree(root: Path) -> None:
    if changes := _git(root, "status", "--porcelain").splitlines():
        count = "1 changed file" if len(changes) == 1 else f"{len(changes)} changed files"
        raise Refused(f"the working tree must be clean, got {count}: commit or stash them")


def _present_version(root: Path) -> str:
    found = {each: _project_version(root / each / "pyproject.toml") for each in DISTRIBUTIONS}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{each} {version}" for each, version in found.items())
        raise Refused(f"all distributions must have the same version, got {listed}")
    present = found[DISTRIBUTIONS[0]]
    if not re.fullmatch(_VERSION, present):
        raise Refused(f"the version in {DISTRIBUTIONS[0]}/pyproject.toml must be x.y.z, got {present}")
    return present


def _project_version(path: Path) -> str:
    return str(tomllib.loads(path.read_text())["project"]["version"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _dated_changelog(root: Path, version: str) -> str:
    """Return the changelog with an empty section "Unreleased" above the section of the new version."""
    text = (root / CHANGELOG).read_text()
    unreleased = _UNRELEASED.search(text)
    if not unreleased:
        raise Refused(f"{CHANGELOG} must have a section '## Unreleased', got none")
    if not re.search(r"^[^#\s]", unreleased["changes"], re.MULTILINE):
        raise Refused(f"the section Unreleased of {CHANGELOG} must list the changes, got none: add what users notice")
    today = datetime.now(UTC).date().isoformat()
    heading = f"## Unreleased\n\n## {version} - {today}\n"
    return text[: unreleased.start()] + heading + unreleased["changes"] + text[unreleased.end() :]


def _with_version(root: Path, distribution: str, present: str, version: str) -> str:
    """Return the pyproject.toml of a distribution with the new version, also in requirements of other distributions."""
    text = (root / distribution / "pyproject.toml").read_text()
    text, versions = re.subn(rf'^version = "{re.escape(present)}"$', f'version = "{version}"', text, flags=re.MULTILINE)
    if versions != 1:
        raise Refused(f'{distribution}/pyproject.toml must have one line version = "{present}", got {versions}')
    return re.sub(rf'"(sketchbatch-\w+(?:\[[\w,]+\])?)=={re.escape(present)}"', rf'"\g<1>=={version}"', text)


def _git(root: Path, *words: str) -> str:
    """Return the output of a git command; raise Refused with the last line of its error if it fails."""
    finished = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)  # noqa: S607
    if finished.returncode:
        lines = (finished.stderr or finished.stdout).strip().splitlines()
        raise Refused(f"git {words[0]} failed: {lines[-1] if lines else f'exit code {finished.returncode}'}")
    return finished.stdout.strip()


if __name__ == "__main__":
    main()
