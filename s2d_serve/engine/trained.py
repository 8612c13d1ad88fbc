"""A trained draft on disk: what was learned; the base's weights are named, not copied.

draft.json          base, layers, exits, width of the translators
draft.safetensors   the translators of the exits, the ids that can be drafted, changes to the trunk
README.md           the card
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s2d_serve.engine.digests import DRAFT_TENSORS as TENSORS
from s2d_serve.engine.heads import Translator
from s2d_serve.errors import WeightsError

FORMAT = "s2d-draft-1"
SETTINGS = "draft.json"
VOCABULARY = "vocabulary"
FIRST_FACTOR = ".A"
SECOND_FACTOR = ".B"


@dataclass(frozen=True, slots=True)
class DraftShape:
    """What a trained draft is made of."""

    base_digest: str
    """sha256 of the base's weights."""
    exit_layers: tuple[int, ...]
    """Layers run by each sub-model."""
    trained_exits: tuple[int, ...]
    """Those with a translator; the others use the base's own norm."""
    mlp_size: int
    """Width of the translators' MLP."""
    layers: tuple[int, ...] | None = None
    """Layers of the base that the draft keeps; None: all."""
    format: str = FORMAT


@dataclass(frozen=True, slots=True)
class TrainedDraft:
    """What `s2d train` made."""

    shape: DraftShape
    tensors: dict[str, Tensor]

    @property
    def vocabulary(self) -> list[int] | None:
        """Ids that can be drafted, increasing; None: all."""
        ids: list[int] | None = (
            self.tensors[VOCABULARY].tolist() if VOCABULARY in self.tensors else None
        )
        return ids

    def translators(
        self, hidden_size: int, eps: float, like: Tensor
    ) -> tuple[Translator | None, ...]:
        """One per exit, in the type and on the device of `like`.

        Raises: WeightsError if the tensors do not fit.
        """
        return tuple(self._translator(n, hidden_size, eps, like) for n in self.shape.exit_layers)

    def _translator(
        self, exit_layer: int, hidden_size: int, eps: float, like: Tensor
    ) -> Translator | None:
        if exit_layer not in self.shape.trained_exits:
            return None
        translator = Translator(hidden_size, self.shape.mlp_size, eps)
        prefix = f"exit.{exit_layer}."
        state = {k.removeprefix(prefix): v for k, v in self.tensors.items() if prefix in k}
        try:
            translator.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"the trained draft does not fit its base: {error}") from None
        return translator.to(like.device, like.dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def change_layers(self, layers: Sequence[nn.Module]) -> None:
        """Bring what was learned into the base's layers, in place.

        Raises: WeightsError if the tensors do not fit.
        """
        for name, tensor in self.tensors.items():
            if not name.startswith("layer."):
                continue
            _, index, path = name.split(".", 2)
            try:
                layer = layers[int(index)]
                if path.endswith(FIRST_FACTOR):
                    path = path.removesuffix(FIRST_FACTOR)
                    second = self.tensors[f"layer.{index}.{path}{SECOND_FACTOR}"]
                    weight = layer.get_parameter(f"{path}.weight")
                    weight.add_((second.float() @ tensor.float()).to(weight.dtype))
                elif not path.endswith(SECOND_FACTOR):
                    layer.get_parameter(path).copy_(tensor)
            except (IndexError, KeyError, AttributeError, RuntimeError) as error:
                raise WeightsError(f"the trained draft does not fit its base: {error}") from None

    def save(self, folder: Path) -> None:
        """Write the folder's two files; a reader never sees half of one."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / f"{TENSORS}.partial")
        (folder / f"{TENSORS}.partial").rename(folder / TENSORS)
        text = json.dumps(asdict(self.shape), indent=2)
        (folder / SETTINGS).write_text(text + "\n", "utf-8")


def load_trained(folder: Path) -> TrainedDraft:
    """Read a trained draft.

    Raises: WeightsError if it is missing, damaged, or of another format.
    """
    settings = _settings(folder)
    if settings.pop("format", None) != FORMAT:
        raise WeightsError(f"{folder}: not a trained draft of format {FORMAT}; train it anew")
    try:
        for name in ("exit_layers", "trained_exits", "layers"):
            settings[name] = None if settings[name] is None else tuple(settings[name])
        shape = DraftShape(**settings)
        return TrainedDraft(shape, load_file(folder / TENSORS))
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise WeightsError(f"{folder} holds no whole trained draft: {error}") from None


def translator_tensors(exit_layer: int, translator: Translator) -> dict[str, Tensor]:
    """A translator's tensors as the folder holds them: bfloat16."""
    return {
        f"exit.{exit_layer}.{name}": tensor.detach().to(torch.bfloat16)
        for name, tensor in translator.state_dict().items()
    }


def layer_change(
    layer: int, path: str, first: Tensor, second: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """A low-rank change, `second` [out, r] @ `first` [r, in], to a linear layer's weight."""
    for suffix, factor in ((FIRST_FACTOR, first), (SECOND_FACTOR, second)):
        yield f"layer.{layer}.{path}{suffix}", factor.detach().to(torch.bfloat16)


def layer_weight(layer: int, path: str, weight: Tensor) -> tuple[str, Tensor]:
    """A weight that takes the place of the base's."""
    return f"layer.{layer}.{path}", weight.detach().to(torch.bfloat16)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text("utf-8"))
    except OSError:
        raise WeightsError(
            f"no trained draft in {folder}: paths are taken from where the service is started"
        ) from None
    except ValueError as error:
        raise WeightsError(f"{folder / SETTINGS}: {error}") from None
    return settings
