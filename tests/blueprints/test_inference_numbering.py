"""Blueprints that are guessed, of trees that are numbered otherwise, or whose layers differ."""

import re

import numpy as np
import pytest

from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import pytrees
from growth.blueprints.inference import names
from growth.blueprints.inference.guessing import guesses
from growth.blueprints.inference.paths import kinds
from tests.helpers import griffin, inference_cases
from tests.helpers.griffin import haiku

ARCHITECTURE = Architecture(
    vocab_size=11, max_length=8, embed_dim=6, num_layers=3, num_heads=2, qk_dim=4, v_dim=3,
    mlp_dim=7, position="none",
)  # fmt: skip


def _as_haiku(tree, base):
    """Shapes by path, where what is called `base` and a number is called as Haiku calls it."""
    shapes = {leaf.name: leaf.value for leaf in pytrees.leaves(tree)}
    return {
        re.sub(rf"\b{base}(\d+)(?=/)", lambda m: haiku("block", int(m[1])), path): value
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
    stem = f"{STEMS[name]}{{layers}}"
    plain, renamed = (
        {
            guess.path.replace(stem, "block{_layers}"): (
                guess.readings, guess.sure, names.words(guess.kind), guess.kind.home,
                guess.kind.layers,
            )
            for guess in guesses(shapes, architecture)
        }
        for shapes in (tree, _as_haiku(tree, STEMS[name]))
    )  # fmt: skip
    for path, found in renamed.items():
        *same, home, layers = plain[path]
        assert found == (*same, home.removesuffix(STEMS[name].strip("/_")).strip("/"), layers)
    assert plain.keys() == renamed.keys()
    assert any("{_layers}" in path for path in plain)


@pytest.mark.parametrize(
    ("shapes", "paths"),
    [
        (
            {f"gpt/{haiku('layer', i)}/w": (6, 7) for i in range(3)},
            ["gpt/layer{_layers}/w"],
        ),
        (  # in every layer as many norms as there are layers
            {f"layers_{i}/{haiku('norm', j)}": (6,) for i in range(3) for j in range(3)},
            ["layers_{layers}/norm", "layers_{layers}/norm_1", "layers_{layers}/norm_2"],
        ),
        (
            {f"{haiku('block', i)}/{haiku('norm', j)}": (6,) for i in range(3) for j in range(3)},
            ["block{_layers}/norm", "block{_layers}/norm_1", "block{_layers}/norm_2"],
        ),
        (  # one is more, and one is less
            {f"{haiku('block', i)}/w": (6, 7) for i in range(4)},
            ["block/w", "block_1/w", "block_2/w", "block_3/w"],
        ),
        ({f"{haiku('block', i)}/w": (6, 7) for i in range(2)}, ["block/w", "block_1/w"]),
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
    tree = {f"net/{haiku('linear', n)}/w": np.zeros(shape) for n, shape in enumerate(shapes)}
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
