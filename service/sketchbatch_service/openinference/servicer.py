"""Answers the RPCs of the Open Inference Protocol: decode, submit to the model's batcher, encode.

Runs on the event loop; what takes long there (numbers one by one, many texts) goes to a thread. Errors leave through
`status`, as those of ClassifierService do.
"""

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from sketchbatch.openinference.v2 import open_inference_pb2 as pb

from ..arrays import Bitmaps
from ..calls import Context, abort, expiry, log_answer, log_refusal, new_request_id
from ..errors import ModelNotFound, ServiceError, ShuttingDown
from ..models import Models, ServedModel
from ..row_queue import Answer
from ..status import code_of, to_status
from ..streams import OpenStreams, when_room
from . import codec, descriptions

_EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters", "statistics")
"""By the names of Triton's server metadata."""

_LOOP_ROWS = 64
"""Most rows that are decoded or encoded on the event loop where it costs more than a view of bytes."""

_Made = TypeVar("_Made")


class InferenceServicer:
    """The protocol's methods; `drain` says not ready and ends the open streams once what they sent is answered."""

    def __init__(self, models: Models, *, max_request_rows: int) -> None:
        self._models = models
        self._max_request_rows = max_request_rows
        self._streams = OpenStreams()
        self._is_draining = False

    def drain(self) -> None:
        """From now on: not ready, and no more messages are read from streams."""
        self._is_draining = True
        self._streams.drain()

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

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        request_id = request.id or new_request_id()
        try:
            question = await self._decode(request, expiry(context))
            return await question.answer(question.submit())
        except Exception as exc:  # the caller must be answered by status, not by a stack
            await abort(context, exc, request_id)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        expires_at = expiry(context)

        async def accept(request: pb.ModelInferRequest) -> _Message:
            try:
                question = await self._decode(request, expires_at)
                return _Message(request.id, question, await when_room(question.submit))
            except Exception as exc:  # this message's caller hears of it in its turn
                return _Message(request.id, exc)

        async with aclosing(self._streams.read(request_iterator, accept)) as messages:
            try:
                async for message in messages:
                    yield await message.response()
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

    async def _decode(self, request: pb.ModelInferRequest, expires_at: float) -> "_Question":
        """Checks the request and makes bitmaps of its input."""
        started_at = time.monotonic()
        model = self._models.get(request.model_name, request.model_version)
        top_k = codec.top_k(request, classes=len(model.artifact.labels))
        is_quick = codec.is_view(request) or codec.claimed_rows(request) <= _LOOP_ROWS
        bitmaps = await _run(is_quick, lambda: codec.decode(request, max_rows=self._max_request_rows))
        return _Question(
            id=request.id,
            model=model,
            bitmaps=bitmaps,
            top_k=top_k,
            is_raw=codec.is_raw(request),
            expires_at=min(expires_at, started_at + codec.timeout_s(request)),
            decoding_s=time.monotonic() - started_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A request that fits: what to submit, and how to answer."""

    id: str
    model: ServedModel
    bitmaps: Bitmaps
    top_k: int
    is_raw: bool
    expires_at: float  # time.monotonic seconds
    decoding_s: float

    def submit(self) -> Future[Answer]:
        return self.model.batcher.submit(self.bitmaps, expires_at=self.expires_at)

    async def answer(self, future: Future[Answer]) -> pb.ModelInferResponse:
        """Waits for the scores; cancelling it withdraws the rows still queued."""
        result = await asyncio.wrap_future(future)
        started_at, scores = time.monotonic(), result.scores
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=self.model.version, id=self.id)
        is_quick = len(scores) <= _LOOP_ROWS or (self.is_raw and not self.top_k)
        labels = self.model.artifact.labels
        await _run(is_quick, lambda: codec.encode(scores, self.top_k, labels, response, as_raw=self.is_raw))
        self.model.batcher.counter.add_codec(decoding_s=self.decoding_s, encoding_s=time.monotonic() - started_at)
        log_answer(result, model_name=self.model.name, request_id=self.id)
        return response


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a stream: accepted, or refused with the error that is its answer."""

    id: str
    outcome: _Question | Exception
    future: Future[Answer] | None = None

    async def response(self) -> pb.ModelStreamInferResponse:
        if isinstance(self.outcome, Exception):
            return self._refusal(self.outcome)
        assert self.future is not None
        try:
            response = await self.outcome.answer(self.future)
        except Exception as exc:  # answered in place; the stream goes on
            return self._refusal(exc)
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    def withdraw(self) -> None:
        if self.future:
            self.future.cancel()

    def _refusal(self, error: Exception) -> pb.ModelStreamInferResponse:
        request_id = self.id or new_request_id()
        log_refusal(error, request_id)
        return pb.ModelStreamInferResponse(
            error_message=f"{code_of(error).name}: {to_status(error, request_id).message}",
            infer_response=pb.ModelInferResponse(id=self.id),
        )


async def _run(is_quick: bool, make: Callable[[], _Made]) -> _Made:
    """Calls `make` here when that is quick, else in a thread, so that other callers' turns come."""
    return make() if is_quick else await asyncio.to_thread(make)
