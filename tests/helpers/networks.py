"""Small networks for tests: architectures of every kind, steps for them, parameters, logits."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import growth
from growth import Architecture
from growth.architecture import presets
from growth.architecture.patches import Patches
from growth.architecture.rope_scaling import RopeScaling
from growth.blueprints import pytrees
from growth.models import initial_parameters, make_model

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8))

# Unlike the default kind, this kind of key compiles fast on a CPU.
KEY = jax.random.key(0, impl="rbg")

_SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=2, norm_eps=1e-3)

ARCHITECTURES = {
    "paper": Architecture.paper(**_SIZES, num_heads=2, qk_dim=3, v_dim=5, mlp_dim=7),
    "llama": Architecture.llama(
        **_SIZES, num_heads=4, num_kv_heads=2, qk_dim=4, mlp_dim=7, tied_embeddings=True
    ),
    "gpt2": Architecture.gpt2(**_SIZES, num_heads=2, mlp_dim=7),
    # What the others leave out, and layers that differ.
    "mixed": Architecture(
        **_SIZES,
        num_heads=(4, 2),
        num_kv_heads=(2, 1),
        qk_dim=(2, 4),
        v_dim=(3, 2),
        mlp_dim=7,
        rope_theta=(100.0, 10000.0),
        norm="layernorm",
        activation="gelu",
        use_bias=("norm", "query", "key", "mlp_out"),
        final_norm=False,
        causal=False,
    ),
}

_PLAIN = dict(
    vocab_size=11,
    max_length=8,
    embed_dim=6,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    qk_dim=4,
    v_dim=3,
    mlp_dim=7,
    norm_eps=1e-3,
)
_GEMMA = dict(unit_offset=True, scaled_embedding=True, tied_embeddings=True)
_SANDWICH = dict(norm_placement="sandwich", query_scale=0.3, attention_softcap=3.0)
_NEOX = dict(norm="layernorm", activation="gelu", gated_mlp=False)

_IMAGES = dict(patches=Patches(4, 6, 3, 2), max_length=7, causal=False)
_VIT = presets.VIT | _IMAGES

# What today's transformers vary, each as some model has it, in unequal sizes.
VARIANTS = {
    name: Architecture(**_PLAIN | fields)
    for name, fields in {
        "LayerNorm without gains (OLMo)": dict(norm="layernorm", norm_gain=False),
        "norms without gains, tied, scaled embedding": dict(
            norm_gain=False, tied_embeddings=True, scaled_embedding=True
        ),
        "norms without gains, tied": dict(norm_gain=False, tied_embeddings=True),
        "LayerNorm without biases": dict(norm="layernorm"),
        "LayerNorm, tied, scaled embedding": dict(
            norm="layernorm", tied_embeddings=True, scaled_embedding=True, use_bias=("norm",)
        ),
        "fixed epsilon, tied, learned positions (OPT)": dict(
            norm="layernorm",
            fixed_norm_eps=True,
            tied_embeddings=True,
            position="learned",
            activation="gelu_exact",
            use_bias=True,
            gated_mlp=False,
        ),
        "fixed epsilon, norms without gains, no final norm": dict(
            norm_gain=False, fixed_norm_eps=True, final_norm=False
        ),
        "fixed epsilon, norm over each query and key, scaled embedding": dict(
            **_GEMMA, qk_norm="head", fixed_norm_eps=True
        ),
        "fixed epsilon, sandwich norms, scaled embedding": dict(
            **_GEMMA, **_SANDWICH, fixed_norm_eps=True
        ),
        "fixed epsilon, closing norms, norm over all queries": dict(
            norm_placement="closing", qk_norm="all", fixed_norm_eps=True
        ),
        "fixed epsilon, RMSNorm after embedding": dict(
            embed_norm=True, fixed_norm_eps=True, position="learned"
        ),
        "gains stored as 1 + w, scaled embedding (Gemma)": dict(**_GEMMA, num_kv_heads=1),
        "sandwich norms, soft caps, windows (Gemma 2)": dict(
            **_GEMMA, **_SANDWICH, logit_softcap=5.0, window=(3, None)
        ),
        "closing norms, norm over all queries (OLMo 2)": dict(
            norm_placement="closing", qk_norm="all"
        ),
        "norm over each query and key (Qwen 3)": dict(qk_norm="head", use_bias=("query", "key")),
        "biases of query, key, value (Qwen 2)": dict(use_bias=("query", "key", "value")),
        "parallel branches, partial rotary (GPT-NeoX)": dict(
            **_NEOX, parallel="two_norms", rotary_dim=2, use_bias=True
        ),
        "parallel branches behind one norm (GPT-J)": dict(
            **_NEOX, parallel="shared_norm", rotary_dim=4, use_bias=("norm", "mlp_in", "mlp_out")
        ),
        "scaled rotary (Llama 3.1)": dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)),
        "neighbouring columns are turned": dict(rotary_interleaved=True),
        "neighbouring columns are turned, partial rotary (GPT-J)": dict(
            **_NEOX, parallel="shared_norm", rotary_interleaved=True, rotary_dim=2
        ),
        "scaled logits, tied (T5X)": dict(tied_embeddings=True, scaled_logits=True),
        "scaled logits, tied, LayerNorm, scaled embedding": dict(
            norm="layernorm",
            tied_embeddings=True,
            scaled_embedding=True,
            scaled_logits=True,
            use_bias=("norm",),
        ),
        "scaled logits, norms without gains": dict(norm_gain=False, scaled_logits=True),
        "scaled logits, tied, norms without gains": dict(
            norm_gain=False, scaled_logits=True, tied_embeddings=True
        ),
        "a gain on each branch": dict(branch_gain=True, use_bias=True),
        "a gain on each branch, LayerNorm, parallel": dict(
            **_NEOX, parallel="two_norms", branch_gain=True, use_bias=True
        ),
        "linearly scaled rotary, window (Mistral)": dict(
            rope_scaling=RopeScaling("linear", 2.0), window=3
        ),
        "ALiBi": dict(position="alibi", num_kv_heads=4),
        "ALiBi, norm after embedding (BLOOM)": dict(
            position="alibi", embed_norm=True, norm="layernorm", use_bias=True, num_kv_heads=4
        ),
        "RMSNorm after embedding": dict(embed_norm=True, position="learned"),
        "sinusoidal positions": dict(position="sinusoidal"),
        "post-norm, RMSNorm": dict(norm_placement="post", final_norm=False),
        "post-norm, LayerNorm, bidirectional (BERT)": dict(
            norm_placement="post", norm="layernorm", use_bias=True, causal=False, position="learned"
        ),
        "multi-query, no positions, bidirectional": dict(
            position="none", num_kv_heads=1, causal=False, window=2
        ),
        "images (ViT)": dict(**_VIT, num_kv_heads=4),
        "images, RMSNorm, rotary positions, gate": dict(_IMAGES),
        "no final norm, LayerNorm": dict(norm="layernorm", final_norm=False, position="learned"),
    }.items()
}


def first(names, *chosen):
    """All names as parameters of a test; those that are not chosen run with --full only."""
    marks = {False: [pytest.mark.full], True: []}
    return [pytest.param(name, marks=marks[name in chosen], id=name) for name in names]


def single_steps(architecture):
    """Each of the six transformations, with both ways to add heads and several places of layers."""
    heads = [layer.num_heads for layer in architecture.layers]
    groups = [layer.num_kv_heads for layer in architecture.layers]
    return {
        "mlp": growth.mlp_expansion(9),
        "mlp of one layer": growth.mlp_expansion(8, layers=(1,)),
        "whole groups": growth.head_addition([2 * e for e in heads]),
        "queries in groups": growth.head_addition([2 * e for e in heads], groups),
        "v": growth.heads_expansion(6),
        "qk": growth.attention_expansion(8),
        "qk of one layer": growth.attention_expansion(6, layers=(0,)),
        "embed": growth.hidden_dimension_expansion(10),
        "layer at the bottom": growth.layer_addition(1, position=0),
        "layers between": growth.layer_addition(2, position=1),
        "layer on top": growth.layer_addition(1),
    }


def all_steps(architecture):
    """The six transformations at once, on subsets of the layers where that is possible."""
    heads = [layer.num_heads for layer in architecture.layers]
    groups = [layer.num_kv_heads for layer in architecture.layers]
    return growth.compose(
        growth.head_addition([4 * e for e in heads], [2 * g for g in groups]),
        growth.layer_addition(1, position=1),
        growth.mlp_expansion(9),
        growth.mlp_expansion(10, layers=(2,)),
        growth.attention_expansion(6, layers=(0,)),
        growth.attention_expansion(8),
        growth.heads_expansion(6, layers=(0, 1)),
        growth.hidden_dimension_expansion(10),
    )


@functools.cache
def abstract_parameters(architecture):
    """Shapes of the parameters, and the names of their paths."""
    tree = jax.eval_shape(lambda: initial_parameters(architecture, KEY))
    return tree, tuple(leaf.path for leaf in pytrees.leaves(tree))


def random_parameters(architecture, seed=0, dtype=np.float64, embedding=1.0, gains=0.5, biases=0.5):
    """Parameters far from their initialization: gains and biases, too, are anything.

    `embedding` multiplies what enters the stream at the bottom; `gains` and `biases` are standard
    deviations, which are zero at an initialization.
    """
    tree, paths = abstract_parameters(architecture)
    random = np.random.default_rng(seed)
    values = []
    for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
        value = random.standard_normal(leaf.shape)
        if path in ("embed/embedding", "position"):
            value *= 0.5 * embedding
        elif path.endswith("scale"):
            value = 1 + gains * value
        else:
            value *= biases if path.endswith("bias") else 0.5
        values.append(value.astype(dtype))
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def zeros(architecture):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_parameters(architecture)[0])


@functools.cache
def _apply(architecture):
    return jax.jit(make_model(architecture).apply)


def inputs(architecture):
    """Some tokens, or images."""
    if architecture.patches is None:
        return TOKENS
    return 4 * np.random.default_rng(0).standard_normal((64, *architecture.patches.shape))


def logits(architecture, parameters, given=None):
    """The logits of some inputs, as a numpy array."""
    given = inputs(architecture) if given is None else given
    return np.asarray(_apply(architecture)({"params": parameters}, given))


def difference(old, new):
    """The largest difference of logits, relative to the largest logit."""
    assert np.isfinite(old).all()
    assert np.isfinite(new).all()
    return float(np.abs(old - new).max() / np.abs(old).max())


_programs = itertools.count(1)


def forget_programs(every):
    """Unloads compiled programs at every so many calls: a process runs out of memory maps else."""
    if next(_programs) % every == 0:
        jax.clear_caches()


def assert_same_trees(one, other):
    """Equal structure, shapes, dtypes and values."""
    chex.assert_trees_all_equal_dtypes(one, other)  # the next takes bfloat16 for float32
    chex.assert_trees_all_equal(one, other, strict=True)


def by_layer(tree, architecture):
    """The arrays of the reference model by name, and those of each layer apart.

    `"layers_0/mlp/up/kernel"`, an array of a run of two layers, becomes `(0, "mlp/up/kernel")` and
    `(1, "mlp/up/kernel")`; an array of no layer becomes `(None, name)`.
    """
    arrays = {}
    for leaf in pytrees.leaves(tree):
        head, _, name = leaf.path.partition("/")
        if head.startswith("layers_"):
            first = int(head.removeprefix("layers_"))
            number = dict(architecture.layer_runs)[first]
            assert leaf.value.shape[0] == number
            arrays |= {(first + i, name): leaf.value[i] for i in range(number)}
        else:
            arrays[None, leaf.path] = leaf.value
    return arrays


def axes_of(name):
    """The axes of an array of the reference model, by its name in `by_layer`."""
    *_, module, parameter = ("", *name.split("/"))
    axes = {
        "embed": "vocab embed",
        "": "length embed" if name == "position" else "embed",
        "patch_embed": "patch embed",
        "head": "embed vocab",
        "unembed": "embed vocab",
        "query": "embed kv_heads group qk",
        "key": "embed kv_heads qk",
        "value": "embed kv_heads v",
        "out": "kv_heads group v embed",
        "up": "embed mlp",
        "gate": "embed mlp",
        "down": "mlp embed",
    }.get(module, "embed").split()  # fmt: skip
    if parameter != "bias" or module.endswith("norm"):
        return axes
    return ["embed"] if module in ("out", "down") else axes[1:]


def old_places(name, old_shape, new_shape, rotary):
    """Where the old entries of an array are in the grown one, as an index.

    They come first along each axis; under rotary positions, first in each half of a query or key.
    """
    places = []
    for axis, old, new in zip(axes_of(name), old_shape, new_shape, strict=True):
        place = np.arange(old)
        if axis == "qk" and rotary:
            place[old // 2 :] += (new - old) // 2
        places.append(place)
    return np.ix_(*places)


def old_entries(old, new, plan):
    """For each array of each layer of the source its entries, and what has become of them.

    Args:
      old: a tree shaped like the parameters of the source.
      new: one shaped like those of the target.

    Yields:
      The layer, the name of the array in it, its entries, and the same entries of `new`.
    """
    new = by_layer(new, plan.target)
    for (layer, name), array in by_layer(old, plan.source).items():
        target = new[None if layer is None else plan.layer_sources.index(layer), name]
        places = old_places(name, array.shape, target.shape, plan.source.position == "rope")
        yield layer, name, np.asarray(array), np.asarray(target)[places]


def growth_factor(name, layer, plan):
    """What growth multiplies a parameter by (Gesmundo & Maile, definitions 3.4 and 3.5)."""
    if name.endswith("norm/scale"):
        return (plan.source.embed_dim / plan.target.embed_dim) ** 0.5
    if name.startswith("attention/key/"):
        target = plan.target.layers[plan.layer_sources.index(layer)]
        return (target.qk_dim / plan.source.layers[layer].qk_dim) ** 0.5
    return 1.0


def with_dtype(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
