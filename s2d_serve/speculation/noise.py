"""Shared randomness: Gumbel noise as a pure function of (seed, position, token id).

Draft and target draw the same noise without talking to each other, on any device and in any
process, so that verification is equality of tokens.

Source: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative
Decoding", arXiv:2408.07978. The 32-bit mixer is the two-multiply xorshift of the hash-prospector
search (Wellons), with multipliers below 2^31 so that 64-bit signed products never overflow.
"""

import hashlib
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)

MAX_NOISE = -math.log(-math.log1p(-0.5 / 2**32))
"""The largest value that `gumbel_noise` can take, about 22.9."""


def gumbel_noise(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise for each token id at one output position.

    Args:
        seed: the request's seed, any integer; taken modulo 2^64.
        position: index of the output token, from 0.
        token_ids: [...] int64, the tokenizer's ids.

    Returns:
        [...] float64, in (-3.2, `MAX_NOISE`].
    """
    uniform = (noise_bits(seed, position, token_ids).double() + 0.5) / 2**32
    return -torch.log(-torch.log1p(-uniform))


def noise_bits(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """The 32 random bits under `gumbel_noise`: [...] int64 in [0, 2^32), equal on every device."""
    digest = hashlib.blake2b(_words(seed, position), digest_size=8).digest()
    first_key = int.from_bytes(digest[:4], "little")
    second_key = int.from_bytes(digest[4:], "little")
    return _mix((_mix(token_ids.long() ^ first_key) + second_key) & _MASK)


def choice_seed(seed: int, choice: int) -> int:
    """Seed of the i-th choice of a request with `n` choices: choice 0 keeps the request's own."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(_words(seed, choice), digest_size=8, person=b"s2d-choice").digest()
    return int.from_bytes(digest, "little")


def _words(*values: int) -> bytes:
    return b"".join((value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for value in values)


def _mix(bits: Tensor) -> Tensor:
    """A bijection of 32-bit integers: any flipped input bit flips half of the output bits."""
    bits = ((bits ^ (bits >> 16)) * _MULTIPLIERS[0]) & _MASK
    bits = ((bits ^ (bits >> 15)) * _MULTIPLIERS[1]) & _MASK
    return bits ^ (bits >> 15)
