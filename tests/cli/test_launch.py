import json
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from s2d_serve.cli import launch
from s2d_serve.cli.output import NOTES
from s2d_serve.deployment_file import DeploymentFile, load_deployment_file
from s2d_serve.errors import ConfigError, UnavailableError
from tests.cli.conftest import Args, Run, WriteFile
from tests.ports import free_port

FAKE_SERVE = Path(__file__).with_name("fake_serve.py")

Fake = Callable[..., None]


@pytest.fixture
def deployment(args: Args, write_file: WriteFile) -> DeploymentFile:
    return load_deployment_file(write_file(args, port=free_port()))


@pytest.fixture
def fake(deployment: DeploymentFile, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a stand-in in Serve's place: fake(code=503, draft=(), exit=None, status={})."""
    monkeypatch.setattr(launch, "SERVE", [sys.executable, str(FAKE_SERVE)])
    monkeypatch.setattr(launch, "POLL_S", 0.02)
    monkeypatch.setattr(launch, "STATUS_S", 0.3)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its handlers

    def install(
        code: int = 503,
        draft: Sequence[str | None] = ("ready",),
        exit: int | None = None,
        status: object = None,
    ) -> None:
        answers = {"code": code, "draft": draft, "exit": exit, "status": yaml.safe_dump(status)}
        monkeypatch.setenv("FAKE_SERVE", json.dumps(answers | {"port": deployment.http.port}))

    return install


def app_status(status: str, message: str = "", **deployments: str) -> dict[str, object]:
    """What `serve status` says of the application; deployments by the message of their failure."""
    failures = {
        name: {"status": "DEPLOY_FAILED" if text else "HEALTHY", "message": text}
        for name, text in deployments.items()
    }
    app = {"status": status, "message": message, "deployments": failures}
    return {"applications": {"s2d": app}}


def interrupt_at(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C as soon as the command says `text`."""
    say = NOTES.print

    def spy(message: str, soft_wrap: bool = False) -> None:
        say(message, soft_wrap=soft_wrap)
        if text in message:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(NOTES, "print", spy)


@pytest.mark.parametrize(
    ("code", "status"), [(200, None), (401, app_status("RUNNING"))], ids=["open", "with-keys"]
)
def test_says_when_it_is_ready_and_stops_with_ctrl_c(
    deployment: DeploymentFile,
    fake: Fake,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    status: object,
) -> None:
    fake(code=code, status=status)
    interrupt_at("ready", monkeypatch)
    result = run("serve", deployment.path)
    assert result.exit_code == 130
    ready, command = result.stderr.split("ready at ")[1].splitlines()[:2]
    assert ready == f"{deployment.url}; try:"
    words = shlex.split(command)
    assert words[:2] == ["curl", f"{deployment.url}/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "tiny"
    assert result.stderr.index("stopping") < result.stderr.index("shut down")


@pytest.mark.parametrize("state", ["ready", "idle", None])
def test_is_not_ready_before_the_draft_is(
    deployment: DeploymentFile, fake: Fake, state: str | None
) -> None:
    fake(code=200, draft=["loading", "loading", state])
    server = launch.Server(deployment)
    try:
        server.wait_ready()
        with launch.DIRECT.open(f"{deployment.url}/ready") as answer:
            assert json.load(answer) == {"draft": state}
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (app_status("DEPLOY_FAILED", "Traceback\n  ...\nValueError: wrong app\n"), "ValueError"),
        (app_status("DEPLOY_FAILED", "...", tiny="...\nConfigError: too long\n", draft=""), "Conf"),
    ],
)
def test_failed_deployment_ends_with_its_reason(
    deployment: DeploymentFile, fake: Fake, run: Run, status: object, reason: str
) -> None:
    fake(status=status)
    result = run("serve", deployment.path)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(f"error: the deployment failed: {reason}")
    assert "shut down" in lines


def test_serve_that_ends_early_is_an_error(deployment: DeploymentFile, fake: Fake) -> None:
    fake(exit=3)
    with pytest.raises(UnavailableError, match="ended with status 3"):
        launch.run(deployment)


def test_public_bind_without_keys_refuses_to_start(args: Args, write_file: WriteFile) -> None:
    with pytest.raises(ConfigError, match="no API keys are set"):
        launch.run(load_deployment_file(write_file(args, host="0.0.0.0")))


def test_port_in_use_refuses_to_start(deployment: DeploymentFile) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", deployment.http.port))
        other.listen()
        with pytest.raises(ConfigError, match="is in use"):
            launch.run(deployment)
