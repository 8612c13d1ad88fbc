"""From outcomes to what a client reads: pieces of its choices, as they come."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from s2d_serve.api.logprobs import Candidate, ReportedToken
from s2d_serve.api.requests import GenerationRequest
from s2d_serve.api.responses import Choice
from s2d_serve.api.speculation import RoundDetails, RoundToken, SpeculationSummary
from s2d_serve.engine.messages import Outcome, TokenLogprobs
from s2d_serve.engine.text import Detokenizer, TextStream
from s2d_serve.observability.meter import ChoiceMeter
from s2d_serve.serving.router import Generation, Router
from s2d_serve.speculation.statistics import SpeculationStatistics


@dataclass(slots=True)
class ChoiceRun:
    """One choice on its way: its text so far, and the counts of what was delivered."""

    index: int
    generation: Generation
    request: GenerationRequest
    detokenizer: Detokenizer
    meter: ChoiceMeter
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    rounds: list[RoundDetails] = field(default_factory=list)
    """Empty where nobody asked for them."""

    async def pieces(self, router: Router) -> AsyncGenerator[Choice, None]:
        """The choice piece by piece; the last one has a finish reason.

        Raises: what `Router.run` raises.
        """
        text = TextStream(self.detokenizer, self.request.stop_strings)
        async with aclosing(router.run(self.generation)) as outcomes:
            async for outcome in outcomes:
                piece = self._piece(text, outcome)
                yield piece
                if piece.finish_reason is not None:
                    return

    def summary(self, seed: int) -> SpeculationSummary:
        """What speculation did for this choice."""
        counts = self.statistics
        return SpeculationSummary(
            seed=seed,
            num_rounds=counts.num_rounds,
            num_committed_tokens=counts.num_committed_tokens,
            num_draft_tokens=counts.num_draft_tokens,
            acceptance_histogram=tuple(counts.acceptance_histogram),
            exit_counts=counts.exit_counts,
            rounds=tuple(self.rounds) if self.request.speculation.detailed else None,
        )

    def _piece(self, text: TextStream, outcome: Outcome) -> Choice:
        first_token = text.num_tokens
        new_text = text.push(outcome.token_ids)
        kept = outcome.token_ids[: text.num_tokens - first_token]
        num_accepted = min(outcome.num_accepted, len(kept))
        self.statistics.record(len(kept), num_accepted, outcome.exits)
        self.meter.delivered(len(kept), num_accepted, outcome.exits)
        finish_reason = outcome.finish_reason
        stop_reason: str | int | None = text.stop
        if text.stop is not None:
            finish_reason = "stop"
        elif finish_reason is not None:
            new_text += text.finish()
            if finish_reason == "stop" and kept[-1] in self.generation.params.stop_token_ids:
                stop_reason = kept[-1]
        if finish_reason is not None:
            self.meter.finished(finish_reason)
        return Choice(
            self.index,
            new_text,
            finish_reason,
            stop_reason,
            self._reported(kept, outcome.logprobs, text.token_offsets[first_token:]),
            kept if self.request.return_token_ids else None,
            self._prompt_token_ids(first_token),
            self._details(outcome, num_accepted, kept),
        )

    def _details(
        self, outcome: Outcome, num_accepted: int, kept: Sequence[int]
    ) -> tuple[RoundDetails, ...] | None:
        if not self.request.speculation.detailed:
            return None
        details = RoundDetails(
            self._round_tokens(outcome.draft_token_ids),
            outcome.exits,
            num_accepted,
            self._round_tokens(kept),
            outcome.times.draft_s,
            outcome.times.verify_s,
            outcome.times.round_s,
        )
        self.rounds.append(details)
        return (details,)

    def _round_tokens(self, token_ids: Sequence[int]) -> tuple[RoundToken, ...]:
        special_ids = self.detokenizer.special_ids
        return tuple(
            RoundToken(token_id, self.detokenizer.raw(token_id), token_id in special_ids)
            for token_id in token_ids
        )

    def _prompt_token_ids(self, first_token: int) -> tuple[int, ...] | None:
        if first_token or not self.request.return_token_ids:
            return None
        return self.generation.prompt_token_ids

    def _reported(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], offsets: Sequence[int]
    ) -> tuple[ReportedToken, ...] | None:
        if self.request.logprobs_requested is None:
            return None
        return tuple(
            ReportedToken(
                self._candidate(token_id, entry.logprob),
                tuple(self._candidate(other, logprob) for other, logprob in entry.top),
                offset,
            )
            for token_id, entry, offset in zip(token_ids, logprobs, offsets, strict=False)
        )

    def _candidate(self, token_id: int, logprob: float) -> Candidate:
        return Candidate(self.detokenizer.raw(token_id), logprob)


async def merged(runs: Sequence[ChoiceRun], router: Router) -> AsyncGenerator[Choice, None]:
    """The pieces of all choices as they come; the first error ends them all."""
    pieces: asyncio.Queue[Choice | BaseException] = asyncio.Queue()

    async def follow(run: ChoiceRun) -> None:
        try:
            async with aclosing(run.pieces(router)) as own:
                async for piece in own:
                    pieces.put_nowait(piece)
        except Exception as error:
            pieces.put_nowait(error)

    tasks = [asyncio.create_task(follow(run)) for run in runs]
    try:
        num_live = len(runs)
        while num_live:
            piece = await pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            num_live -= piece.finish_reason is not None
            yield piece
    except (GeneratorExit, asyncio.CancelledError):
        for run in runs:
            run.meter.finished("abort")
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def gathered(pieces: AsyncIterator[Choice], num_choices: int) -> list[Choice]:
    """Whole choices from their pieces."""
    parts: list[list[Choice]] = [[] for _ in range(num_choices)]
    async for piece in pieces:
        parts[piece.index].append(piece)
    return [_joined(own) for own in parts]


def _joined(parts: Sequence[Choice]) -> Choice:
    first, last = parts[0], parts[-1]
    return replace(
        last,
        text="".join(part.text for part in parts),
        logprobs=None
        if first.logprobs is None
        else tuple(token for part in parts for token in part.logprobs or ()),
        token_ids=None
        if first.token_ids is None
        else tuple(token_id for part in parts for token_id in part.token_ids or ()),
        prompt_token_ids=first.prompt_token_ids,
        rounds=None
        if first.rounds is None
        else tuple(details for part in parts for details in part.rounds or ()),
    )
