"""Drawings that trained a model are recognised by the sample of digests in its model file."""

import base64
import json

import numpy as np
import pytest
from onnx_models import LABELS, write_model
from sketchbatch_client import Client
from sketchbatch_client.evaluation import ServedModel, compare, evaluate, open_labelled
from sketchbatch_client.evaluation.training_digests import (
    SAMPLE_ROWS,
    TrainedOn,
    decoded,
    digest_each,
    encoded,
    highest,
    joined,
    merged,
    sample_of,
    split,
)


def drawings(rows: int, seed: int):
    """Return random bitmaps."""
    return np.random.default_rng(seed).integers(0, 256, (rows, 28, 28), np.uint8)


def test_every_drawing_of_a_small_training_is_recognised():
    """The sample of a small training has all of its drawings, so the count of judged training drawings is exact."""
    train, other = drawings(300, 1), drawings(200, 2)
    counted = TrainedOn().add(digest_each(np.concatenate([train[:50], other])), sample_of(digest_each(train)))
    assert counted == TrainedOn(rows=250, compared=250, matches=50)
    assert str(counted) == "training drawings of the model among these: 50 of 250"


def test_the_share_of_a_large_training_is_estimated_without_false_matches():
    """A large training has a sample only; the share of training drawings is estimated from those in its range."""
    digests = np.random.default_rng(3).integers(0, 2**64, 100_000, np.uint64)
    sample = sample_of(digests)
    assert len(sample) == SAMPLE_ROWS
    assert np.array_equal(sample, np.sort(digests)[:SAMPLE_ROWS])
    none = TrainedOn().add(digest_each(drawings(2000, 4)), sample)
    assert (none.matches, none.rows) == (0, 2000)
    assert 40 < none.compared < 130  # about 4.1 %
    assert str(TrainedOn(rows=2000, compared=80, matches=60)) == (
        "training drawings of the model among these: about 75% of 2,000 (60 of 80 compared)"
    )
    assert str(TrainedOn(rows=80, compared=2, matches=2)) == (
        "training drawings of the model among these: 2 of the 2 that could be compared, of 80 in all"
    )


@pytest.mark.parametrize("sizes", [(100, 50), (9000, 100), (9000, 7000)])
def test_the_sample_of_two_trainings_is_that_of_all_their_drawings(sizes):
    """A training that started from a model has the sample of the drawings of both trainings, as far as it is known."""
    random = np.random.default_rng(5)
    parts = [random.integers(0, 2**64, size, np.uint64) for size in sizes]
    assert np.array_equal(merged(map(sample_of, parts)), sample_of(np.concatenate(parts)))


def test_own_drawings_are_recognised_next_to_many_of_the_starting_point(start_service, tmp_path):
    """The digests of a few own drawings are stored in full, before a sample that includes the starting point's."""
    random = np.random.default_rng(7)
    own, earlier = drawings(40, 8), random.integers(0, 2**64, 100_000, np.uint64)
    stored = joined(sample_of(digest_each(own)), sample_of(earlier))
    assert stored.nbytes <= 65_536
    first, both = split(decoded(base64.b64decode(encoded(stored))))
    assert (len(first), len(both)) == (41, SAMPLE_ROWS - 1)
    assert np.isin(both, np.concatenate([earlier, first])).all()
    again = joined(sample_of(random.integers(0, 2**64, 4096, np.uint64)), stored)
    assert (again.nbytes, [len(part) for part in split(again)]) == (65_536, [SAMPLE_ROWS + 1, SAMPLE_ROWS - 1])
    model = write_model(tmp_path / "model.onnx", metadata={"sketchbatch.training_digests": encoded(stored)})
    (tmp_path / "few").mkdir()
    np.save(tmp_path / "few" / f"{LABELS[0]}.npy", np.concatenate([own[:32], drawings(8, 9)]).reshape(-1, 784))
    with Client(start_service(model).address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(tmp_path / "few", LABELS))
    assert str(evaluation.trained_on) == "training drawings of the model among these: 32 of 40"


def test_drawings_of_the_starting_point_are_recognised_next_to_own_ones():
    """The sample with a certainly larger share counts: here that of all drawings that trained the weights."""
    earlier = drawings(6000, 10)
    stored = joined(sample_of(digest_each(drawings(40, 11))), sample_of(digest_each(earlier)))
    counts = [TrainedOn().add(digest_each(earlier[:500]), sample) for sample in split(stored)]
    assert [count.share for count in counts] == [0, 1]
    assert highest(counts) is counts[1]
    exact, rough = TrainedOn(300, 300, 242), TrainedOn(300, 13, 11)  # 81 %, and 58 % or more
    assert highest([exact, rough]) is exact
    assert highest([TrainedOn(300, 12, 0), TrainedOn(300, 0, 0)]).compared == 12


@pytest.fixture(scope="module")
def trained(start_service, tmp_path_factory):
    """Serve a model whose file has the digests of 40 drawings; return the service and these drawings."""
    folder, bitmaps = tmp_path_factory.mktemp("models"), drawings(40, 6)
    metadata = {"sketchbatch.training_digests": encoded(sample_of(digest_each(bitmaps)))}
    write_model(folder / "known" / "1" / "model.onnx", metadata=metadata)
    write_model(folder / "old" / "1" / "model.onnx")
    return start_service(folder, "--default-model", "known"), bitmaps


def test_evaluate_marks_drawings_that_trained_the_model(trained, sketchbatch, tmp_path):
    """Each output says how many of the judged drawings trained the model; without digests no output mentions it."""
    service, bitmaps = trained
    for label, own in zip(LABELS, (bitmaps[:20], drawings(10, 7), bitmaps[:1]), strict=True):
        np.save(tmp_path / f"{label}.npy", own.reshape(-1, 784))
    files = ["--json", tmp_path / "m.json", "--html", tmp_path / "p.html"]
    found = sketchbatch("evaluate", tmp_path, "--server", service.address, *files)
    sentence = "known version 1: training drawings of the model among these: 21 of 31"
    assert sentence in found.err
    assert sentence in (tmp_path / "p.html").read_text()
    assert json.loads((tmp_path / "m.json").read_text())["trained_on"] == {
        "rows": 31,
        "compared": 31,
        "matches": 21,
        "share": 21 / 31,
    }
    against = sketchbatch("evaluate", tmp_path, "--server", service.address, "--model", "old", *files)
    assert (against.code, "trained" in against.err) == (0, False)
    assert json.loads((tmp_path / "m.json").read_text())["trained_on"] is None
    both = sketchbatch("evaluate", tmp_path, "--server", service.address, "--model", "old", "--against-model", "known")
    assert sentence in both.err


def test_evaluate_in_python_requests_the_digests_itself(trained, tmp_path):
    """A model of `Client.model` has no digests; the evaluation recognises the training drawings nevertheless."""
    service, bitmaps = trained
    np.save(tmp_path / f"{LABELS[0]}.npy", bitmaps[:20].reshape(-1, 784))
    with Client(service.address) as client:
        known, old = client.model("known"), client.model("old")
        found = open_labelled(tmp_path, known.labels)
        assert evaluate(client, known, found).trained_on.matches == 20
        comparison = compare(ServedModel(client, old), ServedModel(client, known), found)
    assert (comparison.first.trained_on, comparison.second.trained_on.matches) == (None, 20)


def test_digests_are_sent_only_on_request(trained):
    """GetModel has the digests only if the request sets the flag, and ListModels never has them."""
    with Client(trained[0].address) as client:
        assert len(client.model("known", with_training_digests=True).training_digests) == 8 * 41
        assert [each.training_digests for each in (client.model("known"), *client.models())] == [b""] * 3
        assert client.model("old", with_training_digests=True).training_digests == b""
