"""What a crowd at one target leaves another of the draft they share.

    python -m benchmarks.fairness

Starts `serve run` with two SmolLM2 targets and a draft that has fewer slots than the crowd has
streams. One client asks the quiet target the same questions: alone, beside a crowd at the busy
target that wants no draft (so that they share cores only), and beside one that does. Prints what
this client and the crowd got: tokens per target pass, which do not depend on how fast the machine
is, and tokens/s, which do.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.running import chat_body, repeating, running_service
from benchmarks.service import SOURCE

QUIET, BUSY = "quiet", "busy"
NUM_SLOTS = 4
"""Of the draft."""
MODEL = {"source": SOURCE, "dtype": "float32", "max_context": 512}
TARGET = {**MODEL, "speculation": {"draft_length": "fixed", "max_draft_tokens": 4}}
ARGS: dict[str, Any] = {
    "draft": {
        **MODEL,
        "dtype": "bfloat16",
        "quantization": "int4",
        "trained": "drafts/smollm2-135m",
        "max_sequences": NUM_SLOTS,
    },
    "targets": {
        QUIET: TARGET,
        BUSY: {**TARGET, "weight_rounding": "int8", "max_sequences": 16},
    },
    "router": {"draft_patience_s": 60.0},
}
QUESTIONS = (
    "Count from one to thirty in words.",
    "What is the capital of France? Answer in three sentences.",
    "Repeat this sentence three times: the quick brown fox jumps over the lazy dog.",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got."""

    num_tokens: int
    num_rounds: int
    seconds: float


def main() -> None:
    """Run the three cases in turn, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--crowd", type=int, default=12, help="streams at the busy target")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with running_service(ARGS) as url:
        cases: dict[str, list[Answer]] = {"alone": [], "crowd, no draft": [], "crowd, draft": []}
        crowds: dict[str, list[Answer]] = {name: [] for name in cases}
        for _ in range(options.repeats):
            for name, answers in cases.items():
                size = 0 if name == "alone" else options.crowd
                with crowd(url, size, options.tokens, name == "crowd, draft") as seen:
                    answers += [ask(url, QUIET, question, options.tokens) for question in QUESTIONS]
                crowds[name] += seen
    print("| | quiet: tokens per pass | tokens/s | busy: tokens per pass | tokens/s, each |")
    print("|---|---|---|---|---|")
    for name, answers in cases.items():
        print(f"| {name} | {_row(answers)} | {_row(crowds[name]) if crowds[name] else ' | '} |")


def _row(answers: Sequence[Answer]) -> str:
    num_tokens = sum(answer.num_tokens for answer in answers)
    per_pass = num_tokens / sum(answer.num_rounds for answer in answers)
    speed = statistics.median(answer.num_tokens / answer.seconds for answer in answers)
    return f"{per_pass:.2f} | {speed:.2f}"


@contextmanager
def crowd(url: str, size: int, num_tokens: int, drafted: bool) -> Iterator[list[Answer]]:
    """So many clients that ask the busy target again and again while the block runs."""
    seen: list[Answer] = []

    def load(number: int) -> None:
        question = QUESTIONS[number % len(QUESTIONS)]
        seen.append(ask(url, BUSY, question, num_tokens, drafted))

    with repeating(load, size):
        yield seen


def ask(url: str, model: str, question: str, num_tokens: int, drafted: bool = True) -> Answer:
    """One answer of exactly so many tokens."""
    body = chat_body(model, question, num_tokens, speculation={"enabled": drafted})
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    answer.raise_for_status()
    counts = answer.json()["metrics"]["speculative_decoding"]
    seconds = answer.elapsed.total_seconds()
    return Answer(num_tokens, counts["num_rounds"], seconds)


if __name__ == "__main__":
    main()
