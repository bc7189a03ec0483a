"""Test the sdists and wheels that `make dist` has built: their content, and their use without the repository.

Another test starts `make serve`, whose environment comes from the package index, too.
"""

import csv
import email
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sketchbatch_trainer.synthetic import LABELS, draw

pytestmark = [pytest.mark.wheels, pytest.mark.timeout(300)]

DISTRIBUTIONS = {
    "protos": ("sketchbatch/v1", "sketchbatch/openinference/v2", "sketchbatch"),
    "client": ("sketchbatch_client",),
    "service": ("sketchbatch_service",),
    "trainer": ("sketchbatch_trainer",),
}
"""The folder of each distribution in the repository, and the packages for type checkers in its wheel."""
MODEL = "sketchbatch_service/shipped_models/bear-cat-dog/2/model.onnx"
LARGEST_BYTES = {"pip": 390e6, "make serve": 350e6}
"""Limits for the installed files without bytecode, pip and setuptools; 365 MB and 320 MB on 2026-11-29."""


@pytest.fixture(scope="module")
def version(root) -> str:
    """Return the version of the distributions."""
    return str(tomllib.loads((root / "service/pyproject.toml").read_text())["project"]["version"])


@pytest.fixture
def wheel(root, version, distribution) -> Iterator[Callable[[str], bytes]]:
    """Return a function that reads a file of the wheel of `distribution`."""
    with zipfile.ZipFile(root / f"dist/sketchbatch_{distribution}-{version}-py3-none-any.whl") as archive:
        yield archive.read


@pytest.fixture
def sdist(root, version, distribution) -> Iterator[Callable[[str], bytes]]:
    """Return a function that reads a file of the sdist of `distribution`."""
    name = f"sketchbatch_{distribution}-{version}"
    with tarfile.open(root / f"dist/{name}.tar.gz") as archive:
        yield lambda file: archive.extractfile(f"{name}/{file}").read()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_distribution_describes_itself(wheel, sdist, root, version, distribution):
    """Each wheel and sdist has the licence, and metadata for a package index; type checkers use each package."""
    prefix = f"sketchbatch_{distribution}-{version}.dist-info"
    licence = (root / "LICENSE").read_bytes()
    assert wheel(f"{prefix}/licenses/LICENSE") == sdist("LICENSE") == licence
    metadata = email.message_from_bytes(wheel(f"{prefix}/METADATA"))
    assert (metadata["Version"], metadata["License-Expression"]) == (version, "Apache-2.0")
    assert metadata["Author"]
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(metadata.get_all("Classifier"))
    urls = dict(text.split(", ") for text in metadata.get_all("Project-URL"))
    assert {"Source", "Documentation", "Issues", "Changelog"} <= set(urls)
    assert metadata.get_payload().strip() == (root / distribution / "README.md").read_text().strip()
    assert [wheel(f"{package}/py.typed") for package in DISTRIBUTIONS[distribution]]


@pytest.mark.parametrize("distribution", ["service"])
def test_the_service_contains_the_default_model(wheel, sdist, root):
    """The wheel and the sdist of the service contain the model of the repository."""
    assert wheel(MODEL) == sdist(MODEL) == (root / "models/bear-cat-dog/2/model.onnx").read_bytes()


class Environment:
    """A virtual environment outside the repository, in which commands run without the variables of Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)

    def command(self, program: str, *words: object) -> list[str]:
        """Return the words of a command of the environment."""
        return [str(self.folder / "bin" / program), *map(str, words)]

    def run(self, program: str, *words: object, cwd: Path) -> subprocess.CompletedProcess:
        """Run a command of the environment to its end."""
        return subprocess.run(
            self.command(program, *words), cwd=cwd, env=self.variables, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def pinned(root, tmp_path_factory) -> Path:
    """Return a file with the versions of locks/serve.txt, without hashes.

    If no package index has the first of these packages, the tests are skipped.
    """
    folder = tmp_path_factory.mktemp("pinned")
    pinned = re.findall(r"^(\S+==\S+?)( ; [^\\\n]+)?(?= \\$)", (root / "locks/serve.txt").read_text(), re.MULTILINE)
    (folder / "pinned.txt").write_text("".join(f"{each}{marker}\n" for each, marker in pinned))
    words = [root / ".tools/bin/pip", "download", "--quiet", "--no-deps", "--retries", "0", pinned[0][0]]
    tried = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no package index has {pinned[0][0]}: {tried.stderr.strip().splitlines()[-1]}")
    return folder / "pinned.txt"


@pytest.fixture(scope="module")
def installed(root, version, pinned, tmp_path_factory) -> Environment:
    """Install service[cpu] and client from the folder of wheels, and all other packages from the index of pip."""
    folder = tmp_path_factory.mktemp("installed")
    environment = Environment(folder / "venv")
    wanted = [f"sketchbatch-service[cpu]=={version}", f"sketchbatch-client=={version}"]
    options = ["--no-compile", "--find-links", root / "dist", "--constraint", pinned]
    result = environment.run("pip", "install", "--quiet", *options, *wanted, cwd=folder)
    assert result.returncode == 0, result.stderr
    return environment


@pytest.fixture(scope="module")
def address(installed, tmp_path_factory) -> Iterator[str]:
    """Start the installed service without a model of its own; yield its address, and stop it."""
    command = installed.command("sketchbatch-serve", "--address", "127.0.0.1:0")
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path_factory.mktemp("serving"), env=installed.variables
    ) as process:
        try:
            events = map(json.loads, process.stderr)
            yield next(event["address"] for event in events if event["message"] == "SERVING")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0


def test_installed_wheels_serve_score_and_evaluate(installed, address, tmp_path):
    """In an environment with the wheels alone, the service serves its default model, and the client uses it."""
    for label in LABELS:
        (tmp_path / "drawings").mkdir(exist_ok=True)
        np.save(tmp_path / "drawings" / f"{label}.npy", draw(label, 50, 0, lambda done: None))
    scored = installed.run("sketchbatch", "score", "drawings", "--server", address, "--output", "s.csv", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 150
    assert {row["label"] for row in rows} == set(LABELS)
    words = ["evaluate", "drawings", "--server", address, "--json", "metrics.json"]
    evaluated = installed.run("sketchbatch", *words, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] > 0.9


def test_installed_wheels_need_no_repository_and_no_tensorflow(installed, root, version, tmp_path):
    """The environment has our code and no TensorFlow, needs no other package, and is small."""
    for command in ("sketchbatch", "sketchbatch-serve"):
        assert installed.run(command, "--version", cwd=tmp_path).stdout.startswith(f"{command} {version} (")
    code = "import sketchbatch_client as c, sketchbatch_service as s; print(c.__file__, s.__file__, sep='\\n')"
    for file in installed.run("python", "-c", code, cwd=tmp_path).stdout.split():
        assert Path(file).is_relative_to(installed.folder)
    assert installed.run("pip", "check", cwd=tmp_path).returncode == 0
    packages = {path.name.partition("-")[0] for path in installed.folder.rglob("*.dist-info")}
    assert {"sketchbatch_service", "sketchbatch_client", "sketchbatch_protos", "onnxruntime"} <= packages
    assert not packages & {"tensorflow", "keras", "tf2onnx", "matplotlib", "sketchbatch_trainer"}
    assert size_of(installed.folder) < LARGEST_BYTES["pip"]
    demo = installed.run("sketchbatch", "demo", cwd=tmp_path)
    assert (demo.returncode, demo.stdout) == (4, "")
    assert re.fullmatch(r"sketchbatch: demo needs .*'sketchbatch-client\[demo\]'.*\n", demo.stderr)


@pytest.mark.usefixtures("pinned")
def test_make_serve_serves_the_shipped_models_from_a_light_environment(root):
    """`make serve` installs an environment without TensorFlow, in which it serves the three shipped models."""
    words = ["make", "serve", "ADDRESS=127.0.0.1:0"]
    with subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            events = (json.loads(line) for line in process.stderr if line.startswith("{"))
            serving = next(event for event in events if event["message"] == "SERVING")
        finally:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
            _, rest = process.communicate(timeout=60)
    assert [model.partition("/")[0] for model in serving["models"]] == ["bear-cat-dog", "animals-10", "quickdraw-345"]
    assert '"message": "stopped"' in rest
    assert not [*(root / ".tools/serve").glob("lib/*/site-packages/tensorflow*")]
    assert size_of(root / ".tools/serve") < LARGEST_BYTES["make serve"]


def size_of(folder: Path) -> int:
    """Return the bytes of the files in an environment without bytecode, pip and setuptools."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return sum(path.stat().st_size for path in files if not {"pip", "setuptools"} & set(path.parts))
