"""What a transformer is, as data, and what it costs."""

from growth.architecture.architecture import Architecture
from growth.architecture.fields import LAYER_FIELDS, LayerShape
from growth.architecture.patches import Patches
from growth.architecture.rope_scaling import RopeScaling
from growth.architecture.validation import BIASES, ArchitectureError

__all__ = [
    "BIASES",
    "LAYER_FIELDS",
    "Architecture",
    "ArchitectureError",
    "LayerShape",
    "Patches",
    "RopeScaling",
]
