"""A service that is started for a load test."""

import sys
from pathlib import Path

import psutil
import pytest

from loadtest.nullserver import serving
from loadtest.service import ServiceError
from loadtest.started import started

SERVER = """
import os, sys, uvicorn
from loadtest.nullserver import build_app
print(os.getpid(), flush=True)
uvicorn.run(build_app(("a",)), port=int(sys.argv[1]), log_level="error", ws="none")
"""


def test_it_runs_while_the_test_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with serving(("a",)) as url:
        pass  # a port that was free a moment ago
    (tmp_path / "server.py").write_text(SERVER, "utf-8")
    command = f"{sys.executable} {tmp_path / 'server.py'} {url.rsplit(':', 1)[1]}"
    log = tmp_path / "logs" / "service.log"
    with started(command, url, log):
        pid = int(log.read_text("utf-8"))
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_nothing_is_started_where_something_answers(tmp_path: Path) -> None:
    with serving(("a",)) as url, started("/no/such/program", url, tmp_path / "log"):
        assert not (tmp_path / "log").exists()


def test_one_that_ends_at_once_says_where_to_look(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'raise SystemExit(4)'"
    with (
        pytest.raises(ServiceError, match=r"ended with 4; see .*log"),
        started(command, "http://127.0.0.1:9", tmp_path / "log"),
    ):
        pass
