"""Same text, counted through HTTP: two SmolLM2 targets behind one draft, 8 requests at once.

    python -m benchmarks.identity --dtype float32

For each target, over 20 prompts of several kinds:

    greedy, drafted, at concurrency 8    against transformers' generate, one prompt at a time, and
                                         for each text that differs, how near the tie was
    seeded (T 0.8, top-p 0.95), drafted  against the same without a draft, at concurrency 1
"""

import argparse
import asyncio
import os
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from benchmarks.running import running_service
from s2d_serve.config import ModelConfig
from s2d_serve.engine.checkpoint import Checkpoint, load_checkpoint
from tests.engine.test_identity import PROMPTS, SMOLLM2, encode

TARGETS = {"smollm2-135m": "none", "smollm2-135m-int8": "int8"}
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True, slots=True)
class Answers:
    """Token ids of each prompt's answer, and what was drafted for all of them."""

    token_ids: list[list[int]]
    num_drafted: int
    num_accepted: int


def main() -> None:
    """Compare and print a line per comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    model = {"source": SMOLLM2, "dtype": options.dtype}
    speculation = {"draft_length": "fixed", "max_draft_tokens": 4}
    args = {
        "draft": {**model, "exit_layers": [10, 20, 30], "thresholds": [0.97, 0.95]},
        "targets": {
            name: {**model, "weight_rounding": rounding, "speculation": speculation}
            for name, rounding in TARGETS.items()
        },
    }
    print(f"SmolLM2-135M, {options.dtype}, {os.cpu_count()} cores, {options.tokens} tokens each")
    with running_service(args) as url:
        for name, rounding in TARGETS.items():
            stock = load_checkpoint(
                ModelConfig.model_validate(model | {"weight_rounding": rounding})
            )
            prompts = encode(stock, len(PROMPTS))
            ask = Asker(url, name, prompts, options.tokens)
            greedy = ask(8, GREEDY)
            expected = [generate(stock, prompt, options.tokens) for prompt in prompts]
            report(name, "greedy, 8 at once, against generate", greedy, expected)
            for prompt, ours, theirs in zip(prompts, greedy.token_ids, expected, strict=True):
                if ours != theirs:
                    apart = gap(stock, prompt, ours, theirs)
                    print(f"    differ where the two best logits are {apart:.3f} apart")
            sampled = ask(8, SAMPLED)
            alone = ask(1, SAMPLED | {"speculation": {"enabled": False}})
            assert alone.num_drafted == 0
            report(name, "seeded, 8 at once, against no draft", sampled, alone.token_ids)


def report(target: str, what: str, answers: Answers, expected: list[list[int]]) -> None:
    """One line: how many texts are the same, and that there was something to get wrong."""
    same = sum(a == b for a, b in zip(answers.token_ids, expected, strict=True))
    print(
        f"{target:18} {what:36} {same} of {len(expected)} identical; "
        f"{answers.num_drafted} drafted, {answers.num_accepted} accepted",
        flush=True,
    )


def generate(stock: Checkpoint, prompt: list[int], num_tokens: int) -> list[int]:
    """transformers' own greedy text."""
    input_ids = torch.tensor([prompt])
    output: Tensor = stock.model.generate(  # type: ignore[operator]  # untyped
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=sorted(stock.eos_token_ids),
        pad_token_id=0,
    )
    generated: list[int] = output[0, len(prompt) :].tolist()
    return generated


@torch.inference_mode()
def gap(stock: Checkpoint, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
    """How far apart the two largest logits are where two greedy texts part."""
    parted = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    logits = stock.model(input_ids=torch.tensor([prompt + theirs[:parted]])).logits[0, -1]
    best, second = logits.float().topk(2).values.tolist()
    return float(best - second)


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks all prompts of one target; prompt i has the seed i."""

    url: str
    target: str
    prompts: list[list[int]]
    num_tokens: int

    def __call__(self, concurrency: int, fields: dict[str, Any]) -> Answers:
        """The answers to all prompts, so many at a time."""
        bodies = asyncio.run(self._ask(concurrency, fields))
        drafted = [body["metrics"]["speculative_decoding"] for body in bodies]
        return Answers(
            [body["choices"][0]["token_ids"] for body in bodies],
            sum(counts["num_draft_tokens"] for counts in drafted),
            sum(counts["num_accepted_draft_tokens"] for counts in drafted),
        )

    async def _ask(self, concurrency: int, fields: dict[str, Any]) -> list[dict[str, Any]]:
        free = asyncio.Semaphore(concurrency)

        async def ask(seed: int, prompt: list[int]) -> dict[str, Any]:
            common = {"model": self.target, "max_tokens": self.num_tokens, "return_token_ids": True}
            async with free:
                answer = await client.post(
                    f"{self.url}/v1/completions",
                    json=common | {"prompt": prompt, "seed": seed} | fields,
                )
            answer.raise_for_status()
            body: dict[str, Any] = answer.json()
            return body

        async with httpx.AsyncClient(timeout=600) as client:
            return await asyncio.gather(*(ask(i, prompt) for i, prompt in enumerate(self.prompts)))


if __name__ == "__main__":
    main()
