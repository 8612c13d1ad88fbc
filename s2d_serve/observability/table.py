"""Every metric of the service, as data: name, kind, labels, buckets, help.

vLLM's names where vLLM has one, since dashboards and tools know them. `docs/METRICS.md` is this
table as a page. Counters only, rates are derived.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

NO_TARGET = "_none"
"""`model_name` of an error that names no target; no target can be called so."""

FINISHED = ("stop", "length", "abort")
"""Values of `finished_reason`."""
FALLBACKS = {
    "late": "the proposal did not come within `draft_patience_s`",
    "dead": "the draft died in this round",
    "lost": "the draft was late or died before, and has not answered since",
    "absent": "the sequences hold no place at any draft",
    "rest": "the draft said that the target is faster alone",
}
"""Values of `s2d:draft_fallback_total`'s `reason`."""
MIGRATIONS = {
    "round_failed": "the target's executor died in a round",
    "lease_ended": "the target's replica was to go and its time was up",
    "replica_died": "the target's replica died",
    "no_answer": "the target's replica died before it gave a place",
}
"""Values of `s2d:migrations_total`'s `reason`."""
REPLICA_STATES = ("ready", "silent")
"""Values of `s2d:replicas`' `state`: those that decode when asked, and those that do not answer."""

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROUND_TIMES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 20.0)
BATCH_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, and what it says."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""
    is_common: bool = False
    """All router replicas see the same value: it is not added up over them."""

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names that a scrape finds."""
        if self.kind == "histogram":
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "counter", ("model_name", *labels), help)


def _gauge(name: str, help: str, *labels: str, is_common: bool = False) -> Metric:
    return Metric(name, "gauge", ("model_name", *labels), help, is_common=is_common)


def _histogram(name: str, buckets: tuple[float, ...], help: str) -> Metric:
    return Metric(name, "histogram", ("model_name",), help, buckets)


METRICS = (
    _gauge("vllm:num_requests_running", "Sequences that hold a place at a replica of the target."),
    _gauge("vllm:num_requests_waiting", "Sequences that wait for a place at the target."),
    _gauge(
        "vllm:kv_cache_usage_perc",
        "Share (0 to 1) of the KV slots in use, all replicas together; a slot is reserved whole.",
        is_common=True,
    ),
    _counter("vllm:prompt_tokens_total", "Prompt tokens of requests whose first token came."),
    _counter("vllm:generation_tokens_total", "Output tokens delivered to clients."),
    _counter(
        "vllm:request_success_total",
        "Choices that ended; abort: its client hung up, or `total_s` was over.",
        "finished_reason",
    ),
    _histogram(
        "vllm:time_to_first_token_seconds",
        LATENCIES_S,
        "From a request's arrival to the first tokens of each of its choices.",
    ),
    _histogram(
        "vllm:inter_token_latency_seconds",
        LATENCIES_S,
        "Between two deliveries to one choice; a delivery is a round's committed tokens.",
    ),
    _histogram(
        "vllm:e2e_request_latency_seconds",
        LATENCIES_S,
        "From a request's arrival to the end of each of its choices, those cut off left out.",
    ),
    _counter(
        "vllm:spec_decode_num_drafts_total", "Rounds of a sequence with a non-empty proposal."
    ),
    _counter("vllm:spec_decode_num_draft_tokens_total", "Tokens in these proposals."),
    _counter("vllm:spec_decode_num_accepted_tokens_total", "Those of them that were delivered."),
    _counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        "Accepted tokens by their position in the proposal, from 0.",
        "position",
    ),
    _counter(
        "s2d:rounds_total", "Rounds of a sequence, each a target pass that delivered something."
    ),
    _counter(
        "s2d:exit_tokens_total",
        "Draft tokens by the exit layer that emitted them; 0: suffix lookup found them.",
        "exit",
    ),
    _counter("s2d:exit_accepted_tokens_total", "Accepted tokens by the same exit layer.", "exit"),
    _histogram(
        "s2d:round_seconds",
        ROUND_TIMES_S,
        "A round of a lane at its router: since the last one's end, or since it was sent off.",
    ),
    _histogram(
        "s2d:draft_seconds", ROUND_TIMES_S, "The draft's work in a round, from outcome to proposal."
    ),
    _histogram("s2d:verify_seconds", ROUND_TIMES_S, "A forward pass of the target in a round."),
    _histogram(
        "s2d:verify_batch_tokens", BATCH_TOKENS, "Tokens in such a pass, all sequences together."
    ),
    _counter(
        "s2d:draft_fallback_total",
        "Rounds of a lane that ran without the draft although a sequence may use it.",
        "reason",
    ),
    _counter(
        "s2d:migrations_total",
        "Sequences that were opened again because their target's replica was lost.",
        "reason",
    ),
    _counter(
        "s2d:rejected_total",
        f"Requests that were answered with an error, by its code; {NO_TARGET}: before it was known "
        "which target was meant.",
        "code",
    ),
    _gauge(
        "s2d:available",
        "1 if /ready calls the target (or the draft) ready, or idle: it starts when asked; else 0.",
        is_common=True,
    ),
    _gauge("s2d:replicas", "Replicas of targets and draft, by state.", "state", is_common=True),
    _gauge("s2d:draft_sequences", "Sequences with a draft slot, all targets.", is_common=True),
    _gauge(
        "s2d:draft_waiting",
        "Sequences that the draft knows and has no slot for.",
        is_common=True,
    ),
)

SAMPLE_NAMES = frozenset(name for metric in METRICS for name in metric.sample_names)
"""Every name that a scrape can find."""


def markdown() -> Iterator[str]:
    """The table's lines for `docs/METRICS.md`, and those of the histograms' buckets."""
    yield "| metric | kind | labels | what it says |"
    yield "|---|---|---|---|"
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"
    yield ""
    yield "| histogram | upper bounds of its buckets |"
    yield "|---|---|"
    for metric in METRICS:
        if metric.buckets:
            yield f"| `{metric.name}` | {', '.join(f'{bound:g}' for bound in metric.buckets)} |"
