"""What a model costs: its parameters, bytes, and operations per token, from its tensors."""

import dataclasses
from collections.abc import Mapping

from growth.architecture import Architecture
from growth.blueprints.parameters import Parameter
from growth.huggingface.family import Config
from growth.huggingface.tensors import Spec


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
      parameters: the number of its parameters.
      bytes: what they take on the disk.
      flops: floating point operations of a forward pass per token, at the longest sequence.
    """

    parameters: int
    bytes: int
    flops: float


def cost(
    specs: Mapping[str, Spec],
    parameters: Mapping[str, Parameter],
    architecture: Architecture,
    config: Config,
) -> Cost:
    """The cost of a model.

    A multiply-add counts as two operations. Attention is counted over the whole square, as dense
    attention computes it; of several experts those that a token sees. Norms, activations and
    look-ups are left out, as is usual.

    Args:
      specs: shapes and dtypes of its tensors by name.
      parameters: what they are.
      architecture: what the model is.
      config: its config, for the number of experts that a token sees.
    """
    weights = 0.0
    for name, parameter in parameters.items():
        spec, roles = specs[name], parameter.rule.roles
        if len(spec.shape) < 2 or "position" in roles:
            continue
        if "embedding" in roles and not architecture.tied_embeddings:
            continue
        is_expert = "expert" in parameter.rule.indices
        share = config["num_experts_per_tok"] / config["num_local_experts"] if is_expert else 1
        weights += spec.size * share
    attention = sum(
        layer.num_heads * (layer.qk_dim + layer.v_dim) * architecture.max_length
        for layer in architecture.layers
    )
    every = specs.values()
    return Cost(
        sum(spec.size for spec in every),
        sum(spec.bytes for spec in every),
        2 * (weights + attention),
    )
