"""Every error that s2d-serve raises on purpose.

S2DError
├── ConfigError            (ValueError)       a deployment file asks for something that cannot be
├── WeightsError           (OSError)          weights are missing, damaged or of another hash
├── UnsupportedModelError  (ValueError)       a model whose text cannot be guaranteed
├── RequestError           (ValueError)       400: a bad value in a request; `param` names the field
├── AuthenticationError    (PermissionError)  401: no key, or a wrong one
├── UnknownModelError      (LookupError)      404: no target of that name
├── PayloadTooLargeError   (ValueError)       413: the body is over the limit
├── OverloadedError        (RuntimeError)     429: the queue of this target is full
├── UnavailableError       (ConnectionError)  503: loading, or no live replica
└── DeadlineError          (TimeoutError)     503: a time limit of the service ran out

Each carries one message and defines no `__init__`: only such exceptions survive the way from a Ray
replica. The message gives the value, the limit and what to do.
"""


class S2DError(Exception):
    """Base of all errors of this package; catch it to catch them all."""


class ConfigError(S2DError, ValueError):
    """A deployment file asks for something that cannot be."""


class WeightsError(S2DError, OSError):
    """Weights are missing, damaged or of another hash than the one pinned."""


class UnsupportedModelError(S2DError, ValueError):
    """An architecture or a setting for which the same text cannot be guaranteed."""


class RequestError(S2DError, ValueError):
    """A bad value in a request. `param` names the field, where there is one."""

    param: str | None = None


class AuthenticationError(S2DError, PermissionError):
    """No API key, or a wrong one."""


class UnknownModelError(S2DError, LookupError):
    """No target of that name is served."""


class PayloadTooLargeError(S2DError, ValueError):
    """The request's body is over the limit."""


class OverloadedError(S2DError, RuntimeError):
    """The queue of this target is full; try again later."""


class UnavailableError(S2DError, ConnectionError):
    """The target is loading, or none of its replicas is alive."""


class DeadlineError(S2DError, TimeoutError):
    """A time limit of the service ran out."""


def bad_request(message: str, param: str | None = None) -> RequestError:
    """A RequestError that names the field at fault."""
    error = RequestError(message)
    error.param = param
    return error
