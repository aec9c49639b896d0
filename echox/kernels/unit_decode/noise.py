"""Random numbers of unit decoding: a function of request, position and vocabulary id alone.

No generator has a state, so a request draws the same numbers whatever batch, row, tile or device it
is in, and a captured graph draws new ones at every replay.
"""

from __future__ import annotations

from torch import Tensor

# Steele et al. 2014, "Fast splittable pseudorandom number generators" (SplitMix64): the step and
# the two factors of its mixer.
STEP = 0x9E3779B97F4A7C15
SEED_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# The 32-bit mixer of least bias among those Wellons' "hash-prospector" found, as signed numbers.
FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)
LARGEST = 1 - 2**-24  # the last float32 below 1


def mixed_seed(seed: int) -> int:
    """Turn a request's seed, any integer, into the signed 64-bit one that `UnitState.seed` holds.

    Seeds 0, 1, 2 come out unlike each other.
    """
    z = (seed + STEP) % 2**64
    for places, factor in zip((30, 27), SEED_FACTORS):
        z = (z ^ (z >> places)) * factor % 2**64
    return _signed(z ^ (z >> 31))


def gumbel_noise(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return standard Gumbel variates, float32 [B, V] between -2.9 and 22.2.

    Args:
        seed: int64 [B] as `mixed_seed` makes them.
        position: int64 [B] tokens that the request has generated before.
        ids: int32 [V] rows of the head.
    """
    return log_exponentials(seed, position, ids).neg_()


def log_exponentials(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return logarithms of standard exponential variates [B, V]: `gumbel_noise`, negated."""
    v = random_bits(seed, position, ids).float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=-LARGEST)
    # log(-log(1 - v)): the variates that win are small ones, and they lie at small v, where a
    # float32 is finest. v is negative here, so that log1p needs no further pass.
    return v.log1p_().neg_().log_()


def random_bits(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return 31 random bits for each request and id, int32 [B, V].

    The arguments are those of `gumbel_noise`.
    """
    keys = seed + position * _signed(STEP)  # [B]; wraps modulo 2^64
    # Shifts carry the sign along: the bit this costs is the one that is dropped at the end.
    bits = ids ^ keys.int()[:, None]
    bits = (bits ^ (bits >> 16)).mul_(FACTORS[0]).bitwise_xor_((keys >> 32).int()[:, None])
    bits = (bits ^ (bits >> 15)).mul_(FACTORS[1])
    return (bits ^ (bits >> 16)).bitwise_and_(0x7FFFFFFF)


def _signed(z: int) -> int:
    return z - 2**64 if z >= 2**63 else z
