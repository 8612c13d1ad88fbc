"""From a request to sequences: tokens, sampling parameters, and what does not fit, refused."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from s2d_serve.api.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from s2d_serve.config import TargetConfig
from s2d_serve.engine.text import Detokenizer
from s2d_serve.errors import bad_request
from s2d_serve.serving.router import Generation
from s2d_serve.speculation.noise import choice_seed
from s2d_serve.speculation.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A target's tokenizer, and what a router needs of it."""

    tokenizer: PreTrainedTokenizerFast
    detokenizer: Detokenizer
    size: int
    """Largest token id + 1."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A request in tokens: its sequences, in the order of its choices."""

    generations: tuple[Generation, ...]
    seed: int
    """The request's, or the random one it got."""
    num_prompt_tokens: int
    """All prompts together, each once."""


def plan(request: GenerationRequest, target: TargetConfig, vocabulary: Vocabulary) -> Plan:
    """Lay a request out.

    Raises:
        RequestError: a prompt or a limit that does not fit the target.
    """
    prompts = [
        _checked(prompt, request, target, vocabulary) for prompt in _prompts(request, vocabulary)
    ]
    seed = random.getrandbits(63) if request.seed is None else request.seed
    _check_ids(request, vocabulary)
    generations = [
        Generation(
            request.model,
            prompt,
            _params(request, choice_seed(seed, choice)),
            request.token_limit or target.max_context - len(prompt),
            request.ignore_eos,
            request.logprobs_requested,
            request.speculation.enabled,
            request.speculation.max_draft_tokens,
        )
        for prompt in prompts
        for choice in range(request.n)
    ]
    return Plan(tuple(generations), seed, sum(map(len, prompts)))


def _prompts(request: GenerationRequest, vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    if isinstance(request, ChatCompletionRequest):
        return [_chat(request, vocabulary.tokenizer)]
    assert isinstance(request, CompletionRequest)
    return [
        tuple(vocabulary.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
        for prompt in request.prompts
    ]


def _chat(request: ChatCompletionRequest, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The messages in the model's own template."""
    if tokenizer.chat_template is None:
        raise bad_request(
            f"target {request.model!r} has no chat template; use /v1/completions", "messages"
        )
    messages = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        | ({} if message.name is None else {"name": message.name})
        for message in request.messages
    ]
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise bad_request(f"the model's chat template refuses: {error}", "messages") from None
    return tuple(ids)


def _checked(
    prompt: tuple[int, ...],
    request: GenerationRequest,
    target: TargetConfig,
    vocabulary: Vocabulary,
) -> tuple[int, ...]:
    param = "messages" if request.kind == "chat" else "prompt"
    if not prompt:
        raise bad_request("the prompt has no tokens; give at least one", param)
    if max(prompt) >= vocabulary.size:
        raise bad_request(
            f"token id {max(prompt)} is not in the vocabulary of {vocabulary.size} ids", param
        )
    if len(prompt) >= target.max_context:
        raise bad_request(
            f"the prompt has {len(prompt)} tokens; target {request.model!r} takes "
            f"{target.max_context} with the output; shorten it",
            param,
        )
    limit = request.token_limit
    if limit is not None and len(prompt) + limit > target.max_context:
        raise bad_request(
            f"{len(prompt)} prompt tokens and {limit} of output exceed the "
            f"{target.max_context} tokens of target {request.model!r}; ask for "
            f"{target.max_context - len(prompt)} or fewer",
            "max_tokens" if request.max_tokens else "max_completion_tokens",
        )
    if request.min_tokens > (limit or target.max_context - len(prompt)):
        raise bad_request(
            f"min_tokens {request.min_tokens} is more than the output can have", "min_tokens"
        )
    return prompt


def _check_ids(request: GenerationRequest, vocabulary: Vocabulary) -> None:
    """Token ids that the target does not have are refused by the field that holds them."""
    named: tuple[tuple[str, Sequence[int]], ...] = (
        ("logit_bias", tuple(request.logit_bias)),
        ("stop_token_ids", request.stop_token_ids),
    )
    for param, ids in named:
        if ids and max(ids) >= vocabulary.size:
            raise bad_request(
                f"token id {max(ids)} is not in the vocabulary of {vocabulary.size} ids", param
            )


def _params(request: GenerationRequest, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=tuple(sorted(request.logit_bias.items())),
        min_tokens=request.min_tokens,
        stop_token_ids=tuple(sorted(request.stop_token_ids)),
        seed=seed,
    )
