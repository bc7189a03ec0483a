"""Provide the servers that the tests of both transports use."""

from functools import partial

import pytest
from transport_server import run_server


@pytest.fixture(params=["aio", "core"])
def serving(request):
    """Return `run_server` for one transport; each test with this fixture runs once with each transport."""
    return partial(run_server, request.param)
