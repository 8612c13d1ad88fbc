"""The commands that make a draft and measure it, and their options."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from s2d_serve.cli.commands import DEFAULT_FILE, app
from s2d_serve.deployment_file import load_deployment_file
from s2d_serve.errors import ConfigError


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the draft.", metavar="FOLDER")],
    rows: Annotated[list[Path], typer.Option("--rows", help="From `s2d data`; repeatable.")],
    exits: Annotated[str, typer.Option(help="Layers of each sub-model, such as 2,4,8.")],
    file: Annotated[
        Path, typer.Option("--file", "-f", help="The deployment file whose draft is trained.")
    ] = DEFAULT_FILE,
    method: Annotated[
        str,
        typer.Option(help="heads: a frozen trunk; lora or full: SoFT, the trunk learns as well."),
    ] = "heads",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of the base to keep, such as 0,1,2,3,22,23.", show_default="the first ones"
        ),
    ] = None,
    keep_layers: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many layers; which ones is searched.", metavar="N"),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=2, help="Draftable token ids, the most frequent.")
    ] = None,
    mlp_size: Annotated[int, typer.Option(min=1, help="MLP width in each exit's head.")] = 512,
    lora_rank: Annotated[int, typer.Option(min=1)] = 16,
    teacher_weight: Annotated[
        float, typer.Option(min=0, max=1, help="1: learn the target's probabilities only.")
    ] = 0.5,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, show_default="1e-3; lora 2e-4; full 2e-5")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Learned tokens of a step.")] = 2048,
    ridge_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of the closed-form start; 0: none.")
    ] = 16384,
    seed: Annotated[int, typer.Option()] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 25,
) -> None:
    """Train a sorted draft; run it again to go on where it was cut off.

    Several GPUs: accelerate launch -m s2d_serve.cli train ...
    """
    from s2d_serve.cli.train import train as run
    from s2d_serve.training.settings import METHODS, TrainingSettings

    if method not in METHODS:
        raise ConfigError(f"--method {method}: give one of {', '.join(METHODS)}")
    if layers is not None and keep_layers is not None:
        raise ConfigError(
            f"--layers {layers} names layers, --keep-layers {keep_layers} searches for them: "
            "give one of the two"
        )
    settings = TrainingSettings(
        exit_layers=_numbers("--exits", exits),
        layers=keep_layers if layers is None else _numbers("--layers", layers),
        method=method,
        mlp_size=mlp_size,
        lora_rank=lora_rank,
        vocabulary_size=vocabulary,
        teacher_weight=teacher_weight,
        epochs=epochs,
        learning_rate=METHODS[method] if learning_rate is None else learning_rate,
        batch_tokens=batch_tokens,
        ridge_tokens=ridge_tokens,
        seed=seed,
    )
    command = shlex.join(["s2d", *sys.argv[1:]])
    run(load_deployment_file(file).config, tuple(rows), settings, output, save_every, command)


@app.command(name="eval")
def evaluate(
    output: Annotated[Path, typer.Argument(help="Folder for the report.", metavar="FOLDER")],
    prompts: Annotated[Path, typer.Option(help="Questions in Spec-Bench's format.")],
    file: Annotated[Path, typer.Option("--file", "-f", help="The deployment file.")] = DEFAULT_FILE,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="The file's first by default.")
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Only these; repeatable.", show_default="all")
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(min=1, help="Questions of each.", show_default="all")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Output tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Medians are over these.")] = 3,
    fixed_exits: Annotated[
        bool, typer.Option("--fixed-exits", help="Also each exit alone, and without suffix lookup.")
    ] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Also the last exit of this trained draft; repeatable.", metavar="DRAFT"),
    ] = None,
    transformers: Annotated[
        bool,
        typer.Option("--transformers", help="Also generate, assisted generation, prompt lookup."),
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="Measure a running service instead, such as http://...:8000.")
    ] = None,
) -> None:
    """Measure a target with its draft and without, side by side."""
    from s2d_serve.cli.evaluate import EvalOptions
    from s2d_serve.cli.evaluate import evaluate as run
    from s2d_serve.engine.calibration import calibrated
    from s2d_serve.evaluation.questions import read_questions

    if url is not None and (fixed_exits or beside or transformers):
        raise ConfigError(
            "--fixed-exits, --beside and --transformers run in this process: leave --url out"
        )
    questions = read_questions(prompts, tuple(category or ()), per_category)
    options = EvalOptions(
        max_tokens, temperature, seed, repeats, fixed_exits, tuple(beside or ()), transformers
    )
    command = shlex.join(["s2d", *sys.argv[1:]])
    config = calibrated(load_deployment_file(file).config)
    run(config, target, questions, options, output, url, command)


@app.command()
def calibrate(
    output: Annotated[Path, typer.Argument(help="File to write.", metavar="CALIBRATION")],
    file: Annotated[Path, typer.Option("--file", "-f", help="The deployment file.")] = DEFAULT_FILE,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="general, code, or a file; repeatable.", show_default="general"),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="Prompts of each.")] = 24,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Draws the built-in prompts.")] = 7919,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Evaluation prompts to stay away from; repeatable.")
    ] = None,
) -> None:
    """Measure, on this machine, how each target should use the draft.

    Nothing else should run beside it.
    """
    from s2d_serve.cli.calibrate import CalibrationOptions
    from s2d_serve.cli.calibrate import calibrate as run

    options = CalibrationOptions(
        tuple(prompts or ("general",)), number, max_tokens, seed, tuple(exclude or ())
    )
    run(load_deployment_file(file).config, options, output)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: give numbers with commas between them") from None


data = typer.Typer(no_args_is_help=True, help="Make training text for a sorted draft.")
app.add_typer(data, name="data")

OutputArgument = Annotated[
    Path, typer.Argument(help="File of rows to write, or to go on with.", metavar="ROWS")
]
FileOption = Annotated[Path, typer.Option("--file", "-f", help="The deployment file.")]
TargetOption = Annotated[
    str | None, typer.Option("--target", "-t", help="A target of the file.", show_default="first")
]
LengthOption = Annotated[int, typer.Option(min=16, help="Tokens of a row at most.")]


@data.command("answers")
def data_answers(
    output: OutputArgument,
    file: FileOption = DEFAULT_FILE,
    target: TargetOption = None,
    prompts: Annotated[
        str, typer.Option(help="general, code, or a file: a prompt a line, or JSON lines.")
    ] = "general",
    number: Annotated[int, typer.Option(min=1, help="Prompts to answer.")] = 1000,
    seed: Annotated[int, typer.Option(help="Draws the built-in prompts.")] = 0,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation prompts to stay away from; repeatable."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 256,
    max_context: Annotated[int, typer.Option(min=32, help="Prompt and answer.")] = 640,
    top: Annotated[
        int, typer.Option(min=0, max=64, help="Alternatives kept per token, to distil from.")
    ] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
) -> None:
    """Let a target answer prompts: what it says itself is the best text to learn it from."""
    from s2d_serve.cli.data import PromptChoice, write_answers
    from s2d_serve.cli.weights import target_config
    from s2d_serve.training.answers import AnswerOptions

    config = target_config(load_deployment_file(file).config, target)
    write_answers(
        config.model_copy(update={"max_context": max_context}),
        PromptChoice(prompts, number, seed, tuple(exclude or ())),
        AnswerOptions(max_tokens, top, temperature),
        batch,
        output,
    )


@data.command("sharegpt")
def data_sharegpt(
    output: OutputArgument,
    conversations: Annotated[Path, typer.Argument(help="JSON lines in ShareGPT's format.")],
    file: FileOption = DEFAULT_FILE,
    target: TargetOption = None,
    max_tokens: LengthOption = 1024,
) -> None:
    """Take conversations in ShareGPT's format."""
    from s2d_serve.cli.data import write_conversations
    from s2d_serve.cli.weights import target_config

    config = target_config(load_deployment_file(file).config, target)
    write_conversations(config, conversations, max_tokens, output)


@data.command("text")
def data_text(
    output: OutputArgument,
    texts: Annotated[list[Path], typer.Argument(help="Text or code files.")],
    file: FileOption = DEFAULT_FILE,
    target: TargetOption = None,
    max_tokens: LengthOption = 512,
) -> None:
    """Take plain text or code."""
    from s2d_serve.cli.data import write_documents
    from s2d_serve.cli.weights import target_config

    config = target_config(load_deployment_file(file).config, target)
    write_documents(config, texts, max_tokens, output)
