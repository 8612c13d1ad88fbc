"""From AIPerf's per-request exports to our requests.

`profile_export.jsonl` has the times, `profile_export_raw.jsonl` the status and the last chunk:
AIPerf keeps of its speculation counts what vLLM sends, and drops rounds and exits. It makes the
second file at its end, of those in `raw_records`; where it came to no good end, these are there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest.generator import GeneratorError
from loadtest.results import Request, Speculation, Status
from loadtest.workload import Planned, by_id

TIMES, RAW = "profile_export.jsonl", "profile_export_raw.jsonl"
RAW_PARTS = "raw_records/*.jsonl"


def read_requests(
    folder: Path, phases: Mapping[str, Sequence[Planned]]
) -> dict[str, list[Request]]:
    """The requests of each phase that were over, in the order in which they were sent.

    Args:
        folder: AIPerf's artifacts.
        phases: what it was given.

    Raises: GeneratorError if the exports are missing or not as AIPerf 0.13 writes them.
    """
    try:
        parts = [folder / RAW] if (folder / RAW).exists() else sorted(folder.glob(RAW_PARTS))
        raw = {line["metadata"]["x_request_id"]: line for part in parts for line in _lines(part)}
        lines = sorted(
            (
                line
                for line in _lines(folder / TIMES)
                if line["metadata"]["x_request_id"] in raw  # else it was written just now
            ),
            key=lambda line: line["metadata"]["request_start_ns"],
        )
        return {
            phase: _requests(
                [line for line in lines if line["metadata"]["phase_name"] == phase],
                raw,
                by_id(phase, planned),
            )
            for phase, planned in phases.items()
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise GeneratorError(f"{folder}: AIPerf's exports cannot be read: {error!r}") from None


def num_over(folder: Path) -> int:
    """How many requests are over by now, warm-up included, while AIPerf runs."""
    try:
        return (folder / TIMES).read_bytes().count(b"\n")
    except OSError:
        return 0


def _requests(
    lines: Sequence[Any], raw: Mapping[str, Any], planned: Mapping[str, Planned]
) -> list[Request]:
    offsets = [_offset_s(line, planned) for line in lines]
    least = min((o for o in offsets if o is not None), default=0.0)
    return [
        _request(
            line,
            raw[line["metadata"]["x_request_id"]],
            planned[line["metadata"]["conversation_id"]],
            None if offset is None else offset - least,
        )
        for line, offset in zip(lines, offsets, strict=True)
    ]


def _lines(path: Path) -> Iterator[Any]:
    """Those that are whole: the last one may have been cut off."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _offset_s(line: Any, planned: Mapping[str, Planned]) -> float | None:
    """Seconds between the schedule's zero, wherever that was, and where this one puts it."""
    meta = line["metadata"]
    scheduled_s = planned[meta["conversation_id"]].scheduled_s
    return None if scheduled_s is None else meta["request_start_ns"] / 1e9 - scheduled_s


def _request(line: Any, raw: Any, planned: Planned, lag_s: float | None) -> Request:
    meta, metrics = line["metadata"], line["metrics"]
    status, error = _status(meta, raw, line.get("error"))
    late = lag_s or 0.0
    seconds = {name: _seconds(metrics, name) for name in metrics}
    ttft, e2e = seconds.get("time_to_first_token"), seconds.get("request_latency")
    tokens = int(metrics.get("output_sequence_length", {}).get("value", 0))
    is_ok = status == "ok" and ttft is not None and e2e is not None
    return Request(
        key=planned.key,
        target=planned.target,
        category=planned.prompt.category,
        status=status,
        error=error,
        start_s=meta["request_start_ns"] / 1e9,
        end_s=meta["request_end_ns"] / 1e9,
        lag_s=lag_s,
        ttft_s=ttft + late if is_ok and ttft is not None else None,
        tpot_s=seconds.get("inter_token_latency") if is_ok and tokens > 1 else None,
        e2e_s=e2e + late if is_ok and e2e is not None else None,
        itl_s=_gaps(raw) if is_ok else (),
        prompt_tokens=int(metrics.get("input_sequence_length", {}).get("value", 0)),
        output_tokens=tokens if is_ok else 0,
        text_digest=_digest(raw) if is_ok else None,
        speculation=_speculation(raw),
    )


def _seconds(metrics: Any, name: str) -> float | None:
    value = metrics[name]
    if value["unit"] not in ("ms", "s") or isinstance(value["value"], list):
        return None
    return float(value["value"]) * (0.001 if value["unit"] == "ms" else 1.0)


def _status(meta: Any, raw: Any, error: Any) -> tuple[Status, str | None]:
    code = raw.get("status") or (error or {}).get("code")
    if error is None:
        return "ok", None
    says = f"{error.get('type')}: {error.get('message')}"
    if meta.get("was_cancelled") or error.get("code") == 499:
        return "cancelled", says
    if code == 429:
        return "429", says
    return ("5xx" if code and 500 <= int(code) < 600 else "failed"), says


def _chunks(raw: Any) -> Iterator[tuple[int, Any]]:
    """(perf_ns, body) of each event with a JSON body."""
    for response in raw["responses"]:
        for packet in response.get("packets", ()):
            if packet["name"] == "data" and str(packet["value"]).startswith("{"):
                yield response["perf_ns"], json.loads(packet["value"])


def _pieces(raw: Any) -> Iterator[tuple[int, str]]:
    """(perf_ns, text) of each event that brings some."""
    for time_ns, body in _chunks(raw):
        for choice in body.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                yield time_ns, text


def _gaps(raw: Any) -> tuple[float, ...]:
    times = [time_ns for time_ns, _ in _pieces(raw)]
    return tuple((b - a) / 1e9 for a, b in pairwise(times))


def _digest(raw: Any) -> str:
    whole = "".join(text for _, text in _pieces(raw))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _speculation(raw: Any) -> Speculation | None:
    counts: Any = None
    for _, body in _chunks(raw):
        counts = (body.get("metrics") or {}).get("speculative_decoding") or counts
    if counts is None:
        return None
    rounds = int(counts["num_rounds"])
    drafted = counts.get("per_step_drafted") or ()
    accepted = counts.get("per_step_accepted") or ()
    longest = max(drafted, default=0)
    return Speculation(
        rounds=rounds,
        committed=round(counts["mean_accepted_tokens"] * rounds),
        steps=counts["num_spec_steps"],
        drafted=counts["num_draft_tokens"],
        accepted=counts["num_accepted_draft_tokens"],
        exits=counts.get("exit_counts") or {},
        drafted_by_position=tuple(sum(n > j for n in drafted) for j in range(longest)),
        accepted_by_position=tuple(sum(n > j for n in accepted) for j in range(longest)),
    )
