"""Test the names of gRPC options: gRPC silently ignores a misspelt option, which would then have no effect."""

import re
from pathlib import Path

import grpc
import pytest

OPTION = re.compile(r'"(grpc\.[a-z0-9_.]*[a-z0-9])", ?[^)]')
PACKAGES = ("service/sketchbatch_service", "client/sketchbatch_client")


@pytest.fixture(scope="module")
def core() -> bytes:
    """Return the bytes of the C core's library, which contains the name of every option that the library reads."""
    [library] = (Path(grpc.__file__).parent / "_cython").glob("*.so")
    return library.read_bytes()


@pytest.mark.parametrize("package", PACKAGES)
def test_grpc_knows_every_option_that_we_set(root, core, package):
    """The C core's library contains the full name of each option, followed by the zero byte that ends a C string."""
    names = {name for file in (root / package).rglob("*.py") for name in OPTION.findall(file.read_text())}
    assert len(names) >= 5
    assert sorted(name for name in names if name.encode() + b"\0" not in core) == []
