"""Everything the service can refuse or fail with; no transport words here.

ServiceError
├── InvalidRequest     the caller must change the request
├── ModelNotFound      the caller must name a model that is here
├── Overloaded         nothing is wrong; try again after `retry_after_s`
├── ShuttingDown       this replica is draining; another will answer
├── DeadlinePassed     the caller's time ran out in the queue; it was never run
└── InferenceFailed    the model call broke; our fault
StartError             the operator must change a setting, a file or the machine
├── ModelRefused       the model file does not fit
├── ProviderMissing    the execution provider asked for is not to be had
├── AddressUnusable    the address cannot be listened on
├── CredentialsUnusable  a certificate, key or token file does not do
├── ExtraMissing       a setting needs a package that is not installed
└── WorkerLost         a worker's process ended before it served
"""

_SHOWN = 200  # characters of what a caller sent


class ServiceError(Exception):
    """Base class of what a caller can hear; `status` maps each subclass to one gRPC status."""


class InvalidRequest(ServiceError):
    """The request can never succeed as sent."""

    def __init__(self, *, field: str, expected: str, got: str) -> None:
        # Errors travel in gRPC's metadata, of which 8 KiB arrive; a character may take 12 bytes there, and comes twice.
        super().__init__(f"{field} must be {expected}, got {got if len(got) <= _SHOWN else got[:_SHOWN] + ' ...'}")
        self.field = field


class ModelNotFound(ServiceError):
    """No model or version of that name is being served."""


class Overloaded(ServiceError):
    """The queue is full; the same request may succeed in a moment."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(ServiceError):
    """The service has stopped taking requests."""


class DeadlinePassed(ServiceError):
    """The request was still waiting when its deadline passed."""


class InferenceFailed(ServiceError):
    """The model call raised or returned the wrong number of rows."""


class StartError(Exception):
    """Base class of what keeps the service from starting; the message is one line for the operator."""


class ModelRefused(StartError):
    """A model file is missing, unreadable, or its input, output or labels do not fit."""


class ProviderMissing(StartError):
    """ONNX Runtime cannot run on the provider asked for."""


class AddressUnusable(StartError):
    """The address is taken or not ours to listen on."""


class CredentialsUnusable(StartError):
    """A certificate, key or token file is missing, or not what it should be."""


class ExtraMissing(StartError):
    """A setting needs one of the distribution's extras, which is not installed."""


class WorkerLost(StartError):
    """A worker's process ended before it served, without saying why."""
