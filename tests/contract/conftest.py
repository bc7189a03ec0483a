"""Provide the servers that the tests of both transports use."""

from functools import partial

import pytest
from transport_server import run_server


@pytest.fixture(params=["aio", "core"])
def serving(request):
    """Return `run_server` of one transport; a test that uses this fixture runs once with each transport."""
    return partial(run_server, request.param)
