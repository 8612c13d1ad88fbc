"""Linear layers that a CPU runs faster than torch's own.

*Packed* float32: oneDNN's layout of the same weights. Without it a pass over 2 to 8 tokens costs
two to three times one over a single token on CPUs without AVX-512, and verifying cannot pay.

*Steady* bfloat16: a token alone is multiplied twice. oneDNN takes one row with another kernel than
several, whose sums round differently, so that a near-tie could end one way with speculation and
another without. On CPUs with AVX512-BF16 rows are equal from two on, which take no longer than one.

*int4* and *int8* weights for a draft: a draft step reads all weights for one token, and smaller
weights are faster ones. What rounding does to the draft's tokens costs acceptance only, never text.
Activations are bfloat16 inside, whatever the model's type: torch has vector code for no other (576
to 1536, int4, one token, AVX2, 2 cores: 0.15 ms, in float32 1.20). Those kernels take a token after
the other, so that passes over many tokens, such as prompts, run over the whole weights, kept beside
the rounded ones (896 to 4864, 64 tokens, 2 cores with AMX: int4 3.2 ms, bfloat16 0.5; with AVX2
6.0, float32 2.6).

The kernels are torch's own, underscore and all: torchao 0.18 has no int4 for CPUs any more, and its
weight-only int8 is slower here than bfloat16.
"""

import ctypes
from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from s2d_serve import cpu

Quantization = Literal["none", "int8", "int4"]

GROUP_SIZE = 32
"""Weights of a row that share an int4 scale: the fewest, hence most exact, that the kernel has."""
INT4_LEVELS = 15
INT4_ROWS = 16
"""Outputs of an int4 layer come in multiples of this."""
KERNEL_DTYPE = torch.bfloat16
"""Of activations and scales in the kernels of rounded weights."""
MIN_PACKED_WEIGHTS = 65_536
"""Smaller layers gain nothing from another layout."""
WHOLE_FROM_TOKENS = 16
"""Tokens of a pass from which on whole weights are faster than rounded ones, with AMX as with AVX2.
"""
PACKED_FOR_TOKENS = 8
"""Tokens of a pass that the packed layout is made for; other numbers work as well."""


class PackedLinear(nn.Module):
    """[..., in] -> [..., out] in float32, with weights in oneDNN's layout.

    A token's outputs do not depend on how many tokens there are.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_TOKENS)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, "none", [], ""
        )
        return output


class SteadyLinear(nn.Module):
    """[..., in] -> [..., out] in bfloat16; a token alone gives what it gives beside another."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        if states.numel() != states.shape[-1]:
            return nn.functional.linear(states, self.weight, self.bias)
        twice = states.reshape(1, -1).expand(2, -1)
        output = nn.functional.linear(twice, self.weight, self.bias)[0]
        return output.view(*states.shape[:-1], -1)


class Int8Linear(nn.Module):
    """[..., in] -> [..., out] with weights rounded to int8 per output; no bias in the kernel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.float()
        scale = int8_scale(weight)
        self.weight = (weight / scale[:, None]).round_().to(torch.int8)
        self.scale = scale.to(KERNEL_DTYPE)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        flat = states.flatten(0, -2).to(KERNEL_DTYPE)
        output: Tensor = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale)
        output = output.to(states.dtype)
        output = output if self.bias is None else output + self.bias
        return output.view(*states.shape[:-1], -1)


class Int4Linear(nn.Module):
    """[..., in] -> [..., out] with weights rounded to 16 levels between the least and the largest
    of each group.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.float()
        rows, columns = weight.shape
        weight = nn.functional.pad(weight, (0, 0, 0, -rows % INT4_ROWS))
        groups = weight.reshape(weight.shape[0], columns // GROUP_SIZE, GROUP_SIZE)
        least, largest = groups.aminmax(dim=-1)
        scale = ((largest - least) / INT4_LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        levels = ((groups - least[..., None]) / scale[..., None]).round_().clamp_(0, INT4_LEVELS)
        middle = least + scale * ((INT4_LEVELS + 1) // 2)  # the kernel's levels go from -8 to 7
        self.num_outputs = rows
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            levels.flatten(1).to(torch.int32), 1
        )
        self.scales = torch.stack([scale.T, middle.T], -1).to(KERNEL_DTYPE).contiguous()
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        flat = states.flatten(0, -2).to(KERNEL_DTYPE).contiguous()
        output: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            flat, self.weight, GROUP_SIZE, self.scales
        )[:, : self.num_outputs].contiguous()
        output = output.to(states.dtype)
        output = output if self.bias is None else output + self.bias
        return output.view(*states.shape[:-1], -1)


class RoundedLinear(nn.Module):
    """[..., in] -> [..., out]: over rounded weights for few tokens, over whole ones for many."""

    def __init__(self, linear: nn.Linear, rounded: Int8Linear | Int4Linear) -> None:
        super().__init__()
        self.rounded = rounded
        self.dtype: torch.dtype = getattr(torch, cpu.fastest_dtype())
        self.whole = prepare(as_linear(linear.weight.to(self.dtype), linear.bias))

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        if states.numel() < WHOLE_FROM_TOKENS * states.shape[-1]:
            return cast(Tensor, self.rounded(states))
        return cast(Tensor, self.whole(states.to(self.dtype)).to(states.dtype))


def int8_scale(weight: Tensor) -> Tensor:
    """[out, in] float32 -> [out]: a step of int8 that takes each row's largest magnitude to 127."""
    return weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127


def as_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer with these weights, [out, in], not copied, and this bias, brought to their type."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    return linear


def prepare(linear: nn.Linear, quantization: Quantization = "none") -> nn.Module:
    """The layer as this device runs it best, outputs depending on other tokens as little as may be.

    It is left as it is where there is nothing to gain, or where its width is no multiple of an int4
    group.
    """
    if quantization == "int8":
        return RoundedLinear(linear, Int8Linear(linear))
    if quantization == "int4" and linear.in_features % GROUP_SIZE == 0:
        return RoundedLinear(linear, Int4Linear(linear))
    if _can_be_packed(linear.weight):
        return PackedLinear(linear)
    return SteadyLinear(linear) if _can_be_steady(linear.weight) else linear


@torch.no_grad()
def prepare_layers(layers: Iterable[nn.Module], quantization: Quantization = "none") -> None:
    """Prepare every linear layer inside these modules, in place."""
    for layer in layers:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, prepare(child, quantization))
        give_back_freed()


def give_back_freed() -> None:
    """Return freed memory to the system, where the C library can.

    glibc keeps freed blocks of less than 32 MiB, and weights laid out anew leave many: measured
    0.42 GB for SmolLM2-135M in float32, and up to 1.4 GB for Qwen2.5-Coder-0.5B in 4 bits, whose
    weights take 0.3.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _can_be_packed(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= MIN_PACKED_WEIGHTS
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # untyped
    )


def _can_be_steady(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and cpu.has_bfloat16()
