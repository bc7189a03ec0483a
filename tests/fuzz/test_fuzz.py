"""A fuzzing of seconds: every input that is kept, and some new ones of each target; `make fuzz` tries a million."""

import pytest
from fuzz import ALL, begun, try_file
from mutations import input_of
from service_process import sharing
from targets import CORPUS

SEED = 20261125
NEW = {  # inputs; so many take a second or less
    "line": 2000,
    "record": 2000,
    "bitmaps": 2000,
    "tensors": 1500,
    "tokens": 1500,
    **dict.fromkeys(("npy", "npz", "manifest"), 500),
    **dict.fromkeys(("simplified", "raw", "bin", "part"), 200),
    **dict.fromkeys(("png", "jpeg", "parquet"), 50),
}


@pytest.fixture(scope="module", autouse=True)
def one_service(tmp_path_factory):
    """Hostile or not, all callers share it."""
    with sharing(tmp_path_factory.mktemp("service")):
        yield


@pytest.mark.parametrize("name", sorted({path.name for path in CORPUS.iterdir()} & ALL.keys()))
def test_every_input_that_is_kept_does_no_harm(name):
    """Good ones, hostile ones, and those that once broke a reader, an RPC or a port."""
    assert try_file(ALL[name], *sorted((CORPUS / name).iterdir())) == []


@pytest.mark.parametrize("name", sorted(NEW))
def test_new_inputs_do_no_harm(name):
    """The same ones each time."""
    inputs = [input_of(ALL[name].make, name, SEED, number) for number in range(NEW[name])]
    with begun(ALL[name]) as trial:
        assert trial(inputs, lambda place: None) == []


def test_an_input_is_made_again_from_its_number():
    """What a finding says of itself is enough to try it again."""
    for target in ALL.values():
        assert input_of(target.make, target.name, SEED, 41) == input_of(target.make, target.name, SEED, 41)
