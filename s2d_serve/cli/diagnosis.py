"""`s2d doctor`: all checks of a deployment file on this machine, and how they are shown."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.markup import escape

from s2d_serve.cli import checks
from s2d_serve.cli.checks import Finding
from s2d_serve.cli.output import RESULTS
from s2d_serve.deployment_file import DeploymentFile, load_deployment_file
from s2d_serve.engine.digests import cache_folder
from s2d_serve.errors import ConfigError

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(file: Path) -> Iterator[Finding]:
    """Every finding, as it is made."""
    metadata = importlib.metadata.metadata("s2d-serve")
    requirements = metadata.get_all("Requires-Dist") or []
    yield checks.check_versions(
        platform.python_version(), [f"python {metadata['Requires-Python']}", *requirements]
    )
    try:
        deployment = load_deployment_file(file)
    except ConfigError as error:
        yield Finding("fail", "file", str(error))
    else:
        yield Finding("ok", "file", str(file))
        yield from _examine_deployment(deployment)
    yield from checks.check_ray(os.environ)


def _examine_deployment(deployment: DeploymentFile) -> Iterator[Finding]:
    config = deployment.config
    total, available = checks.total_and_available_bytes()
    yield from checks.check_weights(config)
    yield from checks.check_draft(config)
    yield from checks.check_torch(config)
    yield checks.check_cores(config, checks.num_cores())
    yield checks.check_memory(config, available, total)
    yield checks.check_disk(config, checks.free_bytes(cache_folder()))
    yield checks.check_exposed(deployment)
    yield checks.check_port(deployment)


def show(findings: Iterable[Finding]) -> bool:
    """Print findings as they come; False if something fails."""
    levels = []
    for finding in findings:
        levels.append(finding.level)
        style = STYLES[finding.level]
        RESULTS.print(
            f"[{style}]{finding.level:4}[/] [bold]{finding.subject}[/]: {escape(finding.message)}",
            soft_wrap=True,
        )
        if finding.advice:
            RESULTS.print(f"     {escape(finding.advice)}", soft_wrap=True)
    return "fail" not in levels
