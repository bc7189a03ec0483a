"""Forward connections as a Service with a ClusterIP does: each new connection goes to one of the ready pods.

A connection stays with its pod for as long as both ends keep it open, even after the pod is no endpoint any more.
"""

import asyncio
import random
from contextlib import suppress


class ClusterIp:
    """A real TCP port that forwards to the current endpoints."""

    def __init__(self) -> None:
        self.endpoints: list[tuple[str, int]] = []
        self.address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close the port and all connections."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if not self.endpoints:
                return  # kube-proxy rejects connections to a Service without endpoints
            pod_reader, pod_writer = await asyncio.open_connection(*random.choice(self.endpoints))
            try:
                await asyncio.gather(_copy(reader, pod_writer), _copy(pod_reader, writer))
            finally:
                pod_writer.close()
        except OSError:
            pass  # the pod refuses the connection, or one end has reset it: the client sees the same
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the sender has closed its side, then close that side for the receiver, too."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
