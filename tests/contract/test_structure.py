"""Check the rules for our source code: few modules per package, few layers per distribution, and no banned words."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("client/sketchbatch_client", "service/sketchbatch_service", "trainer/sketchbatch_trainer")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_more_than_twelve_modules(root, package):
    """A package has at most twelve modules; a larger package must be split."""
    folders = {path.parent for path in (root / package).rglob("*.py")}
    sizes = {str(folder.relative_to(root)): len(list(folder.glob("*.py"))) for folder in folders}
    assert len(sizes) >= 6
    assert {folder: size for folder, size in sizes.items() if size > 12} == {}


def test_no_distribution_has_more_than_eight_layers(root):
    """A distribution has at most eight layers, so that a reader can remember all of them."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {each["containers"][0]: each["layers"] for each in contracts if "containers" in each}
    assert set(layers) == {"sketchbatch_client", "sketchbatch_service", "sketchbatch_trainer"}
    assert {name: len(found) for name, found in layers.items() if len(found) > 8} == {}


@pytest.mark.parametrize(
    "text",
    [
        "# The crew waits.",  # codespell:ignore crew
        "_lane = 1",  # codespell:ignore lane
        '"""The request was turned\x20away."""',
        "teh word",  # codespell:ignore teh
    ],
)
def test_the_linter_rejects_a_banned_word(root, tmp_path, text):
    """The spelling linter rejects misspelt words, and banned words in comments, identifiers and docstrings."""
    found = spelled(root, tmp_path, text)
    assert found.returncode == 65
    assert "==>" in found.stdout
    assert spelled(root, tmp_path, "# The thread pool waits.").returncode == 0


def spelled(root: Path, folder: Path, text: str) -> subprocess.CompletedProcess:
    """Run the spelling linter, with the configuration of this repository, on a file that contains `text`."""
    for file in ("pyproject.toml", "docs/banned-words.txt"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(root / file, folder / file)
    (folder / "module.py").write_text(text + "\n")
    command = [sys.executable, "-m", "codespell_lib", "module.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
