"""The best exits, thresholds and lengths for a target: measured once, then searched.

A draft's token at a position depends on the target's text before it alone. So the exits are run
once over texts that the target wrote: whether each agrees with the target's next token, and how
confident it is. Any policy is then played out on that table, with costs measured on this machine;
given the table and the costs, the result is always the same.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d_serve.engine.cache import Row as CacheRow
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.heads import confidences
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.exits import NEVER
from s2d_serve.training.rows import Row

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, NEVER)
MIN_CONFIDENCES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10)
CONTEXT = 192
"""Cached tokens of the row on which costs are measured."""
SEVERAL = 5
"""Tokens of the pass from which the cost of further tokens is taken."""
TIMES = 7
"""Each cost is the median of so many."""


@dataclass(frozen=True, slots=True)
class Table:
    """What each exit would have drafted at each position of the target's texts."""

    agrees: Tensor
    """[N, E] bool: its likeliest token is the target's."""
    confidence: Tensor
    """[N, E] float32: how probable that token is to it."""
    offsets: tuple[int, ...]
    """Where each text begins, and the end."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds on this machine, for one sequence."""

    segment_s: tuple[float, ...]
    """Each segment of the draft, over one token."""
    more_s: tuple[float, ...]
    """Each segment, for each further token that it has yet to read."""
    head_s: tuple[float, ...]
    """Each exit's head."""
    verify_s: tuple[float, ...]
    """Target pass over 1, 2, ... tokens."""


@dataclass(frozen=True, slots=True, order=True)
class Policy:
    """Settings of a target's draft."""

    thresholds: tuple[float, ...]
    """One per exit but the deepest that is used."""
    min_confidence: float
    max_draft_tokens: int


@dataclass(frozen=True, slots=True)
class Found:
    """The best policy of some, and its expected tokens per second over the target's alone."""

    policy: Policy
    speedup: float


@torch.inference_mode()
def observe(draft: SortedDraft, rows: Sequence[Row]) -> Table:
    """Run all exits over the rows' learned tokens."""
    agrees, confidence, offsets = [], [], [0]
    trunk = draft.trunk
    for row in rows:
        batch = trunk.batch([CacheRow(0, 0, len(row.token_ids) - 1, row.num_prompt_tokens)])
        hidden = trunk.embed(row.token_ids[:-1])
        labels = torch.tensor(row.token_ids[row.num_prompt_tokens :])
        columns = []
        for exit_index, segment in enumerate(draft.segments):
            hidden = trunk.run(segment, hidden, batch)
            logits = draft.heads.logits(exit_index, hidden[row.num_prompt_tokens - 1 :])
            sure = confidences(logits)
            columns.append((torch.tensor(draft.heads.greedy(logits)) == labels, sure))
        agrees.append(torch.stack([agreed for agreed, _ in columns], 1))
        confidence.append(torch.stack([sure for _, sure in columns], 1))
        offsets.append(offsets[-1] + len(labels))
    return Table(torch.cat(agrees), torch.cat(confidence).float(), tuple(offsets))


@torch.inference_mode()
def measure_costs(draft: SortedDraft, target: Trunk) -> Costs:
    """Time segments, heads and target passes; nothing else should run beside it."""
    trunk = draft.trunk
    hidden = trunk.embed([0])

    def run_segment(index: int, num_tokens: int) -> Callable[[], object]:
        states = hidden.repeat(num_tokens, 1)
        return lambda: trunk.run(draft.segments[index], states, trunk.batch([_row(num_tokens)]))

    def run_head(index: int) -> Callable[[], object]:
        return lambda: draft.heads.logits(index, hidden)

    def verify(num_tokens: int) -> Callable[[], object]:
        ids = [0] * num_tokens

        def run() -> object:
            batch = target.batch([_row(num_tokens)])
            return target.logits(target.run(target.layers, target.embed(ids), batch))

        return run

    exits = range(len(draft.segments))
    one = [_seconds(run_segment(i, 1)) for i in exits]
    several = [_seconds(run_segment(i, SEVERAL)) for i in exits]
    return Costs(
        tuple(one),
        tuple(max(s - o, 0.0) / (SEVERAL - 1) for o, s in zip(one, several, strict=True)),
        tuple(_seconds(run_head(i)) for i in exits),
        tuple(_seconds(verify(n)) for n in range(1, LENGTHS[-1] + 2)),
    )


def search(table: Table, costs: Costs, progress: Callable[[int, int], None]) -> Found:
    """The best of all policies; of equally good ones the first."""
    candidates = list(_thresholds(table.agrees.shape[1]))
    best: Found | None = None
    for done, thresholds in enumerate(candidates):
        found = best_with(table, costs, thresholds)
        if best is None or found.speedup > best.speedup:
            best = found
        progress(done + 1, len(candidates))
    assert best is not None
    return best


def fixed_exits(table: Table, costs: Costs) -> dict[int, Found]:
    """The best with each exit alone, by its index."""
    exits = range(table.agrees.shape[1])
    return {i: best_with(table, costs, (NEVER,) * i) for i in exits}


def tokens_per_s(table: Table, costs: Costs, policy: Policy) -> float:
    """What a policy would give on these texts."""
    return _rate(_steps(table, costs, policy.thresholds), table.offsets, costs, policy)


def best_with(table: Table, costs: Costs, thresholds: tuple[float, ...]) -> Found:
    """The best length and confidence to go on at, for these thresholds."""
    steps = _steps(table, costs, thresholds)
    policies = [Policy(thresholds, sure, length) for sure in MIN_CONFIDENCES for length in LENGTHS]
    rates = [_rate(steps, table.offsets, costs, policy) for policy in policies]
    best = max(range(len(policies)), key=lambda i: rates[i])
    return Found(policies[best], rates[best] * costs.verify_s[0])


@dataclass(frozen=True, slots=True)
class _Steps:
    """The draft's step at each position under some thresholds."""

    depth: list[int]
    """Index of the exit that emits."""
    agrees: list[bool]
    confidence: list[float]
    seconds: list[float]
    """Of a step in which each segment reads one token."""


def _steps(table: Table, costs: Costs, thresholds: tuple[float, ...]) -> _Steps:
    deepest = len(thresholds)
    chosen = torch.full((len(table.agrees),), deepest)
    seconds = torch.zeros(len(chosen))
    undecided = torch.ones(len(chosen), dtype=torch.bool)
    for i in range(deepest + 1):
        is_tried = i == deepest or thresholds[i] <= 1
        seconds += undecided * (costs.segment_s[i] + is_tried * costs.head_s[i])
        if i < deepest:
            leaves = undecided & (table.confidence[:, i] >= thresholds[i])
            chosen[leaves] = i
            undecided &= ~leaves
    place = chosen[:, None]
    return _Steps(
        chosen.tolist(),
        table.agrees.gather(1, place)[:, 0].tolist(),
        table.confidence.gather(1, place)[:, 0].tolist(),
        seconds.tolist(),
    )


def _rate(steps: _Steps, offsets: Sequence[int], costs: Costs, policy: Policy) -> float:
    """Play the texts: propose, verify, commit.

    A draft that has erred goes on as it would have on the right text. A segment that is needed
    again first reads what it has missed.
    """
    total_s = 0.0
    for start, stop in itertools.pairwise(offsets):
        at = start
        read = [start - 1] * len(costs.segment_s)  # the prompt, but for its last token
        while at < stop:
            accepted, is_right, drafted = 0, True, 0
            while drafted < policy.max_draft_tokens and at + drafted < stop:
                i = at + drafted
                drafted += 1
                total_s += steps.seconds[i]
                for segment in range(steps.depth[i] + 1):
                    total_s += costs.more_s[segment] * (i - read[segment] - 1)
                    read[segment] = i
                is_right = is_right and steps.agrees[i]
                accepted += is_right
                if steps.confidence[i] < policy.min_confidence:
                    break
            total_s += costs.verify_s[drafted]
            read = [min(n, at + accepted) for n in read]
            at += accepted + 1
    return offsets[-1] / total_s


def _thresholds(num_exits: int) -> Iterator[tuple[float, ...]]:
    """Thresholds of all lengths: of each exit before the deepest that is used."""
    for deepest in range(num_exits):
        yield from itertools.product(THRESHOLDS, repeat=deepest)


def _row(num_tokens: int) -> CacheRow:
    return CacheRow(0, CONTEXT, num_tokens, CONTEXT)


def _seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
