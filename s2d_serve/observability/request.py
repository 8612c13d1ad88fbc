"""What is known of the request that the code at hand works for: logs and traces say it."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from s2d_serve.observability.tracing import Trace

LOG_FIELDS = {
    "request_id": "the request's `X-Request-Id`: in every line of its life",
    "target": "the target's name, as soon as it is known",
    "method": "of the line that ends a request (at DEBUG for /health, /ready, /metrics)",
    "path": "the same, without the query",
    "status": "the same; 0: the client hung up before there was one",
    "seconds": "the same: from arrival to the last byte",
    "code": "of an error, as in `s2d:rejected_total`",
    "reason": "why a sequence was opened again, as in `s2d:migrations_total`, or why a draft is "
    "not used, as in `s2d:draft_fallback_total`",
}
"""Fields of our log lines besides those of Ray Serve. Never a prompt, never a text."""


@dataclass(slots=True)
class RequestNotes:
    """One request, from the gate to its end."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    target: str | None = None
    trace: Trace | None = None
    """None: not sampled."""


current_request: ContextVar[RequestNotes | None] = ContextVar("current_request", default=None)
"""The request in whose context code runs; None: in nobody's."""


class RequestFilter(logging.Filter):
    """Puts the request's id and target into each log line of its context."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        notes = current_request.get()
        if notes is not None:
            record.__dict__["request_id"] = notes.request_id
            if notes.target is not None:
                record.__dict__["target"] = notes.target
        return True
