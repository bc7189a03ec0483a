"""Answers the RPCs of the Open Inference Protocol: decode, submit to the model's batcher, encode.

`ModelInfer` runs on the crew's threads, as `Classify` does; everything else runs on the event loop. What takes long
there (numbers one by one, many texts) goes to threads of their own. Errors leave through `status`.
"""

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sketchbatch.openinference.v2 import open_inference_pb2 as pb

from ...batching.row_queue import Answer
from ...errors import ModelNotFound, ServiceError, ShuttingDown
from ...models.registry import ModelRegistry, ServedModel
from ...transport.interface import UnaryCall
from ...transport.status import code_of, to_status
from ..rpc_context import Context, abort, abort_call, expiry, log_answer, log_rejection, new_request_id
from ..stream_window import OpenStreams, when_room
from . import codec, descriptions

_EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters", "statistics")
"""By the names of Triton's server metadata."""

_QUICK_ROWS = 64
"""Most rows that are decoded or encoded where others wait, if it costs more than a view of bytes."""

_SLOW = 2
"""Threads for more; they share Python with all others."""

_Submit = Callable[[], Future[Answer]]
_Made = TypeVar("_Made")


class InferenceServicer:
    """The protocol's methods; `drain` says not ready and ends the open streams once what they sent is answered.

    To be closed once no call is under way.
    """

    def __init__(self, models: ModelRegistry, *, max_request_rows: int) -> None:
        self._models = models
        self._max_request_rows = max_request_rows
        self._streams = OpenStreams()
        self._is_draining = False
        self._slow = ThreadPoolExecutor(_SLOW, thread_name_prefix="tensors")

    def drain(self) -> None:
        """From now on: not ready, and no more messages are read from streams."""
        self._is_draining = True
        self._streams.drain()

    def close(self) -> None:
        """Returns when nothing is decoded or encoded any more."""
        self._slow.shutdown(cancel_futures=True)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=all(map(self._is_ready, self._models)))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            model = self._models.get(request.name, request.version)
        except ModelNotFound:  # an answer to this question, as in Triton
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready(model))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        version = importlib.metadata.version("sketchbatch-service")
        return pb.ServerMetadataResponse(name="sketchbatch", version=version, extensions=_EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        model = await self._model(request, context)
        return descriptions.metadata(model, self._models.versions(model.name))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        model = await self._model(request, context)
        return pb.ModelConfigResponse(config=descriptions.config(model, max_request_rows=self._max_request_rows))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        asked_for = list(self._models)
        if request.name:
            model = await self._model(request, context)
            asked_for = [m for m in asked_for if m.name == model.name]
        if request.version:
            asked_for = [m for m in asked_for if m.version == request.version]
        return pb.ModelStatisticsResponse(model_stats=map(descriptions.statistics, asked_for))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        asked_for = [model for model in self._models if self._is_ready(model) or not request.ready]
        refused = {(each.name, each.version): descriptions.refusal(each) for each in self._models.refused}
        index = [self._index(model, refused.pop((model.name, model.version), "")) for model in asked_for]
        if not request.ready:
            entry = pb.RepositoryIndexResponse.ModelIndex
            index += [entry(name=n, version=v, state="UNAVAILABLE", reason=why) for (n, v), why in refused.items()]
        return pb.RepositoryIndexResponse(models=index)

    def ModelInfer(self, request: pb.ModelInferRequest, call: UnaryCall) -> None:
        infer = partial(self._infer, request, call, time.monotonic() + call.time_remaining())
        if _is_quick(request):
            infer()
        else:
            self._slow.submit(infer)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        expires_at = expiry(context)

        async def accept(request: pb.ModelInferRequest) -> _Message:
            decode = partial(self._decode, request, expires_at)
            try:
                question, submit = decode() if _is_quick(request) else await self._slowly(decode)
                return _Message(request.id, question, await when_room(submit))
            except Exception as exc:  # this message's caller hears of it in its turn
                return _Message(request.id, exc)

        async with aclosing(self._streams.read(request_iterator, accept)) as messages:
            try:
                async for message in messages:
                    yield await self._response(message)
            except ShuttingDown as exc:
                await abort(context, exc, "")

    def _is_ready(self, model: ServedModel) -> bool:
        return not self._is_draining and not model.batcher.is_failing

    def _index(self, model: ServedModel, refusal: str) -> pb.RepositoryIndexResponse.ModelIndex:
        """`refusal` is why another file in its place is not served; it changes no state."""
        state = "READY" if self._is_ready(model) else "UNAVAILABLE"
        reason = refusal if state == "READY" else "draining" if self._is_draining else "its last calls broke"
        return pb.RepositoryIndexResponse.ModelIndex(name=model.name, version=model.version, state=state, reason=reason)

    async def _model(
        self, request: pb.ModelMetadataRequest | pb.ModelConfigRequest | pb.ModelStatisticsRequest, context: Context
    ) -> ServedModel:
        """The model that is asked about; ends the call with NOT_FOUND where there is none."""
        try:
            return self._models.get(request.name, request.version)
        except ServiceError as exc:
            await abort(context, exc, "")

    def _infer(self, request: pb.ModelInferRequest, call: UnaryCall, expires_at: float) -> None:
        request_id = request.id or new_request_id()
        try:
            question, submit = self._decode(request, expires_at)
            future = submit()
        except Exception as exc:  # the caller must be answered
            abort_call(call, exc, request_id)
            return
        call.on_cancel(future.cancel)
        future.add_done_callback(partial(self._finish, call, question, request_id))

    def _finish(self, call: UnaryCall, question: "_Question", request_id: str, future: Future[Answer]) -> None:
        """Answers a unary call, or has it answered, on the thread that settled its future."""
        if future.cancelled():
            return  # by the caller, who has left
        if question.is_quick:
            _answer(call, question, request_id, future)
        else:
            self._slow.submit(_answer, call, question, request_id, future)

    def _decode(self, request: pb.ModelInferRequest, expires_at: float) -> tuple["_Question", _Submit]:
        """Checks the request, and makes bitmaps of its input: how to answer it, and what submits them."""
        started_at = time.monotonic()
        model = self._models.get(request.model_name, request.model_version)
        top_k = codec.top_k(request, classes=len(model.artifact.labels))
        bitmaps = codec.decode(request, max_rows=self._max_request_rows)
        expires_at = min(expires_at, started_at + codec.timeout_s(request))
        question = _Question(
            id=request.id,
            model=model,
            rows=len(bitmaps),
            top_k=top_k,
            is_raw=codec.is_raw(request),
            decoding_s=time.monotonic() - started_at,
        )
        return question, partial(model.batcher.submit, bitmaps, expires_at=expires_at)

    async def _response(self, message: "_Message") -> pb.ModelStreamInferResponse:
        question = message.outcome
        if isinstance(question, Exception):
            return message.refusal(question)
        assert message.future is not None
        try:
            encode = partial(question.response, await asyncio.wrap_future(message.future))
            response = encode() if question.is_quick else await self._slowly(encode)
        except Exception as exc:  # answered in place; the stream goes on
            return message.refusal(exc)
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    def _slowly(self, make: Callable[[], _Made]) -> Awaitable[_Made]:
        """Calls it in a thread, so that other callers' turns come."""
        return asyncio.wrap_future(self._slow.submit(make))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """How to answer a request; its rows are with the batcher."""

    id: str
    model: ServedModel
    rows: int
    top_k: int
    is_raw: bool
    decoding_s: float

    @property
    def is_quick(self) -> bool:
        """Whether the answer is encoded in no time."""
        return self.rows <= _QUICK_ROWS or (self.is_raw and not self.top_k)

    def response(self, answer: Answer) -> pb.ModelInferResponse:
        """The scores in the form of the request, counted and logged."""
        started_at = time.monotonic()
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=self.model.version, id=self.id)
        codec.encode(answer.scores, self.top_k, self.model.artifact.labels, response, as_raw=self.is_raw)
        self.model.batcher.statistics.add_codec(decoding_s=self.decoding_s, encoding_s=time.monotonic() - started_at)
        log_answer(answer, model_name=self.model.name, request_id=self.id)
        return response


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a stream: accepted, or refused with the error that is its answer."""

    id: str
    outcome: _Question | Exception
    future: Future[Answer] | None = None

    def cancel(self) -> None:
        if self.future:
            self.future.cancel()

    def refusal(self, error: Exception) -> pb.ModelStreamInferResponse:
        request_id = self.id or new_request_id()
        log_rejection(error, request_id)
        return pb.ModelStreamInferResponse(
            error_message=f"{code_of(error).name}: {to_status(error, request_id).message}",
            infer_response=pb.ModelInferResponse(id=self.id),
        )


def _is_quick(request: pb.ModelInferRequest) -> bool:
    """Whether it is decoded in no time."""
    return codec.is_view(request) or codec.claimed_rows(request) <= _QUICK_ROWS


def _answer(call: UnaryCall, question: _Question, request_id: str, future: Future[Answer]) -> None:
    try:
        call.respond(question.response(future.result()))
    except Exception as exc:  # the caller must be answered
        abort_call(call, exc, request_id)
