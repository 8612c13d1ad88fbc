"""The commands and their options. What they do is in a file each, imported when it is asked for."""

import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from s2d_serve.api.fields import LOWEST_TEMPERATURE
from s2d_serve.cli.output import NOTES
from s2d_serve.deployment_file import load_deployment_file
from s2d_serve.errors import S2DError

DEFAULT_FILE = Path("deployments/s2d.yaml")


class _Commands(TyperGroup):
    """Ends a command that raises one of our errors with one line and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except S2DError as error:
            NOTES.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Several LLMs, faster, through one sorted draft.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[Path, typer.Argument(help="The deployment file.", metavar="FILE")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to say; - reads it from standard input.")],
    file: Annotated[Path, typer.Option("--file", "-f", help="The deployment file.")] = DEFAULT_FILE,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Who answers; the file's first by default.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Output tokens at most.", show_default="256, or what fits"),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=2, help="0: the likeliest token, always. HTTP's default is 1."),
    ] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="1: off.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = 0,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text.", show_default="random")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; repeatable.")] = None,
    speculation: Annotated[bool, typer.Option(help="Use the draft; the text is the same.")] = True,
    max_draft_tokens: Annotated[
        int | None, typer.Option(min=1, max=32, help="Longest proposal.", show_default="the file's")
    ] = None,
    exit_layer: Annotated[
        int | None, typer.Option(help="Draft with this exit only.", show_default="the file's rule")
    ] = None,
) -> None:
    """Answer a prompt here, without Ray.

    The text goes to standard output as it comes, statistics to standard error.
    """
    from s2d_serve.engine.calibration import calibrated

    config = calibrated(load_deployment_file(file).config)
    text = sys.stdin.read() if prompt == "-" else prompt
    # torch and transformers: seconds that --help need not wait for
    from s2d_serve.cli import generation
    from s2d_serve.speculation.params import SamplingParams

    params = SamplingParams(
        temperature=temperature if temperature >= LOWEST_TEMPERATURE else 0.0,
        top_p=top_p,
        top_k=top_k,
        seed=random.getrandbits(63) if seed is None else seed,
    )
    draft_use = generation.DraftUse(speculation, max_draft_tokens, exit_layer)
    engine = generation.load(config, target or next(iter(config.targets)), draft_use)
    job = generation.Job(text, raw, params, max_tokens, tuple(stop or ()))
    report = generation.stream(engine, job, sys.stdout)
    NOTES.print(generation.table(report))
    if report.finish_reason == "interrupted":
        raise typer.Exit(130)


@app.command()
def models(
    file: FileArgument = DEFAULT_FILE,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch and convert the weights now.")
    ] = False,
) -> None:
    """Show what a deployment file serves, and where its weights are."""
    from s2d_serve.cli import weights

    deployment = load_deployment_file(file)
    if fetch:
        weights.fetch(deployment.config)
    weights.show(deployment.config)


@app.command()
def doctor(file: FileArgument = DEFAULT_FILE) -> None:
    """Check whether this machine can serve a deployment file: exit status 1 if not."""
    from s2d_serve.cli import diagnosis

    if not diagnosis.show(diagnosis.examine(file)):
        raise typer.Exit(1)


@app.command()
def plan(
    file: FileArgument = DEFAULT_FILE,
    gpu_memory: Annotated[
        float, typer.Option(min=1, help="Memory of a GPU in GB (10^9 bytes).", metavar="GB")
    ] = 80.0,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
) -> None:
    """Reckon what a deployment file takes of memory and GPUs, before anything is loaded.

    Exit status 1 if something does not fit.
    """
    from s2d_serve.cli import checks
    from s2d_serve.cli import plan as planning  # seconds: it imports torch

    host_bytes, _ = checks.total_and_available_bytes()
    hardware = planning.Hardware(round(gpu_memory * planning.GB), gpus_per_node, host_bytes)
    if not planning.show(load_deployment_file(file).config, hardware):
        raise typer.Exit(1)


@app.command()
def serve(file: FileArgument = DEFAULT_FILE) -> None:
    """Check a deployment file, and `serve run` it.

    Weights are fetched first; it says when the service is ready.
    """
    from s2d_serve.cli import launch

    raise typer.Exit(launch.run(load_deployment_file(file)))
