"""AIPerf's configuration, and how a generator is run, watched and ended: with a stand-in for it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from loadtest.generator import GeneratorError, Sample, configure, cpu_between, run
from loadtest.options import KEY, SCENARIOS
from loadtest.plan import Arm, Cell, plan
from loadtest.results import ClientCpu
from loadtest.scenario import load_scenario
from tests.loadtest.examples import scenario


def program(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def nothing(_: Sample) -> None:
    pass


def configured(folder: Path, *arms: Arm, **fields: object) -> dict[str, Any]:
    """What AIPerf is told."""
    batch = tuple(
        Cell(targets=("t",), traffic="separate", level=2, arm=arm, repeat=1) for arm in arms
    )
    (folder / "batch").mkdir()
    words = configure(scenario(**fields), batch, "http://x", folder / "batch")
    assert words[1:3] == ["profile", "--config"]
    found: dict[str, Any] = yaml.safe_load(Path(words[3]).read_text("utf-8"))
    return found


def test_pairs_of_a_closed_loop_follow_one_another(tmp_path: Path) -> None:
    found = configured(tmp_path, "off", "on", warmup_requests=1)
    assert found["randomSeed"] == 1
    loop = {"type": "constant", "rate": 250, "concurrency": 2}
    assert found["benchmark"]["phases"] == [
        {"name": "warmup", "kind": "warmup", "requests": 1, **loop},
        {"name": "off-1", "kind": "profiling", "requests": 4, **loop},
        {"name": "on-1", "kind": "profiling", "requests": 4, **loop},
    ]


def test_a_schedule_with_hang_ups(tmp_path: Path) -> None:
    load = {"kind": "burst", "levels": [2], "bursts": 1, "every_s": 1}
    cancel = {"share": 0.2, "after_s": 1.5}
    found = configured(tmp_path, "on", load=load, cancel=cancel, warmup_requests=0)
    assert found["benchmark"]["phases"] == [
        {
            "name": "on-1",
            "kind": "profiling",
            "type": "fixed_schedule",
            "cancellation": {"rate": 20, "delay": 1.5},
        }
    ]


def test_a_key_stays_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-word")
    found = configured(tmp_path, "on")
    headers = found["benchmark"]["endpoint"]["headers"]
    assert headers == {"Authorization": "Bearer ${S2D_API_KEY}"}


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.yaml")))
def test_every_scenario_has_clients_for_its_warm_up(name: str, tmp_path: Path) -> None:
    """A rate of less than one arrival per second, too."""
    what = load_scenario(name)
    assert what.warmup_requests
    for batch in plan(what, ["t"]):
        folder = tmp_path / batch[0].name
        folder.mkdir()
        words = configure(what, batch, "http://x", folder)
        phases = yaml.safe_load(Path(words[-1]).read_text("utf-8"))["benchmark"]["phases"]
        assert phases[0]["concurrency"] >= 1
        assert [phase["name"] for phase in phases[1:]] == [cell.phase for cell in batch]


def test_its_processor_time_is_seen(tmp_path: Path) -> None:
    busy = """
        import os, time
        end = time.process_time() + 1.0
        if os.fork():
            os.wait()
        while time.process_time() < end:
            pass
    """
    start = time.time()
    samples: list[Sample] = []
    run(program(busy), tmp_path / "log", 60, samples.append)
    used = cpu_between(samples, start, time.time())
    assert used is not None
    assert used.cores > 0.2
    assert len({pid for sample in samples for pid in sample.cpu_s}) == 2


def test_processor_time_between_two_moments() -> None:
    samples = [Sample(0.0, {1: 5.0}), Sample(2.0, {1: 6.0, 2: 0.5}), Sample(9.0, {1: 99.0})]
    assert cpu_between(samples, 0.5, 3.0) == ClientCpu(cores=0.75, busiest=0.5)
    assert cpu_between(samples, 0.1, 0.2) is None


def test_processor_time_is_that_of_the_busiest_seconds() -> None:
    used = [0.0, 0.0, 0.0, 4.5, 9.0, 9.0, 9.0]
    samples = [Sample(5.0 * i, {1: cpu_s}) for i, cpu_s in enumerate(used)]
    assert cpu_between(samples, 0.0, 30.0) == ClientCpu(cores=0.9, busiest=0.9)


def test_a_failure_says_the_end_of_what_was_printed(tmp_path: Path) -> None:
    text = "import sys; print('no such model'); sys.exit(3)"
    failure = run(program(text), tmp_path / "log", 60, nothing)
    assert failure is not None
    assert re.search(r"ended with 3; see .*no such model", failure)


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="took over 1 s"):
        run(program("import time; time.sleep(60)"), tmp_path / "log", 1, nothing)


def test_ctrl_c_ends_it_and_comes_through(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"

    def interrupt() -> None:
        while not (log.exists() and log.read_text().strip()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(program(text), log, 60, nothing)
    thread.join()
    assert not psutil.pid_exists(int(log.read_text().split()[0]))


def test_ctrl_c_right_after_its_start_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anyone waits for it: while the thread that watches it starts."""

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    before = psutil.Process().children()
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(program("import time; time.sleep(60)"), tmp_path / "log", 60, nothing)
    assert psutil.Process().children() == before


def test_nothing_of_s2d_serve_is_imported() -> None:
    """The folder speaks HTTP only."""
    root = Path(__file__).parents[2]
    text = "import sys, loadtest.cli; sys.exit(any(m.startswith('s2d_serve') for m in sys.modules))"
    subprocess.run([sys.executable, "-c", text], cwd=root, check=True)
