"""AIPerf as a subprocess: its command, its processor time, its end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.plan import Cell
from loadtest.processes import interrupted
from loadtest.results import ClientCpu
from loadtest.scenario import Scenario

ENTRIES = "requests.jsonl"
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


def command(scenario: Scenario, cell: Cell, url: str, folder: Path) -> list[str]:
    """The command of one run; `folder` holds its requests and takes what AIPerf writes."""
    enabled = "true" if cell.arm == "on" else "false"
    speculation = f'{{"enabled": {enabled}, "detailed": true}}'  # both arms write the same chunks
    extra = f'{{"temperature": {scenario.temperature:g}, "speculation": {speculation}}}'
    words = [
        str(Path(sys.executable).with_name("aiperf")), "profile",
        "--model", cell.targets[0], "--url", url,
        "--endpoint-type", "chat", "--streaming",
        "--input-file", str(folder / ENTRIES), "--custom-dataset-type", "single-turn",
        "--extra-inputs", extra,
        "--use-legacy-max-tokens", "--use-server-token-count",
        "--tokenizer", str(_tokenizer(folder.parent)),
        "--random-seed", str(scenario.seed + cell.repeat),
        "--workers-max", "1", "--record-processors", "1",
        "--no-gpu-telemetry", "--no-server-metrics",
        "--export-level", "raw", "--ui", "none", "--artifact-dir", str(folder / "aiperf"),
    ]  # fmt: skip
    if scenario.warmup_requests:
        words += ["--warmup-request-count", str(scenario.warmup_requests)]
    if scenario.load.kind == "closed":
        count = scenario.load.num_requests(cell.level)
        words += ["--concurrency", f"{cell.level:g}", "--request-count", str(count)]
        words += ["--request-rate", f"{_TRIES_PER_S:g}", "--arrival-pattern", "constant"]
    else:
        words += ["--fixed-schedule"]
    if scenario.cancel:
        words += ["--request-cancellation-rate", f"{100 * scenario.cancel.share:g}"]
        words += ["--request-cancellation-delay", f"{scenario.cancel.after_s:g}"]
    return words


@dataclass(frozen=True, slots=True)
class Finished:
    """AIPerf has ended by itself."""

    samples: list[Sample]
    failure: str | None
    """What it said, if it calls itself failed: it does so, too, where no request was answered."""


def run(words: Sequence[str], log: Path, timeout_s: float) -> Finished:
    """Run AIPerf to its end; what it prints goes to `log`. Ctrl-C ends it and comes through.

    Raises: GeneratorError if it takes too long.
    """
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            samples, code = _watched(process, timeout_s)
        except subprocess.TimeoutExpired:
            raise GeneratorError(f"AIPerf took over {timeout_s:.0f} s; see {log}") from None
        finally:
            _end(process)
    failure = None
    if code:
        tail = " ".join(log.read_text("utf-8", "replace").split())[-400:]
        failure = f"AIPerf ended with {code}; see {log}: ... {tail}"
    return Finished(samples, failure)


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


def _watched(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[list[Sample], int]:
    """Its use of processors while it ran, and its exit status."""
    done = threading.Event()
    samples: list[Sample] = []
    watcher = threading.Thread(target=_watch, args=(process.pid, done, samples))
    watcher.start()  # Ctrl-C right here: it ends with the process
    try:
        return samples, process.wait(timeout_s)
    finally:
        done.set()
        watcher.join()


def _watch(pid: int, done: threading.Event, samples: list[Sample]) -> None:
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
        samples.append(Sample(time.time(), used))


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
