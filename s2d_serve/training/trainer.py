"""Training, step by step; it can be cut off anywhere and goes on exactly where it was.

Devices, processes and mixed precision are accelerate's. A checkpoint is written to the draft's
folder every so many steps; on the CPU in float32 a run that was cut off gives the same weights, bit
for bit, as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # no stubs
from torch import Tensor, nn

from s2d_serve import cpu
from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.engine.linears import prepare_layers
from s2d_serve.engine.trained import VOCABULARY, DraftShape, TrainedDraft
from s2d_serve.training import checkpoint, closed_form, layer_search
from s2d_serve.training.checkpoint import Progress
from s2d_serve.training.layer_search import DropsFile, LayerDrops, Sample
from s2d_serve.training.rows import Row
from s2d_serve.training.settings import TrainingSettings
from s2d_serve.training.student import Student, batch_tokens
from s2d_serve.training.targets import frequent_ids, learned_tokens
from s2d_serve.training.trunk_states import StateFile

STATES = "states.bin"
NUM_EVALUATIONS = 10
WARMUP = 0.05
FLOOR = 0.05
"""Learning rate at the end, as a share of its peak."""
MAX_NORM = 1.0
"""Of all gradients together."""
WEIGHT_DECAY = 0.01


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
        started = time.perf_counter()
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
        self._run = checkpoint.fingerprint(base, rows, settings)
        self._saved = checkpoint.read(folder, self._run)
        order = torch.randperm(len(rows), generator=_generator(settings.seed, -1)).tolist()
        num_held = max(1, round(settings.holdout * len(rows))) if len(rows) > 1 else 0
        self._held, self._learned = order[:num_held], order[num_held:]
        self._rows = rows
        self.tokens = learned_tokens(rows, self.vocabulary, base.vocab_size)
        self._set_up(notice)
        self.num_steps = settings.epochs * len(self._batches(0))
        self.seconds: float = self._saved["seconds"] if self._saved else 0.0
        """Spent on this run, interruptions left out."""
        if len(self.history) < self.num_steps:
            self.seconds += time.perf_counter() - started

    def _set_up(self, notice: Callable[[str, int, int], None]) -> None:
        model, settings = self.base.model, self.settings
        device = self.accelerator.device
        model.to(device)
        learned = [self._rows[i] for i in self._learned]
        self._choose_layers(learned, notice)
        if settings.method == "heads" and device.type == "cpu":
            prepare_layers(model.model.layers)
        wanted = None
        if not self._saved:
            wanted = closed_form.last_states(
                model,
                learned,
                settings.ridge_tokens,
                device,
                partial(notice, "reading for the start"),
            )
        kept = self.layers or range(self.exits[-1])
        model.model.layers = nn.ModuleList(model.model.layers[i] for i in kept)
        self._states = self._state_file(notice) if settings.method == "heads" else None
        torch.manual_seed(settings.seed)
        self.student = Student(
            model, self.exits, self.vocabulary, self.base.vocab_size, settings
        ).to(device)
        if wanted is not None:
            closed_form.start(self.student, model, learned, wanted)
        weights = self.student.trainable()
        self.optimizer = torch.optim.AdamW(
            weights.values(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.history: list[Progress] = []
        if self._saved:
            self.history = checkpoint.restore(self._saved, weights, self.optimizer)
        self._wrapped, self._stepper = self.accelerator.prepare(self.student, self.optimizer)
        self.untrained: tuple[float, ...] = (
            tuple(self._saved["untrained"]) if self._saved else self.acceptance()
        )
        """Acceptance of each trained exit before the first step."""

    def _choose_layers(
        self, learned: Sequence[Row], notice: Callable[[str, int, int], None]
    ) -> None:
        layers = self.settings.layers
        self.drops: LayerDrops | None = None
        """What the search dropped, if there was one."""
        if isinstance(layers, int):
            decoder = self.base.model.model
            sample = Sample.of(learned, self.base, self.vocabulary, self.settings.teacher_weight)
            file = DropsFile(self.folder / layer_search.FILE, self._run)
            progress = partial(notice, "dropping layers")
            with self.accelerator.main_process_first():  # the others read what it found
                self.drops = layer_search.search(decoder, sample, layers, file, progress)
            layers = self.drops.kept(len(decoder.layers))
        self.layers: tuple[int, ...] | None = layers
        """Layers of the base that the draft keeps; None: all that the deepest exit needs."""

    def _state_file(self, notice: Callable[[str, int, int], None]) -> StateFile:
        model, num_rows = self.base.model, len(self._rows)
        hidden: int = model.config.hidden_size
        file = StateFile(
            self.folder / STATES, self._run, self.tokens.offsets, len(self.exits), hidden
        )
        file.fill(
            model.model,
            self.exits,
            self._rows,
            self.accelerator.device,
            lambda done: notice("reading the rows", done, num_rows),
        )
        return file

    def run(self, save_every: int) -> Iterator[Progress]:
        """Train to the end; a checkpoint every `save_every` steps and after the last."""
        per_epoch = self.num_steps // self.settings.epochs
        batches: list[list[int]] = []
        while len(self.history) < self.num_steps:
            started = time.perf_counter()
            step = len(self.history)
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not batches:
                batches = self._batches(epoch)
            batch = batches[place]
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
            self.seconds += time.perf_counter() - started
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
        layers = self.layers
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

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            notes = checkpoint.Notes(self.untrained, self.history, self.seconds)
            weights = self.student.trainable()
            checkpoint.write(self.folder, self._run, weights, self.optimizer, notes)


def _precision() -> str:
    """bfloat16 where the device multiplies it, else float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if cpu.has_bfloat16() else "no"


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
