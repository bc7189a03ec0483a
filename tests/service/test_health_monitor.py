"""Health is what the last real model calls say."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import grpc
from fakes import FakeModel, drawings, running
from grpc_health.v1 import health_pb2
from in_process import ARTIFACT, SERVICE, serving
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch_service.api.health import LIVENESS, HealthServicer
from sketchbatch_service.api.health_monitor import monitor_health
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.errors import InferenceFailed
from sketchbatch_service.models.registry import ModelRegistry, ServedModel

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def ask(batcher: Batcher) -> None:
    """One call, whatever comes of it."""
    with suppress(InferenceFailed):
        batcher.submit(drawings(1)).result(5)


def test_a_model_fails_after_three_broken_calls_in_a_row_until_one_that_works():
    """One broken call may be chance; the hook hears of each change, and of nothing else."""
    model, changes = FakeModel(), []
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        batcher.on_health = lambda: changes.append(batcher.is_failing)
        for calls, works, is_failing in [(2, False, False), (1, True, False), (3, False, True), (2, False, True)]:
            model.error = None if works else RuntimeError("broken")
            for _ in range(calls):
                ask(batcher)
            assert batcher.is_failing is is_failing
        model.error = None
        ask(batcher)
        assert not batcher.is_failing
    assert changes == [True, False]


async def fail(service, model: FakeModel) -> None:
    """Breaks three calls."""
    model.error = RuntimeError("broken")
    for _ in range(3):
        assert (await service.refusal(1)).code() is grpc.StatusCode.INTERNAL


async def test_a_model_that_keeps_failing_is_not_serving_until_a_blank_drawing_is_answered():
    """Check and Watch say so, for the whole and by name, though nobody asks any more; the log has both moments."""
    model, healthy = FakeModel(), FakeModel()
    async with serving(bear=model, cat=healthy) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=15)
        assert (await watch.read()).status == SERVING
        await fail(service, model)
        assert (await watch.read()).status == NOT_SERVING
        assert not await service.is_serving()
        assert (await service.classify(5, model_name="cat")).model_name == "cat"  # its success heals no other
        assert service.values()["sketchbatch_serving"] == 0
        model.error = None
        assert (await watch.read()).status == SERVING
        assert await service.is_serving()
        assert service.values()["sketchbatch_serving"] == 1
    assert model.batch_sizes[3:] == [1] * len(model.batch_sizes[3:])  # blank drawings, one a call
    told = [(event["event"], event["model"]) for event in service.log if event["event"].startswith("a model")]
    assert told == [("a model keeps failing, NOT_SERVING", "bear"), ("a model works again", "bear")]


async def test_models_that_come_are_followed_and_those_that_go_are_not():
    """A failing version that is rolled back turns health to serving again, and one that takes over can fail."""
    broken, healthy = FakeModel(), FakeModel()
    async with serving(bear=healthy) as service:
        [good] = service.models
        bad = replace(good, version="2", batcher=Batcher(broken.predict, BatchLimits()))
        with LeaderFollowerPool([bad.batcher], slots=1):
            service.models.put([good, bad], [])
            await asyncio.sleep(0)  # the change is told to the event loop
            await fail(service, broken)
            while await service.is_serving():
                await asyncio.sleep(0.01)
            service.models.put([good], [])
            while not await service.is_serving():
                await asyncio.sleep(0.01)


async def test_a_request_that_is_answered_heals_at_once():
    """Requests are taken and tried all the while; each that fails hears so itself."""
    model = FakeModel()
    async with serving(bear=model, ask_every_s=60) as service:
        await fail(service, model)
        while await service.is_serving():
            await asyncio.sleep(0.01)
        assert await service.is_serving(LIVENESS)  # to start the process again would lose its queue, and heal nothing
        assert (await service.refusal(2)).code() is grpc.StatusCode.INTERNAL
        model.error = None
        await service.classify(3)
        while not await service.is_serving():
            await asyncio.sleep(0.01)


async def test_the_open_inference_protocol_says_which_model_is_not_ready():
    """The server is ready when all its models are, as in Triton."""
    model, healthy = FakeModel(), FakeModel()
    pb = open_inference_pb2

    async with serving(bear=model, cat=healthy) as service:

        async def rpc(method: str, **fields):
            call = service.channel.unary_unary(
                f"/inference.GRPCInferenceService/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(pb, f"{method}Response").FromString,
            )
            return await call(getattr(pb, f"{method}Request")(**fields))

        assert (await rpc("ServerReady")).ready
        await fail(service, model)
        assert not (await rpc("ServerReady")).ready
        assert [(await rpc("ModelReady", name=name)).ready for name in ("bear", "cat")] == [False, True]
        index = (await rpc("RepositoryIndex")).models
        assert [(model.state, model.reason) for model in index] == [
            ("UNAVAILABLE", "its last calls broke"),
            ("READY", ""),
        ]
        assert [model.name for model in (await rpc("RepositoryIndex", ready=True)).models] == ["cat"]


async def test_a_full_queue_does_not_end_the_self_checks():
    """It has callers enough; health comes back with the first of them that is answered."""
    model = FakeModel()
    model.error = RuntimeError("broken")
    batcher = Batcher(model.predict, BatchLimits(max_queued_rows=1))  # run by hand
    for _ in range(3):
        batcher.submit(drawings(1))
        batcher.take(1).run()
    health = HealthServicer([])
    await health.serve()
    batcher.submit(drawings(2))
    served = ServedModel(name="bear", version="1", artifact=ARTIFACT, provider="CPU", batcher=batcher)
    following = asyncio.create_task(monitor_health(ModelRegistry([served]), health, ask_every_s=0.01))
    await asyncio.sleep(0.1)
    assert not health.is_serving
    model.error = None
    batcher.take(1).run()
    while not health.is_serving:
        await asyncio.sleep(0.01)
    following.cancel()


async def test_a_draining_server_does_not_serve_again():
    """A model that works again after the drain has begun changes nothing."""
    health = HealthServicer([])
    await health.serve()
    await health.leave()
    await health.drain()
    await health.serve()
    assert not health.is_serving
    alive = await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS), None)
    assert alive.status == SERVING  # a restart would lose the requests that it drains


async def test_no_change_is_missed_while_a_watcher_is_being_told_of_another():
    """A client that never heard NOT_SERVING would send its calls on until they fail."""
    health = HealthServicer([])
    watch = health.Watch(health_pb2.HealthCheckRequest(), None)
    told = [(await anext(watch)).status]
    await health.serve()  # the watcher has not come back for more
    told.append((await asyncio.wait_for(anext(watch), 5)).status)
    await health.leave()
    await health.drain()
    told += [each.status async for each in watch]
    assert told == [NOT_SERVING, SERVING, NOT_SERVING]
