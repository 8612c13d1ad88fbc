"""The service as a client sees it, over real HTTP, Ray and tiny targets."""

import asyncio
import json
from itertools import cycle
from typing import Any

import httpx
import openai
import pytest

from s2d_serve.evaluation.arms import HttpArm, Task
from s2d_serve.speculation.params import SamplingParams
from tests.serving.conftest import Deploy

pytestmark = pytest.mark.ray

PROMPTS = ["the thing", "in the string of", "to sing", "a", "then there is the thing in it " * 20]


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """The tiny app."""
    return deploy(tiny_args)


def complete(url: str, prompt: str, **fields: Any) -> dict[str, Any]:
    """One completion, whole."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "return_token_ids": True} | fields
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def stream(url: str, prompt: str, **fields: Any) -> list[dict[str, Any]]:
    """One streamed completion's chunks; it must end with [DONE]."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "stream": True} | fields
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "top_p": 0.95, "seed": -5},
    {"temperature": 1.2, "top_k": 20, "repetition_penalty": 1.3, "seed": 1, "ignore_eos": True},
    {"temperature": 0.7, "presence_penalty": 1.0, "frequency_penalty": 0.5, "seed": 2**62},
]


@pytest.mark.parametrize(
    ("target", "sampling"), list(zip(cycle(["tiny", "tiny-int8"]), SAMPLING, strict=False))
)
def test_speculation_changes_no_token(url: str, target: str, sampling: dict[str, Any]) -> None:
    """The same text with it on and off, and it was really on."""
    num_drafted = num_accepted = 0
    for prompt in PROMPTS:
        fields = {"model": target, **sampling}
        with_draft = complete(url, prompt, **fields)
        alone = complete(url, prompt, speculation={"enabled": False}, **fields)
        assert with_draft["choices"] == alone["choices"]
        counts = with_draft["metrics"]["speculative_decoding"]
        num_drafted += counts["num_draft_tokens"]
        num_accepted += counts["num_accepted_draft_tokens"]
        assert alone["metrics"]["speculative_decoding"]["num_draft_tokens"] == 0
    assert num_drafted > 50
    assert num_accepted > 10


def test_a_streams_rounds_are_its_tokens(url: str) -> None:
    """Their committed tokens are the text's, and their counts are the sums."""
    asked = {"speculation": {"detailed": True}, "stream_options": {"include_usage": True}}
    fields = {"temperature": 0.8, "seed": 4, "return_token_ids": True, **asked}
    *chunks, usage = stream(url, PROMPTS[1], **fields)
    rounds = [details for chunk in chunks for details in chunk["s2d"]["rounds"]]
    told = [token["token_id"] for details in rounds for token in details["committed"]]
    assert told == [i for chunk in chunks for i in chunk["choices"][0]["token_ids"]]
    assert all(details["round_s"] > 0 and details["verify_s"] > 0 for details in rounds)
    guesses = [guess for details in rounds for guess in details["draft"]]
    assert {guess["exit"] for guess in guesses} <= {0, 2, 4}
    counts = usage["metrics"]["speculative_decoding"]
    assert counts["num_draft_tokens"] == len(guesses) > 0
    assert counts["rounds"] == rounds


def test_a_batch_of_clients_gets_what_each_gets_alone(url: str) -> None:
    """Concurrency changes no text, over two targets at once."""
    asks = [
        {"model": target, "prompt": prompt, "max_tokens": 60, "temperature": 0.9, "seed": seed}
        for target in ("tiny", "tiny-int8")
        for seed, prompt in enumerate(PROMPTS)
    ]

    async def together() -> list[Any]:
        async with httpx.AsyncClient(timeout=120) as client:
            answers = await asyncio.gather(
                *(client.post(f"{url}/v1/completions", json=ask) for ask in asks)
            )
        return [answer.json()["choices"][0]["text"] for answer in answers]

    alone = [
        httpx.post(f"{url}/v1/completions", json=ask, timeout=60).json()["choices"][0]["text"]
        for ask in asks
    ]
    assert asyncio.run(together()) == alone


def test_a_stream_says_what_the_whole_response_says(url: str) -> None:
    """Text, tokens, logprobs and counts, piece by piece or at once."""
    fields = {"temperature": 0.8, "seed": 11, "logprobs": 2, "return_token_ids": True}
    at_once = complete(url, "the string", **fields)
    chunks = stream(url, "the string", stream_options={"include_usage": True}, **fields)
    usage = chunks.pop()
    pieces = [chunk["choices"][0] for chunk in chunks]
    assert len(pieces) > 3
    choice = at_once["choices"][0]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    assert [i for piece in pieces for i in piece["token_ids"]] == choice["token_ids"]
    for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        joined = [entry for piece in pieces for entry in piece["logprobs"][key]]
        assert len(joined) == len(choice["logprobs"][key])
        for entry, whole in zip(joined, choice["logprobs"][key], strict=True):
            assert entry == (whole if key == "tokens" else pytest.approx(whole, abs=1e-5))
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == at_once["usage"]


def test_stop_strings_end_the_text_before_them(url: str) -> None:
    """Also across tokens and accepted blocks; tokens after them are not counted."""
    fields = {"temperature": 1.0, "seed": 3, "max_tokens": 60}
    free = complete(url, "the", **fields)["choices"][0]["text"]
    stop = free[20:25]
    cut = complete(url, "the", stop=[stop, "never comes"], **fields)
    assert cut["choices"][0]["text"] == free[: free.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["choices"][0]["stop_reason"] == stop
    assert cut["usage"]["completion_tokens"] == len(cut["choices"][0]["token_ids"]) < 60
    pieces = stream(url, "the", stop=stop, **fields)
    assert "".join(p["choices"][0]["text"] for p in pieces) == free[: free.index(stop)]


def test_choices_and_prompts_have_seeds_of_their_own(url: str) -> None:
    """Choice 0 is the plain request; each differs; each can be asked for again."""
    fields = {"temperature": 1.0, "seed": 21}
    both = complete(url, "the", n=2, **fields)
    assert len({choice["text"] for choice in both["choices"]}) == 2
    assert both["choices"][0]["text"] == complete(url, "the", **fields)["choices"][0]["text"]
    several = httpx.post(
        f"{url}/v1/completions",
        json={"model": "tiny", "prompt": ["the", "in"], "n": 2, "max_tokens": 20, **fields},
        timeout=60,
    ).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert "metrics" not in several


def test_a_request_without_a_seed_reports_the_one_it_got(url: str) -> None:
    """So that its text can be had again."""
    first = complete(url, "the", temperature=1.0)
    again = complete(url, "the", temperature=1.0, seed=first["seed"])
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert complete(url, "the", temperature=1.0)["seed"] != first["seed"]


def test_the_openai_client_works_unchanged(url: str) -> None:
    """Models, chat, streams, completions, logprobs, errors."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "tiny-int8"]
        messages: Any = [{"role": "user", "content": "the thing?"}]
        ask: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 30, "seed": 4}
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        assert whole.choices[0].logprobs is not None
        text = ""
        with client.chat.completions.create(**ask, stream=True) as pieces:
            for piece in pieces:
                text += piece.choices[0].delta.content or ""
        assert text == whole.choices[0].message.content
        completion = client.completions.create(
            model="tiny", prompt="the", max_tokens=5, extra_body={"min_tokens": 5}
        )
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 5
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**ask | {"model": "nobody"})
        with pytest.raises(openai.BadRequestError, match="tools"):
            client.chat.completions.create(**ask, tools=[])


def test_models_are_named_by_their_weights(url: str) -> None:
    """State, hash, type and draft of each."""
    card = httpx.get(f"{url}/v1/models/tiny-int8", timeout=30).json()
    assert card["s2d"]["state"] == "ready"
    assert card["s2d"]["weights"]["sha256"].endswith("+int8")
    assert card["s2d"]["draft"]["exit_layers"] == [2, 4]
    assert card["max_model_len"] == 1024


def test_tokenize_and_detokenize_are_inverse(url: str) -> None:
    """Per target."""
    ids = httpx.post(f"{url}/tokenize", json={"model": "tiny", "prompt": "the ß"}).json()
    text = httpx.post(f"{url}/detokenize", json={"model": "tiny", "tokens": ids["tokens"]}).json()
    assert ids["count"] == len(ids["tokens"])
    assert text == {"prompt": "the ß"}


def test_an_evaluation_reads_what_the_service_tells(url: str) -> None:
    """The same text with and without draft, and what the draft did."""
    task = Task("t", "the thing", (), SamplingParams(temperature=0.0), 200)
    alone, drafted = (HttpArm(url, "tiny", is_on).run(task) for is_on in (False, True))
    assert alone.output == drafted.output
    assert alone.num_tokens == drafted.num_tokens
    assert alone.statistics.num_draft_tokens == 0
    assert 0 < drafted.statistics.num_accepted_tokens <= drafted.statistics.num_draft_tokens
    assert sum(drafted.statistics.exit_counts.values()) == drafted.statistics.num_draft_tokens
    assert drafted.statistics.mean_accepted_tokens > 1
