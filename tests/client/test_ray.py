"""The scorer for Ray Data by itself, a batch at a time; in a real Ray cluster: tests/integration/test_ray.py."""

import pickle

import numpy as np
import pytest
from pyarrow import parquet
from sketchbatch_client import Client, ModelNotFound, RequestRefused
from sketchbatch_client.ray import SketchbatchScorer


@pytest.fixture
def scorer(tiny_service):
    """Makes scorers over the tiny service."""
    return lambda **options: SketchbatchScorer(tiny_service.address, **options)


@pytest.fixture
def expected(tiny_service, noise):
    """What `Client` says of five rows."""
    with Client(tiny_service.address) as client:
        return client.classify(noise(5))


def objects(values):
    """Rows that each are something by themselves, as Ray gives bytes and lists."""
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
def test_scores_stand_beside_the_columns_there_were(scorer, expected, noise, column_of):
    """Row for row, whatever form the bitmaps have; the batch given is left as it is."""
    batch = {"key": np.arange(5), "bitmap": column_of(noise(5))}
    scored = scorer()(batch)
    assert list(batch) == ["key", "bitmap"]
    assert list(scored) == ["key", "bitmap", "label", "score"]
    assert scored["key"] is batch["key"]
    assert scored["label"].tolist() == expected.label.tolist()
    assert np.array_equal(scored["score"], expected.score[:, 0])


@pytest.mark.parametrize("options", [{"top_k": 2}, {"all_scores": True}], ids=str)
def test_columns_have_the_names_that_the_command_writes(scorer, run_command, tiny_service, noise, tmp_path, options):
    """And its values; also a batch without rows has them all, in the same types."""
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
        (np.zeros((2, 784)), r"float64 \(784,\)"),
        (np.zeros((28, 28), np.uint8), r"uint8 \(28,\)"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"uint8 \(28, 28, 3\)"),
        (objects([bytes(784), bytes(783)]), r"uint8 \(783,\)"),
        (objects([bytes(784), None]), "None"),
        (objects([np.zeros(784, np.int64)]), r"int64 \(784,\)"),
        (objects([objects([np.zeros(28, np.uint8)] * 27 + [np.zeros(27, np.uint8)])]), r"object \(28,\)"),
        (objects(["cat", "dog"]), r"<U3 \(\)"),
    ],
)
def test_a_column_of_something_else_is_refused_by_name(scorer, values, got):
    """In one line: the column, what was expected, what came."""
    with pytest.raises(RequestRefused, match=f"column 'ink': expected uint8 .*, or 784 bytes, got {got}$"):
        scorer(column="ink")({"ink": values})


def test_a_missing_column_and_one_in_the_way_are_refused_by_name(scorer, noise):
    """A label that people gave is never overwritten."""
    with pytest.raises(RequestRefused, match="column 'bitmap': expected bitmaps, got no such column; there are x, y"):
        scorer()({"x": np.zeros(2), "y": np.zeros(2)})
    with pytest.raises(RequestRefused, match="column 'label': expected no such column, since scores go there"):
        scorer()({"bitmap": noise(2), "label": np.array(["cat", "dog"])})


def test_one_connection_serves_an_actor_and_is_never_pickled(start_watched, watched, noise):
    """It is opened by the first batch, not before; a copy in another process opens its own."""
    address = start_watched(watched)
    scorer = SketchbatchScorer(address, channels=1)
    assert not watched.peers
    for _ in range(3):
        scorer({"bitmap": noise(3) // 2})
    assert len(watched.peers) == 1
    copy = pickle.loads(pickle.dumps(scorer))
    copy({"bitmap": noise(3) // 2})
    assert len(watched.peers) == 2


def test_an_actor_asks_one_version_throughout(start_watched, watched, noise):
    """The one that was newest at its first batch is then asked for by its number."""
    asked = []
    answer = watched.Classify

    def classify(request, context):
        asked.append((request.model_name, request.model_version))
        return answer(request, context)

    watched.Classify = classify
    scorer = SketchbatchScorer(start_watched(watched))
    for _ in range(2):
        scorer({"bitmap": noise(3) // 2})
    assert asked == [("m", "1")] * 2


def test_a_model_that_is_not_served_is_an_error(scorer, noise):
    """With the names there are."""
    with pytest.raises(ModelNotFound, match="no model 'tiny' version '9'"):
        scorer(model="tiny", model_version="9")({"bitmap": noise(2)})


def test_options_of_the_client_are_passed_on(scorer, noise):
    """Whatever `Client` takes, and nothing else."""
    with pytest.raises(TypeError, match="no_such_option"):
        scorer(no_such_option=1)({"bitmap": noise(2)})
