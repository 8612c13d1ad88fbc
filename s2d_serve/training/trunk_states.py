"""Hidden states at the exits of a checkpoint: with gradients for a trunk that learns, else computed
once and kept in a file.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from s2d_serve.training.rows import Row

BATCH_TOKENS = 2048
"""Tokens of a forward pass without gradients."""


def exit_states(
    decoder: nn.Module, exit_layers: Sequence[int], rows: Sequence[Row], device: torch.device
) -> list[Tensor]:
    """What each exit sees at the positions that predict the rows' learned tokens: one
    [learned tokens, hidden] per exit.
    """
    ids, learned = laid_out(rows, device)
    return [states[learned] for states in layer_states(decoder, exit_layers, input_ids=ids)]


def laid_out(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows as a decoder reads them: token ids [B, T] int64, and where a learned token is
    predicted [B, T] bool.

    Rows are padded on the right, which causal attention never looks at.
    """
    length = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), length - 1, dtype=torch.int64, device=device)
    learned = torch.zeros(len(rows), length - 1, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        stop = len(row.token_ids) - 1
        ids[i, :stop] = torch.tensor(row.token_ids[:-1], device=device)
        learned[i, row.num_prompt_tokens - 1 : stop] = True
    return ids, learned


def layer_states(decoder: nn.Module, num_layers: Sequence[int], **inputs: Tensor) -> list[Tensor]:
    """The states after each of these numbers of layers: [B, T, hidden].

    `inputs`: what the decoder reads, by its own names.
    """
    seen: dict[int, Tensor] = {}
    hooks = [
        decoder.layers[n - 1].register_forward_hook(_keep(seen, n))  # type: ignore[index,union-attr]  # a ModuleList
        for n in num_layers
    ]
    try:
        decoder(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[n] for n in num_layers]


class StateFile:
    """The exits' states of all rows, computed once, in a file that is mapped and not read whole."""

    def __init__(
        self, path: Path, run: str, offsets: Sequence[int], num_exits: int, hidden: int
    ) -> None:
        """`run`: names what the states depend on; those of another run are computed anew."""
        self._run = run
        self._offsets = offsets
        self._progress = path.with_suffix(".json")
        size = offsets[-1] * num_exits * hidden
        self.states: Tensor = torch.from_file(
            str(path), shared=True, size=size, dtype=torch.bfloat16
        ).view(offsets[-1], num_exits, hidden)
        self.num_done = 0
        """Rows whose states are there."""
        if self._progress.exists():
            written = json.loads(self._progress.read_text())
            self.num_done = written["num_rows"] if written["run"] == run else 0

    @torch.no_grad()
    def fill(
        self,
        decoder: nn.Module,
        exit_layers: Sequence[int],
        rows: Sequence[Row],
        device: torch.device,
        progress: Callable[[int], None],
    ) -> None:
        """Compute what is missing; `progress` gets the number of rows done."""
        progress(self.num_done)
        while self.num_done < len(rows):
            batch = next_rows(rows[self.num_done :])
            stop = self.num_done + len(batch)
            states = torch.stack(exit_states(decoder, exit_layers, batch, device), 1)
            span = slice(self._offsets[self.num_done], self._offsets[stop])
            self.states[span] = states.to("cpu", torch.bfloat16)
            self.num_done = stop
            self._progress.write_text(json.dumps({"run": self._run, "num_rows": stop}))
            progress(stop)


@torch.no_grad()
def final_states(
    model: PreTrainedModel, rows: Sequence[Row], device: torch.device
) -> tuple[Tensor, int]:
    """The base's last hidden states, before its norm, at the learned positions of as many rows as
    fit in a pass ([n, hidden]); how many rows.
    """
    batch = next_rows(rows)
    depth = len(model.model.layers)
    return exit_states(model.model, [depth], batch, device)[0].float(), len(batch)


def next_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """As many rows as a pass takes, padded; at least one."""
    longest = 0
    for i, row in enumerate(rows):
        longest = max(longest, len(row.token_ids))
        if i and longest * (i + 1) > BATCH_TOKENS:
            return rows[:i]
    return rows


def _keep(seen: dict[int, Tensor], exit_layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen[exit_layer] = output[0] if isinstance(output, tuple) else output

    return hook
