"""AIPerf's exports and our results, made in code."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from loadtest.plan import Arm, Cell
from loadtest.prompts import OWN
from loadtest.results import About, CellResult, ClientCpu, Request, Speculation, Status
from loadtest.scenario import Scenario
from loadtest.workload import Planned

START_NS = 1_800_000_000_000_000_000


def scenario(**fields: Any) -> Scenario:
    """A closed loop of two clients, two repeats; `fields` replace what they name."""
    load = {"kind": "closed", "levels": [2], "requests_per_client": 2, "min_requests": 4}
    return Scenario.model_validate(
        {"description": "an example", "load": load, "repeats": 2, "max_tokens": 8} | fields
    )


def about(**fields: Any) -> About:
    """What was run, on a target named t; `fields` replace what they name."""
    values: dict[str, Any] = {
        "scenario_name": "example", "scenario": scenario(), "url": "http://x", "command": "run",
        "commit": None, "aiperf": None, "started": datetime.now().isoformat(), "machine": {},
        "models": ({"id": "t"},), "prompts": str(OWN),
    }  # fmt: skip
    return About(**values | fields)


def counts(drafted: Sequence[int], accepted: Sequence[int]) -> dict[str, Any]:
    """Speculation counts as a response has them: so many drafted and accepted in each round."""
    histogram = [sum(n == j for n in accepted) for j in range(max(accepted) + 1)]
    return {
        "mean_acceptance_length": 1 + sum(accepted) / len(accepted),
        "draft_acceptance_rate": sum(accepted) / sum(drafted),
        "acceptance_histogram": histogram,
        "num_spec_steps": len(drafted),
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(drafted),
        "num_rounds": len(drafted) + 1,
        "mean_accepted_tokens": (sum(accepted) + len(accepted) + 1) / (len(drafted) + 1),
        "exit_counts": {"0": 1, "4": sum(drafted) - 1},
        "seed": 7,
        "per_step_accepted": list(accepted),
        "per_step_drafted": list(drafted),
    }


def write_exports(folder: Path, lines: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """The two files that AIPerf writes, from pairs of lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, which in (("profile_export.jsonl", 0), ("profile_export_raw.jsonl", 1)):
        text = "".join(json.dumps(pair[which]) + "\n" for pair in lines)
        (folder / name).write_text(text, "utf-8")


def exported(
    planned: Planned,
    at_s: float,
    *,
    tokens: int = 5,
    phase: str = "on-0",
    speculation: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request that was sent `at_s` and took 0.2 s to the first of its tokens, 0.1 s to others."""
    start_ns = START_NS + round(at_s * 1e9)
    e2e_s = 0.2 + 0.1 * (tokens - 1)
    meta = {
        "x_request_id": f"{phase}-{planned.key}",
        "conversation_id": f"{phase}/{planned.key}",
        "request_start_ns": start_ns,
        "request_end_ns": start_ns + round(e2e_s * 1e9),
        "phase_name": phase,
        "was_cancelled": False,
    }
    metrics = {
        "time_to_first_token": {"value": 200.0, "unit": "ms"},
        "request_latency": {"value": e2e_s * 1000, "unit": "ms"},
        "inter_token_latency": {"value": 100.0, "unit": "ms"},
        "inter_chunk_latency": {"value": [100.0] * (tokens - 1), "unit": "ms"},
        "output_sequence_length": {"value": tokens, "unit": "tokens"},
        "input_sequence_length": {"value": 3, "unit": "tokens"},
    }
    chunks = [
        (0.2 + 0.1 * i, {"choices": [{"index": 0, "delta": {"content": "x"}}]})
        for i in range(tokens)
    ]
    last = {"choices": [], "metrics": {"speculative_decoding": speculation}}
    responses = [
        {"perf_ns": round(s * 1e9), "packets": [{"name": "data", "value": json.dumps(body)}]}
        for s, body in [*chunks, (e2e_s, last)]
    ]
    done = {"perf_ns": round(e2e_s * 1e9), "packets": [{"name": "data", "value": "[DONE]"}]}
    raw = {"metadata": meta, "status": 200, "responses": [*responses, done], "error": None}
    return {"metadata": meta, "metrics": metrics, "error": None}, raw


def failed(
    pair: tuple[dict[str, Any], dict[str, Any]], status: int | None, error: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same request with an error instead of an answer."""
    line, raw = pair
    return line | {"metrics": {}, "error": error}, raw | {
        "status": status,
        "responses": [],
        "error": error,
    }


def run(
    arm: Arm,
    repeat: int = 0,
    *,
    level: float = 2,
    tokens: int = 10,
    statuses: Sequence[Status] = ("ok", "ok"),
    **fields: Any,
) -> CellResult:
    """One run of a target named t: requests one after the other, a second each."""
    cell = Cell(targets=("t",), traffic="separate", level=level, arm=arm, repeat=repeat)
    drafted = Speculation(
        rounds=4, committed=tokens, steps=3, drafted=9, accepted=6, exits={"0": 2, "4": 7},
        drafted_by_position=(3, 3, 3), accepted_by_position=(3, 2, 1),
    )  # fmt: skip
    requests = [
        Request(
            target="t", category="qa", status=status, start_s=float(i), end_s=i + 1.0,
            ttft_s=0.1 * (i + 1), tpot_s=0.1, e2e_s=1.0, itl_s=(0.1,), output_tokens=tokens,
            speculation=drafted if arm == "on" else Speculation(rounds=tokens, committed=tokens),
        )
        if status == "ok"
        else Request(target="t", category="qa", status=status, start_s=float(i), end_s=i + 1.0)
        for i, status in enumerate(statuses)
    ]  # fmt: skip
    values: dict[str, Any] = {
        "cell": cell,
        "asked_rate": None,
        "requests": tuple(requests),
        "client_cpu": ClientCpu(cores=0.3, busiest=0.2),
    }
    return CellResult(**values | fields)


def undrafted(found: CellResult) -> CellResult:
    """The same run, but nothing was drafted in it."""
    alone = [
        r.model_copy(update={"speculation": r.speculation and Speculation(rounds=r.output_tokens)})
        for r in found.requests
    ]
    return found.model_copy(update={"requests": tuple(alone)})
