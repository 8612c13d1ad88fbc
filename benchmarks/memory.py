"""Memory of each model of a deployment file, measured beside what `s2d plan` reckons.

    python -m benchmarks.memory deployments/s2d.yaml

Each model is loaded in a process of its own, which fills all KV slots and runs a pass as large as
the settings allow. Of mapped weight files only those pages count that are read after loading: the
others are file cache, which the kernel takes back when memory is short. For Linux and models on the
CPU, unsharded.
"""

import argparse
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from s2d_serve.cli.footprint import PlannedModel, planned_models
from s2d_serve.config import AppConfig, TargetConfig
from s2d_serve.deployment_file import load_deployment_file
from s2d_serve.engine.assemble import load_drafter, load_target
from s2d_serve.engine.cache import Row
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.messages import Proposal, SequenceStart
from s2d_serve.engine.target import TargetModel
from s2d_serve.engine.trunk import Trunk
from s2d_serve.errors import S2DError
from s2d_serve.speculation.exits import ExitPolicy
from s2d_serve.speculation.params import SamplingParams

GB = 1e9
PROCESS = psutil.Process()
CLEAR_REFS = Path("/proc/self/clear_refs")
FORGET_REFERENCES = "1"
"""Written there, pages count as referenced only once they are read again."""
SAMPLE_S = 0.002
"""Time between two looks at the process's size while its peak is searched."""
BLOCK = 4096
"""Tokens looked up together."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process that holds a model, in bytes."""

    loaded: int
    """Everything before there is a KV cache."""
    kv_cache: int
    forward_pass: int
    loading: int
    """The most that was taken while the model was loaded."""

    @property
    def total(self) -> int:
        """The most that is taken at any time."""
        return max(self.loaded + self.kv_cache + self.forward_pass, self.loading)


def main() -> None:
    """Measure all models, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    config = load_deployment_file(parser.parse_args().file).config
    print("GB, planned / measured")
    for name in [*config.targets, *(["draft"] if config.draft else [])]:
        planned, measured = measure_in_process(config, name)
        parts = [
            f"{part} {getattr(planned, part) / GB:.3f} / {getattr(measured, part) / GB:.3f}"
            for part in ("loaded", "kv_cache", "forward_pass", "loading", "total")
        ]
        ratio = planned.total / measured.total
        print(f"{name}: {', '.join(parts)}, ratio {ratio:.2f}", flush=True)


def measure_in_process(config: AppConfig, name: str) -> tuple[Memory, Memory]:
    """What `measure` gives in a process that holds nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, config, name).result()


def measure(config: AppConfig, name: str) -> tuple[Memory, Memory]:
    """Planned and measured memory of one model that is loaded into this process."""
    model = dict(planned_models(config, fetch=True))[name]
    if isinstance(model, S2DError):
        raise model
    with anonymous_peak() as loading:
        run = _loaded(config, model)
    loaded = anonymous_bytes()
    _fill(run.trunk, model)
    filled = anonymous_bytes()
    CLEAR_REFS.write_text(FORGET_REFERENCES)
    _read_embedding(run.trunk, model)
    with anonymous_peak() as forward_pass:
        run.largest_pass()
    mapped_weights, other_files = file_bytes()
    planned = model.footprint()
    return Memory(
        planned.weights + planned.runtime,
        planned.kv_cache,
        planned.forward_pass,
        planned.runtime + planned.loading,
    ), Memory(
        loaded + mapped_weights + other_files,
        run.trunk.cache.num_bytes,
        forward_pass.num_bytes - filled,
        loading.num_bytes + other_files,
    )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and how to make it run a large pass."""

    trunk: Trunk
    largest_pass: Callable[[], None]


def _loaded(config: AppConfig, model: PlannedModel) -> LoadedModel:
    if isinstance(model.settings, TargetConfig):
        target, _ = load_target(model.settings)
        return LoadedModel(target.trunk, lambda: _run_target(target, model))
    pairs = {name: target.speculation for name, target in config.targets.items()}
    drafter, _ = load_drafter(model.settings, pairs)
    policy = next(iter(drafter.pairings.values())).exits
    draft = drafter.draft
    return LoadedModel(draft.trunk, lambda: _run_draft(draft, policy))


def _fill(trunk: Trunk, model: PlannedModel) -> None:
    """Write every position of the KV cache: memory that was never written is not there yet."""
    shape, cache = model.shape, trunk.cache
    size = (1, shape.num_kv_heads, cache.capacity, shape.head_size)
    states = trunk.embed([0]).new_zeros(size)
    layers: Sequence[Any] = trunk.layers[: model.exit_layers[-1]]  # as the library types them
    for slot in range(cache.num_slots):
        cache.begin(trunk.batch([Row(slot, 0, cache.capacity)]))
        for layer in layers:
            cache.update(states, states, layer.self_attn.layer_idx)


def _read_embedding(trunk: Trunk, model: PlannedModel) -> None:
    """Look every token up, as a service does in time."""
    for first in range(0, model.shape.vocab_size, BLOCK):
        trunk.embed(range(first, min(first + BLOCK, model.shape.vocab_size)))


def _run_target(target: TargetModel, model: PlannedModel) -> None:
    """Verify proposals of all sequences but one, which reads a prompt chunk; then decode."""
    names = [str(i) for i in range(model.settings.max_sequences)]
    for name in names[1:]:
        target.open(_start(name, 2))
    target.step({name: Proposal(0) for name in names[1:]})
    target.open(_start(names[0], model.settings.prefill_chunk))
    tokens, exits = (1,) * model.num_draft_tokens, (1,) * model.num_draft_tokens
    target.step({name: Proposal(3, tokens, exits) for name in names[1:]} | {names[0]: Proposal(0)})
    target.step({name: Proposal(0) for name in names})


def _run_draft(draft: SortedDraft, policy: ExitPolicy) -> None:
    """Read a prompt chunk of one sequence, then draft for all."""
    num_slots = draft.trunk.cache.num_slots
    for i in range(num_slots):
        draft.open(_start(str(i), 2 if i else draft.prefill_chunk + 1), policy)
    draft.prefill(["0"])
    draft.propose({str(i): 2 for i in range(num_slots)}, [])


def _start(name: str, num_prompt_tokens: int) -> SequenceStart:
    prompt = (1,) * num_prompt_tokens
    params = SamplingParams(temperature=0.0)
    return SequenceStart(name, 0, prompt, num_prompt_tokens, params, max_tokens=16)


@dataclass(slots=True)
class Peak:
    """The most that was seen."""

    num_bytes: int


@contextmanager
def anonymous_peak() -> Iterator[Peak]:
    """Watch this process's anonymous memory."""
    peak, is_over = Peak(anonymous_bytes()), threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_S):
            peak.num_bytes = max(peak.num_bytes, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    memory = PROCESS.memory_info()
    return memory.rss - memory.shared


def file_bytes() -> tuple[int, int]:
    """Resident pages of weight files, those read since the last reset; and of all other files."""
    weights = others = 0
    for mapping in PROCESS.memory_maps():
        resident = mapping.rss - mapping.anonymous
        if mapping.path.endswith(".safetensors"):
            weights += min(resident, mapping.referenced)
        elif mapping.path.startswith("/"):
            others += resident
    return weights, others


if __name__ == "__main__":
    main()
