"""Share one execution among concurrent calls for the same key (single flight): the first caller leads, others wait."""

import threading
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .concurrency import OneShotEvent

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Flight(Generic[Result]):
    """One execution, and the events of the callers that wait for its end."""

    waiting: list[OneShotEvent] = field(default_factory=list)
    outcome: list[Result] = field(default_factory=list)  # empty until the execution has succeeded
    error: Exception | None = None


class SingleFlight(Generic[Result]):
    """Executes a call once for all callers that ask for its key while it runs. Thread-safe; keeps no results.

    A result or an `Exception` of the call reaches every caller that waits for it. If the leading caller was interrupted
    (Ctrl-C, or a cancelled task), one of the waiting callers leads the next execution.
    """

    def __init__(self, make_event: Callable[[], OneShotEvent]) -> None:
        self._make_event = make_event
        self._lock = threading.Lock()
        self._flights: dict[Hashable, _Flight[Result]] = {}

    async def do(
        self, key: Hashable, call: Callable[[], Awaitable[Result]], remaining_s: Callable[[], float]
    ) -> Result:
        """Return the result of `call`, executed by this caller or by the one that leads for `key`.

        Raises:
            TimeoutError: The caller waited until `remaining_s()`, its own time in seconds, had passed.
        """
        while True:
            flight, event = self._join(key)
            if event is None:
                return await self._lead(key, flight, call)
            if not await event.wait(_no_bypass, remaining_s()):
                raise TimeoutError
            if flight.error:
                raise flight.error
            if flight.outcome:
                return flight.outcome[0]

    def _join(self, key: Hashable) -> tuple[_Flight[Result], OneShotEvent | None]:
        """Return the flight of `key` with an event to wait for; without an event, the caller leads a new flight."""
        with self._lock:
            if flight := self._flights.get(key):
                event = self._make_event()
                flight.waiting.append(event)
                return flight, event
            self._flights[key] = flight = _Flight()
            return flight, None

    async def _lead(self, key: Hashable, flight: _Flight[Result], call: Callable[[], Awaitable[Result]]) -> Result:
        try:
            result = await call()
            flight.outcome.append(result)
            return result
        except Exception as exc:
            flight.error = exc
            raise
        finally:
            with self._lock:
                del self._flights[key]
            for event in flight.waiting:
                event.set()


def _no_bypass() -> None:
    """Do nothing after `MAX_WAIT_S`: the caller continues to wait."""
