"""Answer the RPCs of the Open Inference Protocol: decode a request, queue its rows, encode the response.

`ModelInfer` runs on the thread pool, as `Classify` does; all other RPCs run on the event loop. Slow decoding and
encoding (many typed numbers, many labels) runs on separate threads. `transport.status` translates every error.
"""

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from sketchbatch.openinference.v2 import open_inference_pb2 as pb

from ...arrays import Bitmaps
from ...batching.row_queue import Answer
from ...errors import ModelNotFound, ServiceError
from ...models.registry import ModelRegistry, ServedModel
from ...transport.interface import Context, UnaryCall
from ...transport.status import code_of, to_status
from ..request_limits import max_rows
from ..request_log import log_answer, log_rejection
from ..rpc_context import abort, abort_call, expiry, new_request_id
from ..stream_window import OpenStreams, retry_while_full
from ..submission import submit_to_served
from . import codec, descriptions

_EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters", "statistics")
"""Names of the supported extensions, as in Triton's server metadata."""

_INLINE_ROWS = 64  # maximum rows that are decoded or encoded on the calling thread, if that needs a copy
_CODEC_THREADS = 2  # threads for larger requests; they compete with all other Python threads for the interpreter lock

_Result = TypeVar("_Result")


class InferenceServicer:
    """The RPCs of the Open Inference Protocol; use `close` only after the last RPC has ended."""

    def __init__(self, models: ModelRegistry, *, max_request_rows: int) -> None:
        self._models = models
        self._max_request_rows = max_request_rows
        self._streams = OpenStreams()
        self._is_draining = False
        self._codec_pool = ThreadPoolExecutor(_CODEC_THREADS, thread_name_prefix="tensors")

    def drain(self) -> None:
        """Report not ready, and end the open streams after the responses to their accepted messages."""
        self._is_draining = True
        self._streams.drain()

    def close(self) -> None:
        """Wait until no request is being decoded or encoded."""
        self._codec_pool.shutdown(cancel_futures=True)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=all(map(self._is_ready, self._models)))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            model = self._models.get(request.name, request.version)
        except ModelNotFound:  # not an error of this RPC, as in Triton
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
        return pb.ModelConfigResponse(config=descriptions.config(model, max_request_rows=self._max_rows(model)))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        selected = list(self._models)
        if request.name:
            model = await self._model(request, context)
            selected = [m for m in selected if m.name == model.name]
        if request.version:
            selected = [m for m in selected if m.version == request.version]
        return pb.ModelStatisticsResponse(model_stats=map(descriptions.statistics, selected))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        selected = [model for model in self._models if self._is_ready(model) or not request.ready]
        refused = {(each.name, each.version): descriptions.refusal(each) for each in self._models.refused}
        index = [self._index(model, refused.get((model.name, model.version), "")) for model in selected]
        if not request.ready:
            entry = pb.RepositoryIndexResponse.ModelIndex
            excluded = {(each.name, each.version): descriptions.exclusion(each) for each in self._models.excluded}
            served = {(model.name, model.version) for model in selected}
            index += [
                entry(name=name, version=version, state="UNAVAILABLE", reason=reason)
                for (name, version), reason in (refused | excluded).items()
                if (name, version) not in served
            ]
        return pb.RepositoryIndexResponse(models=index)

    def ModelInfer(self, request: codec.Request, call: UnaryCall) -> None:
        expires_at = time.monotonic() + call.time_remaining()
        if codec.is_quick(request, rows=_INLINE_ROWS):
            self._infer(request, call, expires_at)
        else:
            self._codec_pool.submit(self._infer, request, call, expires_at)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[codec.Request], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        expires_at = expiry(context)

        async def accept(request: codec.Request) -> _Message:
            decode, is_quick = partial(self._decode, request, expires_at), codec.is_quick(request, rows=_INLINE_ROWS)
            try:
                decoded = decode() if is_quick else await self._in_codec_pool(decode)
                return _Message(request.fields.id, await retry_while_full(partial(self._submit, request, decoded)))
            except Exception as exc:  # sent later, as the response to this message
                return _Message(request.fields.id, exc)

        async with aclosing(self._streams.read(request_iterator, accept, context)) as messages:
            async for message in messages:
                yield await self._response(message)

    def _is_ready(self, model: ServedModel) -> bool:
        return not self._is_draining and not model.batcher.is_failing

    def _index(self, model: ServedModel, refusal: str) -> pb.RepositoryIndexResponse.ModelIndex:
        """Describe `model`; `refusal` is the reason why a newer file of this version is refused."""
        state = "READY" if self._is_ready(model) else "UNAVAILABLE"
        reason = refusal if state == "READY" else "draining" if self._is_draining else "its last model calls failed"
        return pb.RepositoryIndexResponse.ModelIndex(name=model.name, version=model.version, state=state, reason=reason)

    async def _model(
        self, request: pb.ModelMetadataRequest | pb.ModelConfigRequest | pb.ModelStatisticsRequest, context: Context
    ) -> ServedModel:
        """Return the requested model, or end the call with NOT_FOUND."""
        try:
            return self._models.get(request.name, request.version)
        except ServiceError as exc:
            await abort(context, exc)

    def _infer(self, request: codec.Request, call: UnaryCall, expires_at: float) -> None:
        request_id = request.fields.id or new_request_id()
        try:
            plan, future = self._submit(request, self._decode(request, expires_at))
        except Exception as exc:  # the client must receive a status
            abort_call(call, exc, request_id)
            return
        call.on_cancel(future.cancel)
        future.add_done_callback(partial(self._finish, call, plan, request_id))

    def _finish(self, call: UnaryCall, plan: "_ResponsePlan", request_id: str, future: Future[Answer]) -> None:
        """Send the response of a unary call from the thread that settled its future, or from the codec pool."""
        if future.cancelled():
            return  # because the client cancelled the call
        if plan.encodes_inline:
            _respond(call, plan, request_id, future)
        else:
            self._codec_pool.submit(_respond, call, plan, request_id, future)

    def _decode(self, request: codec.Request, expires_at: float) -> "_Decoded":
        """Validate and decode the request."""
        started_at, fields = time.monotonic(), request.fields
        model = self._models.get(fields.model_name, fields.model_version)
        top_k = self._top_k(fields, model)  # first: it costs least
        bitmaps = codec.decode(request, max_rows=self._max_rows(model))
        expires_at = min(expires_at, started_at + codec.timeout_s(fields))
        return _Decoded(bitmaps, expires_at, model, top_k, time.monotonic() - started_at)

    def _submit(self, request: codec.Request, decoded: "_Decoded") -> "_Accepted":
        """Queue the rows of the request with the model that has the requested name now."""
        fields, submit = request.fields, partial(self._submit_to, request, decoded)
        return submit_to_served(self._models, fields.model_name, fields.model_version, submit)

    def _submit_to(self, request: codec.Request, decoded: "_Decoded", model: ServedModel) -> "_Accepted":
        plan = _ResponsePlan(
            id=request.fields.id,
            model=model,
            rows=len(decoded.bitmaps),
            # A model that has replaced the one of `_decode` may have fewer classes.
            top_k=decoded.top_k if model is decoded.model else self._top_k(request.fields, model),
            is_raw=bool(request.raw),
            decoding_s=decoded.decoding_s,
        )
        return plan, model.batcher.submit(decoded.bitmaps, expires_at=decoded.expires_at)

    def _max_rows(self, model: ServedModel) -> int:
        return max_rows(self._max_request_rows, len(model.artifact.labels))

    def _top_k(self, request: pb.ModelInferRequest, model: ServedModel) -> int:
        return codec.top_k(request, classes=len(model.artifact.labels))

    async def _response(self, message: "_Message") -> pb.ModelStreamInferResponse:
        if isinstance(message.outcome, Exception):
            return message.rejection(message.outcome)
        plan, future = message.outcome
        try:
            encode = partial(plan.response, await asyncio.wrap_future(future))
            response = encode() if plan.encodes_inline else await self._in_codec_pool(encode)
        except Exception as exc:  # the error is this message's response; the stream continues
            return message.rejection(exc)
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    def _in_codec_pool(self, work: Callable[[], _Result]) -> Awaitable[_Result]:
        return asyncio.wrap_future(self._codec_pool.submit(work))


@dataclass(slots=True)  # not frozen: a frozen instance takes 1 us more to make
class _Decoded:
    """The rows of a request, which `model` and `top_k` fit."""

    bitmaps: Bitmaps
    expires_at: float  # time.monotonic seconds
    model: ServedModel
    top_k: int
    decoding_s: float


@dataclass(slots=True, kw_only=True)  # not frozen, as `_Decoded`
class _ResponsePlan:
    """The properties of a decoded request that determine the form of its response."""

    id: str
    model: ServedModel
    rows: int
    top_k: int
    is_raw: bool
    decoding_s: float

    @property
    def encodes_inline(self) -> bool:
        """Whether encoding is fast enough for the calling thread."""
        return self.rows <= _INLINE_ROWS or (self.is_raw and not self.top_k)

    def response(self, answer: Answer) -> pb.ModelInferResponse:
        """Encode the scores, and count and log the request."""
        started_at = time.monotonic()
        response = pb.ModelInferResponse()
        response.CopyFrom(_head(self.model.name, self.model.version, self.model.artifact.digest))
        response.id = self.id
        codec.encode(answer.scores, self.top_k, self.model.artifact.labels, response, as_raw=self.is_raw)
        self.model.batcher.statistics.add_codec(decoding_s=self.decoding_s, encoding_s=time.monotonic() - started_at)
        log_answer(answer, model_name=self.model.name, request_id=self.id)
        return response


_Accepted = tuple[_ResponsePlan, Future[Answer]]  # an accepted request: its rows are queued


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a stream: accepted, or rejected with an error."""

    id: str
    outcome: _Accepted | Exception

    def cancel(self) -> None:
        if isinstance(self.outcome, tuple):
            self.outcome[1].cancel()

    def rejection(self, error: Exception) -> pb.ModelStreamInferResponse:
        request_id = self.id or new_request_id()
        log_rejection(error, request_id)
        return pb.ModelStreamInferResponse(
            error_message=f"{code_of(error).name}: {to_status(error, request_id).message}",
            infer_response=pb.ModelInferResponse(id=self.id),
        )


@lru_cache(maxsize=64)
def _head(name: str, version: str, digest: str) -> pb.ModelInferResponse:
    """Return the fields that all responses of a model share; to copy them takes half as long as to set them."""
    head = pb.ModelInferResponse(model_name=name, model_version=version)
    head.parameters[descriptions.DIGEST].string_param = digest
    return head


def _respond(call: UnaryCall, plan: _ResponsePlan, request_id: str, future: Future[Answer]) -> None:
    try:
        call.respond(plan.response(future.result()))
    except Exception as exc:  # the client must receive a status
        abort_call(call, exc, request_id)
