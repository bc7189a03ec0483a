"""Calls the service: batches of bitmaps in, `Classification`s out, in order.

A call is cut into requests of `rows_per_request`, of which `in_flight` are under way at once; each is tried again as
`RetryPolicy` says, until `timeout_s` has passed. Small calls from several threads share requests (`coalescing`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import grpc
from sketchbatch.v1 import classifier_pb2 as pb

from .. import errors
from ..drawings.readers import Bitmaps
from .attempts import Attempts
from .caller import Caller, some_rows
from .classification import Classification, ModelInfo, decoded, joined, model_info
from .coalescing import HURRY_AFTER_S, Lane, Share, fail, hand_out
from .questions import Question, as_rows, encoded, in_parts, question

_SENDERS = 32  # threads that send shared requests, started as needed; two a lane while the service answers in time

Answer = TypeVar("Answer")


class Client(Caller):
    """A connection to a service; safe to share between threads. Close it, or use it as a context manager.

    Takes what `Caller` takes.
    """

    _open_channel = staticmethod(grpc.insecure_channel)

    def _get_ready(self) -> None:
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="sketchbatch-shared")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connections; requests under way fail."""
        self._channels.close()
        self._senders.shutdown(wait=False)

    def classify(
        self, bitmaps: Bitmaps, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        """Classifies any number of bitmaps.

        Args:
            bitmaps: uint8, (rows, 28, 28) or (rows, 784), or one bitmap of (28, 28); 0 = paper, 255 = ink.
            top_k: How many of the best classes to return; 0 = the scores of all.
            model_name: "" = the service's default.
            model_version: "" = the newest.

        Raises:
            RequestRefused: The bitmaps are none, or of another type or shape; or `top_k` is too large.
            SketchbatchError: As `errors` says, when the service cannot answer.
        """
        rows = some_rows(bitmaps)
        asked = question(top_k, model_name, model_version)
        rows_limit = self._rows_limit(self._known(model_name, model_version))
        if lane := self._lane(asked, len(rows), rows_limit):
            return self._ask_together(asked, rows, lane)
        if len(rows) <= rows_limit:
            return self._ask(asked, rows, self._attempts())
        return joined(list(self.score([rows], top_k=top_k, model_name=model_name, model_version=model_version)))

    def score(
        self, batches: Iterable[Bitmaps], *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Iterator[Classification]:
        """Classifies a stream of batches of any size in constant memory; arguments and errors as `classify`.

        Yields one `Classification` for each request of up to `rows_per_request` rows, in order.
        """
        asked = question(top_k, model_name, model_version)
        rows_limit = self._rows_limit(self._known(model_name, model_version))
        self._reach_all_workers()
        under_way: deque[Future[Classification]] = deque()
        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="sketchbatch")
        try:
            for batch in batches:
                for rows in in_parts(as_rows(batch), rows_limit):
                    if len(under_way) == self._in_flight:
                        yield under_way.popleft().result()
                    under_way.append(pool.submit(lambda rows: self._ask(asked, rows, self._attempts()), rows))
            while under_way:
                yield under_way.popleft().result()
        finally:  # after an error, or when the caller stops early: nothing more is sent, nothing waited for
            pool.shutdown(wait=False, cancel_futures=True)

    def models(self) -> list[ModelInfo]:
        """Every model and version being served, the default first."""
        response = self._call(self._channels.first.stub.ListModels, pb.ListModelsRequest())
        return [model_info(model) for model in response.models]

    def model(self, name: str = "", version: str = "") -> ModelInfo:
        """One model; "" = the default, or the newest version. Raises `ModelNotFound`."""
        request = pb.GetModelRequest(model_name=name, model_version=version)
        return self._noted(self._call(self._channels.first.stub.GetModel, request).model)

    def health(self, service: str = "") -> str:
        """What grpc.health.v1 says: SERVING, NOT_SERVING or SERVICE_UNKNOWN; "" = the server as a whole."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check = health_pb2_grpc.HealthStub(self._channels.first.channel).Check
        try:
            response = self._call(check, health_pb2.HealthCheckRequest(service=service))
        except errors.ModelNotFound:  # the health protocol's NOT_FOUND
            return "SERVICE_UNKNOWN"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def _ask_together(self, asked: Question, rows: Bitmaps, lane: Lane) -> Classification:
        """A small call: in a request of its own while the lane is idle, else in one shared with others."""
        attempts = self._attempts()
        while True:
            if lane.go_alone():
                try:
                    return self._ask(asked, rows, attempts)
                finally:
                    if lane.come_back():
                        self._senders.submit(self._send, asked, lane)
            share = self._share(asked, rows, lane, attempts)
            if share.answer:
                return share.answer
            assert share.error
            delay_s = attempts.delay_s(share.error)
            if delay_s is None:
                return self._ask(asked, rows, attempts)
            time.sleep(delay_s)

    def _share(self, asked: Question, rows: Bitmaps, lane: Lane, attempts: Attempts) -> Share:
        """One shared request, with the answer or the error that it brought."""
        settled = threading.Lock()
        settled.acquire()
        share = Share(rows, attempts.give_up_at, settled.release)
        try:
            if lane.wait(share):
                self._senders.submit(self._send, asked, lane)
            if not settled.acquire(timeout=min(HURRY_AFTER_S, attempts.remaining_s())):
                if lane.hurry(share):
                    self._senders.submit(self._send, asked, lane)
                if not settled.acquire(timeout=attempts.remaining_s()):
                    raise attempts.out_of_time()
        finally:
            share.has_left = True
        return share

    def _send(self, asked: Question, lane: Lane) -> None:
        """Sends the shared requests of a lane until nobody waits; on a thread of its own."""
        self._reach_all_workers()
        while shares := lane.take():
            try:
                give_up_at = max(share.give_up_at for share in shares)
                payload = encoded(asked, [share.bitmaps for share in shares])
                hand_out(shares, self._ask_once(payload, max(0.0, give_up_at - time.monotonic())))
            except Exception as exc:  # whatever it was, nobody may be left waiting
                fail(shares, exc)

    def _ask(self, asked: Question, rows: Bitmaps, attempts: Attempts) -> Classification:
        """A request of these rows alone."""
        payload = encoded(asked, [rows])
        return self._persist(lambda timeout_s: self._ask_once(payload, timeout_s), attempts)

    def _ask_once(self, payload: bytes, timeout_s: float) -> Classification:
        connection = self._channels.borrow()
        try:
            response = connection.classify(payload, timeout=timeout_s)
        finally:
            self._channels.give_back(connection)
        return decoded(response, self._known(response.model_name, response.model_version).labels)

    def _call(self, rpc: Callable[..., Answer], request: object) -> Answer:
        """One RPC of any other kind, with its retries."""
        return self._persist(lambda timeout_s: rpc(request, timeout=timeout_s), self._attempts())

    def _persist(self, ask: Callable[[float], Answer], attempts: Attempts) -> Answer:
        """Asks until there is an answer, or no hope of one; `ask` takes the seconds left."""
        while True:
            try:
                return ask(attempts.remaining_s())
            except grpc.RpcError as exc:
                delay_s = attempts.delay_s(exc)
                if delay_s is None:
                    raise attempts.failure(exc) from exc
            time.sleep(delay_s)

    def _reach_all_workers(self) -> None:
        """Opens the connections that the service's other workers are reached by, the first time."""
        for connection in self._channels.search():
            try:
                worker = connection.stub.GetModel(pb.GetModelRequest(), timeout=self._timeout_s).model.worker
            except grpc.RpcError:  # the connections there are will do, or say what is wrong
                connection.channel.close()
                return
            if not self._channels.keep(connection, worker):
                connection.channel.close()

    def _known(self, name: str, version: str) -> ModelInfo:
        """Asked for once for each name and version."""
        model = self._models.get((name, version))
        return model or self._models.setdefault((name, version), self.model(name, version))
