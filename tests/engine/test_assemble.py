from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from s2d_serve.config import DraftConfig, SpeculationConfig, TargetConfig
from s2d_serve.engine.assemble import DEFAULT_THRESHOLD, load_drafter, load_target, pair
from s2d_serve.engine.cache import ATTENTION
from s2d_serve.engine.messages import DraftRequest, SequenceStart
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.errors import ConfigError
from s2d_serve.speculation.exits import ExitPolicy
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.statistics import SpeculationStatistics
from tests.engine.tiny import VOCAB_SIZE, nested_model, save_tiny

PROMPT = (5, 80, 12, 200, 31, 7)
EXITS = (2, 3, 5)


@pytest.fixture(autouse=True, scope="module")
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def half_trained() -> PreTrainedModel:
    """A model of five layers whose last three add little."""
    return nested_model(
        "llama",
        seed=1,
        exit_layer=2,
        agreement_scale=0.1,
        num_layers=5,
        padded_vocab_size=VOCAB_SIZE + 21,
        tie=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), half_trained())


def target_config(folder: Path) -> TargetConfig:
    return TargetConfig(
        source=str(folder),
        dtype="float32",
        num_threads=1,
        max_context=48,
        max_sequences=3,
        prefill_chunk=64,
    )


def draft_config(folder: Path, **settings: object) -> DraftConfig:
    known = {"source": str(folder), "dtype": "float32", "num_threads": 1, "max_context": 48}
    return DraftConfig.model_validate(known | settings)


def generate(loop: ReferenceLoop) -> tuple[list[int], SpeculationStatistics]:
    params = SamplingParams(temperature=0.7, seed=4)
    statistics = SpeculationStatistics()
    text: list[int] = []
    start = SequenceStart("a", 0, PROMPT, len(PROMPT), params, 24)
    for _, outcome in loop.generate([start]):
        text += outcome.token_ids
        if outcome.token_ids:
            statistics.record(len(outcome.token_ids), outcome.num_accepted, outcome.exits)
    return text, statistics


def test_a_target_takes_its_size_from_the_config(folder: Path) -> None:
    target, checkpoint = load_target(target_config(folder))
    assert torch.get_num_threads() == 1
    assert target.num_free_slots == 3
    assert target.prefill_chunk == 64
    assert target.trunk.cache.capacity == 48
    assert target.trunk.vocab_size == checkpoint.vocab_size == VOCAB_SIZE
    assert checkpoint.model.config._attn_implementation == ATTENTION


def test_a_draft_takes_its_exits_and_limits_from_the_config(folder: Path) -> None:
    config = draft_config(
        folder,
        exit_layers=EXITS,
        thresholds=(0.3, 0.6),
        max_sequences=2,
        prefill_chunk=7,
        max_parked_tokens=9,
    )
    speculation = SpeculationConfig(max_draft_tokens=3, draft_length="fixed", deepest_exit=3)
    drafter, _ = load_drafter(config, {"one": speculation, "two": SpeculationConfig()})
    draft = drafter.draft
    assert draft.exit_layers == EXITS
    assert (draft.prefill_chunk, draft.max_parked_tokens) == (7, 9)
    assert (draft.trunk.cache.num_slots, draft.trunk.cache.capacity) == (2, 48)
    one, two = drafter.pairings["one"], drafter.pairings["two"]
    assert one.exits == ExitPolicy((0.3,))  # proposals of fixed length end for no doubt
    assert two.exits == ExitPolicy((0.3, 0.6), min_confidence=0.3)
    assert (one.lengths.max_draft_tokens, one.lengths.adaptive) == (3, False)
    assert (two.lengths.max_draft_tokens, two.lengths.adaptive) == (5, True)
    assert one.lengths is not two.lengths


def test_without_exits_the_whole_checkpoint_is_the_draft(folder: Path) -> None:
    drafter, _ = load_drafter(draft_config(folder), {"one": SpeculationConfig()})
    assert drafter.draft.exit_layers == (5,)
    assert drafter.pairings["one"].exits == ExitPolicy((), 0.3)


def test_front_and_back_layers_make_a_draft(folder: Path) -> None:
    """Saved, loaded, cut to layers 0, 1 and 4, run: the text is the target's own."""
    speculation = {"target": SpeculationConfig(max_draft_tokens=4, draft_length="fixed")}
    config = draft_config(folder, layers=(0, 1, 4), exit_layers=(1, 3), thresholds=(1.5,))
    target, checkpoint = load_target(target_config(folder))
    drafter, _ = load_drafter(config, speculation)
    layers: list[nn.Module] = list(checkpoint.model.model.layers)
    for ours, theirs in zip(drafter.draft.trunk.layers, (0, 1, 4), strict=True):
        for weight, expected in zip(ours.parameters(), layers[theirs].parameters(), strict=True):
            assert torch.equal(weight, expected)
    alone, _ = generate(ReferenceLoop(target))
    text, statistics = generate(ReferenceLoop(target, drafter))
    assert text == alone
    assert set(statistics.exit_counts) == {3}
    assert 0 < statistics.num_accepted_tokens < statistics.num_draft_tokens


def test_the_kept_layers_draft_what_a_model_of_them_says(folder: Path) -> None:
    config = draft_config(folder, layers=(0, 1, 4))
    speculation = SpeculationConfig(max_draft_tokens=6, draft_length="fixed")
    drafter, _ = load_drafter(config, {"target": speculation})
    params = SamplingParams(temperature=0.0)
    drafter.open(SequenceStart("a", 0, PROMPT, len(PROMPT), params, 24), "target")
    (draft,) = drafter.propose([DraftRequest("target", {"a": 6})])
    stock = half_trained()
    stock.model.layers = nn.ModuleList(stock.model.layers[i] for i in (0, 1, 4))
    stock.config.num_hidden_layers = 3
    tokens = list(PROMPT)
    for _ in range(6):
        with torch.inference_mode():
            logits = stock(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits[:VOCAB_SIZE].argmax()))
    assert draft.proposals["a"].token_ids == tuple(tokens[len(PROMPT) :])
    assert draft.proposals["a"].exits == (3,) * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_layers": (2, 6)}, r"exit_layers \[2, 6\]: the draft has 5 layers"),
        ({"layers": (0, 5)}, r"layers \[0, 5\]: .* has layers 0 to 4"),
        ({"layers": (0, 4), "exit_layers": (1, 3)}, r"\[1, 3\]: the draft has 2 layers"),
    ],
)
def test_layers_that_the_checkpoint_does_not_have_are_refused(
    folder: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_drafter(draft_config(folder, **settings), {})


@pytest.mark.parametrize(
    ("speculation", "default", "expected"),
    [
        (SpeculationConfig(), None, (DEFAULT_THRESHOLD,) * 2),
        (SpeculationConfig(), (0.1, 0.2), (0.1, 0.2)),
        (SpeculationConfig(deepest_exit=3), (0.1, 0.2), (0.1,)),
        (SpeculationConfig(deepest_exit=2), (0.1, 0.2), ()),
        (SpeculationConfig(deepest_exit=3), None, (DEFAULT_THRESHOLD,)),
        (SpeculationConfig(thresholds=(0.5, 1.5)), (0.1, 0.2), (0.5, 1.5)),
        (SpeculationConfig(deepest_exit=3, thresholds=(0.5,)), (0.1, 0.2), (0.5,)),
        (SpeculationConfig(deepest_exit=2, thresholds=()), (0.1, 0.2), ()),
    ],
)
def test_thresholds_are_the_targets_else_the_drafts(
    speculation: SpeculationConfig,
    default: tuple[float, ...] | None,
    expected: tuple[float, ...],
) -> None:
    assert pair("one", speculation, EXITS, default).exits == ExitPolicy(expected, 0.3)


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        (
            SpeculationConfig(deepest_exit=4),
            r"targets\.one\.speculation\.deepest_exit 4: the draft's exits are \[2, 3, 5\]",
        ),
        (
            SpeculationConfig(thresholds=(0.5,)),
            r"targets\.one\.speculation\.thresholds needs 2 values, .* layer 5: got 1",
        ),
        (SpeculationConfig(deepest_exit=2, thresholds=(0.5, 0.5)), r"needs 0 values.* got 2"),
        (SpeculationConfig(deepest_exit=3, thresholds=()), r"needs 1 values.* got 0"),
    ],
)
def test_a_target_that_asks_for_other_exits_is_refused(
    speculation: SpeculationConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pair("one", speculation, EXITS, None)
