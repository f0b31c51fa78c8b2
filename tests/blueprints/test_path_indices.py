"""However people number arrays of layers and heads, a rule can say it, and growth is the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import path_indices, pytrees
from growth.blueprints.inference.guessing import guesses
from growth.blueprints.inference.paths import kinds
from tests.helpers import griffin, inference_cases, networks

ARCHITECTURE = Architecture(
    vocab_size=11, max_length=8, embed_dim=6, num_layers=3, num_heads=2, qk_dim=4, v_dim=3,
    mlp_dim=7, position="none",
)  # fmt: skip
STEP = growth.compose(
    growth.layer_addition(2, position=1), growth.head_addition(3), growth.grow_to(embed_dim=8)
)

# A value and an output for each layer and head, and an output layer behind them all. By how the
# paths are written: the rules' three, and a function of what an array is to its path.
PLAIN = ("layers_{layers}/value_{kv_heads}", "layers_{layers}/out_{kv_heads}", "unembed")


def _haiku(name, number):
    return f"{name}_{number}" if number else name


NUMBERINGS = {
    "first without a number": (
        ("block{_layers}/value{_kv_heads}", "block{_layers}/out{_kv_heads}", "head"),
        lambda layer, head, side, number: (
            "head" if side == "unembed" else f"{_haiku('block', layer)}/{_haiku(side, head)}"
        ),
    ),
    "first without a number, within a name": (
        ("h{_layers}_attn/value_{kv_heads}",
         "h{_layers}_attn/out_{kv_heads}", "ln_f"),
        lambda layer, head, side, number: (
            "ln_f" if side == "unembed" else f"{_haiku('h', layer)}_attn/{side}_{head}"
        ),
    ),
    "from one": (
        ("{layers+1}/value{kv_heads+1}", "{layers+1}/out{kv_heads+1}", "{num_layers+1}"),
        lambda layer, head, side, number: (
            f"{number + 1}" if side == "unembed" else f"{layer + 1}/{side}{head + 1}"
        ),
    ),
    "one row, of heads two": (
        ("value{_kv_heads}/linear_{2*layers+1}", "out{_kv_heads}/linear{_2*layers}", "linear"),
        lambda layer, head, side, number: (
            "linear"
            if side == "unembed"
            else f"{_haiku(side, head)}/{_haiku('linear', 2 * layer + (side == 'value'))}"
        ),
    ),
    "one row, and what is behind it": (
        ("linear_{2*layers+1}/{kv_heads}", "linear_{2*layers+2}/{kv_heads}",
         "linear_{2*num_layers+1}/{part}"),
        lambda layer, head, side, number: (
            f"linear_{2 * number + 1}/w"
            if side == "unembed"
            else f"linear_{2 * layer + 1 + (side == 'out')}/{head}"
        ),
    ),
    "heads in a row": (
        ("layer{layers}/w{_2*kv_heads}", "layer{layers}/w{_2*kv_heads+1}", "w"),
        lambda layer, head, side, number: (
            "w" if side == "unembed"
            else f"layer{layer}/{_haiku('w', 2 * head + (side == 'out'))}"
        ),
    ),
}  # fmt: skip


def blueprint_of(paths):
    value, out, unembed = paths
    return Blueprint(
        [
            (value, "value", "embed v"),
            (out, "attention_out", "v embed"),
            (unembed, "unembed", "embed vocab"),
        ]
    )


def plain(layer, head, side, number):
    return "unembed" if side == "unembed" else f"layers_{layer}/{side}_{head}"


def tree(architecture, path_of, seed):
    """The same numbers for the same arrays, whatever their paths."""
    number, random = architecture.num_layers, np.random.default_rng(seed)
    h, v = architecture.embed_dim, architecture.layers[0].v_dim
    arrays = {}
    for layer in range(number):
        for head in range(architecture.layers[0].num_kv_heads):
            for side, shape in (("value", (h, v)), ("out", (v, h))):
                arrays[path_of(layer, head, side, number)] = random.standard_normal(shape)
    arrays[path_of(None, None, "unembed", number)] = random.standard_normal((h, 11))
    return {path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()}


def grown(paths, path_of):
    """What parameters and the state of an optimizer become: arrays in an order of their own."""
    plan, blueprint = STEP(ARCHITECTURE), blueprint_of(paths)
    small, fresh = tree(ARCHITECTURE, path_of, 0), tree(plan.target, path_of, 1)
    large = growth.expand(small, plan, blueprint=blueprint, fresh=fresh)
    tx = optax.scale_by_adam()
    state = tx.init(small)
    state = state._replace(mu=tree(ARCHITECTURE, path_of, 2), nu=tree(ARCHITECTURE, path_of, 3))
    state = growth.expand_optimizer_state(
        state, plan, tx=tx, params=small, grown=large, blueprint=blueprint
    )
    number = plan.target.num_layers
    places = [
        path_of(layer, head, side, number)
        for layer in range(number)
        for head in range(3)
        for side in ("value", "out")
    ]
    places.append(path_of(None, None, "unembed", number))
    trees = (large, state.mu, state.nu)
    assert all(one.keys() == {*places} for one in trees)
    return [[one[path] for path in places] for one in trees]


@pytest.fixture(scope="module")
def by_plain_paths():
    return grown(PLAIN, plain)


@pytest.mark.parametrize("name", NUMBERINGS)
def test_whatever_the_numbering_parameters_and_moments_grow_alike(name, by_plain_paths):
    networks.assert_same_trees(by_plain_paths, grown(*NUMBERINGS[name]))


def _writings():
    for zero in ("", "_"):
        for step in ("", "2*", "7*"):
            for first in ("", "+1", "+9"):
                for name in ("layers", "kv_heads"):
                    yield f"{zero}{step}{name}{first}"


@pytest.mark.parametrize("written", [*_writings()])
def test_what_is_written_is_read_and_nothing_else_is(written):
    path = f"a{{{written}}}/b"
    (name,) = (part.name for part in path_indices.pieces(path) if not isinstance(part, str))
    texts = [path_indices.write(path, {name: index}) for index in range(40)]
    assert len(set(texts)) == 40
    for index, text in enumerate(texts):
        assert path_indices.read(path, text) == {name: index}
    numbers = ["", *map(str, range(30)), "00", "01", "1_", "-1", "1.0", "١"]
    others = {f"a{mark}{number}/b" for mark in ("", "_", "__") for number in numbers} - {*texts}
    assert [text for text in others if path_indices.read(path, text) is not None] == []


@pytest.mark.parametrize("step", [2, 3, 7])
def test_the_places_of_a_row_share_its_numbers_and_leave_none_out(step):
    rules = [(f"a{{_{step}*layers+{j}}}", "mlp_in", "embed mlp") for j in range(step)]
    rules.append((f"a_{{{step}*num_layers}}", "unembed", "embed vocab"))
    paths = [_haiku("a", number) for number in range(3 * step + 1)]
    found = Blueprint(rules).locate(paths, ARCHITECTURE)
    assert [
        (rules.index((r.path, r.roles[0], " ".join(r.axes))), i) for r, i, _ in found.values()
    ] == [
        *((j, {"layers": layer}) for layer in range(3) for j in range(step)),
        (step, {"num_layers": 3}),
    ]


MALFORMED = {
    "a{_part}": r"{_part} counts 'part', but only axes that grow are counted: layers, ",
    "a{2*part}": "counts 'part'",
    "a{part+1}": "counts 'part'",
    "a{part?}": "counts 'part'",
    "a{_vocab}": "counts 'vocab'",
    "a{kv_heads?}": r"{kv_heads\?} must be {kv_heads}: only some layers can have an array",
    "a{num_layers?}": r"must be {num_layers}",
    "a{0*layers}": "gives all layers the same number",
    "{_layers}": "must stand behind a name",
    "a/{_layers}/b": "must stand behind a name",
    "a{_layers}{_kv_heads}": "{layers} and {kv_heads} stand side by side",
    "a{layers}{kv_heads}": "{layers} and {kv_heads} stand side by side",
    "a{layers}{part}": "{layers} and {part} stand side by side",
    "a{_layers}{part}": "{layers} and {part} stand side by side",
    "a{one}{other}": "{one} and {other} stand side by side",
    "a{layers*2}": r"as in {_layers}, {7\*layers\+2} or {layers\?}, not {layers\*2}",
    "a{layers-1}": "not {layers-1}",
    "a{+1}": r"not {\+1}",
    "a{}": "not {}",
    "a{ layers}": "not { layers}",
    "a{__layers}": "counts|not {__layers}",
    "a{layers": "hold a name, and close",
    "a}": "hold a name, and close",
    "a{{layers}}": "hold a name, and close|not {",
    "a{layers}b{_layers}": "the axis 'layers' stands there twice",
    "a{2*heads}": "counts 'heads'",
}


@pytest.mark.parametrize("path", MALFORMED)
def test_braces_that_mean_nothing_are_refused_with_what_would_be_right(path):
    with pytest.raises(BlueprintError, match=MALFORMED[path]) as error:
        Blueprint([(path, "value", "embed v")])
    assert repr(path) in str(error.value)


@pytest.mark.parametrize(
    ("paths", "names", "message"),
    [
        (["a_{layers}"], ["a", "a_1", "a_2"],
         r"a: matched by no rule; .*'a_{layers}' for 'a'; where the first has no number, write "
         r"'a{_layers}'"),
        (["a{layers}"], ["a", "a_1", "a_2"], r"a: matched by no rule; .* write 'a{_layers}'"),
        (["a{_layers}"], ["a_0", "a_1", "a_2"],
         r"a_0: matched by no rule; .* 'a{_layers}' for 'a_0'"),
        (["a{_layers}"], ["a", "a_1", "a_3"], r"a_3: no layer has this index"),
        (["a_{layers}"], ["a_0", "a_1", "a_02"], "a_02: matched by no rule"),
        (["a_{layers}"], ["a_0", "a_1"],
         r"layers 0 and 1 have m/a_{layers}, layer 2 has not: .*: m/a_{layers\?}"),
        (["a{_2*layers+1}"], ["a_1", "a_5"], r"have m/a{_2\*layers\+1}, .*: m/a{_2\*layers\+1\?}"),
        (["a{_2*layers}", "a_{2*layers+2}"], ["a", "a_2", "a_4"],
         r"a_2: matched by 'm/a{_2\*layers}' and 'm/a_{2\*layers\+2}'; one rule must match it"),
        (["a{_2*layers}", "a_{2*num_layers}"], ["a", "a_2", "a_4", "a_8"],
         r"a_8: no layer has this index"),
        (["a_{2*num_layers}"], ["a_5"],
         r"a_5: matched by no rule; .* 'a_{2\*num_layers}' for 'a_5'"),
        (["b{_kv_heads}/a_{layers}"], ["b/a_0", "b_1/a_0", "b/a_1", "b/a_2", "b_1/a_2"],
         "b_1/a_1: missing, though m/b/a_0 is there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_does_not_fit_is_said_in_the_numbers_of_the_tree(paths, names, message):
    rules = [(f"m/{path}", "value", "embed v") for path in paths]
    with pytest.raises(BlueprintError, match=message):
        Blueprint(rules).check({f"m/{name}": np.zeros((6, 3)) for name in names}, ARCHITECTURE)


def test_containers_and_attributes_take_the_new_numbers():
    rules = [("gpt/block{_layers}/linear/w", "mlp_in", "embed mlp")]
    small = {f"gpt/{_haiku('block', i)}/linear": {"w": np.ones((6, 7))} for i in range(3)}
    plan = growth.layer_addition(1, position=0)(ARCHITECTURE)
    large = growth.expand(
        small, plan, blueprint=Blueprint(rules), init="copy", key=jax.random.key(0)
    )
    assert list(large) == [f"gpt/{_haiku('block', i)}/linear" for i in range(4)]


def _as_haiku(tree, base):
    """Shapes by path, where what is called `base` and a number is called as Haiku calls it."""
    shapes = {leaf.name: leaf.value for leaf in pytrees.leaves(tree)}
    return {
        re.sub(rf"\b{base}(\d+)(?=/)", lambda m: _haiku("block", int(m[1])), path): value
        for path, value in shapes.items()
    }


# Models whose layers' index ends a name, with what stands before it.
STEMS = {
    name: stem
    for name, model in inference_cases.BY_HAND.items()
    for stem in ("blocks_", "layers_", "layers/", "h_", "h/", "blocks/")
    if any(f"{stem}{{layers}}/" in path for path, _, _ in model.blueprint.rules)
}


@pytest.mark.parametrize("name", STEMS)
def test_what_is_guessed_is_the_same_where_the_first_layer_has_no_number(name):
    tree, architecture = inference_cases.shapes_of(name)
    plain = {
        guess.path.replace(f"{STEMS[name]}{{layers}}", "block{_layers}"): (
            guess.readings,
            guess.sure,
        )
        for guess in guesses(tree, architecture)
    }
    renamed = guesses(_as_haiku(tree, STEMS[name]), architecture)
    assert {guess.path: (guess.readings, guess.sure) for guess in renamed} == plain
    assert any("{_layers}" in path for path in plain)


@pytest.mark.parametrize(
    ("shapes", "paths"),
    [
        (
            {f"gpt/{_haiku('layer', i)}/w": (6, 7) for i in range(3)},
            ["gpt/layer{_layers}/w"],
        ),
        (  # in every layer as many norms as there are layers
            {f"layers_{i}/{_haiku('norm', j)}": (6,) for i in range(3) for j in range(3)},
            ["layers_{layers}/norm", "layers_{layers}/norm_1", "layers_{layers}/norm_2"],
        ),
        (
            {f"{_haiku('block', i)}/{_haiku('norm', j)}": (6,) for i in range(3) for j in range(3)},
            ["block{_layers}/norm", "block{_layers}/norm_1", "block{_layers}/norm_2"],
        ),
        (  # one is more, and one is less
            {f"{_haiku('block', i)}/w": (6, 7) for i in range(4)},
            ["block/w", "block_1/w", "block_2/w", "block_3/w"],
        ),
        ({f"{_haiku('block', i)}/w": (6, 7) for i in range(2)}, ["block/w", "block_1/w"]),
        (  # of two kinds
            {"block/w": (6, 7), "block_1/w": (6, 7), "block_2/w": (6, 7), "block_2/b": (7,)},
            ["block{_layers}/w", "block{_layers}/b"],
        ),
        (  # nothing is in all of them
            {"block/w": (6, 7), "block_1/w": (7,), "block_2/v": (6, 7)},
            ["block/w", "block_1/w", "block_2/v"],
        ),
        ({"block/w": (6, 7), "block_01/w": (6, 7), "block_2/w": (6, 7)},
         ["block/w", "block_01/w", "block_2/w"]),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_row_without_zero_is_of_layers_if_it_is_as_long_and_all_have_an_array_in_common(
    shapes, paths
):
    assert [kind.path for kind in kinds(shapes, ARCHITECTURE)] == paths


def test_a_row_that_counts_all_layers_is_named_where_it_is_not_read():
    sides = ((34, 28), (34, 28), (34, 22), (22, 34), (34, 58), (34, 58), (58, 34))
    shapes = [shape for _ in range(3) for shape in sides]
    tree = {f"net/{_haiku('linear', n)}/w": np.zeros(shape) for n, shape in enumerate(shapes)}
    tree |= {f"net/layer{n}/scale": np.zeros(34) for n in range(6)}
    distinct = ARCHITECTURE.replace(embed_dim=34, qk_dim=14, v_dim=11, mlp_dim=58)
    with pytest.raises(BlueprintError) as error:
        Blueprint.infer(tree, distinct)
    assert (
        "net/linear/w, net/linear_1/w and 19 more: if the numbers count the arrays of all layers, "
        "7 in each, net/linear{_7*layers} and net/linear_{7*layers+1} are the first two"
    ) in str(error.value)
    assert "2 in each, net/layer{2*layers} and net/layer{2*layers+1} are" in str(error.value)


def test_what_is_guessed_of_layers_of_two_kinds_is_right_and_what_some_have_is_open():
    architecture = griffin.ARCHITECTURE.replace(
        vocab_size=101, embed_dim=34, mlp_dim=58, qk_dim=14, v_dim=11
    )
    tree = griffin.init(architecture, griffin.KINDS)
    right = {path: rest for path, *rest in griffin.RULES}
    for guess in guesses(tree, architecture):
        if guess.sure:
            (reading,) = guess.readings
            role = right[guess.path][0].replace("norm_gain", reading.roles[0])
            assert [reading.role, reading.axes] == [role, right[guess.path][1]]
        else:
            assert any("by {layers?}" in doubt for doubt in guess.doubts), guess
