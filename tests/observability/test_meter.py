"""Counts of choices, and their sums over router replicas."""

from s2d_serve.observability.exposition import added
from s2d_serve.observability.meter import ChoiceMeter, Meter
from s2d_serve.serving.metrics_keeper import GONE_S, PUSH_S, MetricsKeeper
from tests.serving.scraped import total


class Clock:
    """Says what it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(num_tokens: int) -> Meter:
    """A router that has delivered so many tokens, and serves one sequence."""
    meter = Meter(["tiny"])
    meter.of("tiny").generation_tokens.inc(num_tokens)
    meter.of("tiny").running.inc()
    meter.set("s2d:replicas", 3, "tiny", "ready")
    return meter


def test_a_choice_is_counted_from_its_arrival_to_its_end() -> None:
    """TTFT once, then the gaps; the prompt once; the end once."""
    meter, clock = Meter(), Clock()
    choice = ChoiceMeter(meter.of("tiny"), 7, started=90.0, clock=clock)
    choice.delivered(3, 2, (2, 4, 4))
    clock.now = 104.0
    choice.delivered(1, 0, ())
    choice.finished("stop")
    choice.finished("abort")
    samples = meter.samples()
    expected = {
        "vllm:time_to_first_token_seconds_sum": 10,
        "vllm:inter_token_latency_seconds_sum": 4,
        "vllm:inter_token_latency_seconds_count": 1,
        "vllm:e2e_request_latency_seconds_sum": 14,
        "vllm:prompt_tokens_total": 7,
        "vllm:generation_tokens_total": 4,
        "s2d:rounds_total": 2,
        "vllm:spec_decode_num_drafts_total": 1,
        "vllm:spec_decode_num_draft_tokens_total": 3,
        "vllm:spec_decode_num_accepted_tokens_total": 2,
        "vllm:request_success_total": 1,
    }
    assert {name: total(samples, name, model_name="tiny") for name in expected} == expected
    assert total(samples, "s2d:exit_tokens_total", exit="4") == 2
    assert total(samples, "s2d:exit_accepted_tokens_total", exit="4") == 1
    positions = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [total(samples, positions, position=str(p)) for p in range(3)] == [1, 1, 0]


def test_an_aborted_choice_has_no_end_to_end_time() -> None:
    """Else impatient clients would make the service look fast."""
    meter = Meter()
    ChoiceMeter(meter.of("tiny"), 7, started=0.0).finished("abort")
    assert total(meter.samples(), "vllm:request_success_total", finished_reason="abort") == 1
    assert total(meter.samples(), "vllm:e2e_request_latency_seconds_count") == 0


def test_counts_of_routers_add_up_and_outlive_them() -> None:
    """Gauges of the dead do not count, and what all see alike is not added."""
    own, live, gone = (counted(n).samples() for n in (1, 10, 100))
    whole = added(own, [live], [gone])
    assert total(whole, "vllm:generation_tokens_total") == 111
    assert total(whole, "vllm:num_requests_running") == 2
    assert total(whole, "s2d:replicas") == 3


async def test_the_keeper_waits_for_all_routers_after_its_start() -> None:
    """A scrape in between would see counters fall."""
    fresh, settled = MetricsKeeper(), MetricsKeeper(settle_s=0.0)
    samples = counted(1).samples()
    assert await fresh.total("a", samples) is None
    await settled.push("b", samples)
    await settled.push("b", counted(5).samples())  # cumulative: the last one counts
    found = await settled.total("a", samples)
    assert found is not None
    assert total(found, "vllm:generation_tokens_total") == 6
    assert GONE_S > 2 * PUSH_S
