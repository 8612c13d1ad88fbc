"""A service started for a load test where none answers, and ended with it."""

import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from loadtest.processes import interrupted
from loadtest.service import ServiceError, connect

_READY_S = 900.0
_STOP_S = 90.0


@contextmanager
def started(command: str, url: str, log: Path) -> Iterator[None]:
    """Run the command while the context lasts, unless something answers at the URL already.

    Raises: ServiceError if it ends, or is not ready in a quarter of an hour.
    """
    with connect(url) as client:
        if _answers(client, "/health"):
            yield
            return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:  # a session of its own: Ctrl-C ends the load test first
        process = subprocess.Popen(
            shlex.split(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with connect(url) as client:
                _wait(process, client, log)
            yield
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    ends_at_s = time.monotonic() + _READY_S
    while not _answers(client, "/ready"):
        if process.poll() is not None:
            raise ServiceError(f"the service ended with {process.returncode}; see {log}")
        if time.monotonic() > ends_at_s:
            raise ServiceError(f"the service is not ready after {_READY_S:.0f} s; see {log}")
        time.sleep(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    if not interrupted(process, _STOP_S):
        process.kill()
        process.wait()


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path, timeout=5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
