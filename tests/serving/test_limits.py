"""Every limit and every bad value, over HTTP: which status, which code, which field."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.fakes import FakeService, fake_service

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "the"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "the", "max_tokens": 4}


@pytest.fixture
def fake(weights: Path) -> FakeService:
    """A service over fakes."""
    return fake_service(weights)


REFUSED: list[tuple[str, dict[str, Any], int, str | None]] = [
    # (path, changed fields, status, param)
    ("completions", {"model": "nobody"}, 404, "model"),
    ("completions", {"prompt": ""}, 400, "prompt"),
    ("completions", {"prompt": []}, 400, "prompt"),
    ("completions", {"prompt": [10**6]}, 400, "prompt"),
    ("completions", {"prompt": [-1]}, 400, "prompt"),
    ("completions", {"prompt": "the " * 300}, 400, "prompt"),
    ("completions", {"max_tokens": 0}, 400, "max_tokens"),
    ("completions", {"max_tokens": 256}, 400, "max_tokens"),
    ("completions", {"model": "small", "max_tokens": 64}, 400, "max_tokens"),
    ("completions", {"min_tokens": 5}, 400, "min_tokens"),
    ("completions", {"prompt": ["a"] * 17}, 400, "prompt"),
    ("completions", {"prompt": ["a"] * 4, "n": 5}, 400, None),
    ("completions", {"n": 9}, 400, "n"),
    ("completions", {"logprobs": 21}, 400, "logprobs"),
    ("completions", {"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
    ("completions", {"stop": ""}, 400, "stop"),
    ("completions", {"stop_token_ids": [10**6]}, 400, "stop_token_ids"),
    ("completions", {"logit_bias": {"1000000": 1}}, 400, "logit_bias"),
    ("completions", {"logit_bias": {"1": 101}}, 400, "logit_bias"),
    ("completions", {"temperature": 2.1}, 400, "temperature"),
    ("completions", {"temperature": "hot"}, 400, "temperature"),
    ("completions", {"top_p": 0}, 400, "top_p"),
    ("completions", {"top_k": -2}, 400, "top_k"),
    ("completions", {"min_p": 1.5}, 400, "min_p"),
    ("completions", {"presence_penalty": 2.5}, 400, "presence_penalty"),
    ("completions", {"repetition_penalty": 0}, 400, "repetition_penalty"),
    ("completions", {"seed": 2**63}, 400, "seed"),
    ("completions", {"echo": True}, 400, "echo"),
    ("completions", {"suffix": "x"}, 400, "suffix"),
    ("completions", {"best_of": 2}, 400, "best_of"),
    ("completions", {"temprature": 1}, 400, "temprature"),
    ("completions", {"speculation": {"max_draft_tokens": 0}}, 400, "speculation.max_draft_tokens"),
    ("completions", {"speculation": {"depth": 1}}, 400, "speculation.depth"),
    ("chat/completions", {"messages": []}, 400, "messages"),
    ("chat/completions", {"tools": []}, 400, "tools"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, 400, "response_format"),
    ("chat/completions", {"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs"),
    ("chat/completions", {"max_tokens": 400}, 400, "max_tokens"),
    ("chat/completions", {"max_completion_tokens": 400}, 400, "max_completion_tokens"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
]


@pytest.mark.parametrize(("path", "fields", "status", "param"), REFUSED)
async def test_a_bad_value_is_refused_by_name(
    fake: FakeService, path: str, fields: dict[str, Any], status: int, param: str | None
) -> None:
    """Before any work, in OpenAI's shape, also of a stream."""
    body = (CHAT if path.startswith("chat") else TEXT) | fields
    for stream in (False, True):
        answer = await fake.client.post(f"/v1/{path}", json=body | {"stream": stream})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "\n" not in error["message"]
        if param is not None:
            assert error["param"] == param
    assert fake.router.generations == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"\xff", b"[" * 10**5])
async def test_a_body_that_is_no_json_object_is_refused(fake: FakeService, body: bytes) -> None:
    """With 400, whatever it is."""
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        answer = await fake.client.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_large_body_is_refused(weights: Path) -> None:
    """By its announced length, and by what comes where none was announced."""
    fake = fake_service(weights, limits={"max_body_bytes": 100})

    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 10

    assert (await fake.client.post("/v1/completions", content=b" " * 101)).status_code == 413
    assert (await fake.client.post("/v1/completions", content=pieces())).status_code == 413
    body = json.dumps(TEXT | {"max_tokens": 1}).encode().ljust(100)
    assert (await fake.client.post("/v1/completions", content=body)).status_code == 200


async def test_limits_are_the_deployments_own(weights: Path) -> None:
    """What one deployment refuses, another takes."""
    strict = fake_service(weights, limits={"max_n": 1, "max_logprobs": 0, "max_stop": 0})
    for fields in ({"n": 2}, {"logprobs": 1}, {"stop": "x"}):
        answer = await strict.client.post("/v1/completions", json=TEXT | fields)
        assert answer.status_code == 400
    assert (await strict.client.post("/v1/completions", json=TEXT)).status_code == 200


async def test_unknown_paths_and_methods(fake: FakeService) -> None:
    """404 and 405 have the same shape."""
    assert (await fake.client.get("/v1/nothing")).json()["error"]["code"]
    assert (await fake.client.get("/v1/completions")).status_code == 405
    assert (await fake.client.get("/v1/completions")).json()["error"]["message"]
    assert (await fake.client.get("/v1/models/nobody")).status_code == 404
    answer = await fake.client.post("/detokenize", json={"model": "tiny", "tokens": [10**6]})
    assert answer.json()["error"]["param"] == "tokens"
