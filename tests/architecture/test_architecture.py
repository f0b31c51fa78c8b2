"""`Architecture`: fields read back, go to JSON and back, are counted, and are refused by name."""

import dataclasses

import pytest

from growth import Architecture, ArchitectureError
from growth.architecture import LAYER_FIELDS, LayerShape, RopeScaling
from growth.architecture.cost import Experts, ExtraParts
from growth.architecture.validation import BIASES

SIZES = dict(vocab_size=11, max_length=8, embed_dim=12, num_layers=3, num_heads=4, mlp_dim=7)

VARIANTS = {
    "paper": Architecture.paper(**SIZES),
    "gpt2": Architecture.gpt2(**SIZES),
    "llama": Architecture.llama(**SIZES | dict(num_heads=6), num_kv_heads=2),
    "per layer": Architecture(**SIZES | dict(num_heads=(4, 2, 4)), qk_dim=(2, 4, 2), v_dim=5),
    "some biases": Architecture(**SIZES, qk_dim=4, use_bias=("query", "mlp_out")),
}


def test_defaults_are_those_of_the_docstring():
    architecture = Architecture(**SIZES | dict(num_heads=6))
    assert architecture.num_kv_heads == 6
    assert architecture.qk_dim == 2  # embed_dim // num_heads
    assert architecture.v_dim == 2  # as qk_dim
    assert Architecture(**SIZES | dict(num_heads=6), qk_dim=8).v_dim == 8


def test_a_field_is_a_number_where_layers_agree_and_a_tuple_where_they_differ():
    architecture = Architecture(
        **SIZES | dict(mlp_dim=[7, 9, 9], num_heads=[2, 2, 2]), v_dim=(1, 2, 3), qk_dim=4
    )
    assert architecture.mlp_dim == (7, 9, 9)
    assert architecture.num_heads == 2
    assert architecture.v_dim == (1, 2, 3)
    assert architecture.qk_dim == 4
    assert architecture.layers[1] == LayerShape(
        num_heads=2, num_kv_heads=2, qk_dim=4, v_dim=2, mlp_dim=9, rope_theta=10000.0
    )
    assert len(architecture.layers) == 3


def test_equal_architectures_are_one_value():
    written_out = Architecture(**SIZES | dict(mlp_dim=(7, 7, 7)), qk_dim=4, num_kv_heads=[4, 4, 4])
    short = Architecture(**SIZES, qk_dim=4)
    assert written_out == short
    assert hash(written_out) == hash(short)
    assert len({written_out, short, short.replace(mlp_dim=8)}) == 2


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VARIANTS["paper"].mlp_dim = 8


def test_runs_are_neighbouring_layers_of_one_shape():

    def runs(**fields):
        return Architecture(**SIZES | dict(num_layers=4) | fields, qk_dim=4).layer_runs

    assert runs() == ((0, 4),)
    assert runs(mlp_dim=(7, 7, 9, 9)) == ((0, 2), (2, 2))
    assert runs(mlp_dim=(7, 9, 7, 7), rope_theta=(1.0, 1.0, 1.0, 2.0)) == (
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_json_and_back(name):
    architecture = VARIANTS[name]
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    assert eval(repr(architecture), {"Architecture": Architecture}) == architecture


def test_a_dict_with_unknown_or_missing_fields_is_refused():
    fields = VARIANTS["paper"].to_dict()
    with pytest.raises(ArchitectureError, match=r"unknown field depth, width; .* has vocab_size"):
        Architecture.from_dict(fields | dict(width=1, depth=2))
    del fields["vocab_size"], fields["mlp_dim"]
    with pytest.raises(ArchitectureError, match="needs vocab_size, mlp_dim"):
        Architecture.from_dict(fields)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_prints_in_one_line(name):
    text = str(VARIANTS[name])
    assert "\n" not in text
    assert "3 layers" in text
    assert "embed 12" in text


def test_it_prints_what_differs_per_layer():
    assert "4/2/4 heads, qk 2/4/2, v 5" in str(VARIANTS["per layer"])
    assert "6 heads in 2 groups" in str(VARIANTS["llama"])


def test_presets():
    paper, gpt2, llama = (VARIANTS[name] for name in ("paper", "gpt2", "llama"))
    assert (paper.norm, paper.activation, paper.position) == ("rmsnorm", "relu", "learned")
    assert not any((paper.final_norm, paper.gated_mlp, paper.tied_embeddings))
    assert [part for part in BIASES if paper.has_bias(part)] == ["mlp_in", "mlp_out"]
    assert (gpt2.norm, gpt2.activation, gpt2.position) == ("layernorm", "gelu", "learned")
    assert all(gpt2.has_bias(part) for part in BIASES)
    assert gpt2.tied_embeddings
    assert gpt2.final_norm
    assert (llama.norm, llama.activation, llama.position) == ("rmsnorm", "silu", "rope")
    assert not any(llama.has_bias(part) for part in BIASES)
    assert llama.gated_mlp
    assert Architecture.paper(**SIZES, activation="gelu").activation == "gelu"


def test_biases():
    assert Architecture.gpt2(**SIZES, use_bias=list(BIASES)).use_bias is True
    assert Architecture.gpt2(**SIZES, use_bias=()).use_bias is False
    ordered = Architecture.gpt2(**SIZES, use_bias={"value", "key"}).use_bias
    assert ordered == ("key", "value")
    assert Architecture.llama(**SIZES, qk_dim=4, use_bias=True).has_bias("key")
    assert not Architecture.llama(**SIZES, qk_dim=4, use_bias=True).has_bias("norm")


def test_counts_of_parameters_and_flops():
    architecture = Architecture.paper(
        vocab_size=11, max_length=8, embed_dim=6, num_layers=2, num_heads=3, qk_dim=4, v_dim=5,
        mlp_dim=(7, 9),
    )  # fmt: skip
    attention = 6 * 3 * 4 + 6 * 3 * 4 + 6 * 3 * 5 + 3 * 5 * 6
    mlps = [2 * 6 * p + p + 6 for p in (7, 9)]
    norms = 2 * 2 * 6
    assert architecture.num_parameters == 2 * 11 * 6 + 8 * 6 + 2 * attention + sum(mlps) + norms

    weights = 6 * 11 + 2 * attention + 2 * 6 * (7 + 9)
    scores_and_mixing = 2 * 3 * (4 + 5)  # per token and position
    flops = architecture.training_flops_per_token
    assert flops(length=5) == 6 * (weights + 5 * scores_and_mixing)
    assert flops() == flops(length=8)


REFUSED = [
    (dict(vocab_size=0), "vocab_size is 0, but it must be a whole number"),
    (dict(max_length=-1), "max_length is -1"),
    (dict(embed_dim=1.5), "embed_dim is 1.5"),
    (dict(num_layers="3"), "num_layers is '3'"),
    (dict(num_layers=True), "num_layers is True"),
    (dict(num_heads=None), "num_heads is None"),
    (dict(num_kv_heads=0), "num_kv_heads is 0"),
    (dict(qk_dim=0), "qk_dim is 0"),
    (dict(v_dim=0), "v_dim is 0"),
    (dict(mlp_dim=(7, 0, 7)), r"mlp_dim\[1\] is 0"),
    (dict(mlp_dim=(7, 7)), "mlp_dim has 2 entries, but num_layers is 3"),
    (dict(v_dim=()), "v_dim has 0 entries"),
    (dict(num_kv_heads=3), "num_heads is 4 and num_kv_heads is 3 in layer 0"),
    (dict(num_heads=(4, 4, 6), num_kv_heads=4), "num_heads is 6 and num_kv_heads is 4 in layer 2"),
    (dict(qk_dim=(4, 3, 4), position="rope"), "qk_dim is 3 in layer 1, but rotary"),
    (dict(norm="batchnorm"), "norm is 'batchnorm', but it must be one of rmsnorm, layernorm"),
    (dict(position="cosine"), "position is 'cosine'"),
    (dict(activation="tanh"), "activation is 'tanh'"),
    (dict(norm_eps=0.0), "norm_eps is 0.0, but it must be a positive number"),
    (dict(norm_eps="small"), "norm_eps is 'small'"),
    (dict(rope_theta=float("inf")), "rope_theta is inf"),
    (dict(rope_theta=(1.0, -1.0, 1.0)), r"rope_theta\[1\] is -1.0"),
    (dict(gated_mlp=1), "gated_mlp is 1, not True or False"),
    (dict(tied_embeddings=None), "tied_embeddings is None"),
    (dict(final_norm="yes"), "final_norm is 'yes'"),
    (dict(causal=0), "causal is 0"),
    (dict(use_bias="key"), "use_bias is 'key', but it must be True, False or some of norm, query"),
    (dict(use_bias=("keys",)), r"use_bias is \('keys',\)"),
    (dict(use_bias=("norm",), norm="rmsnorm"), "use_bias names 'norm', but an rmsnorm, or"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(f) for f, _ in REFUSED])
def test_a_field_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ArchitectureError, match=message):
        Architecture.gpt2(**SIZES | fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RopeScaling("yarn", 2.0), "rope_scaling.kind is 'yarn', but it must be one of"),
        (lambda: RopeScaling("linear", 0.5), "rope_scaling.factor is 0.5, but it must be at least"),
        (lambda: RopeScaling("linear", "8"), "rope_scaling.factor is '8', but it must be a positi"),
        (lambda: RopeScaling("llama3", 8.0, 4.0, 4.0), "low_freq_factor is 4.0, but it must be be"),
        (lambda: RopeScaling("llama3", 8.0, original_length=0), "original_length is 0, but it mus"),
        (lambda: Experts(0, 1), "experts.number is 0, but it must be a whole number of at least 1"),
        (lambda: Experts(2, 3), "experts.per_token is 3, but it must be at most experts.number, 2"),
        (lambda: ExtraParts(word_dim=-1), "word_dim is -1, but it must be a whole number"),
    ],
)
def test_parts_of_an_architecture_that_are_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ArchitectureError, match=message):
        make()


def test_every_field_that_a_layer_has_of_its_own_may_differ_from_layer_to_layer():
    sizes = SIZES | dict(num_heads=4, qk_dim=4, v_dim=4, num_kv_heads=4, rope_theta=10.0)
    for name in LAYER_FIELDS:
        values = (4, 8, 4)
        fields = sizes | {name: values}
        if name == "num_kv_heads":
            fields["num_heads"] = 8
        assert getattr(Architecture(**fields), name) == values
