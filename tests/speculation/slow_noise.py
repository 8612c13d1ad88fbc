"""The noise once more, from plain integers."""

import hashlib
import struct
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", int, Tensor)

MULTIPLIERS = (569_420_461, 1_935_289_751)
INVERSES: tuple[int, int] = (pow(MULTIPLIERS[0], -1, 2**32), pow(MULTIPLIERS[1], -1, 2**32))


def slow_bits(seed: int, position: int, token_id: int) -> int:
    """The same bits from plain integers."""
    first, second = keys(seed, position)
    return slow_mix((slow_mix(token_id ^ first) + second) % 2**32)


def keys(seed: int, position: int) -> tuple[int, int]:
    """What seed and position come to: two 32-bit integers."""
    message = struct.pack("<QQ", seed % 2**64, position % 2**64)
    first, second = struct.unpack("<II", hashlib.blake2b(message, digest_size=8).digest())
    return first, second


def slow_mix(bits: Number) -> Number:
    """The mixer, for an integer or a tensor of them."""
    bits = (bits ^ bits >> 16) * MULTIPLIERS[0] % 2**32
    bits = (bits ^ bits >> 15) * MULTIPLIERS[1] % 2**32
    return bits ^ bits >> 15


def unmix(bits: int) -> int:
    """The inverse of the mixer."""
    bits ^= bits >> 15 ^ bits >> 30
    bits = bits * INVERSES[1] % 2**32
    bits ^= bits >> 15 ^ bits >> 30
    bits = bits * INVERSES[0] % 2**32
    return bits ^ bits >> 16


def id_with_bits(seed: int, position: int, bits: int) -> int:
    """The one 32-bit id that has these bits."""
    first, second = keys(seed, position)
    return unmix((unmix(bits) - second) % 2**32) ^ first
