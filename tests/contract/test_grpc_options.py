"""gRPC ignores an option whose name it does not know, so a wrong letter undoes it without a word."""

import re
from pathlib import Path

import pytest
from grpc._cython import cygrpc

OPTION = re.compile(r'"(grpc\.[a-z0-9_.]*[a-z0-9])", ?[^)]')
ROOMS = ("service/sketchbatch_service", "client/sketchbatch_client")


@pytest.fixture(scope="module")
def core() -> bytes:
    """The C core, and with it the name of every option that it looks for."""
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("room", ROOMS)
def test_every_option_that_we_set_is_one_of_grpcs(root, core, room):
    """By its full name, which ends where the text in the library ends."""
    names = {name for file in (root / room).rglob("*.py") for name in OPTION.findall(file.read_text())}
    assert len(names) >= 5
    assert sorted(name for name in names if name.encode() + b"\0" not in core) == []
