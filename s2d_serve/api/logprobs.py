"""Log-probabilities in OpenAI's shapes: columns for completions, an object per token for chats."""

from collections.abc import Sequence
from dataclasses import dataclass

from s2d_serve.api.jsontext import Json

LOWEST_LOGPROB = -9999.0
"""OpenAI's word for "very unlikely"; JSON has no minus infinity."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that the target could choose, with its raw log-probability (before processing)."""

    raw: bytes
    """What it adds to the text; a part of a character is possible."""
    logprob: float

    @property
    def text(self) -> str:
        """The token as text."""
        return token_text(self.raw)


@dataclass(frozen=True, slots=True)
class ReportedToken:
    """One position of the output: the token that was chosen, and the likeliest ones."""

    chosen: Candidate
    top: tuple[Candidate, ...] = ()
    """As many as were asked for, the likeliest first."""
    text_offset: int = 0
    """Characters of the choice's text before it; all parts of one character have the same."""


def token_text(raw: bytes) -> str:
    r"""A token's bytes as text; OpenAI's `bytes:\\xe2\\x80` where they end inside a character.

    Two tokens of different bytes never share a text, so it can be a key.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def completion_logprobs(tokens: Sequence[ReportedToken]) -> Json:
    """The `logprobs` of a completion's choice.

    The chosen token is always among a position's alternatives, as OpenAI has it.
    """
    return {
        "tokens": [token.chosen.text for token in tokens],
        "token_logprobs": [_number(token.chosen) for token in tokens],
        "top_logprobs": [
            {candidate.text: _number(candidate) for candidate in (*token.top, token.chosen)}
            for token in tokens
        ],
        "text_offset": [token.text_offset for token in tokens],
    }


def chat_logprobs(tokens: Sequence[ReportedToken]) -> Json:
    """The `logprobs` of a chat completion's choice."""
    return {
        "content": [
            {**_entry(token.chosen), "top_logprobs": [_entry(candidate) for candidate in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _entry(candidate: Candidate) -> Json:
    return {
        "token": candidate.text,
        "logprob": _number(candidate),
        "bytes": list(candidate.raw),
    }


def _number(candidate: Candidate) -> float:
    return max(candidate.logprob, LOWEST_LOGPROB)
