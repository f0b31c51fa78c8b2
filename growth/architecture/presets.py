"""The fields by which well-known architectures differ from `Architecture`'s defaults."""

from typing import Any

PAPER: dict[str, Any] = dict(
    position="learned",
    activation="relu",
    gated_mlp=False,
    use_bias=("mlp_in", "mlp_out"),
    final_norm=False,
)

GPT2: dict[str, Any] = dict(
    norm="layernorm",
    norm_eps=1e-5,
    position="learned",
    activation="gelu",
    gated_mlp=False,
    tied_embeddings=True,
    use_bias=True,
)

LLAMA: dict[str, Any] = dict(norm_eps=1e-5)

VIT: dict[str, Any] = dict(
    norm="layernorm",
    position="learned",
    activation="gelu",
    gated_mlp=False,
    use_bias=True,
    causal=False,
)
