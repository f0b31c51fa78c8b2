"""`ArchitectureFields`: all that decides the shapes of a model and what it computes, checked.

`growth.architecture.Architecture` adds to the fields what they cost, their text and the presets.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Self

from growth.architecture import validation
from growth.architecture.patches import Patches
from growth.architecture.rope_scaling import RopeScaling
from growth.architecture.validation import ArchitectureError

# The fields that a layer has of its own. Each is a single value where all layers agree, and a tuple
# with one entry per layer where they differ.
LAYER_FIELDS = ("num_heads", "num_kv_heads", "qk_dim", "v_dim", "mlp_dim", "rope_theta", "window")

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rmsnorm", "layernorm"),
    "norm_placement": ("pre", "sandwich", "closing", "post"),
    "qk_norm": ("none", "head", "all"),
    "parallel": ("none", "two_norms", "shared_norm"),
    "position": ("learned", "sinusoidal", "rope", "alibi", "none"),
    "activation": ("relu", "gelu", "gelu_exact", "silu"),
}


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """The sizes that one layer has of its own.

    `qk_dim` and `v_dim` are widths of one head: k and v in the paper.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=4, num_kv_heads=2,
      ...     mlp_dim=(16, 24),
      ... )
      >>> [shape.mlp_dim for shape in small.layers]
      [16, 24]
      >>> small.layers[0].queries_per_group
      2

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
      Groups of heads: Ainslie et al., arXiv 2305.13245, section 2.2.
    """

    num_heads: int
    num_kv_heads: int
    qk_dim: int
    v_dim: int
    mlp_dim: int
    rope_theta: float
    window: int | None = None

    @property
    def queries_per_group(self) -> int:
        """The number of query heads that read each key/value head."""
        return self.num_heads // self.num_kv_heads


@dataclasses.dataclass(frozen=True)
class ArchitectureFields:
    """A decoder-only or bidirectional transformer.

    The fields of `LAYER_FIELDS` may be given per layer, as a sequence; a single value means all
    layers. They read back as a single value where all agree and as a tuple where they differ.

    Attributes:
      vocab_size: number of tokens, or of classes of images.
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
      fixed_norm_eps: whether epsilon must stay as it is, since whoever loads the model cannot be
        told another (OPT, OLMo). The stream then grows by √(ĥ/h) with `embed_dim`, which keeps its
        mean square, and growth is as exact.
      norm_gain: whether norms have a gain. OLMo's have none.
      unit_offset: whether gains are stored as what they add to 1 (Gemma).
      norm_placement: "pre": before attention and MLP; "closing": on what they give, before it is
        added (OLMo 2); "sandwich": both (Gemma 2); "post": after it is added.
      embed_norm: whether a norm stands right after the embedding (BLOOM).
      final_norm: whether a norm stands before the output layer.
      qk_norm: whether queries and keys are normed: "none", each "head" (Qwen 3), or "all" heads of
        a layer as one vector (OLMo 2).
      position: "rope", "learned", "sinusoidal", "alibi" or "none".
      rope_theta: base of the rotary frequencies θ^(-2i/width). It grows with `qk_dim`, unless
        `rotary_dim` is given.
      rotary_dim: the columns of a head that are turned, its first; the rest is not. None: all.
      rotary_interleaved: whether columns 2i and 2i + 1 are turned together (GPT-J, GLM), instead of
        i and i + width/2.
      rope_scaling: how rotary frequencies are stretched.
      query_scale: what products of queries and keys are multiplied by. None: qk_dim^(-1/2).
      attention_softcap, logit_softcap: c, where x becomes c·tanh(x/c) (Gemma 2). None: nowhere.
      window: a position sees itself and the `window` − 1 positions before it (and after it, if not
        causal). None: all.
      activation: "relu", "gelu" (tanh form), "gelu_exact" or "silu".
      gated_mlp: whether the MLP has a gate (SwiGLU, GeGLU).
      parallel: whether attention and MLP of a layer read the same stream: "two_norms" (GPT-NeoX),
        "shared_norm" (GPT-J), or "none": the MLP reads what attention wrote.
      tied_embeddings: whether the output layer is the embedding, transposed.
      scaled_embedding: whether embeddings are multiplied by √embed_dim (Gemma).
      scaled_logits: whether the products of the output layer are divided by √embed_dim (T5X).
      branch_gain: whether what attention and MLP give is multiplied by a gain for each dimension
        before it is added (LayerScale; DINOv2).
      use_bias: True, False, or the parts that have a bias, a subset of `BIASES`. "norm" means
        LayerNorm's bias; RMSNorm has none.
      causal: whether a position sees only itself and the positions before it.
      patches: how images are cut, where the model sees images (ViT): a class token, then a token
        for each patch; the class token's output gives the logits. None: it sees tokens.

    Raises:
      ArchitectureError: a field is out of range; the message names it.

    Examples:
      >>> import growth
      >>> small = growth.Architecture(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=(16, 24)
      ... )
      >>> print(small)
      2 layers × [2 heads, qk 4, v 4, mlp 16/24], embed 8, vocab 11, length 8, rmsnorm, rope, silu
      >>> small.num_parameters
      1688
      >>> growth.Architecture.from_json(small.to_json()) == small
      True

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
      The presets name the models that they are of.
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
    fixed_norm_eps: bool = False
    norm_gain: bool = True
    unit_offset: bool = False
    norm_placement: str = "pre"
    embed_norm: bool = False
    qk_norm: str = "none"
    rotary_dim: int | None = None
    rope_scaling: RopeScaling | None = None
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    window: int | tuple[int | None, ...] | None = None
    parallel: str = "none"
    scaled_embedding: bool = False
    patches: Patches | None = None
    rotary_interleaved: bool = False
    scaled_logits: bool = False
    branch_gain: bool = False

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        for name in ("vocab_size", "max_length", "embed_dim"):
            put(name, validation.positive_int(name, getattr(self, name)))
        layers = validation.positive_int("num_layers", self.num_layers, validation.MOST_LAYERS)
        put("num_layers", layers)
        for name, choices in _CHOICES.items():
            validation.choice(name, getattr(self, name), choices)
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool) and field.name != "use_bias":
                validation.boolean(field.name, getattr(self, field.name))
        for name in ("query_scale", "attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                put(name, validation.positive_number(name, getattr(self, name)))
        put(
            "use_bias",
            validation.biases(self.use_bias, self.norm == "layernorm" and self.norm_gain),
        )
        put("norm_eps", validation.positive_number("norm_eps", self.norm_eps))
        self._check_variants()

        heads = self._per_layer("num_heads", self.num_heads)
        kv_heads = self._per_layer("num_kv_heads", validation.given(self.num_kv_heads, heads))
        shares = [self.embed_dim // e or 1 for e in heads]
        qk = self._per_layer("qk_dim", validation.given(self.qk_dim, shares))
        v = self._per_layer("v_dim", validation.given(self.v_dim, qk))
        mlp = self._per_layer("mlp_dim", self.mlp_dim)
        theta = self._per_layer("rope_theta", self.rope_theta)
        window = self._per_layer("window", self.window)
        for index, (e, g, k) in enumerate(zip(heads, kv_heads, qk, strict=True)):
            if e % g:
                raise ArchitectureError(
                    f"num_heads is {e} and num_kv_heads is {g} in layer {index}, but every group "
                    f"must have the same number of query heads: num_kv_heads must divide num_heads"
                )
            turned = k if self.rotary_dim is None else self.rotary_dim
            if self.position == "rope" and (turned % 2 or turned > k):
                raise ArchitectureError(
                    f"{'qk_dim' if self.rotary_dim is None else 'rotary_dim'} is {turned} in layer "
                    f"{index}, but rotary positions turn pairs of columns: it must be even, and no "
                    f"more than qk_dim, {k}"
                )
        columns = (heads, kv_heads, qk, v, mlp, theta, window)
        for name, values in zip(LAYER_FIELDS, columns, strict=True):
            put(name, values[0] if len(set(values)) == 1 else values)

    def _check_variants(self) -> None:
        if self.rotary_dim is not None:
            validation.positive_int("rotary_dim", self.rotary_dim)
        for name, kind in (("rope_scaling", RopeScaling), ("patches", Patches)):
            object.__setattr__(self, name, validation.part(name, getattr(self, name), kind))
        if self.patches is not None:
            self._check_patches(self.patches)
        for name in ("rotary_dim", "rope_scaling"):
            if getattr(self, name) is not None and self.position != "rope":
                raise ArchitectureError(f"{name} is given, but position is {self.position!r}")
        if self.rotary_interleaved and self.position != "rope":
            raise ArchitectureError(
                f"rotary_interleaved is True, but position is {self.position!r}"
            )
        if self.branch_gain and self.norm_placement != "pre":
            raise ArchitectureError(
                f"branch_gain is True, so norm_placement must be 'pre', not {self.norm_placement!r}"
            )
        plain = self.norm_placement == "pre" and not self.embed_norm and not self.unit_offset
        if not self.norm_gain and not plain:
            raise ArchitectureError(
                "norm_gain is False, but norms without a gain are known only before attention, MLP "
                "and output layer: norm_placement must be 'pre', embed_norm and unit_offset False"
            )
        if self.parallel != "none" and self.norm_placement != "pre":
            raise ArchitectureError(
                f"parallel is {self.parallel!r}, so norm_placement must be 'pre', not "
                f"{self.norm_placement!r}"
            )

    def _check_patches(self, patches: Patches) -> None:
        wanted = {
            "max_length": patches.number + 1,
            "causal": False,
            "tied_embeddings": False,
            "scaled_embedding": False,
        }
        for name, value in wanted.items():
            given = getattr(self, name)
            if given != value:
                raise ArchitectureError(f"{name} is {given!r}, but with patches it is {value!r}")

    def _per_layer(self, name: str, value: Any) -> tuple:
        check: Callable[[str, Any], float | None] = {
            "rope_theta": validation.positive_number,
            "window": _window,
        }.get(name, validation.positive_int)
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
    def layer_runs(self) -> tuple[tuple[int, int], ...]:
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
        if part == "norm" and (self.norm == "rmsnorm" or not self.norm_gain):
            return False
        return self.use_bias if isinstance(self.use_bias, bool) else part in self.use_bias

    @property
    def closes_branches(self) -> bool:
        """Whether a norm is the last to write what attention and MLP add to the stream."""
        return self.norm_placement in ("sandwich", "closing")

    @property
    def norms_write_stream(self) -> bool:
        """Whether what a norm gives enters the stream."""
        return self.norm_placement != "pre" or self.embed_norm

    @property
    def turns_whole_heads(self) -> bool:
        """Whether rotary positions turn all columns of a head, however wide it is."""
        return self.position == "rope" and self.rotary_dim is None

    @property
    def turns_halves(self) -> bool:
        """Whether each column of a head is turned together with one of the head's other half."""
        return self.turns_whole_heads and not self.rotary_interleaved

    def replace(self, **changes: Any) -> Self:
        """This architecture with some fields changed."""
        return dataclasses.replace(self, **changes)


def _window(name: str, value: Any) -> int | None:
    return None if value is None else validation.positive_int(name, value)
