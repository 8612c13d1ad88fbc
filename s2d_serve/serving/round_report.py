"""What is told of a lane's round: to the metrics, and to the traces of the requests in it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from s2d_serve.observability.meter import TargetMeter
from s2d_serve.observability.tracing import Trace, Work
from s2d_serve.serving.messages import VerifyReply


@dataclass(frozen=True, slots=True)
class RoundReport:
    """A round that was just read."""

    seconds: float
    """Since the last one was read, or since it was sent off."""
    reply: VerifyReply
    fallback: str | None
    """Why it had no draft, one of `FALLBACKS`; None: it had, or nobody wanted one."""

    def count(self, meter: TargetMeter) -> None:
        """Add it to the metrics."""
        draft_s = self.reply.draft_seconds if self.reply.draft_state == "ok" else None
        passes = [(result.num_tokens, result.seconds) for result in self.reply.results]
        meter.round(self.seconds, draft_s, passes)
        if self.fallback is not None:
            meter.fallbacks[self.fallback].inc()

    def trace(self, traces: Iterable[Trace]) -> None:
        """Write its spans into each of these traces."""
        reply = self.reply
        about = {"s2d.draft_state": reply.draft_state}
        whole = Work(time.time() - self.seconds, self.seconds, about)
        draft = None
        if reply.draft_state == "ok":
            draft = Work(reply.draft_started_s, reply.draft_seconds, {})
        sizes = {
            "s2d.num_passes": len(reply.results),
            "s2d.num_tokens": sum(result.num_tokens for result in reply.results),
        }
        verify_s = sum(result.seconds for result in reply.results)
        for trace in traces:
            trace.round(whole, draft, Work(reply.started_s, verify_s, sizes))
