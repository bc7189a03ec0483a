"""Provide fixtures that build the images with `make image` and run containers of them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from container_engine import Engine, NoEngine, Pod, base_image, engine


@dataclass(frozen=True, slots=True)
class Image:
    """Describe the image of the service, which `make image` has built."""

    name: str
    extra: str
    """The value of EXTRA with which the image was built: `cpu` or `gpu`."""
    memory: str
    """Memory limit with which a container of this image can serve its model."""


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    """Yield a container engine; if none can be used, end the whole test run with an error."""
    try:
        with engine() as found:
            yield found
    except NoEngine as exc:
        pytest.exit(f"image-test: {exc}", returncode=1)


@pytest.fixture(scope="session")
def build(docker: Engine, root: Path) -> Callable[..., None]:
    """Return a function that runs a target of the Makefile to build an image."""
    words = [f"BASE_IMAGE={base_image(docker, root / 'Dockerfile.gpu')}", f"BUILD_FLAGS={docker.build_flags}"]

    def make(*verb: str) -> None:
        command = ["make", "--no-print-directory", *verb, *words]
        built = subprocess.run(command, cwd=root, env=docker.environment, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]

    return make


@pytest.fixture(scope="session")
def image(build: Callable[..., None]) -> Image:
    """Build the image of the service; the environment variable EXTRA selects `cpu` (the default) or `gpu`."""
    extra = os.environ.get("EXTRA") or "cpu"
    name = f"sketchbatch:test-{extra}"
    build("image", f"EXTRA={extra}", f"IMAGE={name}")
    return Image(name, extra, memory="512m" if extra == "cpu" else "2g")


@pytest.fixture(scope="session")
def client_image(build: Callable[..., None]) -> str:
    """Build the image of the client; return its name."""
    build("image", "EXTRA=client", "IMAGE=sketchbatch:test-client")
    return "sketchbatch:test-client"


@pytest.fixture
def start_pod(docker: Engine, image: Image) -> Iterator[Callable[..., Pod]]:
    """Return a function that starts containers of the image; remove them after the test."""
    started: list[Pod] = []

    def start(*flags: object, memory: str = image.memory) -> Pod:
        started.append(Pod(docker, image.name, memory, *flags))
        return started[-1]

    yield start
    for pod in started:
        pod.remove()


@pytest.fixture
def failed_start(start_pod: Callable[..., Pod], docker: Engine) -> Callable[..., tuple[int, list[str]]]:
    """Return a function that runs a container until the container exits.

    The function returns the exit code, and the lines of output that are not log events.
    """

    def run(*flags: object) -> tuple[int, list[str]]:
        pod = start_pod(*flags)
        code = int(docker("wait", pod.id))
        lines = docker.attempt("logs", pod.id).stderr.splitlines()
        return code, [line for line in lines if not line.startswith("{")]

    return run
