import pytest

from s2d_serve import cpu
from s2d_serve.config import ModelConfig

CPUINFO = """\
processor\t: 0
model name\t: A Processor
flags\t\t: fpu avx2 avx512f {more}

processor\t: 1
model name\t: A Processor
flags\t\t: fpu avx2 avx512f {more}
"""


@pytest.mark.parametrize(
    ("settings", "has_bfloat16", "dtype"),
    [
        ({}, True, "bfloat16"),
        ({}, False, "float32"),
        ({"dtype": "auto"}, False, "float32"),
        ({"dtype": "auto", "device": "cuda:0", "num_gpus": 1}, False, "bfloat16"),
        ({"dtype": "bfloat16"}, False, "bfloat16"),
        ({"dtype": "float32"}, True, "float32"),
    ],
)
def test_auto_is_a_type_that_the_device_multiplies(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], has_bfloat16: bool, dtype: str
) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: has_bfloat16)
    config = ModelConfig.model_validate({"source": "model.gguf", **settings})
    assert config.dtype == dtype


def test_what_was_decided_stays_on_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    sent = ModelConfig(source="model.gguf").model_dump()
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: False)
    assert ModelConfig.model_validate(sent).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "has_bfloat16"),
    [
        (CPUINFO.format(more="avx512_bf16"), True),
        (CPUINFO.format(more="amx_bf16"), True),
        (CPUINFO.format(more="avx512_vnni"), False),
        ("Features\t: fp asimd bf16\n", True),
        (None, False),
    ],
)
def test_the_kernel_says_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, text: str | None, has_bfloat16: bool
) -> None:
    def read(path: object, encoding: str) -> str:
        if text is None:
            raise FileNotFoundError("/proc/cpuinfo")
        return text

    monkeypatch.setattr("pathlib.Path.read_text", read)
    cpu.fields.cache_clear()
    try:
        assert cpu.has_bfloat16() == has_bfloat16
    finally:
        cpu.fields.cache_clear()
