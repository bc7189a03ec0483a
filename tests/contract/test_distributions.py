"""Test that our four Python distributions have one version number and few dependencies.

Another test checks that every element of the .proto files has a comment.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from sketchbatch import versions
from sketchbatch_trainer.extras import PACKAGES

DISTRIBUTIONS = ("protos", "client", "service", "trainer")


def test_there_is_one_version_number(root):
    """All distributions have the same version, and require each other in exactly this version.

    The changelog has a section for this version.
    """
    projects = [tomllib.loads((root / each / "pyproject.toml").read_text())["project"] for each in DISTRIBUTIONS]
    [version] = {project["version"] for project in projects}
    for project in projects:
        for requirement in filter(lambda text: text.startswith("sketchbatch-"), project["dependencies"]):
            assert requirement.endswith(f"=={version}")
    assert re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "distribution", "libraries"),
    [
        ("sketchbatch", "sketchbatch-client", ["grpcio", "numpy", "pyarrow"]),
        ("sketchbatch-serve", "sketchbatch-service", ["onnxruntime", "grpcio", "numpy"]),
        ("sketchbatch-train", "sketchbatch-trainer", ["tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy"]),
    ],
)
def test_each_command_prints_its_versions_in_one_line(run_command, command, distribution, libraries):
    """`--version` prints one line: the versions of the distribution, its main libraries and Python."""
    finished = run_command(command, "--version")
    installed = [f"{each} {importlib.metadata.version(each)}" for each in libraries]
    listed = ", ".join([*installed, f"Python {platform.python_version()}"])
    assert finished.stdout == f"{command} {importlib.metadata.version(distribution)} ({listed})\n"
    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_library_may_be_missing_or_have_another_name():
    """`--version` works without a library, and takes the first installed one of several names."""
    line = versions.describe("serve", "numpy", "no-such-library/click", "no-such-library/no-other")
    assert f"(click {importlib.metadata.version('click')}, no-such-library missing, Python" in line


def requirements_of(distribution: str, *extras: str) -> set[str]:
    """Return the names of all distributions that an installation of `distribution` installs."""
    found: set[str] = set()
    waiting = [(distribution, extras)]
    while waiting:
        name, wanted = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            environments = [{"extra": extra} for extra in wanted or ("",)]
            is_active = requirement.marker is None or any(map(requirement.marker.evaluate, environments))
            key = requirement.name.lower().replace("_", "-")
            if is_active and key not in found:
                found.add(key)
                waiting.append((key, tuple(requirement.extras)))
    return found


HEAVY = {"keras", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu", "tf2onnx"}


def test_the_client_requires_neither_tensorflow_nor_onnx_runtime():
    """The client requires neither TensorFlow nor ONNX Runtime; the service requires ONNX Runtime.

    The service requires no training library. The client requires matplotlib only for charts, and an HTTP server only
    for the demo page.
    """
    assert {"grpcio", "numpy", "sketchbatch-protos"} <= requirements_of("sketchbatch-client")
    assert "matplotlib" not in requirements_of("sketchbatch-client")
    assert "matplotlib" in requirements_of("sketchbatch-client", "charts")
    assert not requirements_of("sketchbatch-client") & {"starlette", "uvicorn", "h11"}
    assert {"starlette", "uvicorn", "h11"} <= requirements_of("sketchbatch-client", "demo")
    assert not requirements_of("sketchbatch-client") & HEAVY
    assert requirements_of("sketchbatch-service", "cpu") & HEAVY == {"onnxruntime"}


def test_the_environment_of_make_serve_is_light(root):
    """`make serve` installs neither TensorFlow nor charts, and does not use the environment that has them."""
    pinned = re.findall(r"^([\w-]+)==", (root / "locks/serve.txt").read_text(), re.MULTILINE)
    assert set(pinned) & {*HEAVY, "matplotlib"} == {"onnxruntime"}
    environment = os.environ | {"UV_DEFAULT_INDEX": "unused"}  # without it, make runs pip
    words = ["make", "-n", "-B", "serve"]
    made = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
    assert ".tools/serve/bin/sketchbatch-serve --model models" in made
    assert ".venv" not in made


def test_the_extra_adapt_of_the_trainer_is_small(root):
    """Without an extra the trainer has none of the heavy packages; `adapt` adds onnx and ONNX Runtime, no TensorFlow.

    The extra `explore` adds matplotlib only.

    The command line names the extra of a package that is missing, so its table lists the packages of each extra.
    """
    project = tomllib.loads((root / "trainer/pyproject.toml").read_text())["project"]
    named = {
        extra: {Requirement(text).name for text in texts}
        for extra, texts in {"": project["dependencies"], **project["optional-dependencies"]}.items()
    }
    assert not named[""] & HEAVY
    assert named["adapt"] == {"onnx", "onnxruntime"} == PACKAGES["adapt"]
    assert named["explore"] == {"matplotlib"} == PACKAGES["explore"]
    assert named["train"] >= {"onnx", "onnxruntime", "tensorflow", "tf2onnx"}
    assert PACKAGES["train"] == named["train"] | {"h5py", "keras"}  # tensorflow requires these two


def test_importing_the_client_imports_nothing_heavy():
    """Importing the client imports no heavy package, because small programs use the client, too."""
    program = "import sys, sketchbatch_client; print(*(name.split('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"keras", "onnxruntime", "tensorflow", "pyarrow", "pandas", "rich", "typer"}


@pytest.mark.parametrize("file", ["v1/classifier.proto", "openinference/v2/open_inference.proto"])
def test_every_element_of_the_contract_is_commented(root, file):
    """Every message, field, enum value and RPC of the .proto files has a comment on the line above."""
    lines = (root / "protos/sketchbatch" / file).read_text().splitlines()
    elements = re.compile(r"^\s*(message|service|rpc|enum|oneof|(repeated )?([\w.]+|map<.*>) \w+ = \d+;|\w+ = \d+;)")
    found = [number for number, line in enumerate(lines) if elements.match(line)]
    assert len(found) > 50
    assert not [lines[number] for number in found if not lines[number - 1].lstrip().startswith("//")]
