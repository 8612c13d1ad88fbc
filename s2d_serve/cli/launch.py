"""`s2d serve`: checks, weights, `serve run`, and a word when the service is ready."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import yaml
from rich.markup import escape

from s2d_serve.cli import weights
from s2d_serve.cli.output import NOTES
from s2d_serve.cli.ports import port_problem
from s2d_serve.deployment_file import DeploymentFile
from s2d_serve.errors import ConfigError, UnavailableError
from s2d_serve.exposure import check_exposure

SERVE = [sys.executable, "-m", "ray.serve.scripts"]
"""The `serve` command of this environment, whatever the PATH."""

DASHBOARD = re.compile(rb"dashboard at \S*?(https?://[\w.:\[\]-]+)")
"""How Ray says at its start where it can be asked."""

DIRECT = build_opener(ProxyHandler({}))
"""Asks this machine itself, whatever http_proxy says."""

POLL_S = 0.5
STATUS_S = 15.0
"""`serve status` takes seconds of CPU, /ready none: it is asked less often."""
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def run(deployment: DeploymentFile) -> int:
    """Serve a deployment file until Ctrl-C; the exit status.

    Raises:
        ConfigError: it must not be served as it is, or not here.
        UnavailableError: it was started and failed.
        S2DError: what fetching weights raises.
    """
    check_exposure(deployment.http.host, deployment.config)
    problem = port_problem(deployment.http.host, deployment.http.port)
    if problem is not None:
        raise ConfigError(f"{problem}; stop that, or change http_options.port")
    weights.fetch(deployment.config)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # SIGINT, too: in a script's background it is ignored
    server = Server(deployment)
    try:
        server.wait_ready()
        NOTES.print(_welcome(deployment), soft_wrap=True)
        return server.wait()
    except KeyboardInterrupt:
        NOTES.print("stopping; once more kills")
        return 130
    finally:
        server.stop()


class Server:
    """`serve run` as a child process whose output passes through."""

    def __init__(self, deployment: DeploymentFile) -> None:
        self._deployment = deployment
        self._dashboard: str | None = None
        self._process = subprocess.Popen(
            [*SERVE, "run", str(deployment.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches it once, from `stop`
        )
        self._relay = threading.Thread(target=self._pass_output_on, daemon=True)
        self._relay.start()

    def wait_ready(self) -> None:
        """Until requests are answered, and drafted for.

        Raises: UnavailableError: the deployment failed, or `serve run` ended.
        """
        next_status = time.monotonic() + STATUS_S
        while not _is_ready(self._deployment.url):
            if self._process.poll() is not None:
                raise UnavailableError(
                    f"`serve run` ended with status {self._process.returncode}; see above"
                )
            if time.monotonic() > next_status:
                status, message = self._app_status()
                if status in FAILED:
                    raise UnavailableError(f"the deployment failed: {message}")
                if status == "RUNNING":  # and /ready wants an API key
                    return
                next_status = time.monotonic() + STATUS_S
            time.sleep(POLL_S)

    def wait(self) -> int:
        """Until `serve run` ends by itself; its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """End `serve run` as Ctrl-C does, with all that it started; a second Ctrl-C kills it."""
        try:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
            self._process.wait()
        except KeyboardInterrupt:
            self._process.kill()
            self._process.wait()
        self._relay.join(timeout=5)

    def _pass_output_on(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
                found = DASHBOARD.search(line)
                if found:
                    self._dashboard = found[1].decode()

    def _app_status(self) -> tuple[str, str]:
        """Serve's word for the application's state, and why, if it failed; empty if unknown."""
        if self._dashboard is None:
            return "", ""
        answer = subprocess.run(
            [*SERVE, "status", "--address", self._dashboard],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"RAY_AUTH_MODE": "token", **os.environ},  # a cluster that `serve run` starts
        )
        with suppress(yaml.YAMLError, LookupError, TypeError):
            app = yaml.safe_load(answer.stdout)["applications"][self._deployment.app_name]
            return str(app["status"]), _reason(app)
        return "", ""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _reason(app: dict[str, Any]) -> str:
    """The exception in each failed deployment's message, which is a traceback, or in the app's."""
    failed = [d["message"] for d in app["deployments"].values() if d["status"] in FAILED]
    lines = [str(text).strip().splitlines()[-1:] for text in failed or [app["message"]]]
    return "; ".join(line for last in lines for line in last)


def _is_ready(url: str) -> bool:
    """Every target, and the draft: without it answers are right, but slow."""
    try:
        with DIRECT.open(f"{url}/ready", timeout=10) as answer:
            return bool(json.load(answer)["draft"] != "loading")
    except HTTPError as error:
        error.close()
        return False
    except (OSError, ValueError, LookupError):  # nobody listens yet, or not the router
        return False


def _welcome(deployment: DeploymentFile) -> str:
    body = {
        "model": next(iter(deployment.config.targets)),
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 100,
    }
    key = "" if deployment.config.auth.api_keys_file is None else ' -H "Authorization: Bearer KEY"'
    command = (
        f"curl {deployment.url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}"
    )
    return f"[bold green]ready[/] at {deployment.url}; try:\n  {escape(command)}"
