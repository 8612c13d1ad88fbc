from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from s2d_serve.config import ModelConfig
from s2d_serve.engine.checkpoint import Checkpoint, load_checkpoint
from s2d_serve.engine.heads import Translator
from s2d_serve.training import layer_search, trunk_states
from s2d_serve.training.card import Origin, write_card
from s2d_serve.training.layer_search import DropsFile, LayerDrops, RemainingLayers, Sample, search
from s2d_serve.training.objective import exit_loss
from s2d_serve.training.rows import Row
from s2d_serve.training.settings import TrainingSettings
from s2d_serve.training.targets import frequent_ids
from s2d_serve.training.trainer import Trainer
from tests.engine.tiny import save_tiny, tiny_model
from tests.training.conftest import own_answers

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_LAYERS = 6
HARMLESS = {1, 4}
TEACHER_WEIGHT = 0.5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, of which two write next to nothing."""
    model = tiny_model("llama", seed=8, num_layers=NUM_LAYERS)
    for i in HARMLESS:
        layer = model.model.layers[i]
        layer.self_attn.o_proj.weight.mul_(1e-3)
        layer.mlp.down_proj.weight.mul_(1e-3)
    return save_tiny(tmp_path_factory.mktemp("six"), model)


@pytest.fixture(scope="module")
def texts(source: Path) -> list[Row]:
    return own_answers(source)


@pytest.fixture
def six(source: Path) -> Checkpoint:
    return load_checkpoint(ModelConfig(source=str(source), dtype="float32"))


@pytest.fixture
def sample(six: Checkpoint, texts: list[Row]) -> Sample:
    vocabulary = frequent_ids(texts, 96, six.vocab_size, six.eos_token_ids)
    return Sample.of(texts, six, vocabulary, TEACHER_WEIGHT)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers were left each time that one was tried."""
    counts: list[int] = []
    original = RemainingLayers.loss_without

    def counted(self: RemainingLayers, place: int) -> float:
        counts.append(len(self.kept))
        return original(self, place)

    monkeypatch.setattr(RemainingLayers, "loss_without", counted)
    return counts


def ignore(done: int, total: int) -> None:
    pass


@torch.no_grad()
def plain_loss(base: Checkpoint, sample: Sample, kept: Sequence[int]) -> float:
    """Row by row, through the layers that are kept and nothing else."""
    decoder = base.model.model
    whole = decoder.layers
    decoder.layers = nn.ModuleList(whole[i] for i in kept)
    logits: list[Tensor] = []
    for row in sample.rows:
        states = decoder(torch.tensor([row.token_ids[:-1]])).last_hidden_state[0]
        logits.append(states[row.num_prompt_tokens - 1 :] @ sample.head.T)
    decoder.layers = whole
    tokens = sample.tokens
    found = exit_loss(
        torch.cat(logits), tokens.labels, tokens.top_ids, tokens.top_probs, TEACHER_WEIGHT
    )
    return float(found)


def test_harmless_layers_are_dropped(six: Checkpoint, sample: Sample, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    decoder = six.model.model
    whole = decoder.layers
    drops = search(
        decoder, sample, 4, DropsFile(tmp_path / "f", "run"), lambda *at: steps.append(at)
    )
    assert set(drops.layers) == HARMLESS
    assert drops.kept(NUM_LAYERS) == (0, 2, 3, 5)
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert drops.losses[-1] == pytest.approx(drops.base_loss, abs=0.01)
    further = search(decoder, sample, 3, DropsFile(tmp_path / "g", "run"), ignore)
    assert further.losses[-1] > drops.losses[-1] + 0.1
    assert decoder.layers is whole


@pytest.mark.parametrize("places", [(), (5,), (0, 0), (2, 4, 1)])
def test_kept_states_give_the_losses_of_a_plain_run(
    six: Checkpoint, sample: Sample, places: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_states, "BATCH_TOKENS", 400)  # several passes, each with padding
    left = RemainingLayers(six.model.model, sample)
    kept = list(range(NUM_LAYERS))
    for place in places:
        left.drop(place)
        del kept[place]
    assert left.kept == kept
    assert left.loss() == pytest.approx(plain_loss(six, sample, kept), rel=1e-5)
    for place, layer in enumerate(kept):
        others = [i for i in kept if i != layer]
        expected = plain_loss(six, sample, others)
        assert left.loss_without(place) == pytest.approx(expected, rel=1e-5)


def test_a_bounded_number_of_tokens_is_read(sample: Sample, texts: list[Row]) -> None:
    num_tokens = len(sample.tokens.labels)
    longest = max(len(row.token_ids) for row in texts)
    assert layer_search.NUM_TOKENS <= num_tokens < layer_search.NUM_TOKENS + longest
    assert len(sample.rows) < len(texts)


def test_a_search_that_was_cut_off_goes_on(
    six: Checkpoint, sample: Sample, tmp_path: Path, tried: list[int]
) -> None:
    decoder = six.model.model
    whole = search(decoder, sample, 3, DropsFile(tmp_path / "whole", "run"), ignore)
    assert tried == [6] * 6 + [5] * 5 + [4] * 4
    tried.clear()
    file = DropsFile(tmp_path / "cut", "run")

    def cut_off(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(decoder, sample, 3, file, cut_off)
    written = file.read()
    assert written == LayerDrops(whole.base_loss, whole.layers[:2], whole.losses[:2])
    tried.clear()
    again = search(decoder, sample, 3, file, ignore)
    assert again == whole
    assert tried == [4] * 4
    tried.clear()
    assert search(decoder, sample, 3, file, ignore) == whole
    assert tried == []


def test_another_runs_search_is_not_taken_over(
    six: Checkpoint, sample: Sample, tmp_path: Path, tried: list[int]
) -> None:
    path = tmp_path / "layers.json"
    DropsFile(path, "one").write(LayerDrops(0.0, (0, 2), (0.0, 0.0)))
    assert DropsFile(path, "other").read() is None
    drops = search(six.model.model, sample, 4, DropsFile(path, "other"), ignore)
    assert set(drops.layers) == HARMLESS
    assert tried == [6] * 6 + [5] * 5


SETTINGS = TrainingSettings(
    exit_layers=(2, 4), layers=4, mlp_size=16, epochs=2, batch_tokens=512, holdout=0.2
)

Train = Callable[..., Trainer]


@pytest.fixture
def train(source: Path, texts: list[Row]) -> Train:
    def made(folder: Path, settings: TrainingSettings = SETTINGS) -> Trainer:
        base = load_checkpoint(ModelConfig(source=str(source), dtype="float32"))
        return Trainer(base, texts, settings, folder, lambda what, done, total: None)

    return made


def test_a_resumed_training_does_not_search_again(
    train: Train, tmp_path: Path, tried: list[int]
) -> None:
    whole = train(tmp_path / "whole")
    for _ in whole.run(save_every=100):
        pass
    for reached in train(tmp_path / "cut").run(save_every=1):
        if reached.step == 2:
            break
    tried.clear()
    again = train(tmp_path / "cut")
    assert tried == []
    assert len(again.history) == 2
    for _ in again.run(save_every=100):
        pass
    assert again.layers == whole.layers == (0, 2, 3, 5)
    ours, theirs = again.student.trainable(), whole.student.trainable()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_list_and_a_search_that_finds_it_train_the_same(train: Train, tmp_path: Path) -> None:
    searched = train(tmp_path / "searched")
    listed = train(tmp_path / "listed", replace(SETTINGS, layers=(0, 2, 3, 5)))
    assert searched.untrained == listed.untrained
    first = train(tmp_path / "first", replace(SETTINGS, layers=(0, 1, 2, 3)))
    assert searched.untrained != first.untrained


def test_held_out_rows_are_not_searched_on(
    train: Train, texts: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Row] = []

    def keep(decoder: nn.Module, sample: Sample, *rest: Any) -> LayerDrops:
        given.extend(sample.rows)
        return LayerDrops(1.0, (1, 4), (1.0, 1.0))

    monkeypatch.setattr(layer_search, "search", keep)
    trainer = train(tmp_path)
    held = {texts[i].key for i in trainer._held}
    assert held
    assert given
    assert not held & {row.key for row in given}


def test_the_card_says_which_layers_were_kept(train: Train, tmp_path: Path) -> None:
    trainer = train(tmp_path)
    for _ in trainer.run(save_every=100):
        pass
    write_card(trainer, Origin("six", "s2d train", (), 0.1, "a machine"), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert trainer.drops is not None
    assert "layers 0, 2, 3, 5." in card
    assert f"{trainer.drops.base_loss:.3f} with all layers" in card
    assert f"{trainer.drops.losses[-1]:.3f} with these" in card


def test_an_exit_that_agrees_as_it_is_starts_as_it_is(
    six: Checkpoint, texts: list[Row], tmp_path: Path
) -> None:
    kept = tuple(i for i in range(NUM_LAYERS) if i not in HARMLESS)
    settings = TrainingSettings((1, len(kept)), kept, mlp_size=8, ridge_tokens=512)
    trainer = Trainer(six, texts, settings, tmp_path, lambda what, done, total: None)
    translators = [cast(Translator, t) for t in trainer.student.translators]
    first, last = (translator.map.weight for translator in translators)
    untouched = torch.eye(len(first))
    assert not torch.equal(first, untouched), "ridge regression helps"
    assert torch.equal(last, untouched)
