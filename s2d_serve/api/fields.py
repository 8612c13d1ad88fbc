"""Types of single fields, each with its limits, and how a field that has several forms is read."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, FailFast, Field, PlainValidator
from pydantic_core import PydanticCustomError

Prompt = str | tuple[int, ...]
"""A text, or the token ids of one."""

MAX_INT = 2**31 - 1
"""Largest token id and count: what an int32 array holds."""

LOWEST_TEMPERATURE = 1e-5
"""Less counts as 0, as in vLLM: logits divided by less overflow float32."""


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "must be Unicode without lone surrogates") from None
    return text


def _greedy_if_tiny(temperature: float) -> float:
    return temperature if temperature >= LOWEST_TEMPERATURE else 0.0


def _read_prompts(value: object) -> tuple[Prompt, ...]:
    """Each prompt of the request; a text or a list of ids is a single one."""
    single = isinstance(value, list) and value and isinstance(value[0], int)
    prompts = value if isinstance(value, list) and not single else [value]
    if not prompts:
        raise PydanticCustomError("prompt", "must not be empty")
    return tuple(_read_prompt(prompt) for prompt in prompts)


def _read_prompt(value: object) -> Prompt:
    if isinstance(value, str):
        return _unicode(value)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError(
            "prompt", "each prompt must be a text or a list of token ids", {"got": value}
        )
    for item in value:
        if type(item) is not int or not 0 <= item <= MAX_INT:
            raise PydanticCustomError(
                "prompt", f"a token id must be an integer from 0 to {MAX_INT}", {"got": item}
            )
    return tuple(value)


def _read_biases(value: object) -> dict[int, float]:
    """Biases by token id; JSON spells the ids as texts."""
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object")
    biases = {}
    for key, bias in value.items():
        if not re.fullmatch("0|[1-9][0-9]{0,9}", key) or int(key) > MAX_INT:
            raise PydanticCustomError("logit_bias", "keys must be token ids", {"got": key})
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "logit_bias", "a bias must be a number from -100 to 100", {"got": bias}
            )
        biases[int(key)] = float(bias)
    return biases


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


# strict: a number is no text and no bool, and the other way round; an int is fine for a float
Text = Annotated[str, Field(strict=True), AfterValidator(_unicode)]
NonEmptyText = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_unicode)]
Number = Annotated[float, Field(strict=True)]
Temperature = Annotated[Number, Field(ge=0, le=2), AfterValidator(_greedy_if_tiny)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_INT)]
PositiveCount = Annotated[int, Field(strict=True, ge=1, le=MAX_INT)]
TopK = Annotated[int, Field(strict=True, ge=-1, le=MAX_INT)]
Seed = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]
TokenIds = Annotated[tuple[Count, ...], FailFast()]
Biases = Annotated[
    dict[int, float], PlainValidator(_read_biases, json_schema_input_type=dict[str, float])
]
Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(
        _read_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
    ),
]
StopStrings = Annotated[
    tuple[NonEmptyText, ...],
    FailFast(),
    BeforeValidator(_listed, json_schema_input_type=str | tuple[NonEmptyText, ...]),
]
