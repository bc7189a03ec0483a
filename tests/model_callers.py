"""Clients that call a service continuously while its models change, and check every response."""

import threading
from collections import Counter

import grpc
import numpy as np
import onnxruntime as ort
from onnx_models import write_model
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

BITMAPS = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)


class Repository:
    """A repository of versions of the model `farm`, each with its own weights, and their expected scores."""

    def __init__(self, path) -> None:
        self.path = path
        self._seed = 0
        self.expected: dict[str, list[np.ndarray]] = {}  # scores of `BITMAPS` by every file of each version

    def write(self, version: int, **model) -> None:
        """Write a file to another folder and rename it into place.

        Its scores are expected from now on, except if `model` makes it invalid.
        """
        self._seed += 1
        ready = write_model(self.path / ".ready" / "model.onnx", seed=self._seed, **model)
        if not model:
            session = ort.InferenceSession(ready, providers=["CPUExecutionProvider"])
            scores = session.run(["scores"], {"bitmaps": BITMAPS})[0]
            self.expected[str(version)] = [*self.expected.get(str(version), []), scores]
        folder = self.path / "farm" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        ready.rename(folder / "model.onnx")

    def is_right(self, version: str, scores: bytes) -> bool:
        """Return whether any file of `version` gives these scores."""
        got = np.frombuffer(scores, "<f4").reshape(len(BITMAPS), -1)
        return any(np.allclose(got, expected, atol=1e-6) for expected in self.expected.get(version, []))


class Callers:
    """Threads that call Classify, streams and the Open Inference Protocol without retries.

    The context manager starts the threads on entry and stops them on exit.

    Args:
        address: HOST:PORT of the service.
        repository: Holds the expected scores.
        each: Number of threads for each of the three kinds of call.
    """

    def __init__(self, address: str, repository: Repository, *, each: int) -> None:
        options = [("grpc.enable_retries", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.stub = classifier_pb2_grpc.ClassifierServiceStub(self.channel)
        self.outcomes: Counter = Counter()  # "right", or a description of the error
        self.versions: Counter = Counter()  # responses by version
        self._repository = repository
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the counters
        kinds = [self._classify, self._stream, self._infer]
        self._threads = [threading.Thread(target=self._run, args=(call,)) for call in kinds for _ in range(each)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self.channel.close()

    def newest(self) -> str:
        """Return the version that serves the default model."""
        return self.stub.GetModel(pb.GetModelRequest()).model.version

    def rpc(self, method: str, **fields):
        """Call a method of the Open Inference Protocol."""
        call = self.channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(open_inference_pb2, f"{method}Response").FromString,
        )
        return call(getattr(open_inference_pb2, f"{method}Request")(**fields))

    def _run(self, call) -> None:
        while not self._stopping.is_set():
            try:
                call()
            except grpc.RpcError as exc:
                self._count(f"{call.__name__}: {exc.code().name}: {exc.details()}")

    def _classify(self) -> None:
        response = self.stub.Classify(pb.ClassifyRequest(bitmaps=BITMAPS.tobytes()))
        self._check(response.model_version, response.scores)

    def _stream(self) -> None:
        def messages():
            while not self._stopping.is_set():
                yield pb.ClassifyStreamRequest(bitmaps=BITMAPS.tobytes())

        for response in self.stub.ClassifyStream(messages()):
            if response.HasField("error"):
                self._count(f"_stream: {response.error.message}")
            else:
                self._check(response.model_version, response.scores)

    def _infer(self) -> None:
        request = open_inference_pb2.ModelInferRequest(raw_input_contents=[BITMAPS.tobytes()])
        request.inputs.add(name="bitmaps", datatype="UINT8", shape=BITMAPS.shape)
        call = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=open_inference_pb2.ModelInferResponse.FromString,
        )
        response = call(request)
        self._check(response.model_version, response.raw_output_contents[0])

    def _check(self, version: str, scores: bytes) -> None:
        self._count("right" if self._repository.is_right(version, scores) else f"wrong scores of {version}", version)

    def _count(self, outcome: str, version: str = "") -> None:
        with self._lock:
            self.outcomes[outcome] += 1
            if version:
                self.versions[version] += 1
