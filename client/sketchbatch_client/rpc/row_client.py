"""Classify bitmaps: split them into requests or coalesce them with other calls, and join the responses.

A large call is split into requests of `rows_per_request` rows; an `AimdLimit` limits how many are in flight. Each
request is retried as the `RetryPolicy` allows, until `timeout_s` has passed. Concurrent small calls share requests
(`coalescing_queue`).
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, cast

import grpc

from ..drawings.bitmap_arrays import Drawings, index_of, is_one_batch
from ..drawings.readers import Bitmaps
from ..errors import RequestRefused, Unavailable
from .base_client import BaseClient
from .classification import Classification, ModelInfo, check_finite, decode, joined
from .coalescing_queue import SHARED_ROWS, SMALL_ROWS, CoalescingQueue, PendingCall, distribute, fail
from .connections.connection import Connection
from .request import Batches, RequestKey, RequestLimit, as_rows, encode, rows_by_size
from .retries.aimd_limit import AimdLimit
from .retries.retry_state import RetryState

log = logging.getLogger(__name__)


class RowClient(BaseClient):
    """Adds the classification of rows to `BaseClient`; `Client` and `AsyncClient` inherit it."""

    async def _classify(self, drawings: Drawings, key: RequestKey) -> Classification:
        """Classify drawings. Raises ServerFailed if a score is not finite."""
        rows = as_rows(drawings)
        result = check_finite(await self._classify_rows(rows, key))
        index = index_of(drawings, len(rows))
        return result if index is None else replace(result, index=index)

    async def _classify_rows(self, rows: Bitmaps, key: RequestKey) -> Classification:
        if not len(rows):
            raise RequestRefused("bitmaps must have at least 1 row, got 0")
        max_rows = await self._max_rows(key)
        if len(rows) <= min(SMALL_ROWS, max_rows):
            return await self._call_coalesced(key, rows, self._queue(key, max_rows))
        if len(rows) <= max_rows:
            return await self._call_alone(key, rows, self._retry_state())
        return joined([part async for part in self._score_rows([rows], key)])

    async def _score(
        self, batches: Batches, key: RequestKey, *, allow_non_finite: bool
    ) -> AsyncGenerator[Classification, None]:
        """Yield one response for each request, in the order of the rows.

        Raises ServerFailed if a score is not finite, unless `allow_non_finite`.
        """
        first_row = 0
        async with aclosing(self._score_rows(batches, key)) as parts:
            async for part in parts:
                yield part if allow_non_finite else check_finite(part, first_row)
                first_row += len(part)

    async def _score_rows(self, batches: Batches, key: RequestKey) -> AsyncGenerator[Classification, None]:
        max_rows = await self._max_rows(key)
        await self._discover_workers()
        limit = self._aimd_limit()
        # An early exit cancels the requests in flight and sends no others.
        async with (
            aclosing(self._backend.ordered_requests(limit.maximum)) as requests,
            aclosing(_each(batches)) as each,
        ):
            async for batch in each:
                rows = as_rows(batch)
                index = index_of(batch, len(rows))
                for start in range(0, len(rows), max_rows):
                    while len(requests) >= limit.value:
                        yield await requests.next()
                    some = slice(start, start + max_rows)
                    part = None if index is None else index[some]
                    requests.start(partial(self._call_limited, key, rows[some], part, limit))
            while len(requests):
                yield await requests.next()

    async def _call_coalesced(self, key: RequestKey, rows: Bitmaps, queue: CoalescingQueue) -> Classification:
        """Send a small call alone while its queue is idle, else in a request that it shares with other calls."""
        retry = self._retry_state()
        while True:
            if queue.begin_alone():
                try:
                    return await self._call_alone(key, rows, retry)
                finally:
                    if queue.end_alone():
                        self._start_sender(key, queue)
            result = await self._wait_in_queue(key, rows, queue, retry)
            if isinstance(result, Classification):
                return result
            delay_s = self._retry_delay_s(result, retry)
            if delay_s is None:
                return await self._call_alone(key, rows, retry)
            await self._backend.sleep(delay_s)

    async def _wait_in_queue(
        self, key: RequestKey, rows: Bitmaps, queue: CoalescingQueue, retry: RetryState
    ) -> Classification | Exception:
        """Wait for the response to a shared request; return the classification of `rows`, or the request's error."""
        event = self._backend.event()
        call = PendingCall(rows, retry.deadline, event.set)
        try:
            if queue.add(call):
                self._start_sender(key, queue)
            if not await event.wait(partial(self._bypass, key, queue, call), retry.remaining_s()):
                error = retry.deadline_exceeded()
                if retry.renew_after_stop():
                    return error  # the call is then sent alone
                raise error
        finally:
            call.is_cancelled = True
        assert call.result is not None
        return call.result

    def _bypass(self, key: RequestKey, queue: CoalescingQueue, call: PendingCall) -> None:
        if queue.bypass(call):
            self._start_sender(key, queue)

    def _start_sender(self, key: RequestKey, queue: CoalescingQueue) -> None:
        self._backend.start_sender(partial(self._send_shared, key, queue), partial(_abandon, queue))

    async def _send_shared(self, key: RequestKey, queue: CoalescingQueue) -> None:
        """Send shared requests of a queue until no call waits in it."""
        await self._discover_workers()
        while calls := queue.take():
            try:
                deadline = max(call.deadline for call in calls)
                payload = encode(key, [call.bitmaps for call in calls])
                distribute(await self._send_with_failover(partial(self._classify_over, key, payload), deadline), calls)
            except Exception as exc:  # every waiting call must be settled
                fail(calls, exc)
            except BaseException:  # the sender was cancelled: the event loop ends
                fail(calls, Unavailable("the client was closed"))
                raise
            await self._backend.yield_control()  # callers with a new response may join the next request

    async def _call_limited(self, key: RequestKey, rows: Bitmaps, index: Any, limit: AimdLimit) -> Classification:
        """Send one request of a bulk call, and raise the limit after its response."""
        response = await self._call_alone(key, rows, self._retry_state(limit))
        limit.increase()
        return response if index is None else replace(response, index=index)

    def _call_alone(self, key: RequestKey, rows: Bitmaps, retry: RetryState) -> Awaitable[Classification]:
        return self._call(partial(self._classify_over, key, encode(key, [rows])), retry)

    async def _classify_over(
        self, key: RequestKey, payload: bytes, connection: Connection, deadline: float
    ) -> Classification:
        """Send one encoded request, and get the labels of the model file that computed the scores.

        If the file was replaced on all servers before one of them returned its labels, the scores are useless without
        them. The request is then sent again, and the new file computes the scores. This is safe because requests change
        nothing on the server.
        """
        while True:
            attempt = partial(self._send, connection.classify, payload, deadline)
            try:
                response = await self._until_arrived(key.model_name, key.model_version, attempt, deadline)
            except grpc.RpcError as exc:
                if exc.code() is grpc.StatusCode.INVALID_ARGUMENT:  # perhaps too many rows for a model that is new
                    self._forget_limit(key)
                raise
            if model := await self._model_of(response, connection, deadline):
                self._check_limit(key, model)
                return decode(response, model.labels)

    async def _max_rows(self, key: RequestKey) -> int:
        """Return the most rows per request. The limit of the service is requested once per model and version.

        A model update changes the limit if the number of classes changes; see `_forget_limit`.
        """
        names = key.model_name, key.model_version
        limit = self._limits.get(names)
        if limit is None:
            retry = self._retry_state()
            try:
                limit = await self._limits_in_flight.do(names, partial(self._request_limit, names), retry.remaining_s)
            except TimeoutError as exc:
                raise retry.deadline_exceeded() from exc
        return min(self._rows_per_request, limit.max_request_rows, rows_by_size(limit.classes, key.top_k))

    async def _request_limit(self, names: tuple[str, str]) -> RequestLimit:
        """Request and remember the limit of a model, unless another call has done so meanwhile."""
        limit = self._limits.get(names)
        if limit is None:
            model = await self._get_model(*names)
            limit = self._limits[names] = RequestLimit(model.max_request_rows, len(model.labels))
        return limit

    def _check_limit(self, key: RequestKey, model: ModelInfo) -> None:
        """Forget the limit if a model with another number of classes has replaced the model that it belongs to."""
        limit = self._limits.get((key.model_name, key.model_version))
        if limit and limit.classes != len(model.labels):
            self._forget_limit(key)

    def _forget_limit(self, key: RequestKey) -> None:
        """Let the next call request the limit again."""
        self._limits.pop((key.model_name, key.model_version), None)

    def _queue(self, key: RequestKey, max_rows: int) -> CoalescingQueue:
        queue = self._queues.get(key)
        return queue or self._queues.setdefault(key, CoalescingQueue(min(SHARED_ROWS, max_rows)))


def _abandon(queue: CoalescingQueue, error: BaseException) -> None:
    """Settle the calls that wait for a sender that has ended with `error`, so that none of them waits for ever."""
    if isinstance(error, Exception):
        log.error("a sender of shared requests failed, its calls are sent alone", exc_info=error)
        queue.abandon(error)
    else:  # cancelled: the event loop ends
        queue.abandon(Unavailable("the client was closed"))


async def _each(batches: Batches) -> AsyncGenerator[Drawings, None]:
    if is_one_batch(batches):
        yield batches
    elif isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in cast(Iterable[Drawings], batches):
            yield batch
