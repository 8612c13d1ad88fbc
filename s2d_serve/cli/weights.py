"""`s2d models`: what a deployment file serves, and where the weights are."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from s2d_serve.cli.output import NOTES, RESULTS, size
from s2d_serve.config import AppConfig, DraftConfig, ModelConfig, TargetConfig
from s2d_serve.engine.sources import SourceStatus, describe, resolve
from s2d_serve.errors import UnknownModelError

Origin = tuple[str, str | None, str | None]


def target_config(config: AppConfig, name: str | None) -> TargetConfig:
    """A target of the deployment, by default its first.

    Raises: UnknownModelError if there is no such target.
    """
    found = config.targets.get(name or next(iter(config.targets)))
    if found is None:
        raise UnknownModelError(f"no target {name!r}; the file has {', '.join(config.targets)}")
    return found


def models_of(config: AppConfig) -> Iterator[tuple[str, ModelConfig]]:
    """Each model of the deployment by its name there: `targets.<name>`, `draft`."""
    for name, target in config.targets.items():
        yield f"targets.{name}", target
    if config.draft is not None:
        yield "draft", config.draft


def sources_of(config: AppConfig) -> dict[Origin, ModelConfig]:
    """One model for each set of weights, which several models may share."""
    return {(m.source, m.revision, m.sha256): m for _, m in models_of(config)}


def fetch(config: AppConfig) -> None:
    """Fetch and convert all weights, with progress on standard error.

    Raises: what `resolve` raises.
    """
    for model in sources_of(config).values():
        status = describe(model)
        if not status.converted and (status.present or status.kind == "hub"):
            verb = "converting" if status.present else "fetching"
            NOTES.print(f"{verb} {escape(model.source)}", soft_wrap=True)
        resolve(model)


def show(config: AppConfig) -> None:
    """Print the models, then their weights."""
    RESULTS.print(_models_table(config))
    for model in sources_of(config).values():
        status = describe(model)
        RESULTS.print()
        RESULTS.print(f"[bold]{escape(model.source)}[/]: {_state(status)}", soft_wrap=True)
        if status.present:
            RESULTS.print(f"  at     {escape(status.location)}", soft_wrap=True)
            RESULTS.print(f"  size   {size(status.num_bytes)}")
        if status.note:
            RESULTS.print(f"  to do  {escape(to_do(status))}", soft_wrap=True)


def to_do(status: SourceStatus) -> str:
    """What is wrong with a source and what helps."""
    fetches = status.kind == "hub" or (status.present and not status.converted)
    return f"{status.note}; `s2d models --fetch` does it now" if fetches else status.note


def _state(status: SourceStatus) -> str:
    if not status.present:
        return "[red]missing[/]"
    return "[green]ready[/]" if status.converted else "[yellow]to be converted[/]"


def _models_table(config: AppConfig) -> Table:
    table = Table()
    for column in ("model", "weights", "dtype", "context", "slots", "speculation"):
        table.add_column(column, overflow="fold")
    for name, target in config.targets.items():
        table.add_row(name, *_shared_columns(target), _pairing(target, config.draft))
    if config.draft is not None:
        exits = config.draft.exit_layers
        described = f"exits at layers {', '.join(map(str, exits))}" if exits else "one exit"
        table.add_row("(the draft)", *_shared_columns(config.draft), described)
    return table


def _shared_columns(model: TargetConfig | DraftConfig) -> tuple[str, str, str, str]:
    name = model.source.rstrip("/").rsplit("/", 1)[-1]
    dtype = model.dtype + (" of int8" if model.weight_rounding == "int8" else "")
    return escape(name), dtype, str(model.max_context), str(model.max_sequences)


def _pairing(target: TargetConfig, draft: DraftConfig | None) -> str:
    settings = target.speculation
    if draft is None or not settings.enabled:
        return "off"
    longest = f"{settings.max_draft_tokens} tokens"
    return f"up to {longest}" if settings.draft_length == "adaptive" else f"always {longest}"
