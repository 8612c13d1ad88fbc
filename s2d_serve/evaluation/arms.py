"""Ways to answer a prompt that are measured side by side."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import torch
from transformers import PreTrainedModel

from s2d_serve.engine.messages import SequenceStart
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.errors import UnavailableError
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.statistics import SpeculationStatistics

TARGET_ONLY = "target-only"


@dataclass(frozen=True, slots=True)
class Task:
    """What every arm is asked for."""

    key: str
    text: str
    token_ids: tuple[int, ...]
    """The text in the target's chat template."""
    params: SamplingParams
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one arm."""

    output: tuple[int, ...] | str
    """Token ids, or text through HTTP: equal outputs are equal answers."""
    num_tokens: int
    seconds: float
    """From the prompt to the last token."""
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    """Of the rounds, where the arm tells."""


class Arm(Protocol):
    """One way to answer."""

    def run(self, task: Task) -> Run:
        """Answer once, and take the time."""


@dataclass(frozen=True, slots=True)
class EngineArm:
    """The reference loop, with a draft or without."""

    loop: ReferenceLoop

    def run(self, task: Task) -> Run:
        """Answer in this process."""
        start = SequenceStart(
            task.key, 0, task.token_ids, len(task.token_ids), task.params, task.max_tokens
        )
        statistics = SpeculationStatistics()
        output: list[int] = []
        started = time.perf_counter()
        for _, outcome in self.loop.generate([start]):
            output += outcome.token_ids
            if outcome.token_ids:
                tokens = len(outcome.token_ids)
                statistics.record(tokens, min(outcome.num_accepted, tokens), outcome.exits)
        return Run(tuple(output), len(output), time.perf_counter() - started, statistics)


@dataclass(frozen=True, slots=True)
class TransformersArm:
    """transformers' own generate: plain, with an assistant model, or with prompt lookup."""

    model: PreTrainedModel
    options: Mapping[str, Any]
    """assistant_model, prompt_lookup_num_tokens."""

    def run(self, task: Task) -> Run:
        """Answer with generate; sampled texts are its own, greedy ones the target's."""
        ids = torch.tensor([task.token_ids], device=self.model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if not task.params.is_greedy:
            sampling = {"do_sample": True, "temperature": task.params.temperature, "top_k": 0}
        started = time.perf_counter()
        output = self.model.generate(  # type: ignore[operator]  # untyped
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=task.max_tokens,
            eos_token_id=list(task.params.stop_token_ids),
            pad_token_id=task.params.stop_token_ids[0],
            **sampling,
            **self.options,
        )
        seconds = time.perf_counter() - started
        answer = tuple(output[0, ids.shape[1] :].tolist())
        return Run(answer, len(answer), seconds)


@dataclass(frozen=True, slots=True)
class HttpArm:
    """A running service, with speculation or without."""

    url: str
    target: str
    is_speculative: bool
    post: Callable[..., httpx.Response] = httpx.post

    def run(self, task: Task) -> Run:
        """Answer over HTTP, in one piece.

        Raises: UnavailableError if the service refuses.
        """
        body = {
            "model": self.target,
            "messages": [{"role": "user", "content": task.text}],
            "max_tokens": task.max_tokens,
            "temperature": task.params.temperature,
            "seed": task.params.seed,
            "speculation": {"enabled": self.is_speculative},
        }
        started = time.perf_counter()
        try:
            answer = self.post(f"{self.url}/v1/chat/completions", json=body, timeout=600)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self.url} does not answer: {error}") from None
        seconds = time.perf_counter() - started
        if answer.status_code != 200:
            raise UnavailableError(f"{self.url} answers {answer.status_code}: {answer.text[:300]}")
        fields = answer.json()
        choice = fields["choices"][0]
        num_tokens: int = fields["usage"]["completion_tokens"]
        told = fields["metrics"]["speculative_decoding"]
        statistics = SpeculationStatistics(
            num_rounds=told["num_rounds"],
            num_draft_tokens=told["num_draft_tokens"],
            num_accepted_tokens=told["num_accepted_draft_tokens"],
            num_committed_tokens=num_tokens,
            acceptance_histogram=told["acceptance_histogram"],
            exit_counts={int(n): count for n, count in told["exit_counts"].items()},
        )
        return Run(choice["message"]["content"], num_tokens, seconds, statistics)
