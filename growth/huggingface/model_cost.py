"""What a model of Hugging Face costs: parameters and bytes of its tensors, operations per token."""

import dataclasses
from collections.abc import Iterable

from growth.architecture import Architecture
from growth.architecture.cost import ExtraParts, forward_flops_per_token
from growth.huggingface.tensor_files import TensorSpec


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What a model costs.

    Attributes:
      parameters: the number of its parameters.
      bytes: what they take on the disk.
      flops: floating point operations of a forward pass per token, at the longest sequence; see
        `growth.architecture.cost.forward_flops_per_token`.
    """

    parameters: int
    bytes: int
    flops: float


def model_cost_of(
    architecture: Architecture, tensors: Iterable[TensorSpec], extra: ExtraParts
) -> ModelCost:
    """The cost of a model.

    Args:
      architecture: what the model is.
      tensors: shapes and dtypes of its tensors.
      extra: what it has besides its architecture.
    """
    specs = list(tensors)
    return ModelCost(
        sum(spec.size for spec in specs),
        sum(spec.bytes for spec in specs),
        forward_flops_per_token(architecture, extra=extra),
    )
