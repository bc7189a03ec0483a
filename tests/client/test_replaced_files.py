"""Test that rows have the labels of the model file that scored them, if the file is replaced under the same version."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import AsyncClient, Client
from sketchbatch_client.errors import JobRefused, ModelChanged
from sketchbatch_client.evaluation.evaluating import evaluate
from sketchbatch_client.evaluation.labelled import open_labelled
from sketchbatch_client.ray import SketchbatchScorer
from sketchbatch_client.rpc.classification import Classification, joined
from sketchbatch_client.scoring.job import ProgressListener, ScoreJob, write_scores
from sketchbatch_client.scoring.plan import ScoreOptions

ONE_REQUEST_AT_A_TIME = {"rows_per_request": 10, "in_flight": 1, "channels": 1}
LABELS = {"first": ("cat", "dog"), "second": ("dog", "cat")}  # by the digest of the file

ROWS = 40
NAMES = np.array(["cat", "dog"] * (ROWS // 2))
BITMAPS = np.zeros((ROWS, 28, 28), np.uint8)
BITMAPS[1::2, 0, 0] = 200  # a drawing whose first pixel is 0 is a cat, all others are dogs


class ReplacedFile(classifier_pb2_grpc.ClassifierServiceServicer):
    """Respond as a service whose model file is replaced during some requests, and then restored.

    `digests` lists the digests of the files that score the first requests; the first file scores all later requests.
    GetModel describes the file that scored the last request, but only once; then it describes the first file.
    """

    def __init__(self, *digests: str) -> None:
        self._digests = list(digests)
        self._described = "first"

    def Classify(self, request, context):  # noqa: N802
        digest = self._described = self._digests.pop(0) if self._digests else "first"
        is_dog = np.frombuffer(request.bitmaps, np.uint8).reshape(-1, 784)[:, 0] > 0
        index = np.where(is_dog, LABELS[digest].index("dog"), LABELS[digest].index("cat"))
        response = pb.ClassifyResponse(model_name="m", model_version="1", rows=len(index), digest=digest)
        if request.top_k:
            response.class_index.extend(index.tolist())
            response.score.extend([0.75] * len(index))
        else:
            response.scores = np.where(index[:, None] == [0, 1], np.float32(0.75), np.float32(0.25)).tobytes()
        return response

    def GetModel(self, request, context):  # noqa: N802
        digest, self._described = self._described, "first"
        model = pb.Model(name="m", version="1", labels=LABELS[digest], digest=digest, max_request_rows=100)
        return pb.GetModelResponse(model=model)


class SilentListener(ProgressListener):
    """Receive the progress of a job and ignore it."""

    def opens(self, source: str) -> None:
        pass

    def selects(self, model: str, score_kind: str) -> None:
        pass

    def begins(self, rows: int, rows_done: int) -> None:
        pass

    def advances(self, rows: int) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    """Return the address of a service whose file is replaced after the first of four requests, and restored."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = ReplacedFile("first", "second", "second", "first")
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("top_k", [0, 1])
def test_each_row_of_a_large_call_has_the_label_of_its_file(address, top_k):
    """If the file is replaced between the requests of one large call, each row has the label of its own file."""
    with Client(address, **ONE_REQUEST_AT_A_TIME) as client:
        result = client.classify(BITMAPS, top_k=top_k)
    assert (result.label != NAMES).sum() == 0
    assert result.digests == ("first", "second")
    assert np.all(result.score == np.float32(0.75))
    if not top_k:
        assert np.all(result.columns()["score_dog"] == np.where(NAMES == "dog", 0.75, 0.25))


async def test_each_row_of_a_large_call_has_the_label_of_its_file_with_asyncio(address):
    """`AsyncClient` joins the requests of one large call as `Client` does."""
    async with AsyncClient(address, **ONE_REQUEST_AT_A_TIME) as client:
        assert ((await client.classify(BITMAPS)).label != NAMES).sum() == 0


def test_an_open_iterator_yields_the_labels_of_each_file(address):
    """If the file is replaced while an iterator of `score` is open, later rows have the labels of the new file."""
    with Client(address, **ONE_REQUEST_AT_A_TIME) as client:
        results = list(client.score([BITMAPS[:15], BITMAPS[15:]]))
    assert [name for result in results for name in result.label] == NAMES.tolist()
    assert {(result.labels, result.digests) for result in results} == {(v, (k,)) for k, v in LABELS.items()}


@pytest.mark.parametrize("options", [{}, {"all_scores": True}], ids=str)
def test_a_batch_of_ray_has_the_labels_of_each_file(address, options):
    """If the file is replaced during a batch of the Ray scorer, each row has the label of its own file."""
    scored = SketchbatchScorer(address, **options, **ONE_REQUEST_AT_A_TIME)({"bitmap": BITMAPS})
    assert (scored["label"] != NAMES).sum() == 0


def test_a_job_ends_if_another_file_scored_a_row(address, tmp_path):
    """A job whose file was replaced during some requests ends with an error, even if the file is restored then."""
    np.save(tmp_path / "cat.npy", BITMAPS)
    job = ScoreJob(inputs=[str(tmp_path / "cat.npy")], options=ScoreOptions())
    with (
        Client(address, **ONE_REQUEST_AT_A_TIME) as client,
        pytest.raises(JobRefused, match="replaced the file of m version 1 during the job; --restart begins anew"),
    ):
        write_scores(client, job, tmp_path / "scores.parquet", SilentListener())
    assert not (tmp_path / "scores.parquet").exists()


def test_an_evaluation_ends_if_another_file_scored_a_row(address, tmp_path):
    """An evaluation whose file was replaced during some requests ends with an error that a retry may repair."""
    np.save(tmp_path / "cat.npy", BITMAPS[::2])
    np.save(tmp_path / "dog.npy", BITMAPS[1::2])
    with Client(address, **ONE_REQUEST_AT_A_TIME) as client:
        model = client.model()
        with pytest.raises(ModelChanged, match="the file of m version 1 was replaced") as caught:
            evaluate(client, model, open_labelled(tmp_path, model.labels))
    assert not caught.value.is_permanent


def result_of(
    labels: tuple[str, ...], class_index: list[list[int]], scores: list[list[float]] | None
) -> Classification:
    index = np.array(class_index)
    return Classification("m", "1", labels, index, np.ones(index.shape, np.float32), scores and np.float32(scores))


def test_files_with_different_classes_are_joined_by_label():
    """Results of files with different classes are joined by label; a file gives 0 to a class that it does not have."""
    whole = joined(
        [
            result_of(("cat", "dog"), [[1]], [[0.25, 0.75]]),
            result_of(("dog", "bee", "cat"), [[1], [2]], [[0.1, 0.8, 0.1], [0.1, 0.2, 0.7]]),
        ]
    )
    assert whole.labels == ("cat", "dog", "bee")
    assert whole.label.tolist() == ["dog", "bee", "cat"]
    expected = [[0.25, 0.75, 0], [0.1, 0.1, 0.8], [0.7, 0.1, 0.2]]
    assert np.array_equal(whole.scores, np.float32(expected))


def test_several_best_classes_are_joined_by_label():
    """Results with the two best classes of each row are joined by label."""
    whole = joined([result_of(("cat", "dog"), [[1, 0]], None), result_of(("dog", "cat"), [[1, 0]], None)])
    assert whole.columns()["label"].tolist() == ["dog", "cat"]
    assert whole.columns()["label_2"].tolist() == ["cat", "dog"]
