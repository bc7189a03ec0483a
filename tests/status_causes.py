"""Provoke every status of the service, one function per row of the status table in docs/grpc-api.md."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import in_process
import numpy as np
from fakes import FakeModel
from grpc_health.v1 import health_pb2
from in_process import SERVICE, rejection, serving, until
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.batching.batcher import BatchLimits
from sketchbatch_service.transport.tokens import TokenFile
from transport_server import UNARY, call_to, run_server

GUIDE = Path(__file__).parents[1] / "docs/grpc-api.md"

CLASSIFY = f"/{SERVICE}/Classify"


class Row(NamedTuple):
    """One row of the status table."""

    status: str
    cause: str
    retry: str
    details: str
    trailers: str


def status_rows() -> list[Row]:
    """Return the rows of the status table, without the marks of Markdown code."""
    table = GUIDE.read_text().partition("| status | cause |")[2].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    return [Row(*(cell.strip().replace("`", "") for cell in re.split(r" ?\| ?", line)[1:-1])) for line in lines]


class NotANumber(FakeModel):
    """Act as a model whose scores are NaN."""

    def predict(self, bitmaps):
        return np.full((len(bitmaps), 1), np.nan, np.float32)


async def _invalid_field(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await rejection(service.stub.Classify(pb.ClassifyRequest(bitmaps=bytes(1000))))


async def _not_the_message(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await rejection(service.channel.unary_unary(CLASSIFY)(b"\xff\xff"))


async def _no_message(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await rejection(service.channel.stream_unary(CLASSIFY)([]))


async def _unknown_model(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await service.rejection(1, model_name="zebra")


async def _unknown_version(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await service.rejection(1, model_version="2")


async def _unknown_health_name(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await rejection(service.health.Check(health_pb2.HealthCheckRequest(service="zebra")))


async def _full_queue(_: Path) -> grpc.RpcError:
    model = FakeModel(held=True)
    async with serving(BatchLimits(max_batch_rows=1, max_queued_rows=1), fake=model) as service:
        running = asyncio.ensure_future(service.classify(0))
        await until(model.started.is_set)
        queued = asyncio.ensure_future(service.classify(1))
        await until(lambda: service.batcher.queued_rows == 1)
        error = await service.rejection(2)
        model.release.set()
        await asyncio.gather(running, queued)
    return error


async def _large_message(_: Path) -> grpc.RpcError:
    async with serving(options=(("grpc.max_receive_message_length", 1000),), fake=FakeModel()) as service:
        return await service.rejection(1, 2)


async def _draining(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        service.batcher.close()
        return await service.rejection(1)


async def _drained_stream(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        call = service.stub.ClassifyStream()
        await call.write(pb.ClassifyStreamRequest(bitmaps=bytes(784)))
        assert (await call.read()).rows == 1
        service.classifier.drain()
        return await rejection(call.read())


async def _drain_time_over(_: Path) -> grpc.RpcError:
    async with run_server(in_process.transport, stops=False) as (channel, echo, server):
        waiting = asyncio.ensure_future(rejection(call_to(channel, "Direct")(b"x")))
        await echo.wait_for_direct()
        await server.stop(0)
        return await waiting


async def _no_connection(folder: Path) -> grpc.RpcError:
    async with grpc.aio.insecure_channel(f"unix:{folder}/no.socket") as channel:
        return await rejection(channel.unary_unary(CLASSIFY)(b""))


async def _deadline_passed(_: Path) -> grpc.RpcError:
    model = FakeModel(held=True)
    async with serving(fake=model) as service:
        running = asyncio.ensure_future(service.classify(0))
        await until(model.started.is_set)
        error = await rejection(service.stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784)), timeout=0.1))
        model.release.set()
        await running
    return error


async def _request_late(_: Path) -> grpc.RpcError:
    async def never():
        await asyncio.Event().wait()
        yield b""

    async with serving(max_receive_s=0, fake=FakeModel()) as service:
        return await rejection(service.channel.stream_unary(CLASSIFY)(never()))


async def _failed_model_call(_: Path) -> grpc.RpcError:
    model = FakeModel()
    model.error = RuntimeError("no memory")
    async with serving(fake=model) as service:
        return await service.rejection(1)


async def _not_finite(_: Path) -> grpc.RpcError:
    async with serving(fake=NotANumber()) as service:
        return await service.rejection(1)


async def _defect_in_classify(_: Path) -> grpc.RpcError:
    def fail(*args, **options):
        raise RuntimeError("a defect")

    async with serving(fake=FakeModel()) as service:
        service.batcher.submit = fail
        return await service.rejection(1)


async def _no_token(folder: Path) -> grpc.RpcError:
    tokens = folder / "tokens"
    tokens.write_text("0123456789abcdef\n")
    authenticate = TokenFile(tokens, frozenset()).rejection_reason
    async with serving(authenticate=authenticate, fake=FakeModel()) as service:
        return await service.rejection(1)


async def _no_such_method(_: Path) -> grpc.RpcError:
    async with serving(fake=FakeModel()) as service:
        return await rejection(service.channel.unary_unary(f"/{SERVICE}/Missing")(b""))


async def _cancelled(_: Path) -> grpc.RpcError:
    """Return the error that the client sees, once the service, too, has counted the call as CANCELLED."""
    model = FakeModel(held=True)
    async with serving(fake=model) as service:
        call = service.stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784)))
        await until(model.started.is_set)
        call.cancel()
        await until(lambda: service.values().get(f"sketchbatch_requests_total CANCELLED {CLASSIFY[1:]}") == 1)
        return grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), await call.trailing_metadata())


async def _defect(_: Path) -> grpc.RpcError:
    async with run_server(in_process.transport) as (channel, _, _):
        return await rejection(channel.unary_unary(UNARY)(b"fail"))


PROVOKE: dict[str, Callable[[Path], Awaitable[grpc.RpcError]]] = {
    "a field has an invalid value: byte count, number of rows, top_k": _invalid_field,
    "the bytes are not the request message of the method": _not_the_message,
    "a unary call without a request message": _no_message,
    "no model of this name": _unknown_model,
    "no such version of a served model": _unknown_version,
    "health: no service of this name": _unknown_health_name,
    "the queue is full, or the deadline would pass in the queue": _full_queue,
    "a message is larger than the limit of its receiver, or metadata larger than 16 KiB": _large_message,
    "the server drains": _draining,
    "the server drains: the stream has ended": _drained_stream,
    "the drain time has passed while the call was open": _drain_time_over,
    "no connection to a server, or the connection is lost": _no_connection,
    "the deadline of the call has passed": _deadline_passed,
    "the request of a unary call has not arrived within --max-receive-s": _request_late,
    "the model call failed": _failed_model_call,
    "the model returned NaN or infinity for a row": _not_finite,
    "a defect of the service in Classify or ModelInfer": _defect_in_classify,
    "no token, or a token that is not valid": _no_token,
    "the server has no such method": _no_such_method,
    "the client cancelled the call, or its server ended": _cancelled,
    "a defect of the service in another RPC": _defect,
}
"""A function per cause in the status table. Each provokes the error over real gRPC and returns it."""
