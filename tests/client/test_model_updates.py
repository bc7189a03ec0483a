"""While models are updated, no request of a client fails, and each response has the labels of its model file."""

import asyncio
import hashlib
import re
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from onnx_models import LABELS, write_model
from polling import wait_until
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import AsyncClient, Classification, Client, DeadlineExceeded, ModelNotFound

pytestmark = pytest.mark.timeout(60)  # most tests start two services

BITMAPS = np.random.default_rng(1).integers(0, 256, (20, 28, 28), np.uint8)
OTHER_LABELS = ("bear", "lion", "wolf")

Classify = Callable[..., object]


@asynccontextmanager
async def connected(kind: type, target: str, **options: object) -> AsyncIterator[Classify]:
    """Yield a coroutine function that classifies with a `Client` in a thread or with an `AsyncClient`."""
    if kind is Client:
        with Client(target, **options) as client:
            yield lambda bitmaps, **fields: asyncio.to_thread(client.classify, bitmaps, **fields)
    else:
        async with AsyncClient(target, **options) as client:
            yield client.classify


@pytest.fixture(params=[Client, AsyncClient])
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


class Replicas:
    """Run services, each with its own repository; gRPC sends the requests of a client to all services in turn."""

    def __init__(self, folder: Path, start_service: Callable[..., object]) -> None:
        self._folders = [folder / name for name in "ab"]
        self._labels: dict[bytes, tuple[str, ...]] = {}  # scores of BITMAPS -> labels of the file
        for number in range(len(self._folders)):
            self.write(number, version=1, labels=LABELS)
        flags = ("--watch-models-s", "0.1", "--provider", "cpu", "--allow-label-changes")
        self._addresses = [start_service(each, *flags).address for each in self._folders]
        self.target = "ipv4:" + ",".join(self._addresses)
        self.single_target = self._addresses[0]

    def reset(self) -> None:
        """Make version 1 with the labels `LABELS` the only version in each repository, and wait until it is served."""
        self._labels.clear()
        for number, folder in enumerate(self._folders):
            self.write(number, version=1, labels=LABELS)
            for other in folder.glob("farm/*"):
                if other.name != "1":
                    shutil.rmtree(other)
        for address in self._addresses:
            with Client(address) as client:
                wait_until(lambda client=client: self._is_reset(client))

    def _is_reset(self, client: Client) -> bool:
        return [(model.version, model.labels) for model in client.models()] == [("1", LABELS)]

    def write(self, number: int, *, version: int, labels: tuple[str, ...]) -> None:
        """Move a model file to its place in one repository; files with other labels return other scores."""
        ready = write_model(
            self._folders[number] / ".ready" / "model.onnx", labels=list(labels), seed=sum(map(ord, labels[0]))
        )
        self._labels[self._expected(ready).tobytes()] = labels
        folder = self._folders[number] / "farm" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        ready.rename(folder / "model.onnx")

    def remove(self, number: int, *, version: int) -> None:
        """Remove a version from one repository."""
        shutil.rmtree(self._folders[number] / "farm" / str(version))

    def has_right_labels(self, result: Classification) -> bool:
        """Return whether the labels are those of the model file that computed the scores."""
        expected = (np.frombuffer(scores, np.float32).reshape(result.scores.shape) for scores in self._labels)
        right = [np.allclose(result.scores, scores, atol=1e-6) for scores in expected]
        return list(self._labels.values())[right.index(True)] == result.labels

    def is_right(self, columns: dict[str, np.ndarray], start: int) -> bool:
        """Return whether the columns score_LABEL from row `start` on are the scores of `BITMAPS` with one file."""
        rows = slice(start, start + len(BITMAPS))
        return any(
            all(
                np.allclose(columns[f"score_{label}"][rows], scores, atol=1e-6)
                for label, scores in zip(
                    labels, np.frombuffer(each, np.float32).reshape(len(BITMAPS), -1).T, strict=True
                )
            )
            for each, labels in self._labels.items()
        )

    def _expected(self, model: Path) -> np.ndarray:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return session.run(["scores"], {"bitmaps": BITMAPS})[0]


@pytest.fixture(scope="module")
def started_replicas(start_service, tmp_path_factory) -> Replicas:
    """Start the services once for all tests, because the start of a service takes a second."""
    return Replicas(tmp_path_factory.mktemp("replicas"), start_service)


@pytest.fixture
def replicas(started_replicas) -> Replicas:
    """Return two services that serve version 1 with the labels `LABELS`."""
    started_replicas.reset()
    return started_replicas


async def test_a_request_for_a_version_that_has_just_appeared_waits_for_it(replicas, kind):
    """A request that names a version which a response has named is not refused by a server that loads it later."""
    replicas.write(0, version=2, labels=OTHER_LABELS)
    async with connected(kind, replicas.target) as classify:
        while (await classify(BITMAPS)).model_version != "2":
            pass
        results = [asyncio.ensure_future(classify(BITMAPS, model_version="2")) for _ in range(4)]
        await results[0]
        replicas.write(1, version=2, labels=OTHER_LABELS)
        assert {(await result).model_version for result in results} == {"2"}


async def test_a_version_that_does_not_appear_everywhere_ends_with_the_deadline(replicas, kind):
    """A new version that no server has any more ends a request at its deadline, as an error that a retry may repair."""
    replicas.write(0, version=2, labels=OTHER_LABELS)
    async with connected(kind, replicas.target, timeout_s=3) as classify:
        while (await classify(BITMAPS)).model_version != "2":
            pass
        replicas.remove(0, version=2)
        error = None
        while error is None:
            try:
                await classify(BITMAPS, model_version="2")
            except DeadlineExceeded as exc:
                error = exc
        assert "not all servers of" in str(error)
        assert re.search(
            r"served the default model version 2 within 3 s \(one answered: no model 'farm' version '2'; .*version 1",
            str(error),
        )


async def test_a_version_that_was_removed_is_asked_for_less_and_less_often(start_server, servicer, drawing, kind):
    """Many clients that wait for a removed version do not keep the servers busy: the pauses double up to 0.5 s."""
    answer, asked = servicer.Classify, []

    def classify_unnamed(request, context):
        if request.model_version:
            asked.append(request.model_version)
            context.abort(grpc.StatusCode.NOT_FOUND, "no model 'm' version '1'")
        return answer(request, context)

    servicer.Classify = classify_unnamed
    async with connected(kind, start_server(servicer), timeout_s=3) as classify:
        await classify(drawing(1)[None])
        with pytest.raises(DeadlineExceeded, match="if the version was removed, request another one"):
            await classify(drawing(1)[None], model_version="1")
    assert 3 <= len(asked) <= 9  # 0, 0.05, 0.15, 0.35, 0.75, 1.25, 1.75, 2.25, 2.75 s at the earliest


async def test_a_version_that_its_server_has_retired_is_not_found_at_once(replicas, kind):
    """A request for a version that a newer version has replaced ends before its deadline, which is a year away."""
    async with connected(kind, replicas.single_target, timeout_s=31e6) as classify:
        assert (await classify(BITMAPS, model_version="1")).model_version == "1"
        for version in (2, 3):  # the service keeps the two newest versions
            replicas.write(0, version=version, labels=OTHER_LABELS)
        while (await classify(BITMAPS)).model_version != "3":
            pass
        error = None
        while error is None:  # version 1 is served until the scan that has loaded its successors ends
            try:
                await classify(BITMAPS, model_version="1")
            except ModelNotFound as exc:
                error = exc
        assert "version '1'" in str(error)


async def test_a_new_version_on_one_of_two_servers_fails_no_request(replicas, kind):
    """While one of two servers has a new version, a client that names no version receives right labels from both."""
    async with connected(kind, replicas.target) as classify:
        assert (await classify(BITMAPS)).model_version == "1"
        replicas.write(0, version=2, labels=OTHER_LABELS)
        versions = []
        while set(versions[-4:]) != {"1", "2"}:
            result = await classify(BITMAPS)
            assert replicas.has_right_labels(result)
            versions.append(result.model_version)
        with pytest.raises(ModelNotFound, match="version '9'"):
            await classify(BITMAPS, model_version="9")


@pytest.mark.parametrize("version", ["", "1"])
async def test_another_file_of_the_same_version_has_its_own_labels(replicas, kind, version):
    """While two servers have different files with the same version number, each response has the right labels."""
    async with connected(kind, replicas.target) as classify:
        assert (await classify(BITMAPS, model_version=version)).labels == LABELS
        replicas.write(0, version=1, labels=OTHER_LABELS)
        seen = []
        while set(seen[-4:]) != {LABELS, OTHER_LABELS}:
            result = await classify(BITMAPS, model_version=version)
            assert replicas.has_right_labels(result)
            seen.append(result.labels)


async def test_a_client_names_all_rows_rightly_after_its_file_was_replaced(replicas, kind):
    """After the file of a version is replaced by one with other labels, a client that was connected uses the new ones.

    The client sends requests of one row and of many rows while the file is replaced; each has the labels of its file.
    """
    rows = np.concatenate([BITMAPS] * 10)
    async with connected(kind, replicas.single_target) as classify:
        assert (await classify(BITMAPS)).labels == LABELS
        replicas.write(0, version=1, labels=LABELS[::-1])
        during = [await classify(BITMAPS)]
        while during[-1].labels == LABELS:
            during += await asyncio.gather(*(classify(BITMAPS) for _ in range(4)))
        assert all(map(replicas.has_right_labels, during))
        after = await classify(rows, top_k=1)
        assert after.labels == LABELS[::-1]
        assert (after.label != np.tile(during[-1].label, 10)).sum() == 0
        single = await asyncio.gather(*(classify(row) for row in rows))
        assert sum(result.label[0] != label for result, label in zip(single, after.label, strict=True)) == 0


async def test_a_large_call_to_servers_with_different_files_has_the_label_of_each_file(replicas, kind):
    """If several servers share one large call and have different files, each row has the label of its own file."""
    async with connected(kind, replicas.target, rows_per_request=len(BITMAPS), in_flight=1) as classify:
        replicas.write(0, version=1, labels=LABELS[::-1])
        digests = ()
        while len(digests) < 2:
            result = await classify(np.concatenate([BITMAPS] * 4))
            digests = result.digests
            for start in range(0, len(result), len(BITMAPS)):
                assert replicas.is_right(result.columns(), start)


async def test_the_labels_of_replaced_files_are_forgotten(serve, kind):
    """A client keeps the labels of the last four files of a version only, however often the file is replaced."""
    model = ChangingModel(*"abcdea")
    async with connected(kind, serve(model)) as classify:
        seen = [(await classify(BITMAPS)).labels for _ in "abcdea"]
    assert seen == [(digest,) for digest in "abcdea"]
    assert model.descriptions == [*"abcdea"]


class ChangingModel(classifier_pb2_grpc.ClassifierServiceServicer):
    """Respond as a server whose model file changes: the digest of the first response is the first of `digests`.

    All later responses have the last of `digests`. GetModel describes only the file with the digest `described`, or if
    this is empty, the file of the last response. While the event `held` is set, GetModel does not respond.
    """

    def __init__(self, *digests: str, described: str = "") -> None:
        self.digests = list(digests)
        self.requests = 0
        self.descriptions: list[str] = []  # digests in the responses of GetModel to requests that name a version
        self._last = digests[0]
        self.held = threading.Event()
        self.ended = threading.Event()
        self._described = described

    def Classify(self, request, context):  # noqa: N802
        self.requests += 1
        digest = self.digests.pop(0) if len(self.digests) > 1 else self.digests[0]
        self._last = digest
        rows = len(request.bitmaps) // 784
        scores = np.ones((rows, 1), "<f4").tobytes()
        return pb.ClassifyResponse(model_name="m", model_version="1", rows=rows, scores=scores, digest=digest)

    def GetModel(self, request, context):  # noqa: N802
        if self.held.is_set() and request.model_version:
            self.ended.wait()
        digest = self._described or self._last
        if request.model_version:
            self.descriptions.append(digest)
        model = pb.Model(name="m", version="1", labels=[digest], max_request_rows=100, digest=digest)
        return pb.GetModelResponse(model=model)


@pytest.fixture
def serve() -> Iterator[Callable[[ChangingModel], str]]:
    """Return a function that serves a model and returns the address."""
    servers = []

    def start(model: ChangingModel) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(model, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append((server, model))
        return f"127.0.0.1:{port}"

    yield start
    for server, model in servers:
        model.ended.set()
        server.stop(None).wait()


async def test_a_request_is_repeated_if_its_model_file_has_been_replaced(serve, kind):
    """If the model file of a response is replaced before the client has its labels, the client repeats the request."""
    model = ChangingModel("old", "new", described="new")
    async with connected(kind, serve(model)) as classify:
        assert (await classify(BITMAPS)).labels == ("new",)
    assert model.requests == 2


async def test_labels_are_requested_once_for_each_model_file(serve, kind):
    """The client requests the labels of a model file once, and keeps them by the digest of the file."""
    model = ChangingModel("new", described="new")
    async with connected(kind, serve(model)) as classify:
        assert (await classify(BITMAPS)).labels == ("new",)
        model.held.set()
        assert (await classify(BITMAPS)).labels == ("new",)


async def test_an_older_service_has_one_file_per_version(serve, kind):
    """If the responses of an older service have no digest, the client keeps the labels by name and version."""
    model = ChangingModel("", described="d")
    async with connected(kind, serve(model)) as classify:
        assert (await classify(BITMAPS)).labels == ("d",)
        model.held.set()
        assert (await classify(BITMAPS)).labels == ("d",)
    assert model.requests == 2


async def test_missing_labels_end_in_a_clear_error(serve, kind):
    """If the labels of a response do not arrive before the deadline, the error names the model file."""
    model = ChangingModel("d1", described="d1")
    model.held.set()
    message = r"returned scores of m version 1 \(SHA-256 d1\), but not the labels of this model file in 2 s"
    async with connected(kind, serve(model), timeout_s=2.0) as classify:
        with pytest.raises(DeadlineExceeded, match=message):
            await classify(BITMAPS)


async def test_labels_of_another_file_are_never_used(serve, kind):
    """If every response comes from another file than GetModel describes, the call raises DeadlineExceeded."""
    model = ChangingModel("other", described="d")
    async with connected(kind, serve(model), timeout_s=0.5) as classify:
        with pytest.raises(DeadlineExceeded):
            await classify(BITMAPS)


def test_each_response_has_the_digest_of_the_model_file(tiny_service, tiny_model):
    """Responses of Classify and ClassifyStream have the same digest as the description of the model."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        digests = {
            stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784))).digest,
            next(stub.ClassifyStream(iter([pb.ClassifyStreamRequest(bitmaps=bytes(784))]))).digest,
            stub.GetModel(pb.GetModelRequest()).model.digest,
        }
    assert digests == {hashlib.sha256(tiny_model.read_bytes()).hexdigest()}
