"""Layouts as shapes: what a guess makes of other people's names, orders and numbers of arrays."""

import re

import jax
import pytest

from growth import Architecture, Blueprint, BlueprintError

GROUPED = Architecture(
    vocab_size=23, max_length=9, embed_dim=22, num_layers=3, num_heads=6, num_kv_heads=2,
    qk_dim=8, v_dim=7, mlp_dim=20,
)  # fmt: skip
H, Q, G, K, V, P = 22, 6, 2, 8, 7, 20
WHOLE = {
    "q": ((H, Q, K), "query", "embed (kv_heads group) qk"),
    "k": ((H, G, K), "key", "embed kv_heads qk"),
    "v": ((H, G, V), "value", "embed kv_heads v"),
    "o": ((Q, V, H), "attention_out", "(kv_heads group) v embed"),
    "gate": ((H, P), "mlp_in", "embed mlp"),
    "up": ((H, P), "mlp_in", "embed mlp"),
    "down": ((P, H), "mlp_out", "mlp embed"),
    "norm1": ((H,), "norm_gain", "embed"),
    "norm2": ((H,), "norm_gain", "embed"),
}
OUTSIDE = {
    "embed": ((23, H), "embedding", "vocab embed"),
    "norm": ((H,), "final_gain", "embed"),
    "head": ((H, 23), "unembed", "embed vocab"),
}
USUAL_NAMES = [
    dict(q="q_proj", k="k_proj", v="v_proj", o="o_proj", gate="gate_proj", up="up_proj",
         down="down_proj", norm1="input_layernorm", norm2="post_attention_layernorm",
         embed="embed_tokens", head="lm_head"),
    dict(q="query", k="key", v="value", o="out", gate="wi_0", up="wi_1", down="wo",
         norm1="pre_self_attention_layer_norm", norm2="pre_mlp_layer_norm",
         embed="token_embedder", norm="decoder_norm", head="logits_dense"),
    dict(q="wq", k="wk", v="wv", o="wo", gate="w1", up="w3", down="w2", norm1="attention_norm",
         norm2="ffn_norm", embed="tok_embeddings", head="output"),
    dict(q="attn/c_q", k="attn/c_k", v="attn/c_v", o="attn/c_proj", gate="mlp/ffw_gate",
         up="mlp/ffw_up", down="mlp/ffw_down", norm1="ln_1/gamma", norm2="ln_2/gamma",
         norm="ln_f/gamma", embed="wte"),
    dict(q="attn/to_q/w", k="attn/to_k/w", v="attn/to_v/w", o="attn/to_out/w", gate="ff/gate/w",
         up="ff/fc_in/w", down="ff/fc_out/w", norm1="ln1_g", norm2="ln2_g", norm="ln_f_g",
         embed="embedding/embeddings", head="unembed/w"),
    dict(q="attn/q_einsum/w", k="attn/k_einsum/w", v="attn/v_einsum/w", o="attn/attn_vec_einsum/w",
         gate="mlp/gating/w", up="mlp/up/w", down="mlp/linear/w", norm1="pre_attention_norm/scale",
         norm2="pre_ffw_norm/scale", norm="final_norm/scale", embed="embedder/input_embedding"),
]  # fmt: skip


def layout(names=None, table=WHOLE, **extra):
    """Arrays as shapes, and by path the rule that is right, of a model with such names."""
    names = names or {}
    arrays, right = {}, {}
    for key, (shape, role, axes) in (OUTSIDE | table | extra).items():
        if key in OUTSIDE:
            arrays[names.get(key, key)] = jax.ShapeDtypeStruct(shape, "float32")
            right[names.get(key, key)] = role, axes
            continue
        path = f"layers/{{layers}}/{names.get(key, key)}"
        right[path] = role, axes
        for i in range(3):
            arrays[path.format(layers=i)] = jax.ShapeDtypeStruct(shape, "float32")
    return arrays, right


@pytest.mark.parametrize("names", USUAL_NAMES, ids=lambda names: names["q"])
def test_usual_names_are_known(names):
    arrays, right = layout(names)
    rules = Blueprint.infer(arrays, GROUPED).rules
    assert {path: (role, axes) for path, role, axes in rules} == right


@pytest.mark.parametrize(
    ("key", "shape", "axes"),
    [
        ("q", (H, Q * K), "embed (kv_heads group qk)"),
        ("q", (H, G, Q // G, K), "embed kv_heads group qk"),
        ("q", (Q, H, K), "(kv_heads group) embed qk"),
        ("q", (Q, K, H), "(kv_heads group) qk embed"),
        ("o", (Q * V, H), "(kv_heads group v) embed"),
        ("o", (H, Q, V), "embed (kv_heads group) v"),
        ("k", (G, H, K), "kv_heads embed qk"),
    ],
)
def test_heads_are_read_in_every_order_and_number_of_dimensions(key, shape, axes):
    arrays, right = layout(table=WHOLE | {key: (shape, WHOLE[key][1], axes)})
    rules = Blueprint.infer(arrays, GROUPED).rules
    assert {path: (role, axes) for path, role, axes in rules} == right


def test_a_stack_as_long_as_there_are_layers_is_one_of_layers():
    scanned = {
        key: jax.ShapeDtypeStruct((3, *shape) if key in WHOLE else shape, "float32")
        for key, (shape, _, _) in (WHOLE | OUTSIDE).items()
    }
    rules = {path: (role, axes) for path, role, axes in Blueprint.infer(scanned, GROUPED).rules}
    assert rules == {
        key: (role, f"layers {axes}" if key in WHOLE else axes)
        for key, (_, role, axes) in (WHOLE | OUTSIDE).items()
    }
    experts = {
        "w1": ((4, H, P), "mlp_in", "experts embed mlp"),
        "w3": ((4, H, P), "mlp_in", "experts embed mlp"),
        "w2": ((4, P, H), "mlp_out", "experts mlp embed"),
        "w_router": ((H, 4), "router", "embed experts"),
    }
    table = {k: v for k, v in WHOLE.items() if k not in ("gate", "up", "down")} | experts
    arrays, right = layout(table=table)
    rules = Blueprint.infer(arrays, GROUPED).rules
    assert {path: (role, axes) for path, role, axes in rules} == right


# Each would be a wrong result without a word, were a name enough.

TIED = dict(tied_embeddings=True, scaled_embedding=True)
BIASED = GROUPED.replace(norm="layernorm", use_bias=True)
CONTRADICTIONS = {
    "a gain too many": (GROUPED, {"norm1/scale": (H,), "norm1/weight": (H,)}, "one gain"),
    "a norm too many": (GROUPED, {"norm3": (H,)}, "has 2 norms of role norm, but here 3"),
    "a bias of an rmsnorm": (GROUPED, {"norm1/bias": (H,)}, "would have the role norm_bias"),
    "layer scale": (BIASED, {"ls1/gamma": (H,)}, "norms of role norm, but here"),
    "a norm of queries": (GROUPED, {"q_norm": (K,)}, "qk_norm is 'none'"),
    "a bias of queries": (GROUPED, {"q_bias": (Q, K)}, "use_bias is False"),
    "two queries": (GROUPED, {"query": (H, Q, K)}, "2 of query"),
    "an MLP more": (GROUPED, {"fc1": (H, P)}, "2 of mlp_in for each mlp_out, but here 3"),
    "a table in a layer": (GROUPED, {"tok_embed": (23, H)}, "cannot stand inside a layer"),
}
CONTRADICTIONS_OUTSIDE = {
    "an output layer beside a tied one": (GROUPED.replace(**TIED), {}, "there is no output layer"),
    "a final norm that is not said": (GROUPED.replace(final_norm=False), {}, "final_norm=False"),
    "a norm more at the end": (GROUPED, {"last_norm": (H,)}, "there is one norm of role final"),
    "learned positions beside rotary ones": (
        GROUPED,
        {"wpe": (9, H)},
        "would have the role position",
    ),
    "a gate": (GROUPED.replace(gated_mlp=False), {}, "1 of mlp_in for each mlp_out, but here 2"),
    "no gains": (GROUPED.replace(norm_gain=False), {}, "norm_gain is False"),
    "closing norms": (GROUPED.replace(norm_placement="sandwich"), {}, "norms of role"),
    "one norm for both": (GROUPED.replace(parallel="shared_norm"), {}, "has 1 norms"),
    "queries outside": (GROUPED, {"q": (H, Q, K)}, "cannot stand outside of all layers"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS | CONTRADICTIONS_OUTSIDE)
def test_what_contradicts_the_architecture_is_open_with_the_reason(case):
    architecture, extra, reason = (CONTRADICTIONS | CONTRADICTIONS_OUTSIDE)[case]
    arrays, _ = layout()
    for name, shape in extra.items():
        within = [f"layers/{i}/{name}" for i in range(3)] if case in CONTRADICTIONS else [name]
        arrays |= {path: jax.ShapeDtypeStruct(shape, "float32") for path in within}
    if case == "a gain too many":
        arrays = {path: s for path, s in arrays.items() if not path.endswith("norm1")}
    with pytest.raises(BlueprintError, match=re.escape(reason)):
        Blueprint.infer(arrays, architecture)


def test_a_norm_is_placed_by_where_it_stands_and_not_by_its_name():
    names = dict(norm1="final_layer_norm", norm2="ln_f", norm="input_norm")
    arrays, right = layout(names)
    rules = Blueprint.infer(arrays, GROUPED.replace(**TIED | dict(tied_embeddings=False))).rules
    assert {path: (role, axes) for path, role, axes in rules} == right
    closing = GROUPED.replace(norm_placement="closing")
    rules = {path: role for path, role, _ in Blueprint.infer(arrays, closing).rules}
    assert {role for path, role in rules.items() if "norm" in path or "ln" in path} == {
        "closing_gain", "final_gain"
    }  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [
        ("scale", "offset"),
        ("gamma", "beta"),
        ("scale", "shift"),
        ("weight", "bias"),
        ("g", "b"),
        ("scale", "unheard_of"),
    ],
)
def test_one_norm_has_a_gain_and_a_bias_whatever_they_are_called(parts):  # fmt: skip
    gain, bias = parts
    table = {k: v for k, v in WHOLE.items() if "norm" not in k}
    for norm in ("norm1", "norm2"):
        table |= {f"{norm}/{gain}": ((H,), "norm_gain", "embed")}
        table |= {f"{norm}/{bias}": ((H,), "norm_bias", "embed")}
    arrays, right = layout(table=table)
    del arrays["norm"], right["norm"]
    for part, kind in ((gain, "final_gain"), (bias, "final_bias")):
        arrays[f"norm/{part}"] = jax.ShapeDtypeStruct((H,), "float32")
        right[f"norm/{part}"] = kind, "embed"
    architecture = GROUPED.replace(norm="layernorm", use_bias=("norm",))
    rules = Blueprint.infer(arrays, architecture).rules
    assert {path: (role, axes) for path, role, axes in rules} == right


@pytest.mark.parametrize(
    "odd", [None, 1e-5, "relu", jax.nn.relu, ()], ids=lambda odd: type(odd).__name__
)
def test_what_is_no_array_is_passed_over(odd):
    arrays, right = layout()
    rules = Blueprint.infer(arrays | {"dropout": odd}, GROUPED).rules
    assert {path for path, _, _ in rules} == set(right)


def test_layers_of_two_kinds_are_named():
    arrays, _ = layout()
    arrays = {path: s for path, s in arrays.items() if not re.fullmatch("layers/[01]/[qkvo]", path)}
    with pytest.raises(BlueprintError, match="in layer 2, not in layers 0 and 1: layers of differ"):
        Blueprint.infer(arrays, GROUPED)
