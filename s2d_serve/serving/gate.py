"""What every request passes before a route sees it: id, key, size; and how errors leave."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2d_serve.api.errors import OUR_FAULT, fault_of, reply
from s2d_serve.api.jsontext import to_json
from s2d_serve.config import LimitsConfig
from s2d_serve.errors import AuthenticationError, PayloadTooLargeError
from s2d_serve.observability.meter import Meter
from s2d_serve.observability.request import RequestNotes, current_request
from s2d_serve.observability.tracing import Tracing
from s2d_serve.serving.keys import Keys

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
OPEN_PATHS = re.compile("/health|/ui(/[^/]*)?")
"""Need no key: the page is static, and asks for a key itself."""
QUIET_PATHS = ("/health", "/ready", "/metrics")
"""What machines ask again and again: a log line at DEBUG only."""

log = logging.getLogger("s2d_serve")


class Gate:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitsConfig,
        keys: Keys,
        meter: Meter,
        tracing: Tracing | None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._meter = meter
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        notes = RequestNotes(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["request_id"] = notes.request_id
        token = current_request.set(notes)
        if self._tracing is not None:
            notes.trace = self._tracing.begin(headers, notes.request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = notes.request_id
            await send(message)

        try:
            if not OPEN_PATHS.fullmatch(scope["path"]):
                self._check_key(headers)
            await self._app(scope, await self._limited(headers, receive), send_with_id)
        except Exception as error:
            if fault_of(error) is OUR_FAULT:
                log.exception("request failed")
            if status:
                raise  # the response has begun: all that is left is to break it off
            self._meter.rejected(fault_of(error).code, notes.target)
            await _answer(error, send_with_id)
        finally:
            _note_end(scope, notes, status)
            current_request.reset(token)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not self._keys.allow(key.strip() if scheme.lower() == "bearer" else ""):
            raise AuthenticationError(
                "a valid API key is needed: send the header 'Authorization: Bearer KEY'"
            )

    async def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """`receive` for a body that was read whole and is not too large."""
        limit = self._limits.max_body_bytes
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(int(announced), limit)
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                break
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(len(body), limit)
            if not message.get("more_body", False):
                break
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return replay


def _note_end(scope: Scope, notes: RequestNotes, status: int) -> None:
    """The request's last log line, and the end of its trace."""
    seconds = time.monotonic() - notes.started
    about = {"method": scope["method"], "path": scope["path"], "status": status}
    level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
    extra = about | {"seconds": round(seconds, 4)}
    log.log(level, "%s %s %s %.3fs", *about.values(), seconds, extra=extra)
    if notes.trace is not None:
        notes.trace.end(about | {"target": notes.target or ""})


def _too_large(size: int, limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body has {size} bytes or more; at most {limit} are taken")


async def _answer(error: Exception, send: Send) -> None:
    answer = reply(error)
    body = to_json(answer.body)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {**headers, **answer.headers}.items()
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
