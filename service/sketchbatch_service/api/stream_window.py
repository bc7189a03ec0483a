"""Keeps open streams: reads ahead while there is room, hands messages over in order, and ends them on a drain.

What a message is, how it is accepted and how it is answered is the servicer's affair.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from ..errors import Overloaded, ShuttingDown

_WINDOW = 64
"""Messages of one stream accepted but not yet answered; their rows are bounded by the queue itself."""

_RETRY_S = 0.05
"""Longest a stream waits before it asks a full queue for room again."""


class Waiting(Protocol):
    """A message of a stream that waits for its answer."""

    def cancel(self) -> None:
        """Gives up its rows: nobody waits for them any more."""


_Request = TypeVar("_Request")
_Message = TypeVar("_Message", bound=Waiting)
_Submitted = TypeVar("_Submitted")


class OpenStreams:
    """The open streams of one servicer; `drain` stops reading from all of them."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def drain(self) -> None:
        """From now on streams end with `ShuttingDown` once what they sent is answered, those to come at once."""
        self._is_draining = True
        for reader in self._readers:
            reader.cancel()

    async def read(
        self, requests: AsyncIterator[_Request], accept: Callable[[_Request], Awaitable[_Message]]
    ) -> AsyncGenerator[_Message, None]:
        """Waiting messages in the order of `requests`, read ahead of the answers; to be closed by the caller.

        While `accept` waits, nothing more is read, and flow control holds the client back.

        Raises:
            ShuttingDown: The service drains, and the caller had not sent everything.
        """
        accepted: asyncio.Queue[_Message | None] = asyncio.Queue()  # None = the end
        window = asyncio.Semaphore(_WINDOW)

        async def read_ahead() -> None:
            await window.acquire()
            async for request in requests:
                accepted.put_nowait(await accept(request))
                await window.acquire()

        reader = asyncio.create_task(read_ahead())
        if self._is_draining:
            reader.cancel()
        reader.add_done_callback(lambda _: accepted.put_nowait(None))
        self._readers.add(reader)
        try:
            while (message := await accepted.get()) is not None:
                yield message
                window.release()
            if reader.cancelled():  # by `drain`
                raise ShuttingDown("draining: the stream is closed, open another")
            reader.result()
        finally:  # the caller may have left in the middle
            self._readers.discard(reader)
            reader.cancel()
            while not accepted.empty():
                if left := accepted.get_nowait():
                    left.cancel()


async def when_room(submit: Callable[[], _Submitted]) -> _Submitted:
    """What `submit` gives, asked again for as long as the queue is full."""
    while True:
        try:
            return submit()
        except Overloaded as exc:
            await asyncio.sleep(min(exc.retry_after_s, _RETRY_S))
