"""Fuzz for some seconds with the whole corpus and some new inputs; `make fuzz` tries a million inputs."""

import pytest
from fuzz import ALL, prepared, try_file
from mutations import input_of
from service_process import shared_service
from targets import CORPUS

SEED = 20261125
NEW_INPUTS = {  # numbers of inputs that take about a second per target
    "line": 2000,
    "record": 2000,
    "bitmaps": 2000,
    "tensors": 1500,
    "tokens": 1500,
    **dict.fromkeys(("npy", "npz", "manifest"), 500),
    **dict.fromkeys(("simplified", "raw", "bin", "part"), 200),
    **dict.fromkeys(("png", "jpeg", "parquet"), 50),
}

pytestmark = pytest.mark.timeout(60)  # the first test that needs the service also starts it


@pytest.fixture(scope="module", autouse=True)
def one_service(tmp_path_factory):
    """Run one service for all targets of RPCs and ports."""
    with shared_service(tmp_path_factory.mktemp("service")):
        yield


@pytest.mark.parametrize("name", sorted({path.name for path in CORPUS.iterdir()} & ALL.keys()))
def test_no_input_of_the_corpus_does_harm(name):
    """Valid inputs, hostile inputs and inputs that once broke a target are accepted or rejected as documented."""
    assert try_file(ALL[name], *sorted((CORPUS / name).iterdir())) == []


@pytest.mark.parametrize("name", sorted(NEW_INPUTS))
def test_no_new_input_does_harm(name):
    """New inputs do no harm; they are the same in every run."""
    inputs = [input_of(ALL[name].make, name, SEED, number) for number in range(NEW_INPUTS[name])]
    with prepared(ALL[name]) as trial:
        assert trial(inputs, lambda _: None) == []


def test_the_number_of_an_input_determines_its_bytes():
    """Target, seed and number of a finding suffice to make its input again."""
    for target in ALL.values():
        assert input_of(target.make, target.name, SEED, 41) == input_of(target.make, target.name, SEED, 41)
