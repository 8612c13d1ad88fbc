"""The deployment that remembers what each router replica counted.

It outlives router replicas, so that the service's counters do not fall when one of them dies; what
a dead one had not sent yet (`PUSH_S`) is lost. Where the keeper itself starts anew, it says nothing
until every router has sent its counts again.
"""

import time

from s2d_serve.observability.exposition import Samples, added

PUSH_S = 2.0
"""How often a router replica sends its counts."""
GONE_S = 4 * PUSH_S
"""A router replica that sends nothing for so long is gone."""


class MetricsKeeper:
    """Plain class; serving/app.py makes a deployment of it."""

    def __init__(self, settle_s: float = 2 * PUSH_S) -> None:
        """`settle_s`: by then every router has sent its counts."""
        self._seen: dict[str, tuple[float, Samples]] = {}
        self._complete_at = time.monotonic() + settle_s

    async def push(self, router: str, samples: Samples) -> None:
        """Take in what a router replica has counted since it started."""
        self._seen[router] = (time.monotonic(), samples)

    async def total(self, router: str, samples: Samples) -> Samples | None:
        """The counts of all, once this one's are taken in; None: some may still be missing."""
        await self.push(router, samples)
        now = time.monotonic()
        if now < self._complete_at:
            return None
        others = [entry for name, entry in self._seen.items() if name != router]
        return added(
            samples,
            [counts for seen_at, counts in others if now - seen_at <= GONE_S],
            [counts for seen_at, counts in others if now - seen_at > GONE_S],
        )
