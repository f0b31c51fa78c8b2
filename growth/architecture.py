"""`Architecture`: what a transformer is, as data.

An architecture says everything that decides the shapes of a model's parameters and what the model
computes from them, and nothing about how it is trained. It is frozen, hashable and printable, and
goes to JSON and back, so that a checkpoint can carry it.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from growth.errors import InputError

# The fields that a layer has of its own. Each is a number where all layers agree, and a tuple with
# one entry per layer where they differ.
LAYER_FIELDS = ("num_heads", "num_kv_heads", "qk_dim", "v_dim", "mlp_dim", "rope_theta")

# The parameters that may have a bias, named by their role in `growth.roles`.
BIASES = ("norm", "query", "key", "value", "attention_out", "mlp_in", "mlp_out")

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rmsnorm", "layernorm"),
    "position": ("learned", "rope", "none"),
    "activation": ("relu", "gelu", "silu"),
}


class ArchitectureError(InputError):
    """A field of an architecture is out of range, or fields contradict each other."""


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """The sizes that one layer has of its own.

    `qk_dim` and `v_dim` are widths of one head: k and v in the paper.
    """

    num_heads: int
    num_kv_heads: int
    qk_dim: int
    v_dim: int
    mlp_dim: int
    rope_theta: float

    @property
    def queries_per_group(self) -> int:
        """The number of query heads that read each key/value head."""
        return self.num_heads // self.num_kv_heads


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder-only or bidirectional transformer with pre-norm layers.

    `num_heads`, `num_kv_heads`, `qk_dim`, `v_dim`, `mlp_dim` and `rope_theta` may be given per
    layer, as a sequence with one entry per layer; a single number means all layers. They read back
    as a number where all layers agree and as a tuple where they differ.

    Attributes:
      vocab_size: number of tokens.
      max_length: longest sequence, in tokens; the number of learned positions.
      embed_dim: width of the residual stream (h in the paper).
      num_layers: number of layers (N).
      num_heads: query heads of a layer (E).
      mlp_dim: hidden units of a layer's MLP (p).
      num_kv_heads: key/value heads of a layer; query head e reads key/value head
        ⌊e / (num_heads / num_kv_heads)⌋. Default: `num_heads`.
      qk_dim: width of a head's queries and keys (k). Default: `embed_dim // num_heads`.
      v_dim: width of a head's values (v). Default: `qk_dim`.
      norm: "rmsnorm" or "layernorm".
      norm_eps: the norms' epsilon. It shrinks as `embed_dim` grows, which keeps growth exact.
      position: "rope", "learned" or "none".
      rope_theta: base of the rotary frequencies θ^(-2i/qk_dim). It grows with `qk_dim`.
      activation: "relu", "gelu" (tanh form) or "silu".
      gated_mlp: whether the MLP has a gate (SwiGLU, GeGLU).
      tied_embeddings: whether the output layer is the embedding, transposed.
      use_bias: True, False, or the parts that have a bias, a subset of `BIASES`. "norm" means
        LayerNorm's bias; RMSNorm has none.
      final_norm: whether a norm stands before the output layer.
      causal: whether a position sees only itself and the positions before it.

    Raises:
      ArchitectureError: a field is out of range; the message names it.
    """

    vocab_size: int
    max_length: int
    embed_dim: int
    num_layers: int
    num_heads: int | tuple[int, ...]
    mlp_dim: int | tuple[int, ...]
    num_kv_heads: int | tuple[int, ...] | None = None
    qk_dim: int | tuple[int, ...] | None = None
    v_dim: int | tuple[int, ...] | None = None
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    position: str = "rope"
    rope_theta: float | tuple[float, ...] = 10000.0
    activation: str = "silu"
    gated_mlp: bool = True
    tied_embeddings: bool = False
    use_bias: bool | tuple[str, ...] = False
    final_norm: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        for name in ("vocab_size", "max_length", "embed_dim", "num_layers"):
            put(name, _size(name, getattr(self, name)))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ArchitectureError(
                    f"{name} is {getattr(self, name)!r}, but it must be one of {', '.join(choices)}"
                )
        for name in ("gated_mlp", "tied_embeddings", "final_norm", "causal"):
            if not isinstance(getattr(self, name), bool):
                raise ArchitectureError(f"{name} is {getattr(self, name)!r}, not True or False")
        put("use_bias", _biases(self.use_bias, self.norm))
        put("norm_eps", _positive("norm_eps", self.norm_eps))

        heads = self._per_layer("num_heads", self.num_heads)
        kv_heads = self._per_layer("num_kv_heads", _given(self.num_kv_heads, heads))
        shares = [self.embed_dim // e or 1 for e in heads]
        qk = self._per_layer("qk_dim", _given(self.qk_dim, shares))
        v = self._per_layer("v_dim", _given(self.v_dim, qk))
        mlp = self._per_layer("mlp_dim", self.mlp_dim)
        theta = self._per_layer("rope_theta", self.rope_theta)
        for index, (e, g, k) in enumerate(zip(heads, kv_heads, qk, strict=True)):
            if e % g:
                raise ArchitectureError(
                    f"num_heads is {e} and num_kv_heads is {g} in layer {index}, but every group "
                    f"must have the same number of query heads: num_kv_heads must divide num_heads"
                )
            if self.position == "rope" and k % 2:
                raise ArchitectureError(
                    f"qk_dim is {k} in layer {index}, but rotary positions turn pairs of columns: "
                    f"it must be even"
                )
        for name, values in zip(LAYER_FIELDS, (heads, kv_heads, qk, v, mlp, theta), strict=True):
            put(name, values[0] if len(set(values)) == 1 else values)

    def _per_layer(self, name: str, value: Any) -> tuple:
        check = _positive if name == "rope_theta" else _size
        if not isinstance(value, Iterable) or isinstance(value, str):
            return (check(name, value),) * self.num_layers
        values = tuple(check(f"{name}[{i}]", v) for i, v in enumerate(value))
        if len(values) != self.num_layers:
            raise ArchitectureError(
                f"{name} has {len(values)} entries, but num_layers is {self.num_layers}: give one "
                f"entry per layer, or one number for all"
            )
        return values

    @functools.cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """The shape of every layer, from the first to the last."""
        columns = [self._per_layer(name, getattr(self, name)) for name in LAYER_FIELDS]
        return tuple(LayerShape(*values) for values in zip(*columns, strict=True))

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Longest runs of neighbouring layers of one shape, as (first layer, number of layers)."""
        runs: list[tuple[int, int]] = []
        layers = self.layers
        for index, layer in enumerate(layers):
            if index and layer == layers[index - 1]:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((index, 1))
        return tuple(runs)

    def has_bias(self, part: str) -> bool:
        """Whether `part`, one of `BIASES`, has a bias."""
        if part == "norm" and self.norm == "rmsnorm":
            return False
        return self.use_bias if isinstance(self.use_bias, bool) else part in self.use_bias

    def replace(self, **changes: Any) -> Self:
        """This architecture with some fields changed."""
        return dataclasses.replace(self, **changes)

    # Counts.

    @property
    def num_parameters(self) -> int:
        """The number of parameters, biases and embeddings included."""
        embeddings = self.vocab_size * self.embed_dim * (1 if self.tied_embeddings else 2)
        if self.position == "learned":
            embeddings += self.max_length * self.embed_dim
        norm = self.embed_dim * (2 if self.has_bias("norm") else 1)
        total = embeddings + norm * self.final_norm
        for layer in self.layers:
            biases = {
                "query": layer.num_heads * layer.qk_dim,
                "key": layer.num_kv_heads * layer.qk_dim,
                "value": layer.num_kv_heads * layer.v_dim,
                "attention_out": self.embed_dim,
                "mlp_in": layer.mlp_dim * (2 if self.gated_mlp else 1),
                "mlp_out": self.embed_dim,
            }
            total += self._layer_weights(layer) + 2 * norm
            total += sum(size for part, size in biases.items() if self.has_bias(part))
        return total

    def training_flops_per_token(self, length: int | None = None) -> float:
        """Floating point operations of one training step per token, attention included.

        A multiply-add counts as two, and the backward pass as twice the forward pass: 6 per weight
        of a matrix, and 6·length·num_heads·(qk_dim + v_dim) per layer for attention, counted
        over the whole square as dense attention computes it. Norms, activations and embedding
        look-ups are left out, as is usual.

        Args:
          length: sequence length in tokens; `max_length` if not given.
        """
        length = length or self.max_length
        weights = self.vocab_size * self.embed_dim
        attention = 0
        for layer in self.layers:
            weights += self._layer_weights(layer)
            attention += layer.num_heads * (layer.qk_dim + layer.v_dim) * length
        return 6.0 * (weights + attention)

    def _layer_weights(self, layer: LayerShape) -> int:
        queries_and_out = layer.num_heads * (layer.qk_dim + layer.v_dim)
        keys_and_values = layer.num_kv_heads * (layer.qk_dim + layer.v_dim)
        mlp = layer.mlp_dim * (3 if self.gated_mlp else 2)
        return self.embed_dim * (queries_and_out + keys_and_values + mlp)

    # Text.

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        fields = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ArchitectureError` for fields that it does not know."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ArchitectureError(
                f"unknown field {', '.join(unknown)}; an architecture has {', '.join(known)}"
            )
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise ArchitectureError(f"an architecture needs {', '.join(missing)}")
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
        }
        return cls(**values)

    def to_json(self) -> str:
        """This architecture as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        heads = f"{_show(self.num_heads)} heads"
        if self.num_kv_heads != self.num_heads:
            heads += f" in {_show(self.num_kv_heads)} groups"
        return (
            f"{self.num_layers} layers × [{heads}, qk {_show(self.qk_dim)}, v {_show(self.v_dim)}, "
            f"mlp {_show(self.mlp_dim)}], embed {self.embed_dim}, vocab {self.vocab_size}, "
            f"length {self.max_length}, {self.norm}, {self.position}, {self.activation}"
        )

    # Presets: each takes the sizes, and any field that should differ.

    @classmethod
    def paper(cls, **fields: Any) -> Self:
        """The architecture of Gesmundo & Maile, section 2.

        RMSNorm, ReLU, an MLP with biases and attention without, learned positions, `qk_dim` and
        `v_dim` independent of each other, no final norm.
        """
        preset: dict[str, Any] = dict(
            norm="rmsnorm",
            position="learned",
            activation="relu",
            gated_mlp=False,
            tied_embeddings=False,
            use_bias=("mlp_in", "mlp_out"),
            final_norm=False,
        )
        return cls(**preset | fields)

    @classmethod
    def gpt2(cls, **fields: Any) -> Self:
        """GPT-2's: LayerNorm, GELU, biases everywhere, learned positions, tied embeddings."""
        preset: dict[str, Any] = dict(
            norm="layernorm",
            norm_eps=1e-5,
            position="learned",
            activation="gelu",
            gated_mlp=False,
            tied_embeddings=True,
            use_bias=True,
        )
        return cls(**preset | fields)

    @classmethod
    def llama(cls, **fields: Any) -> Self:
        """Llama's: RMSNorm, a SiLU gate, rotary positions, no biases."""
        return cls(**dict(norm_eps=1e-5) | fields)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ArchitectureError(f"{name} is {value!r}, but it must be a whole number of at least 1")
    return int(value)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__") or not 0 < value < math.inf:
        raise ArchitectureError(f"{name} is {value!r}, but it must be a positive number")
    return float(value)


def _biases(value: Any, norm: str) -> bool | tuple[str, ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, Iterable) or isinstance(value, str) or set(value) - set(BIASES):
        raise ArchitectureError(
            f"use_bias is {value!r}, but it must be True, False or some of {', '.join(BIASES)}"
        )
    if norm == "rmsnorm" and "norm" in value:
        raise ArchitectureError("use_bias names 'norm', but an rmsnorm has no bias")
    parts = tuple(part for part in BIASES if part in set(value))
    possible = len(BIASES) - (norm == "rmsnorm")
    return {0: False, possible: True}.get(len(parts), parts)


def _show(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
