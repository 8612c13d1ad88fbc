"""`s2d generate`: one prompt through a target of a deployment file, in this process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TextIO

from jinja2 import TemplateError
from rich.table import Table

from s2d_serve.cli.output import NOTES
from s2d_serve.cli.weights import target_config
from s2d_serve.config import AppConfig, DraftConfig, SpeculationConfig, TargetConfig
from s2d_serve.engine.assemble import exit_layers_of, load_drafter, load_target, one_exit
from s2d_serve.engine.checkpoint import Checkpoint, same_vocabulary
from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.messages import Outcome, SequenceStart
from s2d_serve.engine.sources import resolve
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.engine.text import Detokenizer, TextStream
from s2d_serve.errors import ConfigError, bad_request
from s2d_serve.speculation.exits import exit_name
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.statistics import SpeculationStatistics

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class DraftUse:
    """How the draft is used, where it is not as the deployment file says."""

    enabled: bool = True
    max_draft_tokens: int | None = None
    exit_layer: int | None = None
    """Draft with this sub-model only."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate."""

    prompt: str
    is_raw: bool
    """The prompt is continued as it is; else it is a user's message in a chat."""
    params: SamplingParams
    """Without the target's own end tokens."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Engine:
    """A target that is loaded, and its draft."""

    loop: ReferenceLoop
    checkpoint: Checkpoint
    max_context: int


@dataclass(slots=True)
class Report:
    """How it went. Tokens and rounds are counted as far as their text was wanted."""

    seed: int
    num_prompt_tokens: int
    is_speculative: bool
    ttft_s: float = 0.0
    total_s: float = 0.0
    finish_reason: Literal["stop", "length", "interrupted"] = "interrupted"
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)


def load(config: AppConfig, target: str, draft_use: DraftUse) -> Engine:
    """Load a target of the deployment and its draft, with one KV slot each.

    Raises:
        UnknownModelError: the file has no such target.
        ConfigError: the draft cannot be used as asked.
        S2DError: what loading a model raises.
    """
    settings = target_config(config, target).model_copy(update={"max_sequences": 1})
    draft_config = _draft_config(config, settings, draft_use)
    for source in (settings, draft_config):
        if source is not None:
            resolve(source)  # it shows its own progress
    with NOTES.status(f"loading {target}"):
        model, checkpoint = load_target(settings)
    drafter = None
    if draft_config is not None:
        with NOTES.status("loading the draft"):
            drafter = _load_drafter(draft_config, target, settings, draft_use, checkpoint)
    loop = ReferenceLoop(model, drafter, target)
    return Engine(loop, checkpoint, settings.max_context)


def stream(engine: Engine, job: Job, output: TextIO) -> Report:
    """Write the text as it comes; Ctrl-C ends it early.

    Raises:
        RequestError: the prompt is empty, has no template to go into, or is too long.
    """
    prompt = _tokens(engine, job)
    start = SequenceStart(
        "cli",
        0,
        prompt,
        len(prompt),
        replace(job.params, stop_token_ids=tuple(sorted(engine.checkpoint.eos_token_ids))),
        _max_tokens(engine, job, len(prompt)),
    )
    report = Report(job.params.seed, len(prompt), engine.loop.drafter is not None)
    started = time.perf_counter()
    try:
        for piece in _pieces(engine, job, start, report):
            output.write(piece)
            output.flush()
            report.ttft_s = report.ttft_s or time.perf_counter() - started
    except KeyboardInterrupt:
        report.finish_reason = "interrupted"
    report.total_s = time.perf_counter() - started
    output.write("\n")
    return report


def table(report: Report) -> Table:
    """The statistics for people."""
    counts = report.statistics
    num_tokens = counts.num_committed_tokens
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    grid.add_row("tokens", f"{report.num_prompt_tokens} in, {num_tokens} out; {_end(report)}")
    if num_tokens:
        per_s = num_tokens / report.total_s
        grid.add_row("speed", f"{per_s:.1f} tokens/s, the first after {report.ttft_s:.2f} s")
    if not report.is_speculative:
        grid.add_row("speculation", "off")
    elif not counts.num_draft_tokens:
        grid.add_row("speculation", "on, but drafting would not have paid: nothing was drafted")
    else:
        _add_speculation(grid, counts)
    grid.add_row("seed", str(report.seed))
    return grid


def _add_speculation(grid: Table, counts: SpeculationStatistics) -> None:
    positions = zip(counts.accepted_by_position, counts.drafted_by_position, strict=True)
    by_position = " ".join(f"{accepted / drafted:.2f}" for accepted, drafted in positions)
    exits = ", ".join(f"{exit_name(n)}: {k}" for n, k in sorted(counts.exit_counts.items()))
    grid.add_row(
        "speculation",
        f"{counts.mean_accepted_tokens:.2f} tokens per round, the target's own included (MAT), "
        f"in {counts.num_rounds} rounds",
    )
    grid.add_row(
        "accepted",
        f"{counts.num_accepted_tokens} of {counts.num_draft_tokens} drafted; "
        f"share by position: {by_position}",
    )
    grid.add_row("exits", exits)


def _end(report: Report) -> str:
    match report.finish_reason:
        case "stop":
            return "the model ended, or a stop string came"
        case "length":
            return "cut at the limit"
        case "interrupted":
            return "interrupted"


def _pieces(engine: Engine, job: Job, start: SequenceStart, report: Report) -> Iterator[str]:
    """The text piece by piece; fills the report."""
    text = TextStream(Detokenizer(engine.checkpoint.tokenizer), job.stop)
    for _, outcome in engine.loop.generate([start]):
        num_before = text.num_tokens
        piece = text.push(outcome.token_ids)
        if outcome.token_ids:
            _count(report.statistics, outcome, text.num_tokens - num_before)
        if text.stop is not None:
            report.finish_reason = "stop"
            yield piece
            return
        if outcome.finish_reason is not None:
            report.finish_reason = outcome.finish_reason
            piece += text.finish()
        if piece:
            yield piece


def _count(counts: SpeculationStatistics, outcome: Outcome, num_kept: int) -> None:
    counts.record(num_kept, min(outcome.num_accepted, num_kept), outcome.exits)


def _tokens(engine: Engine, job: Job) -> tuple[int, ...]:
    """The prompt's token ids, in the model's own template unless it is raw."""
    tokenizer = engine.checkpoint.tokenizer
    if job.is_raw:
        ids = tokenizer(job.prompt)["input_ids"]
    elif tokenizer.chat_template is None:
        raise bad_request("the model has no chat template; use --raw")
    else:
        messages = [{"role": "user", "content": job.prompt}]
        try:
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise bad_request(f"the model's chat template refuses: {error}") from None
    if not ids:
        raise bad_request("the prompt has no tokens; give at least one")
    return tuple(ids)


def _max_tokens(engine: Engine, job: Job, num_prompt_tokens: int) -> int:
    room = engine.max_context - num_prompt_tokens
    if room < (job.max_tokens or 1):
        raise bad_request(
            f"{num_prompt_tokens} prompt tokens and {job.max_tokens or 1} of output exceed the "
            f"target's max_context of {engine.max_context}"
        )
    return job.max_tokens or min(DEFAULT_MAX_TOKENS, room)


def _draft_config(
    config: AppConfig, target: TargetConfig, draft_use: DraftUse
) -> DraftConfig | None:
    if config.draft is None or not draft_use.enabled or not target.speculation.enabled:
        return None
    return config.draft.model_copy(update={"max_sequences": 1})


def _load_drafter(
    draft: DraftConfig, name: str, target: TargetConfig, draft_use: DraftUse, checkpoint: Checkpoint
) -> Drafter:
    speculation = _speculation(target.speculation, draft, draft_use)
    drafter, draft_checkpoint = load_drafter(draft, {name: speculation})
    difference = same_vocabulary(draft_checkpoint.tokenizer, checkpoint.tokenizer)
    if difference is not None:
        raise ConfigError(
            f"the draft cannot serve target {name!r}: their tokenizers differ ({difference}); "
            "use --no-speculation"
        )
    return drafter


def _speculation(
    settings: SpeculationConfig, draft: DraftConfig, draft_use: DraftUse
) -> SpeculationConfig:
    if draft_use.max_draft_tokens is not None:
        settings = settings.model_copy(update={"max_draft_tokens": draft_use.max_draft_tokens})
    if draft_use.exit_layer is not None:
        exits = exit_layers_of(draft) or ()
        if draft_use.exit_layer not in exits:
            raise ConfigError(
                f"--exit-layer {draft_use.exit_layer}: the draft's exits are {list(exits)}"
            )
        settings = one_exit(settings, exits, draft_use.exit_layer)
    return settings
