"""Calls the service from asyncio: as `client`, with tasks for threads; the rules are the same and stand elsewhere."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

import grpc
import grpc.aio
from sketchbatch.v1 import classifier_pb2 as pb

from .. import errors
from ..drawings.readers import Bitmaps
from .attempts import Attempts
from .caller import Caller, some_rows
from .classification import Classification, ModelInfo, decoded, joined, model_info
from .coalescing import HURRY_AFTER_S, Lane, Share, fail, hand_out
from .questions import Question, as_rows, encoded, in_parts, question

Answer = TypeVar("Answer")


class AsyncClient(Caller):
    """A connection to a service, for the tasks of one event loop. Use it as an async context manager, or close it.

    Takes what `Caller` takes. Cancelling a task that awaits one of its calls disturbs no other.
    """

    _open_channel = staticmethod(grpc.aio.insecure_channel)

    def _get_ready(self) -> None:
        self._senders: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drops the connections; requests under way fail."""
        await asyncio.gather(*self._channels.close())

    async def classify(
        self, bitmaps: Bitmaps, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        """Classifies any number of bitmaps; arguments and errors as `Client.classify`."""
        rows = some_rows(bitmaps)
        asked = question(top_k, model_name, model_version)
        rows_limit = self._rows_limit(await self._known(model_name, model_version))
        if lane := self._lane(asked, len(rows), rows_limit):
            return await self._ask_together(asked, rows, lane)
        if len(rows) <= rows_limit:
            return await self._ask(asked, rows, self._attempts())
        parts = self.score([rows], top_k=top_k, model_name=model_name, model_version=model_version)
        return joined([part async for part in parts])

    async def score(
        self,
        batches: Iterable[Bitmaps] | AsyncIterable[Bitmaps],
        *,
        top_k: int = 0,
        model_name: str = "",
        model_version: str = "",
    ) -> AsyncIterator[Classification]:
        """Classifies a stream of batches of any size in constant memory, as `Client.score`."""
        asked = question(top_k, model_name, model_version)
        rows_limit = self._rows_limit(await self._known(model_name, model_version))
        await self._reach_all_workers()
        under_way: deque[asyncio.Task[Classification]] = deque()
        try:
            async for batch in _each(batches):
                for rows in in_parts(as_rows(batch), rows_limit):
                    if len(under_way) == self._in_flight:
                        yield await under_way.popleft()
                    under_way.append(asyncio.create_task(self._ask(asked, rows, self._attempts())))
            while under_way:
                yield await under_way.popleft()
        finally:  # after an error, or when the caller stops early
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def models(self) -> list[ModelInfo]:
        """Every model and version being served, the default first."""
        response = await self._call(self._channels.first.stub.ListModels, pb.ListModelsRequest())
        return [model_info(model) for model in response.models]

    async def model(self, name: str = "", version: str = "") -> ModelInfo:
        """One model; "" = the default, or the newest version. Raises `ModelNotFound`."""
        request = pb.GetModelRequest(model_name=name, model_version=version)
        return self._noted((await self._call(self._channels.first.stub.GetModel, request)).model)

    async def health(self, service: str = "") -> str:
        """What grpc.health.v1 says: SERVING, NOT_SERVING or SERVICE_UNKNOWN; "" = the server as a whole."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check = health_pb2_grpc.HealthStub(self._channels.first.channel).Check
        try:
            response = await self._call(check, health_pb2.HealthCheckRequest(service=service))
        except errors.ModelNotFound:  # the health protocol's NOT_FOUND
            return "SERVICE_UNKNOWN"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    async def _ask_together(self, asked: Question, rows: Bitmaps, lane: Lane) -> Classification:
        """A small call: in a request of its own while the lane is idle, else in one shared with others."""
        attempts = self._attempts()
        while True:
            if lane.go_alone():
                try:
                    return await self._ask(asked, rows, attempts)
                finally:
                    if lane.come_back():
                        self._start_sender(asked, lane)
            share = await self._share(asked, rows, lane, attempts)
            if share.answer:
                return share.answer
            assert share.error
            delay_s = attempts.delay_s(share.error)
            if delay_s is None:
                return await self._ask(asked, rows, attempts)
            await asyncio.sleep(delay_s)

    async def _share(self, asked: Question, rows: Bitmaps, lane: Lane, attempts: Attempts) -> Share:
        """One shared request, with the answer or the error that it brought."""
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[None] = loop.create_future()
        share = Share(rows, attempts.give_up_at, partial(_settle, settled))
        impatience = loop.call_later(HURRY_AFTER_S, self._hurry, asked, lane, share)
        try:
            if lane.wait(share):
                self._start_sender(asked, lane)
            async with asyncio.timeout(attempts.remaining_s()):
                await settled
        except TimeoutError:
            raise attempts.out_of_time() from None
        finally:
            impatience.cancel()
            share.has_left = True
        return share

    def _hurry(self, asked: Question, lane: Lane, share: Share) -> None:
        if lane.hurry(share):
            self._start_sender(asked, lane)

    def _start_sender(self, asked: Question, lane: Lane) -> None:
        sender = asyncio.create_task(self._send(asked, lane))
        self._senders.add(sender)
        sender.add_done_callback(self._senders.discard)

    async def _send(self, asked: Question, lane: Lane) -> None:
        """Sends the shared requests of a lane until nobody waits; a task of its own."""
        await self._reach_all_workers()
        while shares := lane.take():
            try:
                give_up_at = max(share.give_up_at for share in shares)
                payload = encoded(asked, [share.bitmaps for share in shares])
                hand_out(shares, await self._ask_once(payload, max(0.0, give_up_at - time.monotonic())))
            except asyncio.CancelledError:  # by `close`, or the loop's end
                fail(shares, errors.Unavailable("the client was closed"))
                raise
            except Exception as exc:  # whatever it was, nobody may be left waiting
                fail(shares, exc)
            await asyncio.sleep(0)  # those just answered go first, and may share the next

    async def _ask(self, asked: Question, rows: Bitmaps, attempts: Attempts) -> Classification:
        """A request of these rows alone."""
        payload = encoded(asked, [rows])
        return await self._persist(lambda timeout_s: self._ask_once(payload, timeout_s), attempts)

    async def _ask_once(self, payload: bytes, timeout_s: float) -> Classification:
        connection = self._channels.borrow()
        try:
            response = await connection.classify(payload, timeout=timeout_s)
        finally:
            self._channels.give_back(connection)
        return decoded(response, (await self._known(response.model_name, response.model_version)).labels)

    async def _call(self, rpc: Callable[..., Awaitable[Answer]], request: object) -> Answer:
        """One RPC of any other kind, with its retries."""
        return await self._persist(lambda timeout_s: rpc(request, timeout=timeout_s), self._attempts())

    async def _persist(self, ask: Callable[[float], Awaitable[Answer]], attempts: Attempts) -> Answer:
        """Asks until there is an answer, or no hope of one; `ask` takes the seconds left."""
        while True:
            try:
                return await ask(attempts.remaining_s())
            except grpc.RpcError as exc:
                delay_s = attempts.delay_s(exc)
                if delay_s is None:
                    raise attempts.failure(exc) from exc
            await asyncio.sleep(delay_s)

    async def _reach_all_workers(self) -> None:
        """Opens the connections that the service's other workers are reached by, the first time."""
        for connection in self._channels.search():
            try:
                answer = await connection.stub.GetModel(pb.GetModelRequest(), timeout=self._timeout_s)
            except grpc.RpcError:  # the connections there are will do, or say what is wrong
                await connection.channel.close()
                return
            if not self._channels.keep(connection, answer.model.worker):
                await connection.channel.close()

    async def _known(self, name: str, version: str) -> ModelInfo:
        """Asked for once for each name and version."""
        model = self._models.get((name, version))
        return model or self._models.setdefault((name, version), await self.model(name, version))


async def _each(batches: Iterable[Bitmaps] | AsyncIterable[Bitmaps]) -> AsyncIterator[Bitmaps]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch


def _settle(settled: asyncio.Future[None]) -> None:
    if not settled.done():  # its caller may have been cancelled
        settled.set_result(None)
