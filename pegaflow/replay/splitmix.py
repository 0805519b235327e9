"""splitmix64: 64-bit words made of numbers, without a pattern of them."""

import numpy as np
from numpy.typing import NDArray

from pegaflow.wire.units import Constant

Words = NDArray[np.uint64]

GOLDEN: Constant = 0x9E3779B97F4A7C15
"""Odd, so its multiples visit every 64-bit value."""


def mixed(x: Words) -> Words:
    """Its finisher: a bijection that leaves no pattern of its input."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
