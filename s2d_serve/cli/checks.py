"""What `s2d doctor` looks at: one function per subject, each a finding with what to do."""

import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from s2d_serve import cpu
from s2d_serve.cli.output import size
from s2d_serve.cli.ports import port_problem
from s2d_serve.cli.weights import models_of, sources_of, to_do
from s2d_serve.config import AppConfig, DraftConfig
from s2d_serve.deployment_file import DeploymentFile
from s2d_serve.engine.calibration import mismatch, read_calibration
from s2d_serve.engine.digests import cache_folder
from s2d_serve.engine.sources import describe
from s2d_serve.errors import ConfigError, S2DError, WeightsError
from s2d_serve.exposure import check_exposure, is_public
from s2d_serve.serving.keys import Keys

Level = Literal["ok", "warn", "fail"]

CONVERTED_SIZE = 4
"""A converted folder is at most so many times as large as a GGUF file of 4 bits per weight."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    message: str
    advice: str = ""
    """What to do, where something is to be done."""


def check_versions(python: str, requirements: Sequence[str]) -> Finding:
    """Installed libraries against the tested ranges.

    Args:
        python: the running version.
        requirements: as the package's metadata lists them, `requires-python` as "python ...".
    """
    wrong = []
    checked = [Requirement(text) for text in requirements]
    checked = [r for r in checked if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in checked:
        installed = python if requirement.name == "python" else _installed(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed or 'is missing'}")
    if wrong:
        return Finding(
            "fail",
            "versions",
            f"outside the tested ranges: {', '.join(wrong)}",
            "install into a fresh environment: `make serve` does, or `pip install -e .`",
        )
    return Finding("ok", "versions", f"Python {python} and {len(checked) - 1} libraries as tested")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_torch(config: AppConfig) -> Iterator[Finding]:
    """The build of torch and the hardware against the models' devices and types."""
    try:
        import torch  # seconds, and perhaps not installed
    except ImportError as error:
        yield Finding("fail", "torch", f"cannot be imported: {error}", "`pip install torch`")
        return
    models = dict(models_of(config))
    on_gpu = [name for name, model in models.items() if model.device != "cpu"]
    build = f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"
    if on_gpu and not torch.cuda.is_available():
        yield Finding(
            "fail",
            "torch",
            f"{build}: no GPU can be used, and {', '.join(on_gpu)} asks for one",
            "set `device: cpu`, or install a CUDA build of torch and the GPU's driver",
        )
    else:
        yield Finding("ok", "torch", build)
    slow = any(
        model.device == "cpu" and model.dtype == "bfloat16"
        for model in models.values()
        if not (isinstance(model, DraftConfig) and model.quantization != "none")
    )
    if slow and not cpu.has_bfloat16():
        yield Finding(
            "warn",
            "bfloat16",
            "this CPU has no arithmetic for it (AVX512-BF16, AMX or Arm's BF16)",
            "a pass over more tokens costs as many times more, so that no draft can pay: "
            "`dtype: auto` takes float32 here, faster with a draft and at twice the memory",
        )


def check_cores(config: AppConfig, num_cores: int) -> Finding:
    """What Ray is asked to set aside against the cores there are."""
    reserved = sum(model.num_cpus for _, model in models_of(config))
    if reserved > num_cores:
        return Finding(
            "fail",
            "cores",
            f"the models set {reserved:g} CPUs aside, and there are {num_cores}: Ray would wait",
            "lower num_cpus, or add a node to the cluster",
        )
    threads = max(model.num_threads for _, model in models_of(config))
    if threads > num_cores:
        return Finding(
            "warn",
            "cores",
            f"{threads} threads compute on {num_cores} cores",
            "lower num_threads; 0 takes every core",
        )
    return Finding("ok", "cores", f"{num_cores}")


def check_memory(config: AppConfig, available_bytes: int, total_bytes: int) -> Finding:
    """The estimate of `s2d plan` for the models on CPUs, against what there is."""
    try:
        from s2d_serve.cli.footprint import planned_models, service_bytes
    except ImportError as error:  # torch is missing or broken, as its own check says
        return Finding("warn", "memory", f"cannot be estimated: {error}", "`pip install torch`")
    models = [model for _, model in planned_models(config, fetch=False)]
    known = [model for model in models if not isinstance(model, S2DError)]
    needed = service_bytes(config) + sum(model.host_bytes for model in known)
    message = (
        f"about {size(needed)} needed, {size(available_bytes)} of {size(total_bytes)} available "
        "(`s2d plan` has the parts)"
    )
    if len(known) < len(models):
        message += f"; {len(models) - len(known)} models not counted: their sizes are not known yet"
    advice = "lower max_sequences or max_context, or serve fewer targets"
    if needed > total_bytes:
        return Finding("fail", "memory", message, advice)
    if needed > available_bytes:
        return Finding("warn", "memory", message, f"end other programs, or {advice}")
    return Finding("ok", "memory", message)


def check_weights(config: AppConfig) -> Iterator[Finding]:
    """Each set of weights: there, to be converted or fetched, or missing."""
    for model in sources_of(config).values():
        try:
            status = describe(model)
        except ConfigError as error:
            yield Finding("fail", "weights", str(error))
            continue
        if status.converted:
            yield Finding("ok", "weights", f"{model.source} ({size(status.num_bytes)})")
        else:
            level: Level = "warn" if status.present or status.kind == "hub" else "fail"
            yield Finding(level, "weights", f"{model.source} is not ready", to_do(status))


def check_draft(config: AppConfig) -> Iterator[Finding]:
    """The trained draft and the calibration, where the file names them."""
    draft = config.draft
    if draft is not None and draft.trained is not None:
        from s2d_serve.engine.trained import load_trained

        advice = "`s2d train` makes one; `trained` is looked for from the current folder"
        try:
            exits = load_trained(draft.trained).shape.exit_layers
            yield Finding("ok", "draft", f"{draft.trained} with exits at {list(exits)}")
        except WeightsError as error:
            yield Finding("fail", "draft", str(error), advice)
    if draft is not None and config.calibration is not None:
        try:
            problem = mismatch(read_calibration(config.calibration), config)
        except ConfigError as error:
            yield Finding("fail", "calibration", str(error), "`s2d calibrate` makes one")
            return
        if problem is None:
            yield Finding("ok", "calibration", str(config.calibration))
        else:
            advice = "`s2d calibrate` on this machine; until then the defaults adapt"
            yield Finding("warn", "calibration", f"not used: {problem}", advice)


def check_disk(config: AppConfig, free_bytes: int) -> Finding:
    """Room for the weights that are still to be converted."""
    needed = 0
    for model in sources_of(config).values():
        status = describe(model)
        if status.present and not status.converted:
            needed += CONVERTED_SIZE * status.num_bytes
    message = f"{size(free_bytes)} free for {cache_folder()}"
    if needed > free_bytes:
        advice = "free some, or let S2D_CACHE name a folder on another disk"
        return Finding("fail", "disk", f"{message}, conversion takes {size(needed)}", advice)
    return Finding("ok", "disk", message)


def check_exposed(deployment: DeploymentFile) -> Finding:
    """Who can reach the HTTP port."""
    host, auth = deployment.http.host, deployment.config.auth
    try:
        check_exposure(host, deployment.config)
        Keys(auth.api_keys_file)
    except ConfigError as error:
        problem, _, advice = str(error).partition(": ")
        return Finding("fail", "HTTP", problem, advice)
    where = f"listens at {host}, port {deployment.http.port}"
    if not is_public(host):
        return Finding("ok", "HTTP", f"{where}: this machine only")
    if auth.api_keys_file is None:
        advice = "let a proxy that checks who comes stand before it, or set args.auth.api_keys_file"
        return Finding("warn", "HTTP", f"{where}: open to all, as the file allows", advice)
    return Finding("ok", "HTTP", f"{where}: API keys are asked for")


def check_port(deployment: DeploymentFile) -> Finding:
    """Whether the HTTP port is free."""
    problem = port_problem(deployment.http.host, deployment.http.port)
    if problem is not None:
        return Finding("fail", "port", problem, "stop that, or change http_options.port")
    return Finding("ok", "port", f"{deployment.http.port} is free")


def check_ray(environment: Mapping[str, str]) -> Iterator[Finding]:
    """What Ray itself opens to the network."""
    yield Finding(
        "warn",
        "Ray's ports",
        "its control store, node manager and workers listen on all interfaces",
        "let a firewall keep all of Ray's ports from other machines than the cluster's own",
    )
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode in ("", "token"):
        how = "RAY_AUTH_MODE=token" if mode else "`serve run` turns it on for the cluster it starts"
        yield Finding("ok", "Ray's access", f"asks for a token: {how}")
    else:
        yield Finding(
            "warn",
            "Ray's access",
            f"RAY_AUTH_MODE is {mode}: whoever reaches Ray's ports can run any code",
            "set RAY_AUTH_MODE=token, or unset it",
        )


def free_bytes(folder: Path) -> int:
    """Free space where the folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def total_and_available_bytes() -> tuple[int, int]:
    """The machine's memory."""
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def num_cores() -> int:
    """Cores that threads of this process may run on."""
    return os.cpu_count() or 1
