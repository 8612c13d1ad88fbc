from typing import cast

import pytest
import torch
from torch import Tensor, nn

from s2d_serve import cpu
from s2d_serve.engine.linears import (
    INT8_FROM_TOKENS,
    MIN_PACKED_WEIGHTS,
    WHOLE_FROM_TOKENS,
    Int4Linear,
    Int8Linear,
    PackedLinear,
    RoundedLinear,
    SteadyLinear,
    as_linear,
    prepare,
    prepare_layers,
)


def layer(columns: int, rows: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(columns + rows)
        return nn.Linear(columns, rows, bias=bias).to(dtype).requires_grad_(False)


def states(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [64, 100])  # 100 is no multiple of 16
@pytest.mark.parametrize(("kind", "worst"), [(Int8Linear, 0.02), (Int4Linear, 0.15)])
def test_rounded_layers_are_near_the_whole_one(
    kind: type[nn.Module], worst: float, rows: int, bias: bool
) -> None:
    whole = layer(96, rows, torch.bfloat16, bias)
    inputs = states(2, 3, 96, dtype=torch.bfloat16)
    expected, found = whole(inputs).float(), kind(whole)(inputs).float()
    assert found.shape == (2, 3, rows)
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < worst


def test_int4_is_as_exact_as_sixteen_levels_can_be() -> None:
    levels = torch.arange(16.0) / 4 - 1
    weight = levels[torch.randint(16, (32, 64), generator=torch.Generator().manual_seed(1))]
    weight[:, ::32], weight[:, 1::32] = levels[0], levels[15]  # each group spans all levels
    inputs = states(4, 64, dtype=torch.bfloat16).float()
    found = Int4Linear(as_linear(weight))(inputs)
    assert found.dtype == torch.float32
    assert torch.allclose(found, inputs @ weight.T, rtol=2**-8, atol=1e-3)


def test_packed_rows_do_not_depend_on_their_number() -> None:
    whole = layer(256, 512, torch.float32)
    packed = prepare(whole)
    assert isinstance(packed, PackedLinear)
    inputs = states(9, 256, dtype=torch.float32)
    together = packed(inputs)
    assert torch.allclose(together, whole(inputs), atol=1e-5)
    for n in (1, 2, 5):
        assert torch.equal(packed(inputs[:n]), together[:n])


@pytest.mark.parametrize("bias", [True, False])
def test_a_bfloat16_token_alone_is_the_one_beside_others(bias: bool) -> None:
    whole = layer(1536, 1536, torch.bfloat16, bias)
    steady = SteadyLinear(whole)
    for inputs in states(20, 2, 1536, dtype=torch.bfloat16):
        together = whole(inputs)
        assert torch.equal(steady(inputs), together)
        assert torch.equal(steady(inputs[:1]), together[:1])
        assert torch.equal(steady(inputs[0]), together[0])
        assert steady(inputs[:0]).shape == (0, 1536), "a pass that reads and samples nothing"
    assert isinstance(prepare(whole), SteadyLinear if cpu.has_bfloat16() else nn.Linear)


def test_what_gains_nothing_stays_as_it_is() -> None:
    small = layer(64, MIN_PACKED_WEIGHTS // 64 - 1, torch.float32)
    assert prepare(small) is small
    double = layer(256, 512, torch.float64)
    assert prepare(double) is double
    odd = layer(40, 64, torch.float32)  # no whole groups of 32
    assert prepare(odd, "int4") is odd
    assert isinstance(prepare(odd, "int8"), Int8Linear)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_int8_token_is_as_exact_beside_a_thousand_times_larger_one(dtype: torch.dtype) -> None:
    whole = layer(256, 512, dtype)
    int8 = Int8Linear(whole)
    inputs = states(3, 256, dtype=dtype)
    inputs[0] *= 1000
    expected = nn.functional.linear(inputs.double(), whole.weight.double(), whole.bias.double())
    found = int8(inputs)
    assert found.dtype == dtype
    for token in range(3):
        error = (found[token] - expected[token]).norm() / expected[token].norm()
        assert 0 < float(error) < 0.02


def test_int8_products_are_added_up_without_overflow() -> None:
    weight, inputs = torch.ones(16, 256), torch.ones(2, 256)
    found = Int8Linear(as_linear(weight))(inputs)
    assert torch.allclose(found, torch.full((2, 16), 256.0), rtol=0.01)


@pytest.mark.parametrize(
    ("has_bfloat16", "num_many", "worst"),
    [(True, WHOLE_FROM_TOKENS, 0.005), (False, INT8_FROM_TOKENS, 0.02)],
    ids=["whole", "int8"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_tokens_meet_int4_weights_and_many_more_exact_ones(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    has_bfloat16: bool,
    num_many: int,
    worst: float,
) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: has_bfloat16)
    whole = layer(256, 512, dtype)
    prepared, int4 = prepare(whole, "int4"), Int4Linear(whole)
    inputs = states(num_many, 256, dtype=dtype)
    assert torch.equal(prepared(inputs[1:]), int4(inputs[1:]))
    expected = nn.functional.linear(inputs.double(), whole.weight.double(), whole.bias.double())

    def error(found: Tensor) -> float:
        return float((found - expected).norm() / expected.norm())

    assert prepared(inputs).dtype == dtype
    assert error(prepared(inputs)) < worst < error(int4(inputs))


def test_every_linear_layer_inside_is_prepared() -> None:
    block = nn.Sequential(
        layer(64, 64, torch.bfloat16), nn.Sequential(nn.Linear(64, 32)), nn.SiLU()
    )
    prepare_layers([block], "int4")
    assert isinstance(block[0], RoundedLinear)
    assert isinstance(cast(nn.Sequential, block[1])[0], RoundedLinear)
    assert isinstance(block[2], nn.SiLU)
