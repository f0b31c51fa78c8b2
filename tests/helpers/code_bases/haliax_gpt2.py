"""Levanter's GPT-2 (haliax): named axes, layers stacked, heads a dimension of their own.

haliax is not needed to have its trees: each array stands in a node that knows the names and the
sizes of its axes, and modules are attributes.
"""

import dataclasses
from typing import Any

import jax

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested


@dataclasses.dataclass(frozen=True)
class Named:
    """An array, and beside it what its dimensions are and how long."""

    array: Any
    axes: tuple[tuple[str, int], ...]


jax.tree_util.register_dataclass(Named, data_fields=["array"], meta_fields=["axes"])


class Module:
    """A module: its fields in their order, by name."""

    def __init__(self, **fields):
        self.fields = fields


jax.tree_util.register_pytree_with_keys(
    Module,
    lambda node: (
        [(jax.tree_util.GetAttrKey(name), field) for name, field in node.fields.items()],
        tuple(node.fields),
    ),
    lambda names, fields: Module(**dict(zip(names, fields, strict=True))),
)


def contain(flat):
    def module(node):
        if not isinstance(node, dict):
            return Named(node, tuple((f"axis{i}", size) for i, size in enumerate(node.shape)))
        if set(node) == {"array"}:
            return module(node["array"])
        return Module(**{name: module(field) for name, field in node.items()}, dropout=None)

    return module(nested(flat))


_AT = "transformer/blocks/stacked"


def shapes(arch):
    h, n, s = arch.embed_dim, arch.num_layers, arch.layers[0]
    e, k, p = s.num_heads, s.qk_dim, s.mlp_dim
    found = {
        "embeddings/token_embeddings/weight": (arch.vocab_size, h),
        "embeddings/position_embeddings/weight": (arch.max_length, h),
    }
    for name, shape, bias in (
        ("ln_1", (h,), (h,)),
        ("attn/c_attn", (h, 3, e, k), (3, e, k)),
        ("attn/c_proj", (e, k, h), (h,)),
        ("ln_2", (h,), (h,)),
        ("mlp/c_fc", (h, p), (p,)),
        ("mlp/c_proj", (p, h), (h,)),
    ):
        found[f"{_AT}/{name}/weight"], found[f"{_AT}/{name}/bias"] = (n, *shape), (n, *bias)
    found |= {"transformer/ln_f/weight": (h,), "transformer/ln_f/bias": (h,)}
    return {f"{path}/array": shape for path, shape in found.items()}


def function(arch, p, tokens):
    p = {name.removesuffix("/array"): array for name, array in p.items()}

    def norm(x, weight, bias):
        return f.layer_norm(x, weight, bias, arch.norm_eps)

    table = p["embeddings/token_embeddings/weight"]
    x = table[tokens] + p["embeddings/position_embeddings/weight"][: tokens.shape[1]]
    for i in range(arch.num_layers):
        w = {n.removeprefix(f"{_AT}/"): a[i] for n, a in p.items() if n.startswith(_AT)}
        y = norm(x, w["ln_1/weight"], w["ln_1/bias"])
        qkv = f.einsum("blh,hqek->qblek", y, w["attn/c_attn/weight"])
        q, k, v = qkv + w["attn/c_attn/bias"][:, None, None]
        x = x + f.einsum("blev,evh->blh", f.attend(q, k, v), w["attn/c_proj/weight"])
        x = x + w["attn/c_proj/bias"]
        y = norm(x, w["ln_2/weight"], w["ln_2/bias"])
        y = f.gelu(y @ w["mlp/c_fc/weight"] + w["mlp/c_fc/bias"])
        x = x + y @ w["mlp/c_proj/weight"] + w["mlp/c_proj/bias"]
    return norm(x, p["transformer/ln_f/weight"], p["transformer/ln_f/bias"]) @ table.T


_QKV = ("query", "key", "value")
HALIAX_GPT2 = CodeBase(
    "haliax",
    Architecture.gpt2(**SIZES | dict(v_dim=4)),
    shapes,
    function,
    Blueprint(
        [
            ("embeddings/token_embeddings/weight/array", "embedding", "vocab embed"),
            ("embeddings/position_embeddings/weight/array", "position", "length embed"),
            (f"{_AT}/ln_{{which}}/weight/array", "norm_gain", "layers embed"),
            (f"{_AT}/ln_{{which}}/bias/array", "norm_bias", "layers embed"),
            (f"{_AT}/attn/c_attn/weight/array", _QKV, "layers embed role kv_heads qk"),
            (f"{_AT}/attn/c_attn/bias/array", _QKV, "layers role kv_heads qk"),
            (f"{_AT}/attn/c_proj/weight/array", "attention_out", "layers kv_heads v embed"),
            (f"{_AT}/attn/c_proj/bias/array", "attention_out", "layers embed"),
            (f"{_AT}/mlp/c_fc/weight/array", "mlp_in", "layers embed mlp"),
            (f"{_AT}/mlp/c_fc/bias/array", "mlp_in", "layers mlp"),
            (f"{_AT}/mlp/c_proj/weight/array", "mlp_out", "layers mlp embed"),
            (f"{_AT}/mlp/c_proj/bias/array", "mlp_out", "layers embed"),
            ("transformer/ln_f/weight/array", "final_gain", "embed"),
            ("transformer/ln_f/bias/array", "final_bias", "embed"),
        ]
    ),
    contain=contain,
    one_width=True,
)
