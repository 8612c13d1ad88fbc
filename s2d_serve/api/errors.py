"""Errors -> what the client gets: a status, an OpenAI-shaped body, headers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from s2d_serve.api.jsontext import Json
from s2d_serve.errors import (
    AuthenticationError,
    DeadlineError,
    OverloadedError,
    PayloadTooLargeError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """How one class of errors is answered."""

    status: int
    type: str
    """OpenAI's broad class of the error."""
    code: str
    """Stable name for programs and metrics."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What is sent; in a stream that has begun, the body alone."""

    status: int
    body: Json
    headers: Mapping[str, str]


FAULTS: dict[type[BaseException], Fault] = {
    RequestError: Fault(400, "invalid_request_error", "invalid_value"),
    AuthenticationError: Fault(
        401, "authentication_error", "invalid_api_key", {"WWW-Authenticate": "Bearer"}
    ),
    UnknownModelError: Fault(404, "invalid_request_error", "model_not_found"),
    PayloadTooLargeError: Fault(413, "invalid_request_error", "payload_too_large"),
    OverloadedError: Fault(429, "rate_limit_error", "overloaded", {"Retry-After": "1"}),
    UnavailableError: Fault(503, "service_unavailable_error", "unavailable", {"Retry-After": "5"}),
    DeadlineError: Fault(503, "service_unavailable_error", "deadline", {"Retry-After": "5"}),
}
"""Errors whose message is for the client; a subclass is answered as its base."""

OUR_FAULT = Fault(500, "server_error", "internal_error")


def fault_of(error: BaseException) -> Fault:
    """How an error is answered; whatever is not in the table is our own fault."""
    return next((FAULTS[cls] for cls in type(error).__mro__ if cls in FAULTS), OUR_FAULT)


def reply(error: BaseException) -> ErrorReply:
    """What the client gets for an error; of our own faults it learns nothing but that."""
    fault = fault_of(error)
    message = "internal error; the server's log has it under this request id"
    if fault is not OUR_FAULT:
        message = str(error)
    param = "model" if isinstance(error, UnknownModelError) else getattr(error, "param", None)
    body = {"message": message, "type": fault.type, "param": param, "code": fault.code}
    return ErrorReply(fault.status, {"error": body}, fault.headers)
