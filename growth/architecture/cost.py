"""The number of parameters of an architecture, and the operations that a token costs."""

from growth.architecture.fields import ArchitectureFields, LayerShape


def num_parameters(architecture: ArchitectureFields) -> int:
    """The number of parameters, biases and embeddings included."""
    arch, width = architecture, architecture.embed_dim
    if arch.patches is None:
        total = arch.vocab_size * width * (1 if arch.tied_embeddings else 2)
    else:  # patch embedding and head with their biases, class token
        total = (arch.patches.dim + 2) * width + (width + 1) * arch.vocab_size
    if arch.position == "learned":
        total += arch.max_length * width
    per_norm = arch.norm_gain + arch.has_bias("norm")  # parameters for each entry that is normed
    norm = width * per_norm
    total += norm * (arch.final_norm + arch.embed_norm)
    norms = {"pre": 2, "sandwich": 4, "closing": 2, "post": 2}[arch.norm_placement]
    norms -= arch.parallel == "shared_norm"
    for layer in arch.layers:
        sizes = {
            "query": layer.num_heads * layer.qk_dim,
            "key": layer.num_kv_heads * layer.qk_dim,
            "value": layer.num_kv_heads * layer.v_dim,
            "attention_out": width,
            "mlp_in": layer.mlp_dim * (2 if arch.gated_mlp else 1),
            "mlp_out": width,
        }
        total += _layer_weights(arch, layer) + norms * norm
        total += sum(size for part, size in sizes.items() if arch.has_bias(part))
        normed = {"none": 0, "head": 2 * layer.qk_dim, "all": sizes["query"] + sizes["key"]}
        total += per_norm * normed[arch.qk_norm]
    return total


def training_flops_per_token(architecture: ArchitectureFields, length: int | None = None) -> float:
    """Floating point operations of one training step per token, attention included.

    A multiply-add counts as two, and the backward pass as twice the forward pass: 6 per weight of a
    matrix, and 6·length·num_heads·(qk_dim + v_dim) per layer for attention, counted over the whole
    square as dense attention computes it. Norms, activations and embedding look-ups are left out,
    as is usual.

    Args:
      architecture: the architecture.
      length: sequence length in tokens; `max_length` if not given. A patch of an image is a token,
        and so is the class token, which alone is read by the output layer.
    """
    length = length or architecture.max_length
    weights: float = architecture.vocab_size * architecture.embed_dim
    if architecture.patches is not None:
        weights += architecture.patches.number * architecture.patches.dim * architecture.embed_dim
        weights /= length
    attention = 0
    for layer in architecture.layers:
        weights += _layer_weights(architecture, layer)
        attention += layer.num_heads * (layer.qk_dim + layer.v_dim) * length
    return 6.0 * (weights + attention)


def _layer_weights(architecture: ArchitectureFields, layer: LayerShape) -> int:
    queries_and_out = layer.num_heads * (layer.qk_dim + layer.v_dim)
    keys_and_values = layer.num_kv_heads * (layer.qk_dim + layer.v_dim)
    mlp = layer.mlp_dim * (3 if architecture.gated_mlp else 2)
    return architecture.embed_dim * (queries_and_out + keys_and_values + mlp)
