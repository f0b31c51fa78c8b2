"""The number of parameters of an architecture, and the operations that a token costs."""

import dataclasses

from growth.architecture.fields import ArchitectureFields, LayerShape
from growth.architecture.validation import ArchitectureError, positive_int


@dataclasses.dataclass(frozen=True)
class Experts:
    """The MLPs of a layer, of which a router chooses some for each token (mixture of experts).

    Attributes:
      number: how many each layer has.
      per_token: how many of them a token sees.

    Raises:
      ArchitectureError: a field is out of range; the message names it.
    """

    number: int
    per_token: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            positive_int(f"experts.{field.name}", getattr(self, field.name))
        if self.per_token > self.number:
            raise ArchitectureError(
                f"experts.per_token is {self.per_token}, but it must be at most experts.number, "
                f"{self.number}"
            )


@dataclasses.dataclass(frozen=True)
class ExtraParts:
    """Parts of a model that cost, and that an `Architecture` has no field for.

    Attributes:
      experts: the experts of each layer; None where a layer has one MLP.
      word_dim: the width of embeddings, where it is not that of the residual stream: one matrix
        takes embeddings to the stream, and another what the stream ends with back to them.

    Raises:
      ArchitectureError: a field is out of range; the message names it.
    """

    experts: Experts | None = None
    word_dim: int | None = None

    def __post_init__(self) -> None:
        if self.word_dim is not None:
            positive_int("word_dim", self.word_dim)


NO_EXTRA_PARTS = ExtraParts()


def num_parameters(architecture: ArchitectureFields, extra: ExtraParts = NO_EXTRA_PARTS) -> int:
    """The number of parameters, biases and embeddings included."""
    arch, width = architecture, architecture.embed_dim
    if arch.patches is None:
        total = arch.vocab_size * (extra.word_dim or width) * (1 if arch.tied_embeddings else 2)
        total += 2 * width * (extra.word_dim or 0)
    else:  # patch embedding and head with their biases, class token
        total = (arch.patches.dim + 2) * width + (width + 1) * arch.vocab_size
    if arch.position == "learned":
        total += arch.max_length * width
    per_norm = arch.norm_gain + arch.has_bias("norm")  # parameters for each entry that is normed
    norm = width * per_norm
    total += norm * (arch.final_norm + arch.embed_norm)
    norms = {"pre": 2, "sandwich": 4, "closing": 2, "post": 2}[arch.norm_placement]
    norms -= arch.parallel == "shared_norm"
    mlps = 1 if extra.experts is None else extra.experts.number
    for layer in arch.layers:
        biases = {
            "query": layer.num_heads * layer.qk_dim,
            "key": layer.num_kv_heads * layer.qk_dim,
            "value": layer.num_kv_heads * layer.v_dim,
            "attention_out": width,
            "mlp_in": layer.mlp_dim * (2 if arch.gated_mlp else 1) * mlps,
            "mlp_out": width * mlps,
        }
        total += _attention_weights(arch, layer) + mlps * _mlp_weights(arch, layer)
        total += _router_weights(arch, extra) + norms * norm + 2 * width * arch.branch_gain
        total += sum(size for part, size in biases.items() if arch.has_bias(part))
        normed = {"none": 0, "head": 2 * layer.qk_dim, "all": biases["query"] + biases["key"]}
        total += per_norm * normed[arch.qk_norm]
    return total


def forward_flops_per_token(
    architecture: ArchitectureFields,
    length: int | None = None,
    *,
    extra: ExtraParts = NO_EXTRA_PARTS,
) -> float:
    """Floating point operations of a forward pass per token, attention included.

    A multiply-add counts as two: 2 per weight of a matrix, and 2·length·num_heads·(qk_dim + v_dim)
    per layer for attention, counted over the whole square as dense attention computes it. Of
    several experts those count that a token sees. Norms, activations and embedding look-ups are
    left out, as is usual.

    Args:
      architecture: the architecture.
      length: sequence length in tokens; `max_length` if not given. A patch of an image is a token,
        and so is the class token, which alone is read by the output layer.
      extra: what the model has besides.
    """
    arch, width = architecture, architecture.embed_dim
    length = length or arch.max_length
    weights: float = arch.vocab_size * (extra.word_dim or width) + 2 * width * (extra.word_dim or 0)
    if arch.patches is not None:
        weights += arch.patches.number * arch.patches.dim * width
        weights /= length
    mlps = 1 if extra.experts is None else extra.experts.per_token
    attention = 0
    for layer in arch.layers:
        weights += _attention_weights(arch, layer) + mlps * _mlp_weights(arch, layer)
        weights += _router_weights(arch, extra)
        attention += layer.num_heads * (layer.qk_dim + layer.v_dim) * length
    return 2.0 * (weights + attention)


def training_flops_per_token(architecture: ArchitectureFields, length: int | None = None) -> float:
    """Floating point operations of one training step per token, attention included.

    The backward pass counts as twice the forward pass; see `forward_flops_per_token`.
    """
    return 3.0 * forward_flops_per_token(architecture, length)


def _attention_weights(architecture: ArchitectureFields, layer: LayerShape) -> int:
    heads = layer.num_heads + layer.num_kv_heads
    return architecture.embed_dim * heads * (layer.qk_dim + layer.v_dim)


def _mlp_weights(architecture: ArchitectureFields, layer: LayerShape) -> int:
    return architecture.embed_dim * layer.mlp_dim * (3 if architecture.gated_mlp else 2)


def _router_weights(architecture: ArchitectureFields, extra: ExtraParts) -> int:
    return 0 if extra.experts is None else architecture.embed_dim * extra.experts.number
