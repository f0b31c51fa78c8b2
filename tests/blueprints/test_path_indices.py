"""However people number arrays of layers and heads, a rule can say it, and growth is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import path_indices
from tests.helpers import networks
from tests.helpers.griffin import haiku

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


NUMBERINGS = {
    "first without a number": (
        ("block{_layers}/value{_kv_heads}", "block{_layers}/out{_kv_heads}", "head"),
        lambda layer, head, side, number: (
            "head" if side == "unembed" else f"{haiku('block', layer)}/{haiku(side, head)}"
        ),
    ),
    "first without a number, within a name": (
        ("h{_layers}_attn/value_{kv_heads}",
         "h{_layers}_attn/out_{kv_heads}", "ln_f"),
        lambda layer, head, side, number: (
            "ln_f" if side == "unembed" else f"{haiku('h', layer)}_attn/{side}_{head}"
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
            else f"{haiku(side, head)}/{haiku('linear', 2 * layer + (side == 'value'))}"
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
            else f"layer{layer}/{haiku('w', 2 * head + (side == 'out'))}"
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
    paths = [haiku("a", number) for number in range(3 * step + 1)]
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
    small = {f"gpt/{haiku('block', i)}/linear": {"w": np.ones((6, 7))} for i in range(3)}
    plan = growth.layer_addition(1, position=0)(ARCHITECTURE)
    large = growth.expand(
        small, plan, blueprint=Blueprint(rules), init="copy", key=jax.random.key(0)
    )
    assert list(large) == [f"gpt/{haiku('block', i)}/linear" for i in range(4)]
