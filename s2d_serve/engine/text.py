"""From token ids to text as they come: whole characters only, and nothing of a stop string.

`tokenizers`' own DecodeStream holds text back for ever after a byte that is no UTF-8, and never
gives out what is left at the end. Token ids are turned into bytes here and Python's incremental
UTF-8 decoder does the rest: 2 us per token, whatever came before.
"""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from s2d_serve.errors import UnsupportedModelError

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")

SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip"}
"""What the decoder of a Llama 2 tokenizer does: one step each, in this order."""


class Detokenizer:
    """What each token of one tokenizer adds to a text. One serves all streams.

    Byte-level BPE (SmolLM2, Qwen2) and Llama 2's sentencepiece BPE are known.

    Attributes:
        special_ids: tokens that add nothing to a text, such as EOS.
        strips_space: a text loses the space that it begins with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises UnsupportedModelError if the tokenizer is of another kind."""
        backend = tokenizer.backend_tokenizer
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
        steps = {step["type"] for step in decoder.get("decoders", [decoder]) if step}
        if steps != {"ByteLevel"} and not {"ByteFallback"} <= steps <= SENTENCEPIECE_STEPS:
            raise UnsupportedModelError(
                f"the tokenizer's decoder ({', '.join(sorted(steps)) or 'none'}) is not supported; "
                "ByteLevel and sentencepiece's with ByteFallback are"
            )
        self._token = backend.id_to_token
        self._byte_of = _byte_alphabet() if steps == {"ByteLevel"} else None
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.strips_space = "Strip" in steps

    def raw(self, token_id: int) -> bytes:
        """The token's bytes; its name if it is special, and none if there is no such token."""
        token = self._token(token_id) or ""
        if self._byte_of is None:
            byte = BYTE_TOKEN.fullmatch(token)
            return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        try:
            return bytes(self._byte_of[char] for char in token)
        except KeyError:  # an added token, written as it is
            return token.encode()


class TextStream:
    """One output's text, given out as its tokens arrive.

    What is held back is an unfinished character, and text that may begin a stop string. If no stop
    string comes, all that was given out is `tokenizer.decode(ids, skip_special_tokens=True)`,
    however the ids were split. (Llama 2's tokenizer writes one U+FFFD for each byte of a run that
    is no UTF-8; here it is one for each broken character, and the others of the run are kept.)

    Attributes:
        stop: the stop string that ended the text; None as long as there is none. It is the one that
            was complete first, the longest of those, and is not given out.
        num_tokens: tokens that belong to the text, up to the one that completed the stop string.
        token_offsets: for each of them, characters of the text before it; all tokens of one
            character have the same.
    """

    def __init__(self, detokenizer: Detokenizer, stop_strings: Sequence[str] = ()) -> None:
        assert all(stop_strings), "an empty stop string is refused with the request"
        self.stop: str | None = None
        self.num_tokens = 0
        self.token_offsets: list[int] = []
        self._detokenizer = detokenizer
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_Matcher(stop) for stop in stop_strings]
        self._held = ""
        self._num_chars = 0
        self._strip = detokenizer.strips_space

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens; returns the text that may be shown now.

        Tokens after a stop string are dropped.
        """
        shown = []
        for token_id in token_ids:
            if self.stop is not None:
                break
            self.num_tokens += 1
            self.token_offsets.append(self._num_chars)
            if token_id not in self._detokenizer.special_ids:
                shown.append(self._show(self._decoder.decode(self._detokenizer.raw(token_id))))
        return "".join(shown)

    def finish(self) -> str:
        """The rest of the text: nothing more can come."""
        if self.stop is not None:
            return ""
        shown = self._show(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return shown + rest

    def _show(self, text: str) -> str:
        """Of what is held and this text, what cannot be part of a stop string."""
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        self._num_chars += len(text)
        for end, char in enumerate(text if self._matchers else "", start=1):
            complete = [matcher.stop for matcher in self._matchers if matcher.feed(char)]
            if complete:
                self.stop = max(complete, key=len)
                text, self._held = self._held + text[:end], ""
                return text[: -len(self.stop)]
        text = self._held + text
        shown = len(text) - max((matcher.num_matched for matcher in self._matchers), default=0)
        self._held = text[shown:]
        return text[:shown]


class _Matcher:
    """Finds a string in a text that comes character by character.

    Source: Knuth, Morris, Pratt, "Fast Pattern Matching in Strings", SIAM J. Comput. 6 (1977).
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        """Characters at the text's end that begin the string: the most that do."""
        self._shorter = [0]  # for each prefix: the longest shorter prefix that it ends with
        for char in stop[1:]:
            self._shorter.append(self._extended(self._shorter[-1], char))

    def feed(self, char: str) -> bool:
        """Take a character; True if the string ends with it. Not to be fed afterwards."""
        self.num_matched = self._extended(self.num_matched, char)
        return self.num_matched == len(self.stop)

    def _extended(self, matched: int, char: str) -> int:
        while matched and self.stop[matched] != char:
            matched = self._shorter[matched - 1]
        return matched + 1 if self.stop[matched] == char else 0


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes.

    Bytes that print stand for themselves; the others follow in order from U+0100 on.
    """
    characters = sorted(ByteLevel.alphabet())
    as_they_are = [char for char in characters if ord(char) < 256]
    others = [byte for byte in range(256) if chr(byte) not in as_they_are]
    return {char: ord(char) for char in as_they_are} | dict(
        zip(characters[len(as_they_are) :], others, strict=True)
    )
