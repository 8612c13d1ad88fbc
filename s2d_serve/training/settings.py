"""What `s2d train` is asked for."""

from dataclasses import dataclass

from s2d_serve.errors import ConfigError

METHODS = {"heads": 1e-3, "lora": 2e-4, "full": 2e-5}
"""Ways to train, each with a learning rate that works."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Everything that the trained weights depend on, beside base and data."""

    exit_layers: tuple[int, ...]
    """Layers run by each sub-model; one equal to the base's depth is the base itself."""
    layers: tuple[int, ...] | int | None = None
    """Layers of the base that the draft keeps; a number: so many, found by a search; None: all that
    the deepest exit needs.
    """
    method: str = "heads"
    """heads: the trunk is frozen; lora: low-rank changes to it; full: all its weights."""
    mlp_size: int = 512
    """Width of the MLP in each exit's translator."""
    lora_rank: int = 16
    """Rank of the changes to each linear layer."""
    vocabulary_size: int | None = None
    """Token ids that can be drafted, the most frequent ones; None: all."""
    teacher_weight: float = 0.5
    """Share of the target's own probabilities in the loss; the rest is the text's next token."""
    epochs: int = 3
    learning_rate: float = 1e-3
    """Peak; warms up over a twentieth of the steps, then falls to a twentieth of it (cosine)."""
    batch_tokens: int = 2048
    """Learned tokens of a step, about."""
    ridge_tokens: int = 16384
    """Tokens from which the translators' maps are started in closed form; 0: start at identity."""
    holdout: float = 0.05
    """Share of the rows kept aside to measure acceptance on."""
    seed: int = 0

    def check(self, num_base_layers: int) -> None:
        """Raises: ConfigError if these settings cannot be used with such a base."""
        exits = list(self.exit_layers)
        if not exits or exits != sorted(set(exits)) or exits[0] < 1:
            raise ConfigError(f"--exits {exits}: give increasing numbers of layers, such as 2,4,8")
        self._check_layers(num_base_layers)
        if not self.trained_exits(num_base_layers):
            raise ConfigError("nothing to train: the only exit is the base itself")

    def _check_layers(self, num_base_layers: int) -> None:
        exits, last = list(self.exit_layers), num_base_layers - 1
        if isinstance(self.layers, int):
            if not exits[-1] <= self.layers <= last:
                raise ConfigError(
                    f"--keep-layers {self.layers}: give at least the deepest exit, {exits[-1]}, "
                    f"and at most {last}: the base has {num_base_layers} layers"
                )
            return
        kept = list(range(num_base_layers) if self.layers is None else self.layers)
        if kept != sorted(set(kept)) or not kept or not 0 <= kept[0] <= kept[-1] <= last:
            raise ConfigError(f"--layers {kept}: the base has layers 0 to {last}")
        if exits[-1] > len(kept):
            raise ConfigError(f"--exits {exits}: the draft keeps {len(kept)} layers")

    def trained_exits(self, num_base_layers: int) -> tuple[int, ...]:
        """Exits with a translator: all but the untouched base as a whole."""
        is_whole = self.method == "heads" and self.layers is None
        return tuple(n for n in self.exit_layers if not (is_whole and n == num_base_layers))
