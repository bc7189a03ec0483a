"""Read the messages of open streams ahead of their responses, keep their order, and end streams on a drain.

The servicers decide how a message is accepted and answered.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from ..errors import Overloaded, ShuttingDown
from ..transport.interface import Context
from .rpc_context import abort

_WINDOW = 64  # most accepted messages of a stream that have no response yet; the row queue limits their rows
_RETRY_S = 0.05  # maximum seconds before a stream submits again to a full queue


class PendingMessage(Protocol):
    """A message of a stream that waits for its response."""

    def cancel(self) -> None:
        """Cancel the queued rows, because the stream has ended."""


_Request = TypeVar("_Request")
_Message = TypeVar("_Message", bound=PendingMessage)
_Submitted = TypeVar("_Submitted")


class OpenStreams:
    """The open streams of one servicer; `drain` stops reading from all of them."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def drain(self) -> None:
        """End each stream with `ShuttingDown` after the responses to its accepted messages."""
        self._is_draining = True
        for reader in self._readers:
            reader.cancel()

    async def read(
        self, requests: AsyncIterator[_Request], accept: Callable[[_Request], Awaitable[_Message]], context: Context
    ) -> AsyncGenerator[_Message, None]:
        """Yield accepted messages in the order of `requests`; the caller must close the generator.

        While `accept` waits, no message is read, and flow control stops the client. A drain aborts the call, unless the
        client has sent its last message.
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
                await abort(context, ShuttingDown("draining: the stream is closed, open another"))
            reader.result()
        finally:  # also when the client has cancelled the call
            self._readers.discard(reader)
            reader.cancel()
            while not accepted.empty():
                if unanswered := accepted.get_nowait():
                    unanswered.cancel()


async def retry_while_full(submit: Callable[[], _Submitted]) -> _Submitted:
    """Return the result of `submit`, called again while the queue is full."""
    while True:
        try:
            return submit()
        except Overloaded as exc:
            await asyncio.sleep(min(exc.retry_after_s, _RETRY_S))
