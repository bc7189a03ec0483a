"""Test the scorer for Ray Data with single batches and without Ray.

tests/integration/test_ray.py runs the scorer in a Ray cluster.
"""

import pickle

import numpy as np
import pytest
from pyarrow import parquet
from sketchbatch_client import Client, ModelNotFound, RequestRefused
from sketchbatch_client.ray import SketchbatchScorer


@pytest.fixture
def scorer(tiny_service):
    """Return a function that makes a scorer with the tiny service as its server."""
    return lambda **options: SketchbatchScorer(tiny_service.address, **options)


@pytest.fixture
def expected(tiny_service, noise):
    """Return the result of `Client` for five rows."""
    with Client(tiny_service.address) as client:
        return client.classify(noise(5))


def objects(values):
    """Return a column as an array of Python objects, the form in which Ray passes bytes and lists."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.mark.parametrize(
    "column_of",
    [
        lambda bitmaps: bitmaps,
        lambda bitmaps: bitmaps.reshape(-1, 784),
        lambda bitmaps: objects([bitmap.tobytes() for bitmap in bitmaps]),
        lambda bitmaps: objects(list(bitmaps.reshape(-1, 784))),
        lambda bitmaps: objects([objects(list(bitmap)) for bitmap in bitmaps]),
    ],
    ids=["square", "flat", "bytes", "lists", "lists of lists"],
)
def test_scores_are_added_to_the_columns_of_the_batch(scorer, expected, noise, column_of):
    """The scorer returns the columns of the batch and adds `label` and `score`; the batch itself does not change.

    The column of bitmaps may have any of five forms.
    """
    batch = {"key": np.arange(5), "bitmap": column_of(noise(5))}
    scored = scorer()(batch)
    assert list(batch) == ["key", "bitmap"]
    assert list(scored) == ["key", "bitmap", "label", "score"]
    assert scored["key"] is batch["key"]
    assert scored["label"].tolist() == expected.label.tolist()
    assert np.array_equal(scored["score"], expected.score[:, 0])


@pytest.mark.parametrize("options", [{"top_k": 2}, {"all_scores": True}], ids=str)
def test_columns_equal_those_of_the_command(scorer, run_command, tiny_service, noise, tmp_path, options):
    """The scorer adds columns with the names and values that `sketchbatch score` writes.

    For a batch without rows, the added columns have the same names and types.
    """
    np.save(tmp_path / "cat.npy", noise(5))
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
    flags = [flag for flag in flags if flag is not True]
    where = ("--server", tiny_service.address, "--output", tmp_path / "scores.parquet")
    finished = run_command("sketchbatch", "score", tmp_path / "cat.npy", *where, *flags)
    assert finished.returncode == 0, finished.stderr
    written = parquet.read_table(tmp_path / "scores.parquet").drop_columns(["source", "row"])
    scored = scorer(**options)({"bitmap": noise(5)})
    del scored["bitmap"]
    assert {name: values.tolist() for name, values in scored.items()} == written.to_pydict()
    none = scorer(**options)({"bitmap": noise(5)[:0]})
    assert {name: (len(values), values.dtype) for name, values in none.items() if name != "bitmap"} == {
        name: (0, values.dtype) for name, values in scored.items()
    }


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (np.zeros((2, 784)), r"float64 \(2, 784\); convert with \(255 \* x\)\.round\(\)\.astype\(np\.uint8\)"),
        (np.zeros((28, 28), np.uint8), r"uint8 \(28,\)"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"uint8 \(2, 28, 28, 3\)"),
        (objects([bytes(784), bytes(783)]), r"uint8 \(783,\) in row 1"),
        (objects([bytes(784), None]), "a missing value in row 1; leave such rows out"),
        (objects([np.full(784, 256)]), "256 to 256 in row 0"),
        (objects([objects([np.zeros(28, np.uint8)] * 27 + [np.zeros(27, np.uint8)])]), "ndarray in row 0"),
        (objects(["cat", "dog"]), "str in row 0"),
    ],
)
def test_a_column_without_bitmaps_is_refused(scorer, values, got):
    """A column without bitmaps is refused with its name, and with the expected and the given type."""
    with pytest.raises(RequestRefused, match=f"column 'ink' must be (uint8|integers) .*, got {got}$"):
        scorer(column="ink")({"ink": values})


def test_a_missing_column_and_a_conflicting_column_are_refused(scorer, noise):
    """A missing column is refused, and so is a result column that would overwrite an existing column."""
    with pytest.raises(RequestRefused, match="column 'bitmap' must exist and hold bitmaps, got the columns x, y"):
        scorer()({"x": np.zeros(2), "y": np.zeros(2)})
    with pytest.raises(RequestRefused, match="column 'label' must not exist, because scores are written there"):
        scorer()({"bitmap": noise(2), "label": np.array(["cat", "dog"])})


def test_an_actor_uses_one_connection_that_is_not_pickled(start_server, servicer, noise):
    """A scorer opens one connection at its first batch and uses it for all batches.

    The connection is not pickled, so a copy of the scorer in another actor opens a connection of its own.
    """
    address = start_server(servicer)
    scorer = SketchbatchScorer(address, channels=1)
    assert not servicer.peers
    for _ in range(3):
        scorer({"bitmap": noise(3) // 2})
    assert len(servicer.peers) == 1
    copy = pickle.loads(pickle.dumps(scorer))
    copy({"bitmap": noise(3) // 2})
    assert len(servicer.peers) == 2


def test_an_actor_uses_one_model_version(start_server, servicer, noise):
    """At its first batch, a scorer determines the newest model version, and uses this version for all batches."""
    requested = []
    answer = servicer.Classify

    def classify(request, context):
        requested.append((request.model_name, request.model_version))
        return answer(request, context)

    servicer.Classify = classify
    scorer = SketchbatchScorer(start_server(servicer))
    for _ in range(2):
        scorer({"bitmap": noise(3) // 2})
    assert requested == [("m", "1")] * 2


def test_a_model_that_is_not_served_is_an_error(scorer, noise):
    """The first batch raises an error if the model is not served."""
    with pytest.raises(ModelNotFound, match="no model 'tiny' version '9'"):
        scorer(model="tiny", model_version="9")({"bitmap": noise(2)})


def test_options_of_the_client_are_passed_on(scorer, noise):
    """The scorer passes other options to `Client`; an option that `Client` does not know raises a TypeError."""
    with pytest.raises(TypeError, match="no_such_option"):
        scorer(no_such_option=1)({"bitmap": noise(2)})
