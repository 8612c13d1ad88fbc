"""Linear layers that a CPU runs faster than torch's own.

*Packed* float32: oneDNN's layout of the same weights. Without it a pass over 2 to 8 tokens costs
two to three times one over a single token on CPUs without AVX-512, and verifying cannot pay.

*Steady* bfloat16: a token alone is multiplied twice. oneDNN takes one row with another kernel than
several, whose sums round differently, so that a near-tie could end one way with speculation and
another without. On CPUs with AVX512-BF16 rows are equal from two on, which take no longer than one.

*int4* and *int8* weights are for a draft: a step reads all weights for one token, and smaller ones
are faster. What rounding does to the draft's tokens costs acceptance only, never text.

int4 takes activations in bfloat16, whatever the model's type: torch has vector code for no other
(576 to 1536, one token, AVX2, 2 cores: 0.15 ms, in float32 1.20). Its kernel takes a token after
the other, so that passes over many tokens, such as prompts, run over other weights, kept beside it:
whole ones where the CPU multiplies bfloat16 (896 to 4864, 64 tokens, 2 cores with AMX: int4 3.2 ms,
bfloat16 0.5), else int8.

int8 rounds activations as well, and multiplies integers (896 to 4864, AVX2, 2 cores, in ms: 1 token
0.27, 8 0.33, 64 1.8; int4 0.33, 0.92, 7.3; float32 0.92, 1.3, 4.4). It needs more small operations
around it: steps of SmolLM2-135M for one sequence are slower with it than with int4 (38 and 31 ms).

The kernels are torch's own, underscore and all: torchao 0.18 has no int4 for CPUs any more.
"""

import ctypes
import warnings
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
"""Of activations and scales in the kernel of int4 weights."""
SEVEN_BITS = True
"""The kernel's `reduce_range`."""
MIN_PACKED_WEIGHTS = 65_536
"""Smaller layers gain nothing from another layout."""
WHOLE_FROM_TOKENS = 16
"""Tokens of a pass from which on whole weights are faster than int4 ones, with AMX."""
INT8_FROM_TOKENS = 4
"""The same of int8 ones, with AVX2."""
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
    """[..., in] -> [..., out] with weights rounded to int8 per output.

    Activations are rounded to 7 bits: the kernels without VNNI add products up in 16, which are too
    few for 8. There is one step for all tokens, and each is brought to the same largest magnitude
    before: in some layers the first of a text is a thousand times the others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.float()
        scale = int8_scale(weight)
        zero = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a type's end, in some later release
            rounded = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self.weight = torch.ops.quantized.linear_prepack(rounded, None)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        values = states.float()
        largest = values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        output: Tensor = torch.ops.quantized.linear_dynamic(
            values / largest, self.weight, SEVEN_BITS
        )
        output = (output * largest).to(states.dtype)
        return output if self.bias is None else output + self.bias


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
    """[..., in] -> [..., out]: over int4 weights for few tokens, over others for many."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.few = Int4Linear(linear)
        if cpu.has_bfloat16():
            self.num_many, self.dtype = WHOLE_FROM_TOKENS, torch.bfloat16
            self.many = prepare(as_linear(linear.weight.to(self.dtype), linear.bias))
        else:
            self.num_many, self.dtype = INT8_FROM_TOKENS, torch.float32
            self.many = Int8Linear(linear)

    def forward(self, states: Tensor) -> Tensor:
        """Multiply; any number of leading dimensions."""
        if states.numel() < self.num_many * states.shape[-1]:
            return cast(Tensor, self.few(states))
        return cast(Tensor, self.many(states.to(self.dtype)).to(states.dtype))


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
        return Int8Linear(linear)
    if quantization == "int4" and linear.in_features % GROUP_SIZE == 0:
        return RoundedLinear(linear)
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
