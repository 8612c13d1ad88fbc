"""AIPerf's exports, as version 0.13 writes them."""

import hashlib
from pathlib import Path

import pytest

from loadtest.exports import num_over, read_requests
from loadtest.generator import GeneratorError
from loadtest.plan import Cell
from loadtest.prompts import OWN, read_prompts
from loadtest.workload import Planned, planned
from tests.loadtest.examples import START_NS, counts, exported, failed, scenario, write_exports


@pytest.fixture
def requests() -> list[Planned]:
    load = {"kind": "burst", "levels": [2], "bursts": 3, "every_s": 2.0}
    cell = Cell(targets=("t",), traffic="separate", level=2, arm="on", repeat=0)
    return planned(scenario(load=load), cell, read_prompts(OWN))


def test_times_tokens_and_counts(tmp_path: Path, requests: list[Planned]) -> None:
    sent = exported(requests[0], 0.0, speculation=counts([3, 2, 3], [3, 0, 1]))
    write_exports(tmp_path, [exported(requests[1], -5.0, phase="warmup"), sent])
    (found,) = read_requests(tmp_path, {"on-0": requests})["on-0"]
    assert (found.target, found.status, found.category) == ("t", "ok", requests[0].prompt.category)
    assert found.start_s == START_NS / 1e9
    assert (found.ttft_s, found.tpot_s) == pytest.approx((0.2, 0.1))
    assert found.e2e_s == pytest.approx(0.6)
    assert found.itl_s == pytest.approx((0.1,) * 4)
    assert (found.prompt_tokens, found.output_tokens) == (3, 5)
    assert (found.key, found.text_digest) == ("r0", hashlib.sha256(b"xxxxx").hexdigest()[:16])
    assert found.speculation is not None
    assert (found.speculation.rounds, found.speculation.committed) == (4, 8)
    assert (found.speculation.steps, found.speculation.drafted) == (3, 8)
    assert found.speculation.accepted == 4
    assert found.speculation.exits == {"0": 1, "4": 7}
    assert found.speculation.drafted_by_position == (3, 3, 2)
    assert found.speculation.accepted_by_position == (2, 1, 1)


def test_latency_counts_from_the_intended_start(tmp_path: Path, requests: list[Planned]) -> None:
    at = [10.0, 10.0, 12.3, 12.0, 14.0, 14.1]  # intended: 0, 0, 2, 2, 4, 4
    write_exports(tmp_path, [exported(r, s) for r, s in zip(requests, at, strict=True)])
    found = read_requests(tmp_path, {"on-0": requests})["on-0"]
    lags = [request.lag_s for request in found]
    assert lags == pytest.approx([0, 0, 0, 0.3, 0, 0.1], abs=1e-6)
    assert found[3].ttft_s == pytest.approx(0.5, abs=1e-6)
    assert found[3].e2e_s == pytest.approx(0.9, abs=1e-6)
    assert found[3].tpot_s == pytest.approx(0.1)


def test_requests_go_to_their_phases(tmp_path: Path, requests: list[Planned]) -> None:
    """Of which each has a schedule's zero of its own."""
    sent = [
        *(exported(r, 100.0 + (r.scheduled_s or 0.0), phase="on-0") for r in requests[:3]),
        exported(requests[0], 1.0, phase="off-0"),
        exported(requests[1], 0.5, phase="off-0"),
    ]
    write_exports(tmp_path, sent)
    assert num_over(tmp_path) == 5
    assert num_over(tmp_path / "nowhere") == 0
    found = read_requests(tmp_path, {"off-0": requests, "on-0": requests, "off-1": requests})
    keys = {phase: [r.key for r in over] for phase, over in found.items()}
    assert keys == {"off-0": ["r1", "r0"], "on-0": ["r0", "r1", "r2"], "off-1": []}
    assert [r.lag_s for r in found["off-0"]] == pytest.approx([0.0, 0.5])
    assert [r.lag_s for r in found["on-0"]] == pytest.approx([0.0, 0.0, 0.0])


def test_what_aiperf_left_without_a_good_end_is_read(
    tmp_path: Path, requests: list[Planned]
) -> None:
    """Raw records in parts, the last lines cut off or not yet in both files."""
    write_exports(tmp_path, [exported(request, 0.1) for request in requests[:4]])
    (tmp_path / "raw_records").mkdir()
    *whole, last = (tmp_path / "profile_export_raw.jsonl").read_text("utf-8").splitlines(True)
    (tmp_path / "raw_records" / "a.jsonl").write_text(whole[0], "utf-8")
    (tmp_path / "raw_records" / "b.jsonl").write_text("".join(whole[1:]) + last[:50], "utf-8")
    (tmp_path / "profile_export_raw.jsonl").unlink()
    with (tmp_path / "profile_export.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"metadata": {"x_requ')
    found = read_requests(tmp_path, {"on-0": requests})["on-0"]
    assert [request.key for request in found] == ["r0", "r1", "r2"]


def test_errors_are_told_apart(tmp_path: Path, requests: list[Planned]) -> None:
    sent = [exported(request, 0.1 * i) for i, request in enumerate(requests)]
    gone = {"code": 499, "type": "RequestCancellationError", "message": "hung up"}
    lines = [
        failed(sent[0], 429, {"code": 429, "type": "TooMany", "message": "full"}),
        failed(sent[1], 503, {"code": 503, "type": "Unavailable", "message": "loading"}),
        failed(sent[2], 200, gone),
        failed(sent[3], None, {"code": None, "type": "ConnectionError", "message": "reset"}),
        failed(sent[4], 400, {"code": 400, "type": "BadRequest", "message": "no"}),
        sent[5],
    ]
    write_exports(tmp_path, lines)
    found = read_requests(tmp_path, {"on-0": requests})["on-0"]
    statuses = [request.status for request in found]
    assert statuses == ["429", "5xx", "cancelled", "failed", "failed", "ok"]
    assert [request.output_tokens for request in found] == [0, 0, 0, 0, 0, 5]
    assert found[1].error == "Unavailable: loading"


def test_exports_of_another_shape_are_an_error(tmp_path: Path, requests: list[Planned]) -> None:
    with pytest.raises(GeneratorError, match="cannot be read"):
        read_requests(tmp_path, {"on-0": requests})
    line, raw = exported(requests[0], 0.0)
    del line["metadata"]["request_start_ns"]
    write_exports(tmp_path, [(line, raw)])
    with pytest.raises(GeneratorError, match="request_start_ns"):
        read_requests(tmp_path, {"on-0": requests})
