"""Training, step by step; it can be cut off anywhere and goes on exactly where it was.

Devices, processes and mixed precision are accelerate's. A checkpoint is written to the draft's
folder every so many steps; on the CPU in float32 a run that was cut off gives the same weights, bit
for bit, as one that was not.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # no stubs
from torch import Tensor, nn

from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.engine.heads import Translator
from s2d_serve.engine.linears import prepare_layers
from s2d_serve.engine.trained import VOCABULARY, DraftShape, TrainedDraft
from s2d_serve.errors import ConfigError
from s2d_serve.training.objective import ridge
from s2d_serve.training.rows import Row
from s2d_serve.training.settings import TrainingSettings
from s2d_serve.training.student import Student, batch_tokens
from s2d_serve.training.targets import frequent_ids, learned_tokens
from s2d_serve.training.trunk_states import StateFile, exit_states, final_states

CHECKPOINT = "training.pt"
STATES = "states.bin"
NUM_EVALUATIONS = 10
WARMUP = 0.05
FLOOR = 0.05
"""Learning rate at the end, as a share of its peak."""
MAX_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    num_steps: int
    learning_rate: float
    losses: tuple[float, ...]
    """By trained exit."""
    acceptance: tuple[float, ...] | None
    """Share of held-out tokens that each exit would have drafted; None between two looks."""


class Trainer:
    """One training run in one folder."""

    def __init__(
        self,
        base: Checkpoint,
        rows: Sequence[Row],
        settings: TrainingSettings,
        folder: Path,
        notice: Callable[[str, int, int], None],
    ) -> None:
        """Prepares everything: cuts the trunk, starts the maps, computes a frozen trunk's states.

        Args:
            base: loaded in float32; its layers are changed in place.
            notice: called with (what, done, of how many) during the long parts.

        Raises: ConfigError if the settings do not fit the base, or the folder's run was another.
        """
        depth = len(base.model.model.layers)
        settings.check(depth)
        self.settings = settings
        self.base = base
        self.folder = folder
        self.accelerator = Accelerator(mixed_precision=_precision())
        self.exits = settings.trained_exits(depth)
        self.vocabulary = frequent_ids(
            rows, settings.vocabulary_size, base.vocab_size, base.eos_token_ids
        )
        self._fingerprint = _fingerprint(base, rows, settings)
        self._saved = _saved(folder, self._fingerprint)
        order = torch.randperm(len(rows), generator=_generator(settings.seed, -1)).tolist()
        num_held = max(1, round(settings.holdout * len(rows))) if len(rows) > 1 else 0
        self._held, self._learned = order[:num_held], order[num_held:]
        self._rows = rows
        self.tokens = learned_tokens(rows, self.vocabulary, base.vocab_size)
        self._set_up(notice)
        self.num_steps = settings.epochs * len(self._batches(0))

    def _set_up(self, notice: Callable[[str, int, int], None]) -> None:
        model, settings = self.base.model, self.settings
        device = self.accelerator.device
        model.to(device)
        if settings.method == "heads" and device.type == "cpu":
            prepare_layers(model.model.layers)
        ridge_rows = [self._rows[i] for i in self._learned]
        starts = None if self._saved else self._final(ridge_rows, notice)
        kept = settings.layers or range(self.exits[-1])
        model.model.layers = nn.ModuleList(model.model.layers[i] for i in kept)
        self._states: StateFile | None = None
        if settings.method == "heads":
            hidden: int = model.config.hidden_size
            path = self.folder / STATES
            self._states = StateFile(
                path, self._fingerprint, self.tokens.offsets, len(self.exits), hidden
            )
            num_rows = len(self._rows)
            self._states.fill(
                model.model,
                self.exits,
                self._rows,
                device,
                lambda done: notice("reading the rows", done, num_rows),
            )
        maps = None if starts is None else self._maps(starts, ridge_rows)
        torch.manual_seed(settings.seed)
        self.student = Student(
            model, self.exits, self.vocabulary, self.base.vocab_size, settings
        ).to(device)
        if maps is not None:
            _start_from(self.student, maps)
        self.optimizer = torch.optim.AdamW(
            self.student.trainable().values(), lr=settings.learning_rate, weight_decay=0.01
        )
        self.history: list[Progress] = []
        if self._saved:
            self._restore(self._saved)
        self._wrapped, self._stepper = self.accelerator.prepare(self.student, self.optimizer)
        self.untrained: tuple[float, ...] = (
            tuple(self._saved["untrained"]) if self._saved else self.acceptance()
        )
        """Acceptance of each trained exit before the first step."""

    def run(self, save_every: int) -> Iterator[Progress]:
        """Train to the end; a checkpoint every `save_every` steps and after the last."""
        per_epoch = len(self._batches(0))
        while len(self.history) < self.num_steps:
            step = len(self.history)
            batch = self._batches(step // per_epoch)[step % per_epoch]
            rate = self._rate(step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._wrapped.train()
            losses, _ = self._wrapped(*self._inputs(batch))
            self.accelerator.backward(losses.mean())
            self.accelerator.clip_grad_norm_(self._wrapped.parameters(), MAX_NORM)
            self._stepper.step()
            self._stepper.zero_grad()
            is_last = step + 1 == self.num_steps
            looks = is_last or (step + 1) % max(self.num_steps // NUM_EVALUATIONS, 1) == 0
            reached = Progress(
                step + 1,
                self.num_steps,
                rate,
                tuple(losses.detach().tolist()),  # sync
                self.acceptance() if looks else None,
            )
            self.history.append(reached)
            if is_last or (step + 1) % save_every == 0:
                self._save()
            yield reached

    @torch.no_grad()
    def acceptance(self) -> tuple[float, ...]:
        """Share of the held-out rows' tokens that each exit would have drafted, greedily."""
        self._wrapped.eval()
        total = torch.zeros(len(self.exits), dtype=torch.int64)
        num_tokens = 0
        for batch in self._grouped(self._held):
            states, tokens = self._inputs(batch)
            total += self._wrapped(states, tokens)[1].cpu()
            num_tokens += len(tokens[0])
        return tuple((total / max(num_tokens, 1)).tolist())

    def result(self) -> TrainedDraft:
        """The draft as it is now."""
        settings, depth = self.settings, self.base.model.config.num_hidden_layers
        layers = settings.layers
        if layers is None and settings.exit_layers[-1] < depth:
            layers = tuple(range(settings.exit_layers[-1]))
        tensors = self.student.tensors()
        if self.vocabulary is not None:
            tensors[VOCABULARY] = torch.tensor(self.vocabulary, dtype=torch.int32)
        shape = DraftShape(
            self.base.digest, settings.exit_layers, self.exits, settings.mlp_size, layers
        )
        return TrainedDraft(shape, tensors)

    def _inputs(
        self, batch: Sequence[int]
    ) -> tuple[Tensor | list[Row], tuple[Tensor, Tensor, Tensor]]:
        device = self.accelerator.device
        tokens = batch_tokens(self.tokens, batch, device)
        if self._states is None:
            return [self._rows[i] for i in batch], tokens
        spans = [self._states.states[self.tokens.span(i)] for i in batch]
        return torch.cat(spans).to(device), tokens

    def _batches(self, epoch: int) -> list[list[int]]:
        """This process's batches of rows in this epoch."""
        order = torch.randperm(len(self._learned), generator=_generator(self.settings.seed, epoch))
        batches = self._grouped([self._learned[i] for i in order.tolist()])
        world = self.accelerator.num_processes
        whole = len(batches) // world * world or len(batches)
        return batches[:whole][self.accelerator.process_index :: world]

    def _grouped(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows one after the other, cut into batches of about equally many learned tokens."""
        sizes = [self.tokens.span(i).stop - self.tokens.span(i).start for i in rows]
        num_batches = max(1, round(sum(sizes) / self.settings.batch_tokens))
        wanted = sum(sizes) / num_batches
        batches: list[list[int]] = []
        seen = 0
        for row, size in zip(rows, sizes, strict=True):
            if not batches or (seen >= wanted * len(batches) and len(batches) < num_batches):
                batches.append([])
            batches[-1].append(row)
            seen += size
        return batches

    def _rate(self, step: int) -> float:
        warmup = max(1, round(WARMUP * self.num_steps))
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.num_steps - warmup)
        return self.settings.learning_rate * (
            FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2
        )

    def _final(
        self, rows: Sequence[Row], notice: Callable[[str, int, int], None]
    ) -> list[Tensor] | None:
        """The whole base's last states of the first rows, batch by batch; None if not wanted."""
        wanted, found, done = self.settings.ridge_tokens, 0, 0
        states: list[Tensor] = []
        while found < wanted and done < len(rows):
            batch, num_rows = final_states(self.base.model, rows[done:], self.accelerator.device)
            states.append(batch)
            found, done = found + len(batch), done + num_rows
            notice("reading rows for the start", min(found, wanted), wanted)
        return states or None

    @torch.no_grad()
    def _maps(self, finals: Sequence[Tensor], rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """For each exit: the affine map of its normed states onto the base's last ones, normed."""
        outputs = torch.cat([_normed(states) for states in finals])
        found: list[list[Tensor]] = []
        done = num_tokens = 0
        while num_tokens < len(outputs):
            batch = rows[done : done + 8]
            states = exit_states(self.base.model.model, self.exits, batch, self.accelerator.device)
            found.append([_normed(s.float()) for s in states])
            done, num_tokens = done + len(batch), num_tokens + len(states[0])
        inputs = [torch.cat(parts)[: len(outputs)] for parts in zip(*found, strict=True)]
        return [ridge(states, outputs) for states in inputs]

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "fingerprint": self._fingerprint,
            "untrained": list(self.untrained),
            "history": json.dumps([asdict(reached) for reached in self.history]),
            "weights": {name: p.detach().cpu() for name, p in self.student.trainable().items()},
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, self.folder / f"{CHECKPOINT}.partial")
        (self.folder / f"{CHECKPOINT}.partial").rename(self.folder / CHECKPOINT)

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        for name, parameter in self.student.trainable().items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for entry in json.loads(state["history"]):
            for name in ("losses", "acceptance"):
                entry[name] = None if entry[name] is None else tuple(entry[name])
            self.history.append(Progress(**entry))


def _normed(states: Tensor) -> Tensor:
    return nn.functional.rms_norm(states, states.shape[-1:])


@torch.no_grad()
def _start_from(student: Student, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
    for translator, (weight, bias) in zip(student.translators, maps, strict=True):
        assert isinstance(translator, Translator)
        translator.map.weight.copy_(weight)
        translator.map.bias.copy_(bias)


def _precision() -> str:
    """bfloat16 where the device multiplies it, else float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    features = torch.cpu.get_capabilities()
    return "bf16" if any(features.get(n) for n in ("avx512_bf16", "amx_bf16", "bf16")) else "no"


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)


def _fingerprint(base: Checkpoint, rows: Sequence[Row], settings: TrainingSettings) -> str:
    """Names a run: the same base, rows and settings."""
    named = hashlib.sha256(json.dumps([base.digest, asdict(settings)]).encode())
    for row in rows:
        named.update(json.dumps([row.token_ids, row.num_prompt_tokens, row.top]).encode())
    return named.hexdigest()


def _saved(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The folder's checkpoint; None if it has none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CHECKPOINT).exists():
        return None
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{folder} holds a run with another base, other rows or other settings; "
            "go on with those, or choose another folder"
        )
    return state
