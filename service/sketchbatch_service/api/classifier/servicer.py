"""Answers the ClassifierService RPCs: decode, submit to the model's batcher, encode.

`Classify` runs on the crew's threads, which also answer it; everything else runs on the event loop. None does heavy
work. Every error leaves through `status`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import grpc
from google.protobuf import struct_pb2
from sketchbatch.v1 import classifier_pb2 as pb

from ...batching.row_queue import Answer
from ...errors import ServiceError, ShuttingDown
from ...models.registry import ModelRegistry, ServedModel
from ...transport.interface import UnaryCall
from ...transport.method_handlers import handlers
from ...transport.status import to_status
from ..rpc_context import Context, abort, abort_call, expiry, log_answer, log_rejection, new_request_id
from ..stream_window import OpenStreams, when_room
from . import codec

SERVICE = pb.DESCRIPTOR.services_by_name["ClassifierService"]


class ClassifierServicer:
    """The service's methods; `drain` ends the open streams once what they sent is answered."""

    def __init__(self, models: ModelRegistry, *, max_request_rows: int, worker: int = 1, workers: int = 1) -> None:
        self._models = models
        self._worker = worker
        self._workers = workers
        self._max_request_rows = max_request_rows
        self._streams = OpenStreams()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods below, for a server."""
        readers = {"Classify": codec.read, "ClassifyStream": codec.read}
        return handlers(SERVICE, self, readers=readers)

    def Classify(self, request: codec.Request, call: UnaryCall) -> None:
        request_id = request.fields.request_id or new_request_id()
        try:
            accepted = self._accept(request, time.monotonic() + call.time_remaining())
        except Exception as exc:  # the caller must be answered
            abort_call(call, exc, request_id)
            return
        call.on_cancel(accepted.future.cancel)
        accepted.future.add_done_callback(partial(_finish, call, accepted.model, accepted.top_k, request_id))

    async def ClassifyStream(
        self,
        request_iterator: AsyncIterator[codec.Request],
        context: Context,
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        expires_at = expiry(context)

        async def accept(request: codec.Request) -> _Message:
            request_id = request.fields.request_id or new_request_id()
            try:
                return _Message(request_id, await when_room(lambda: self._accept(request, expires_at)))
            except Exception as exc:  # this message's caller hears of it in its turn
                return _Message(request_id, exc)

        async with aclosing(self._streams.read(request_iterator, accept)) as messages:
            try:
                async for message in messages:
                    yield await message.response()
            except ShuttingDown as exc:
                await abort(context, exc, "")

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
            await abort(context, exc, "")
        return pb.GetModelResponse(model=self._describe(model))

    def drain(self) -> None:
        """Stops reading from the open streams; each ends with UNAVAILABLE after its last answer."""
        self._streams.drain()

    def _accept(self, request: codec.Request, expires_at: float) -> "_Accepted":
        """Checks the request and queues its rows."""
        fields = request.fields
        model = self._models.get(fields.model_name, fields.model_version)
        bitmaps = codec.decode(request, max_rows=self._max_request_rows, classes=len(model.artifact.labels))
        return _Accepted(model, fields.top_k, model.batcher.submit(bitmaps, expires_at=expires_at))

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
            workers=self._workers,
            worker=self._worker,
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
        if isinstance(self.outcome, Exception):
            return self._refusal(self.outcome)
        response = pb.ClassifyStreamResponse(request_id=self.request_id)
        try:
            await _answer(self.outcome, response)
        except Exception as exc:  # answered in place; the stream goes on
            return self._refusal(exc)
        return response

    def cancel(self) -> None:
        if isinstance(self.outcome, _Accepted):
            self.outcome.future.cancel()

    def _refusal(self, error: Exception) -> pb.ClassifyStreamResponse:
        log_rejection(error, self.request_id)
        return pb.ClassifyStreamResponse(request_id=self.request_id, error=to_status(error, self.request_id))


def _finish(call: UnaryCall, model: ServedModel, top_k: int, request_id: str, future: Future[Answer]) -> None:
    """Answers a unary call, on the thread that settled its future."""
    if future.cancelled():
        return  # by the caller, who has left
    try:
        response = pb.ClassifyResponse(request_id=request_id)
        _fill(response, model, top_k, future.result())
        call.respond(response)
    except Exception as exc:  # the caller must be answered
        abort_call(call, exc, request_id)


async def _answer(accepted: _Accepted, response: codec.Response) -> None:
    """Waits for the scores and fills `response`; cancelling it withdraws the rows still queued."""
    _fill(response, accepted.model, accepted.top_k, await asyncio.wrap_future(accepted.future))


def _fill(response: codec.Response, model: ServedModel, top_k: int, answer: Answer) -> None:
    started_at = time.monotonic()
    response.model_name = model.name
    response.model_version = model.version
    codec.encode(answer, top_k, response)
    model.batcher.statistics.add_codec(encoding_s=time.monotonic() - started_at)
    log_answer(answer, model_name=model.name, request_id=response.request_id)
