"""Test that the image of the service is small, has only the packages that serving needs, and has complete labels."""

import json
import re
import subprocess
import tomllib

import pytest

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

MISSING_LIBRARIES = """
import mmap, os, re, subprocess, sysconfig
from pathlib import Path
files = {path.name: path for path in Path(sysconfig.get_path("purelib")).rglob("*.so*") if path.stat().st_size}
os.environ["LD_LIBRARY_PATH"] = ":".join({str(path.parent) for path in files.values()})
for path in files.values():
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    print(*re.findall(r"(\\S+) => not found", linked))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        named = {name.decode() for name in re.findall(rb"lib(?:cu|nv)[a-zA-Z_]+[.]so", content)}
    print(*(name for name in named if not any(file.startswith(name) for file in files)))
print(len(files), "inspected")
"""
"""A program that prints the shared libraries that are missing in the image.

A library is missing if `ldd` does not find a linked library, or if a library contains the name of a library that it
loads later and that is in no package.
"""

PACKAGES = """
import importlib.metadata, json
print(json.dumps([[each.name, each.version] for each in importlib.metadata.distributions()]))
"""

UNCOMPILED = """
import sysconfig
from importlib.util import cache_from_source
from pathlib import Path
sources = [*Path(sysconfig.get_path("purelib")).rglob("*.py")]
print(len(sources), len([source for source in sources if not Path(cache_from_source(source)).exists()]))
"""


@pytest.fixture(scope="module")
def inspected(docker, image) -> dict:
    """Return the description of the image that `docker image inspect` prints."""
    return json.loads(docker("image", "inspect", image.name))[0]


@pytest.fixture(scope="module")
def python(docker, image):
    """Return a function that runs Python code in the image and returns its output."""
    return lambda code: docker("run", "--rm", "--network=none", "--entrypoint=python", image.name, "-c", code)


def test_the_image_is_small(inspected, image, docker, capsys):
    """The CPU image has less than 400 MB and the GPU image less than 2.6 GB, including the base image.

    The test prints the size.
    """
    base = inspected["Config"]["Labels"]["org.opencontainers.image.base.name"]
    base_bytes = int(docker("image", "inspect", "--format", "{{.Size}}", base))
    with capsys.disabled():
        print(f"\n{image.name}: {inspected['Size'] / 1e6:.0f} MB, of which its base {base} {base_bytes / 1e6:.0f} MB")
    assert inspected["Size"] < (400e6 if image.extra == "cpu" else 2.6e9)


def test_the_image_sets_user_entry_point_signal_and_health_check(inspected):
    """The image sets user, entry point, port, stop signal and health check.

    The user is a number, as runAsNonRoot requires, and the entry point starts the service without a shell.
    """
    config = inspected["Config"]
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["sketchbatch-serve"], None)
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"] == {"50051/tcp": {}}
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "sketchbatch_service.probe"]


def test_labels_describe_the_image(inspected, root):
    """The OCI labels name title, version, licence and commit; the version is that of the service."""
    labels = inspected["Config"]["Labels"]
    project = tomllib.loads((root / "service" / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.title"] == "sketchbatch"
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert re.match("[0-9a-f]{40}|unknown", labels["org.opencontainers.image.revision"])


def test_labels_describe_the_image_of_the_client(docker, client_image, root):
    """The image of the client has the same labels; its version is that of the client."""
    labels = json.loads(docker("image", "inspect", client_image))[0]["Config"]["Labels"]
    project = tomllib.loads((root / "client" / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.title"] == "sketchbatch-client"
    assert labels["org.opencontainers.image.version"] == project["version"]


def test_the_image_contains_the_default_model_once(python):
    """The folder /models links to the model in the package of the service."""
    code = "from pathlib import Path; print(*{path.resolve() for path in Path('/').glob('%s/**/model.onnx')})"
    [linked] = python(code % "models/bear-cat-dog").split()
    assert [linked] == python(code % "opt/sketchbatch").split()


def test_the_image_lacks_what_serving_does_not_need(python):
    """The image has no installer, no compiler, no training packages and no client."""
    tools = ["cc", "gcc", "make", "git", "curl"]
    packages = ["pip", "setuptools", "hatchling", "tensorflow", "onnx", "sketchbatch_client", "sketchbatch_trainer"]
    assert python(f"import shutil; print(*filter(shutil.which, {tools}))") == ""
    assert python(f"import importlib.util; print(*filter(importlib.util.find_spec, {packages}))") == ""


def test_every_module_is_compiled(python):
    """The image has bytecode of all sources, because a read-only container would compile them at each start."""
    sources, uncompiled = map(int, python(UNCOMPILED).split())
    assert sources > 300
    assert uncompiled == 0


def test_no_library_lacks_another(python):
    """All libraries that other libraries need are in the image, except the CUDA driver, which the host provides."""
    *missing, inspected_files, _ = python(MISSING_LIBRARIES).split()
    assert int(inspected_files) > 10
    assert set(missing) <= {"libcuda.so.1", "libcuda.so"}


def test_the_bill_of_materials_lists_the_packages_of_the_image(python, image, root):
    """`make sbom` lists the name, version and licence of each package in the image, and needs no container engine."""
    version = python("import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')")
    command = ["make", "--no-print-directory", "sbom", f"EXTRA={image.extra}", f"IMAGE_PYTHON={version}"]
    made = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    bill = json.loads((root / "dist" / f"sbom-{image.extra}.cdx.json").read_text())
    listed = [[part["name"], part["version"]] for part in [bill["metadata"]["component"], *bill["components"]]]
    assert sorted(listed) == sorted(json.loads(python(PACKAGES)))
    assert not [part["name"] for part in bill["components"] if not part.get("licenses")]
