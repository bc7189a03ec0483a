"""Answer the ClassifierService RPCs: decode the request, submit it to the model's batcher, encode the response.

`Classify` runs on the thread pool, which also sends its response; all other RPCs run on the event loop, where they
do no heavy work. `transport.status` translates every error.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial

import grpc
from google.protobuf import struct_pb2
from sketchbatch.rejection import Rejection
from sketchbatch.v1 import classifier_pb2 as pb

from ...batching.row_queue import Answer
from ...errors import ServiceError
from ...models.registry import ModelRegistry, ServedModel
from ...transport.interface import Context, UnaryCall
from ...transport.status import to_status
from ..method_handlers import handlers
from ..request_limits import max_rows
from ..request_log import log_answer, log_rejection
from ..rpc_context import abort, abort_call, expiry, new_request_id
from ..stream_window import OpenStreams, retry_while_full
from ..submission import submit_to_served
from . import codec

SERVICE = pb.DESCRIPTOR.services_by_name["ClassifierService"]


class ClassifierServicer:
    """The RPCs of the service; GetModel reports `worker` (1 to `workers`) and `workers`."""

    def __init__(self, models: ModelRegistry, *, max_request_rows: int, worker: int = 1, workers: int = 1) -> None:
        self._models = models
        self._worker = worker
        self._workers = workers
        self._max_request_rows = max_request_rows
        self._streams = OpenStreams()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of the RPCs, for a server."""
        return handlers(SERVICE, self, readers={"Classify": codec.read, "ClassifyStream": codec.read})

    def Classify(self, request: codec.Request, call: UnaryCall) -> None:
        request_id = request.fields.request_id or new_request_id()
        try:
            accepted = self._accept(request, time.monotonic() + call.time_remaining())
        except Exception as exc:  # the client must receive a status
            abort_call(call, exc, request_id)
            return
        call.on_cancel(accepted.future.cancel)
        accepted.future.add_done_callback(partial(_finish, call, accepted.model, accepted.top_k, request_id))

    async def ClassifyStream(
        self, request_iterator: AsyncIterator[codec.Request], context: Context
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        expires_at = expiry(context)

        async def accept(request: codec.Request) -> _Message:
            request_id = request.fields.request_id or new_request_id()
            try:
                return _Message(request_id, await retry_while_full(lambda: self._accept(request, expires_at)))
            except Exception as exc:  # sent later, as the response to this message
                return _Message(request_id, exc)

        async with aclosing(self._streams.read(request_iterator, accept, context)) as messages:
            async for message in messages:
                yield await message.response()

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._describe(model) for model in self._models])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        try:
            model = self._models.get(request.model_name, request.model_version)
        except ServiceError as exc:
            await abort(context, exc)
        described = self._describe(model)
        if request.with_training_digests:
            described.training_digests = model.artifact.training_digests
        return pb.GetModelResponse(model=described)

    def drain(self) -> None:
        """Stop reading from the open streams; each ends with UNAVAILABLE after its last response."""
        self._streams.drain()

    def _accept(self, request: codec.Request, expires_at: float) -> "_Accepted":
        """Validate the request and queue its rows."""
        fields, submit = request.fields, partial(self._submit, request, expires_at)
        return submit_to_served(self._models, fields.model_name, fields.model_version, submit)

    def _submit(self, request: codec.Request, expires_at: float, model: ServedModel) -> "_Accepted":
        bitmaps = codec.decode(request, max_rows=self._max_rows(model), classes=len(model.artifact.labels))
        return _Accepted(model, request.fields.top_k, model.batcher.submit(bitmaps, expires_at=expires_at))

    def _max_rows(self, model: ServedModel) -> int:
        return max_rows(self._max_request_rows, len(model.artifact.labels))

    def _describe(self, model: ServedModel) -> pb.Model:
        metrics = struct_pb2.Struct()
        metrics.update(model.artifact.metrics)
        return pb.Model(
            name=model.name,
            version=model.version,
            versions=self._models.versions(model.name),
            is_default=model is next(iter(self._models)),
            labels=model.artifact.labels,
            input=pb.Input(name=model.artifact.names.input, datatype="UINT8", shape=[-1, 28, 28]),
            max_request_rows=self._max_rows(model),
            provider=model.provider,
            digest=model.artifact.digest,
            metrics=metrics,
            created=model.artifact.created,
            licence=model.artifact.licence,
            workers=self._workers,
            worker=self._worker,
            score_kind=model.score_kind,
            rejection=_to_message(model.artifact.rejection) if model.artifact.rejection else None,
        )


def _to_message(rejection: Rejection) -> pb.Rejection:
    return pb.Rejection(
        rows=rejection.rows,
        unknown_rows=rejection.unknown_rows,
        auroc=rejection.auroc,
        thresholds=[pb.RejectionThreshold(**asdict(each)) for each in rejection.thresholds],
    )


@dataclass(frozen=True, slots=True)
class _Accepted:
    """An accepted request: its rows are queued, and `future` will receive their scores."""

    model: ServedModel
    top_k: int
    future: Future[Answer]


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a stream: accepted, or rejected with an error."""

    request_id: str
    outcome: _Accepted | Exception

    async def response(self) -> pb.ClassifyStreamResponse:
        if isinstance(self.outcome, Exception):
            return self._rejection(self.outcome)
        response = pb.ClassifyStreamResponse(request_id=self.request_id)
        try:
            answer = await asyncio.wrap_future(self.outcome.future)
            _fill(response, self.outcome.model, self.outcome.top_k, answer)
        except Exception as exc:  # the error is this message's response; the stream continues
            return self._rejection(exc)
        return response

    def cancel(self) -> None:
        if isinstance(self.outcome, _Accepted):
            self.outcome.future.cancel()

    def _rejection(self, error: Exception) -> pb.ClassifyStreamResponse:
        log_rejection(error, self.request_id)
        return pb.ClassifyStreamResponse(request_id=self.request_id, error=to_status(error, self.request_id))


def _finish(call: UnaryCall, model: ServedModel, top_k: int, request_id: str, future: Future[Answer]) -> None:
    """Send the response of a unary call, on the thread that settled its future."""
    if future.cancelled():
        return  # because the client cancelled the call
    try:
        response = pb.ClassifyResponse(request_id=request_id)
        _fill(response, model, top_k, future.result())
        call.respond(response)
    except Exception as exc:  # the client must receive a status
        abort_call(call, exc, request_id)


def _fill(response: codec.Response, model: ServedModel, top_k: int, answer: Answer) -> None:
    started_at = time.monotonic()
    response.model_name = model.name
    response.model_version = model.version
    response.digest = model.artifact.digest
    codec.encode(answer, top_k, response)
    model.batcher.statistics.add_codec(encoding_s=time.monotonic() - started_at)
    log_answer(answer, model_name=model.name, request_id=response.request_id)
