"""Answers the ClassifierService RPCs: decode, submit to the model's batcher, encode.

`Classify` runs on the crew's threads, which also answer it; everything else runs on the event loop. None does heavy
work. Every error leaves through `status`.
"""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import struct_pb2
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

from . import codec
from .errors import Overloaded, ServiceError, ShuttingDown
from .grpc_calls import DirectCall
from .models import Models, ServedModel
from .row_queue import Answer
from .status import code_of, to_status, to_trailers

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
"""In fact an `AsyncCall`, which does what we ask of one."""

_STREAM_WINDOW = 64
"""Messages of one stream accepted but not yet answered; their rows are bounded by the queue itself."""

_STREAM_RETRY_S = 0.05
"""Longest a stream waits before it asks a full queue for room again."""


class ClassifierServicer(classifier_pb2_grpc.ClassifierServiceServicer):
    """The service's methods; `drain` ends the open streams once what they sent is answered."""

    def __init__(self, models: Models, *, max_request_rows: int) -> None:
        self._models = models
        self._max_request_rows = max_request_rows
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False

    def Classify(self, request: pb.ClassifyRequest, call: DirectCall) -> None:  # type: ignore[override]  # GrpcServer's own kind
        request_id = request.request_id or uuid.uuid4().hex
        try:
            accepted = self._accept(request, time.monotonic() + call.time_remaining())
        except Exception as exc:  # the caller must be answered
            _refuse(call, exc, request_id)
            return
        call.on_leave(accepted.future.cancel)
        accepted.future.add_done_callback(lambda _: _finish(call, accepted, request_id))

    async def ClassifyStream(
        self,
        request_iterator: AsyncIterator[pb.ClassifyStreamRequest],
        context: Context,
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        stream = _Stream()
        reader = asyncio.create_task(self._read(request_iterator, stream, _expiry(context)))
        if self._draining:
            reader.cancel()
        reader.add_done_callback(lambda _: stream.accepted.put_nowait(None))
        self._readers.add(reader)
        try:
            while (message := await stream.accepted.get()) is not None:
                yield await message.response()
                stream.window.release()
            if reader.cancelled():  # by `drain`, before the caller had sent everything
                await _abort(context, ShuttingDown("draining: the stream is closed, open another"), "")
            reader.result()
        finally:  # the caller may have left in the middle
            self._readers.discard(reader)
            reader.cancel()
            stream.leave()

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: Context,
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._describe(model) for model in self._models])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        try:
            model = self._models.get(request.model_name, request.model_version)
        except ServiceError as exc:
            await _abort(context, exc, "")
        return pb.GetModelResponse(model=self._describe(model))

    def drain(self) -> None:
        """Stops reading from the open streams; each ends with UNAVAILABLE after its last answer."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    def _accept(self, request: codec.Request, expires_at: float) -> "_Accepted":
        """Checks the request and queues its rows."""
        model = self._models.get(request.model_name, request.model_version)
        bitmaps = codec.decode(request, max_rows=self._max_request_rows, classes=len(model.artifact.labels))
        return _Accepted(model, request.top_k, model.batcher.submit(bitmaps, expires_at=expires_at))

    async def _read(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], stream: "_Stream", expires_at: float
    ) -> None:
        """Takes messages off the stream while there is room for their rows; waits, and reads no more, while not."""
        await stream.window.acquire()
        async for request in requests:
            request_id = request.request_id or uuid.uuid4().hex
            stream.accepted.put_nowait(_Message(request_id, await self._accept_when_room(request, expires_at)))
            await stream.window.acquire()

    async def _accept_when_room(self, request: pb.ClassifyStreamRequest, expires_at: float) -> "_Accepted | Exception":
        while True:
            try:
                return self._accept(request, expires_at)
            except Overloaded as exc:
                await asyncio.sleep(min(exc.retry_after_s, _STREAM_RETRY_S))
            except Exception as exc:  # this message's caller hears of it in its turn
                return exc

    def _describe(self, model: ServedModel) -> pb.Model:
        metrics = struct_pb2.Struct()
        metrics.update(model.artifact.metrics)
        return pb.Model(
            name=model.name,
            version=model.version,
            versions=self._models.versions(model.name),
            is_default=model is next(iter(self._models)),
            labels=model.artifact.labels,
            input=pb.Input(name="bitmaps", datatype="UINT8", shape=[-1, 28, 28]),
            max_request_rows=self._max_request_rows,
            provider=model.provider,
            digest=model.artifact.digest,
            metrics=metrics,
            created=model.artifact.created,
            licence=model.artifact.licence,
        )


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A request whose rows are queued."""

    model: ServedModel
    top_k: int
    future: Future[Answer]


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a stream: accepted, or refused with the error that is its answer."""

    request_id: str
    outcome: _Accepted | Exception

    async def response(self) -> pb.ClassifyStreamResponse:
        response = pb.ClassifyStreamResponse(request_id=self.request_id)
        try:
            if isinstance(self.outcome, Exception):
                raise self.outcome
            await _answer(self.outcome, response)
        except Exception as exc:  # answered in place; the stream goes on
            _log_refusal(exc, self.request_id)
            response.Clear()
            response.request_id = self.request_id
            response.error.CopyFrom(to_status(exc, self.request_id))
        return response


class _Stream:
    """What one stream has accepted and not yet answered; None in the queue ends it."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[_Message | None] = asyncio.Queue()
        self.window = asyncio.Semaphore(_STREAM_WINDOW)

    def leave(self) -> None:
        """Cancels what nobody waits for any more."""
        while not self.accepted.empty():
            message = self.accepted.get_nowait()
            if message and isinstance(message.outcome, _Accepted):
                message.outcome.future.cancel()


def _finish(call: DirectCall, accepted: _Accepted, request_id: str) -> None:
    """Answers a unary call, on the crew's thread that settled its future."""
    if accepted.future.cancelled():
        return
    try:
        response = pb.ClassifyResponse(request_id=request_id)
        _fill(response, accepted, accepted.future.result())
        call.answer(response)
    except Exception as exc:  # the caller must be answered
        _refuse(call, exc, request_id)


async def _answer(accepted: _Accepted, response: codec.Response) -> None:
    """Waits for the scores and fills `response`; cancelling it withdraws the rows still queued."""
    _fill(response, accepted, await asyncio.wrap_future(accepted.future))


def _fill(response: codec.Response, accepted: _Accepted, answer: Answer) -> None:
    response.model_name = accepted.model.name
    response.model_version = accepted.model.version
    codec.encode(answer, accepted.top_k, response)


def _expiry(context: Context) -> float:
    """The call's deadline in `time.monotonic` seconds; infinite without one."""
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else time.monotonic() + remaining_s


def _refuse(call: DirectCall, error: Exception, request_id: str) -> None:
    _log_refusal(error, request_id)
    status = to_status(error, request_id)
    call.refuse(code_of(error), status.message, to_trailers(error, status))


async def _abort(context: Context, error: Exception, request_id: str) -> NoReturn:
    _log_refusal(error, request_id)
    status = to_status(error, request_id)
    await context.abort(code_of(error), status.message, to_trailers(error, status))


def _log_refusal(error: Exception, request_id: str) -> None:
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        log.error("request failed", request_id=request_id, code=code.name, exc_info=error)
    else:
        log.debug("request refused", request_id=request_id, code=code.name, reason=str(error))
