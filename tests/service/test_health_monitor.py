"""Test that health reflects the most recent model calls."""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest
from fakes import FakeModel, drawings, running
from grpc_health.v1 import health_pb2
from in_process import ARTIFACT, SERVICE, serving, until
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch_service.api.health import LIVENESS, HealthServicer
from sketchbatch_service.api.health_monitor import monitor_health
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.engines.score_kind import ScoreKind
from sketchbatch_service.errors import DeadlinePassed, InferenceFailed, Overloaded
from sketchbatch_service.models.registry import ModelRegistry, ServedModel

pytestmark = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def served_model(batcher: Batcher) -> ServedModel:
    """Return a model that runs on `batcher`."""
    kind = ScoreKind.LOGITS
    return ServedModel(name="bear", version="1", artifact=ARTIFACT, provider="CPU", score_kind=kind, batcher=batcher)


def submit(batcher: Batcher) -> None:
    """Submit one drawing, and wait until its model call has succeeded or failed."""
    with suppress(InferenceFailed):
        batcher.submit(drawings(1)).result(5)


def test_a_model_is_failing_after_three_consecutive_failed_calls_until_one_succeeds():
    """A model counts as failing after three consecutive failed calls, until a call succeeds.

    One or two failed calls may be chance. The batcher calls `on_health` only when `is_failing` changes.
    """
    model, changes = FakeModel(), []
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        batcher.on_health = lambda: changes.append(batcher.is_failing)
        for calls, works, is_failing in [(2, False, False), (1, True, False), (3, False, True), (2, False, True)]:
            model.error = None if works else RuntimeError("broken")
            for _ in range(calls):
                submit(batcher)
            assert batcher.is_failing is is_failing
        model.error = None
        submit(batcher)
        assert not batcher.is_failing
    assert changes == [True, False]


async def serving_is(service, expected: bool) -> None:
    """Wait until health reports SERVING if `expected` is true, or another status if `expected` is false."""
    while await service.is_serving() is not expected:
        await asyncio.sleep(0.01)


async def fail(service, model: FakeModel) -> None:
    """Let three model calls fail."""
    model.error = RuntimeError("broken")
    for _ in range(3):
        assert (await service.rejection(1)).code() is grpc.StatusCode.INTERNAL


async def test_a_failing_model_sets_health_to_not_serving_until_a_trial_succeeds():
    """Health is NOT_SERVING while one of two models is failing, and SERVING after a trial of this model succeeds.

    A trial is a model call with one blank drawing, which the health monitor makes while a model is failing. Health thus
    changes to SERVING although clients send no requests.
    """
    model, healthy = FakeModel(), FakeModel()
    async with serving(bear=model, cat=healthy) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=15)
        assert (await watch.read()).status == SERVING
        await fail(service, model)
        assert (await watch.read()).status == NOT_SERVING
        assert not await service.is_serving()
        # a successful call of one model does not change health while another model is failing
        await service.classify(5, model_name="cat")
        assert service.values()["sketchbatch_serving"] == 0
        model.error = None
        assert (await watch.read()).status == SERVING
        assert await service.is_serving()
        assert service.values()["sketchbatch_serving"] == 1
    assert model.batch_sizes[3:] == [1] * len(model.batch_sizes[3:])  # each trial is a call with one blank drawing
    logged = [(event["event"], event["model"]) for event in service.log if event["event"].startswith("model ")]
    assert logged == [("model failing, NOT_SERVING", "bear"), ("model works again", "bear")]


async def test_health_depends_on_the_served_versions_only():
    """While a failing version is served, health is NOT_SERVING; when this version is removed, health is SERVING."""
    broken, healthy = FakeModel(), FakeModel()
    async with serving(bear=healthy) as service:
        [good] = service.models
        bad = replace(good, version="2", batcher=Batcher(broken.predict, BatchLimits()))
        with LeaderFollowerPool([bad.batcher], slots=1):
            service.models.put([good, bad], [])
            # the health monitor has registered itself at the new version
            await until(lambda: bad.batcher.on_health is good.batcher.on_health)
            await fail(service, broken)
            await serving_is(service, False)
            service.models.put([good], [])
            await serving_is(service, True)


async def test_a_successful_request_restores_health_at_once():
    """While health is NOT_SERVING, requests are still accepted, and the first successful request restores health."""
    model = FakeModel()
    async with serving(bear=model, trial_every_s=60) as service:
        await fail(service, model)
        await serving_is(service, False)
        # liveness must stay SERVING, because a restart would lose the queued requests and would not repair the model
        assert await service.is_serving(LIVENESS)
        assert (await service.rejection(2)).code() is grpc.StatusCode.INTERNAL
        model.error = None
        await service.classify(3)
        await serving_is(service, True)


async def test_the_open_inference_protocol_reports_which_model_is_not_ready():
    """ServerReady is true only if all models are ready, as in Triton; ModelReady is false for a failing model only."""
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
            ("UNAVAILABLE", "its last model calls failed"),
            ("READY", ""),
        ]
        assert [model.name for model in (await rpc("RepositoryIndex", ready=True)).models] == ["cat"]


class FullBatcher(Batcher):
    """A batcher that sets the event `has_rejected` when it rejects a request."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.has_rejected = threading.Event()

    def submit(self, bitmaps, **options):
        try:
            return super().submit(bitmaps, **options)
        except Overloaded:
            self.has_rejected.set()
            raise


async def test_the_monitor_survives_the_rejection_of_a_trial_by_a_full_queue():
    """If a full queue rejects a trial request, the health monitor continues.

    The monitor submits trial requests to a failing model. The next successful call restores health.
    """
    model = FakeModel()
    model.error = RuntimeError("broken")
    batcher = FullBatcher(model.predict, BatchLimits(max_queued_rows=1))  # no thread pool runs the batcher
    for _ in range(3):
        batcher.submit(drawings(1))
        batcher.take(1).run()
    health = HealthServicer([])
    await health.serve()
    batcher.submit(drawings(2))
    served = served_model(batcher)
    monitor = asyncio.create_task(monitor_health(ModelRegistry([served]), health, trial_every_s=0.01))
    await until(batcher.has_rejected.is_set)
    assert not health.is_serving
    model.error = None
    batcher.take(1).run()
    await until(lambda: health.is_serving)
    monitor.cancel()


async def test_a_trial_that_expires_while_the_process_is_stopped_is_followed_by_another():
    """If the process is stopped while a trial is queued, the trial expires, and a later trial restores health.

    A stop alone never sets health to NOT_SERVING: an expired request is not a failed model call.
    """
    model, stopped_s = FakeModel(), 0.0
    batcher = Batcher(model.predict, BatchLimits(), clock=lambda: time.monotonic() + stopped_s)
    health = HealthServicer([])
    await health.serve()
    served = served_model(batcher)
    monitor = asyncio.create_task(monitor_health(ModelRegistry([served]), health, trial_every_s=0.1))
    for _ in range(5):
        late = batcher.submit(drawings(1), expires_at=time.monotonic() + 30)
        stopped_s = 60.0
        batcher.take(1).run()
        assert isinstance(late.exception(0), DeadlinePassed)
        stopped_s = 0.0
    assert health.is_serving
    model.error = RuntimeError("broken")
    for _ in range(3):
        batcher.submit(drawings(1))
        batcher.take(1).run()
    await until(lambda: not health.is_serving and batcher.queued_rows > 0)  # a trial waits
    model.error = None
    stopped_s = 60.0
    batcher.take(1).run()
    assert not health.is_serving
    assert model.batch_sizes == [1, 1, 1]
    stopped_s = 0.0
    while not health.is_serving:
        if batch := batcher.take(1):
            batch.run()
        await asyncio.sleep(0.01)
    monitor.cancel()


async def test_a_draining_server_never_reports_serving_again():
    """If a failing model works again while the server drains, health stays NOT_SERVING."""
    health = HealthServicer([])
    await health.serve()
    health.enter_lame_duck()
    await health.drain()
    await health.serve()
    assert not health.is_serving
    alive = await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS), None)
    assert alive.status == SERVING  # a restart would lose the requests that the service has accepted


async def test_balancers_are_told_to_leave_before_clients_that_watch():
    """In the lame duck time, Check and List report NOT_SERVING, and Watch reports the models' state until `leave`.

    A client that watches may know no other replica yet. A balancer that polls Check has its own list of replicas. The
    probe port reports the status of Watch: if no other replica is ready, kube-proxy still uses a stopping replica whose
    probes succeed.
    """
    health = HealthServicer([])
    await health.serve()
    watch = health.Watch(health_pb2.HealthCheckRequest(), None)
    statuses = [(await anext(watch)).status]
    health.enter_lame_duck()
    checked = await health.Check(health_pb2.HealthCheckRequest(), None)
    listed = await health.List(health_pb2.HealthListRequest(), None)
    assert [checked.status, listed.statuses[""].status] == [NOT_SERVING, NOT_SERVING]
    probes = health.for_probes()
    assert (await probes.Check(health_pb2.HealthCheckRequest(), None)).status == SERVING
    assert (await probes.List(health_pb2.HealthListRequest(), None)).statuses[""].status == SERVING
    late_watch = health.Watch(health_pb2.HealthCheckRequest(), None)
    assert (await anext(late_watch)).status == SERVING
    await health.fail()
    statuses.append((await asyncio.wait_for(anext(watch), 5)).status)
    await health.serve()
    statuses.append((await asyncio.wait_for(anext(watch), 5)).status)
    await health.leave()
    statuses.append((await asyncio.wait_for(anext(watch), 5)).status)
    assert statuses == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert (await probes.Check(health_pb2.HealthCheckRequest(), None)).status == NOT_SERVING
    await late_watch.aclose()
    await watch.aclose()


async def test_a_watch_misses_no_change_while_it_sends_another():
    """A health watch sends every change of health, even a change while the previous status is being sent.

    A client that did not receive NOT_SERVING would continue to send calls to a service that stops.
    """
    health = HealthServicer([])
    watch = health.Watch(health_pb2.HealthCheckRequest(), None)
    statuses = [(await anext(watch)).status]
    await health.serve()  # health changes before the watch waits for the next status
    statuses.append((await asyncio.wait_for(anext(watch), 5)).status)
    health.enter_lame_duck()
    await health.drain()
    statuses += [each.status async for each in watch]
    assert statuses == [NOT_SERVING, SERVING, NOT_SERVING]
