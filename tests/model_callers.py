"""Replace the model files of a running service, send requests continuously meanwhile, and check every response."""

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
    """Write files of the model `farm` to a repository, and keep the scores that each file gives for `BITMAPS`.

    No two files give the same scores.
    """

    def __init__(self, path) -> None:
        self.path = path
        self._seed = 0
        # for each version, the expected scores of `BITMAPS` from each file that the version has had
        self.expected: dict[str, list[np.ndarray]] = {}

    def write(self, version: int, **model) -> None:
        """Write a model file to another folder, then move the file to its place in the repository.

        Args:
            version: Version of the model.
            model: Options of `write_model` that make the file incorrect. The service never serves such a file, so its
                scores are not expected.
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
        """Return whether any file that the version has had gives these scores for `BITMAPS`."""
        got = np.frombuffer(scores, "<f4").reshape(len(BITMAPS), -1)
        return any(np.allclose(got, expected, atol=1e-6) for expected in self.expected.get(version, []))


class Callers:
    """Send requests without retries and count the responses, while the context of this object is open.

    There are three kinds of requests: Classify, ClassifyStream and ModelInfer. For each kind, `each` threads send one
    request after another.
    """

    def __init__(self, address: str, repository: Repository, *, each: int) -> None:
        options = [("grpc.enable_retries", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.stub = classifier_pb2_grpc.ClassifierServiceStub(self.channel)
        self.outcomes: Counter = Counter()  # number of responses by outcome: "right" or a description of the error
        self.versions: Counter = Counter()  # number of responses by model version
        self._repository = repository
        self._ended = threading.Event()
        self._counting = threading.Lock()
        kinds = [self._classify, self._stream, self._infer]
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds for _ in range(each)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.channel.close()

    def newest(self) -> str:
        """Return the newest model version that the service serves."""
        return self.stub.GetModel(pb.GetModelRequest()).model.version

    def rpc(self, method: str, **fields):
        """Call a method of the Open Inference Protocol; `fields` are the fields of the request."""
        call = self.channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(open_inference_pb2, f"{method}Response").FromString,
        )
        return call(getattr(open_inference_pb2, f"{method}Request")(**fields))

    def _run(self, kind) -> None:
        while not self._ended.is_set():
            try:
                kind()
            except grpc.RpcError as exc:
                self._count(f"{kind.__name__}: {exc.code().name}: {exc.details()}")

    def _classify(self) -> None:
        answer = self.stub.Classify(pb.ClassifyRequest(bitmaps=BITMAPS.tobytes()))
        self._check(answer.model_version, answer.scores)

    def _stream(self) -> None:
        def messages():
            while not self._ended.is_set():
                yield pb.ClassifyStreamRequest(bitmaps=BITMAPS.tobytes())

        for answer in self.stub.ClassifyStream(messages()):
            if answer.HasField("error"):
                self._count(f"_stream: {answer.error.message}")
            else:
                self._check(answer.model_version, answer.scores)

    def _infer(self) -> None:
        tensor = open_inference_pb2.ModelInferRequest.InferInputTensor
        inputs = [tensor(name="bitmaps", datatype="UINT8", shape=BITMAPS.shape)]
        answer = self.rpc("ModelInfer", inputs=inputs, raw_input_contents=[BITMAPS.tobytes()])
        self._check(answer.model_version, answer.raw_output_contents[0])

    def _check(self, version: str, scores: bytes) -> None:
        self._count("right" if self._repository.is_right(version, scores) else f"wrong scores of {version}", version)

    def _count(self, outcome: str, version: str = "") -> None:
        with self._counting:
            self.outcomes[outcome] += 1
            if version:
                self.versions[version] += 1
