"""Try the whole corpus of each fuzz target, and for about a second per target also new inputs of most parsers.

`make fuzz` tries a million inputs.
"""

from contextlib import ExitStack

import pytest
from file_targets import FILES
from fuzz import ALL, prepared, try_file
from mutations import input_of
from port_targets import PORTS
from rpc_targets import RPCS
from service_process import shared_service
from targets import CORPUS

SEED = 20261125
NEW_INPUTS = {  # number of new inputs by target, chosen so that each target takes about a second
    "line": 2000,
    "record": 2000,
    "bitmaps": 2000,
    "tensors": 1500,
    "tokens": 1500,
    **dict.fromkeys(("npy", "npz", "manifest"), 500),
    **dict.fromkeys(("simplified", "raw", "bin", "part"), 200),
    **dict.fromkeys(("png", "jpeg", "parquet"), 50),
}

pytestmark = pytest.mark.timeout(60)  # longer than usual, because the first test that needs the service also starts it


FOLDERS = {path.name for path in CORPUS.iterdir()}


@pytest.fixture(scope="module")
def one_service(tmp_path_factory, transport):
    """Run one service for the tests of all RPCs and ports; `transport` is its gRPC server, core or aio."""
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        environment.setenv("SKETCHBATCH_TRANSPORT", transport)
        stack.enter_context(shared_service(tmp_path_factory.mktemp("service")))
        yield


@pytest.mark.both_transports
@pytest.mark.parametrize("name", sorted(FOLDERS & {target.name for target in [*RPCS, *PORTS]}))
def test_no_call_and_no_connection_of_the_corpus_does_harm(one_service, name):
    """With both transports, valid and hostile inputs of RPCs and ports are accepted or rejected as documented."""
    assert try_file(ALL[name], *sorted((CORPUS / name).iterdir())) == []


@pytest.mark.parametrize("name", sorted(FOLDERS & {target.name for target in FILES}))
def test_no_file_of_the_corpus_does_harm(name):
    """Valid files, hostile files and files that once broke a parser are accepted or rejected as documented."""
    assert try_file(ALL[name], *sorted((CORPUS / name).iterdir())) == []


@pytest.mark.parametrize("name", sorted(NEW_INPUTS))
def test_no_new_input_does_harm(name):
    """New inputs do no harm; every run of the test makes the same new inputs, because the seed is fixed."""
    inputs = [input_of(ALL[name].make, name, SEED, number) for number in range(NEW_INPUTS[name])]
    with prepared(ALL[name]) as trial:
        assert trial(inputs, lambda _: None) == []


def test_the_number_of_an_input_determines_its_bytes():
    """The same input can be made again from the target, the seed and the number of its finding."""
    for target in ALL.values():
        assert input_of(target.make, target.name, SEED, 41) == input_of(target.make, target.name, SEED, 41)
