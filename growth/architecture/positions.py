"""What positions add to attention, as numbers: rotary frequencies, ALiBi's slopes, sinusoids."""

import dataclasses
import math

import numpy as np

from growth.architecture.validation import ArchitectureError, choice, positive_number


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
      ArchitectureError: a field is out of range; the message names it.

    Examples:
      >>> import numpy as np
      >>> from growth.architecture import RopeScaling
      >>> RopeScaling("linear", factor=4.0)(np.array([1.0, 0.1])).tolist()
      [0.25, 0.025]

    References:
      Rotary positions: Su et al., arXiv 2104.09864, section 3.2. Linear scaling: Chen et al.,
      arXiv 2306.15595, equation 4.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        choice("rope_scaling.kind", self.kind, ("linear", "llama3"))
        for field in dataclasses.fields(self)[1:]:
            positive_number(f"rope_scaling.{field.name}", getattr(self, field.name))
        if self.factor < 1:
            raise ArchitectureError(
                f"rope_scaling.factor is {self.factor!r}, but it must be at least 1"
            )
        if self.low_freq_factor >= self.high_freq_factor:
            raise ArchitectureError(
                f"rope_scaling.low_freq_factor is {self.low_freq_factor!r}, but it must be between "
                f"0 and high_freq_factor, {self.high_freq_factor!r}"
            )

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """The frequencies [width/2], stretched."""
        if self.kind == "linear":
            return frequencies / self.factor
        turns = self.original_length * frequencies / (2 * math.pi)  # in the original length
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """The frequencies θ^(-2i/width) of pairs of columns: [width/2], float64."""
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return frequencies if scaling is None else scaling(frequencies)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slopes [num_heads], float64 (Press et al., arXiv 2108.12409, section 3).

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
