"""Server-sent events: the text of a stream.

A stream is events of chunks, then DONE. Where it fails after it began, an error event is its end,
and no DONE follows: a client that saw DONE has everything.
"""

from collections.abc import Mapping

from s2d_serve.api.jsontext import to_json

DONE = b"data: [DONE]\n\n"
"""The end of a stream that is complete."""

PING = b": ping\n\n"
"""A comment, which clients skip; it keeps proxies from closing a silent stream."""


def event(body: Mapping[str, object]) -> bytes:
    """A chunk's body as an event."""
    return b"data: " + to_json(body) + b"\n\n"


def error_event(body: Mapping[str, object]) -> bytes:
    """The last event of a stream that failed; the body is `ErrorReply.body`.

    OpenAI's client raises APIError for the "error" key of the data, others for the event's name.
    """
    return b"event: error\n" + event(body)
