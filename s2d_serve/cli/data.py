"""`s2d data`: training text for a sorted draft, written as rows of token ids."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from s2d_serve.cli.output import NOTES
from s2d_serve.config import TargetConfig
from s2d_serve.engine.assemble import load_target
from s2d_serve.engine.checkpoint import load_tokenizer
from s2d_serve.engine.sources import resolve
from s2d_serve.errors import ConfigError
from s2d_serve.training.answers import AnswerOptions, answer
from s2d_serve.training.prompts import (
    KINDS,
    NearDuplicates,
    built_in_prompts,
    excluded_texts,
    read_prompts,
)
from s2d_serve.training.rows import Row, RowFile, vocabulary_sha256
from s2d_serve.training.texts import conversations, documents


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """Which prompts are answered."""

    source: str
    """A kind of built-in prompts, or a file."""
    number: int
    seed: int
    exclude: tuple[Path, ...]
    """Evaluation files: what says nearly the same as one of their texts is left out."""


def write_answers(
    config: TargetConfig, choice: PromptChoice, options: AnswerOptions, batch: int, output: Path
) -> None:
    """A target's own answers; goes on where an earlier run was cut off.

    Raises: ConfigError if prompts, excluded texts or the output file cannot be used.
    """
    prompts, num_dropped = chosen_prompts(choice)
    resolve(config)  # it shows its own progress
    with NOTES.status("loading the target"):
        target, checkpoint = load_target(config.model_copy(update={"max_sequences": batch}))
    with RowFile(output, vocabulary_sha256(checkpoint.tokenizer)) as file:
        missing = [(key, prompt) for key, prompt in prompts if key not in file.keys]
        if len(missing) < len(prompts):
            NOTES.print(f"{output} has {len(prompts) - len(missing)} of the answers already")
        _write(file, answer(target, checkpoint, missing, options), len(missing))
    NOTES.print(f"{num_dropped} prompts were left out: nearly the same as an excluded text")


def chosen_prompts(choice: PromptChoice) -> tuple[list[tuple[str, str]], int]:
    """(key, prompt) pairs, and how many more were left out for being in an evaluation file.

    Raises: ConfigError if a file cannot be read.
    """
    near = NearDuplicates(excluded_texts(choice.exclude))
    kept: list[tuple[str, str]] = []
    num_dropped = 0
    for number, prompt in enumerate(_all_prompts(choice)):
        if near.has(prompt):
            num_dropped += 1
        else:
            kept.append((f"{choice.source}:{choice.seed}:{number}", prompt))
        if len(kept) == choice.number:
            break
    return kept, num_dropped


def write_conversations(config: TargetConfig, path: Path, max_tokens: int, output: Path) -> None:
    """Rows of a ShareGPT file. Raises: ConfigError if it cannot be read so."""
    _check_files([path])
    tokenizer = load_tokenizer(resolve(config))
    with RowFile(output, vocabulary_sha256(tokenizer)) as file:
        _write(file, _new(file, conversations(path, tokenizer, max_tokens)), None)


def write_documents(
    config: TargetConfig, paths: Sequence[Path], max_tokens: int, output: Path
) -> None:
    """Rows of text files. Raises: ConfigError if one cannot be read."""
    _check_files(paths)
    tokenizer = load_tokenizer(resolve(config))
    with RowFile(output, vocabulary_sha256(tokenizer)) as file:
        _write(file, _new(file, documents(paths, tokenizer, max_tokens)), None)


def _all_prompts(choice: PromptChoice) -> Iterator[str]:
    if choice.source in KINDS:
        return built_in_prompts(choice.source, choice.seed)
    if not Path(choice.source).exists():
        raise ConfigError(
            f"--prompts {choice.source}: neither a file nor one of {', '.join(KINDS)}"
        )
    return islice(read_prompts(Path(choice.source)), choice.number)


def _check_files(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")


def _new(file: RowFile, rows: Iterable[Row]) -> Iterator[Row]:
    return (row for row in rows if row.key not in file.keys)


def _write(file: RowFile, rows: Iterable[Row], total: int | None) -> None:
    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[num_tokens]:,} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=NOTES) as progress:
        task = progress.add_task("rows", total=total, num_tokens=file.num_learned)
        for row in rows:
            file.add(row)
            progress.update(task, advance=1, num_tokens=file.num_learned)
    NOTES.print(f"{len(file.keys)} rows with {file.num_learned:,} tokens to learn from")
