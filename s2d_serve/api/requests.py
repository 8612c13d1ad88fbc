"""What clients may send: one frozen pydantic model per POST endpoint; `parse` reads them."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictBool,
    model_validator,
)

from s2d_serve.api.fields import (
    Biases,
    Count,
    NonEmptyText,
    Number,
    PositiveCount,
    Prompts,
    Seed,
    StopStrings,
    Temperature,
    Text,
    TokenIds,
    TopK,
)

Kind = Literal["completion", "chat"]
"""The two endpoints that generate."""

UNSUPPORTED = frozenset(
    {
        "audio",
        "best_of",
        "echo",
        "function_call",
        "functions",
        "metadata",
        "modalities",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "store",
        "suffix",
        "tool_choice",
        "tools",
        "verbosity",
        "web_search_options",
        # of a message, of one of its parts, of stream_options
        "annotations",
        "refusal",
        "tool_call_id",
        "tool_calls",
        "prompt_cache_breakpoint",
        "include_obfuscation",
    }
)
"""OpenAI's fields that are refused by name, unless they are null."""


class Body(BaseModel):
    """Base of all request bodies: frozen, an unknown field is an error, null is "not given"."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_asks_for_nothing(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = UNSUPPORTED.union(f.alias or name for name, f in cls.model_fields.items())
        given = {key: value for key, value in data.items() if key in known and value is not None}
        unknown = next((key for key in data if key not in known), None)
        return given if unknown is None else {**given, unknown: data[unknown]}  # one is enough


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: StrictBool = False
    """Send the counts of tokens in a last chunk."""


class Speculation(Body):
    """How the draft may work for this request; the text is the same in any case."""

    enabled: StrictBool = True
    """False: the target decodes alone."""
    max_draft_tokens: PositiveCount | None = None
    """Longest proposal of a round; lowers the target's own cap, never raises it."""
    detailed: StrictBool = False
    """Report each round, not only sums: in a stream with its tokens, and with the counts."""


def _in_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class TextPart(Body):
    """A piece of a message; images, audio and files are refused."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of a chat; tools have no role in it."""

    role: Literal["system", "developer", "user", "assistant"]
    parts: Annotated[
        tuple[TextPart, ...],
        Field(min_length=1),
        FailFast(),
        BeforeValidator(_in_parts, json_schema_input_type=str | tuple[TextPart, ...]),
    ] = Field(alias="content")
    name: Text | None = None
    """Who speaks, for chat templates that show it."""

    @property
    def text(self) -> str:
        """The content in one piece; parts are joined by a line break, as vLLM does."""
        return "\n".join(part.text for part in self.parts)


class GenerationRequest(Body, ABC):
    """What the two generating endpoints have in common; defaults are OpenAI's."""

    kind: ClassVar[Kind]
    default_token_limit: ClassVar[int | None] = None

    model: NonEmptyText
    max_tokens: PositiveCount | None = None
    max_completion_tokens: PositiveCount | None = None
    """OpenAI's newer name of max_tokens."""
    min_tokens: Count = 0
    """Tokens before an end of sequence or a stop token id may be chosen."""
    temperature: Temperature = 1.0
    """0 takes the likeliest token."""
    top_p: Number = Field(default=1.0, gt=0, le=1)
    top_k: TopK = 0
    """0 and -1: off."""
    min_p: Number = Field(default=0.0, ge=0, le=1)
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2)
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: Number = Field(default=1.0, ge=0.1, le=10)
    """1 is off. It scales logits: within these limits float32 neither overflows nor goes flat."""
    logit_bias: Biases = {}
    """What is added to the logit of a token id, -100 to 100."""
    seed: Seed | None = None
    stop_strings: StopStrings = Field(default=(), alias="stop")
    stop_token_ids: TokenIds = ()
    ignore_eos: StrictBool = False
    n: PositiveCount = 1
    """Choices per prompt."""
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: Text | None = None
    """Accepted as OpenAI does; nothing depends on it."""
    speculation: Speculation = Speculation()
    return_token_ids: StrictBool = False

    @property
    @abstractmethod
    def choices_requested(self) -> int:
        """Sequences to generate: prompts times n."""

    @property
    @abstractmethod
    def logprobs_requested(self) -> int | None:
        """Alternatives to report per token; None: no log-probabilities at all."""

    @property
    def token_limit(self) -> int | None:
        """Most tokens of a choice; None: as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens or self.default_token_limit

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    kind = "completion"
    default_token_limit = 16

    prompts: Prompts = Field(alias="prompt")
    logprobs: Count | None = None

    @property
    def choices_requested(self) -> int:
        return len(self.prompts) * self.n

    @property
    def logprobs_requested(self) -> int | None:
        return self.logprobs


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    kind = "chat"

    messages: Annotated[tuple[Message, ...], Field(min_length=1), FailFast()]
    logprobs: StrictBool = False
    top_logprobs: Count = 0

    @property
    def choices_requested(self) -> int:
        return self.n

    @property
    def logprobs_requested(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class TokenizeRequest(Body):
    """Body of POST /tokenize."""

    model: NonEmptyText
    prompt: Text
    add_special_tokens: StrictBool = True
    """Whether the tokenizer may put its own tokens around the text (a beginning of sequence)."""


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: NonEmptyText
    tokens: TokenIds
