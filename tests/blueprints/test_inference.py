"""Blueprints that are guessed: right where they are sure, open where nothing confirms a name."""

import collections
import functools
import re

import jax
import numpy as np
import pytest

import growth
from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import pytrees
from growth.blueprints.inference.guessing import guesses
from growth.blueprints.inference.listing import listing
from growth.models import blueprint, logical_axes
from tests.helpers import foreign_decoders, foreign_models, foreign_stacks, networks

BY_HAND = foreign_models.MODELS | foreign_stacks.MODELS
MODELS = BY_HAND | foreign_decoders.MODELS
DISTINCT = dict(
    vocab_size=101, max_length=31, embed_dim=34, num_layers=3, qk_dim=14, v_dim=11, mlp_dim=58
)
TOKENS = np.random.default_rng(0).integers(0, 101, (2, 8))

# What names, shapes and the architecture leave open, and only the model's function can say.
OPEN = {
    "Linen GPT": ["blocks_{layers}/qkv/bias", "blocks_{layers}/qkv/kernel"],
    "plain Llama": ["layers/{layers}/w13"],
    "NNX encoder": ["layers/{layers}/qkv/bias", "layers/{layers}/qkv/kernel"],
}


@functools.cache
def shapes_of(name):
    """A model at sizes that all differ, as shapes."""
    model = MODELS[name]
    one_width = {"v_dim": 14} if name == "NNX GPT" else {}
    architecture = model.architecture.replace(**DISTINCT | one_width)
    return jax.eval_shape(lambda: model.init(architecture)), architecture


def meaning(rules, tree, architecture):
    parameters = rules.parameters(tree, architecture)
    return {path: (p.rule.roles, p.rule.dims) for path, p in parameters.items()}


def without_final(role):
    """A blueprint by hand may call a final norm a norm, which is the same if nothing is scaled."""
    return role.replace("final_", "norm_")


@functools.cache
def right_parameters(name):
    return BY_HAND[name].blueprint.parameters(*shapes_of(name))


def assert_right(guess, name, rename=lambda path: path):
    """What is sure of a model is what its blueprint by hand says."""
    parameters = right_parameters(name)
    (reading,) = guess.readings
    rules = Blueprint([(guess.path, reading.role, reading.axes)])
    paths = {rename(path.removeprefix("params/")): path for path in parameters}
    found = rules.locate(p for p, _ in guess.kind.shapes)
    assert found
    for path, (rule, _, _) in found.items():
        want = parameters[paths[path]].rule
        assert list(map(without_final, rule.roles)) == list(map(without_final, want.roles)), path
        assert rule.dims == want.dims, path


@pytest.mark.parametrize("name", networks.ARCHITECTURES | networks.VARIANTS)
def test_axis_names_give_the_blueprint_of_the_reference_model(name):
    architecture = (networks.ARCHITECTURES | networks.VARIANTS)[name]
    tree, _ = networks.abstract_parameters(architecture)
    inferred = Blueprint.infer(tree, architecture, axes=logical_axes(architecture))
    want = meaning(blueprint(architecture), tree, architecture)
    assert meaning(inferred, tree, architecture) == want


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_say_what_a_model_is(name):
    tree, architecture = shapes_of(name)
    found = guesses(tree, architecture)
    assert [guess.path for guess in found if not guess.sure] == OPEN.get(name, [])
    for guess in (guess for guess in found if guess.sure and name in BY_HAND):
        assert_right(guess, name)
    if name in OPEN:
        return
    inferred = Blueprint.infer(tree, architecture)
    small = MODELS[name].architecture
    inferred.check(jax.eval_shape(lambda: MODELS[name].init(small)), small)


@pytest.mark.parametrize("name", foreign_decoders.MODELS)
def test_a_guessed_blueprint_grows_the_model_exactly(name, float64):
    model = MODELS[name]
    inferred = Blueprint.infer(*shapes_of(name))
    random = np.random.default_rng(0)

    def parameters(architecture):
        tree = jax.eval_shape(lambda: model.init(architecture))
        return jax.tree.map(lambda leaf: 0.6 * random.standard_normal(leaf.shape), tree)

    small, tokens = model.architecture, networks.TOKENS
    wide = dict(qk_dim=6, v_dim=6) if name == "NNX GPT" else dict(qk_dim=6, v_dim=5)
    heads = (3, 3) if name == "NNX GPT" else (12, 3)
    plan = growth.grow_to(
        num_heads=heads[0], num_kv_heads=heads[1], mlp_dim=7, embed_dim=8, num_layers=3, **wide
    )(small)
    tree = parameters(small)
    grown = growth.expand(tree, plan, blueprint=inferred, fresh=parameters(plan.target))
    before = jax.jit(functools.partial(model.apply, small))(tree, tokens)
    after = jax.jit(functools.partial(model.apply, plan.target))(grown, tokens)
    assert networks.difference(np.asarray(before), np.asarray(after)) <= 1e-12


@pytest.mark.parametrize("name", networks.first(MODELS, "Linen GPT", "plain Llama"))
def test_the_models_function_decides_what_is_open(name):
    tree, architecture = shapes_of(name)
    apply = MODELS[name].apply
    inferred = Blueprint.infer(tree, architecture, apply=apply, inputs=TOKENS)
    if name not in BY_HAND:
        assert meaning(inferred, tree, architecture) == meaning(
            Blueprint.infer(tree, architecture), tree, architecture
        )
        return
    want = meaning(BY_HAND[name].blueprint, tree, architecture)
    for path, (roles, dims) in meaning(inferred, tree, architecture).items():
        assert list(map(without_final, roles)) == list(map(without_final, want[path][0]))
        assert dims == want[path][1]


# Layouts as shapes: what a table of other people's names and dimensions means.

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
    "a bias of an rmsnorm": (GROUPED, {"norm1/bias": (H,)}, "would have a bias"),
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
    "learned positions beside rotary ones": (GROUPED, {"wpe": (9, H)}, "learned positions"),
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


NONSENSE = "zyx"
VOCABULARY = ("q", "k", "v", "out", "up", "gate", "down", "router", "norm", "embed", "head", "pos")


@functools.cache
def _renamings():
    """(model, kind, word): each kind is called nonsense, and what each role may be called."""
    found = [(name, guess.path) for name in BY_HAND for guess in guesses(*shapes_of(name))]
    return [(*kind, word) for word in (NONSENSE, *VOCABULARY) for kind in found]


def _renamed(pattern, word):
    """A function that gives the paths of one kind another name, where it has one of its own."""
    segments = pattern.split("/")
    plain = ("kernel", "bias", "scale", "embedding")
    at = max((i for i, s in enumerate(segments) if s not in plain), default=0)
    kind = re.compile(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(pattern)))

    def rename(path):
        parts = path.split("/")
        if not kind.fullmatch(path) or parts[at].isdecimal():
            return path
        index = re.search(r"^\w*?_\d+_?", parts[at])
        parts[at] = f"{index[0] if index else ''}{word}"
        return "/".join(parts)

    return rename


def _outcome(name, pattern, word):
    """What becomes of a renaming: "right" or "open", or what is sure and wrong."""
    tree, architecture = shapes_of(name)
    rename = _renamed(pattern, word)
    leaves = {leaf.path.removeprefix("params/"): leaf.value for leaf in pytrees.leaves(tree)}
    renamed = {rename(path): shape for path, shape in leaves.items()}
    if len(renamed) != len(leaves):
        return "open"  # two arrays of one name, which no tree has
    found = guesses(renamed, architecture)
    for guess in (guess for guess in found if guess.sure):
        try:
            assert_right(guess, name, rename)
        except AssertionError:
            return f"{name}: {pattern} called {word}: {guess.path} is taken for {guess.readings}"
    return "right" if all(guess.sure for guess in found) else "open"


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 29])
def test_a_misleading_name_makes_nothing_wrong_that_is_sure(every):
    """A name that shape, place and numbers contradict is not believed."""
    outcomes = collections.Counter(_outcome(*case) for case in _renamings()[::every])
    assert outcomes.total() > 900 / every
    assert {*outcomes} == {"right", "open"}


# What the listing and the door say.


def test_what_is_open_is_listed_to_be_completed():
    tree, architecture = shapes_of("Linen GPT")
    with pytest.raises(BlueprintError, match="not all parameters can be guessed") as error:
        Blueprint.infer(tree, architecture)
    lines = str(error.value).splitlines()
    assert lines[1] == "growth.Blueprint(["
    assert lines[-1] == "])"
    (fused,) = (line for line in lines if "qkv/kernel" in line)
    assert '("query", "key", "value"), "?"),' in fused
    assert fused.endswith(
        "# (34, 78) ambiguous: embed (role kv_heads qk) or embed (kv_heads role qk)"
    )
    (sure,) = (line for line in lines if "/fc/kernel" in line)
    assert '"mlp_in",' in sure
    assert '"embed mlp"' in sure


def test_equal_sizes_are_ambiguous_and_not_guessed():
    architecture = Architecture(
        vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, qk_dim=4, mlp_dim=8
    )
    shape = jax.ShapeDtypeStruct((8, 8), "float32")
    tree = {f"layers_{i}": {"q_proj": {"kernel": shape}} for i in range(2)}
    (guess,) = guesses(tree, architecture)
    assert guess.path == "layers_{layers}/q_proj/kernel"
    assert not guess.sure
    axes = {reading.axes for reading in guess.readings}
    assert axes == {"embed (kv_heads qk)", "(kv_heads qk) embed"}
    assert "ambiguous: embed (kv_heads qk) or (kv_heads qk) embed" in listing([guess])


def test_a_wrong_architecture_is_not_explained():
    tree, architecture = shapes_of("T5")
    with pytest.raises(BlueprintError, match=r"lm_head/kernel.*unmatched[\s\S]*shape is another"):
        Blueprint.infer(tree, architecture.replace(vocab_size=100))


@pytest.mark.parametrize("odd", [None, 1e-5, "relu", jax.nn.relu, ()], ids=str)
def test_what_is_no_array_is_passed_over(odd):
    arrays, right = layout()
    rules = Blueprint.infer(arrays | {"dropout": odd}, GROUPED).rules
    assert {path for path, _, _ in rules} == set(right)


def test_layers_of_two_kinds_are_named():
    arrays, _ = layout()
    arrays = {path: s for path, s in arrays.items() if not re.fullmatch("layers/[01]/[qkvo]", path)}
    with pytest.raises(BlueprintError, match="in layer 2, not in layers 0 and 1: layers of differ"):
        Blueprint.infer(arrays, GROUPED)


# A network of MLPs alone, which compiles at once.

MLPS = Architecture(
    vocab_size=23, max_length=9, embed_dim=22, num_layers=2, num_heads=1, mlp_dim=20,
    gated_mlp=False, activation="relu", position="none", norm_eps=1e-3,
)  # fmt: skip


def mlps(architecture, names=("before", "inner", "outer")):
    h, p = architecture.embed_dim, architecture.mlp_dim
    before, inner, outer = names
    layers = [{before: np.ones(h), inner: np.ones((h, p)), outer: np.ones((p, h))} for _ in "12"]
    if architecture.norm_placement == "sandwich":
        layers = [layer | {"norm_b": np.ones(h)} for layer in layers]
    return {
        "table": np.ones((23, h)), "blocks": layers, "norm": np.ones(h), "head": np.ones((h, 23))
    }  # fmt: skip


def apply_mlps(architecture, tree, tokens, names=("before", "inner", "outer"), width=None):
    def norm(x, gain):
        return (
            gain
            * x
            / np.sqrt(x.shape[-1])
            / jax.numpy.sqrt(
                (x * x).sum(-1, keepdims=True) / x.shape[-1] ** 2
                + architecture.norm_eps / x.shape[-1]
            )
        )

    x = tree["table"][tokens]
    for layer in tree["blocks"]:
        y = norm(x, layer[names[0]]) / (x.shape[-1] if width else 1)
        y = jax.nn.relu(y @ layer[names[1]]) @ layer[names[2]]
        x = x + (norm(y, layer["norm_b"]) if "norm_b" in layer else y)
    return norm(x, tree["norm"]) @ tree["head"]


def test_a_function_decides_where_names_say_nothing():
    """Which of two norms closes the branch, and which kernel is the first."""
    names = ("norm_a", "zyx", "xyz")
    architecture = MLPS.replace(norm_placement="sandwich", mlp_dim=22)
    tree = mlps(architecture, names)
    with pytest.raises(BlueprintError, match="ambiguous"):
        Blueprint.infer(tree, architecture)
    apply = functools.partial(apply_mlps, names=names)
    inferred = Blueprint.infer(tree, architecture, apply=apply, inputs=TOKENS % 23)
    roles = {path: (role, axes) for path, role, axes in inferred.rules}
    assert roles["blocks/{layers}/norm_a"] == ("norm_gain", "embed")
    assert roles["blocks/{layers}/norm_b"] == ("closing_gain", "embed")
    assert roles["blocks/{layers}/zyx"] == ("mlp_in", "embed mlp")
    assert roles["blocks/{layers}/xyz"] == ("mlp_out", "mlp embed")


def test_a_function_that_no_reading_keeps_is_an_error():
    apply = functools.partial(apply_mlps, width=True)  # divides by a width that grows
    with pytest.raises(BlueprintError, match="growing embed_dim changes what the model computes"):
        Blueprint.infer(mlps(MLPS), MLPS, apply=apply, inputs=TOKENS % 23)


def test_a_model_that_runs_at_one_size_only_decides_nothing():
    def fixed(architecture, tree, tokens):
        assert architecture == MLPS
        return apply_mlps(architecture, tree, tokens)

    with pytest.raises(BlueprintError, match="at no other size, so nothing decides: mlp_dim: Asse"):
        Blueprint.infer(mlps(MLPS), MLPS, apply=fixed, inputs=TOKENS % 23)
