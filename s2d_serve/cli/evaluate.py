"""`s2d eval`: Spec-Bench style, in this process or against a running service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from s2d_serve.cli.output import NOTES, RESULTS
from s2d_serve.cli.train import machine
from s2d_serve.cli.weights import target_config
from s2d_serve.config import AppConfig, DraftConfig, ModelConfig, SpeculationConfig, TargetConfig
from s2d_serve.engine.assemble import load_drafter, load_target, one_exit, pair
from s2d_serve.engine.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_tokenizer,
    same_vocabulary,
    set_up_torch,
)
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.sources import resolve
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.engine.target import TargetModel
from s2d_serve.errors import ConfigError
from s2d_serve.evaluation.arms import TARGET_ONLY, Arm, EngineArm, HttpArm, Task, TransformersArm
from s2d_serve.evaluation.measurement import Measurement
from s2d_serve.evaluation.questions import Question
from s2d_serve.evaluation.report import Results, markdown, write_report
from s2d_serve.speculation.exits import exit_name
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.training.answers import chat_tokens

CONFIGURED = "s2d"
"""The arm that does what the deployment file says."""
NO_LOOKUP = "s2d, no suffix lookup"
LOOKUP_TOKENS = 10
"""What transformers' documentation takes for prompt lookup."""


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """How answers are made and which arms there are."""

    max_tokens: int
    temperature: float
    seed: int
    repeats: int
    fixed_exits: bool = False
    """An arm for each exit of the draft alone, and one without suffix lookup."""
    beside: tuple[Path, ...] = ()
    """Folders of trained drafts, such as one trained for a single exit (SFT): an arm for the last
    exit of each.
    """
    transformers: bool = False
    """Arms of transformers' own: generate, assisted by the draft's checkpoint, prompt lookup."""


def evaluate(
    config: AppConfig,
    target: str | None,
    questions: Sequence[Question],
    options: EvalOptions,
    output: Path,
    url: str | None,
    command: str,
) -> None:
    """Measure, and write the report to `output`.

    Raises:
        ConfigError: there is nothing to compare, or a prompt does not fit.
        S2DError: what loading models raises, or the service answers.
    """
    name = target or next(iter(config.targets))
    settings = target_config(config, name)
    if url is None:
        arms, checkpoint = _local_arms(config, name, settings, options)
        tokenizer, end_ids = checkpoint.tokenizer, tuple(sorted(checkpoint.eos_token_ids))
    else:
        arms = {
            TARGET_ONLY: HttpArm(url, name, is_speculative=False),
            CONFIGURED: HttpArm(url, name, is_speculative=True),
        }
        tokenizer, end_ids = load_tokenizer(resolve(settings)), ()
    kept, tasks = _tasks(tokenizer, end_ids, settings, questions, options)
    measurement = Measurement()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=NOTES) as progress:
        bar = progress.add_task("warming up", total=options.repeats * len(tasks) * len(arms))
        measurement.take(
            arms,
            tasks,
            options.repeats,
            lambda arm: progress.update(bar, description=arm, advance=1),
        )
    results: Results = measurement.results(kept)
    about = {
        "target": f"{name} ({settings.dtype})",
        "temperature": options.temperature,
        "output tokens": f"up to {options.max_tokens}",
        "prompts": f"{len(kept)} ({len(questions) - len(kept)} too long)",
        "repeats": options.repeats,
        "where": "HTTP, one client" if url else "in process",
        "machine": f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "command": command,
    }
    write_report(results, about, output)
    RESULTS.print(Markdown(markdown(results, about)))
    NOTES.print(f"{output} holds the report with its plots")


def _tasks(
    tokenizer: PreTrainedTokenizerFast,
    end_ids: tuple[int, ...],
    settings: TargetConfig,
    questions: Sequence[Question],
    options: EvalOptions,
) -> tuple[list[Question], list[Task]]:
    """The questions that fit in a KV slot, and what is asked."""
    kept: list[Question] = []
    tasks: list[Task] = []
    for i, question in enumerate(questions):
        ids = chat_tokens(tokenizer, question.text)
        if len(ids) + options.max_tokens <= settings.max_context:
            params = SamplingParams(
                temperature=options.temperature, stop_token_ids=end_ids, seed=options.seed + i
            )
            kept.append(question)
            tasks.append(Task(question.key, question.text, ids, params, options.max_tokens))
    if not tasks:
        raise ConfigError(
            f"no question fits: prompt and --max-tokens {options.max_tokens} exceed the target's "
            f"max_context of {settings.max_context}"
        )
    return kept, tasks


def _local_arms(
    config: AppConfig, name: str, settings: TargetConfig, options: EvalOptions
) -> tuple[dict[str, Arm], Checkpoint]:
    if config.draft is None or not settings.speculation.enabled:
        raise ConfigError(f"target {name!r} has no draft in this file: nothing to compare")
    one_slot = {"max_sequences": 1}
    draft_config = config.draft.model_copy(update=one_slot)
    for source in (settings, draft_config):
        resolve(source)  # it shows its own progress
    with NOTES.status("loading the models"):
        target, checkpoint = load_target(settings.model_copy(update=one_slot))
        drafter, draft_checkpoint = load_drafter(draft_config, {name: settings.speculation})
    difference = same_vocabulary(draft_checkpoint.tokenizer, checkpoint.tokenizer)
    if difference is not None:
        raise ConfigError(f"draft and target {name!r}: their tokenizers differ ({difference})")
    policies = {CONFIGURED: settings.speculation}
    if options.fixed_exits:
        policies |= _fixed_exits(settings.speculation, drafter.draft)
    pairings = {
        arm: pair(name, policy, drafter.draft.exit_layers, config.draft.thresholds)
        for arm, policy in policies.items()
    }
    shared = Drafter(drafter.draft, pairings)
    arms: dict[str, Arm] = {TARGET_ONLY: EngineArm(ReferenceLoop(target))}
    arms |= {arm: EngineArm(ReferenceLoop(target, shared, arm)) for arm in pairings}
    for folder in options.beside:
        other = draft_config.model_copy(update={"trained": folder})
        arms |= _last_exit(folder, other, settings.speculation, target)
    if options.transformers:
        arms |= _transformers_arms(settings, config.draft)
    return arms, checkpoint


def _fixed_exits(
    settings: SpeculationConfig, draft: SortedDraft
) -> Mapping[str, SpeculationConfig]:
    """The policy with each exit alone and with all of them, and no suffix lookup; lengths adapt as
    ever.
    """
    exits = {exit_name(n): one_exit(settings, draft.exit_layers, n) for n in draft.exit_layers}
    return {NO_LOOKUP: settings.model_copy(update={"suffix_lookup": False}), **exits}


def _last_exit(
    folder: Path, draft: DraftConfig, settings: SpeculationConfig, target: TargetModel
) -> dict[str, Arm]:
    """Another draft from the same checkpoint, its deepest exit alone."""
    with NOTES.status(f"loading {folder}"):
        other = load_drafter(draft, {})[0].draft
    exits = other.exit_layers
    arm = f"{folder.name}: {exit_name(exits[-1])}"
    pairing = pair(arm, one_exit(settings, exits, exits[-1]), exits, draft.thresholds)
    return {arm: EngineArm(ReferenceLoop(target, Drafter(other, {arm: pairing}), arm))}


def _transformers_arms(settings: TargetConfig, draft: DraftConfig) -> dict[str, Arm]:
    set_up_torch(settings)
    with NOTES.status("loading the models for transformers"):
        model = load_checkpoint(_plain(settings, settings)).model
        assistant = load_checkpoint(_plain(draft, settings)).model
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # untyped
    return {
        "generate": TransformersArm(model, {}),
        "generate, assisted": TransformersArm(model, {"assistant_model": assistant}),
        "generate, prompt lookup": TransformersArm(
            model, {"prompt_lookup_num_tokens": LOOKUP_TOKENS}
        ),
    }


def _plain(model: ModelConfig, like: TargetConfig) -> ModelConfig:
    """The checkpoint as it is, in the target's type."""
    fields = model.model_dump(include=set(ModelConfig.model_fields))
    return ModelConfig(**(fields | {"dtype": like.dtype}))
