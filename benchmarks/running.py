"""A service of its own for a benchmark: `serve run` on a free port, ended with the benchmark; and
what its clients ask, again and again.
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml


@contextlib.contextmanager
def running_service(args: dict[str, Any]) -> Iterator[str]:
    """The URL of a service with these `args`, ready with its draft."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        app = {"name": "bench", "import_path": "s2d_serve.serving.app:build", "args": args}
        http = {"host": "127.0.0.1", "port": port}
        file.write_text(yaml.safe_dump({"http_options": http, "applications": [app]}), "utf-8")
        serve = str(Path(sys.executable).with_name("serve"))
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen([serve, "run", str(file)], stdout=output, stderr=output)
        try:
            _await(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        if process.poll() is not None:
            raise SystemExit(f"the service ended before it was ready:\n{log.read_text()[-2000:]}")
        try:
            answer = httpx.get(f"{url}/ready", timeout=5)
            if answer.status_code == 200 and answer.json().get("draft") in (None, "ready"):
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)


def chat_body(model: str, question: str, num_tokens: int, **fields: Any) -> dict[str, Any]:
    """A request for an answer of exactly so many tokens."""
    messages = [{"role": "user", "content": question}]
    common = {"model": model, "messages": messages, "max_tokens": num_tokens, "temperature": 0}
    return common | {"ignore_eos": True} | fields


@contextlib.contextmanager
def repeating(act: Callable[[int], None], num_threads: int = 1) -> Iterator[None]:
    """Do it again and again beside the block, in so many threads; each passes its number."""
    is_over = threading.Event()

    def go_on(number: int) -> None:
        while not is_over.is_set():
            act(number)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
