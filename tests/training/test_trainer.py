from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from s2d_serve.config import DraftConfig, SpeculationConfig
from s2d_serve.engine.assemble import load_drafter
from s2d_serve.engine.cache import Row as CacheRow
from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.trained import load_trained
from s2d_serve.errors import ConfigError, WeightsError
from s2d_serve.training.rows import Row
from s2d_serve.training.settings import TrainingSettings
from s2d_serve.training.trainer import Trainer
from s2d_serve.training.trunk_states import exit_states
from tests.engine.tiny import VOCAB_SIZE, save_tiny, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

Load = Callable[[], Checkpoint]

SETTINGS = TrainingSettings(
    exit_layers=(1, 2, 4),
    mlp_size=16,
    vocabulary_size=96,
    epochs=3,
    learning_rate=3e-3,
    batch_tokens=512,
    ridge_tokens=1024,
    holdout=0.2,
)


def trainer(
    base: Load, rows: list[Row], folder: Path, settings: TrainingSettings = SETTINGS
) -> Trainer:
    return Trainer(base(), rows, settings, folder, lambda what, done, total: None)


def trained(
    base: Load, rows: list[Row], folder: Path, settings: TrainingSettings = SETTINGS
) -> Trainer:
    made = trainer(base, rows, folder, settings)
    for _ in made.run(save_every=100):
        pass
    made.result().save(folder)
    return made


def served(base: Path, folder: Path) -> SortedDraft:
    config = DraftConfig(
        source=str(base), dtype="float32", num_threads=1, trained=folder, max_context=128
    )
    return load_drafter(config, {"target": SpeculationConfig()})[0].draft


@pytest.mark.parametrize("method", ["heads", "lora", "full"])
def test_a_run_that_was_cut_off_gives_the_same_weights(
    base: Load, rows: list[Row], tmp_path: Path, method: str
) -> None:
    settings = replace(SETTINGS, method=method)
    whole = trained(base, rows, tmp_path / "whole", settings)
    assert whole.num_steps >= 8
    cut = trainer(base, rows, tmp_path / "cut", settings)
    for reached in cut.run(save_every=3):
        if reached.step == 5:  # two steps after the checkpoint
            break
    again = trainer(base, rows, tmp_path / "cut", settings)
    assert len(again.history) == 3
    for _ in again.run(save_every=100):
        pass
    assert again.history == whole.history
    assert again.untrained == whole.untrained
    ours, theirs = again.student.trainable(), whole.student.trainable()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["heads", "lora", "full"])
@pytest.mark.parametrize("layers", [None, (0, 1, 3)])
def test_the_served_draft_is_the_trained_one(
    base: Load,
    folder: Path,
    rows: list[Row],
    tmp_path: Path,
    method: str,
    layers: tuple[int, ...] | None,
) -> None:
    exits = (1, 2, 4) if layers is None else (1, 3)
    settings = replace(SETTINGS, method=method, layers=layers, exit_layers=exits)
    made = trained(base, rows, tmp_path / "draft", settings)
    draft = served(folder, tmp_path / "draft")
    assert draft.exit_layers == exits
    row = rows[0]
    decoder = made.student.decoder or made.base.model.model
    with torch.inference_mode():
        states = exit_states(decoder, made.exits, [row], torch.device("cpu"))
        batch = draft.trunk.batch([CacheRow(0, 0, len(row.token_ids) - 1)])
        hidden = draft.trunk.embed(row.token_ids[:-1])
        for i, n in enumerate(draft.exit_layers):
            hidden = draft.trunk.run(draft.segments[i], hidden, batch)
            if n not in made.exits:
                continue
            at = made.exits.index(n)
            translated = made.student.translators[at](states[at])
            expected = linear(translated, made.student.head)  # type: ignore[arg-type]  # a buffer
            found = draft.heads.logits(i, hidden[row.num_prompt_tokens - 1 :])
            assert found.shape == (len(row.token_ids) - row.num_prompt_tokens, 96)
            error = (found - expected).norm() / expected.norm()
            assert error < 0.04  # what saving as bfloat16 does


def test_training_raises_acceptance(base: Load, rows: list[Row], tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=10, vocabulary_size=None)
    made = trained(base, rows, tmp_path, settings)
    first, last = made.history[0], made.history[-1]
    assert all(b < a for a, b in zip(first.losses, last.losses, strict=True))
    no_start = trainer(base, rows, tmp_path / "no", replace(settings, ridge_tokens=0))
    assert last.acceptance is not None
    assert last.acceptance[0] > no_start.untrained[0] + 0.03


def test_a_frozen_trunk_leaves_the_whole_base_as_it_is(
    base: Load, folder: Path, rows: list[Row], tmp_path: Path
) -> None:
    trained(base, rows, tmp_path, replace(SETTINGS, vocabulary_size=None))
    draft = served(folder, tmp_path)
    row = rows[1]
    batch = draft.trunk.batch([CacheRow(0, 0, len(row.token_ids))])
    with torch.inference_mode():
        hidden = draft.trunk.run(draft.trunk.layers, draft.trunk.embed(row.token_ids), batch)
        found = draft.heads.logits(2, hidden)
        expected = base().model(torch.tensor([row.token_ids])).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_folder_of_another_run_is_not_mixed_up(
    base: Load, rows: list[Row], tmp_path: Path
) -> None:
    trained(base, rows, tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        trainer(base, rows, tmp_path, replace(SETTINGS, seed=1))
    with pytest.raises(ConfigError, match="other rows"):
        trainer(base, rows[:-1], tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layers": (2, 1)}, "increasing"),
        ({"exit_layers": (1, 9)}, "keeps 4 layers"),
        ({"exit_layers": (4,)}, "nothing to train"),
        ({"layers": (0, 7)}, "layers 0 to 3"),
        ({"layers": 4, "exit_layers": (1, 2)}, "--keep-layers 4: .* at most 3: .* 4 layers"),
        ({"layers": 1, "exit_layers": (1, 2)}, "--keep-layers 1: .* deepest exit, 2,"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    base: Load, rows: list[Row], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(base, rows, tmp_path, replace(SETTINGS, **changes))  # type: ignore[arg-type]  # names


def test_a_draft_of_another_base_is_refused(base: Load, rows: list[Row], tmp_path: Path) -> None:
    trained(base, rows, tmp_path / "draft")
    other = save_tiny(tmp_path / "other", tiny_model("llama", seed=9))
    with pytest.raises(WeightsError, match="was trained for a base"):
        served(other, tmp_path / "draft")


def test_a_damaged_draft_is_refused(
    base: Load, folder: Path, rows: list[Row], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="no trained draft"):
        load_trained(tmp_path / "nothing")
    trained(base, rows, tmp_path / "draft")
    tensors = tmp_path / "draft" / "draft.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(WeightsError, match="no whole trained draft"):
        load_trained(tmp_path / "draft")
    (tmp_path / "draft" / "draft.json").write_text('{"format": "s2d-draft-0"}')
    with pytest.raises(WeightsError, match="train it anew"):
        load_trained(tmp_path / "draft")


def test_ids_outside_the_vocabulary_are_never_drafted(
    base: Load, folder: Path, rows: list[Row], tmp_path: Path
) -> None:
    made = trained(base, rows, tmp_path)
    assert made.vocabulary is not None
    assert len(made.vocabulary) == 96 < VOCAB_SIZE
    heads = served(folder, tmp_path).heads
    logits = heads.logits(0, torch.randn(500, 64, generator=torch.Generator().manual_seed(0)))
    assert set(heads.greedy(logits)) <= set(made.vocabulary)
