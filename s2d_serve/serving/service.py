"""What the routes need of the service: targets, tokenizers, states, and the router."""

import time
import uuid
from collections.abc import Mapping
from importlib.metadata import version

from s2d_serve.api.info import DraftCard, ModelCard, State, WeightsCard
from s2d_serve.api.jsontext import show
from s2d_serve.config import AppConfig, DraftConfig, ModelConfig, TargetConfig
from s2d_serve.engine.checkpoint import load_tokenizer, same_vocabulary
from s2d_serve.engine.sources import resolve
from s2d_serve.engine.text import Detokenizer
from s2d_serve.errors import ConfigError, UnknownModelError
from s2d_serve.observability.tracing import Tracing
from s2d_serve.serving.app import DRAFT
from s2d_serve.serving.directory import Directory, View
from s2d_serve.serving.keys import Keys
from s2d_serve.serving.messages import ModelInfo
from s2d_serve.serving.metrics import Metrics
from s2d_serve.serving.prompts import Vocabulary
from s2d_serve.serving.router import Router


class Service:
    """One router replica's view of the whole."""

    def __init__(
        self, config: AppConfig, router: Router, directory: Directory, metrics: Metrics
    ) -> None:
        """Reads all tokenizers.

        Raises:
            ConfigError: draft and target do not have the same tokenizer, or the keys are no keys.
            WeightsError: a tokenizer cannot be had.
        """
        self.config = config
        self.router = router
        self.metrics = metrics
        self.tracing = None
        if config.tracing.sample_ratio:
            self.tracing = Tracing(config.tracing.sample_ratio, config.tracing.otlp_endpoint)
        self.version = version("s2d-serve")
        self.keys = Keys(config.auth.api_keys_file)
        self.vocabularies = {name: _vocabulary(target) for name, target in config.targets.items()}
        self._directory = directory
        self._created = int(time.time())
        if config.draft is not None:
            self._check_draft(config.draft)

    def target(self, name: str) -> TargetConfig:
        """The target of this name.

        Raises: UnknownModelError.
        """
        if name not in self.config.targets:
            raise UnknownModelError(
                f"no target {show(name)} is served; there are {', '.join(self.config.targets)}"
            )
        return self.config.targets[name]

    async def states(self) -> tuple[dict[str, State], State | None]:
        """Of each target, and of the draft (None: the deployment has none)."""
        views = await self._directory.look()
        targets = {name: views[name].state for name in self.config.targets}
        return targets, views[DRAFT].state if self.config.draft is not None else None

    async def cards(self) -> list[ModelCard]:
        """The targets as /v1/models shows them."""
        views = await self._directory.look()
        return [
            ModelCard(
                name,
                self._created,
                target.max_context,
                views[name].state,
                _weights_card(target, views[name].info),
                self._draft_card(target, views),
                views[name].replicas,
            )
            for name, target in self.config.targets.items()
        ]

    def new_id(self) -> str:
        """Id of a response."""
        return uuid.uuid4().hex

    def _draft_card(self, target: TargetConfig, views: Mapping[str, View]) -> DraftCard | None:
        draft = self.config.draft
        if draft is None or not target.speculation.enabled:
            return None
        seen = views[DRAFT].info
        exit_layers = seen.exit_layers if seen is not None else draft.exit_layers or ()
        return DraftCard(_weights_card(draft, seen), exit_layers, views[DRAFT].replicas)

    def _check_draft(self, draft: DraftConfig) -> None:
        tokenizer = load_tokenizer(resolve(draft))
        for name, vocabulary in self.vocabularies.items():
            difference = same_vocabulary(tokenizer, vocabulary.tokenizer)
            if difference is not None and self.config.targets[name].speculation.enabled:
                raise ConfigError(
                    f"the draft cannot serve target {name!r}: their tokenizers differ "
                    f"({difference}); set targets.{name}.speculation.enabled to false"
                )


def _vocabulary(target: TargetConfig) -> Vocabulary:
    tokenizer = load_tokenizer(resolve(target))
    size = max(tokenizer.get_vocab().values()) + 1
    return Vocabulary(tokenizer, Detokenizer(tokenizer), size)


def _weights_card(model: ModelConfig, seen: ModelInfo | None) -> WeightsCard:
    name = model.source if "://" in model.source else model.source.rsplit("/", 1)[-1]
    return WeightsCard(name, None if seen is None else seen.digest, model.dtype)
