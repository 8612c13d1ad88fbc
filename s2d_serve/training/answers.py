"""Training text that a target says itself: its answers to prompts, many at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.engine.messages import Outcome, Proposal, SequenceStart
from s2d_serve.engine.target import TargetModel
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.training.rows import Row


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How answers are made."""

    max_tokens: int
    num_top: int
    """Alternatives kept per token, for distillation; 0 keeps none."""
    temperature: float = 0.0


@dataclass(slots=True)
class _Answer:
    start: SequenceStart
    token_ids: list[int] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


def answer(
    target: TargetModel,
    checkpoint: Checkpoint,
    prompts: Iterable[tuple[str, str]],
    options: AnswerOptions,
) -> Iterator[Row]:
    """Rows of (key, prompt) pairs, as they are finished; all KV slots are kept busy.

    A prompt that leaves no room for an answer is passed over.
    """
    waiting = iter(prompts)
    live: dict[str, _Answer] = {}
    while True:
        while target.num_free_slots and (
            start := _next_start(target, checkpoint, waiting, options)
        ):
            target.open(start)
            live[start.sequence_id] = _Answer(start)
        if not live:
            return
        outcomes = target.step({key: Proposal(0) for key in live}).outcomes
        for key, outcome in outcomes.items():
            row = _taken(live[key], outcome)
            if row is not None:
                target.close(key)
                del live[key]
                yield row


def chat_tokens(tokenizer: PreTrainedTokenizerFast, prompt: str) -> tuple[int, ...]:
    """A user's message in the model's own template; a bare text where it has none."""
    if tokenizer.chat_template is None:
        return tuple(tokenizer(prompt)["input_ids"])
    turns = [{"role": "user", "content": prompt}]
    return tuple(
        tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def _next_start(
    target: TargetModel,
    checkpoint: Checkpoint,
    waiting: Iterator[tuple[str, str]],
    options: AnswerOptions,
) -> SequenceStart | None:
    for key, prompt in waiting:
        ids = chat_tokens(checkpoint.tokenizer, prompt)
        room = target.trunk.cache.capacity - len(ids)
        if ids and room > 0:
            params = SamplingParams(
                temperature=options.temperature,
                stop_token_ids=tuple(sorted(checkpoint.eos_token_ids)),
                seed=hash_seed(key),
            )
            limit = min(options.max_tokens, room)
            return SequenceStart(key, 0, ids, len(ids), params, limit, options.num_top or None)
    return None


def hash_seed(key: str) -> int:
    """A seed for each key, the same in every process."""
    return int.from_bytes(key.encode()[-8:], "little")


def _taken(answer: _Answer, outcome: Outcome) -> Row | None:
    """Add an outcome; the row, if it was the last."""
    answer.token_ids += outcome.token_ids
    answer.top += [entry.top for entry in outcome.logprobs]
    if outcome.finish_reason is None:
        return None
    start = answer.start
    return Row(
        (*start.token_ids, *answer.token_ids),
        start.num_prompt_tokens,
        start.sequence_id,
        tuple(answer.top),
    )
