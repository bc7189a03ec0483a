"""Asks about bitmaps: cuts them into requests or lets them share one, keeps some under way, and joins the answers.

A call is cut into requests of `rows_per_request`, as many under way at once as the `Window` allows; each is tried again
as `RetryPolicy` says, until `timeout_s` has passed. Small concurrent calls share requests (`coalescing`).
"""

from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from functools import partial

from .. import errors
from ..drawings.readers import Bitmaps
from ..errors import RequestRefused
from .base_client import Caller
from .classification import Classification, ModelInfo, decoded, joined
from .coalescing_queue import SHARED_ROWS, SMALL_ROWS, Lane, Share, fail, hand_out
from .connections.connection_pool import Connection
from .request import Question, as_rows, encoded, in_parts
from .retries.aimd_limit import Window
from .retries.retry_state import Attempts


class RowsCaller(Caller):
    """A `Caller` that asks about rows; takes what `Caller` takes."""

    async def _classify(self, bitmaps: Bitmaps, asked: Question) -> Classification:
        rows = as_rows(bitmaps)
        if not len(rows):
            raise RequestRefused("bitmaps must have at least 1 row, got 0")
        rows_limit = self._rows_limit(await self._known(asked.model_name, asked.model_version))
        if len(rows) <= min(SMALL_ROWS, rows_limit):
            return await self._ask_together(asked, rows, self._lane(asked, rows_limit))
        if len(rows) <= rows_limit:
            return await self._ask(asked, rows)
        return joined([part async for part in self._score(_one(rows), asked)])

    async def _score(
        self, batches: AsyncGenerator[Bitmaps, None], asked: Question
    ) -> AsyncGenerator[Classification, None]:
        """One answer for each request, in the order of the rows."""
        rows_limit = self._rows_limit(await self._known(asked.model_name, asked.model_version))
        await self._reach_all_workers()
        window = self._window()
        # However it is left, early too, nothing more is sent then.
        async with aclosing(self._waits.requests(window.most)) as requests, aclosing(batches):
            async for batch in batches:
                for rows in in_parts(as_rows(batch), rows_limit):
                    while len(requests) >= window.size:
                        yield await requests.next()
                    requests.start(partial(self._ask, asked, rows, window))
            while len(requests):
                yield await requests.next()

    async def _ask_together(self, asked: Question, rows: Bitmaps, lane: Lane) -> Classification:
        """A small call: in a request of its own while the lane is idle, else in one shared with others."""
        attempts = self._attempts()
        while True:
            if lane.go_alone():
                try:
                    return await self._ask_alone(asked, rows, attempts)
                finally:
                    if lane.come_back():
                        self._start_sender(asked, lane)
            share = await self._share(asked, rows, lane, attempts)
            if share.answer:
                return share.answer
            assert share.error
            delay_s = attempts.delay_s(share.error)
            if delay_s is None:
                return await self._ask_alone(asked, rows, attempts)
            await self._waits.sleep(delay_s)

    async def _share(self, asked: Question, rows: Bitmaps, lane: Lane, attempts: Attempts) -> Share:
        """One shared request, with the answer or the error that it brought."""
        gate = self._waits.gate()
        share = Share(rows, attempts.give_up_at, gate.open)
        try:
            if lane.wait(share):
                self._start_sender(asked, lane)
            if not await gate.wait(partial(self._hurry, asked, lane, share), attempts.remaining_s()):
                raise attempts.out_of_time()
        finally:
            share.has_left = True
        return share

    def _hurry(self, asked: Question, lane: Lane, share: Share) -> None:
        if lane.hurry(share):
            self._start_sender(asked, lane)

    def _start_sender(self, asked: Question, lane: Lane) -> None:
        self._waits.start(partial(self._send, asked, lane))

    async def _send(self, asked: Question, lane: Lane) -> None:
        """Sends the shared requests of a lane until nobody waits."""
        await self._reach_all_workers()
        while shares := lane.take():
            try:
                give_up_at = max(share.give_up_at for share in shares)
                payload = encoded(asked, [share.bitmaps for share in shares])
                hand_out(shares, await self._somewhere(partial(self._ask_over, payload), give_up_at))
            except Exception as exc:  # whatever it was, nobody may be left waiting
                fail(shares, exc)
            except BaseException:  # cancelled, by the loop's end or because the channels were closed
                fail(shares, errors.Unavailable("the client was closed"))
                raise
            await self._waits.give_way()  # those just answered may share the next

    async def _ask(self, asked: Question, rows: Bitmaps, window: Window | None = None) -> Classification:
        """A request of these rows alone, by itself or as one of a bulk call."""
        answer = await self._ask_alone(asked, rows, self._attempts(window))
        if window:
            window.grow()
        return answer

    def _ask_alone(self, asked: Question, rows: Bitmaps, attempts: Attempts) -> Awaitable[Classification]:
        return self._call(partial(self._ask_over, encoded(asked, [rows])), attempts)

    async def _ask_over(self, payload: bytes, connection: Connection, give_up_at: float) -> Classification:
        """Labels are learnt from the server that answered: others may not have that version yet, or any more."""
        response = await self._rpc(connection.classify, payload, give_up_at)
        names = response.model_name, response.model_version
        model = self._models.get(names)
        if model is None:
            model = self._models[names] = await self._get_model_over(*names, connection, give_up_at)
        return decoded(response, model.labels)

    def _rows_limit(self, model: ModelInfo) -> int:
        return min(self._rows_per_request, model.max_request_rows)

    def _lane(self, asked: Question, rows_limit: int) -> Lane:
        """Where small calls may share requests."""
        lane = self._lanes.get(asked)
        return lane or self._lanes.setdefault(asked, Lane(min(SHARED_ROWS, rows_limit)))


async def _one(rows: Bitmaps) -> AsyncGenerator[Bitmaps, None]:
    yield rows
