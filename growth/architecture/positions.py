"""What positions add to attention, as numbers: rotary frequencies, ALiBi's slopes, sinusoids."""

import dataclasses
import math

import numpy as np

from growth.errors import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for sequences longer than those first trained on.

    It changes each frequency by itself, so growth, which keeps the old frequencies, keeps it exact.

    Attributes:
      kind: "linear" divides all frequencies by `factor`; "llama3" only those of wavelengths above
        `original_length / low_freq_factor`, none below `original_length / high_freq_factor`, and
        interpolates in between (Llama 3.1).
      factor: the divisor, at least 1.
      low_freq_factor, high_freq_factor, original_length: for "llama3".

    Raises:
      InputError: a field is out of range; the message names it.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise InputError(f"rope_scaling.kind is {self.kind!r}, not 'linear' or 'llama3'")
        if not self.factor >= 1:
            raise InputError(f"rope_scaling.factor is {self.factor!r}, but it must be at least 1")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"rope_scaling.low_freq_factor is {self.low_freq_factor!r}, but it must be between "
                f"0 and high_freq_factor, {self.high_freq_factor!r}"
            )

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """The frequencies, stretched."""
        if self.kind == "linear":
            return frequencies / self.factor
        turns = self.original_length * frequencies / (2 * math.pi)  # in the original length
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """The frequencies θ^(-2i/width) of `width // 2` pairs of columns, float64."""
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return frequencies if scaling is None else scaling(frequencies)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slope of every head, float64 (Press et al., arXiv 2108.12409, section 3).

    For 2^n heads they are 2^(-8i/2^n), i from 1. Other numbers of heads take the slopes of the
    power of two below, and then every other one of those of the power of two above.
    """
    below = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-8 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([slopes, between[: num_heads - below]])


def sinusoids(length: int, width: int) -> np.ndarray:
    """Sinusoidal positions [length, width], float64: sines in the first half, cosines after."""
    half = (width + 1) // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
