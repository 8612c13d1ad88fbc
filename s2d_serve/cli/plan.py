"""`s2d plan`: what each deployment takes of memory and GPUs, and what to change where it does not
fit.

On CPUs, all models are reckoned on one machine with Ray and the router, and each may take what the
others leave; only ranks that STRICT_SPREAD parts have a machine each.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from rich.markup import escape
from rich.table import Table

from s2d_serve.cli.footprint import PlannedModel, planned_models, service_bytes
from s2d_serve.cli.output import RESULTS
from s2d_serve.config import AppConfig, DraftConfig, TargetConfig
from s2d_serve.errors import S2DError

GB = 1_000_000_000
MIN_CONTEXT = 16
"""The shortest `max_context` that a deployment file may ask for."""
MAX_SEQUENCES = 1024
"""The largest `max_sequences` that it may ask for."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is to serve on."""

    gpu_bytes: int
    """Memory of a GPU."""
    gpus_per_node: int
    host_bytes: int
    """Memory of a machine."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A model, and the memory that one rank of it may take."""

    model: PlannedModel
    available: int

    def fits(self, **changes: object) -> bool:
        """Whether a rank has enough, with these settings changed."""
        return self.model.changed(**changes).footprint().total <= self.available

    @property
    def max_context(self) -> int:
        """Longest context that fits at this `max_sequences`; 0 if none does."""
        return _largest(self.model.shape.max_positions, lambda n: self.fits(max_context=n))

    @property
    def max_sequences(self) -> int:
        """Most sequences that fit at this `max_context`; 0 if none does."""
        return _largest(MAX_SEQUENCES, lambda n: self.fits(max_sequences=n))

    def remedies(self) -> Iterator[str]:
        """Settings, in the deployment file's words, each of which alone makes it fit."""
        settings = self.model.settings
        if self.max_context >= MIN_CONTEXT:
            yield f"max_context: {self.max_context}"
        if self.max_sequences:
            yield f"max_sequences: {self.max_sequences}"
        if settings.dtype == "float32" and self.fits(dtype="bfloat16"):
            yield "dtype: bfloat16"
        for number in self.model.larger_splits:
            if self.fits(tensor_parallel_size=number):
                yield f"tensor_parallel_size: {number}"
                break


def replicas(settings: TargetConfig | DraftConfig) -> tuple[int, int]:
    """Fewest and most replicas of a deployment."""
    return settings.replicas.min, settings.replicas.max


def show(config: AppConfig, hardware: Hardware) -> bool:
    """Print the plan; False if something does not fit, or cannot be told."""
    models: list[PlannedModel] = []
    problems: list[str] = []
    for name, found in planned_models(config, fetch=True):
        if isinstance(found, S2DError):
            problems.append(f"{name}: {found}")
        else:
            models.append(found)
    placed = [Placed(model, _available(model, models, config, hardware)) for model in models]
    if placed:
        RESULTS.print(_table(placed, hardware))
        for line in _notes(models, config, hardware):
            RESULTS.print(line, soft_wrap=True)
    problems += [problem for one in placed for problem in _problems(one)]
    for problem in problems:
        RESULTS.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)
    return not problems


def _available(
    model: PlannedModel, models: Sequence[PlannedModel], config: AppConfig, hardware: Hardware
) -> int:
    """Memory for one rank: its share of a GPU, or what the other models leave of the machine."""
    if not model.is_on_cpu:
        return int(hardware.gpu_bytes * min(model.settings.num_gpus or 1, 1))
    others = sum(other.host_bytes for other in models if other is not model)
    return (hardware.host_bytes - service_bytes(config) - others) // model.num_ranks_per_machine


def _problems(placed: Placed) -> Iterator[str]:
    model = placed.model
    if not model.is_on_cpu and not model.settings.num_gpus:
        yield f"{model.name}: `num_gpus: 0` gives it no GPU; `device: cuda` needs `num_gpus: 1`"
    if placed.fits():
        return
    needed, available = model.footprint().total / GB, max(placed.available, 0) / GB
    remedies = "; ".join(placed.remedies())
    advice = f"each of these helps: {remedies}" if remedies else "no single setting helps"
    yield f"{model.name}: a rank needs {needed:.2f} GB, {available:.2f} GB are there; {advice}"


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, where every smaller one does too; or 0."""
    return bisect_left(range(1, limit + 1), True, key=lambda number: not fits(number))


def _nodes(model: PlannedModel, hardware: Hardware) -> tuple[int, int]:
    """Fewest and most nodes of a replica."""
    if model.placement_strategy == "STRICT_SPREAD":
        return model.num_ranks, model.num_ranks
    fewest = max(1, ceil(model.gpus_per_replica / hardware.gpus_per_node))
    return fewest, model.num_ranks if model.placement_strategy == "SPREAD" else fewest


def _table(placed: Sequence[Placed], hardware: Hardware) -> Table:
    """A column for each deployment."""
    table = Table()
    table.add_column("GB of a rank", no_wrap=True)
    for one in placed:
        table.add_column(one.model.name, justify="right", overflow="fold")
    for section in (_memory, _slots, _scale):
        columns = [section(one, hardware) for one in placed]
        for label in columns[0]:
            table.add_row(label, *(column[label] for column in columns))
        table.add_section()
    return table


def _memory(placed: Placed, hardware: Hardware) -> dict[str, str]:
    part = placed.model.footprint()
    sizes = {
        "weights": part.weights,
        "KV cache": part.kv_cache,
        "pass": part.forward_pass,
        "loading": part.loading,
        "runtime": part.runtime,
        "total": part.total,
        "there": max(placed.available, 0),
    }
    cells = {label: f"{num_bytes / GB:.2f}" for label, num_bytes in sizes.items()}
    return cells | {"fits": "[green]yes[/]" if placed.fits() else "[red]no[/]"}


def _slots(placed: Placed, hardware: Hardware) -> dict[str, str]:
    settings, shape = placed.model.settings, placed.model.shape
    return {
        "parameters": f"{shape.num_parameters / 1e9:.3f}e9",
        "dtype": _types(settings),
        "slots": f"{settings.max_sequences} x {settings.max_context}",
        "longest slots": f"{placed.max_context} of {shape.max_positions}",
        "most slots": str(placed.max_sequences),
    }


def _scale(placed: Placed, hardware: Hardware) -> dict[str, str]:
    model = placed.model
    fewest, most = replicas(model.settings)
    fewest_nodes, most_nodes = _nodes(model, hardware)
    gpus = most * model.gpus_per_replica
    return {
        "ranks": str(model.num_ranks),
        "placement": model.placement_strategy,
        "GPUs a replica": f"{model.gpus_per_replica:g}",
        "nodes a replica": _span(fewest_nodes, most_nodes),
        "replicas": _span(fewest, most),
        "GPUs at most": f"{gpus:g}",
        "nodes for them": f"{max(fewest_nodes, ceil(gpus / hardware.gpus_per_node))} or more",
    }


def _notes(models: Sequence[PlannedModel], config: AppConfig, hardware: Hardware) -> Iterator[str]:
    """How to read the table, and what it rests on."""
    yield "GB: 10^9 bytes. A rank: the largest, with embedding and LM head whole."
    yield "pass: a prompt chunk and every sequence's longest proposal in one forward pass."
    yield "loading: the weights at their largest, while they are brought into type and layout."
    yield "total: runtime, and the larger of weights + KV cache + pass and of loading."
    yield "longest slots, most slots: what fits, the number or the length of them as it is."
    if not all(model.is_on_cpu for model in models):
        gpus = sum(replicas(model.settings)[1] * model.gpus_per_replica for model in models)
        yield (
            f"GPUs: {gpus:g} for all deployments. Each has {hardware.gpu_bytes / GB:g} GB "
            f"(--gpu-memory), a node {hardware.gpus_per_node} of them (--gpus-per-node). "
            "Their runtime is assumed, not measured."
        )
    if any(model.is_on_cpu for model in models):
        yield (
            f"CPUs: this machine has {hardware.host_bytes / GB:.2f} GB. Ray, the router and the "
            f"replicas before the models take {service_bytes(config) / GB:.2f} of it, each model "
            "what the others leave."
        )


def _types(settings: TargetConfig | DraftConfig) -> str:
    if isinstance(settings, DraftConfig) and settings.quantization != "none":
        return f"{settings.dtype}, {settings.quantization}"
    return settings.dtype


def _span(fewest: int, most: int) -> str:
    return str(fewest) if fewest == most else f"{fewest} to {most}"
