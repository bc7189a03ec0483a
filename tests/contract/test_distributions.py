"""What the rooms promise each other: one version, few dependencies, stubs of the contract."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

ROOMS = ("protos", "client", "service", "trainer")


def test_there_is_one_version_number(root):
    """All four distributions, their demands on each other, and the changelog."""
    projects = {room: tomllib.loads((root / room / "pyproject.toml").read_text())["project"] for room in ROOMS}
    versions = {project["version"] for project in projects.values()}
    assert len(versions) == 1
    version = versions.pop()
    for project in projects.values():
        for demand in filter(lambda text: text.startswith("sketchbatch-"), project["dependencies"]):
            assert demand.endswith(f"=={version}")
    assert re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def needed_by(distribution: str, *extras: str) -> set[str]:
    """Everything that installing `distribution` brings in."""
    found: set[str] = set()
    waiting = [(distribution, extras)]
    while waiting:
        name, wanted = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            demand = Requirement(text)
            environments = [{"extra": extra} for extra in wanted or ("",)]
            is_active = demand.marker is None or any(map(demand.marker.evaluate, environments))
            key = demand.name.lower().replace("_", "-")
            if is_active and key not in found:
                found.add(key)
                waiting.append((key, tuple(demand.extras)))
    return found


HEAVY = {"keras", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu", "tf2onnx"}


def test_the_client_brings_in_neither_tensorflow_nor_onnx_runtime():
    """Nor does the service bring in anything to train with."""
    assert {"grpcio", "numpy", "sketchbatch-protos"} <= needed_by("sketchbatch-client")
    assert not needed_by("sketchbatch-client") & HEAVY
    assert needed_by("sketchbatch-service", "cpu") & HEAVY == {"onnxruntime"}


def test_importing_the_client_imports_nothing_heavy():
    """People put it into small programs."""
    program = "import sys, sketchbatch_client; print(*(name.split('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"keras", "onnxruntime", "tensorflow", "pyarrow", "pandas", "rich", "typer"}


@pytest.mark.parametrize("file", ["v1/classifier.proto", "openinference/v2/open_inference.proto"])
def test_every_element_of_the_contract_is_commented(root, file):
    """Messages, fields, values and RPCs each have a comment on the line above."""
    lines = (root / "protos/sketchbatch" / file).read_text().splitlines()
    elements = re.compile(r"^\s*(message|service|rpc|enum|oneof|(repeated )?([\w.]+|map<.*>) \w+ = \d+;|\w+ = \d+;)")
    found = [number for number, line in enumerate(lines) if elements.match(line)]
    assert len(found) > 50
    assert not [lines[number] for number in found if not lines[number - 1].lstrip().startswith("//")]
