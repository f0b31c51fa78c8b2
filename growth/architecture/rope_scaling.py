"""`RopeScaling`: how rotary frequencies are stretched for longer sequences."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float64

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

    def __call__(
        self, frequencies: Float64[np.ndarray, "half_width"]
    ) -> Float64[np.ndarray, "half_width"]:
        """The frequencies [width/2], stretched."""
        if self.kind == "linear":
            return frequencies / self.factor
        turns = self.original_length * frequencies / (2 * math.pi)  # in the original length
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)
