"""Define every error of the service; this module does not know gRPC.

ServiceError             a request failed; `transport.status` maps each subclass to one gRPC status
├── InvalidRequest       the client must change the request
├── ModelNotFound        the client must name a model that is served
├── Overloaded           the client may send the same request again after `retry_after_s`
├── ShuttingDown         this replica is draining; the client may send the request to another replica
├── DeadlinePassed       the client's deadline passed while the request was queued
├── InferenceFailed      the model call failed; a fault of the service
└── ScoresNotFinite      the model returned NaN or infinity for a row of the request; a fault of the model
StartError               the operator must change a setting, a file or the machine
├── ModelRefused         the model file is unusable
├── ProviderMissing      the requested execution provider is not available
├── AddressUnusable      the service cannot listen on the address
├── TransportUnusable    the installed grpcio does not support the transport
├── CredentialsUnusable  a certificate, key or token file is unusable
├── TooFewFiles          the limit of open files leaves no file descriptor for a connection
├── ExtraMissing         a setting needs a package that is not installed
└── WorkerLost           a worker process ended before it served
"""

_SHOWN_CHARACTERS = 200


class ServiceError(Exception):
    """Base class of the errors that a client can receive."""


class InvalidRequest(ServiceError):
    """The request cannot succeed unless the client changes it."""

    def __init__(self, *, field: str, expected: str, got: str) -> None:
        # The error must fit into gRPC's metadata, 8 KiB. Its text stands there in `grpc-message`, where a character
        # takes up to 12 bytes (4 bytes of UTF-8, each as %XX), and again in `grpc-status-details-bin`.
        shown = got if len(got) <= _SHOWN_CHARACTERS else f"{got[:_SHOWN_CHARACTERS]} ..."
        super().__init__(f"{field} must be {expected}, got {shown}")
        self.field = field


class ModelNotFound(ServiceError):
    """No model or version of the requested name is served; `newest_version` is the newest version of that name."""

    def __init__(self, message: str, *, newest_version: str = "") -> None:
        super().__init__(message)
        self.newest_version = newest_version  # empty = no version of that name is served


class Overloaded(ServiceError):
    """The queue is full, or the deadline would pass in the queue."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(ServiceError):
    """The service accepts no more requests."""


class DeadlinePassed(ServiceError):
    """The deadline of the request passed while the request was queued."""


class InferenceFailed(ServiceError):
    """The model call raised an exception or returned the wrong number of rows."""


class ScoresNotFinite(ServiceError):
    """The model returned NaN or infinity for a row, so no class is the best one."""


class StartError(Exception):
    """Base class of the errors that prevent the start; the message is one line for the operator."""


class ModelRefused(StartError):
    """A model file is missing or unreadable, or its input, output or labels are invalid."""


class ProviderMissing(StartError):
    """ONNX Runtime cannot run the model on the requested provider."""


class AddressUnusable(StartError):
    """The address is in use or does not belong to this machine."""


class TransportUnusable(StartError):
    """The installed grpcio does not have the private interface of the transport `core`."""


class CredentialsUnusable(StartError):
    """A certificate, key or token file is missing or invalid."""


class TooFewFiles(StartError):
    """The limit of open files leaves no file descriptor for a connection."""


class ExtraMissing(StartError):
    """A setting needs an extra of the distribution that is not installed."""


class WorkerLost(StartError):
    """A worker process ended before it served, and reported no reason."""
