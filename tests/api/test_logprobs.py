import math

from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.completion_choice import Logprobs

from s2d_serve.api.logprobs import (
    Candidate,
    ReportedToken,
    chat_logprobs,
    completion_logprobs,
)

THE = Candidate(b" the", -0.25)
A = Candidate(b" a", -1.5)
QUOTE = b"\xe2\x80\x99"  # one character
FIRST, LAST = Candidate(QUOTE[:2], -0.5), Candidate(QUOTE[2:], -0.125)


def test_completions_have_columns() -> None:
    tokens = [ReportedToken(A, (THE, A), 5), ReportedToken(THE, (THE,), 7)]
    body = completion_logprobs(tokens)
    assert body == {
        "tokens": [" a", " the"],
        "token_logprobs": [-1.5, -0.25],
        "top_logprobs": [{" the": -0.25, " a": -1.5}, {" the": -0.25}],
        "text_offset": [5, 7],
    }
    assert Logprobs.model_validate(body).model_dump() == body


def test_completions_always_report_the_chosen_token() -> None:
    body = completion_logprobs([ReportedToken(A, (THE,)), ReportedToken(A)])
    assert body["top_logprobs"] == [{" the": -0.25, " a": -1.5}, {" a": -1.5}]


def test_chats_have_an_object_per_token() -> None:
    body = chat_logprobs([ReportedToken(A, (THE,)), ReportedToken(THE)])
    assert body["content"] == [
        {
            "token": " a",
            "logprob": -1.5,
            "bytes": [32, 97],
            "top_logprobs": [{"token": " the", "logprob": -0.25, "bytes": [32, 116, 104, 101]}],
        },
        {"token": " the", "logprob": -0.25, "bytes": [32, 116, 104, 101], "top_logprobs": []},
    ]
    assert ChoiceLogprobs.model_validate(body).model_dump() == body


def test_no_tokens_are_no_error() -> None:
    assert chat_logprobs([])["content"] == []
    assert completion_logprobs([])["text_offset"] == []


def test_a_part_of_a_character_is_shown_as_bytes() -> None:
    assert (FIRST.text, LAST.text) == ("bytes:\\xe2\\x80", "bytes:\\x99")
    token = ReportedToken(FIRST, (FIRST, LAST))
    assert completion_logprobs([token])["top_logprobs"] == [
        {"bytes:\\xe2\\x80": -0.5, "bytes:\\x99": -0.125}
    ]


def test_an_impossible_token_has_openais_lowest_number() -> None:
    impossible = Candidate(b"x", -math.inf)
    body = chat_logprobs([ReportedToken(A, (impossible,))])
    logprobs = ChoiceLogprobs.model_validate(body)
    assert logprobs.content is not None
    assert logprobs.content[0].top_logprobs[0].logprob == -9999.0
