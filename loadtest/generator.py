"""AIPerf as a subprocess: its configuration, its processor time, its end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from loadtest.options import KEY
from loadtest.plan import Batch, Cell
from loadtest.processes import interrupted
from loadtest.results import ClientCpu
from loadtest.scenario import Scenario

ENTRIES, CONFIG, ARTIFACTS = "requests.jsonl", "aiperf.yaml", "aiperf"
WARM_UP = "warmup"
_SAMPLE_S = 0.25
_TRIES_PER_S = 250.0
"""How often a closed loop looks for a client that is free. Left to itself AIPerf 0.13 never sleeps
while all are busy: on a small machine it takes the core that the service under test would use.
"""
_WINDOW_S = 5.0
"""Over which processor time is seen: a mean of the whole run would hide what a burst takes."""
_STOP_S = 20.0

_TOKENIZER = (
    '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], '
    '"normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, '
    '"decoder": null, "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}'
)
"""AIPerf loads one before it looks at a data set; tokens are counted by the service."""


class GeneratorError(RuntimeError):
    """AIPerf failed; the message has the end of what it said."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Processor seconds that the generator's processes had used at one time."""

    time_s: float
    """Unix time."""
    cpu_s: dict[int, float]
    """By process id."""


def configure(scenario: Scenario, batch: Batch, url: str, folder: Path) -> list[str]:
    """Write what AIPerf is to do into `folder`, which has the requests; the command that does it.

    The configuration has no key but the name of the variable that holds it.
    """
    phases = [_phase(scenario, cell) for cell in batch]
    if scenario.warmup_requests:
        load = _closed(1 if scenario.is_open else batch[0].level, scenario.warmup_requests)
        phases.insert(0, {"name": WARM_UP, "kind": "warmup", **load})
    endpoint: dict[str, Any] = {
        "url": url, "type": "chat", "streaming": True,
        "useLegacyMaxTokens": True, "useServerTokenCount": True,
        "extra": {"temperature": scenario.temperature},
    }  # fmt: skip
    if os.environ.get(KEY):  # as apiKey, one of digits alone would be taken for a number
        endpoint["headers"] = {"Authorization": f"Bearer ${{{KEY}}}"}
    benchmark = {
        "model": batch[0].targets[0],
        "endpoint": endpoint,
        "dataset": {
            "type": "file", "path": str((folder / ENTRIES).absolute()),
            "format": "single_turn", "sampling": "sequential",
        },
        "phases": phases,
        "tokenizer": {"name": str(_tokenizer(folder.parent).absolute())},
        "artifacts": {"dir": str((folder / ARTIFACTS).absolute()), "raw": True},
        "gpuTelemetry": {"enabled": False},
        "serverMetrics": {"enabled": False},
        "runtime": {"ui": "none", "workers": 1, "recordProcessors": 1},
    }  # fmt: skip
    seed = scenario.seed + batch[0].repeat
    whole = {"schemaVersion": "2.0", "randomSeed": seed, "benchmark": benchmark}
    (folder / CONFIG).write_text(yaml.safe_dump(whole, sort_keys=False), "utf-8")
    aiperf = Path(sys.executable).with_name("aiperf")
    return [str(aiperf), "profile", "--config", str(folder / CONFIG)]


def _phase(scenario: Scenario, cell: Cell) -> dict[str, Any]:
    if scenario.load.kind == "closed":
        load = _closed(cell.level, scenario.load.num_requests(cell.level))
    else:
        load = {"type": "fixed_schedule"}
    phase = {"name": cell.phase, "kind": "profiling", **load}
    if scenario.cancel:
        share, delay_s = 100 * scenario.cancel.share, scenario.cancel.after_s
        phase["cancellation"] = {"rate": share, "delay": delay_s}
    return phase


def _closed(level: float, requests: int) -> dict[str, Any]:
    return {
        "type": "constant",
        "rate": _TRIES_PER_S,
        "concurrency": round(level),
        "requests": requests,
    }


def run(
    words: Sequence[str], log: Path, timeout_s: float, each_sample: Callable[[Sample], None]
) -> str | None:
    """Run AIPerf to its end; what it prints goes to `log`. Ctrl-C ends it and comes through.

    Args:
        words: its command.
        log: takes what it prints.
        timeout_s: after which it is ended.
        each_sample: takes its use of processors a few times a second, in another thread.

    Returns: the end of what it said, if it calls itself failed: it does so, too, where no request
    was answered.

    Raises: GeneratorError if it takes too long.
    """
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = _watched(process, timeout_s, each_sample)
        except subprocess.TimeoutExpired:
            raise GeneratorError(f"AIPerf took over {timeout_s:.0f} s; see {log}") from None
        finally:
            _end(process)
    if not code:
        return None
    tail = " ".join(log.read_text("utf-8", "replace").split())[-400:]
    return f"AIPerf ended with {code}; see {log}: ... {tail}"


def cpu_between(samples: Sequence[Sample], start_s: float, end_s: float) -> ClientCpu | None:
    """The generator's use of processors between two times, in its busiest seconds; None: too short
    to say.
    """
    last_before = [s for s in samples if s.time_s <= start_s][-1:]
    within = last_before + [s for s in samples if start_s < s.time_s <= end_s]
    uses = []
    for i, first in enumerate(within):
        later = [s for s in within[i + 1 :] if s.time_s - first.time_s >= _WINDOW_S]
        if later:
            uses.append(_use(first, later[0]))
    if not uses and len(within) > 1:
        uses.append(_use(within[0], within[-1]))
    if not uses:
        return None
    return ClientCpu(cores=max(u.cores for u in uses), busiest=max(u.busiest for u in uses))


def _use(first: Sample, last: Sample) -> ClientCpu:
    seconds = last.time_s - first.time_s
    used = [cpu - first.cpu_s.get(pid, 0.0) for pid, cpu in last.cpu_s.items()]
    return ClientCpu(cores=sum(used) / seconds, busiest=max(used, default=0.0) / seconds)


def _watched(
    process: subprocess.Popen[bytes], timeout_s: float, each_sample: Callable[[Sample], None]
) -> int:
    """Its exit status."""
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, done, each_sample))
    watcher.start()  # Ctrl-C right here: it ends with the process
    try:
        return process.wait(timeout_s)
    finally:
        done.set()
        watcher.join()


def _watch(pid: int, done: threading.Event, each_sample: Callable[[Sample], None]) -> None:
    """Until it is told to stop, or the process is gone."""
    while not done.wait(_SAMPLE_S):
        used: dict[int, float] = {}
        try:
            root = psutil.Process(pid)
            for process in [root, *root.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                    used[process.pid] = times.user + times.system
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        each_sample(Sample(time.time(), used))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then make it; its group holds AIPerf's processes and no others."""
    if not interrupted(process, _STOP_S):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tokenizer(folder: Path) -> Path:
    home = folder / "tokenizer"
    home.mkdir(exist_ok=True)
    (home / "tokenizer.json").write_text(_TOKENIZER, "utf-8")
    config = '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}'
    (home / "tokenizer_config.json").write_text(config, "utf-8")
    return home
