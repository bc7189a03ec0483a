"""Test that docs/grpc-api.md is true: its service config, its channel options, its limits and its example."""

import json
import re
import time
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from fakes import FakeModel
from in_process import InProcess, rejection, serving, until
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub
from sketchbatch_service.api.openinference import wire
from sketchbatch_service.errors import InferenceFailed, Overloaded, ShuttingDown
from status_causes import GUIDE

PAGE = GUIDE.read_text()
[RETRY] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[EXAMPLE] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CONFIG = ("grpc.service_config", RETRY)
BUFFER = ("grpc.per_rpc_retry_buffer_size", 16 << 20)
DRAINING = ShuttingDown("draining")

both_transports = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]


class WideModel(FakeModel):
    """Act as a model with 345 classes."""

    def predict(self, bitmaps):
        return np.zeros((len(bitmaps), 345), np.float32)


class Failing:
    """Make the first `failures` attempts of a service fail with `error`; `at` has the time of each attempt."""

    def __init__(self, service: InProcess, error: Exception, failures: int) -> None:
        self.at: list[float] = []
        submit, service.batcher.submit = service.batcher.submit, self.submit
        self._submit, self._error, self._failures = submit, error, failures

    def submit(self, *args, **options):
        self.at.append(time.monotonic())
        if len(self.at) <= self._failures:
            raise self._error
        return self._submit(*args, **options)


@asynccontextmanager
async def failing(error: Exception, *options: tuple[str, object], failures: int = 1):
    """Run a service whose first attempts fail; yield its stub, on a channel with `options`, and the attempts."""
    async with serving(fake=FakeModel(), max_request_rows=4000) as service:
        attempts = Failing(service, error, failures)
        async with grpc.aio.insecure_channel(service.address, [CONFIG, *options]) as channel:
            yield ClassifierServiceStub(channel), attempts


def drawings(rows: int) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(bitmaps=bytes(784 * rows), top_k=1)


class TestRetries:
    pytestmark = both_transports

    async def test_grpc_waits_for_the_delay_of_a_full_queue(self):
        """A client sends a request that a full queue rejected again, after the delay of the service and not before."""
        delay_s = 0.5  # longer than the first delay of the service config, 0.12 s with its jitter
        async with failing(Overloaded("queue full", retry_after_s=delay_s)) as (stub, attempts):
            assert (await stub.Classify(drawings(1))).rows == 1
        first, second = attempts.at
        assert second - first >= 0.9 * delay_s  # gRPC rounds to milliseconds

    async def test_grpc_retries_a_request_that_a_draining_server_rejected(self):
        """A client sends a request again after UNAVAILABLE."""
        async with failing(DRAINING) as (stub, attempts):
            assert (await stub.Classify(drawings(1))).rows == 1
        assert len(attempts.at) == 2

    @pytest.mark.parametrize("error", [InferenceFailed("the call failed"), RuntimeError("a defect")])
    async def test_grpc_does_not_retry_other_errors(self, error):
        """A client does not send a request again after INTERNAL."""
        async with failing(error) as (stub, attempts):
            assert (await rejection(stub.Classify(drawings(1)))).code() is grpc.StatusCode.INTERNAL
        assert len(attempts.at) == 1

    async def test_grpc_gives_up_after_the_fifth_attempt(self):
        """A request that fails five times ends with the error of its last attempt."""
        async with failing(Overloaded("queue full", retry_after_s=0.001), failures=9) as (stub, attempts):
            assert (await rejection(stub.Classify(drawings(1)))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(attempts.at) == json.loads(RETRY)["methodConfig"][0]["retryPolicy"]["maxAttempts"] == 5

    @pytest.mark.parametrize(("rows", "options", "attempts"), [(334, [], 2), (335, [], 1), (4000, [BUFFER], 2)])
    async def test_grpc_retries_a_large_request_only_with_a_larger_buffer(self, rows, options, attempts):
        """By default, gRPC retries a request of 334 rows but none of 335; a larger buffer size changes this."""
        async with failing(DRAINING, *options) as (stub, made):
            if attempts == 2:
                assert (await stub.Classify(drawings(rows))).rows == rows
            else:
                assert (await rejection(stub.Classify(drawings(rows)))).code() is grpc.StatusCode.UNAVAILABLE
        assert len(made.at) == attempts
        assert f"{rows} rows" in PAGE or options

    async def test_a_client_that_counts_responses_loses_no_message_of_a_drained_stream(self):
        """A stream that a drain ends has a response to each message that was read; another server answers the rest."""
        sent = [pb.ClassifyStreamRequest(bitmaps=bytes(784 * rows)) for rows in (1, 2, 3)]
        async with serving(fake=FakeModel()) as draining, serving(fake=FakeModel()) as other:
            call = draining.stub.ClassifyStream()
            await call.write(sent[0])
            answered = [(await call.read()).rows]
            draining.classifier.drain()
            error = await rejection(call.read())
            messages = sent[len(answered) :]
            answered += [response.rows async for response in other.stub.ClassifyStream(messages)]
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert answered == [1, 2, 3]

    async def test_grpc_does_not_retry_a_stream(self):
        """The service config leaves streams alone: a retried stream of grpcio 1.85.1 can lose messages."""
        async with serving(fake=FakeModel()) as service:
            service.classifier.drain()
            async with grpc.aio.insecure_channel(service.address, [CONFIG]) as channel:
                error = await rejection(ClassifierServiceStub(channel).ClassifyStream([]).read())
            ended = "sketchbatch_requests_total UNAVAILABLE sketchbatch.v1.ClassifierService/ClassifyStream"
            await until(lambda: service.values().get(ended) == 1)
        assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_the_service_config_names_every_unary_method_and_no_stream():
    """Only calls with one request and one response are retried."""
    [config] = json.loads(RETRY)["methodConfig"]
    unary = {
        (service.full_name, method.name)
        for service in (pb.DESCRIPTOR.services_by_name["ClassifierService"],)
        for method in service.methods
        if not method.client_streaming and not method.server_streaming
    }
    assert {(each["service"], each["method"]) for each in config["name"]} == unary | {(wire.SERVICE, "ModelInfer")}


async def test_all_scores_of_3040_rows_exceed_the_default_limit_of_a_client():
    """With 345 classes, the scores of 3,039 rows pass gRPC's default limit, and those of 3,040 rows do not."""
    assert "the response to 3,040 rows is larger" in PAGE
    async with serving(fake=WideModel(), max_request_rows=16_384) as service:
        request = pb.ClassifyRequest(bitmaps=bytes(784 * 3040))
        fits = pb.ClassifyRequest(bitmaps=bytes(784 * 3039))
        assert (await service.stub.Classify(fits)).rows == 3039
        error = await rejection(service.stub.Classify(request))
        async with grpc.aio.insecure_channel(
            service.address, [("grpc.max_receive_message_length", 64 << 20)]
        ) as channel:
            assert (await ClassifierServiceStub(channel).Classify(request)).rows == 3040
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-retry-pushback-ms" not in dict(error.trailing_metadata())


def test_the_python_example_runs(tiny_service, tmp_path, monkeypatch, capsys):
    """The Python example of the guide runs unchanged, except for the address of the service."""
    monkeypatch.chdir(tmp_path)
    Path("retry.json").write_text(RETRY)
    exec(compile(EXAMPLE.replace("localhost:50051", tiny_service.address), str(GUIDE), "exec"), {})
    best, error = capsys.readouterr().out.splitlines()
    assert best.split()[0] in ("ant", "bee", "cow")
    assert error == "StatusCode.INVALID_ARGUMENT bitmaps"


def test_the_table_of_options_has_the_options_of_the_example():
    """The row Python of the channel options has the same names and values as the example that runs."""
    [row] = re.findall(r"^\| Python \|(.*)\|$", PAGE, re.MULTILINE)
    options = re.findall(r"`(.*?)`", row)
    assert len(options) == 3
    assert [option for option in options if option not in EXAMPLE] == []


def test_grpc_knows_every_option_of_the_guide():
    """The C core's library contains the full name of each channel option in the guide; it ignores other names."""
    [library] = (Path(grpc.__file__).parent / "_cython").glob("*.so")
    names = set(re.findall(r'"(grpc\.[a-z0-9_.]+)",', PAGE))
    assert len(names) >= 6
    assert sorted(name for name in names if name.encode() + b"\0" not in library.read_bytes()) == []


def test_every_field_of_the_contract_is_explained_in_full(root):
    """Each field of classifier.proto has a comment of its own that refers to no other field for its meaning."""
    proto = (root / "protos/sketchbatch/v1/classifier.proto").read_text()
    fields = re.findall(r"((?:^  //.*\n)*)^  (?:repeated )?[\w.]+ (\w+) = \d+;$", proto, re.MULTILINE)
    assert len(fields) >= 45
    assert [name for comment, name in fields if not comment] == []
    assert [name for comment, name in fields if re.search(r"\b([Ss]ame as|[Aa]s in|[Ss]ee) ", comment)] == []
