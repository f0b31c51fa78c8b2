"""What positions add to attention, as numbers: rotary frequencies, ALiBi's slopes, sinusoids."""

import math

import numpy as np
from jaxtyping import Float64

from growth.architecture.rope_scaling import RopeScaling


def rotary_frequencies(
    width: int, theta: float, scaling: RopeScaling | None
) -> Float64[np.ndarray, "{width}//2"]:
    """The frequencies θ^(-2i/width) of pairs of columns: [width/2], float64."""
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return frequencies if scaling is None else scaling(frequencies)


def alibi_slopes(num_heads: int) -> Float64[np.ndarray, "{num_heads}"]:
    """ALiBi's slopes [num_heads], float64 (Press et al., arXiv 2108.12409, section 3).

    For 2^n heads they are 2^(-8i/2^n), i from 1. Other numbers of heads take the slopes of the
    power of two below, and then every other one of those of the power of two above.
    """
    below = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-8 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([slopes, between[: num_heads - below]])


def sinusoids(length: int, width: int) -> Float64[np.ndarray, "{length} {width}"]:
    """Sinusoidal positions [length, width], float64: sines in the first half, cosines after."""
    half = (width + 1) // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
