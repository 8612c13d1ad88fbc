import threading
import time
from contextlib import nullcontext
from pathlib import Path

from s2d_serve.config import ModelConfig
from s2d_serve.serving.cores import CoreTurns, core_turns


def test_no_two_compute_at_once(tmp_path: Path) -> None:
    inside: list[str] = []
    overlaps = []

    def work(name: str) -> None:
        turns = CoreTurns(tmp_path)
        for _ in range(20):
            with turns:
                inside.append(name)
                time.sleep(0.001)
                overlaps.append(len(inside) > 1)
                inside.remove(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False] * 60


def test_a_busy_model_does_not_keep_another_one_out(tmp_path: Path) -> None:
    order: list[str] = []
    is_over = threading.Event()

    def be_busy() -> None:
        turns = CoreTurns(tmp_path)
        while not is_over.is_set():
            with turns:
                order.append("busy")
                time.sleep(0.005)

    busy = threading.Thread(target=be_busy)
    busy.start()
    turns = CoreTurns(tmp_path)
    for _ in range(10):
        time.sleep(0.012)
        with turns:
            order.append("other")
    is_over.set()
    busy.join()
    waits = "".join(name[0] for name in order).split("o")[1:-1]
    assert max(map(len, waits)) < 10, "a turn is 5 ms, and the other one asks every 12 ms"


def test_a_stopped_holder_is_waited_for_once(tmp_path: Path) -> None:
    stopped, turns = CoreTurns(tmp_path), CoreTurns(tmp_path, max_wait_s=0.3)
    stopped.__enter__()
    started = time.monotonic()
    with turns:
        assert 0.3 <= time.monotonic() - started < 0.6
    started = time.monotonic()
    for _ in range(5):
        with turns:
            pass
    assert time.monotonic() - started < 0.2
    stopped.__exit__()
    with turns:  # free again, and so taken: others wait
        other = CoreTurns(tmp_path, max_wait_s=0.3)
        started = time.monotonic()
        with other:
            assert time.monotonic() - started >= 0.3


def test_who_has_cores_or_a_device_of_its_own_waits_for_nobody() -> None:
    assert isinstance(core_turns(ModelConfig(source="x", num_threads=1)), nullcontext)
    assert isinstance(core_turns(ModelConfig(source="x", device="cuda")), nullcontext)
    assert isinstance(core_turns(ModelConfig(source="x")), CoreTurns)
