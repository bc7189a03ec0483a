"""What the image is: its size, what is in it and what is not, and what it says of itself."""

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
print(len(files), "looked at")
"""
"""What libraries link (the loader's view) or name (to load it later; such names stand in them as text) and have not."""

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
    """What the engine knows of the image."""
    return json.loads(docker("image", "inspect", image.name))[0]


@pytest.fixture(scope="module")
def python(docker, image):
    """Runs Python in the image; what it prints."""
    return lambda code: docker("run", "--rm", "--network=none", "--entrypoint=python", image.name, "-c", code)


def test_it_is_small(inspected, image, docker, capsys):
    """On the CPU under 400 MB with its base; the size is printed, whichever it is."""
    base = inspected["Config"]["Labels"]["org.opencontainers.image.base.name"]
    of_base = int(docker("image", "inspect", "--format", "{{.Size}}", base))
    with capsys.disabled():
        print(f"\n{image.name}: {inspected['Size'] / 1e6:.0f} MB, of which its base {base} {of_base / 1e6:.0f} MB")
    assert inspected["Size"] < (400e6 if image.extra == "cpu" else 2.6e9)


def test_kubernetes_and_docker_find_what_they_look_for(inspected):
    """A numeric user other than root (runAsNonRoot needs the number), no shell around the service, signal, health."""
    config = inspected["Config"]
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["sketchbatch-serve"], None)
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"] == {"50051/tcp": {}}
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "sketchbatch_service.probe"]


def test_it_says_what_it_is(inspected, root):
    """OCI labels; the version is that of the distributions inside."""
    labels = inspected["Config"]["Labels"]
    project = tomllib.loads((root / "service" / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.title"] == "sketchbatch"
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert re.match("[0-9a-f]{40}|unknown", labels["org.opencontainers.image.revision"])


def test_nothing_is_in_it_that_serving_does_not_need(python):
    """No installer, no compiler, no training, no client, none of the tree's other rooms."""
    tools = ["cc", "gcc", "make", "git", "curl"]
    rooms = ["pip", "setuptools", "hatchling", "tensorflow", "onnx", "sketchbatch_client", "sketchbatch_trainer"]
    assert python(f"import shutil; print(*filter(shutil.which, {tools}))") == ""
    assert python(f"import importlib.util; print(*filter(importlib.util.find_spec, {rooms}))") == ""


def test_every_module_is_compiled(python):
    """A read-only container cannot write __pycache__, and would compile everything at each start."""
    sources, uncompiled = map(int, python(UNCOMPILED).split())
    assert sources > 300
    assert uncompiled == 0


def test_no_library_misses_another(python):
    """Whatever a library links or names is there, the driver's excepted, which comes with the GPU."""
    *missing, looked_at, _, _ = python(MISSING_LIBRARIES).split()
    assert int(looked_at) > 10
    assert set(missing) <= {"libcuda.so.1", "libcuda.so"}


def test_the_bill_of_materials_is_that_of_the_image(python, image, root):
    """`make sbom`, which needs no engine, lists every package installed in the image, its version, and a licence."""
    version = python("import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')")
    command = ["make", "--no-print-directory", "sbom", f"EXTRA={image.extra}", f"IMAGE_PYTHON={version}"]
    made = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    bill = json.loads((root / "dist" / f"sbom-{image.extra}.cdx.json").read_text())
    listed = [[part["name"], part["version"]] for part in [bill["metadata"]["component"], *bill["components"]]]
    assert sorted(listed) == sorted(json.loads(python(PACKAGES)))
    assert not [part["name"] for part in bill["components"] if not part.get("licenses")]
